#!/usr/bin/env python3
"""Makes pictures of a tiny Kandinsky 2.2 with the original library.

    pip install -r tests/golden/requirements.txt
    python tests/golden/make_kandinsky_pictures.py

kandinsky-2-2/prior and kandinsky-2-2/decoder are checkpoints with the structure of the published ones, reduced widths and
random weights in f16, of which the original ran the same values in f32. Written beside them: pictures.safetensors with, for
each case, NAME/pictures [N, H, W, 3] in bytes; of the variation the given picture, too, as variation/given [H, W, 3].
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import KandinskyV22Pipeline, KandinskyV22PriorPipeline
from PIL import Image
from safetensors.torch import save_file

HERE = Path(__file__).parent / "kandinsky-2-2"
STEPS = {"prior": 4, "decoder": 3}


def generator(seed):
    return torch.Generator("cpu").manual_seed(seed)


def main():
    torch.set_num_threads(1)
    prior = KandinskyV22PriorPipeline.from_pretrained(HERE / "prior", torch_dtype=torch.float32)
    decoder = KandinskyV22Pipeline.from_pretrained(HERE / "decoder", torch_dtype=torch.float32)
    [pipe.set_progress_bar_config(disable=True) for pipe in (prior, decoder)]

    def decode(image, negative, noise, width, height, guidance):
        pictures = decoder(
            image_embeds=image, negative_image_embeds=negative, width=width, height=height, guidance_scale=guidance,
            num_inference_steps=STEPS["decoder"], generator=noise, output_type="np",
        ).images
        return torch.from_numpy((pictures * 255).round().astype(np.uint8))

    def prompts(texts, noise, width, height, negative=None, prior_guidance=4.0, guidance=4.0):
        negatives = None if negative is None else [negative] * len(texts)
        made = prior(
            texts, negative_prompt=negatives, num_inference_steps=STEPS["prior"], guidance_scale=prior_guidance,
            generator=noise,
        )
        return decode(made.image_embeds, made.negative_image_embeds, noise, width, height, guidance)

    tensors = {
        "prompt/pictures": prompts(["a red fox"], generator(3), 128, 64),
        "negative/pictures": prompts(["a red fox"], generator(3), 64, 64, negative="blurry"),
        "one/pictures": prompts(["a fox", "two dogs"], generator(9), 64, 64, negative="a cat"),
        "unguided/pictures": prompts(["a red fox"], generator(5), 64, 64, prior_guidance=1.0, guidance=1.0),
    }
    y, x = np.mgrid[0:40, 0:56].astype(np.float32)
    given = np.stack([x * 4, y * 6, 128 + 100 * np.sin(x / 5) * np.cos(y / 7)], -1).round().astype(np.uint8)
    pixels = prior.image_processor(Image.fromarray(given), return_tensors="pt").pixel_values
    with torch.no_grad():
        image, negative = prior.image_encoder(pixels).image_embeds, prior.get_zero_embed(1)
    tensors["variation/given"] = torch.from_numpy(given)
    tensors["variation/pictures"] = decode(image, negative, generator(7), 64, 64, 4.0)
    for name, pictures in tensors.items():
        print(name, tuple(pictures.shape), float(pictures.float().std()))
    save_file(tensors, HERE / "pictures.safetensors")


main()
