"""Stage `super_res`: the two U-Nets that enlarge the decoder's picture.

`super_res_first` runs all steps but the last from noise, `super_res_last` the last one and repairs. Both are fully
convolutional, so crops of pictures are enough; both see the enlarged small picture beside the noisy large one.
"""
import torch
import torch.nn.functional as F

import fast_norm
import models
from data import Pictures
from trainer import Trainer

BATCH = {"cpu": 16, "gpu": 64}
LAST_T = 60   # super_res_last is only asked at small timesteps


def worn(x):
    """The decoder's pictures are a little soft and noisy; so are these."""
    x = x + 0.08 * torch.rand(len(x), 1, 1, 1, device=x.device) * torch.randn_like(x)
    soft = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    amount = 0.7 * torch.rand(len(x), 1, 1, 1, device=x.device)
    return torch.lerp(x, soft, torch.where(torch.rand_like(amount) < 0.5, amount, 0))


def enlarged(x, size):
    """As the pipeline enlarges."""
    return F.interpolate(x.clamp(-1, 1), size=(size, size), mode="bicubic", align_corners=False, antialias=True)


def train(options, preset):
    s, small_size = preset["super_res"], preset["decoder"]["size"]
    large = Pictures(options.data, preset, s["size"], options.device, variants=1)
    small = Pictures(options.data, preset, small_size, options.device, variants=1)
    first, last = models.super_res(preset), models.super_res(preset)
    if options.init:
        models.start_from(options.init, super_res_first=first, super_res_last=last)
    nets = {"first": first, "last": last}
    for net in nets.values():
        net.to(options.device, memory_format=torch.channels_last)
        if options.device == "cpu" and not options.float32:
            fast_norm.speed_up(net)
    trainer = Trainer(options, "super_res", nets, 1.5e-3, ema=0.99, muon=True)
    alphas_cumprod = models.alphas_cumprod(options.device)
    batch, crop, factor = options.batch or BATCH[options.preset], s["crop"], s["size"] // small_size
    places = (s["size"] - crop) // factor + 1

    def loss_of(step):
        row, colour, variant = large.draw(batch, preset["background_share"])
        truth, up = large.rgb(row, colour, variant), enlarged(worn(small.rgb(row, colour, variant)), s["size"])
        y, x = (factor * k for k in torch.randint(0, places, (2,)).tolist())
        truth, up = truth[..., y:y + crop, x:x + crop], up[..., y:y + crop, x:x + crop]
        repair = step % 3 == 2
        t = torch.randint(0, LAST_T if repair else 1000, (batch,), device=row.device)
        alpha_bar = alphas_cumprod[t][:, None, None, None]
        x_t = alpha_bar.sqrt() * truth + (1 - alpha_bar).sqrt() * torch.randn_like(truth)
        if repair:   # or it would be shown the answer
            x_t = torch.lerp(x_t, up, torch.rand(batch, 1, 1, 1, device=row.device))
        net_in = torch.cat([x_t, up], 1).contiguous(memory_format=torch.channels_last)
        out = (last if repair else first)(net_in, t).sample.float()
        return F.l1_loss(out, truth), {}

    return trainer.run(loss_of)
