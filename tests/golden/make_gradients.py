#!/usr/bin/env python3
"""Makes the reference gradients of every operation that training meets, by torch's autograd in float64.

    pip install -r tests/golden/requirements.txt
    python tests/golden/make_gradients.py

Written beside this file: gradients.safetensors with, for each case CASE of tests/gradients.rs,

    CASE/NAME            an input in the engine's layout; integers are indices
    CASE/g               the gradient of the output
    CASE/y               the output
    CASE/grad/NAME       the gradient of an input, for those that have one

Pictures are [N, H, W, C], weights [N, K] and [O, C, R, S]. Sizes are odd where they may be. Of the losses the output is each
image's own value, and the gradient that of the mean over images.
"""

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

HERE = Path(__file__).parent
EPS = 1e-5
tensors = {}
generator = torch.Generator().manual_seed(20)


def draw(*shape):
    """Normal numbers that f32 holds exactly."""
    return torch.randn(*shape, generator=generator, dtype=torch.float32).double()


def ids(*values):
    return torch.tensor(values, dtype=torch.int64)


def record(case, forward, frozen=(), **inputs):
    leaves = {k: v.clone().requires_grad_(v.is_floating_point() and k not in frozen) for k, v in inputs.items()}
    y = forward(**leaves)
    g = draw(*y.shape)
    y.backward(g)
    keep(case, leaves, y, g)


def record_loss(case, forward, frozen=(), **inputs):
    """`forward` returns what is logged, and each image's loss."""
    leaves = {k: v.clone().requires_grad_(k not in frozen) for k, v in inputs.items()}
    shown, losses = forward(**leaves)
    losses.mean().backward()
    keep(case, leaves, shown, None)


def keep(case, leaves, y, g):
    tensors[f"{case}/y"] = y.detach()
    if g is not None:
        tensors[f"{case}/g"] = g
    for name, leaf in leaves.items():
        tensors[f"{case}/{name}"] = leaf.detach()
        if leaf.grad is not None:
            tensors[f"{case}/grad/{name}"] = leaf.grad


def nchw(x):
    return x.permute(0, 3, 1, 2)


def nhwc(x):
    return x.permute(0, 2, 3, 1)


ACTIVATIONS = {"silu": F.silu, "gelu": F.gelu, "quick_gelu": lambda z: z * torch.sigmoid(1.702 * z)}


def linear():
    x, weight, bias = draw(2, 3, 5), draw(7, 5), draw(7)
    record("linear/plain", lambda x, weight: F.linear(x, weight), x=x, weight=weight)
    record("linear/bias", F.linear, x=x, weight=weight, bias=bias)
    for name, act in ACTIVATIONS.items():
        record(f"linear/{name}", lambda x, weight, bias: act(F.linear(x, weight, bias)), x=x, weight=weight, bias=bias)
    residual = draw(2, 3, 7)
    record("linear/residual", lambda x, weight, bias, residual: F.linear(x, weight, bias) + residual,
           x=x, weight=weight, bias=bias, residual=residual)
    # One value read by two layers: gradients add.
    record("linear/shared", lambda x, weight: F.linear(F.linear(x, weight), weight), x=draw(3, 4), weight=draw(4, 4))
    a, b = draw(2, 5), draw(7, 2)
    record("adapter/linear", lambda x, weight, bias, lora_A, lora_B: F.linear(x, weight, bias) + 4 * F.linear(F.linear(x, lora_A), lora_B),
           frozen=("weight", "bias"), x=x, weight=weight, bias=bias, lora_A=a, lora_B=b)


def conv2d():
    def conv(x, weight, bias=None, **how):
        return nhwc(F.conv2d(nchw(x), weight, bias, **how))

    x = draw(2, 5, 4, 3)
    def whole(x, weight, bias, shift, residual):
        return conv(x, weight, bias, padding=1) + shift[:, None, None] + residual
    record("conv2d/3x3", whole, x=x, weight=draw(5, 3, 3, 3), bias=draw(5), shift=draw(2, 5), residual=draw(2, 5, 4, 5))
    record("conv2d/1x1", conv, x=x, weight=draw(5, 3, 1, 1), bias=draw(5))
    record("conv2d/stride", lambda x, weight, bias: conv(x, weight, bias, stride=2, padding=1), x=x, weight=draw(5, 3, 3, 3), bias=draw(5))
    record("conv2d/patch", lambda x, weight: conv(x, weight, stride=2), x=x, weight=draw(5, 3, 2, 2))
    record("conv2d/below", lambda x, weight: conv(F.pad(x, (0, 0, 0, 1, 0, 1)), weight, stride=2), x=x, weight=draw(5, 3, 3, 3))
    record("adapter/conv2d", lambda x, weight, bias, lora_A, lora_B: conv(x, weight, bias, padding=1) + 4 * conv(conv(x, lora_A, padding=1), lora_B),
           frozen=("weight", "bias"), x=x, weight=draw(5, 3, 3, 3), bias=draw(5), lora_A=draw(2, 3, 3, 3), lora_B=draw(5, 2, 1, 1))


def attention():
    b, heads, d = 2, 2, 3

    def attend(q, k, v, k_extra=None, v_extra=None, mask=None, causal=False):
        extra = 0 if k_extra is None else k_extra.shape[1]
        if extra:
            k, v = torch.cat([k_extra, k], 1), torch.cat([v_extra, v], 1)
        split = lambda t: t.unflatten(2, (heads, d)).transpose(1, 2)
        rows, keys = q.shape[1], k.shape[1]
        seen = torch.ones(b, rows, keys, dtype=torch.bool)
        if mask is not None:
            seen[..., : mask.shape[1]] = mask[:, None] > 0
        if causal:
            own = keys - extra
            seen[..., extra:] &= torch.ones(rows, own, dtype=torch.bool).tril(own - rows)
        scores = (split(q) @ split(k).mT / math.sqrt(d)).masked_fill(~seen[:, None], -math.inf)
        return (scores.softmax(-1) @ split(v)).transpose(1, 2).flatten(2)

    tokens = lambda n: draw(b, n, heads * d)
    mask = torch.ones(b, 4, dtype=torch.float64)
    mask[0, 2], mask[1, 3] = 0, 0
    record("attention/own", attend, q=tokens(3), k=tokens(4), v=tokens(4))
    record("attention/causal", lambda **t: attend(**t, causal=True), q=tokens(3), k=tokens(5), v=tokens(5))
    record("attention/extra", attend, frozen=("mask",), q=tokens(5), k=tokens(5), v=tokens(5), k_extra=tokens(4), v_extra=tokens(4), mask=mask)
    record("attention/prior", lambda **t: attend(**t, causal=True), frozen=("mask",), q=tokens(3), k=tokens(3), v=tokens(3),
           k_extra=tokens(5), v_extra=tokens(5), mask=mask)


def norms():
    x, c = draw(2, 3, 5, 6) + 0.4, 6

    def group(x, weight, bias, style=None, act=None):
        y = nhwc(F.group_norm(nchw(x), 3, weight, bias, EPS))
        if style is not None:
            y = y * (1 + style[:, None, None, :c]) + style[:, None, None, c:]
        return y if act is None else ACTIVATIONS[act](y)

    vectors = dict(weight=draw(c), bias=draw(c))
    record("group_norm/plain", group, x=x, **vectors)
    record("group_norm/silu", lambda **t: group(**t, act="silu"), x=x, **vectors)
    record("group_norm/style", lambda **t: group(**t, act="silu"), x=x, **vectors, style=draw(2, 2 * c))
    record("layer_norm/rows", lambda x, weight, bias: F.layer_norm(x, (7,), weight, bias, EPS), x=draw(2, 3, 7), weight=draw(7), bias=draw(7))


def pointwise():
    x, last, pair = draw(2, 3, 2, 5), draw(2, 5), draw(2, 10)
    for name, act in ACTIVATIONS.items():
        record(f"pointwise/{name}", lambda x: act(x), x=2 * x)
    record("pointwise/add", lambda x, other: x + other, x=x, other=last)
    record("pointwise/multiply", lambda x, other: x * other, x=x, other=last)
    record("pointwise/square", lambda x: x * x, x=x)
    record("pointwise/add_channels", lambda x, other: x + other[:, None, None], x=x, other=draw(2, 5))
    record("pointwise/scale_shift", lambda x, other: x * (1 + other[:, None, None, :5]) + other[:, None, None, 5:], x=x, other=pair)
    record("pointwise/clamp", lambda x: x.clamp(-1, 1), x=x)


def moving():
    a, b = draw(2, 3, 5), draw(2, 2, 5)
    record("concat/twice", lambda a, b: torch.cat([a, b, a], 1), a=a, b=b)
    record("slice/by_two", lambda x: x[:, 1:6:2], x=draw(2, 7, 3))
    record("embed/lookup", lambda table, ids: F.embedding(ids, table), table=draw(5, 3), ids=ids([1, 3, 1], [0, 3, 3]))
    record("embed/token", lambda x, ids: x[torch.arange(2), ids], x=draw(2, 4, 3), ids=ids(3, 1))
    record("embed/row", lambda x: x[0], x=draw(3, 2, 5))
    record("resize/double", lambda x: nhwc(F.interpolate(nchw(x), scale_factor=2, mode="nearest")), x=draw(2, 3, 2, 3))
    record("resize/halve", lambda x: nhwc(F.avg_pool2d(nchw(x), 2)), x=draw(2, 5, 4, 3))


def losses():
    record_loss("loss/squared_error", lambda output, target: (((output - target) ** 2).mean(1),) * 2, frozen=("target",),
                output=draw(3, 5), target=draw(3, 5))
    # Nichol & Dhariwal's hybrid loss on the cosine schedule, with the means of posterior and prediction as they define them.
    t = torch.tensor([0, 1, 500, 999])
    bar = lambda u: math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2
    betas = torch.tensor([min(1 - bar((i + 1) / 1000) / bar(i / 1000), 0.999) for i in range(1000)], dtype=torch.float64)
    bars = torch.cumprod(1 - betas, 0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), bars[:-1]])
    posterior = betas * (1 - before) / (1 - bars)
    floor = posterior.clone()
    floor[0] = posterior[1]
    at = lambda table: table[t][:, None, None, None]
    cdf = lambda u: 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))

    def hybrid(output, x0, noise, coefficients):
        eps, v = output.chunk(2, -1)
        x_t = at(bars.sqrt()) * x0 + at((1 - bars).sqrt()) * noise
        guess = (x_t - at((1 - bars).sqrt()) * eps.detach()) / at(bars.sqrt())
        first, second = at(betas * before.sqrt() / (1 - bars)), at((1 - before) * (1 - betas).sqrt() / (1 - bars))
        true_mean, mean = first * x0 + second * x_t, first * guess + second * x_t
        log_variance = (v + 1) / 2 * at(betas.log()) + (1 - v) / 2 * at(floor.log())
        kl = 0.5 * (-1 + log_variance - at(floor.log()) + (at(floor.log()) - log_variance).exp() + (true_mean - mean) ** 2 * (-log_variance).exp())
        deviation = (-0.5 * log_variance).exp()
        above, below = cdf(deviation * (x0 - mean + 1 / 255)), cdf(deviation * (x0 - mean - 1 / 255))
        inner = (above - below).clamp(min=1e-12)
        likelihood = torch.where(x0 < -0.999, above.clamp(min=1e-12), torch.where(x0 > 0.999, (1 - below).clamp(min=1e-12), inner))
        vb = torch.where(at(torch.arange(1000)) == 0, -likelihood.log(), kl).flatten(1).mean(1) / math.log(2)
        mse = ((eps - noise) ** 2).flatten(1).mean(1)
        return torch.stack([mse, vb], 1), mse + vb

    coefficients = torch.stack([betas.log(), floor.log(), betas**2 / ((1 - betas) * (1 - bars)), ((1 - bars) / bars).sqrt(), torch.arange(1000) == 0], 1)[t]
    noise = draw(4, 3, 2, 3)
    near = torch.cat([noise, torch.zeros_like(noise)], -1) + 0.05 * draw(4, 3, 2, 6)
    record_loss("loss/diffusion", hybrid, frozen=("x0", "noise", "coefficients"), output=near, x0=(0.8 * draw(4, 3, 2, 3)).clamp(-1, 1),
                noise=noise, coefficients=coefficients)


for cases in (linear, conv2d, attention, norms, pointwise, moving, losses):
    cases()
stored = {k: (v.float() if v.is_floating_point() else v).contiguous() for k, v in tensors.items()}
save_file(stored, HERE / "gradients.safetensors")
print(f"{len(stored)} tensors, {(HERE / 'gradients.safetensors').stat().st_size} bytes")
