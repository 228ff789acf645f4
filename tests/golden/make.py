#!/usr/bin/env python3
"""Makes the reference data of the tests with the original libraries: torch and diffusers.

    pip install -r tests/golden/requirements.txt
    python tests/golden/make.py

Written beside this file:

tiny/                   a random checkpoint, see checkpoint.py
tiny-run.safetensors    a run of diffusers' UnCLIPPipeline on it: PROMPTS, 25/25/7 steps, guidance 4 and 8,
                        one generator per picture seeded 0, 1
variation.safetensors   a run of UnCLIPImageVariationPipeline on it: two pictures of one, seeds 7 and 8; pictures as
                        CLIPImageProcessor prepares them, and PNGs of all kinds as Pillow reads them
schedule.safetensors    UnCLIPScheduler's tables, timesteps, coefficients and steps; time features
noise.safetensors       draws of torch's CPU generator

Tensor names of the run (torch layouts: channels first; guidance batches hold the unconditional half first)
    text/input_ids, text_embeds, last_hidden_state, attention_mask;   uncond/... of the empty prompt
    image_embeds, text_proj/encoder_hidden_states, text_proj/additive_time_embeds
    prior/text_mask, text_embeds, text_hidden_states;   decoder/attention_mask
    super_res/image_upscaled;   image/float, image/u8
    STAGE/timesteps, STAGE/initial_latents               STAGE = prior, decoder, super_res
    STAGE/step_NN/model_input, model_output              for the first, one middle and the last step
    STAGE/step_NN/guided                                 what the scheduler receives; absent without guidance
    STAGE/step_NN/pred_original, noise, latents          x0 after clipping, the draw (not in the last), the result

Tensor names of the variation: as above without the prior and with few of the steps, and
    input                                                the picture, bytes [H, W, 3]
    image_encoder/pixel_values, image_encoder/image_embeds
    preprocess/K/image, preprocess/K/pixel_values        other pictures, prepared alike
    png/DEPTH_COLOUR/file, png/DEPTH_COLOUR/rgb          a file's bytes and its pixels [H, W, 3]; COLOUR as the format
                                                         numbers it: 0 grey, 2 colours, 3 palette, 4 and 6 with alpha

Tensor names of the schedule, for n = 7, 25 steps
    betas, alphas_cumprod, timesteps/n
    coefficients/n [n, 8]                    each probed from the scheduler by a step on zeros and ones
    step/sample, step/output, step/noise     one x_t [3, 4, 4], model output [6, 4, 4] and draw, used in every step
    step/n/PREDICTION/VARIANCE/{prev, x0}    [n, 3, 4, 4]; x0 is clipped to 1
    time/WIDTH_FLIP_SHIFT                    features of timesteps/7
Noise: SEED/K_SIZE is the K-th draw under a seed.
"""

import io
import struct
import sys
import zlib
from pathlib import Path

import diffusers.schedulers.scheduling_unclip as scheduling
import numpy as np
import torch
from checkpoint import write_checkpoint
from diffusers import PriorTransformer, UNet2DConditionModel, UNet2DModel
from diffusers import UnCLIPImageVariationPipeline, UnCLIPPipeline, UnCLIPScheduler
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.pipelines.deprecated.unclip.text_proj import UnCLIPTextProjModel
from PIL import Image
from safetensors.torch import save_file
from transformers import CLIPImageProcessorPil, CLIPTextModelWithProjection, CLIPTokenizer
from transformers import CLIPVisionModelWithProjection

HERE = Path(__file__).parent
PROMPTS = ["a red frog on a green leaf", "An oil painting of Łódź at night, 1999!"]
STEPS = {"prior": 25, "decoder": 25, "super_res": 7}
KEPT = {stage: (0, count // 2, count - 1) for stage, count in STEPS.items()}

# ---- the pipeline -------------------------------------------------------------------


def load_pipeline(folder, variation=False):
    """Builds the pipeline from its parts; model_index.json names a module that has moved."""

    def part(cls, name):
        return cls.from_pretrained(folder, subfolder=name, local_files_only=True)

    def whole(cls, name):
        return cls.from_pretrained(folder / name, local_files_only=True)

    if variation:
        source = {
            "image_encoder": whole(CLIPVisionModelWithProjection, "image_encoder"),
            "feature_extractor": whole(CLIPImageProcessorPil, "feature_extractor"),
        }
    else:
        source = {"prior": part(PriorTransformer, "prior"), "prior_scheduler": part(UnCLIPScheduler, "prior_scheduler")}
    return (UnCLIPImageVariationPipeline if variation else UnCLIPPipeline)(
        tokenizer=whole(CLIPTokenizer, "tokenizer"),
        text_encoder=whole(CLIPTextModelWithProjection, "text_encoder"),
        text_proj=part(UnCLIPTextProjModel, "text_proj"),
        decoder=part(UNet2DConditionModel, "decoder"),
        super_res_first=part(UNet2DModel, "super_res_first"),
        super_res_last=part(UNet2DModel, "super_res_last"),
        decoder_scheduler=part(UnCLIPScheduler, "decoder_scheduler"),
        super_res_scheduler=part(UnCLIPScheduler, "super_res_scheduler"),
        **source,
    )


class Recorder:
    """Collects tensors by forward hooks, and by wrapping `scheduler.step` and the random draws."""

    def __init__(self, pipe):
        self.tensors, self.step = {}, dict.fromkeys(STEPS, 0)
        self.stage, self.in_step, self.noise, self.texts = None, False, None, ["text", "uncond"]
        hooks = {"prior": self.on_prior, "image_encoder": self.on_image}
        for module, function in [
            *((getattr(pipe, name), function) for name, function in hooks.items() if hasattr(pipe, name)),
            (pipe.text_encoder, self.on_text),
            (pipe.text_proj, self.on_text_proj),
            (pipe.decoder, self.on_decoder),
            (pipe.super_res_first, self.on_super_res),
            (pipe.super_res_last, self.on_super_res),
        ]:
            module.register_forward_hook(function, with_kwargs=True)
        for stage in STEPS:
            if hasattr(pipe, f"{stage}_scheduler"):
                self.wrap_scheduler(stage, getattr(pipe, f"{stage}_scheduler"))
        for module in (sys.modules[type(pipe).__module__], scheduling):
            self.wrap_random(module)

    def put(self, name, value):
        value = value.to(torch.uint8) if value.dtype == torch.bool else value
        self.tensors[name] = value.detach().contiguous().clone()

    def put_step(self, stage, **values):
        i = self.step[stage]
        if i in KEPT[stage]:
            for name, value in values.items():
                self.put(f"{stage}/step_{i:02d}/{name}", value)

    def put_pictures(self, images):
        self.put("image/float", torch.from_numpy(images))
        self.put("image/u8", torch.from_numpy((images * 255).round().astype(np.uint8)))

    def on_text(self, module, args, kwargs, output):
        prefix = self.texts.pop(0)
        self.put(f"{prefix}/input_ids", args[0] if args else kwargs["input_ids"])
        self.put(f"{prefix}/text_embeds", output.text_embeds)
        self.put(f"{prefix}/last_hidden_state", output.last_hidden_state)

    def on_prior(self, module, args, kwargs, output):
        self.put("prior/text_mask", kwargs["attention_mask"])
        self.put("prior/text_embeds", kwargs["proj_embedding"])
        self.put("prior/text_hidden_states", kwargs["encoder_hidden_states"])
        self.put_step("prior", model_input=args[0], model_output=output.predicted_image_embedding)

    def on_image(self, module, args, kwargs, output):
        self.put("image_encoder/pixel_values", args[0] if args else kwargs["pixel_values"])
        self.put("image_encoder/image_embeds", output.image_embeds)

    def on_text_proj(self, module, args, kwargs, output):
        self.put("image_embeds", kwargs["image_embeddings"])
        self.put("text_proj/encoder_hidden_states", output[0])
        self.put("text_proj/additive_time_embeds", output[1])

    def on_decoder(self, module, args, kwargs, output):
        self.put("decoder/attention_mask", kwargs["attention_mask"])
        self.put_step("decoder", model_input=kwargs["sample"], model_output=output.sample)

    def on_super_res(self, module, args, kwargs, output):
        self.put("super_res/image_upscaled", kwargs["sample"][:, 3:])
        self.put_step("super_res", model_input=kwargs["sample"], model_output=output.sample)

    def wrap_scheduler(self, stage, scheduler):
        original, set_timesteps = scheduler.step, scheduler.set_timesteps

        def step(model_output, timestep, sample, *args, **kwargs):
            self.in_step, self.noise = True, None
            result = original(model_output, timestep, sample, *args, **kwargs)
            self.in_step = False
            if stage != "super_res":
                self.put_step(stage, guided=model_output)
            if self.noise is not None:
                self.put_step(stage, noise=self.noise)
            self.put_step(stage, pred_original=result.pred_original_sample, latents=result.prev_sample)
            self.step[stage] += 1
            return result

        def set_steps(*args, **kwargs):
            set_timesteps(*args, **kwargs)
            self.put(f"{stage}/timesteps", scheduler.timesteps)
            self.stage = stage

        scheduler.step, scheduler.set_timesteps = step, set_steps

    def wrap_random(self, module):
        original = module.randn_tensor

        def draw(*args, **kwargs):
            value = original(*args, **kwargs)
            if self.in_step:
                self.noise = value
            else:
                self.put(f"{self.stage}/initial_latents", value)
            return value

        module.randn_tensor = draw


def run_tensors(folder):
    pipe = load_pipeline(folder)
    pipe.set_progress_bar_config(disable=True)
    recorder = Recorder(pipe)
    tokens = pipe.tokenizer(PROMPTS, padding="max_length", max_length=77, truncation=True, return_tensors="pt")
    recorder.put("text/attention_mask", tokens.attention_mask)
    images = pipe(
        PROMPTS,
        prior_num_inference_steps=STEPS["prior"],
        decoder_num_inference_steps=STEPS["decoder"],
        super_res_num_inference_steps=STEPS["super_res"],
        prior_guidance_scale=4.0,
        decoder_guidance_scale=8.0,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in range(len(PROMPTS))],
        output_type="np",
    ).images
    recorder.put_pictures(images)
    return recorder.tensors


# ---- variations ---------------------------------------------------------------------


def drawn(width, height):
    """A picture with slopes, waves and an edge in all three colours."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    disc = (x - 0.6 * width) ** 2 + (y - 0.45 * height) ** 2 < (0.25 * min(width, height)) ** 2
    slopes = [255 * x / max(width - 1, 1), 255 * y / max(height - 1, 1), 127.5 * (1 + np.sin(x / 3) * np.cos(y / 5))]
    return np.stack([np.where(disc, c, slope) for c, slope in zip((240, 0, 60), slopes)], -1).round().astype(np.uint8)


def png_file(depth, colour, width=5, height=3):
    """A PNG of any kind with made-up samples, and three of its possible palette entries unused."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    random = np.random.default_rng(10 * depth + colour)
    samples = random.integers(0, 2 ** min(depth, 3) if colour == 3 else 2**depth, size=(height, width * channels))
    bits = (samples[..., None] >> np.arange(depth)[::-1]) & 1
    rows = np.packbits(bits.reshape(height, -1).astype(np.uint8), axis=1)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))]
    if colour == 3:
        chunks += [(b"PLTE", random.bytes(3 * 2 ** min(depth, 3))), (b"tRNS", bytes([0, 100]))]
    chunks += [(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))), (b"IEND", b"")]

    def number(n):
        return struct.pack(">I", n)

    whole = (number(len(data)) + kind + data + number(zlib.crc32(kind + data)) for kind, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(whole)


def variation_tensors(folder):
    pipe = load_pipeline(folder, variation=True)
    pipe.set_progress_bar_config(disable=True)
    recorder = Recorder(pipe)
    picture = drawn(96, 72)
    images = pipe(
        Image.fromarray(picture),
        num_images_per_prompt=2,
        decoder_num_inference_steps=STEPS["decoder"],
        super_res_num_inference_steps=STEPS["super_res"],
        decoder_guidance_scale=8.0,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in (7, 8)],
        output_type="np",
    ).images
    recorder.put_pictures(images)
    kept = ("text/", "uncond/", "image", "text_proj/", "decoder/initial", "decoder/step_00/", "decoder/step_24/latents")
    tensors = {name: tensor for name, tensor in recorder.tensors.items() if name.startswith(kept)}
    tensors["input"] = torch.from_numpy(picture)
    # Smaller (the second direction first), larger, as it is, cut alone, a row of pixels, and smaller the other way.
    for k, (width, height) in enumerate([(40, 133), (20, 17), (28, 28), (28, 91), (61, 1), (72, 96)]):
        picture = drawn(width, height)
        tensors[f"preprocess/{k}/image"] = torch.from_numpy(picture)
        prepared = pipe.feature_extractor(Image.fromarray(picture), return_tensors="pt").pixel_values
        tensors[f"preprocess/{k}/pixel_values"] = prepared
    # All kinds but grey of 16 bits, which Pillow cuts off at 255.
    depths = {0: (1, 2, 4, 8), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
    for depth, colour in [(depth, colour) for colour, all_depths in depths.items() for depth in all_depths]:
        file = png_file(depth, colour)
        tensors[f"png/{depth}_{colour}/file"] = torch.frombuffer(bytearray(file), dtype=torch.uint8)
        rgb = np.array(Image.open(io.BytesIO(file)).convert("RGB"))
        tensors[f"png/{depth}_{colour}/rgb"] = torch.from_numpy(rgb)
    return tensors


# ---- the scheduler ------------------------------------------------------------------


class GivenNoise:
    """Steps of an UnCLIPScheduler that add the noise given here instead of a draw."""

    def __init__(self, **config):
        self.scheduler = UnCLIPScheduler(**config)

    def __call__(self, output, t, sample, prev, noise):
        original, scheduling.randn_tensor = scheduling.randn_tensor, lambda *_, **__: noise
        try:
            return self.scheduler.step(output[None], t, sample[None], prev_timestep=prev)
        finally:
            scheduling.randn_tensor = original


def pairs(timesteps):
    """The pipeline's (t, prev_timestep) of every step."""
    return list(zip(timesteps, [*timesteps[1:], None]))


def probe_coefficients(timesteps):
    one, zero = torch.ones(1, 1, 1), torch.zeros(1, 1, 1)
    linear = GivenNoise(clip_sample=False, prediction_type="sample")
    learned = UnCLIPScheduler(variance_type="learned_range")
    rows = []
    for t, prev in pairs(timesteps):
        alpha_bar = learned.alphas_cumprod[t]
        logs = [learned._get_variance(t, prev, predicted_variance=v * torch.ones(())) for v in (1, -1)]
        rows.append(
            [
                (1 - alpha_bar) ** 0.5,
                alpha_bar**0.5,
                linear(one, t, zero, prev, zero).prev_sample,
                linear(zero, t, one, prev, zero).prev_sample,
                linear(zero, t, zero, prev, one).prev_sample,
                *(logs if t > 0 else (0, 0)),
                int(t > 0),
            ]
        )
    return torch.tensor([[float(value) for value in row] for row in rows])


def schedule_tensors():
    scheduler = UnCLIPScheduler()
    tensors = {"betas": scheduler.betas, "alphas_cumprod": scheduler.alphas_cumprod}
    generator = torch.Generator("cpu").manual_seed(5)
    sample, noise = (torch.randn(3, 4, 4, generator=generator) for _ in range(2))
    output = torch.randn(6, 4, 4, generator=generator)
    # Near x_t, as a trained model's noise is at large t: otherwise clipping hides the arithmetic.
    output[:3] = sample + output[:3] * torch.logspace(-7, 0, 16).view(4, 4)
    tensors |= {"step/sample": sample, "step/output": output, "step/noise": noise}
    for n in (7, 25):
        scheduler.set_timesteps(n)
        tensors[f"timesteps/{n}"] = scheduler.timesteps
        timesteps = scheduler.timesteps.tolist()
        tensors[f"coefficients/{n}"] = probe_coefficients(timesteps)
        for prediction in ("epsilon", "sample"):
            for variance in ("fixed_small_log", "learned_range"):
                step = GivenNoise(prediction_type=prediction, variance_type=variance)
                seen = output if variance == "learned_range" else output[:3]
                results = [step(seen, t, sample, prev, noise) for t, prev in pairs(timesteps)]
                key = f"step/{n}/{prediction}/{variance}"
                tensors[f"{key}/prev"] = torch.cat([r.prev_sample for r in results])
                tensors[f"{key}/x0"] = torch.cat([r.pred_original_sample for r in results])
    for width, flip, shift in [(320, True, 0), (48, True, 0), (33, False, 1)]:
        features = get_timestep_embedding(tensors["timesteps/7"], width, flip, shift)
        tensors[f"time/{width}_{str(flip).lower()}_{shift}"] = features
    return tensors


# ---- noise --------------------------------------------------------------------------


def noise_tensors():
    tensors = {}
    for seed in (0, 1234, 2**40 + 5):
        generator = torch.Generator("cpu").manual_seed(seed)
        # Multiples of 16, tails, the serial path with a value left over, and the grouped path after it.
        for k, size in enumerate([16, 24, 768, 15, 3, 12288, 17]):
            tensors[f"{seed}/{k}_{size}"] = torch.randn(size, generator=generator)
    return tensors


def main():
    assert torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512"), "other builds of torch draw other noise"
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    write_checkpoint(HERE / "tiny")
    print(f"tiny/: {sum(f.stat().st_size for f in (HERE / 'tiny').rglob('*') if f.is_file()):,} bytes")
    # Each is written before the next begins, whose random draws the recorder would otherwise see as well.
    for name, make in [
        ("noise", noise_tensors),
        ("schedule", schedule_tensors),
        ("tiny-run", lambda: run_tensors(HERE / "tiny")),
        ("variation", lambda: variation_tensors(HERE / "tiny")),
    ]:
        tensors = make()
        file = HERE / f"{name}.safetensors"
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
        print(f"{file.name}: {len(tensors)} tensors, {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
