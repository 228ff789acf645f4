"""A random unCLIP (Karlo-type) checkpoint of 1.8 MB in the diffusers folder layout.

Every block type and every detail of Karlo at reduced widths: 16 px decoder, 64 px
super-resolution.  Names and shapes come from the diffusers and transformers classes
themselves, built on the meta device.  Each tensor has its own random stream, keyed by
seed, component and name, so the values do not depend on library versions.  They are
scaled so that activations stay in a normal range, nothing that training would leave
non-zero is zero, and pictures are not saturated.
"""

import hashlib
import json
from itertools import product
from pathlib import Path
from string import ascii_lowercase

import numpy as np
import torch
from diffusers import PriorTransformer, UNet2DConditionModel, UNet2DModel
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from safetensors.numpy import save_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPVisionConfig, CLIPVisionModelWithProjection

F32 = np.float32
SEED = 0
CLIP_WIDTH, CONTEXT, TEXT_HEADS, TEXT_LAYERS, TEXT_MLP = 16, 77, 2, 2, 64
IMAGE_SIZE, PATCH, VISION_WIDTH, VISION_HEADS, VISION_LAYERS, VISION_MLP = 28, 7, 32, 4, 2, 64
PRIOR_HEADS, PRIOR_HEAD_WIDTH, PRIOR_LAYERS = 4, 12, 2
CROSS_WIDTH, EXTRA_TOKENS = 40, 4
DECODER_SIZE, DECODER_WIDTHS, DECODER_HEAD_WIDTH, DECODER_GROUPS = 16, [8, 16, 16, 24], 8, 4
SUPER_RES_SIZE, SUPER_RES_WIDTHS, SUPER_RES_GROUPS = 64, [4, 8, 12, 16], 2
MERGES = 160
VOCABULARY = 512 + MERGES + 2

DIFFUSERS_TAG, TRANSFORMERS_TAG = "0.11.0.dev0", "4.25.1"  # as in the published files

# ---- configurations, with the keys of the published karlo files ---------------------


def text_encoder_config():
    return {
        "architectures": ["CLIPTextModelWithProjection"],
        "attention_dropout": 0.0,
        "bos_token_id": 0,
        "dropout": 0.0,
        "eos_token_id": 2,
        "hidden_act": "quick_gelu",
        "hidden_size": CLIP_WIDTH,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": TEXT_MLP,
        "layer_norm_eps": 1e-05,
        "max_position_embeddings": CONTEXT,
        "model_type": "clip_text_model",
        "num_attention_heads": TEXT_HEADS,
        "num_hidden_layers": TEXT_LAYERS,
        "pad_token_id": 1,
        "projection_dim": CLIP_WIDTH,
        "torch_dtype": "float32",
        "transformers_version": TRANSFORMERS_TAG,
        "vocab_size": VOCABULARY,
    }


def image_encoder_config():
    return {
        "architectures": ["CLIPVisionModelWithProjection"],
        "attention_dropout": 0.0,
        "dropout": 0.0,
        "hidden_act": "quick_gelu",
        "hidden_size": VISION_WIDTH,
        "image_size": IMAGE_SIZE,
        "initializer_factor": 1.0,
        "initializer_range": 0.02,
        "intermediate_size": VISION_MLP,
        "layer_norm_eps": 1e-05,
        "model_type": "clip_vision_model",
        "num_attention_heads": VISION_HEADS,
        "num_channels": 3,
        "num_hidden_layers": VISION_LAYERS,
        "patch_size": PATCH,
        "projection_dim": CLIP_WIDTH,
        "torch_dtype": "float32",
        "transformers_version": TRANSFORMERS_TAG,
    }


def prior_config():
    return {
        "_class_name": "PriorTransformer",
        "additional_embeddings": 4,
        "attention_head_dim": PRIOR_HEAD_WIDTH,
        "dropout": 0.0,
        "embedding_dim": CLIP_WIDTH,
        "num_attention_heads": PRIOR_HEADS,
        "num_embeddings": CONTEXT,
        "num_layers": PRIOR_LAYERS,
    }


def text_proj_config():
    return {
        "_class_name": "UnCLIPTextProjModel",
        "clip_embeddings_dim": CLIP_WIDTH,
        "clip_extra_context_tokens": EXTRA_TOKENS,
        "cross_attention_dim": CROSS_WIDTH,
        "time_embed_dim": 4 * DECODER_WIDTHS[0],
    }


def unet_config(widths, groups):
    return {
        "act_fn": "silu",
        "block_out_channels": widths,
        "center_input_sample": False,
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "layers_per_block": 1,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-05,
        "norm_num_groups": groups,
    }


def decoder_config():
    return unet_config(DECODER_WIDTHS, DECODER_GROUPS) | {
        "_class_name": "UNet2DConditionModel",
        "attention_head_dim": DECODER_HEAD_WIDTH,
        "class_embed_type": "identity",
        "cross_attention_dim": CROSS_WIDTH,
        "down_block_types": ["ResnetDownsampleBlock2D"] + ["SimpleCrossAttnDownBlock2D"] * 3,
        "dual_cross_attention": False,
        "in_channels": 3,
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "num_class_embeds": None,
        "only_cross_attention": False,
        "out_channels": 6,
        "resnet_time_scale_shift": "scale_shift",
        "sample_size": DECODER_SIZE,
        "up_block_types": ["SimpleCrossAttnUpBlock2D"] * 3 + ["ResnetUpsampleBlock2D"],
        "upcast_attention": False,
        "use_linear_projection": False,
    }


def super_res_config(sample_size):
    return unet_config(SUPER_RES_WIDTHS, SUPER_RES_GROUPS) | {
        "_class_name": "UNet2DModel",
        "add_attention": False,
        "attention_head_dim": 8,
        "down_block_types": ["ResnetDownsampleBlock2D"] * 4,
        "in_channels": 6,
        "out_channels": 3,
        "resnet_time_scale_shift": "default",
        "sample_size": sample_size,
        "time_embedding_type": "positional",
        "up_block_types": ["ResnetUpsampleBlock2D"] * 4,
    }


def scheduler_config(prediction, variance, clip):
    return {
        "_class_name": "UnCLIPScheduler",
        "clip_sample": True,
        "clip_sample_range": clip,
        "num_train_timesteps": 1000,
        "prediction_type": prediction,
        "variance_type": variance,
    }


SCHEDULERS = {
    "prior_scheduler": scheduler_config("sample", "fixed_small_log", 5.0),
    "decoder_scheduler": scheduler_config("epsilon", "learned_range", 1.0),
    "super_res_scheduler": scheduler_config("epsilon", "fixed_small_log", 1.0),
}
# For variations of pictures; the rest of the checkpoint is a text-to-image one.
PREPROCESSOR = {
    "crop_size": {"height": IMAGE_SIZE, "width": IMAGE_SIZE},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": IMAGE_SIZE},
}
MODELS = {
    "text_encoder": text_encoder_config(),
    "image_encoder": image_encoder_config(),
    "prior": prior_config(),
    "text_proj": text_proj_config(),
    "decoder": decoder_config(),
    "super_res_first": super_res_config(SUPER_RES_SIZE),
    "super_res_last": super_res_config(None),  # the published file really has null here
}
MODEL_INDEX = {
    "_class_name": "UnCLIPPipeline",
    "_diffusers_version": DIFFUSERS_TAG,
    "decoder": ["diffusers", "UNet2DConditionModel"],
    "decoder_scheduler": ["diffusers", "UnCLIPScheduler"],
    "prior": ["diffusers", "PriorTransformer"],
    "prior_scheduler": ["diffusers", "UnCLIPScheduler"],
    "super_res_first": ["diffusers", "UNet2DModel"],
    "super_res_last": ["diffusers", "UNet2DModel"],
    "super_res_scheduler": ["diffusers", "UnCLIPScheduler"],
    "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
    "text_proj": ["unclip", "UnCLIPTextProjModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
}

# ---- tokenizer ----------------------------------------------------------------------

CORPUS = (
    "a photo of a red frog on a green leaf a painting of the old monk in the style of a portrait "
    "highly detailed high resolution photograph of a big cat and a small dog a teddy bear on a "
    "skateboard in the city at night a drawing of a blue bird with silver hair sunset over the "
    "mountains and the sea two people walking in the rain an astronaut riding a horse on the moon "
    "a bowl of fruit on a wooden table oil on canvas watercolor sketch black and white close up "
    "studio light soft colors the house by the river a woman in a yellow dress a man with a hat "
    "cartoon robot reading a book under the tree an avocado in the shape of a chair snow winter "
    "spring summer autumn forest desert beach bright dark large tiny round square glass metal wood"
)


def byte_alphabet():
    """CLIP's byte table: printable bytes map to themselves, the others to 256 + n."""
    keep = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in keep] + [chr(256 + n) for n in range(256 - len(keep))]


def merge_pair(word, pair):
    out, i = [], 0
    while i < len(word):
        both = word[i : i + 2] == pair
        out.append(word[i] + word[i + 1] if both else word[i])
        i += 2 if both else 1
    return tuple(out)


def learn_merges(count):
    """Byte-pair merges from the text above, and pairs of letters when it has no more to give."""
    words = {}
    for w in CORPUS.split():
        key = tuple(w[:-1]) + (w[-1] + "</w>",)
        words[key] = words.get(key, 0) + 1
    merges, known = [], set()
    while len(merges) < count:
        pairs = {}
        for w, n in words.items():
            for pair in zip(w, w[1:]):
                pairs[pair] = pairs.get(pair, 0) + n
        pairs = {k: v for k, v in pairs.items() if v >= 2 and k[0] + k[1] not in known}
        if not pairs:
            break
        best = max(sorted(pairs), key=lambda k: pairs[k])
        merges.append(best)
        known.add(best[0] + best[1])
        merged = {}
        for w, n in words.items():
            w = merge_pair(w, best)
            merged[w] = merged.get(w, 0) + n
        words = merged
    more = ((a, b + end) for a, b, end in product(ascii_lowercase, ascii_lowercase, ("", "</w>")))
    merges += [pair for pair in more if pair[0] + pair[1] not in known]
    return merges[:count]


def write_tokenizer(folder):
    alphabet, merges = byte_alphabet(), learn_merges(MERGES)
    tokens = alphabet + [c + "</w>" for c in alphabet] + [a + b for a, b in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    assert len(set(tokens)) == VOCABULARY and tokens[0] == "!"
    vocabulary = {t: i for i, t in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2"] + [f"{a} {b}" for a, b in merges]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    special = {
        "bos_token": {"content": "<|startoftext|>"} | flags,
        "eos_token": {"content": "<|endoftext|>"} | flags,
        "pad_token": "!",
        "unk_token": {"content": "<|endoftext|>"} | flags,
    }
    write_json(folder / "special_tokens_map.json", special)
    tagged = {k: {"__type": "AddedToken"} | v if isinstance(v, dict) else v for k, v in special.items()}
    rest = {
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": CONTEXT,
        "tokenizer_class": "CLIPTokenizer",
    }
    write_json(folder / "tokenizer_config.json", tagged | rest)


# ---- weights ------------------------------------------------------------------------


def shapes_of(config):
    args = {k: v for k, v in config.items() if not k.startswith("_")}
    with torch.device("meta"):
        if "model_type" in args:
            skip = {"architectures", "model_type", "torch_dtype", "transformers_version", "dropout"}
            args = {k: v for k, v in args.items() if k not in skip}
            if config["model_type"] == "clip_vision_model":
                model = CLIPVisionModelWithProjection(CLIPVisionConfig(**args))
            else:
                model = CLIPTextModelWithProjection(CLIPTextConfig(**args))
        else:
            classes = (PriorTransformer, UnCLIPTextProjModel, UNet2DConditionModel, UNet2DModel)
            model = next(c for c in classes if c.__name__ == config["_class_name"])(**args)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def gain_of(component, name, unet):
    """Spread of a weight's outputs for inputs of spread 1."""
    parent = name.rsplit(".", 2)[-2] if "." in name else ""
    if parent == "conv1":
        return 1.7  # its input is the silu of a normalised tensor
    if unet and parent in ("conv2", "to_out", "0"):
        return 0.8
    if parent in ("out_proj", "fc2") or name.endswith(("ff.net.2.weight", "to_out.0.weight")):
        return 0.5
    if parent == "time_emb_proj":
        return 0.5
    if name == "time_embedding.linear_1.weight":
        return 1.4
    if name == "time_embedding.linear_2.weight":
        return 1.2
    if component == "text_proj" and name == "embedding_proj.weight":
        return 0.1
    if name == "clip_image_embeddings_project_to_time_embeddings.weight":
        return 0.2
    return 1.4 if parent in ("add_k_proj", "to_q", "to_k", "q_proj", "k_proj") else 1.0


def random_tensor(component, name, shape, last_shortcut):
    key = hashlib.sha256(f"{SEED}/{component}/{name}".encode()).digest()
    stream = np.random.Generator(np.random.Philox(key=np.frombuffer(key[:16], np.uint64)))
    z = stream.standard_normal(size=shape, dtype=F32)
    if name == "clip_std":
        return F32(0.3) + F32(0.1) * np.abs(z)
    if name in ("clip_mean", "positional_embedding", "prd_embedding", "learned_classifier_free_guidance_embeddings"):
        return F32(0.3) * z
    if name.endswith(("token_embedding.weight", "position_embedding.weight", "class_embedding")):
        return F32(0.5) * z
    if name.endswith("bias"):
        return F32(0.05) * z
    if z.ndim == 1:  # every remaining one-dimensional weight is a norm's gain
        return F32(1) + F32(0.1) * z
    unet = last_shortcut is not None
    w = z * F32(gain_of(component, name, unet) / np.sqrt(np.prod(shape[1:], dtype=int)))
    return denoiser_path(name, w, last_shortcut) if unet else w


def denoiser_path(name, w, last_shortcut):
    """Lets the convolutions on the outermost skip path carry a weak copy of the noisy image.

    A trained noise predictor returns roughly its own input at high noise.  Random weights
    do not, and sampling would then clip almost every pixel to -1 or 1.  The copy goes from
    rgb to sign patterns over channels and back.
    """

    def pattern(channels):
        c = np.arange(channels)
        return np.stack([1 - 2 * (c % 2), 1 - 2 * (c // 2 % 2), 1 - 2 * ((c + c // 2) % 2)], axis=1).astype(F32)

    if name == "conv_in.weight":
        w *= F32(0.4)
        w[:, :3, 1, 1] += F32(0.7) * pattern(w.shape[0])
    elif name == last_shortcut:
        width = w.shape[0]
        w *= F32(0.5)
        w[:, -width:, 0, 0] += np.eye(width, dtype=F32)
    elif name == "conv_out.weight":
        width = w.shape[1]
        w *= F32(0.4)
        w[:3, :, 1, 1] += F32(4.0 / width) * pattern(width).T
    return w


def write_weights(folder, component, config):
    shapes = shapes_of(config)
    last_up = [k for k in shapes if k.startswith("up_blocks.3.resnets.") and k.endswith("conv_shortcut.weight")]
    last_shortcut = max(last_up, default=None)
    tensors = {name: random_tensor(component, name, shape, last_shortcut) for name, shape in shapes.items()}
    stem = "diffusion_pytorch_model"
    tower = {"text_encoder": ("text", CONTEXT), "image_encoder": ("vision", (IMAGE_SIZE // PATCH) ** 2 + 1)}
    if component in tower:
        stem = "model"
        # transformers 4.25 saved this integer buffer too, and the published files have it
        name, length = tower[component]
        tensors[f"{name}_model.embeddings.position_ids"] = np.arange(length, dtype=np.int64)[None]
    save_file(tensors, folder / f"{stem}.safetensors", metadata={"format": "pt"})


# -------------------------------------------------------------------------------------


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_checkpoint(root: Path):
    def folder(name):
        (root / name).mkdir(parents=True, exist_ok=True)
        return root / name

    for name, config in MODELS.items():
        tag = {"_diffusers_version": DIFFUSERS_TAG} if "_class_name" in config else {}
        write_json(folder(name) / "config.json", config | tag)
        write_weights(folder(name), name, config)
    for name, config in SCHEDULERS.items():
        write_json(folder(name) / "scheduler_config.json", config | {"_diffusers_version": DIFFUSERS_TAG})
    write_json(folder("feature_extractor") / "preprocessor_config.json", PREPROCESSOR)
    write_tokenizer(folder("tokenizer"))
    write_json(root / "model_index.json", MODEL_INDEX)
