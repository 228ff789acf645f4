#!/usr/bin/env python3
"""Compares `engine run` with diffusers' pipelines on any checkpoint folder, pixel by pixel and step by step.

    pip install -r tests/golden/requirements.txt
    cargo build --release
    python tests/parity.py CHECKPOINT --prompt "a red apple" --prompt "a boat" --batch 2 --seed 7
    python tests/parity.py CHECKPOINT --image photo.png --batch 2
    python tests/parity.py CHECKPOINT --prompt "a boat" --batch 2 --noise torch-cuda:20x1024 --noise-dtype f16 --generator one

Four comparisons, one line each:

pixels    the 8-bit pictures: largest and mean difference; the bars are 2 and 0.1
noise     the draws of each stage: largest difference
drift     every tensor of both runs under the same name, largest error of each stage relative to the tensor's
          largest element; rounding differences grow from step to step
networks  every network of diffusers on the inputs that the engine's had, each step by itself: largest error
          relative to the output's root mean square; the bar is 1e-4

Both sides compute in f32, whatever the type of the noise; golden/draws.py gives diffusers noise that torch would not draw
here. Exits with 1 if a bar is missed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent / "golden"))
import draws
import make

NETWORK_BAR, PIXEL_BAR, MEAN_BAR = 1e-4, 2, 0.1


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--engine", default="target/release/engine")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", action="append", default=[])
    source.add_argument("--image", action="append", default=[], help="PNG of which to make variations")
    parser.add_argument("--negative", help="for prompts only")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=1)
    for stage, steps in make.STEPS.items():
        parser.add_argument(f"--{stage.replace('_', '-')}-steps", type=int, default=steps)
    parser.add_argument("--prior-guidance", type=float, default=4.0)
    parser.add_argument("--decoder-guidance", type=float, default=8.0)
    parser.add_argument("--noise", default="torch", help="torch, torch-2.11 or torch-cuda[:MxT]")
    parser.add_argument("--noise-dtype", default="f32", choices=draws.DTYPES)
    parser.add_argument("--generator", default="each", choices=["each", "one"])
    parser.add_argument("--engine-args", default="", help="further flags for engine run, such as --device")
    a = parser.parse_args()
    if a.image and a.negative is not None:
        parser.error("diffusers' variations have no place for --negative")
    return a


def run_engine(a, folder):
    command = [a.engine, "run", "-m", a.checkpoint, "-q", "-s", a.seed, "-b", a.batch]
    command += ["--noise", a.noise, "--noise-dtype", a.noise_dtype, "--generator", a.generator]
    command += ["-o", folder / "%03d.png", "--trace", folder / "trace.safetensors"]
    command += [part for prompt in a.prompt for part in ("-p", prompt)]
    command += [part for image in a.image for part in ("--image", image)]
    command += ["-n", a.negative] if a.negative is not None else []
    command += ["--decoder-steps", a.decoder_steps, "--decoder-guidance", a.decoder_guidance]
    command += ["--super-res-steps", a.super_res_steps, *a.engine_args.split()]
    if a.prompt:
        command += ["--prior-steps", a.prior_steps, "--prior-guidance", a.prior_guidance]
    # The bars are those of f32, whatever the weights are stored in.
    subprocess.run([str(part) for part in command], check=True, env={"ENGINE_DTYPE": "f32", **os.environ})
    files = sorted(folder.glob("*.png"))
    return np.stack([np.asarray(Image.open(f)) for f in files]), load_file(folder / "trace.safetensors")


class Negative:
    """A tokenizer that puts a text in the place of the empty ones; diffusers' pipeline has no such setting."""

    def __init__(self, tokenizer, text):
        self.tokenizer, self.text = tokenizer, text

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)

    def __call__(self, texts, **kwargs):
        return self.tokenizer([self.text if text == "" else text for text in texts], **kwargs)


def run_diffusers(a):
    make.KEPT = {stage: range(1000) for stage in make.STEPS}
    pipe = make.load_pipeline(a.checkpoint, variation=bool(a.image))
    pipe.set_progress_bar_config(disable=True)
    for network in pipe.components.values():
        if isinstance(network, torch.nn.Module):
            network.float()  # stored in half precision perhaps; both sides compute in single
    count = (len(a.prompt) + len(a.image)) * a.batch
    draws.install(pipe, a.noise, a.noise_dtype, a.generator, a.seed, count)
    recorder = make.Recorder(pipe)
    if a.negative is not None:
        pipe.tokenizer = Negative(pipe.tokenizer, a.negative)
    prior = {"prior_num_inference_steps": a.prior_steps, "prior_guidance_scale": a.prior_guidance}
    images = pipe(
        a.prompt or [Image.open(image).convert("RGB") for image in a.image],
        **(prior if a.prompt else {}),
        num_images_per_prompt=a.batch,
        decoder_num_inference_steps=a.decoder_steps,
        super_res_num_inference_steps=a.super_res_steps,
        decoder_guidance_scale=a.decoder_guidance,
        output_type="np",
    ).images
    return pipe, (images * 255).round().astype(np.uint8), recorder.tensors


def drift(ours, theirs):
    worst = {}
    for name, want in theirs.items():
        if want.is_floating_point():
            got = ours[name]
            assert got.shape == want.shape, f"{name}: {tuple(got.shape)} instead of {tuple(want.shape)}"
            error = ((got - want).abs().max() / want.abs().max().clamp(min=1e-30)).item()
            stage = name.split("/")[0]
            worst[stage] = max(worst.get(stage, 0.0), error)
    return worst


def noise(ours, theirs):
    worst = {}
    for name, want in theirs.items():
        if name.endswith(("/initial_latents", "/noise")):
            stage = name.split("/")[0]
            worst[stage] = max(worst.get(stage, 0.0), (ours[name] - want).abs().max().item())
    return worst


def networks(pipe, ours):
    """Largest error of each network over all steps, given the engine's own inputs."""

    def predict(stage, step, count):
        x, t = ours[f"{stage}/step_{step:02d}/model_input"], ours[f"{stage}/timesteps"][step]
        if stage == "prior":
            return pipe.prior(
                x,
                timestep=t,
                proj_embedding=ours["prior/text_embeds"],
                encoder_hidden_states=ours["prior/text_hidden_states"],
                attention_mask=ours["prior/text_mask"].bool(),
            ).predicted_image_embedding
        if stage == "decoder":
            return pipe.decoder(
                sample=x,
                timestep=t,
                encoder_hidden_states=ours["text_proj/encoder_hidden_states"],
                class_labels=ours["text_proj/additive_time_embeds"],
                attention_mask=ours["decoder/attention_mask"].bool(),
            ).sample
        network = pipe.super_res_last if step == count - 1 else pipe.super_res_first
        return network(sample=x, timestep=t).sample

    worst = {}
    if "image_encoder/pixel_values" in ours:
        want = pipe.image_encoder(ours["image_encoder/pixel_values"]).image_embeds
        error = (ours["image_encoder/image_embeds"] - want).abs().max() / want.square().mean().sqrt()
        worst["image_encoder"] = error.item()
    for stage in (stage for stage in make.STEPS if f"{stage}/timesteps" in ours):
        count = len(ours[f"{stage}/timesteps"])
        for step in range(count):
            want, got = predict(stage, step, count), ours[f"{stage}/step_{step:02d}/model_output"]
            error = ((got - want).abs().max() / want.square().mean().sqrt()).item()
            worst[stage] = max(worst.get(stage, 0.0), error)
    return worst


def show(name, values):
    print(f"{name:9} " + "  ".join(f"{key} {value:.2e}" for key, value in values.items()))


def main():
    a = arguments()
    torch.set_grad_enabled(False)
    with tempfile.TemporaryDirectory() as folder:
        got, ours = run_engine(a, Path(folder))
    pipe, want, theirs = run_diffusers(a)
    off = np.abs(got.astype(int) - want.astype(int))
    print(f"pixels    {len(got)} pictures, largest {off.max()}, mean {off.mean():.5f}, spread of the picture {want.std():.1f}")
    show("noise", noise(ours, theirs))
    show("drift", drift(ours, theirs))
    by_network = networks(pipe, ours)
    show("networks", by_network)
    missed = off.max() > PIXEL_BAR or off.mean() > MEAN_BAR or max(by_network.values()) > NETWORK_BAR
    print("MISSED" if missed else "within the bars")
    sys.exit(int(missed))


if __name__ == "__main__":
    main()
