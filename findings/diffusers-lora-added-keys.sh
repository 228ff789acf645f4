#!/bin/sh
# diffusers' load_lora_adapter: files of attention processors lose their added keys and values without a word.
#
# Expected  Attention with added keys (unCLIP's and Kandinsky's decoders) has six layers that an adapter may change: to_q, to_k,
#           to_v, to_out, add_k_proj, add_v_proj. The processors of diffusers 0.13 to 0.29 had a pair for each
#           (`attn.processor.add_k_proj_lora.down.weight`). Either all six are applied, or what is not is reported.
# Happens   Names of processors are turned into peft's by a table that knows the first four. The pairs of add_k_proj and
#           add_v_proj are left over and go unnoticed: no error, no warning, a third of the adapter gone. Under peft's own names
#           all six are applied.
# Versions  diffusers 0.42.1, peft 0.21.2, torch 2.15.0 on CPython 3.11
# Date      2026-11-28
# Read      src/diffusers/utils/state_dict_utils.py (UNET_TO_DIFFUSERS), src/diffusers/loaders/peft.py
# Here      src/weights/adapter looks every name up among the checkpoint's own tensors and applies all six
#
# Needs Python 3.11 with venv, and pip; torch is a download of several GB on Linux. Exits with 1 if anything is not as above.
set -eu
python=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 130' INT TERM
"$python" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.15.0 diffusers==0.42.1 transformers==5.23.0 peft==0.21.2

"$folder/venv/bin/python" - <<'PYTHON'
import io
import logging
import sys
import warnings

import torch
from diffusers import UNet2DConditionModel

PAIRS = ("to_q", "to_k", "to_v", "to_out", "add_k_proj", "add_v_proj")


def network():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=[16], layers_per_block=1, cross_attention_dim=8, norm_num_groups=4,
        down_block_types=["SimpleCrossAttnDownBlock2D"], up_block_types=["SimpleCrossAttnUpBlock2D"],
        mid_block_type="UNetMidBlock2DSimpleCrossAttn", attention_head_dim=8,
    )


def applied(name, suffixes, prefix):
    """Which of the six layers of an attention a file with all six changes, and what was said."""
    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logging.getLogger("diffusers").addHandler(handler)
    model = network()
    attention = model.mid_block.attentions[0]
    tensors = {}
    for pair in PAIRS:
        layer = attention.to_out[0] if pair == "to_out" else getattr(attention, pair)
        outputs, inputs = layer.weight.shape
        stem = name(pair)
        tensors[stem + suffixes[0]], tensors[stem + suffixes[1]] = torch.ones(2, inputs), torch.ones(outputs, 2)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.load_lora_adapter(tensors, prefix=prefix, adapter_name="a")
    attention = model.mid_block.attentions[0]
    has = lambda pair: hasattr(attention.to_out[0] if pair == "to_out" else getattr(attention, pair), "lora_A")
    texts = [line for line in said.getvalue().splitlines() if line] + [str(w.message) for w in caught]
    return [pair for pair in PAIRS if has(pair)], [text for text in texts if "add_" in text]


old = applied(lambda pair: f"mid_block.attentions.0.processor.{pair}_lora", (".down.weight", ".up.weight"), None)
now = applied(lambda pair: "unet.mid_block.attentions.0." + ("to_out.0" if pair == "to_out" else pair), (".lora_A.weight", ".lora_B.weight"), "unet")
print("names of processors:", *old)
print("names of peft:", *now)
sys.exit((old, now) != ((list(PAIRS[:4]), []), (list(PAIRS), [])))
PYTHON
