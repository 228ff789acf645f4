#!/usr/bin/env python3
"""Makes the reference data for autoencoders with the original library.

    pip install -r tests/golden/requirements.txt
    python tests/golden/make_autoencoders.py

Written beside this file: autoencoders.safetensors with the tensors, for each of movq, movq_group and kl,

    NAME/config             the JSON of the configuration
    NAME/weights/TENSOR     in f16, of which the original ran the same values in f32
    NAME/latents, NAME/decoded      what the decoder is given and gives
    NAME/picture, NAME/encoded      what the encoder is given and gives
"""

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL, VQModel
from safetensors.torch import save_file

MOVQ = {
    "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
    "up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"],
    "block_out_channels": [32, 32],
    "layers_per_block": 1,
    "latent_channels": 4,
    "num_vq_embeddings": 8,
    "vq_embed_dim": 4,
    "norm_type": "spatial",
    # A spatial normalisation has 32 groups all the same.
    "norm_num_groups": 8,
}
GROUP = MOVQ | {"block_out_channels": [8, 12], "norm_num_groups": 4, "norm_type": "group", "vq_embed_dim": 3}
KL = {
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "block_out_channels": [8, 12, 16],
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
}
MODELS = {
    "movq": (VQModel, MOVQ),
    "movq_group": (VQModel, GROUP),
    "kl": (AutoencoderKL, KL),
}


def main():
    tensors = {}
    for name, (cls, config) in MODELS.items():
        torch.manual_seed(len(name))
        model = cls(**config).eval()
        with torch.no_grad():
            for key, value in model.named_parameters():
                noise = torch.randn_like(value)
                # Gains near 1, biases and shifts that show, weights that keep their input's size.
                fan = value[0].numel() if value.dim() > 1 else 1
                value.copy_(noise / fan**0.5 if value.dim() > 1 else (key.endswith("weight") + 0.2 * noise))
                value.copy_(value.half().float())
        saved = {key: value.half() for key, value in model.state_dict().items()}
        tensors |= {f"{name}/weights/{key}": value for key, value in saved.items()}
        text = json.dumps({"_class_name": cls.__name__} | config)
        tensors[f"{name}/config"] = torch.tensor(list(text.encode()), dtype=torch.uint8)
        factor = 2 ** (len(config["block_out_channels"]) - 1)
        latents = torch.randn(2, config.get("vq_embed_dim", 4), 5, 3)
        picture = torch.rand(2, 3, 3 * factor, 4 * factor) * 2 - 1
        with torch.no_grad():
            decoded = model.decode(latents, **({"force_not_quantize": True} if cls is VQModel else {})).sample
            encoded = model.encode(picture)
        tensors[f"{name}/latents"], tensors[f"{name}/decoded"] = latents, decoded
        tensors[f"{name}/picture"] = picture
        tensors[f"{name}/encoded"] = encoded.latents if cls is VQModel else encoded.latent_dist.mean
    save_file({key: value.contiguous() for key, value in tensors.items()}, Path(__file__).parent / "autoencoders.safetensors")


if __name__ == "__main__":
    main()
