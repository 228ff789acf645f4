#!/usr/bin/env python3
"""Trains the small unCLIP model on the pictures of prepare_data.py.

  train.py --preset cpu --data data --work run             every stage, then the export and its evaluation
  train.py --preset cpu --data data --work run decoder     one or more stages by name

A stage stops when its share of the budget is used up; the same command goes on after an interruption.
"""
import argparse
import importlib
import os
import shutil
import sys
from pathlib import Path

STAGES = ["tokenizer", "clip", "prior", "decoder", "super_res", "export"]
# Minutes of each stage: two CPU cores (about two and a half hours), one data-centre GPU (planned for 25 minutes).
MINUTES = {
    "cpu": {"clip": 8, "prior": 10, "decoder": 90, "super_res": 12},
    "gpu": {"clip": 3, "prior": 2, "decoder": 13, "super_res": 4},
}


def options():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="STAGE", help=f"of {', '.join(STAGES)}; all by default")
    parser.add_argument("--preset", choices=MINUTES, default="cpu")
    parser.add_argument("--data", type=Path, default=Path("data"))
    parser.add_argument("--work", type=Path, default=Path("run"), help="checkpoints and sheets")
    parser.add_argument("--out", type=Path, help="folder of the exported model (default: WORK/model)")
    parser.add_argument("--init", type=Path, help="exported model to start from where there is no checkpoint")
    parser.add_argument("--minutes", type=float, help="budget of each named stage in place of the preset's")
    parser.add_argument("--steps", type=int, default=0, help="budget in steps in place of minutes")
    parser.add_argument("--stop-after", type=float, default=0, help="minutes until this call stops, to be resumed")
    parser.add_argument("--batch", type=int, default=0, help="pictures a step in place of the stage's own")
    parser.add_argument("--lr-scale", type=float, default=1.0, help="factor on every learning rate")
    parser.add_argument("--concepts", type=int, help="learn only so many of everyday.txt, for a quick trial")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--device", help="cuda where there is one, else cpu")
    parser.add_argument("--float32", action="store_true", help="no bfloat16: for CPUs without instructions for it")
    parser.add_argument("--compile", action="store_true", help="compile the decoder; pays from some thousand steps on")
    parser.add_argument("--seed", type=int, default=0)
    a = parser.parse_args()
    unknown = set(a.stages) - set(STAGES)
    if unknown:
        parser.error(f"no such stage: {', '.join(sorted(unknown))}")
    a.out = a.out or a.work / "model"
    minutes = MINUTES[a.preset]
    a.minutes = dict.fromkeys(minutes, a.minutes) if a.minutes else minutes
    return a


def main():
    a = options()
    if a.threads:   # before torch is loaded: OpenMP reads it once
        os.environ["OMP_NUM_THREADS"] = str(a.threads)
    import torch

    import models
    if a.threads:
        torch.set_num_threads(a.threads)
    a.device = a.device or ("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")
    a.work.mkdir(parents=True, exist_ok=True)
    stages = a.stages or STAGES
    if a.init:   # later stages have learnt that model's embeddings, so its tokenizer and CLIP stay as they are
        for name in ("tokenizer", "text_encoder", "image_encoder"):
            if not (a.work / name).exists():
                shutil.copytree(a.init / name, a.work / name)
        stages = [s for s in stages if a.stages or s not in ("tokenizer", "clip")]
    preset = models.PRESETS[a.preset]
    preset["concepts"] = a.concepts or preset["concepts"]
    for stage in stages:
        torch.manual_seed(a.seed)
        if not importlib.import_module(stage).train(a, preset):
            sys.exit(3)   # stopped early; the same command goes on


if __name__ == "__main__":
    main()
