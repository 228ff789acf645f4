#!/usr/bin/env python3
"""Makes the reference data for configurations that published checkpoints do not have, with the original libraries.

    pip install -r tests/golden/requirements.txt
    python tests/golden/make_configurations.py

Written beside this file: configurations.safetensors with the tensors

    unet/config                     the JSON of a UNet2DConditionModel with lists of one entry for each level
    unet/weights/NAME               its tensors
    unet/{sample, context, mask, added, timestep}, unet/output
    keys                            the JSON of a table: class to the keys of its configuration
    sizes/K/config                  the JSON of a preprocessor_config.json
    sizes/K/image, sizes/K/pixel_values     a picture [H, W, 3] and what CLIPImageProcessor makes of it
"""

import inspect
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import PriorTransformer, UNet2DConditionModel, UNet2DModel, UnCLIPScheduler
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from PIL import Image
from safetensors.numpy import save_file
from transformers import CLIPImageProcessorPil, CLIPTextConfig, CLIPVisionConfig
from transformers.processing_utils import ImagesKwargs

HERE = Path(__file__).parent

UNET = {
    "_class_name": "UNet2DConditionModel",
    "sample_size": [4, 4],
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ["SimpleCrossAttnDownBlock2D", "SimpleCrossAttnDownBlock2D"],
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ["SimpleCrossAttnUpBlock2D", "SimpleCrossAttnUpBlock2D"],
    "block_out_channels": [4, 8],
    "layers_per_block": [1, 2],
    "attention_head_dim": [2, 4],
    "cross_attention_dim": [6, 6],
    "only_cross_attention": [False, False],
    "norm_num_groups": 2,
    "class_embed_type": "identity",
    "resnet_time_scale_shift": "scale_shift",
    # Of residual blocks, not of attention.
    "norm_eps": 1e-3,
}

# The keys beside a crop of 8, and the picture's height and width.
SIZES = [
    ({"size": {"height": 10, "width": 14}}, (20, 13)),
    ({"size": [6, 12]}, (9, 30)),
    ({"size": [8, 40]}, (90, 10)),
    ({"size": [40, 8]}, (10, 90)),
    ({"size": [3, 5]}, (9, 7)),
    ({"size": {"shortest_edge": 5}}, (11, 17)),
    ({"size": {"shortest_edge": 9, "longest_edge": None}}, (11, 17)),
    ({"size": {"shortest_edge": 10, "longest_edge": 13}}, (40, 20)),
    ({"size": {"shortest_edge": 10, "longest_edge": 13}}, (17, 43)),
    ({"size": {"shortest_edge": 10, "longest_edge": 13}}, (12, 11)),
    ({"size": {"shortest_edge": 10, "longest_edge": 15}}, (6, 20)),
    ({"size": {"shortest_edge": 10, "longest_edge": 10}}, (8, 20)),
    ({"size": {"shortest_edge": 10, "longest_edge": 7}}, (20, 14)),
    ({"size": 9, "default_to_square": True}, (12, 20)),
    ({"size": 9, "default_to_square": False}, (12, 20)),
    ({"size": 9, "use_square_size": True}, (30, 20)),
    ({"size": {"height": 9, "width": 9}, "crop_size": [8, 8]}, (12, 20)),
    ({"default_to_square": True}, (30, 20)),
]


CLASSES = [UNet2DConditionModel, UNet2DModel, PriorTransformer, UnCLIPTextProjModel, UnCLIPScheduler]


def keys():
    """The keys of each class's configuration: arguments of diffusers' classes, entries that transformers' classes save."""
    arguments = {cls.__name__: sorted(set(inspect.signature(cls.__init__).parameters) - {"self"}) for cls in CLASSES}
    saved = {cls.__name__: sorted(cls().to_dict()) for cls in (CLIPTextConfig, CLIPVisionConfig)}
    return arguments | saved | {"CLIPImageProcessor": sorted(ImagesKwargs.__annotations__)}


def text(value):
    return np.frombuffer(json.dumps(value).encode(), dtype=np.uint8)


def unet():
    torch.manual_seed(0)
    model = UNet2DConditionModel.from_config(UNET).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.randn_like(weight) * 0.3 + (1.0 if "norm" in name and "weight" in name else 0.0))
        given = {
            "sample": torch.randn(2, 3, 4, 4),
            "context": torch.randn(2, 5, 6),
            "mask": torch.tensor([[1.0, 1.0, 1.0, 0.0, 0.0], [1.0] * 5]),
            "added": torch.randn(2, 16),
            "timestep": torch.tensor([37.0]),
        }
        output = model(
            given["sample"],
            given["timestep"],
            given["context"],
            class_labels=given["added"],
            attention_mask=given["mask"].bool(),
        ).sample
    tensors = {f"unet/weights/{name}": weight.numpy() for name, weight in model.state_dict().items()}
    tensors |= {f"unet/{name}": value.numpy() for name, value in given.items()}
    return tensors | {"unet/config": text(UNET), "unet/output": output.numpy()}


def sizes():
    random = np.random.default_rng(0)
    tensors = {}
    for k, (keys, (height, width)) in enumerate(SIZES):
        config = {"crop_size": 8} | keys
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        processor = CLIPImageProcessorPil.from_dict(config)
        values = processor(Image.fromarray(pixels), return_tensors="np")["pixel_values"]
        tensors[f"sizes/{k}/config"] = text(config)
        tensors[f"sizes/{k}/image"] = pixels
        tensors[f"sizes/{k}/pixel_values"] = values.astype(np.float32)
    return tensors


if __name__ == "__main__":
    # A view of other strides would be saved in the order of memory.
    tensors = {name: np.ascontiguousarray(value) for name, value in (unet() | sizes() | {"keys": text(keys())}).items()}
    save_file(tensors, HERE / "configurations.safetensors")
