#!/usr/bin/env python3
"""Makes pictures of a tiny Kandinsky 2.1 with the original library, and keeps what its networks are given and give.

    pip install -r tests/golden/requirements.txt
    python tests/golden/make_kandinsky_21.py

kandinsky-2-1/prior, decoder and inpaint are checkpoints with the structure of the published ones, reduced widths and random
weights in f16, of which the original ran the same values in f32; the autoencoder is that of kandinsky-2-2/decoder, the
decoder's text encoder and tokenizer serve inpaint, too. Written there: decoder/tokenizer/tokenizer.json, a vocabulary of a
hundred pieces with a table of a few normalised characters, and run.safetensors with

    tokens/texts                           lines of a text, and of each tokens/{ids, mask} [N, 77]
    words/{ids, mask, embeds, hidden}      the decoder's text encoder: the prompt, then the negative one
    NAME/timesteps                         of the decoder's steps, for each of prompt, redraw and inpaint
    NAME/{image_embeds, text_embeds, hidden}      what they see, two rows: the unconditional half first
    NAME/known                             of inpaint the latents that stay and their map
    NAME/step_K/{x_t, output, x}           the network's output for both halves, without variance, and the step's
    NAME/pictures [N, H, W, 3]             in bytes, also of negative, variation and said
    given/{photo, wide, mask}              pictures that go in
"""

import base64
import json
import struct
from pathlib import Path

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    KandinskyImg2ImgPipeline,
    KandinskyInpaintPipeline,
    KandinskyPipeline,
    KandinskyPriorPipeline,
    UNet2DConditionModel,
    VQModel,
)
from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import XLMRobertaTokenizerFast

HERE = Path(__file__).parent / "kandinsky-2-1"
STEPS = {"prior": 4, "decoder": 3}
TEXTS = [
    "a red fox", "", "  A  red\tFOX, ", "\uff41 \ufb01sh", "zebra crossing 12", "<s> a <mask>b</s>", "r\u00e9d \U0001f98a fox",
    "a fox and a dog and " * 16,
]


def table(rules):
    """SentencePiece's compiled form of rules: a double array with a block of 256 for each node, and the replacements."""
    root = {}
    for source in rules:
        node = root
        for byte in source.encode():
            node = node.setdefault(byte, {})
        node[None] = rules[source]
    nodes, replacements, units = [(root, 0)], b"", {0: 256 << 10}
    blocks = 2
    while nodes:
        node, block = nodes.pop()
        base = 256 * (block + 1)
        for byte, child in node.items():
            if byte is None:
                units[base] = (1 << 31) | len(replacements)
                replacements += child.encode() + b"\0"
                continue
            at, target = base ^ byte, 256 * blocks
            units[at] = ((at ^ target) << 10) | ((None in child) << 8) | byte
            nodes.append((child, blocks - 1))
            blocks += 1
    array = b"".join(struct.pack("<I", units.get(i, 0)) for i in range(256 * blocks))
    return base64.b64encode(struct.pack("<I", len(array)) + array + replacements).decode()


def write_tokenizer(folder):
    mark = "\u2581"
    pieces = ["<s>", "<pad>", "</s>", "<unk>"]
    words = ["red", "fox", "dog", "and", "hat", "a", "two", "blur", "fish", "ing"]
    pieces += [mark] + [mark + word for word in words] + ["re", "ox", "og", "ng", "ry", ","]
    pieces += [chr(c) for c in range(ord("a"), ord("z") + 1)] + [str(k) for k in range(10)]
    pieces += [chr(c) for c in range(ord("A"), ord("Z") + 1)]
    vocabulary = [[piece, 0.0 if k < 4 else -2.0 - 0.07 * k + 0.9 * len(piece)] for k, piece in enumerate(pieces)]
    vocabulary.append(["<mask>", 0.0])
    special = lambda k, name, **more: {
        "id": k, "content": name, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True
    } | more
    added = [special(k, name) for k, name in enumerate(pieces[:4])]
    added.append(special(len(pieces), "<mask>", lstrip=True))
    template = lambda name: {"SpecialToken": {"id": name, "type_id": 0}}
    sequence = {"Sequence": {"id": "A", "type_id": 0}}
    ends = {name: {"id": name, "ids": [k], "tokens": [name]} for name, k in [("<s>", 0), ("</s>", 2)]}
    metaspace = {"type": "Metaspace", "replacement": mark, "prepend_scheme": "always", "split": True}
    charsmap = table({"\uff41": "a", "\ufb01": "fi", "\u00a0": " ", "\t": " "})
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps({
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [{"type": "WhitespaceSplit"}, metaspace]},
        "post_processor": {
            "type": "TemplateProcessing", "single": [template("<s>"), sequence, template("</s>")],
            "pair": [template("<s>"), sequence, template("</s>")], "special_tokens": ends,
        },
        "decoder": metaspace, "model": {"type": "Unigram", "unk_id": 3, "vocab": vocabulary, "byte_fallback": False},
    }, ensure_ascii=False, indent=None) + "\n")
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>", "pad_token": "<pad>"}
    mask = {key: value for key, value in added[4].items() if key != "id"}
    names |= {"cls_token": "<s>", "mask_token": mask | {"__type": "AddedToken"}}
    config = names | {"model_max_length": 512, "tokenizer_class": "XLMRobertaTokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def text_encoder():
    folder = HERE / "decoder" / "text_encoder"
    config = json.loads((folder / "config.json").read_text())
    rest = {k: v for k, v in config.items() if k not in ("transformerDimensions", "numDims", "model_type", "torch_dtype")}
    model = MultilingualCLIP(MCLIPConfig(config["transformerDimensions"], config["numDims"], **rest))
    missing, unexpected = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    assert not unexpected and all(key.endswith(("position_ids", "token_type_ids")) for key in missing), (missing, unexpected)
    return model.float().eval()


def generator(seed):
    return torch.Generator("cpu").manual_seed(seed)


def given(width, height, phase):
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = [128 + 100 * np.sin(x / 9 + phase) * np.cos(y / 13), 255 * x / width, 255 * ((x // 8 + y // 6) % 2)]
    return np.stack(waves, -1).round().astype(np.uint8)


class Recorder:
    """Hooks of a decoder's pipeline, for the first row of pictures and the first latent channels, those that are sampled."""

    def __init__(self, pipeline, name, tensors):
        self.put = lambda key, value: tensors.__setitem__(f"{name}/{key}", value.detach().float().clone())
        self.step, scheduler = 0, pipeline.scheduler
        self.hook = pipeline.unet.register_forward_hook(self.seen, with_kwargs=True)
        self.original = scheduler.step

        def stepped(output, timestep, sample, *args, **kwargs):
            result = self.original(output, timestep, sample, *args, **kwargs)
            self.put(f"step_{self.step}/x", result.prev_sample)
            self.step += 1
            return result

        scheduler.step = stepped
        self.timesteps = []

    def seen(self, _, args, kwargs, output):
        sample = kwargs["sample"]
        if self.step == 0:
            conditions = kwargs["added_cond_kwargs"]
            self.put("image_embeds", conditions["image_embeds"])
            self.put("text_embeds", conditions["text_embeds"])
            self.put("hidden", kwargs["encoder_hidden_states"])
            if sample.shape[1] > 4:
                self.put("known", sample[:1, 4:])
        self.timesteps.append(float(kwargs["timestep"]))
        self.put(f"step_{self.step}/x_t", sample[:1, :4])
        self.put(f"step_{self.step}/output", output[0][:, :4])

    def end(self):
        self.put("timesteps", torch.tensor(self.timesteps))
        self.hook.remove()


def main():
    torch.set_num_threads(1)
    write_tokenizer(HERE / "decoder" / "tokenizer")
    tokenizer = XLMRobertaTokenizerFast.from_pretrained(HERE / "decoder" / "tokenizer")
    prior = KandinskyPriorPipeline.from_pretrained(HERE / "prior", torch_dtype=torch.float32)
    prior.set_progress_bar_config(disable=True)
    movq = VQModel.from_pretrained(HERE.parent / "kandinsky-2-2" / "decoder" / "movq", torch_dtype=torch.float32)
    words = text_encoder()

    def pipeline(kind, folder):
        unet = UNet2DConditionModel.from_pretrained(HERE / folder / "unet", torch_dtype=torch.float32)
        scheduler = DDIMScheduler.from_pretrained(HERE / folder / "scheduler")
        made = kind(text_encoder=words, tokenizer=tokenizer, unet=unet, scheduler=scheduler, movq=movq)
        made.set_progress_bar_config(disable=True)
        return made

    encoded = tokenizer(TEXTS, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    tensors = {
        "tokens/texts": torch.tensor(list(json.dumps(TEXTS).encode()), dtype=torch.uint8),
        "tokens/ids": encoded.input_ids, "tokens/mask": encoded.attention_mask.to(torch.uint8),
    }
    two = tokenizer(["a red fox", "blurry"], padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    with torch.no_grad():
        embeds, hidden = words(input_ids=two.input_ids, attention_mask=two.attention_mask)
    tensors |= {"words/ids": two.input_ids, "words/mask": two.attention_mask.to(torch.uint8)}
    tensors |= {"words/embeds": embeds, "words/hidden": hidden}

    def embeddings(texts, noise, negative=None):
        made = prior(
            texts, negative_prompt=negative, num_inference_steps=STEPS["prior"], guidance_scale=4.0, generator=noise,
        )
        return {"image_embeds": made.image_embeds, "negative_image_embeds": made.negative_image_embeds}

    def pictures(name, made, prompt, seed, width, height, embeds=None, negative=None, keep=False, **more):
        noise = generator(seed)
        embeds = embeds or embeddings([prompt], noise, negative and [negative])
        recorder = Recorder(made, name, tensors) if keep else None
        images = made(
            prompt, **embeds, negative_prompt=negative, width=width, height=height, guidance_scale=4.0, generator=noise,
            num_inference_steps=more.pop("steps", STEPS["decoder"]), output_type="np", **more,
        ).images
        if recorder:
            recorder.end()
        tensors[f"{name}/pictures"] = torch.from_numpy((images * 255).round().astype(np.uint8))

    photo, wide = given(90, 70, 0.0), given(90, 70, 1.0)
    y, x = np.mgrid[0:70, 0:90].astype(np.float32)
    mask = np.clip(255 * (1.5 - np.hypot(x - 50, y - 30) / 18), 0, 255).round().astype(np.uint8)
    tensors |= {f"given/{name}": torch.from_numpy(value) for name, value in [("photo", photo), ("wide", wide), ("mask", mask)]}

    plain = lambda: pipeline(KandinskyPipeline, "decoder")
    pictures("prompt", plain(), "a red fox", 3, 128, 64, keep=True)
    pictures("negative", plain(), "a red fox", 4, 64, 64, negative="blurry")
    pixels = prior.image_processor(Image.fromarray(photo), return_tensors="pt").pixel_values
    with torch.no_grad():
        image, colour = prior.image_encoder(pixels).image_embeds, prior.get_zero_embed(1)
    varied = {"image_embeds": image, "negative_image_embeds": colour}
    pictures("variation", plain(), "", 7, 64, 64, varied)
    pictures("said", plain(), "two hats", 8, 64, 64, varied, negative="a dog")
    redraw = pipeline(KandinskyImg2ImgPipeline, "decoder")
    pictures("redraw", redraw, "a dog", 5, 64, 64, keep=True, image=Image.fromarray(photo), strength=0.7, steps=4)
    inpaint = pipeline(KandinskyInpaintPipeline, "inpaint")
    pictures(
        "inpaint", inpaint, "a hat", 6, 128, 64, keep=True, image=Image.fromarray(wide), mask_image=Image.fromarray(mask),
    )
    for name, values in tensors.items():
        print(name, tuple(values.shape), float(values.float().std()))
    save_file({name: value.contiguous() for name, value in tensors.items()}, HERE / "run.safetensors")


main()
