"""Pictures and captions on the device, drawn once: a training step only indexes.

A *cell* is (concept, style, background); `variants` slightly moved, turned and tinted copies of each picture give the
decoder something that the caption leaves open, so that seeds differ.
"""
import json
import math
import random

import numpy as np
import torch
import torch.nn.functional as F

from captions import BACKGROUNDS, DEFAULT_STYLE, WHITE, Names, everyday, held_out


def hue_matrix(degrees):
    """Rotation about the grey axis, [N, 3, 3]: a change of hue that keeps brightness nearly the same."""
    a = degrees * math.pi / 180
    c, s, third = a.cos(), a.sin(), 1 / 3
    k, r = third * (1 - c), third ** 0.5 * s
    rows = [torch.stack(row, -1) for row in ([c + k, k - r, k + r], [k + r, c + k, k - r], [k - r, k + r, c + k])]
    return torch.stack(rows, -2)


def vary(pics, generator):
    """[N, 4, H, W] premultiplied RGBA in 0..255 -> the same moved, turned, scaled and tinted."""
    n = len(pics)

    def spread(amount):
        return (torch.rand(n, generator=generator) * 2 - 1) * amount

    angle, zoom = spread(10 * math.pi / 180), 1.1 + spread(0.14)
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = angle.cos() * zoom
    theta[:, 0, 1], theta[:, 1, 0] = -angle.sin() * zoom, angle.sin() * zoom
    theta[:, 0, 2], theta[:, 1, 2] = spread(0.08), spread(0.08)
    grid = F.affine_grid(theta, pics.shape, align_corners=False)
    pics = F.grid_sample(pics, grid, align_corners=False)
    brightness = (1 + spread(0.08))[:, None, None, None]
    tinted = torch.einsum("nij,njhw->nihw", hue_matrix(spread(14)), pics[:, :3]) * brightness
    return torch.cat([torch.minimum(tinted.clamp(min=0), pics[:, 3:]), pics[:, 3:]], 1)


class Pictures:
    """Pictures of one preset at one size."""

    def __init__(self, root, preset, size, device, variants=None, seed=0):
        index = json.loads((root / "index.json").read_text())
        self.concepts, self.device, self.size = index["concepts"], device, size
        self.names = Names(self.concepts)
        self.variants = preset["variants"] if variants is None else variants
        self.backgrounds = [WHITE, *[b for b in BACKGROUNDS if b != WHITE][:preset["backgrounds"]]]
        order = list(everyday())[:preset["concepts"]] if preset["concepts"] else None
        keep = {i for i, c in enumerate(self.concepts) if order is None or c["label"] in order}
        self.rows, planes = [], []   # rows: (concept, style) of each picture
        for style in preset["styles"]:
            array = np.load(root / f"{style}_{2 * size if 2 * size <= 256 else size}.npy", mmap_mode="r")
            chosen = [(k, c) for k, c in enumerate(index["styles"][style]) if c in keep]
            self.rows += [(c, style) for _, c in chosen]
            planes.append(torch.from_numpy(array[[k for k, _ in chosen]]).permute(0, 3, 1, 2))
        # Varied at twice the size and then shrunk: as sharp as the plain picture. In parts, to save memory.
        generator = torch.Generator().manual_seed(seed)
        self.pics = torch.cat([self.copies(part.float(), generator) for part in torch.cat(planes).split(64)]).to(device)
        colours = [BACKGROUNDS[b] for b in self.backgrounds]
        self.palette = torch.tensor(colours, dtype=torch.float32, device=device)
        allowed = [[not held_out(self.concepts[c]["label"], b) for b in self.backgrounds] for c, _ in self.rows]
        self.allowed = torch.tensor(allowed, device=device)   # [rows, backgrounds]

    def copies(self, base, generator):
        """[N, variants, 4, size, size]: the pictures themselves, then their variants."""
        varied = [base] + [vary(base, generator) for _ in range(self.variants - 1)]
        shrunk = [F.interpolate(x, size=(self.size, self.size), mode="area") for x in varied]
        return torch.stack(shrunk, 1).round().to(torch.uint8)

    def rgb(self, row, background, variant):
        """Pictures over their background colours, [N, 3, size, size] in -1..1."""
        x = self.pics[row, variant].float()
        return (x[:, :3] + (1 - x[:, 3:] / 255) * self.palette[background][:, :, None, None]) / 127.5 - 1

    def draw(self, n, share):
        """Random rows, backgrounds (coloured in `share` of the pictures where the pair is trained) and variants."""
        row = torch.randint(0, len(self.rows), (n,), device=self.device)
        colour = torch.randint(0, len(self.backgrounds), (n,), device=self.device)
        colour = torch.where(torch.rand(n, device=self.device) < share, colour, 0)
        colour = torch.where(self.allowed[row, colour], colour, 0)
        # The unchanged picture more often than each changed one: it is what the model should mostly draw.
        variant = torch.randint(0, self.variants, (n,), device=self.device)
        variant = torch.where(torch.rand(n, device=self.device) < 0.3, 0, variant)
        return row, colour, variant

    def cells(self, trained=True):
        """All (row, background) pairs that are trained, or those held out."""
        return [(r, b) for r in range(len(self.rows)) for b in range(len(self.backgrounds))
                if bool(self.allowed[r, b]) == trained]

    def label(self, row):
        return self.concepts[self.rows[row][0]]["label"]

    def canonical(self, row, background):
        concept, style = self.rows[row]
        return self.names.canonical(concept, self.backgrounds[background], style)


class CaptionPool:
    """Tokenised captions of every trained cell, found by (row, background)."""

    def __init__(self, pictures, tokenizer, seed=0, white=32, coloured=6):
        rng = random.Random(seed)
        self.texts, starts, counts = [], {}, {}
        for r, b in pictures.cells():
            concept, style = pictures.rows[r]
            wanted = white if b == 0 else coloured
            drawn = {pictures.canonical(r, b)}
            for _ in range(wanted):
                drawn.add(pictures.names.caption(concept, style, pictures.backgrounds[b], rng))
            # A set drops repeats, so that the pool stays small; sorted, so that a seed gives the same pool.
            starts[r, b], counts[r, b] = len(self.texts), len(drawn)
            self.texts += sorted(drawn)
        shape = (len(pictures.rows), len(pictures.backgrounds))
        self.start = torch.zeros(shape, dtype=torch.long, device=pictures.device)
        self.count = torch.ones(shape, dtype=torch.long, device=pictures.device)
        for (r, b), s in starts.items():
            self.start[r, b], self.count[r, b] = s, counts[r, b]
        self.ids, self.mask = tokenizer(self.texts)

    def draw(self, row, background):
        """The number of a random caption of each cell."""
        u = torch.rand(len(row), device=row.device)
        return self.start[row, background] + (u * self.count[row, background]).long()


def default_style_rows(pictures):
    return [r for r, (_, style) in enumerate(pictures.rows) if style == DEFAULT_STYLE]
