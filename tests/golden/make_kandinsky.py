#!/usr/bin/env python3
"""Makes the reference data for Kandinsky 2.2's decoder networks with the original library.

    pip install -r tests/golden/requirements.txt
    python tests/golden/make_kandinsky.py

Written beside this file: kandinsky.safetensors with the tensors, for each of decoder, inpaint and depth,

    NAME/config                     the JSON of the configuration
    NAME/weights/TENSOR             in f16, of which the original ran the same values in f32
    NAME/{x_t, image_embeds}        two rows: the unconditional half first
    NAME/beside                     of inpaint the known latents and their map, of depth the hint
    NAME/output                     what the network gives at TIMESTEP
"""

import json
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

TIMESTEP = 821
CONFIG = {
    "in_channels": 4,
    "out_channels": 8,
    "down_block_types": ["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"],
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "attention_head_dim": 8,
    "cross_attention_dim": 12,
    "norm_num_groups": 4,
    "resnet_time_scale_shift": "scale_shift",
    "addition_embed_type": "image",
    "encoder_hid_dim": 6,
    "encoder_hid_dim_type": "image_proj",
}
MODELS = {
    "decoder": CONFIG,
    "inpaint": CONFIG | {"in_channels": 9},
    "depth": CONFIG | {"in_channels": 8, "addition_embed_type": "image_hint"},
}
HEIGHT, WIDTH = 6, 4


def main():
    tensors = {}
    for name, config in MODELS.items():
        torch.manual_seed(len(name))
        model = UNet2DConditionModel(**config).eval()
        with torch.no_grad():
            for key, value in model.named_parameters():
                noise = torch.randn_like(value)
                fan = value[0].numel() if value.dim() > 1 else 1
                value.copy_(noise / fan**0.5 if value.dim() > 1 else (("norm" in key and key.endswith("weight")) + 0.2 * noise))
                value.copy_(value.half().float())
        tensors |= {f"{name}/weights/{key}": value.half() for key, value in model.state_dict().items()}
        text = json.dumps({"_class_name": "UNet2DConditionModel"} | config)
        tensors[f"{name}/config"] = torch.tensor(list(text.encode()), dtype=torch.uint8)
        x, embeds = torch.randn(1, 4, HEIGHT, WIDTH), torch.randn(2, config["encoder_hid_dim"])
        tensors[f"{name}/x_t"], tensors[f"{name}/image_embeds"] = x, embeds
        conditions, sample = {"image_embeds": embeds}, x.repeat(2, 1, 1, 1)
        if name == "inpaint":
            beside = torch.randn(1, 5, HEIGHT, WIDTH)
            sample = torch.cat([sample, beside.repeat(2, 1, 1, 1)], 1)
        if name == "depth":
            beside = torch.rand(1, 3, 8 * HEIGHT, 8 * WIDTH)
            conditions["hint"] = beside.repeat(2, 1, 1, 1)
        if name != "decoder":
            tensors[f"{name}/beside"] = beside
        with torch.no_grad():
            tensors[f"{name}/output"] = model(sample, TIMESTEP, None, added_cond_kwargs=conditions).sample
    save_file({key: value.contiguous() for key, value in tensors.items()}, Path(__file__).parent / "kandinsky.safetensors")


if __name__ == "__main__":
    main()
