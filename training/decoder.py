"""Stage `decoder`: CLIP image embedding and caption to a small picture.

Predicts the picture itself ("sample"): with the pipeline's cosine schedule hardly anything of it is left at the first
steps, so that a prediction of the noise would say nothing there. Those first steps are the hard part, laying out the
picture from the conditions alone, so most training is spent on them.
"""
import torch
import torch.nn.functional as F

import clip
import fast_norm
import models
import sheets
from data import CaptionPool, Pictures
from trainer import Trainer, mean_of

BATCH = {"cpu": 40, "gpu": 256}
NOISY = 2.5          # t = 1000 (1 - u^NOISY): above 1 favours noisy timesteps
NO_CONDITION = 0.06  # share of pictures trained without conditions, for guidance
NO_CAPTION = 0.06    # share trained with the picture's embedding only, for image variations
BLUR = 0.3           # most noise on the embedding (components of variance 1); the prior's are not exact either


class Conditions:
    """Embeddings of every picture and caption, computed once: a training step is only the U-Net."""

    def __init__(self, options, preset, pictures):
        tok, text, image = clip.encoders(options, preset)
        finished = Pictures(options.data, preset, models.VISION_SIZE, options.device)
        self.image = clip.embed_pictures(image, finished)
        self.backgrounds = len(pictures.backgrounds)
        self.pool = CaptionPool(pictures, tok)
        # Pads are masked out in the decoder, so the longest caption sets the length.
        length = int(self.pool.mask.sum(1).max())
        self.mask = self.pool.mask[:, :length]
        self.pooled, self.hidden = clip.embed_captions(text, self.pool.ids[:, :length])
        self.empty_mask = tok.empty[1][:, :length]
        self.empty_pooled, self.empty_hidden = clip.embed_captions(text, tok.empty[0][:, :length])

    def picture(self, row, colour, variant):
        return self.image[row * self.backgrounds + colour, variant]

    def caption(self, row, colour, dropped):
        """(pooled, hidden, mask) of random captions, of the empty one where `dropped`."""
        k = self.pool.draw(row, colour)
        return (torch.where(dropped[:, None], self.empty_pooled, self.pooled[k]),
                torch.where(dropped[:, None, None], self.empty_hidden, self.hidden[k]),
                torch.where(dropped[:, None], self.empty_mask, self.mask[k]))


def train(options, preset):
    pictures = Pictures(options.data, preset, preset["decoder"]["size"], options.device)
    given = Conditions(options, preset, pictures)
    unet, text_proj = models.decoder(preset)
    if options.init:
        models.start_from(options.init, decoder=unet, text_proj=text_proj)
    unet.to(options.device, memory_format=torch.channels_last)
    text_proj.to(options.device)
    trainer = Trainer(options, "decoder", {"unet": unet, "text_proj": text_proj}, 1e-3, muon=True)
    alphas_cumprod = models.alphas_cumprod(options.device)
    net = torch.compile(unet) if options.compile else unet
    if options.device == "cpu" and not options.float32:
        fast_norm.speed_up(unet)
    batch, share = options.batch or BATCH[options.preset], preset["background_share"]
    extra = text_proj.config.clip_extra_context_tokens

    def loss_of(_step):
        row, colour, variant = pictures.draw(batch, share)
        x0 = pictures.rgb(row, colour, variant)
        u = torch.rand(batch, device=x0.device)
        pooled, hidden, mask = given.caption(row, colour, u < NO_CONDITION + NO_CAPTION)
        image = given.picture(row, colour, variant)
        image = image + BLUR * torch.rand(batch, 1, device=x0.device) * torch.randn_like(image)
        # Without conditions: the learnt vector and the empty caption, as the pipeline builds it.
        image = torch.where((u < NO_CONDITION)[:, None], text_proj.learned_classifier_free_guidance_embeddings, image)
        hidden, added = text_proj(image_embeddings=image, prompt_embeds=pooled, text_encoder_hidden_states=hidden,
                                  do_classifier_free_guidance=False)
        t = (1000 * (1 - torch.rand(batch, device=x0.device) ** NOISY)).long().clamp(0, 999)
        alpha_bar = alphas_cumprod[t][:, None, None, None]
        x_t = alpha_bar.sqrt() * x0 + (1 - alpha_bar).sqrt() * torch.randn_like(x0)
        out = net(x_t.contiguous(memory_format=torch.channels_last), t, encoder_hidden_states=hidden,
                  class_labels=added, attention_mask=F.pad(mask, (extra, 0), value=True)).sample[:, :3].float()
        error = (out - x0).square().mean((1, 2, 3))
        # Late steps have small errors that the eye sees all the same.
        weight = (alpha_bar / (1 - alpha_bar)).flatten().clamp(1, 5)
        plain = u >= NO_CONDITION + NO_CAPTION
        return (weight * error).mean(), {"noisy": mean_of(error.detach(), (t > 800) & plain),
                                         "noisiest": mean_of(error.detach(), (t > 950) & plain),
                                         "clear": mean_of(error.detach(), t < 400)}

    done = trainer.run(loss_of)
    sheets.decoder(options, preset, given, pictures)
    return done
