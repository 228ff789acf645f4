"""Muon (Jordan et al. 2024) for weight matrices, AdamW for the rest, as one optimizer.

Muon replaces the averaged gradient of a matrix by the nearest semi-orthogonal one, so that all directions are learnt
at one speed and not only the few that dominate the gradient. Convolution kernels count as matrices
[out, in * height * width].
"""
from collections import defaultdict

import torch


def orthogonalised(g, steps=5):
    """[K, M, N] -> about the same with all singular values near 1, by Newton-Schulz iteration."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = g.shape[1] > g.shape[2]
    x = g.mT if tall else g
    x = (x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)).bfloat16()
    for _ in range(steps):
        square = x @ x.mT
        square = torch.baddbmm(square, square, square, beta=b, alpha=c)
        x = torch.baddbmm(x, square, x, beta=a)
    return (x.mT if tall else x).float()


class Muon(torch.optim.Optimizer):
    """The matrices' part; matrices of one shape are treated as one batch."""

    def __init__(self, params, lr=0.01, momentum=0.95, weight_decay=0.01):
        super().__init__(params, dict(lr=lr, momentum=momentum, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes = defaultdict(list)
            for p in group["params"]:
                if p.grad is not None:
                    shapes[p.shape].append(p)
            for shape, params in shapes.items():
                grads = [p.grad for p in params]
                averages = [self.state[p].setdefault("average", torch.zeros_like(p)) for p in params]
                torch._foreach_lerp_(averages, grads, 1 - group["momentum"])
                ahead = torch._foreach_lerp(grads, averages, group["momentum"])   # Nesterov
                matrices = torch.stack([a.reshape(shape[0], -1) for a in ahead])
                moves = orthogonalised(matrices)
                rate = group["lr"] * max(1, matrices.shape[1] / matrices.shape[2]) ** 0.5
                torch._foreach_mul_(params, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(params, [m.reshape(shape) for m in moves], alpha=-rate)


class Both:
    """Muon on the networks' inner matrices, AdamW on biases, norms, first and last layers and embeddings; AdamW on all
    of them if `muon_lr` is None."""

    OUTER = ("conv_in", "conv_out", "embedding", "learned")

    def __init__(self, modules, lr, weight_decay, muon_lr):
        inner, decayed, rest = [], [], []
        for module in modules.values():
            for name, p in module.named_parameters():
                outer = muon_lr is None or any(word in name for word in self.OUTER)
                if p.requires_grad:
                    (rest if p.ndim < 2 else decayed if outer else inner).append(p)
        groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
        self.parts, self.rates = [torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)], [lr]
        if inner:
            self.parts.append(Muon(inner, muon_lr, weight_decay=weight_decay))
            self.rates.append(muon_lr)

    def set_rate(self, factor):
        for part, rate in zip(self.parts, self.rates):
            for group in part.param_groups:
                group["lr"] = rate * factor

    def step(self):
        for part in self.parts:
            part.step()

    def zero_grad(self):
        for part in self.parts:
            part.zero_grad(set_to_none=True)

    def state_dict(self):
        return [part.state_dict() for part in self.parts]

    def load_state_dict(self, states):
        for part, state in zip(self.parts, states):
            part.load_state_dict(state)
