#!/bin/sh
# diffusers' UNet2DConditionModel: a list of head widths is read from the wrong end on the way up.
#
# Expected  attention_head_dim may be a list with an entry for each level. On the way up, the levels come in the other order,
#           and everything else that is given for each level (widths, layers, number of heads) is read from the end: a level
#           has the same head width on both ways.
# Happens   So it is for CrossAttn*Block2D, where the entry is the number of heads. SimpleCrossAttnUpBlock2D, as unCLIP's and
#           Kandinsky's decoders have it, takes it as a width, and takes it from the front: widths [2, 4, 8] are 2, 4, 8 on
#           the way down and 2, 4, 8 again on the way up, where the deepest level comes first. Nothing is reported, and the
#           weights have the same shapes either way, so a reader of such a checkpoint that does the obvious gets another
#           picture.
# Versions  diffusers 0.42.1, torch 2.15.0 on CPython 3.11
# Date      2026-11-28
# Read      src/diffusers/models/unets/unet_2d_condition.py (the loop over up_block_types in __init__)
# Here      src/model/unet.rs reads the list as diffusers does
#
# Needs Python 3.11 with venv, and pip; torch is a download of several GB on Linux. Exits with 1 if anything is not as above.
set -eu
python=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 130' INT TERM
"$python" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.15.0 diffusers==0.42.1 transformers==5.23.0

"$folder/venv/bin/python" - <<'PYTHON'
import sys

from diffusers import UNet2DConditionModel

GIVEN = [2, 4, 8]


def widths(kind, count):
    """What the entries of a network's levels became: widths of heads, or their number."""
    model = UNet2DConditionModel(
        sample_size=8, block_out_channels=[8, 16, 32], layers_per_block=1, cross_attention_dim=8, norm_num_groups=4,
        down_block_types=[f"{kind}CrossAttnDownBlock2D"] * 3, up_block_types=[f"{kind}CrossAttnUpBlock2D"] * 3,
        mid_block_type=f"UNetMidBlock2D{kind}CrossAttn", attention_head_dim=GIVEN,
    )

    def of(block):
        attention = block.attentions[0]
        attention = attention if hasattr(attention, "heads") else attention.transformer_blocks[0].attn1
        return attention.heads if count else attention.to_q.out_features // attention.heads

    return [of(block) for block in model.down_blocks], [of(block) for block in model.up_blocks]


found = {"CrossAttn, heads": widths("", True), "SimpleCrossAttn, widths": widths("Simple", False)}
for name, (down, up) in found.items():
    print(f"{name}: attention_head_dim {GIVEN} is {down} on the way down, {up} on the way up")
expected = {"CrossAttn, heads": (GIVEN, GIVEN[::-1]), "SimpleCrossAttn, widths": (GIVEN, GIVEN)}
sys.exit(found != expected)
PYTHON
