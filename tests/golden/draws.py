"""Gives diffusers' pipelines the noise of any generator, without a card and with one release of torch.

The networks run in f32; draws are made in the type of the original pipeline and widened, which is what `--noise-dtype`
means. Draws of torch-cuda and of torch-2.11 in half types come from models of those generators (src/noise says what they
are; tests/noise.rs holds both sides against recordings), all others from torch itself.
"""

import math
import sys

import diffusers.schedulers.scheduling_unclip as scheduling
import numpy as np
import torch

DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
DEFAULT_CARD = "132x2048"


class Card:
    """torch's generator on a card of M multiprocessors with T threads each."""

    def __init__(self, card, seed):
        self.multiprocessors, self.threads = (int(n) for n in card.split("x"))
        self.seed, self.counter = seed, 0

    def randn(self, n, dtype):
        threads = 256 * min(-(-n // 256), self.multiprocessors * (self.threads // 256))
        turn, thread = np.divmod(np.arange(n, dtype=np.uint64), np.uint64(threads))
        counter, component = np.divmod(turn, np.uint64(4))
        counter += np.uint64(self.counter)
        self.counter += -(-n // (4 * threads))
        low, bits = np.uint64(0xFFFFFFFF), np.uint64(32)
        words = philox([counter & low, counter >> bits, thread, np.zeros_like(thread)], self.seed)
        # Both roundings of a word to f32 are torch's; the functions are better than a card's.
        u = [(word.astype(np.float32) * np.float32(2**-32) + np.float32(2**-33)).astype(np.float64) for word in words]
        first = component < 2
        radius = np.sqrt(-2 * np.log(np.where(first, u[0], u[2])))
        angle = 2 * np.pi * np.where(first, u[1], u[3])
        z = radius * np.where(component % np.uint64(2) == 0, np.sin(angle), np.cos(angle))
        return torch.from_numpy(z.astype(np.float32)).to(dtype)


def philox(counter, seed):
    c0, c1, c2, c3 = counter
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    low, bits = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(10):
        a, b = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (b >> bits) ^ c1 ^ np.uint64(k0), b & low, (a >> bits) ^ c3 ^ np.uint64(k1), a & low
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


class Cpu:
    """torch's own CPU generator; with `coarse` in half types as it was up to 2.11."""

    def __init__(self, seed, coarse=False):
        self.generator, self.coarse = torch.Generator("cpu").manual_seed(seed), coarse

    def randn(self, n, dtype):
        if not self.coarse or dtype == torch.float32 or n < 16:
            return torch.randn(n, generator=self.generator, dtype=dtype)
        out = self.box_muller(n, dtype)[:n]
        if n % 16:
            out[-16:] = self.box_muller(16, dtype)
        return out

    def box_muller(self, n, dtype):
        """Groups of 16 of n uniforms; what is left of a last group is not meant to be used."""
        digits = {torch.float16: 11, torch.bfloat16: 8}[dtype]
        words = (torch.rand(n, generator=self.generator) * 2**24).long()  # 24 bits of each word
        u = (words % 2**digits).double() / 2**digits
        groups = torch.nn.functional.pad(u, (0, -n % 16)).reshape(-1, 2, 8)
        radius = (-2 * (1 - groups[:, 0]).log().to(dtype)).sqrt()
        angle = (2 * math.pi * groups[:, 1]).to(dtype).double()
        waves = torch.stack([angle.cos().to(dtype), angle.sin().to(dtype)], dim=1)
        return (radius[:, None] * waves + 0).flatten()


def generator(noise, seed):
    kind, _, card = noise.partition(":")
    return Card(card or DEFAULT_CARD, seed) if kind == "torch-cuda" else Cpu(seed, coarse=kind == "torch-2.11")


def install(pipe, noise="torch", dtype="f32", generators="each", seed=0, pictures=1):
    """Replaces the draws of a pipeline and its schedulers."""
    each = [generator(noise, seed + k) for k in range(pictures)] if generators == "each" else None
    one = generator(noise, seed)

    def randn_tensor(shape, **_):
        shape = tuple(shape)
        assert shape[0] == pictures, shape
        if each is None:
            flat = one.randn(math.prod(shape), DTYPES[dtype])
        else:
            flat = torch.cat([own.randn(math.prod(shape[1:]), DTYPES[dtype]) for own in each])
        return flat.float().reshape(shape)

    for module in (sys.modules[type(pipe).__module__], scheduling):
        module.randn_tensor = randn_tensor
