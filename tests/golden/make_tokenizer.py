"""Makes tests/golden/tokenizer.json: what transformers' CLIPTokenizer gives for the prompts below.

    python tests/golden/make_tokenizer.py            # transformers 5.23.0

The tokenizer folders beside the output are inputs: `tokenizer` pads with `!` as the published unCLIP checkpoints
do (and registers it as a special token), `tokenizer-eos` pads with <|endoftext|> and has 32 tokens; each further case
changes one file of these. Tokenizer and decoded cut are called as diffusers' UnCLIPPipeline calls them.
"""

import json
import os
import shutil
import tempfile

import transformers
from transformers import CLIPTokenizer

HERE = os.path.dirname(os.path.abspath(__file__))

PROMPTS = [
    "",
    " ",
    " \t\r\n ",
    "a photo of a red cube",
    "A Photo OF A RED Cube",
    "  two   spaces\tand\na line  ",
    "hello world!",
    "!",
    "!!!",
    "wow !? really?! a!b",
    "it's they're we've I'm you'll he'd don't 'quoted' ''s",
    "IT'S THEY'RE",
    "in 1999 there were 12345 cats, 3.14 of them x2",
    "½ ² ① Ⅷ ٣ 四",
    "naïve café Ångström",
    "nai\u0308ve cafe\u0301 A\u030angstro\u0308m",
    "e\u0301\u0302\u0323 combining a\u20dd marks",
    "\u0130stanbul STRASSE straße ΣΟΦΟΣ ﬁ",
    "一只红色的猫 と 日本語 한국어",
    "🙂🙂 a cat 👩‍👩‍👧 flag 🇩🇪 👍🏽",
    "<|startoftext|>",
    "a <|endoftext|> b<|endoftext|>c <|startoftext|>",
    "<|ENDOFTEXT|> <|StartOfText|> < |endoftext| >",
    "<|endoftext|",
    "control \u0000 \u0001 \u001c \u001f \u007f \u0085 chars",
    "spaces \u00a0 \u2003 \u200b \u202f \u3000 \ufeff \u180e x",
    "\u2018curly\u2019 \u201cquotes\u201d \u2014 dash \u2026",
    "&amp; &lt; <b>html</b> a_b-c/d\\e",
    "#hash @at $5 50% (a) [b] {c} ~ ^ | `",
    "مرحبا שלום नमस्ते ไทย",
    "\U0001d400\U0001d41a \U00010400 \U0010ffff \ufffd",
    "a" * 40,
    "a very long prompt, " * 20,
    "the 77 token limit " * 30 + "ends here! <|endoftext|> Ünïcode 🙂",
    "x " * 29 + "y",
    "x " * 30 + "y",
    "x " * 31 + "y",
    "x " * 74 + "y",
    "x " * 75 + "y",
    "x " * 76 + "y",
]


def encode(tokenizer, prompt):
    """The calls of UnCLIPPipeline._encode_prompt, for one prompt."""
    length = tokenizer.model_max_length
    inputs = tokenizer(prompt, padding="max_length", max_length=length, truncation=True)
    untruncated = tokenizer(prompt, padding="longest").input_ids
    cut = None
    if len(untruncated) >= len(inputs.input_ids) and untruncated != inputs.input_ids:
        cut = tokenizer.batch_decode([untruncated[length - 1 : -1]])[0]
    used = sum(inputs.attention_mask)
    assert inputs.attention_mask == [1] * used + [0] * (length - used)
    pad = set(inputs.input_ids[used:])
    assert len(pad) <= 1 and (not pad or pad == {tokenizer.pad_token_id})
    case = {"prompt": prompt, "ids": inputs.input_ids[:used]}
    if cut is not None:
        case["cut"] = cut
    return case


def edited(folder, work, changes):
    """A copy of a tokenizer folder with files replaced by `changes` (None removes one)."""
    target = tempfile.mkdtemp(dir=work)
    shutil.copytree(os.path.join(HERE, folder), target, dirs_exist_ok=True)
    for name, content in changes.items():
        path = os.path.join(target, name)
        if content is None:
            os.remove(path)
        else:
            with open(path, "w", encoding="utf-8") as f:
                json.dump(content, f, ensure_ascii=False)
    return target


def plain(content, special=True, normalized=False):
    flags = {"lstrip": False, "rstrip": False, "single_word": False}
    return {"content": content, "normalized": normalized, "special": special, **flags}


def main():
    bos, eos = "<|startoftext|>", "<|endoftext|>"
    base = {"model_max_length": 77, "bos_token": bos, "eos_token": eos, "unk_token": eos, "pad_token": "!"}
    with open(os.path.join(HERE, "tokenizer", "vocab.json"), encoding="utf-8") as f:
        vocab = json.load(f)
    with open(os.path.join(HERE, "tokenizer", "merges.txt"), encoding="utf-8") as f:
        merges = f.read().splitlines()[1:]
    # The form newer versions of transformers save: ids of the added tokens in the configuration.
    decoder = {str(vocab[token]): plain(token) for token in ["!", bos, eos]}
    added = [{"id": int(i), **token} for i, token in decoder.items()]
    unified = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": None,
        "model": {"type": "BPE", "vocab": vocab, "merges": [merge.split(" ") for merge in merges]},
    }
    strings = {"bos_token": bos, "eos_token": eos, "unk_token": eos, "pad_token": "!"}
    no_files = {"vocab.json": None, "merges.txt": None}
    variations = {
        "added_tokens_decoder": {"tokenizer_config.json": {**base, "added_tokens_decoder": decoder}},
        "strings only": {"tokenizer_config.json": base, "special_tokens_map.json": strings},
        "no special_tokens_map": {"special_tokens_map.json": None},
        "no tokenizer_config": {"tokenizer_config.json": {"model_max_length": 77}},
        "tokenizer.json only": {"tokenizer.json": unified, **no_files},
        "tokenizer.json wins": {"tokenizer.json": {**unified, "model": {**unified["model"], "merges": []}}},
        "tokenizer.json and settings": {"tokenizer.json": unified, "special_tokens_map.json": strings, **no_files},
    }
    out = {"transformers": transformers.__version__, "cases": []}

    def add(name, folder, changes, prompts, work):
        path = edited(folder, work, changes)
        tokenizer = CLIPTokenizer.from_pretrained(path)
        out["cases"].append(
            {
                "name": name,
                "folder": folder,
                "changes": changes,
                "length": tokenizer.model_max_length,
                "pad": tokenizer.pad_token_id,
                "prompts": [encode(tokenizer, prompt) for prompt in prompts],
            }
        )

    with tempfile.TemporaryDirectory() as work:
        add("pad is !", "tokenizer", {}, PROMPTS, work)
        add("pad is eos", "tokenizer-eos", {}, PROMPTS, work)
        few = [p for p in PROMPTS if "!" in p or "<" in p or p == ""]
        for name, changes in variations.items():
            add(name, "tokenizer", changes, few, work)

    lines = json.dumps(out, ensure_ascii=True)
    lines = lines.replace('{"name"', '\n{"name"').replace('{"prompt"', '\n  {"prompt"')
    with open(os.path.join(HERE, "tokenizer.json"), "w", encoding="utf-8") as f:
        f.write(lines + "\n")


if __name__ == "__main__":
    main()
