#!/usr/bin/env python3
"""Makes pictures of a tiny Stable unCLIP with the original library.

    pip install -r tests/golden/requirements.txt
    python tests/golden/make_stable_unclip_pictures.py

stable-unclip is a checkpoint with the structure of the published ones, that of variations and that of prompts in one folder,
with reduced widths and random weights in f16, of which the original ran the same values in f32. Its autoencoder has the names
that attention had in old files, its text encoder none of the model's name. Written beside it: pictures.safetensors with, for each case, NAME/pictures [N, H, W, 3] in
bytes; the picture that is varied is variation/given [H, W, 3].
"""

import warnings
from pathlib import Path

import diffusers
import numpy as np
import torch
from diffusers import StableUnCLIPImg2ImgPipeline, StableUnCLIPPipeline
from PIL import Image
from safetensors.torch import save_file

HERE = Path(__file__).parent / "stable-unclip"


def generator(seed):
    return torch.Generator("cpu").manual_seed(seed)


def main():
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    load = {"torch_dtype": torch.float32, "safety_checker": None}
    variations = StableUnCLIPImg2ImgPipeline.from_pretrained(HERE, **load)
    prompts = StableUnCLIPPipeline.from_pretrained(HERE, **load)
    pipes = (variations, prompts)
    [pipe.set_progress_bar_config(disable=True) for pipe in pipes]
    plms = variations.scheduler.config

    def bytes_of(pictures):
        return torch.from_numpy((pictures * 255).round().astype(np.uint8))

    def run(pipe, *given, sampler="PNDMScheduler", **settings):
        pipe.scheduler = getattr(diffusers, sampler).from_config(plms)
        return bytes_of(pipe(*given, output_type="np", **settings).images)

    y, x = np.mgrid[0:40, 0:56].astype(np.float32)
    given = np.stack([x * 4, y * 6, 128 + 100 * np.sin(x / 5) * np.cos(y / 7)], -1).round().astype(np.uint8)
    picture = Image.fromarray(given)
    size = {"height": 64, "width": 64}
    tensors = {
        "variation/given": torch.from_numpy(given),
        "variation/pictures": run(variations, picture, num_inference_steps=6, generator=generator(3), **size),
        "said/pictures": run(
            variations, picture, "a red fox", negative_prompt="blurry", noise_level=300, num_inference_steps=3,
            generator=generator(4), sampler="DDPMScheduler", **size,
        ),
        "shared/pictures": run(
            variations, picture, num_images_per_prompt=2, noise_level=700, num_inference_steps=3,
            generator=generator(5), sampler="DDIMScheduler", **size,
        ),
        "odd/pictures": run(
            variations, picture, num_inference_steps=3, generator=generator(6), sampler="EulerDiscreteScheduler",
            height=72, width=56,
        ),
        "unguided/pictures": run(
            variations, picture, "a red fox", num_inference_steps=4, generator=generator(7), guidance_scale=1.0,
            sampler="DPMSolverMultistepScheduler", **size,
        ),
        "prompt/pictures": run(
            prompts, "a red fox", negative_prompt="blurry", num_inference_steps=3, prior_num_inference_steps=4,
            num_images_per_prompt=2, generator=generator(8), **size,
        ),
    }
    for name, pictures in tensors.items():
        print(name, tuple(pictures.shape), float(pictures.float().std()))
    save_file({name: value.contiguous() for name, value in tensors.items()}, HERE / "pictures.safetensors")


main()
