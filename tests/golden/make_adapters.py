#!/usr/bin/env python3
"""Makes adapters/: small adapters for tiny/ in every layout that programs write, and what they make of its weights.

    pip install -r tests/golden/requirements.txt peft==0.21.2
    pip install --no-deps lycoris-lora==4.1.3 einops toml
    python tests/golden/make_adapters.py

Written: adapters/NAME.safetensors, or adapters/NAME/ for a folder of peft, and adapters/golden.safetensors with, for each,
NAME/COMPONENT/TENSOR, the merged weight, and for layers NAME/COMPONENT/MODULE/x and /y, an input and what the adapted layer
makes of it: the base layer's output plus that of the factors, which are never multiplied with each other. All of it is
computed in f64 and stored in f32. Wherever a library takes the file, its own result is compared: diffusers' and peft's
merged weights, peft's LoHa and LoKr, LyCORIS' forward pass.
"""

import hashlib
import json
import math
import shutil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
OUT = HERE / "adapters"
F64 = torch.float64
RANK, ALPHA = 2, 3.0

PRIOR = ["transformer_blocks.0.attn1.to_q", "transformer_blocks.1.attn1.to_v", "transformer_blocks.1.attn1.to_out.0"]
ATTENTION = [f"mid_block.attentions.0.{leaf}" for leaf in ("to_q", "to_v", "to_out.0", "add_k_proj", "add_v_proj")]
CONVS = ["down_blocks.1.resnets.0.conv1", "down_blocks.1.resnets.0.conv_shortcut", "up_blocks.3.resnets.1.conv2"]
TIME = ["down_blocks.1.resnets.0.time_emb_proj"]
TEXT = [f"text_model.encoder.layers.1.self_attn.{leaf}" for leaf in ("q_proj", "v_proj", "out_proj")]
MLP = ["text_model.encoder.layers.0.mlp.fc1", "text_model.encoder.layers.1.mlp.fc2"]
NORM = "down_blocks.1.attentions.0.group_norm"

BASE = {
    part: {name: tensor for name, tensor in load_file(HERE / "tiny" / part / f"{stem}.safetensors").items()}
    for part, stem in (("prior", "diffusion_pytorch_model"), ("decoder", "diffusion_pytorch_model"), ("text_encoder", "model"))
}
GOLDEN = {}


def draw(name, *shape, std=1.0):
    seed = np.frombuffer(hashlib.sha256(name.encode()).digest()[:16], np.uint32)
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape, np.float32) * np.float32(std))


def relative(a, b):
    return float((a.to(F64) - b.to(F64)).norm() / b.to(F64).norm())


class Layer:
    """An adapted layer: `branch` is what the factors make of an input, `delta` the same as a matrix."""

    def __init__(self, part, module, delta, branch=None, norms=None):
        self.part, self.module, self.delta, self.norms = part, module, delta, norms
        self.base = BASE[part][f"{module}.weight"].to(F64)
        self.branch = branch or (lambda x: self.apply(x, delta))

    def apply(self, x, weight):
        return F.linear(x, weight) if weight.ndim == 2 else F.conv2d(x, weight, padding=weight.shape[-1] // 2)

    def merged(self):
        weight = self.base + self.delta
        if self.norms is not None:
            magnitude, axis = self.norms
            others = [a for a in range(weight.ndim) if a != axis]
            weight = weight * (magnitude.to(F64).reshape([-1 if a == axis else 1 for a in range(weight.ndim)]) / weight.pow(2).sum(others, True).sqrt())
        return weight

    def record(self, name):
        at = f"{name}/{self.part}/{self.module}"
        size = (3, self.base.shape[1]) if self.base.ndim == 2 else (1, self.base.shape[1], 5, 5)
        x = draw(f"x/{at}", *size)
        # A norm of the merged weight is no branch of its own.
        wide = x.to(F64)
        y = self.apply(wide, self.merged()) if self.norms is not None else self.apply(wide, self.base) + self.branch(wide)
        GOLDEN[f"{at}.weight"], GOLDEN[f"{at}/x"], GOLDEN[f"{at}/y"] = (t.to(torch.float32).contiguous() for t in (self.merged(), x, y))


def lora(part, module, scale, rank=RANK, norms=None, half=False):
    """A layer with two factors, and the factors."""
    shape = BASE[part][f"{module}.weight"].shape
    down = draw(f"{part}/{module}/down/{rank}", rank, *shape[1:], std=1 / math.sqrt(math.prod(shape[1:])))
    up = draw(f"{part}/{module}/up/{rank}", shape[0], rank, *[1] * (len(shape) - 2), std=0.3)
    down, up = (down.half(), up.half()) if half else (down, up)
    a, b = down.to(F64), up.to(F64)

    def branch(x):
        if a.ndim == 2:
            return scale * F.linear(F.linear(x, a), b)
        return scale * F.conv2d(F.conv2d(x, a, padding=a.shape[-1] // 2), b)

    delta = scale * torch.einsum("or,r...->o...", b.flatten(1), a)
    return Layer(part, module, delta, branch, norms), down, up


def write(name, tensors, metadata=None, folder=None):
    tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
    if folder is None:
        save_file(tensors, OUT / f"{name}.safetensors", metadata=metadata or {})
    else:
        (OUT / name).mkdir(parents=True)
        save_file(tensors, OUT / name / "adapter_model.safetensors", metadata={"format": "pt"})
        (OUT / name / "adapter_config.json").write_text(json.dumps(folder, indent=1) + "\n")


# ---- how names are mangled ----------------------------------------------------------


def processor(module):
    owner, leaf = (module[: -len(".to_out.0")], "to_out") if module.endswith(".to_out.0") else module.rsplit(".", 1)
    return f"{owner}.processor.{leaf}_lora"


def old_text(module):
    owner, leaf = module.rsplit(".", 1)
    return f"text_encoder.{owner}." + {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}[leaf] + "_lora"


def kohya(part, module):
    return {"prior": "lora_prior_", "decoder": "lora_unet_", "text_encoder": "lora_te_"}[part] + module.replace(".", "_")


NAMES = {
    "processor": (lambda part, m: processor(m), ".down.weight", ".up.weight"),
    "old_text": (lambda part, m: old_text(m), ".down.weight", ".up.weight"),
    "linear_layer": (lambda part, m: f"text_encoder.{m}.lora_linear_layer", ".down.weight", ".up.weight"),
    "unet": (lambda part, m: f"unet.{m}.lora", ".down.weight", ".up.weight"),
    "peft_unet": (lambda part, m: f"unet.{m}", ".lora_A.weight", ".lora_B.weight"),
    "peft_bare": (lambda part, m: m, ".lora_A.weight", ".lora_B.weight"),
    "peft_folder": (lambda part, m: f"base_model.model.{m}", ".lora_A.weight", ".lora_B.weight"),
    "kohya": (kohya, ".lora_down.weight", ".lora_up.weight"),
}


def config(modules, **more):
    return {
        "peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": sorted(modules), "bias": "none",
        "rank_pattern": {}, "alpha_pattern": {}, "use_rslora": False, "use_dora": False, "fan_in_fan_out": False,
        "base_model_name_or_path": "tiny", **more,
    }


def plain(name, naming, modules, scale=1.0, alpha=None, rank=None, half=False, drop=(), shown=1.0, **files):
    """A LoRA: `scale` is what the layout means, times `shown`, which the user gives."""
    mangle, down_name, up_name = NAMES[naming]
    tensors = {}
    for part, module in modules:
        own_rank = rank(module) if rank else RANK
        layer, down, up = lora(part, module, shown * (scale(module, own_rank) if callable(scale) else scale), own_rank, half=half)
        if any(word in module for word in drop):
            continue
        stem = mangle(part, module)
        tensors[stem + down_name], tensors[stem + up_name] = down, up
        if alpha is not None:
            tensors[stem + ".alpha"] = torch.tensor(alpha, dtype=down.dtype)
        layer.record(name)
    write(name, tensors, **files)


def make_loras():
    prior, decoder, text = [("prior", m) for m in PRIOR], [("decoder", m) for m in ATTENTION], [("text_encoder", m) for m in TEXT]
    convs, rest = [("decoder", m) for m in CONVS], [("decoder", m) for m in TIME] + [("text_encoder", m) for m in MLP]
    plain("processors-prior", "processor", prior)
    plain("processors-decoder", "processor", decoder)
    plain("processors-partial", "processor", decoder, drop=("add_",))
    plain("text-old", "old_text", text)
    plain("text-linear-layer", "linear_layer", text)
    plain("unet-lora", "unet", decoder + convs + [("decoder", m) for m in TIME])
    plain("peft-bare-scale", "peft_unet", decoder + convs)
    ratio = ALPHA / RANK
    prefixed = {f"unet.{key}": value for key, value in config(ATTENTION + CONVS).items()}
    plain("peft-metadata", "peft_unet", decoder + convs, ratio, metadata={"format": "pt", "lora_adapter_metadata": json.dumps(prefixed)})
    plain("peft-model", "peft_bare", prior, ratio, metadata={"format": "pt", "lora_adapter_metadata": json.dumps(config(PRIOR))})
    plain("peft-folder", "peft_folder", prior, ratio, folder=config(PRIOR))
    plain("peft-rslora", "peft_folder", prior, ALPHA / math.sqrt(RANK), folder=config(PRIOR, use_rslora=True))
    ranks = {"to_q": 4, r"transformer_blocks\.1\.attn1\.to_.*": 3, "to_v": 1}
    alphas = {"transformer_blocks.1.attn1.to_v": 6.0, "to_v": 9.0}
    plain(
        "peft-patterns", "peft_folder", prior, lambda m, r: (6.0 if m.endswith("to_v") else ALPHA) / r,
        rank=lambda m: 4 if m.endswith("to_q") else 3, folder=config(PRIOR, rank_pattern=ranks, alpha_pattern=alphas),
    )
    notes = {"ss_network_module": "networks.lora", "ss_network_dim": "2", "ss_network_alpha": "3.0", "ss_sd_model_name": "tiny.safetensors"}
    plain("kohya", "kohya", decoder + rest + text, ratio, ALPHA, metadata=notes)
    plain("kohya-f16", "kohya", decoder + rest + text, ratio, ALPHA, half=True)
    plain("kohya-no-alpha", "kohya", decoder + rest + text)
    plain("locon", "kohya", convs, ratio, ALPHA)
    for shown in (0.5, -1.0):
        plain(f"kohya-prior-at{shown}", "kohya", prior, ratio, ALPHA, shown=shown)


def make_doras():
    modules = ATTENTION[:4] + CONVS
    for name, axis in (("dora-peft", 0), ("dora-out", 0), ("dora-in", 1)):
        tensors = {}
        for module in modules:
            base = BASE["decoder"][f"{module}.weight"].to(F64)
            norm = base.transpose(0, axis).flatten(1).norm(dim=1)
            magnitude = (norm * (1 + 0.2 * draw(f"{module}/{axis}", len(norm)).to(F64))).to(torch.float32)
            layer, down, up = lora("decoder", module, ALPHA / RANK, norms=(magnitude, axis))
            layer.record(name)
            ones = [1] * (base.ndim - 2)
            if name == "dora-peft":
                stem = f"unet.{module}"
                tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"] = down, up
                tensors[f"{stem}.lora_magnitude_vector"] = magnitude.reshape(1, -1, *ones) if ones else magnitude
            else:
                stem = kohya("decoder", module)
                tensors[f"{stem}.lora_down.weight"], tensors[f"{stem}.lora_up.weight"] = down, up
                tensors[f"{stem}.alpha"] = torch.tensor(ALPHA)
                tensors[f"{stem}.dora_scale"] = magnitude.reshape([[-1, 1], [1, -1]][axis] + ones)
        meta = {"lora_adapter_metadata": json.dumps({f"unet.{k}": v for k, v in config(modules, use_dora=True).items()})}
        write(name, tensors, metadata=meta if name == "dora-peft" else None)


def tucker(core, rows, columns):
    """`core [i, j, h, w]`, `rows [i, o]`, `columns [j, c]` to `[o, c, h, w]`."""
    return torch.einsum("ijhw,io,jc->ochw", core.to(F64), rows.to(F64), columns.to(F64))


def loha_leaves(module, shape, core):
    o, (i, *k) = shape[0], shape[1:]
    r = 3
    leaves, halves = {"alpha": torch.tensor(ALPHA)}, []
    for n in (1, 2):
        new = lambda leaf, *size: draw(f"{module}/loha{n}{leaf}{core}", *size, std=0.4)
        if core and len(k) and k[0] > 1:
            a, b, t = new("a", r, o), new("b", r, i), new("t", r, r, *k)
            leaves[f"hada_t{n}"] = t
            halves.append(tucker(t, a, b))
        else:
            a, b = new("a", o, r), new("b", r, math.prod(shape[1:]))
            halves.append(a.to(F64) @ b.to(F64))
        leaves[f"hada_w{n}_a"], leaves[f"hada_w{n}_b"] = a, b
    return leaves, (ALPHA / r * halves[0] * halves[1]).reshape(shape), ALPHA, r


def lokr_leaves(module, shape, form):
    o, (i, *k) = shape[0], shape[1:]
    new = lambda leaf, *size: draw(f"{module}/lokr/{leaf}", *size, std=0.4)
    leaves, r = {"alpha": torch.tensor(ALPHA)}, RANK
    if "low1" in form:
        leaves["lokr_w1_a"], leaves["lokr_w1_b"] = new("w1_a", 2, r), new("w1_b", r, 4)
        w1 = leaves["lokr_w1_a"].to(F64) @ leaves["lokr_w1_b"].to(F64)
    else:
        leaves["lokr_w1"] = new("w1", 2, 4)
        w1 = leaves["lokr_w1"].to(F64)
    o, i = o // 2, i // 4
    if "whole2" in form:
        leaves["lokr_w2"] = new("w2", o, i, *k)
        w2 = leaves["lokr_w2"].to(F64)
    elif "core2" in form:
        leaves["lokr_t2"], leaves["lokr_w2_a"], leaves["lokr_w2_b"] = new("t2", r, r, *k), new("w2_a", r, o), new("w2_b", r, i)
        w2 = tucker(leaves["lokr_t2"], leaves["lokr_w2_a"], leaves["lokr_w2_b"])
    else:
        leaves["lokr_w2_a"], leaves["lokr_w2_b"] = new("w2_a", o, r), new("w2_b", r, i * math.prod(k))
        w2 = (leaves["lokr_w2_a"].to(F64) @ leaves["lokr_w2_b"].to(F64)).reshape(o, i, *k)
    # By definition: out[a O + p, c C + q, ...] = w1[a, c] w2[p, q, ...].
    delta = torch.einsum("ac,pq...->apcq...", w1, w2).reshape(shape)
    scale = 1.0 if form == "whole2" else ALPHA / r
    return leaves, scale * delta, ALPHA, r


def make_lycoris():
    linear = ATTENTION[:4]
    forms = dict(zip(linear + CONVS, ["whole2", "low2", "low1 low2", "low1 whole2", "low2", "whole2", "core2"]))
    makers = {"loha": lambda m, s: loha_leaves(m, s, False), "loha-tucker": lambda m, s: loha_leaves(m, s, True), "lokr": lambda m, s: lokr_leaves(m, s, forms[m])}
    for name, make in makers.items():
        tensors = {}
        for module in linear + CONVS:
            leaves, delta, *_ = make(module, tuple(BASE["decoder"][f"{module}.weight"].shape))
            tensors |= {f"{kohya('decoder', module)}.{leaf}": tensor for leaf, tensor in leaves.items()}
            Layer("decoder", module, delta).record(name)
        write(name, tensors)
    tensors = {}
    for module in (CONVS[0], CONVS[2]):
        o, i, *k = BASE["decoder"][f"{module}.weight"].shape
        up, mid, down = draw(f"{module}/u", o, 3, 1, 1, std=0.4), draw(f"{module}/m", 3, 3, *k, std=0.4), draw(f"{module}/d", 3, i, 1, 1, std=0.4)
        leaves = {"lora_up.weight": up, "lora_mid.weight": mid, "lora_down.weight": down, "alpha": torch.tensor(ALPHA)}
        tensors |= {f"{kohya('decoder', module)}.{leaf}": tensor for leaf, tensor in leaves.items()}
        u, m, d = up.to(F64), mid.to(F64), down.to(F64)
        branch = lambda x, u=u, m=m, d=d: ALPHA / 3 * F.conv2d(F.conv2d(F.conv2d(x, d), m, padding=1), u)
        Layer("decoder", module, ALPHA / 3 * tucker(mid, up[:, :, 0, 0].T, down[:, :, 0, 0]), branch).record("locon-tucker")
    write("locon-tucker", tensors)
    tensors = {}
    for module, leaf, key in ((ATTENTION[0], "weight", "diff"), (ATTENTION[0], "bias", "diff_b"), (CONVS[0], "weight", "diff"), (CONVS[0], "bias", "diff_b"), (NORM, "weight", "w_norm"), (NORM, "bias", "b_norm")):
        base = BASE["decoder"][f"{module}.{leaf}"]
        delta = tensors[f"{kohya('decoder', module)}.{key}"] = draw(f"{module}/{key}", *base.shape, std=0.1)
        GOLDEN[f"diff/decoder/{module}.{leaf}"] = (base.to(F64) + delta.to(F64)).to(torch.float32)
    write("diff", tensors)


# ---- what the original libraries make of the files ----------------------------------


def golden_of(name):
    return {key.split("/", 1)[1]: tensor for key, tensor in GOLDEN.items() if key.startswith(f"{name}/") and not key.endswith(("/x", "/y"))}


def module_of(model, path):
    for part in path.split("."):
        model = getattr(model, part)
    return model


def close(name, library, got, limit=1e-6):
    worst = max(relative(tensor, golden_of(name)[key]) for key, tensor in got.items())
    print(f"{name}: {library}, {len(got)} of {len(golden_of(name))} tensors, {worst:.1e}")
    assert got and worst < limit, name


def fresh(part):
    from diffusers import PriorTransformer, UNet2DConditionModel

    return {"prior": PriorTransformer, "decoder": UNet2DConditionModel}[part].from_pretrained(HERE / "tiny", subfolder=part)


def check_peft():
    from peft import LoHaConfig, LoKrConfig, PeftModel, inject_adapter_in_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    def merged(model, part):
        layers = [(path, layer) for path, layer in model.named_modules() if isinstance(layer, BaseTunerLayer)]
        for _, layer in layers:
            layer.merge()
        return {f"{part}/{path}.weight": layer.get_base_layer().weight.detach() for path, layer in layers}

    for name, part, prefix in (
        ("processors-prior", "prior", None), ("processors-partial", "decoder", None), ("unet-lora", "decoder", "unet"),
        ("peft-bare-scale", "decoder", "unet"), ("peft-metadata", "decoder", "unet"), ("peft-model", "prior", None), ("dora-peft", "decoder", "unet"),
    ):
        model = fresh(part)
        model.load_lora_adapter(OUT, weight_name=f"{name}.safetensors", prefix=prefix, adapter_name="a")
        close(name, "diffusers", merged(model, part))
    for name in ("peft-folder", "peft-rslora", "peft-patterns"):
        close(name, "peft", merged(PeftModel.from_pretrained(fresh("prior"), OUT / name).base_model.model, "prior"))
    for name, kind in (("loha", LoHaConfig), ("loha-tucker", LoHaConfig)):
        tensors = load_file(OUT / f"{name}.safetensors")
        paths = [key[len("decoder/"):-len(".weight")] for key in golden_of(name)]
        model = inject_adapter_in_model(kind(r=3, alpha=ALPHA, target_modules=paths, use_effective_conv2d=name == "loha-tucker"), fresh("decoder"), "a")
        for path in paths:
            layer = module_of(model, path)
            for leaf in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"):
                tensor = tensors.get(f"{kohya('decoder', path)}.{leaf}")
                if tensor is not None:
                    getattr(layer, leaf)["a"].data.copy_(tensor)
        close(name, "peft", merged(model, "decoder"))


def check_lycoris():
    from lycoris.modules.locon import LoConModule
    from lycoris.modules.loha import LohaModule

    model = fresh("decoder")
    for name in ("kohya", "locon", "locon-tucker", "dora-out", "dora-in", "loha", "loha-tucker"):
        tensors, worst, count = load_file(OUT / f"{name}.safetensors"), 0.0, 0
        for key in golden_of(name):
            if not key.startswith("decoder/"):
                continue
            path = key[len("decoder/"):-len(".weight")]
            stem, layer = kohya("decoder", path), module_of(model, path)
            leaves = {k[len(stem) + 1:]: v for k, v in tensors.items() if k.startswith(stem + ".")}
            if "hada_w1_a" in leaves:
                own = LohaModule(stem, layer, 1.0, 3, ALPHA, use_tucker="hada_t1" in leaves)
            else:
                rows = "dora_scale" in leaves and leaves["dora_scale"].shape[0] > 1
                own = LoConModule(stem, layer, 1.0, len(leaves["lora_down.weight"]), ALPHA, use_tucker="lora_mid.weight" in leaves, weight_decompose="dora_scale" in leaves, wd_on_out=rows)
            for leaf, tensor in leaves.items():
                if leaf != "alpha":
                    own.get_parameter(leaf).data.copy_(tensor)
            x, y = GOLDEN[f"{name}/decoder/{path}/x"], GOLDEN[f"{name}/decoder/{path}/y"]
            with torch.no_grad():
                got = own.eval()(x) - (0 if layer.bias is None else layer.bias.reshape([1, -1] + [1] * (x.ndim - 2)))
            worst, count = max(worst, relative(got, y)), count + 1
        print(f"{name}: LyCORIS' forward pass, {count} layers, {worst:.1e}")
        assert count and worst < 1e-6, name


if __name__ == "__main__":
    torch.set_num_threads(1)
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    make_loras()
    make_doras()
    make_lycoris()
    check_peft()
    check_lycoris()
    save_file(GOLDEN, OUT / "golden.safetensors")
