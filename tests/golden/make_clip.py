#!/usr/bin/env python3
"""Makes the reference data for zero-shot classification with the original library.

    pip install -r tests/golden/requirements.txt
    python tests/golden/make_clip.py

clip is a tiny CLIPModel with random weights in f16, as transformers saves one, of which the original ran the same
values in f32; its two towers project to another width than each says for itself, as published ones do. Written beside
this file: clip.safetensors with the tensors

    labels, templates               JSON
    picture/K                       pictures [H, W, 3]
    NAME/texts                      embeddings of the labels in the first template [L, D]
    NAME/pictures                   embeddings of the pictures [N, D]
    NAME/logits                     of each picture for each label, over all templates [N, L]
    NAME/logits_of_one              with the first template alone, where that is CLIPModel's own logits_per_image

for NAME clip, tiny and kandinsky, the last two with the factor 100.
"""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionModelWithProjection,
)

HERE = Path(__file__).parent
LABELS = ["cat", "dog", "a red car", "the sea at night", "7 apples"]
TEMPLATES = ["a photo of {}", "{}!", "a drawing of {}, in colour"]
SCALE = 3.2


def pictures():
    y, x = np.mgrid[0:60, 0:90].astype(np.float32)
    waves = np.stack([x * 2.8, y * 4, 128 + 100 * np.sin(x / 9) * np.cos(y / 7)], -1)
    noise = np.random.default_rng(3).integers(0, 256, (31, 17, 3))
    small = np.full((5, 9, 3), (200, 30, 40))
    return [np.ascontiguousarray(p).round().astype(np.uint8) for p in (waves, noise, small)]


def write_clip(folder):
    """A whole CLIP, with the tokenizer of the tiny checkpoint."""
    torch.manual_seed(5)
    tokenizer = CLIPTokenizer.from_pretrained(HERE / "tiny/tokenizer")
    text = dict(
        hidden_size=16, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2, vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id)
    vision = dict(
        hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=3, image_size=28, patch_size=7)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            noise = torch.randn_like(value)
            is_norm = "norm" in name and name.endswith("weight")
            value.copy_(noise * 1.5 / value[0].numel() ** 0.5 if value.dim() > 1 else is_norm + 0.2 * noise)
        model.text_model.embeddings.token_embedding.weight.mul_(4)
        model.logit_scale.fill_(SCALE)
    model.half().save_pretrained(folder)
    # Of an older release: text and vision say their own width, which CLIPModel does not read.
    side = {"height": 28, "width": 28}
    CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size=side).save_pretrained(folder)
    for file in (HERE / "tiny/tokenizer").iterdir():
        shutil.copy(file, folder)


def towers(folder, text, image, tokenizer, processor):
    both = [CLIPTextModelWithProjection, CLIPVisionModelWithProjection]
    text, image = [c.from_pretrained(folder / name, torch_dtype=torch.float32) for c, name in zip(both, (text, image))]
    return (
        lambda ids: text(input_ids=ids).text_embeds,
        lambda pixels: image(pixel_values=pixels).image_embeds,
        CLIPTokenizer.from_pretrained(folder / tokenizer),
        CLIPImageProcessorPil.from_pretrained(folder / processor),
    )


@torch.no_grad()
def main():
    torch.set_num_threads(1)
    tensors = {"labels": LABELS, "templates": TEMPLATES}
    tensors = {k: torch.tensor(list(json.dumps(v).encode()), dtype=torch.uint8) for k, v in tensors.items()}
    given = pictures()
    tensors |= {f"picture/{k}": torch.from_numpy(picture) for k, picture in enumerate(given)}
    write_clip(HERE / "clip")
    clip = CLIPModel.from_pretrained(HERE / "clip", torch_dtype=torch.float32)
    whole = (
        lambda ids: clip.get_text_features(input_ids=ids).pooler_output,
        lambda pixels: clip.get_image_features(pixel_values=pixels).pooler_output,
        CLIPTokenizer.from_pretrained(HERE / "clip"),
        CLIPImageProcessorPil.from_pretrained(HERE / "clip"),
    )
    scale = math.exp(float(torch.tensor(SCALE).half()))
    parts = {
        "clip": (*whole, scale),
        "tiny": (*towers(HERE / "tiny", "text_encoder", "image_encoder", "tokenizer", "feature_extractor"), 100.0),
        "kandinsky": (*towers(HERE / "kandinsky-2-2/prior", "text_encoder", "image_encoder", "tokenizer",
                              "image_processor"), 100.0),
    }
    for name, (text, image, tokenizer, processor, scale) in parts.items():
        def encode(template):
            texts = [template.format(label) for label in LABELS]
            return tokenizer(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        pixels = processor([Image.fromarray(p) for p in given], return_tensors="pt").pixel_values
        seen = image(pixels)
        unit = lambda x: x / x.norm(dim=-1, keepdim=True)
        directions = unit(sum(unit(text(encode(template))) for template in TEMPLATES) / len(TEMPLATES))
        tensors[f"{name}/texts"] = text(encode(TEMPLATES[0])).contiguous()
        tensors[f"{name}/pictures"] = seen.contiguous()
        tensors[f"{name}/logits"] = (scale * unit(seen) @ directions.T).contiguous()
        if name == "clip":
            both = clip(input_ids=encode(TEMPLATES[0]), pixel_values=pixels)
            tensors["clip/logits_of_one"] = both.logits_per_image.contiguous()
        print(name, tensors[f"{name}/logits"].numpy().round(2).tolist())
    save_file(tensors, HERE / "clip.safetensors")


main()
