#!/usr/bin/env python3
"""Measures how far pictures move when numbers are bf16 instead of f32: those of diffusers, and with --device this engine's.

    python tests/golden/precision.py --steps 25 25 7
    python tests/golden/precision.py --guidance 1 1 --engine target/release/engine --device cpu --device cuda-emulator

A line for each prompt and seed has PSNRs in dB against the same side's picture in f32, from the same noise: diffusers all
in bf16; diffusers with weights rounded to bf16 and arithmetic in f32; and `engine run --dtype bf16` on each device.
"""

import argparse
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import diffusers.schedulers.scheduling_unclip as scheduling
import numpy as np
import torch
from make import HERE, PROMPTS, load_pipeline
from PIL import Image

F = torch.nn.functional


class ResizeInSingle:
    """What the pipeline takes from torch.nn.functional; torch has no antialiased resize of bf16 on the CPU."""

    pad = staticmethod(F.pad)

    @staticmethod
    def interpolate(x, **options):
        return F.interpolate(x.float(), **options).to(x.dtype)


def share_noise(pipe):
    """Draws all noise in f32 and rounds it: torch draws other numbers where it is asked for bf16."""
    module = sys.modules[type(pipe).__module__]
    module.F = ResizeInSingle
    for place in (module, scheduling):
        draw = place.randn_tensor
        place.randn_tensor = lambda *args, dtype=None, draw=draw, **options: draw(*args, **options).to(dtype)


def of_diffusers(options, pipe, prompt, seed):
    picture = pipe(
        prompt,
        **{f"{stage}_num_inference_steps": n for stage, n in zip(("prior", "decoder", "super_res"), options.steps)},
        **{f"{stage}_guidance_scale": scale for stage, scale in zip(("prior", "decoder"), options.guidance)},
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type="np",
    ).images[0]
    return (picture * 255).round()


def of_engine(options, device, dtype, prompt, seed):
    with tempfile.TemporaryDirectory() as folder:
        command = [options.engine, "run", "-q", "-m", options.model, "-p", prompt, "-s", seed, "--noise", "torch"]
        command += [f"--{stage}-steps={n}" for stage, n in zip(("prior", "decoder", "super-res"), options.steps)]
        command += [f"--{stage}-guidance={scale}" for stage, scale in zip(("prior", "decoder"), options.guidance)]
        command += ["--device", device, "--dtype", dtype, "-o", f"{folder}/picture.png"]
        subprocess.run([str(part) for part in command], check=True)
        return np.asarray(Image.open(f"{folder}/picture.png"), dtype=np.float64)


def decibels(got, want):
    return 10 * math.log10(255**2 / max(np.mean((got - want) ** 2), 1e-12))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=HERE / "tiny", help="a checkpoint in the layout of diffusers")
    parser.add_argument("--steps", type=int, nargs=3, default=[2, 2, 2], help="of prior, decoder and super-resolution")
    parser.add_argument("--guidance", type=float, nargs=2, default=[4.0, 8.0], help="of prior and decoder")
    parser.add_argument("--seeds", type=int, default=4, help="how many, from 0 on")
    parser.add_argument("--prompt", action="append", help="may be given several times")
    parser.add_argument("--engine", default="engine", help="the program")
    parser.add_argument("--device", action="append", default=[], help="measure the engine there as well; several times")
    options = parser.parse_args()
    single, rounded, narrow = pipes = [load_pipeline(options.model) for _ in range(3)]
    for pipe in pipes:
        pipe.set_progress_bar_config(disable=True)
    narrow.to(torch.bfloat16)
    rounded.to(torch.bfloat16).to(torch.float32)
    share_noise(single)
    print("| prompt, seed | diffusers | weights alone |", *(f"{device} |" for device in options.device))
    print("|---" * (3 + len(options.device)) + "|")
    for prompt in options.prompt or PROMPTS:
        for seed in range(options.seeds):
            want = of_diffusers(options, single, prompt, seed)
            found = [decibels(of_diffusers(options, pipe, prompt, seed), want) for pipe in (narrow, rounded)]
            for at, device in enumerate(options.device):
                want = of_engine(options, "cpu", "f32", prompt, seed) if at == 0 else want
                found.append(decibels(of_engine(options, device, "bf16", prompt, seed), want))
            print(f"| {prompt[:16]}, {seed} |", *(f"{value:.1f} |" for value in found), flush=True)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
