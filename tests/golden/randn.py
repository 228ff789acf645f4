#!/usr/bin/env python3
"""Records what torch.randn draws, for tests/noise.rs.

    python tests/golden/randn.py cpu randn-cpu-2.15.safetensors        # whichever torch is installed
    python tests/golden/randn.py cuda recording.safetensors            # on a card
    python tests/golden/randn.py reduce recording.safetensors randn-cuda-2.11.safetensors

randn-cpu-2.11 and randn-cpu-2.15 were made by torch 2.11.0 and 2.15.0 on x86-64 with AVX-512, randn-cuda-2.11 is reduced
from a recording of torch 2.11.0 on an H200, which has seed 0 alone. `RANDN=recording.safetensors cargo test --test noise`
holds the engine against any recording, of a card too that nobody has tried yet.

Metadata: torch; of a card `sms`, `threads_per_sm`; `samples` and `every`, see below. Draws are widened to f32. Names:
    cpu/DTYPE/SEED/sizes        elements of each draw, all of one generator
    cpu/DTYPE/SEED/checksums    of each draw: sum of (2 i + 1) times the bits of element i as f32, modulo 2^64
    cpu/DTYPE/SEED/last         the last element of each draw
    cuda/DTYPE/SEED/NN-SHAPE/head, tail     the first `samples` elements and the last 64; fewer where there are fewer
    cuda/DTYPE/SEED/NN-SHAPE/every          every max(1, n // `every`)-th
    cuda/DTYPE/SEED/NN-SHAPE/offset         where the generator stands after the draw
"""

import sys

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SEEDS = (0, 7, 2**40 + 5)
SHAPES = [(1, 768), (1, 768), (1, 3, 64, 64), (1, 3, 64, 64), (1, 3, 256, 256), (1, 3, 256, 256), (2, 3, 256, 256)]
SHAPES += [(5,), (1,), (17,), (4, 3, 256, 256), (768,)]
TAIL = 64

# Karlo's draws, then every size up to a few groups of 16, in an order in which small draws leave half a pair behind.
SIZES = [768, 12288, 196608, 5, 1, 17, 75, 1000] + [n for k in range(1, 41) for n in (k, 81 - k, 100 + k)] + [768]


def cpu():
    tensors = {}
    for dtype in DTYPES:
        for seed in SEEDS:
            generator = torch.Generator("cpu").manual_seed(seed)
            draws = [torch.randn(n, generator=generator, dtype=dtype).float().numpy() for n in SIZES]
            key = f"cpu/{str(dtype)[6:]}/{seed}"
            tensors[f"{key}/sizes"] = torch.tensor(SIZES)
            tensors[f"{key}/checksums"] = torch.tensor([checksum(x) for x in draws])
            tensors[f"{key}/last"] = torch.tensor([float(x[-1]) for x in draws])
    return tensors, {"torch": torch.__version__}


def checksum(x):
    bits = x.view(np.uint32).astype(np.uint64)
    weights = 2 * np.arange(len(x), dtype=np.uint64) + np.uint64(1)
    return int((bits * weights).sum(dtype=np.uint64).astype(np.int64))


def cuda():
    tensors = {}
    for dtype in DTYPES:
        for seed in SEEDS:
            generator = torch.Generator("cuda").manual_seed(seed)
            for i, shape in enumerate(SHAPES):
                x = torch.randn(shape, generator=generator, device="cuda", dtype=dtype).flatten().float().cpu()
                key = f"cuda/{str(dtype)[6:]}/{seed}/{i:02d}-{'x'.join(map(str, shape))}"
                tensors |= {f"{key}/head": x[:1024], f"{key}/tail": x[-TAIL:], f"{key}/every": x[:: stride(len(x), 512)]}
                offset = int.from_bytes(bytes(generator.get_state().tolist()[8:16]), "little")
                tensors[f"{key}/offset"] = torch.tensor([offset])
    card = torch.cuda.get_device_properties(0)
    sizes = {"sms": str(card.multi_processor_count), "threads_per_sm": str(card.max_threads_per_multi_processor)}
    return tensors, {"torch": torch.__version__, "gpu": card.name, "samples": "1024", "every": "512"} | sizes


def stride(n, every):
    return max(1, n // every)


def reduce(path, samples=96, every=128):
    """The draws of a card in a recording, with fewer elements of each."""
    with safe_open(path, "pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys() if name.startswith("cuda/")}
        metadata = {key: file.metadata()[key] for key in ("torch", "gpu", "sms", "threads_per_sm")}
    for name in found:
        n = int(np.prod([int(size) for size in name.split("/")[3].split("-")[1].split("x")]))
        if name.endswith("/head"):
            found[name] = found[name][:samples]
        if name.endswith("/every"):
            kept, wanted = stride(n, 512), stride(n, every)
            assert wanted % kept == 0, name
            found[name] = found[name][:: wanted // kept]
    return found, metadata | {"samples": str(samples), "every": str(every)}


def main():
    what, *paths = sys.argv[1:]
    tensors, metadata = {"cpu": cpu, "cuda": cuda, "reduce": reduce}[what](*paths[:-1])
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, paths[-1], metadata)


if __name__ == "__main__":
    main()
