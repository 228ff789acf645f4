#!/usr/bin/env python3
"""Records optimisation steps of the tiny checkpoint's networks with the original ones, in float64.

    pip install -r tests/golden/requirements.txt
    python tests/golden/make_training.py

RUN "lora" has low-rank adapters beside the attention of prior and decoder, RUN "layers" beside every linear layer and
convolution of decoder and super-resolution, RUN "full" all tensors of prior and decoder. Written beside this file:
training.safetensors with, for PART prior, decoder and super_res,

    PART/STEP/NAME             what the network is given in a step, pictures [N, H, W, C]; the prior's target and the
                               decoder's x0 and noise; timesteps
    PART/RUN/losses            each image's loss in each step [steps, B]; of the decoder squared error and bound [steps, B, 2]
    PART/RUN/norms             norms of all gradients before clipping [steps]
    PART/lora/start/NAME       adapters before the first step
    PART/lora/end/NAME         and after the last
    PART/lora/average/NAME     and their running average

In RUN "layers" element i of an adapter's first matrix begins as ((37 i + 11) mod 64) / 128 - 0.25.

It prints how far a run in float32 is from that.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import PriorTransformer, UNet2DConditionModel, UNet2DModel
from safetensors.torch import save_file

HERE = Path(__file__).parent
STEPS, RANK, ALPHA = 5, 3, 6.0
RATE, DECAY, CLIP, AVERAGE = 1e-3, 1e-2, 0.5, 0.999
TIMES = {"prior": [[0, 311], [999, 42], [512, 7], [90, 730], [1, 250]], "decoder": [[0, 700], [999, 3], [500, 120], [1, 880], [250, 640]],
         "super_res": [[12, 900], [999, 333], [500, 60], [0, 801], [250, 640]]}
TARGETS = {"prior": ["to_q", "to_k", "to_v", "to_out.0"], "decoder": ["to_q", "to_k", "to_v", "to_out.0", "add_k_proj", "add_v_proj"]}
generator = torch.Generator().manual_seed(21)

bar = lambda u: math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
betas = torch.tensor([min(1 - bar((i + 1) / 1000) / bar(i / 1000), 0.999) for i in range(1000)], dtype=torch.float64)
bars = torch.cumprod(1 - betas, 0)
before = torch.cat([torch.ones(1, dtype=torch.float64), bars[:-1]])
posterior = betas * (1 - before) / (1 - bars)
floor = torch.cat([posterior[1:2], posterior[1:]])


def draw(*shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float32)


def at(table, t, like):
    return table[t].to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


class Adapter(torch.nn.Module):
    def __init__(self, layer, start):
        super().__init__()
        up = [layer.weight.shape[0], RANK, 1, 1][: layer.weight.ndim]
        self.layer, self.lora_A, self.lora_B = layer, torch.nn.Parameter(start), torch.nn.Parameter(torch.zeros(up).to(start))

    def forward(self, x, *_):
        if self.lora_A.ndim == 2:
            part = x @ self.lora_A.T @ self.lora_B.T
        else:
            part = F.conv2d(F.conv2d(x, self.lora_A, stride=self.layer.stride, padding=self.layer.padding), self.lora_B)
        return self.layer(x) + ALPHA / RANK * part


class Prior:
    def __init__(self):
        self.net = PriorTransformer.from_pretrained(HERE / "tiny", subfolder="prior")
        self.given = []
        dim, tokens = self.net.config.embedding_dim, self.net.config.num_embeddings
        for t in TIMES["prior"]:
            mask = torch.zeros(len(t), tokens)
            for row in range(len(t)):
                mask[row, : 2 + 6 * row] = 1
            x0, noise = draw(len(t), dim), draw(len(t), dim)
            t = torch.tensor(t)
            x_t = at(bars.sqrt(), t, x0.double()) * x0 + at((1 - bars).sqrt(), t, x0.double()) * noise
            # Hidden states of masked tokens are not read; zeros pack well.
            hidden = draw(len(t), tokens, dim) * mask[..., None]
            self.given.append({"text_embeds": draw(len(t), dim), "hidden": hidden, "mask": mask, "x_t": x_t.float(), "target": x0, "t": t})

    def loss(self, g):
        kind = next(self.net.parameters()).dtype
        out = self.net(g["x_t"].to(kind), timestep=g["t"], proj_embedding=g["text_embeds"].to(kind),
                       encoder_hidden_states=g["hidden"].to(kind), attention_mask=g["mask"].bool()).predicted_image_embedding
        mse = ((out - g["target"].to(kind)) ** 2).mean(1)
        return mse, mse


class Decoder:
    def __init__(self):
        self.net = UNet2DConditionModel.from_pretrained(HERE / "tiny", subfolder="decoder")
        self.given = []
        size, cross, tokens, wide = self.net.config.sample_size, self.net.config.cross_attention_dim, 9, 4 * self.net.config.block_out_channels[0]
        for t in TIMES["decoder"]:
            b = len(t)
            mask = torch.ones(b, tokens)
            mask[0, 6:] = 0
            x0, noise = (0.8 * draw(b, size, size, 3)).clamp(-1, 1), draw(b, size, size, 3)
            t = torch.tensor(t)
            x_t = at(bars.sqrt(), t, x0.double()) * x0 + at((1 - bars).sqrt(), t, x0.double()) * noise
            self.given.append({"context": draw(b, tokens, cross), "added": draw(b, wide), "mask": mask, "x_t": x_t.float(), "x0": x0, "noise": noise, "t": t})

    def loss(self, g):
        kind = next(self.net.parameters()).dtype
        g = {k: v.to(kind) if v.is_floating_point() else v for k, v in g.items()}
        out = self.net(g["x_t"].permute(0, 3, 1, 2), g["t"], encoder_hidden_states=g["context"], class_labels=g["added"],
                       attention_mask=g["mask"].bool()).sample.permute(0, 2, 3, 1)
        (eps, v), t, x0 = out.chunk(2, -1), g["t"], g["x0"]
        error = eps.detach() - g["noise"]
        high, low = at(betas.log(), t, x0), at(floor.log(), t, x0)
        spread = (v + 1) / 2 * (high - low) + low
        kl = 0.5 * (spread - low - 1 + (low - spread).exp() + at(betas**2 / ((1 - betas) * (1 - bars)), t, x0) * error**2 * (-spread).exp())
        cdf = lambda u: 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))
        off, inverse = error * at(((1 - bars) / bars).sqrt(), t, x0), (-0.5 * spread).exp()
        above, below = cdf(inverse * (off + 1 / 255)), cdf(inverse * (off - 1 / 255))
        level = torch.where(x0 < -0.999, above, torch.where(x0 > 0.999, 1 - below, above - below)).clamp(min=1e-12)
        vb = torch.where((t == 0)[:, None, None, None], -level.log(), kl).flatten(1).mean(1) / math.log(2)
        mse = ((eps - g["noise"]) ** 2).flatten(1).mean(1)
        return mse + vb, torch.stack([mse, vb], 1)


class SuperRes:
    def __init__(self):
        self.net = UNet2DModel.from_pretrained(HERE / "tiny", subfolder="super_res_first")
        self.given = []
        for t in TIMES["super_res"]:
            x0, upscaled, noise = (0.8 * draw(2, 8, 16, 3)).clamp(-1, 1), draw(2, 8, 16, 3), draw(2, 8, 16, 3)
            t = torch.tensor(t)
            x_t = at(bars.sqrt(), t, x0.double()) * x0 + at((1 - bars).sqrt(), t, x0.double()) * noise
            self.given.append({"upscaled": upscaled, "x_t": x_t.float(), "noise": noise, "t": t})

    def loss(self, g):
        kind = next(self.net.parameters()).dtype
        seen = torch.cat([g["x_t"], g["upscaled"]], -1).permute(0, 3, 1, 2)
        out = self.net(seen.to(kind), g["t"]).sample.permute(0, 2, 3, 1)
        mse = ((out - g["noise"].to(kind)) ** 2).flatten(1).mean(1)
        return mse, mse


def adapt(net, part, kind, starts):
    net.requires_grad_(False)
    trained = {}
    for name, module in list(net.named_modules()):
        if not isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)):
            continue
        if kind == "lora" and not any(name.endswith("." + target) for target in TARGETS[part]):
            continue
        shape = (RANK, *module.weight.shape[1:])
        if kind == "layers":
            starts[name] = ((37 * torch.arange(math.prod(shape)) + 11) % 64 / 128 - 0.25).reshape(shape)
        elif name not in starts:
            starts[name] = draw(*shape) / RANK
        adapter = Adapter(module, starts[name].to(module.weight.dtype))
        owner, _, last = name.rpartition(".")
        setattr(net.get_submodule(owner), last, adapter)
        trained[f"{name}.lora_A.weight"], trained[f"{name}.lora_B.weight"] = adapter.lora_A, adapter.lora_B
    return trained


NETWORKS = {"prior": Prior, "decoder": Decoder, "super_res": SuperRes}
RUNS = {"prior": ["lora", "full"], "decoder": ["lora", "full", "layers"], "super_res": ["layers"]}


def run(part, kind, dtype, given, starts):
    network = NETWORKS[part]()
    network.net.to(dtype)
    if kind != "full":
        trained = adapt(network.net, part, kind, starts)
    else:
        for name in ("clip_mean", "clip_std"):
            if hasattr(network.net, name):
                getattr(network.net, name).requires_grad_(False)
        trained = {n: p for n, p in network.net.named_parameters() if p.requires_grad}
    out = {f"start/{n}": p.detach().clone() for n, p in trained.items()}
    average = {n: p.detach().clone() for n, p in trained.items()}
    adam = torch.optim.AdamW(trained.values(), lr=RATE, weight_decay=DECAY)
    losses, norms = [], []
    for step, inputs in enumerate(given):
        loss, shown = network.loss(inputs)
        loss.mean().backward()
        losses.append(shown.detach())
        norms.append(torch.nn.utils.clip_grad_norm_(trained.values(), CLIP).detach())
        adam.step()
        adam.zero_grad()
        for n, p in trained.items():
            average[n].lerp_(p.detach(), 1 - min(AVERAGE, (1 + step) / (10 + step)))
    out |= {f"end/{n}": p.detach() for n, p in trained.items()} | {f"average/{n}": p for n, p in average.items()}
    return {"losses": torch.stack(losses), "norms": torch.stack(norms), **(out if kind == "lora" else {})}


tensors = {}
for part in NETWORKS:
    given = NETWORKS[part]().given
    for step, inputs in enumerate(given):
        tensors |= {f"{part}/{step}/{name}": value for name, value in inputs.items()}
    for kind in RUNS[part]:
        starts = {}
        exact, single = [run(part, kind, dtype, given, starts) for dtype in (torch.float64, torch.float32)]
        tensors |= {f"{part}/{kind}/{name}": value for name, value in exact.items()}
        for what in ("losses", "norms", "end", "average"):
            off = [((single[n].double() - v).abs().max() / v.abs().max()).item() for n, v in exact.items() if n.startswith(what)]
            print(f"{part} {kind} {what}: float32 is off by {max(off, default=0):.1e}")
        print(exact["losses"].flatten(1).mean(1).tolist(), exact["norms"].tolist())
stored = {k: (v.float() if v.is_floating_point() else v).contiguous() for k, v in tensors.items()}
save_file(stored, HERE / "training.safetensors")
print(f"{len(stored)} tensors, {(HERE / 'training.safetensors').stat().st_size} bytes")
