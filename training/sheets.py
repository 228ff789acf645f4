"""Contact sheets, and the short sampler for looking at a decoder whose neighbours are not trained yet."""
import torch
from PIL import Image

import models
from trainer import load_averaged


def page(pictures, columns):
    """[N, 3, H, W] in -1..1 -> one picture."""
    n, _, h, w = pictures.shape
    rows = -(-n // columns)
    cells = torch.ones(rows * columns, 3, h, w)
    cells[:n] = pictures.float().cpu()
    cells = cells.view(rows, columns, 3, h, w).permute(0, 3, 1, 4, 2).reshape(rows * h, columns * w, 3)
    return Image.fromarray(((cells.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).numpy())


@torch.no_grad()
def sample(unet, text_proj, image, pooled, hidden, mask, steps=12, seed=0):
    """Decoder pictures from given embeddings, without guidance. Same noise for all, so that only conditions differ."""
    from diffusers import UnCLIPScheduler
    scheduler = UnCLIPScheduler(variance_type="fixed_small_log", prediction_type="sample")
    scheduler.set_timesteps(steps)
    hidden, added = text_proj(image_embeddings=image, prompt_embeds=pooled, text_encoder_hidden_states=hidden,
                              do_classifier_free_guidance=False)
    mask = torch.nn.functional.pad(mask, (text_proj.config.clip_extra_context_tokens, 0), value=True)
    generator = torch.Generator().manual_seed(seed)
    size = unet.config.sample_size
    x = torch.randn(1, 3, size, size, generator=generator).expand(len(image), -1, -1, -1).to(image.device)
    first = None
    times = scheduler.timesteps.tolist()
    for k, t in enumerate(times):
        out = unet(x, t, encoder_hidden_states=hidden, class_labels=added, attention_mask=mask).sample[:, :3]
        first = out if first is None else first
        before = times[k + 1] if k + 1 < len(times) else None
        x = scheduler.step(out, t, x, prev_timestep=before, generator=generator).prev_sample
    return first, x


@torch.no_grad()
def decoder(options, preset, given, pictures, count=48):
    """Three rows a line: truth, the guess from pure noise, the sampled picture."""
    unet, text_proj = models.decoder(preset)
    load_averaged(options.work, "decoder", options.device, unet=unet, text_proj=text_proj)
    row = torch.linspace(0, len(pictures.rows) - 1, count).long().to(options.device)
    colour = torch.zeros_like(row)
    colour[3::4] = torch.arange(len(colour[3::4]), device=colour.device) % len(pictures.backgrounds)
    zero = torch.zeros_like(row)
    truth = pictures.rgb(row, colour, zero)
    dropped = torch.zeros_like(row, dtype=torch.bool)
    colour = torch.where(pictures.allowed[row, colour], colour, 0)
    first, last = sample(unet, text_proj, given.picture(row, colour, zero), *given.caption(row, colour, dropped))
    rows = [x.split(16) for x in (truth, first.cpu(), last.cpu())]
    sheet = page(torch.cat([part for parts in zip(*rows) for part in parts]), 16)
    sheet.resize((2 * sheet.width, 2 * sheet.height), Image.NEAREST).save(options.work / "decoder.png")
    truth = truth.cpu()
    mean = truth.mean(0, keepdim=True)
    errors = [(x.cpu() - truth).square().mean().item() for x in (first, last, mean)]
    text = "decoder: error of the first guess {:.3f}, of the sampled picture {:.3f}, of the mean one {:.3f}"
    print(text.format(*errors))
