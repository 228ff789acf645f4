#!/usr/bin/env python3
"""Makes the reference data for Stable unCLIP's U-Net with the original library.

    pip install -r tests/golden/requirements.txt
    python tests/golden/make_stable_unclip.py

Written beside this file: stable_unclip.safetensors with the tensors, for each of linear and convolution, which differ in how
transformer blocks begin and end,

    NAME/config                     the JSON of the configuration
    NAME/weights/TENSOR             in f16, of which the original ran the same values in f32
    NAME/x_t                        one picture's latents, with sides that cannot be halved
    NAME/{labels, hidden}           two rows: the unconditional half first
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
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"],
    "block_out_channels": [8, 16, 16],
    "layers_per_block": 1,
    "attention_head_dim": [1, 2, 4],
    "cross_attention_dim": 12,
    "norm_num_groups": 4,
    "class_embed_type": "projection",
    "projection_class_embeddings_input_dim": 20,
    "use_linear_projection": True,
    "upcast_attention": True,
}
MODELS = {"linear": CONFIG, "convolution": CONFIG | {"use_linear_projection": False, "attention_head_dim": 2}}
HEIGHT, WIDTH, TOKENS = 7, 5, 77


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
        x = torch.randn(1, config["in_channels"], HEIGHT, WIDTH)
        hidden = torch.randn(2, TOKENS, config["cross_attention_dim"])
        labels = torch.randn(2, config["projection_class_embeddings_input_dim"])
        labels[0] = 0
        tensors |= {f"{name}/x_t": x, f"{name}/hidden": hidden, f"{name}/labels": labels}
        with torch.no_grad():
            output = model(x.repeat(2, 1, 1, 1), TIMESTEP, hidden, class_labels=labels).sample
        tensors[f"{name}/output"] = output
        print(name, sum(value.numel() for value in model.parameters()), float(output.std()))
    path = Path(__file__).parent / "stable_unclip.safetensors"
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)


if __name__ == "__main__":
    main()
