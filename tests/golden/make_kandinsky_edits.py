#!/usr/bin/env python3
"""Edits pictures with a tiny Kandinsky 2.2 and the original library.

    pip install -r tests/golden/requirements.txt
    python tests/golden/make_kandinsky_edits.py

kandinsky-2-2/inpaint and kandinsky-2-2/controlnet are two more decoders for the autoencoder and the prior that
make_kandinsky_pictures.py has. Written beside them: edits.safetensors with given pictures in bytes, given/NAME [H, W, 3] and
given/mask [H, W], what Pillow makes of them in other sizes, resized/NAME, and the pictures of each case, NAME/pictures
[N, H, W, 3].
"""

from pathlib import Path

import numpy as np
import torch
from diffusers import (
    KandinskyV22ControlnetImg2ImgPipeline,
    KandinskyV22ControlnetPipeline,
    KandinskyV22Img2ImgPipeline,
    KandinskyV22InpaintPipeline,
    KandinskyV22Pipeline,
    KandinskyV22PriorEmb2EmbPipeline,
    KandinskyV22PriorPipeline,
    DDPMScheduler,
    UNet2DConditionModel,
    VQModel,
)
from PIL import Image
from safetensors.torch import save_file

HERE = Path(__file__).parent / "kandinsky-2-2"
STEPS = {"prior": 4, "decoder": 5}


def generator(seed):
    return torch.Generator("cpu").manual_seed(seed)


def given(width, height, phase):
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = [128 + 100 * np.sin(x / 9 + phase) * np.cos(y / 13), 255 * x / width, 255 * ((x // 8 + y // 6) % 2)]
    return np.stack(waves, -1).round().astype(np.uint8)


def main():
    torch.set_num_threads(1)
    prior = KandinskyV22PriorPipeline.from_pretrained(HERE / "prior", torch_dtype=torch.float32)
    prior.set_progress_bar_config(disable=True)
    movq = VQModel.from_pretrained(HERE / "decoder" / "movq", torch_dtype=torch.float32)

    def pipeline(kind, folder):
        unet = UNet2DConditionModel.from_pretrained(HERE / folder / "unet", torch_dtype=torch.float32)
        scheduler = DDPMScheduler.from_pretrained(HERE / folder / "scheduler")
        made = kind(unet=unet, scheduler=scheduler, movq=movq)
        made.set_progress_bar_config(disable=True)
        return made

    def embeddings(texts, noise):
        made = prior(texts, num_inference_steps=STEPS["prior"], guidance_scale=4.0, generator=noise)
        return {"image_embeds": made.image_embeds, "negative_image_embeds": made.negative_image_embeds}

    def settings(noise, width, height, **more):
        return {
            "width": width, "height": height, "guidance_scale": 4.0, "num_inference_steps": STEPS["decoder"],
            "generator": noise, "output_type": "np", **more,
        }

    def pictures(result):
        return torch.from_numpy((result.images * 255).round().astype(np.uint8))

    photo, wide, depth = given(200, 150, 0.0), given(90, 70, 1.0), given(64, 64, 2.0)
    y, x = np.mgrid[0:70, 0:90].astype(np.float32)
    mask = np.clip(255 * (1.5 - np.hypot(x - 50, y - 30) / 18), 0, 255).round().astype(np.uint8)
    hint = torch.from_numpy(depth.astype(np.float32) / 255).permute(2, 0, 1)[None]
    tensors = {"given/photo": photo, "given/wide": wide, "given/mask": mask, "given/depth": depth}

    colour = lambda image, size: np.array(Image.fromarray(image).resize(size, Image.BICUBIC, reducing_gap=1))
    tensors |= {"resized/photo": colour(photo, (64, 64)), "resized/larger": colour(wide, (128, 64))}
    tensors |= {"resized/thin": colour(photo, (180, 20))}
    tensors |= {"resized/mask": np.array(Image.fromarray(mask).resize((128, 64), Image.LANCZOS))}
    tensors = {name: torch.from_numpy(value.copy()) for name, value in tensors.items()}

    noise = generator(3)
    redraw = pipeline(KandinskyV22Img2ImgPipeline, "decoder")
    tensors["redraw/pictures"] = pictures(redraw(
        **embeddings(["a red fox"], noise), image=Image.fromarray(photo), strength=0.5, **settings(noise, 64, 64),
    ))
    noise = generator(4)
    inpaint = pipeline(KandinskyV22InpaintPipeline, "inpaint")
    tensors["inpaint/pictures"] = pictures(inpaint(
        **embeddings(["a hat"], noise), image=Image.fromarray(wide), mask_image=Image.fromarray(mask),
        **settings(noise, 128, 64),
    ))
    noise = generator(5)
    control = pipeline(KandinskyV22ControlnetPipeline, "controlnet")
    tensors["hint/pictures"] = pictures(control(**embeddings(["a dog"], noise), hint=hint, **settings(noise, 64, 64)))
    noise = generator(6)
    both = pipeline(KandinskyV22ControlnetImg2ImgPipeline, "controlnet")
    tensors["hint-redraw/pictures"] = pictures(both(
        **embeddings(["a dog"], noise), hint=hint, image=Image.fromarray(photo), strength=0.8, **settings(noise, 64, 64),
    ))
    # Two texts and a picture; with a negative prompt the last run of the prior counts.
    plain = pipeline(KandinskyV22Pipeline, "decoder")
    things = ["a red fox", Image.fromarray(photo), "two dogs"]
    for name, seed, negative in [("blend", 7, ""), ("blend-negative", 8, "blurry")]:
        noise = generator(seed)
        made = prior.interpolate(
            things, [0.5, 0.4, 0.3], negative_prompt=negative, num_inference_steps=STEPS["prior"], generator=noise,
        )
        tensors[f"{name}/pictures"] = pictures(plain(
            image_embeds=made.image_embeds, negative_image_embeds=made.negative_image_embeds, **settings(noise, 64, 64),
        ))
    # A picture that a text changes: the prior begins from its embedding.
    change = KandinskyV22PriorEmb2EmbPipeline(**prior.components)
    change.set_progress_bar_config(disable=True)
    for name, seed, more in [("changed", 9, {"strength": 0.6}), ("changed-negative", 10, {"negative_prompt": "blurry"})]:
        noise = generator(seed)
        made = change("a red fox", Image.fromarray(photo), num_inference_steps=STEPS["prior"], generator=noise, **more)
        tensors[f"{name}/pictures"] = pictures(plain(
            image_embeds=made.image_embeds, negative_image_embeds=made.negative_image_embeds, **settings(noise, 64, 64),
        ))
    for name, values in tensors.items():
        print(name, tuple(values.shape), float(values.float().std()))
    save_file(tensors, HERE / "edits.safetensors")


main()
