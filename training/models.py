"""Presets, and the networks they name, as diffusers and transformers build them.

Everything has width `dim`: text hidden states, CLIP embeddings, prior and cross attention.
"""
import json

import torch

# Decoders go down to 2x2 or 4x4: their only sense of place is the zero padding of the convolutions, which says much on
# a small grid and little on a large one, and at those sizes width costs parameters but hardly any time.
# "plain" counts the levels without attention, largest first.
PRESETS = {
    # Two CPU cores, about two and a half hours: one style, everyday things, 32 px enlarged to 128.
    "cpu": dict(
        styles=["3d"], concepts=172, backgrounds=6, variants=10, background_share=0.4,
        dim=160, head=32, text_layers=3, vision_layers=3, patch=16, prior_layers=3, vocabulary=2048, context=32,
        decoder=dict(size=32, channels=[32, 64, 128, 128, 128], plain=3, groups=16),
        super_res=dict(size=128, channels=[16, 32, 48], groups=8, crop=48),
    ),
    # One data-centre GPU, under 25 minutes: three styles, every concept, 64 px enlarged to 256.
    "gpu": dict(
        styles=["3d", "flat", "cartoon"], concepts=0, backgrounds=10, variants=3, background_share=0.2,
        dim=160, head=32, text_layers=4, vision_layers=3, patch=8, prior_layers=4, vocabulary=2048, context=32,
        decoder=dict(size=64, channels=[32, 64, 64, 96, 160], plain=2, groups=16),
        super_res=dict(size=256, channels=[16, 32, 48], groups=8, crop=96),
    ),
}
VISION_SIZE = 64


def text_encoder(p):
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection
    d, vocabulary = p["dim"], p["vocabulary"]
    return CLIPTextModelWithProjection(CLIPTextConfig(
        vocab_size=vocabulary, hidden_size=d, intermediate_size=4 * d, projection_dim=d,
        num_hidden_layers=p["text_layers"], num_attention_heads=d // p["head"], max_position_embeddings=p["context"],
        hidden_act="quick_gelu", bos_token_id=vocabulary - 2, eos_token_id=vocabulary - 1, pad_token_id=vocabulary - 1))


def image_encoder(p):
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
    d = p["dim"]
    return CLIPVisionModelWithProjection(CLIPVisionConfig(
        hidden_size=d, intermediate_size=4 * d, projection_dim=d, num_hidden_layers=p["vision_layers"],
        num_attention_heads=d // p["head"], image_size=VISION_SIZE, patch_size=p["patch"], hidden_act="quick_gelu"))


def prior(p):
    from diffusers import PriorTransformer
    return PriorTransformer(
        num_attention_heads=p["dim"] // p["head"], attention_head_dim=p["head"], num_layers=p["prior_layers"],
        embedding_dim=p["dim"], num_embeddings=p["context"], additional_embeddings=4)


def decoder(p):
    """The decoder's U-Net and the projection of its conditions."""
    from diffusers import UNet2DConditionModel
    from diffusers.pipelines.deprecated.unclip import UnCLIPTextProjModel
    d = p["decoder"]
    levels, plain = len(d["channels"]), d["plain"]
    unet = UNet2DConditionModel(
        sample_size=d["size"], in_channels=3, out_channels=6, block_out_channels=d["channels"], layers_per_block=1,
        attention_head_dim=p["head"], norm_num_groups=d["groups"], cross_attention_dim=p["dim"],
        down_block_types=["ResnetDownsampleBlock2D"] * plain + ["SimpleCrossAttnDownBlock2D"] * (levels - plain),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=["SimpleCrossAttnUpBlock2D"] * (levels - plain) + ["ResnetUpsampleBlock2D"] * plain,
        class_embed_type="identity", resnet_time_scale_shift="scale_shift")
    text_proj = UnCLIPTextProjModel(
        clip_extra_context_tokens=4, clip_embeddings_dim=p["dim"], time_embed_dim=4 * d["channels"][0],
        cross_attention_dim=p["dim"])
    pin_variance(unet)
    return unet, text_proj


@torch.no_grad()
def pin_variance(unet):
    """The pipeline's guidance needs six output channels. The three for the variance always say "the lower end of the
    range", which is the posterior variance: learning it would buy nothing at this size."""
    unet.conv_out.weight[3:] = 0
    unet.conv_out.bias[3:] = -1


def super_res(p):
    from diffusers import UNet2DModel
    s = p["super_res"]
    levels = len(s["channels"])
    return UNet2DModel(
        sample_size=s["size"], in_channels=6, out_channels=3, block_out_channels=s["channels"], layers_per_block=1,
        down_block_types=["ResnetDownsampleBlock2D"] * levels, up_block_types=["ResnetUpsampleBlock2D"] * levels,
        add_attention=False, norm_num_groups=s["groups"], resnet_time_scale_shift="scale_shift", downsample_padding=1)


def alphas_cumprod(device):
    from diffusers import UnCLIPScheduler
    return UnCLIPScheduler().alphas_cumprod.to(device)


class Tokenizer:
    """CLIP's tokenizer, with captions as padded id and mask tensors."""

    def __init__(self, folder, context, device):
        from transformers import CLIPTokenizer
        self.inner, self.context, self.device = CLIPTokenizer.from_pretrained(str(folder)), context, device
        self.empty = self([""])

    def __call__(self, texts):
        e = self.inner(list(texts), padding="max_length", max_length=self.context, truncation=True, return_tensors="pt")
        return e["input_ids"].to(self.device), e["attention_mask"].bool().to(self.device)


def load_part(cls, folder, device):
    return cls.from_pretrained(str(folder)).float().to(device).eval().requires_grad_(False)


def load_pipeline(folder, device="cpu"):
    """diffusers' pipeline over an exported folder, part by part: this version of diffusers no longer resolves the
    library name "unclip" that Karlo's model_index.json, and so ours, gives for text_proj."""
    from diffusers import PriorTransformer, UNet2DConditionModel, UNet2DModel, UnCLIPPipeline, UnCLIPScheduler
    from diffusers.pipelines.deprecated.unclip import UnCLIPTextProjModel
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer
    networks = {
        "prior": PriorTransformer, "decoder": UNet2DConditionModel, "text_encoder": CLIPTextModelWithProjection,
        "text_proj": UnCLIPTextProjModel, "super_res_first": UNet2DModel, "super_res_last": UNet2DModel,
    }
    parts = {name: load_part(cls, folder / name, device) for name, cls in networks.items()}
    for name in ("prior_scheduler", "decoder_scheduler", "super_res_scheduler"):
        parts[name] = UnCLIPScheduler.from_pretrained(str(folder / name))
    pipeline = UnCLIPPipeline(tokenizer=CLIPTokenizer.from_pretrained(str(folder / "tokenizer")), **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def read_defaults(folder):
    """Steps and guidance scales that the checkpoint asks for."""
    return json.loads((folder / "model_index.json").read_text())["_engine_defaults"]


def start_from(folder, **modules):
    """Weights of an exported model, for a stage that has no checkpoint of its own."""
    from safetensors.torch import load_file
    for name, module in modules.items():
        [path] = (folder / name).glob("*.safetensors")
        module.load_state_dict({k: t.float() for k, t in load_file(path).items()})
        print(f"{name}: starts from {path}", flush=True)
