"""Stage `prior`: caption to CLIP image embedding, a diffusion over one vector that predicts the vector itself."""
import torch
import torch.nn.functional as F

import models
from data import Pictures
from decoder import Conditions
from trainer import Trainer

BATCH = {"cpu": 96, "gpu": 1024}
NO_CONDITION = 0.1


def train(options, preset):
    pictures = Pictures(options.data, preset, models.VISION_SIZE, options.device)
    given = Conditions(options, preset, pictures)
    net = models.prior(preset).to(options.device)
    if options.init:
        models.start_from(options.init, prior=net)
    share = preset["background_share"]
    with torch.no_grad():
        seen = given.picture(*pictures.draw(20000, share))
        net.clip_mean.data, net.clip_std.data = seen.mean(0, keepdim=True), seen.std(0, keepdim=True)
    net.clip_mean.requires_grad_(False)
    net.clip_std.requires_grad_(False)
    trainer = Trainer(options, "prior", {"prior": net}, 1e-3, ema=0.995, muon=True)
    alphas_cumprod = models.alphas_cumprod(options.device)
    batch, pads = options.batch or BATCH[options.preset], preset["context"] - given.mask.shape[1]

    def loss_of(_step):
        row, colour, variant = pictures.draw(batch, share)
        dropped = torch.rand(batch, device=row.device) < NO_CONDITION
        pooled, hidden, mask = given.caption(row, colour, dropped)
        z0 = (given.picture(row, colour, variant) - net.clip_mean) / net.clip_std
        t = torch.randint(0, 1000, (batch,), device=row.device)
        alpha_bar = alphas_cumprod[t][:, None]
        z_t = alpha_bar.sqrt() * z0 + (1 - alpha_bar).sqrt() * torch.randn_like(z0)
        out = net(z_t, timestep=t, proj_embedding=pooled, encoder_hidden_states=F.pad(hidden, (0, 0, 0, pads)),
                  attention_mask=F.pad(mask, (0, pads))).predicted_image_embedding.float()
        error = (out - z0).square().mean(1)
        return error.mean(), {"noisy": error[t > 800].mean().detach()}

    return trainer.run(loss_of)
