"""Stage `export`: every part as float16 safetensors in diffusers' layout, with the schedulers and defaults.

Takes what is there: a running stage's last checkpoint will do, and parts that this work folder never trained come from
`--init`.
"""
import json
import shutil

import torch

import captions
import models
from trainer import load_averaged

# Best picture per second; measured with evaluate.py --compare.
DEFAULTS = {
    "prior_steps": 10, "decoder_steps": 12, "super_res_steps": 3, "prior_guidance": 1.5, "decoder_guidance": 1.5,
}
LARGEST = 16e6   # bytes of one weight file
TOKENIZER_FILES = ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json")


def trained(options, preset):
    """Stage -> its networks by checkpoint key and by folder."""
    unet, text_proj = models.decoder(preset)
    return {
        "prior": [("prior", "prior", models.prior(preset))],
        "decoder": [("unet", "decoder", unet), ("text_proj", "text_proj", text_proj)],
        "super_res": [("first", "super_res_first", models.super_res(preset)),
                      ("last", "super_res_last", models.super_res(preset))],
    }


def save(module, folder):
    shutil.rmtree(folder, ignore_errors=True)
    module.to("cpu", torch.float16).save_pretrained(folder, safe_serialization=True)


def train(options, preset):
    from diffusers import UnCLIPScheduler
    from transformers import CLIPImageProcessor, CLIPTextModelWithProjection, CLIPVisionModelWithProjection
    out, work = options.out, options.work
    towers = {"text_encoder": CLIPTextModelWithProjection, "image_encoder": CLIPVisionModelWithProjection}
    for name, cls in towers.items():
        save(models.load_part(cls, work / name, "cpu"), out / name)
    for stage, parts in trained(options, preset).items():
        if (work / f"{stage}.pt").exists():
            load_averaged(work, stage, "cpu", **{key: module for key, _, module in parts})
        elif options.init:
            models.start_from(options.init, **{folder: module for _, folder, module in parts})
        else:
            print(f"export: {stage} is not trained; its weights are random")
        for key, folder, module in parts:
            if key == "unet":
                models.pin_variance(module)
            save(module, out / folder)
    (out / "tokenizer").mkdir(parents=True, exist_ok=True)
    for name in TOKENIZER_FILES:
        shutil.copy(work / "tokenizer" / name, out / "tokenizer" / name)
    size = models.VISION_SIZE
    CLIPImageProcessor(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}, image_mean=[0.5] * 3,
        image_std=[0.5] * 3).save_pretrained(out / "feature_extractor")
    schedulers = {
        "prior_scheduler": dict(variance_type="fixed_small_log", clip_sample_range=5.0),
        "decoder_scheduler": dict(variance_type="learned_range"),
        "super_res_scheduler": dict(variance_type="fixed_small_log"),
    }
    for name, settings in schedulers.items():
        UnCLIPScheduler(prediction_type="sample", **settings).save_pretrained(out / name)
    # What it knows, each thing with its names, the commonest first.
    things = [", ".join(name.removeprefix("~") for name in names) for names in captions.everyday().values()]
    index = {
        "_class_name": "UnCLIPPipeline", "_engine_defaults": DEFAULTS,
        "_engine_subjects": things[:preset["concepts"] or None],
        "decoder": ["diffusers", "UNet2DConditionModel"], "decoder_scheduler": ["diffusers", "UnCLIPScheduler"],
        "prior": ["diffusers", "PriorTransformer"], "prior_scheduler": ["diffusers", "UnCLIPScheduler"],
        "super_res_first": ["diffusers", "UNet2DModel"], "super_res_last": ["diffusers", "UNet2DModel"],
        "super_res_scheduler": ["diffusers", "UnCLIPScheduler"],
        "text_encoder": ["transformers", "CLIPTextModelWithProjection"],
        "text_proj": ["unclip", "UnCLIPTextProjModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
    }
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    files = [f for f in out.rglob("*") if f.is_file()]
    largest = max(files, key=lambda f: f.stat().st_size)
    total = sum(f.stat().st_size for f in files)
    size = largest.stat().st_size
    print(f"export: {out}, {total / 1e6:.2f} MB; the largest file, {largest.relative_to(out)}, {size / 1e6:.2f} MB")
    assert size < LARGEST
    return True
