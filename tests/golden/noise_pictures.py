#!/usr/bin/env python3
"""Makes noise-pictures.safetensors: pictures of diffusers on tiny/ with the noise of several generators.

    pip install -r tests/golden/requirements.txt
    python tests/golden/noise_pictures.py

Each tensor is the pictures [B, 64, 64, 3] of one run in u8; its name is what `engine run` is given:
NOISE TYPE GENERATOR SEED, one prompt, 3 + 3 + 3 steps, guidance 4 and 8. draws.py says where the noise comes from.
"""

import numpy as np
import torch
from draws import install
from make import HERE, PROMPTS, load_pipeline
from safetensors.torch import save_file

# Name of the run, and its number of pictures. A draw of 64x64x3 is more than 2x1024 threads make at once, and one of two
# such pictures more than 20x1024.
RUNS = [
    ("torch-cuda:20x1024 f32 one 5", 2),
    ("torch-cuda:2x1024 f16 each 6", 2),
    ("torch f16 one 7", 2),
    ("torch-2.11 bf16 each 8", 1),
    ("torch-2.11 f16 one 9", 2),
]


def main():
    torch.set_grad_enabled(False)
    tensors = {}
    for name, pictures in RUNS:
        noise, dtype, generators, seed = name.split()
        pipe = load_pipeline(HERE / "tiny")
        pipe.set_progress_bar_config(disable=True)
        install(pipe, noise, dtype, generators, int(seed), pictures)
        images = pipe(
            PROMPTS[0],
            num_images_per_prompt=pictures,
            prior_num_inference_steps=3,
            decoder_num_inference_steps=3,
            super_res_num_inference_steps=3,
            output_type="np",
        ).images
        tensors[name] = torch.from_numpy((images * 255).round().astype(np.uint8)).contiguous()
    save_file(tensors, HERE / "noise-pictures.safetensors")


if __name__ == "__main__":
    main()
