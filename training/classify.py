#!/usr/bin/env python3
"""How often `engine classify` knows the default model's own things, in pictures as training never saw them.

  classify.py --engine engine --data data --out report

`data` is what prepare_data.py writes. Every one of the 172 things is drawn in the model's style and altered, once for
each row of the table below; the engine is then asked which of all 172 it is. Training moved, turned and tinted its
copies at random, put them on white and six colours, softened half of them by 2 and added noise of at most 0.1; the seed
of `varied` is not one of its own, and all else goes beyond it. Writes report/classify.json.
"""
import argparse
import io
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

import captions
import models
from data import Pictures, vary

SEED = 99


def over(pictures, background="white"):
    """[N, 4, H, W] premultiplied RGBA in 0..255 over a colour, [N, 3, H, W] in 0..1."""
    colour = torch.tensor(captions.BACKGROUNDS[background], dtype=torch.float32)[None, :, None, None]
    return (pictures[:, :3] + (1 - pictures[:, 3:] / 255) * colour) / 255


def jpeg(pictures, quality):
    def once(picture):
        file = io.BytesIO()
        to_image(picture).save(file, "JPEG", quality=quality)
        return torch.from_numpy(np.array(Image.open(file))).permute(2, 0, 1) / 255
    return torch.stack([once(picture) for picture in pictures])


def to_image(picture):
    return Image.fromarray((picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy())


def alterations(pictures):
    generator = torch.Generator().manual_seed(SEED)
    plain = over(pictures)
    side = pictures.shape[-1]
    hidden = plain.clone()
    hidden[:, :, 3 * side // 4:] = 0.5
    shrunk = F.interpolate(F.avg_pool2d(plain, 4), scale_factor=4, mode="bilinear")
    return {
        "as drawn": plain,
        "varied: moved, turned, tinted by new draws": over(vary(pictures, generator)),
        "JPEG of quality 10": jpeg(plain, 10),
        "softened by 4": shrunk,
        "noise of 0.2 in -1..1": plain + 0.1 * torch.randn(plain.shape, generator=generator),
        "the lowest quarter hidden": hidden,
        "mirrored": over(pictures.flip(-1)),
        "on pink, a colour never trained": over(pictures, "pink"),
        "varied, on green": over(vary(pictures, generator), "green"),
        "without colour": plain.mean(1, keepdim=True).expand_as(plain),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="engine")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--model", type=Path, default=Path(__file__).parent.parent / "models/default")
    parser.add_argument("--out", type=Path, default=Path("report"))
    parser.add_argument("--flags", nargs="*", default=[], help="more flags of engine classify, without their dashes")
    a = parser.parse_args()
    things = json.loads((a.model / "model_index.json").read_text())["_engine_subjects"]
    labels = [names.split(", ")[0] for names in things]
    pictures = Pictures(a.data, models.PRESETS["cpu"], models.VISION_SIZE, "cpu", variants=1)
    names = [pictures.names.of[concept][0].removeprefix("~") for concept, _ in pictures.rows]
    drawn = pictures.pics[[names.index(label) for label in labels], 0].float()
    report = {}
    for name, altered in alterations(drawn).items():
        with tempfile.TemporaryDirectory() as folder:
            for k, picture in enumerate(altered):
                to_image(picture).save(f"{folder}/{k:03d}.png")
            command = [a.engine, "classify", "-m", str(a.model), "-i", folder, "--json", "--top", "5", "-q"]
            command += [f"--{flag}" for flag in a.flags]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
        found = [[score["label"] for score in json.loads(line)["scores"]] for line in done.stdout.splitlines()]
        rank = [best.index(label) if label in best else 5 for best, label in zip(found, labels, strict=True)]
        report[name] = {f"top{n}": round(sum(r < n for r in rank) / len(rank), 3) for n in (1, 5)}
        print(f"{name:44} top-1 {report[name]['top1']:6.1%}  top-5 {report[name]['top5']:6.1%}", flush=True)
    a.out.mkdir(parents=True, exist_ok=True)
    (a.out / "classify.json").write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
