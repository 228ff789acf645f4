"""Stage `tokenizer`: a byte-pair encoding in CLIP's format, learnt on captions.

CLIP's vocabulary begins with the 256 bytes, then the same at the end of a word, then one token for each merge in order,
then the two specials; so any text in any script has an encoding, and CLIP's own tokenizers read the files.
"""
import json
import random

import models
from captions import BACKGROUNDS, STYLE_WORDS, Names

END_OF_WORD = "</w>"
SPECIALS = ["<|startoftext|>", "<|endoftext|>"]
WORDS = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def byte_characters():
    """The printable stand-ins for bytes, in CLIP's order: printable bytes first, then the rest from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    return [chr(b) for b in printable] + [chr(256 + k) for k in range(len(rest))]


def lines(data, seed):
    rng = random.Random(seed)
    concepts = json.loads((data / "index.json").read_text())["concepts"]
    names = Names(concepts)
    for i, c in enumerate(concepts):
        yield from [c["label"]] * 4 + c["keywords"]
        for style in STYLE_WORDS:
            for _ in range(4):
                yield names.caption(i, style, rng.choice(list(BACKGROUNDS)), rng)


def learn(texts, count):
    """The first `count` merges."""
    from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, trainers
    from tokenizers.models import BPE
    t = Tokenizer(BPE(end_of_word_suffix=END_OF_WORD))
    t.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    t.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(WORDS), behavior="removed", invert=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=count + 512, min_frequency=2, end_of_word_suffix=END_OF_WORD, show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    merges = json.loads(t.to_str())["model"]["merges"]
    return [m.split(" ") if isinstance(m, str) else m for m in merges][:count]


def write(folder, merges, context):
    characters = byte_characters()
    tokens = characters + [c + END_OF_WORD for c in characters] + ["".join(m) for m in merges] + SPECIALS
    assert len(tokens) == len(set(tokens)), "a merge repeats a token"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(" ".join(m) + "\n" for m in merges))
    special = {"bos_token": SPECIALS[0], "eos_token": SPECIALS[1], "unk_token": SPECIALS[1], "pad_token": SPECIALS[1]}
    (folder / "special_tokens_map.json").write_text(json.dumps(special, indent=1))
    config = {**special, "tokenizer_class": "CLIPTokenizer", "do_lower_case": True, "model_max_length": context}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))


def train(options, preset):
    texts = list(lines(options.data, options.seed))
    merges = learn(texts, preset["vocabulary"] - 512 - 2)
    folder = options.work / "tokenizer"
    write(folder, merges, preset["context"])
    tok = models.Tokenizer(folder, preset["context"], "cpu")
    assert len(tok.inner) == preset["vocabulary"], f"{len(tok.inner)} tokens"
    lengths = tok(texts[:20000])[1].sum(1).float()
    example = tok.inner.tokenize("a red apple on a blue background")
    print(f"tokenizer: {len(tok.inner)} tokens; a caption has {lengths.mean():.1f}, the longest {int(lengths.max())}")
    print(f"tokenizer: {' '.join(example)}")
    return True
