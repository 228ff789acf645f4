#!/usr/bin/env python3
"""Makes edits.safetensors: pictures edited with tiny/ and diffusers' UnCLIPPipeline.

    pip install -r tests/golden/requirements.txt
    python tests/golden/make_edits.py

The pipeline runs unmodified. Its decoder and super-resolution schedulers are replaced by one that does what Lugmayr et al.
2022 (RePaint), algorithm 1, and Meng et al. 2022 (SDEdit) do, in plain tensor operations. Random numbers come in this order,
for each stage: latents, the noise of all steps, then for each step that of what stays, and of the way back where the step
is taken again.

Written: given/photo [H, W, 3] and given/mask [H, W] in bytes, and for each case the pictures NAME [N, 64, 64, 3].
"""

import numpy as np
import torch
from diffusers import UnCLIPScheduler
from diffusers.schedulers import scheduling_unclip
from make import HERE, PROMPTS, load_pipeline
from PIL import Image
from safetensors.torch import save_file


class Editing(UnCLIPScheduler):
    """UnCLIPScheduler that keeps a part of a picture: `keep` [1, 1, H, W] is 1 there, `given` is [1, 3, H, W] in -1..1."""

    def edit(self, given, keep, times, strength):
        self.given, self.keep, self.times, self.strength = given, keep, times, strength

    def set_timesteps(self, steps, device=None):
        super().set_timesteps(steps, device)
        all_steps = self.timesteps.tolist()
        taken = all_steps[steps - int(steps * (1.0 if self.strength is None else self.strength)):]
        self.pairs = [(t, p) for t, p in zip(taken, taken[1:]) for _ in range(self.times)] + [(taken[-1], None)]
        self.timesteps = torch.tensor([t for t, _ in self.pairs])
        self.at = 0

    def begin(self, noise):
        """What the loop begins from."""
        if self.strength is None:
            return noise
        share = self.alphas_cumprod[self.pairs[0][0]]
        return share.sqrt() * self.given + (1 - share).sqrt() * noise

    def step(self, model_output, timestep, sample, prev_timestep=None, generator=None):
        draw = lambda: torch.randn(sample.shape, generator=generator)
        if self.at == 0:
            self.noise = [draw() for t, _ in self.pairs if t > 0]
        t, prev = self.pairs[self.at]
        assert t == timestep
        original, noise = scheduling_unclip.randn_tensor, self.noise[self.at] if t > 0 else None
        scheduling_unclip.randn_tensor = lambda *_, **__: noise
        out = super().step(model_output, t, sample, prev_timestep=prev)
        scheduling_unclip.randn_tensor = original
        x = out.prev_sample
        if self.keep is not None:
            known = self.given
            if prev is not None:
                share = self.alphas_cumprod[prev]
                known = share.sqrt() * known + (1 - share).sqrt() * draw()
            x = self.keep * known + (1 - self.keep) * x
            if self.at + 1 < len(self.pairs) and self.pairs[self.at + 1][0] == t:
                alpha = self.alphas[t] if prev == t - 1 else self.alphas_cumprod[t] / self.alphas_cumprod[prev]
                x = alpha.sqrt() * x + (1 - alpha).sqrt() * draw()
        self.at += 1
        out.prev_sample = x
        return out


def given():
    y, x = np.mgrid[0:30, 0:40].astype(np.float32)
    photo = np.stack([x * 6, 255 - y * 8, 128 + 100 * np.sin(x / 3)], -1).round().astype(np.uint8)
    return photo, np.where(np.hypot(x - 25, y - 12) < 9, 255, 0).astype(np.uint8)


def at_size(photo, mask, size):
    """The picture in another size, and what of it stays: pixels that see nothing new."""
    pixels = np.array(Image.fromarray(photo).resize((size, size), Image.BICUBIC, reducing_gap=1))
    sample = torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    if mask is None:
        return sample, None
    height, width = mask.shape
    keep = np.ones((size, size), np.float32)
    for row in range(size):
        for column in range(size):
            seen = mask[row * height // size:-(-(row + 1) * height // size),
                        column * width // size:-(-(column + 1) * width // size)]
            keep[row, column] = float(seen.max() < 128)
    return sample, torch.from_numpy(keep)[None, None]


def run(seed, pictures, steps, mask, times=1, strength=None):
    pipe = load_pipeline(HERE / "tiny")
    pipe.set_progress_bar_config(disable=True)
    photo, drawn = given()
    for name, size in [("decoder_scheduler", 16), ("super_res_scheduler", 64)]:
        scheduler = Editing.from_config(getattr(pipe, name).config)
        small = name == "decoder_scheduler"
        sample, keep = at_size(photo, drawn if mask else None, size)
        scheduler.edit(sample, keep, times if small or mask else 1, strength if small else None)
        setattr(pipe, name, scheduler)
    prepare = pipe.prepare_latents

    def prepare_latents(shape, dtype, device, generator, latents, scheduler):
        noise = prepare(shape, dtype, device, generator, latents, scheduler)
        return scheduler.begin(noise) if isinstance(scheduler, Editing) else noise

    pipe.prepare_latents = prepare_latents
    images = [
        pipe(
            PROMPTS[0], generator=torch.Generator("cpu").manual_seed(seed + k), prior_num_inference_steps=3,
            decoder_num_inference_steps=steps, super_res_num_inference_steps=3, output_type="np",
        ).images
        for k in range(pictures)
    ]
    return torch.from_numpy((np.concatenate(images) * 255).round().astype(np.uint8))


def main():
    torch.set_grad_enabled(False)
    torch.set_num_threads(1)
    photo, mask = given()
    tensors = {
        "given/photo": torch.from_numpy(photo),
        "given/mask": torch.from_numpy(mask),
        "inpaint": run(3, 2, 3, mask=True),
        "resample": run(4, 1, 3, mask=True, times=3),
        "redraw": run(5, 1, 4, mask=False, strength=0.5),
        "both": run(6, 1, 5, mask=True, times=2, strength=0.8),
    }
    for name, values in tensors.items():
        print(name, tuple(values.shape), float(values.float().std()))
    save_file({name: values.contiguous() for name, values in tensors.items()}, HERE / "edits.safetensors")


if __name__ == "__main__":
    main()
