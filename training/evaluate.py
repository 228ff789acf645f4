#!/usr/bin/env python3
"""Figures and contact sheets of an exported model.

  evaluate.py --model run/model --data data --out report                     with diffusers' pipeline
  evaluate.py --model run/model --data data --out report --engine engine     with the engine's pictures
  evaluate.py --model run/model --data data --out report --compare           other step counts and guidance

Writes report/report.json, report/prompts.png (the 64 prompts), report/compositions.png (pairs of thing and background
never trained) and report/seeds.png (four seeds of eight prompts).

A picture counts as found when the model's own CLIP ranks its caption among the first five of all captions: every
trained thing on every background, held-out pairs included. The decoder was conditioned on that CLIP, so a good figure
proves little by itself: look at the sheets, and at `error`, the distance to the training picture, which a blob of the
right colour does not bring down.
"""
import argparse
import json
import random
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import captions
import models
import sheets
from data import Pictures, default_style_rows

SETTINGS = ("prior_steps", "decoder_steps", "super_res_steps", "prior_guidance", "decoder_guidance")


class Diffusers:
    """Pictures by diffusers' pipeline, all prompts of a call as batches of 16."""

    def __init__(self, folder, device):
        self.pipeline, self.device = models.load_pipeline(folder, device), device

    def draw(self, prompts, seed, settings):
        out = []
        for i in range(0, len(prompts), 16):
            generator = torch.Generator(self.device).manual_seed(seed)
            out.append(self.pipeline(
                prompts[i:i + 16], generator=generator, output_type="np",
                prior_num_inference_steps=settings["prior_steps"],
                decoder_num_inference_steps=settings["decoder_steps"],
                super_res_num_inference_steps=settings["super_res_steps"],
                prior_guidance_scale=settings["prior_guidance"],
                decoder_guidance_scale=settings["decoder_guidance"]).images)
        return torch.from_numpy(np.concatenate(out)).permute(0, 3, 1, 2).float() * 2 - 1


class Engine:
    """Pictures by the engine's command line, one run a prompt."""

    def __init__(self, folder, binary):
        self.folder, self.binary = folder, binary

    def draw(self, prompts, seed, settings):
        flags = [f"--{name.replace('_', '-')}={settings[name]}" for name in SETTINGS]
        out = []
        with tempfile.TemporaryDirectory() as scratch:
            for prompt in prompts:
                png = Path(scratch) / "picture.png"
                what = ["-m", str(self.folder), "-p", prompt, "-s", str(seed), "-o", str(png)]
                done = subprocess.run([self.binary, "run", *what, *flags], capture_output=True, text=True)
                if done.returncode:
                    raise SystemExit(f"{prompt!r}: {done.stderr}")
                out.append(torch.from_numpy(np.array(Image.open(png).convert("RGB"))))
        return torch.stack(out).permute(0, 3, 1, 2).float() / 127.5 - 1


class Judge:
    """The exported CLIP over all captions."""

    def __init__(self, folder, data, preset):
        from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection
        self.tokenizer = models.Tokenizer(folder / "tokenizer", preset["context"], "cpu")
        self.text = models.load_part(CLIPTextModelWithProjection, folder / "text_encoder", "cpu")
        self.image = models.load_part(CLIPVisionModelWithProjection, folder / "image_encoder", "cpu")
        self.pictures = Pictures(data, preset, models.VISION_SIZE, "cpu", variants=1)
        self.cells = self.pictures.cells() + self.pictures.cells(trained=False)
        self.texts = [self.pictures.canonical(*cell) for cell in self.cells]
        self.number = {cell: i for i, cell in enumerate(self.cells)}
        self.directions = self.embed(self.texts)

    @torch.no_grad()
    def embed(self, texts):
        ids = self.tokenizer(texts)[0]
        return torch.cat([F.normalize(self.text(input_ids=part).text_embeds, dim=-1) for part in ids.split(256)])

    @torch.no_grad()
    def ranks(self, pictures, cells, texts=None):
        """How many captions fit each picture better than its own, which `texts` may word differently."""
        x = F.interpolate(pictures, size=(models.VISION_SIZE,) * 2, mode="bilinear", antialias=True)
        seen = torch.cat([F.normalize(self.image(pixel_values=part).image_embeds, dim=-1) for part in x.split(64)])
        scores = seen @ self.directions.T
        own = torch.tensor([self.number[c] for c in cells])
        mine = (seen * self.embed(texts)).sum(1) if texts else scores.gather(1, own[:, None])[:, 0]
        others = scores.scatter(1, own[:, None], -2)
        return (others > mine[:, None]).sum(1)

    def truth(self, cells):
        row, colour = (torch.tensor(t) for t in zip(*cells))
        return self.pictures.rgb(row, colour, torch.zeros_like(row))

    def errors(self, pictures, cells):
        """Mean squared distance to the training pictures, and that of their mean picture."""
        truth = self.truth(cells)
        x = F.interpolate(pictures, size=truth.shape[-2:], mode="bilinear", antialias=True)
        mean = truth.mean(0, keepdim=True)
        return (x - truth).square().mean().item(), (mean - truth).square().mean().item()

    def cell_of(self, prompt):
        """The white cell of the thing that a prompt names."""
        for row in default_style_rows(self.pictures):
            names = self.pictures.names.of[self.pictures.rows[row][0]]
            if prompt in [captions.with_article(n) for n in names]:
                return row, 0
        raise SystemExit(f"no trained thing is called {prompt!r}")


def shares(ranks):
    return {"top1": round((ranks == 0).float().mean().item(), 3), "top5": round((ranks < 5).float().mean().item(), 3)}


def save_sheet(pictures, columns, path, cell=96):
    """As a palette picture: a third of the size, and no difference to see."""
    small = F.interpolate(pictures, size=(cell, cell), mode="bilinear", antialias=True)
    page = sheets.page(F.pad(small, (2, 2, 2, 2), value=1.0), columns)
    page.quantize(256, Image.Quantize.MEDIANCUT).save(path, optimize=True)


def compare(judge, maker, prompts, cells, defaults, out):
    """What steps and guidance are worth: time, ranks and distances."""
    rows = []
    for steps in (25, 12, 8, 6):
        for guidance in ((1.0, 1.0), (1.5, 1.5), (2.0, 2.0)):
            settings = {**defaults, "decoder_steps": steps}
            settings["prior_guidance"], settings["decoder_guidance"] = guidance
            start = time.perf_counter()
            drawn = maker.draw(prompts, 0, settings)
            seconds = (time.perf_counter() - start) / len(prompts)
            row = {"decoder_steps": steps, "guidance": guidance, "seconds": round(seconds, 3),
                   **shares(judge.ranks(drawn, cells, prompts)), "error": round(judge.errors(drawn, cells)[0], 4)}
            print(json.dumps(row), flush=True)
            rows.append(row)
            save_sheet(drawn, 8, out / f"compare_{steps}_{guidance[1]}.png")
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--preset", choices=models.PRESETS, default="cpu")
    parser.add_argument("--out", type=Path, default=Path("report"))
    parser.add_argument("--engine", help="the engine's binary, to draw with it in place of diffusers")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--count", type=int, default=96, help="pictures of the two larger measurements")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compare", action="store_true", help="measure step counts and guidance instead")
    for name in SETTINGS:
        parser.add_argument(f"--{name.replace('_', '-')}", type=float if "guidance" in name else int)
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    settings = models.read_defaults(a.model)
    settings.update({name: getattr(a, name) for name in SETTINGS if getattr(a, name) is not None})
    maker = Engine(a.model, a.engine) if a.engine else Diffusers(a.model, a.device)
    judge = Judge(a.model, a.data, models.PRESETS[a.preset])
    rng = random.Random(a.seed)
    prompts = captions.prompts()
    cells = [judge.cell_of(p) for p in prompts]
    if a.compare:
        rows = compare(judge, maker, prompts, cells, settings, a.out)
        (a.out / "compare.json").write_text(json.dumps(rows, indent=1))
        return

    start = time.perf_counter()
    drawn = maker.draw(prompts, a.seed, settings)
    seconds = (time.perf_counter() - start) / len(prompts)
    save_sheet(drawn, 8, a.out / "prompts.png")
    ranks = judge.ranks(drawn, cells, prompts)
    error, mean_error = judge.errors(drawn, cells)
    report = {
        "settings": settings, "captions": len(judge.texts), "seconds_per_picture": round(seconds, 3),
        "prompts": {**shares(ranks), "in_top5": int((ranks < 5).sum()), "error": round(error, 4),
                    "error_of_mean_picture": round(mean_error, 4),
                    "missed": {p: int(r) for p, r in zip(prompts, ranks) if r >= 5}},
    }
    trained = [c for c in judge.pictures.cells() if c[1] == 0]
    trained = rng.sample(trained, min(a.count, len(trained)))
    report["training_pictures"] = shares(judge.ranks(judge.truth(trained), trained))
    drawn = maker.draw([judge.pictures.canonical(*c) for c in trained], a.seed, settings)
    report["trained_things"] = {
        **shares(judge.ranks(drawn, trained)), "error": round(judge.errors(drawn, trained)[0], 4)}
    unseen = judge.pictures.cells(trained=False)
    unseen = rng.sample(unseen, min(a.count, len(unseen)))
    drawn = maker.draw([judge.pictures.canonical(*c) for c in unseen], a.seed, settings)
    save_sheet(drawn, 12, a.out / "compositions.png", 64)
    report["held_out_compositions"] = {
        "pairs": len(unseen), **shares(judge.ranks(drawn, unseen)), "error": round(judge.errors(drawn, unseen)[0], 4)}
    few = prompts[::8]
    seeds = torch.stack([maker.draw(few, a.seed + k, settings) for k in range(4)])   # [seed, prompt, ...]
    report["spread_over_seeds"] = round(seeds.std(0).mean().item(), 4)
    save_sheet(seeds.flatten(0, 1), len(few), a.out / "seeds.png", 64)
    (a.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
