#!/bin/sh
# LyCORIS: merging a LoHa or a LoKr into a layer applies its scale twice.
#
# Expected  A layer with an adapter gives W x + alpha / r * D x, and get_merged_weight gives W + alpha / r * D: the merged layer
#           computes what the adapted one did. So it is for LoCon.
# Happens   LoHa's and LoKr's get_weight multiplies by alpha / r, and get_diff_weight, on which merging stands, multiplies
#           what that gives by it again. Merged with alpha = 2 r, an adapter acts twice as strongly as it was trained; with
#           alpha = r, as LyCORIS' examples often have it, nothing shows.
# Versions  lycoris-lora 4.1.3, torch 2.15.0 on CPython 3.11
# Date      2026-11-28
# Read      lycoris/modules/loha.py, lycoris/modules/lokr.py (get_weight, get_diff_weight, get_merged_weight)
# Here      src/weights/adapter does what the forward pass does, which trained the file
#
# Needs Python 3.11 with venv, and pip; torch is a download of several GB on Linux. Exits with 1 if anything is not as above.
set -eu
python=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 130' INT TERM
"$python" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.15.0 numpy==2.4.6
"$folder/venv/bin/pip" install -q --no-deps lycoris-lora==4.1.3 safetensors==0.8.0 einops==0.8.2 toml==0.10.2 tqdm==4.70.1

"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from lycoris.modules.locon import LoConModule
from lycoris.modules.loha import LohaModule
from lycoris.modules.lokr import LokrModule

RANK, ALPHA = 4, 8.0


def weights(kind, **options):
    """How far the merged weight moves from the layer's, over how far the forward pass does."""
    torch.manual_seed(0)
    layer = torch.nn.Linear(64, 64, bias=False)
    module = kind("net", layer, 1.0, RANK, ALPHA, **options).eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        forward = module(torch.eye(64)).T - layer.weight
        merged = module.get_merged_weight(1.0, (64, 64))[0] - layer.weight
    return (merged.norm() / forward.norm()).item()


ratios = {kind.__name__: weights(kind, **options) for kind, options in ((LoConModule, {}), (LohaModule, {}), (LokrModule, {"factor": 2}))}
print(f"alpha / rank is {ALPHA / RANK}; merged over forward:", {name: round(ratio, 3) for name, ratio in ratios.items()})
expected = {"LoConModule": 1.0, "LohaModule": ALPHA / RANK, "LokrModule": ALPHA / RANK}
sys.exit(any(abs(ratios[name] - ratio) > 1e-3 for name, ratio in expected.items()))
PYTHON
