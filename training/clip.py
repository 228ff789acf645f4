"""Stage `clip`: text and image encoder, contrastive (Radford et al. 2021).

Two things a small CLIP needs beyond that. Its embeddings fold onto a handful of directions, which is enough for
retrieval but leaves prior and decoder to read everything from a few dimensions: a penalty draws the covariance of the
directions towards a multiple of the identity. And their scale is arbitrary: the projections are rescaled at the end so
that each component has variance 1, which is what freshly made layers after them expect.

With --init, only the image encoder learns: it gets used to other variants of the pictures, while everything that later
stages have learnt from stays as it was.
"""
import copy
import math

import torch
import torch.nn.functional as F

import models
from data import CaptionPool, Pictures
from trainer import Trainer, load_averaged

BATCH = {"cpu": 160, "gpu": 512}
ISOTROPY = 0.3     # weight of the penalty
MOST_SCALE = 50.0  # of the logits
KEEP = 3.0         # weight of staying at the known embeddings, whose components have variance 1


def anisotropy(unit):
    """Distance of the covariance of unit vectors, [N, D], from the identity over D."""
    z = unit * unit.shape[1] ** 0.5
    z = z - z.mean(0)
    covariance = z.T @ z / (len(z) - 1)
    return (covariance - torch.eye(len(covariance), device=unit.device)).square().sum() / len(covariance)


def effective_rank(x):
    """(sum of variances)^2 / sum of their squares, over principal directions: how many dimensions are in use."""
    z = x - x.mean(0)
    covariance = z.T @ z
    return covariance.trace() ** 2 / covariance.square().sum()


def degrade(x):
    """What generated pictures suffer from: half of them soft, all a little noisy. The encoder must judge them."""
    soft = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
    x = torch.where(torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5, x, soft)
    return x + 0.1 * torch.rand(len(x), 1, 1, 1, device=x.device) * torch.randn_like(x)


def encoders(options, preset):
    """Tokenizer and the finished towers."""
    from transformers import CLIPTextModelWithProjection, CLIPVisionModelWithProjection
    tok = models.Tokenizer(options.work / "tokenizer", preset["context"], options.device)
    text = models.load_part(CLIPTextModelWithProjection, options.work / "text_encoder", options.device)
    image = models.load_part(CLIPVisionModelWithProjection, options.work / "image_encoder", options.device)
    return tok, text, image


def train(options, preset):
    tok = models.Tokenizer(options.work / "tokenizer", preset["context"], options.device)
    pictures = Pictures(options.data, preset, models.VISION_SIZE, options.device)
    pool = CaptionPool(pictures, tok)
    text, image = models.text_encoder(preset).to(options.device), models.image_encoder(preset).to(options.device)
    if options.init:
        models.start_from(options.init, text_encoder=text, image_encoder=image)
        text.requires_grad_(False)
        kept = copy.deepcopy(image)
    scale = torch.nn.Module()
    scale.log = torch.nn.Parameter(torch.tensor(math.log(MOST_SCALE if options.init else 10.0), device=options.device))
    trainer = Trainer(options, "clip", {"text": text, "image": image, "scale": scale}, 1e-3,
                      ema=0.98, weight_decay=0.05, warmup=60)
    batch = options.batch or BATCH[options.preset]
    length = int(pool.mask.sum(1).max())   # pads never matter to a causal encoder, so they are cut off

    def loss_of(_step):
        row, colour, variant = pictures.draw(batch, 0.4)
        x = degrade(pictures.rgb(row, colour, variant))
        ids = pool.ids[pool.draw(row, colour)][:, :length]
        ti = F.normalize(text(input_ids=ids).text_embeds.float(), dim=-1)
        vi = F.normalize(image(pixel_values=x).image_embeds.float(), dim=-1)
        # Two pictures of one cell have captions that fit both: such pairs are no negatives.
        cell = row * len(pictures.backgrounds) + colour
        same = (cell[:, None] == cell) & ~torch.eye(batch, dtype=torch.bool, device=cell.device)
        logits = (scale.log.clamp(max=math.log(MOST_SCALE)).exp() * vi @ ti.T).masked_fill(same, -1e4)
        own = torch.arange(batch, device=cell.device)
        contrast = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
        loss = contrast + ISOTROPY * (anisotropy(vi) + anisotropy(ti))
        if options.init:   # later stages know the embeddings of the plain pictures: these stay where they are
            plain = pictures.rgb(row[::4], colour[::4], torch.zeros_like(row[::4]))
            with torch.no_grad():
                known = kept(pixel_values=plain).image_embeds.float()
            loss = contrast + KEEP * F.mse_loss(image(pixel_values=plain).image_embeds.float(), known)
        right = (logits.argmax(1) == own).float().mean()
        return loss, {"contrast": contrast.detach(), "top1": right, "rank": effective_rank(vi.detach())}

    done = trainer.run(loss_of, every=25)
    finish(options, text, image, pictures)
    return done


@torch.no_grad()
def finish(options, text, image, pictures):
    """Writes the averaged towers with embeddings of unit variance."""
    load_averaged(options.work, "clip", options.device, text=text, image=image)
    found = embed_pictures(image, pictures)
    std = 1.0 if options.init else found.std(0).mean()
    text.text_projection.weight /= std
    image.visual_projection.weight /= std
    text.save_pretrained(options.work / "text_encoder")
    image.save_pretrained(options.work / "image_encoder")
    cells = F.normalize(found[:, 0], dim=-1)
    near = (cells @ cells.T).fill_diagonal_(-1).max(1).values
    print(f"clip: effective rank {effective_rank(cells):.1f} of {cells.shape[1]}; "
          f"nearest other picture at cosine {near.mean():.2f}, worst {near.max():.2f}; scaled by {1 / std:.2f}")


@torch.no_grad()
def embed_pictures(image, pictures):
    """Embeddings of every cell and variant, [rows * backgrounds, variants, D]; held-out ones too, for measuring."""
    out = []
    backgrounds = len(pictures.backgrounds)
    for r in range(len(pictures.rows)):
        b, v = (t.flatten() for t in torch.meshgrid(
            torch.arange(backgrounds), torch.arange(pictures.variants), indexing="ij"))
        row = torch.full_like(b, r)
        x = pictures.rgb(*(t.to(pictures.device) for t in (row, b, v)))
        out.append(image(pixel_values=x).image_embeds.float().view(backgrounds, pictures.variants, -1))
    return torch.cat(out)


@torch.no_grad()
def embed_captions(text, ids):
    """Text embeddings [N, D] and hidden states [N, T, D]."""
    pooled, hidden = [], []
    for part in ids.split(256):
        out = text(input_ids=part)
        pooled.append(out.text_embeds.float())
        hidden.append(out.last_hidden_state.float())
    return torch.cat(pooled), torch.cat(hidden)
