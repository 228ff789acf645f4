#!/bin/sh
# diffusers' KandinskyV22Img2ImgPipeline: a picture that is not square comes out on its side.
#
# Expected  A call with height 64 and width 128 gives a picture of 64 rows and 128 columns, as KandinskyV22Pipeline and
#           KandinskyV22InpaintPipeline do with the same parts.
# Happens   It has 128 rows and 64 columns, and shows the given picture squeezed into that. The pipeline hands width and
#           height to its image processor in the other order, and takes the size of the latents from what comes back. Nothing
#           is reported; squares do not show it, and the defaults are squares.
# Versions  diffusers 0.42.1, torch 2.15.0, Pillow 13.0.0 on CPython 3.11
# Date      2026-11-28
# Read      src/diffusers/pipelines/kandinsky2_2/pipeline_kandinsky2_2_img2img.py (the call of image_processor.preprocess in
#           __call__); the pipeline with a hint has the same line
# Here      src/pipeline/kandinsky_22 keeps the sides as they are given
#
# Needs Python 3.11 with venv, and pip; torch is a download of several GB on Linux. Exits with 1 if anything is not as above.
set -eu
python=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 130' INT TERM
"$python" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.15.0 diffusers==0.42.1 transformers==5.23.0 pillow==13.0.0

"$folder/venv/bin/python" - <<'PYTHON'
import sys

import torch
from diffusers import (
    DDPMScheduler,
    KandinskyV22Img2ImgPipeline,
    KandinskyV22InpaintPipeline,
    KandinskyV22Pipeline,
    UNet2DConditionModel,
    VQModel,
)
from PIL import Image

torch.manual_seed(0)
scheduler = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="linear", steps_offset=1)
movq = VQModel(
    block_out_channels=[32, 32, 32, 32], down_block_types=["DownEncoderBlock2D"] * 4, up_block_types=["UpDecoderBlock2D"] * 4,
    latent_channels=4, layers_per_block=1, norm_num_groups=8, norm_type="spatial", num_vq_embeddings=8, vq_embed_dim=4,
)


def unet(channels):
    return UNet2DConditionModel(
        in_channels=channels, out_channels=8, block_out_channels=[16, 16], layers_per_block=1, norm_num_groups=4,
        down_block_types=["ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"],
        up_block_types=["SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"], mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        attention_head_dim=8, cross_attention_dim=16, addition_embed_type="image", encoder_hid_dim=16,
        encoder_hid_dim_type="image_proj", resnet_time_scale_shift="scale_shift",
    )


picture = Image.new("RGB", (128, 64), "red")
mask = Image.new("L", (128, 64), 255)
cases = {
    "from noise": (KandinskyV22Pipeline, unet(4), {}),
    "inpainting": (KandinskyV22InpaintPipeline, unet(9), {"image": picture, "mask_image": mask}),
    "image to image": (KandinskyV22Img2ImgPipeline, unet(4), {"image": picture, "strength": 0.9}),
}
found = {}
for name, (kind, network, given) in cases.items():
    pipeline = kind(unet=network, scheduler=scheduler, movq=movq)
    pipeline.set_progress_bar_config(disable=True)
    embedding = torch.zeros(1, 16)
    made = pipeline(
        image_embeds=embedding, negative_image_embeds=embedding, height=64, width=128, num_inference_steps=2,
        output_type="np", **given,
    ).images
    found[name] = made.shape[1:3]
    print(f"{name}: height 64 and width 128 gave {made.shape[1]} rows and {made.shape[2]} columns")
sys.exit(found != {"from noise": (64, 128), "inpainting": (64, 128), "image to image": (128, 64)})
PYTHON
