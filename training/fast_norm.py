"""Residual blocks with normalisation, scale, shift and SiLU as one CPU function: fast_norm.c, compiled at first use.

`speed_up(network)` replaces the forward of diffusers' residual blocks; weights, names and results stay the same up to
bfloat16 rounding. Without a C compiler, and on a GPU, training runs on PyTorch's own operations, at half the speed on
a CPU. One thread: the work of a step is too little to share.
"""
import ctypes
import shutil
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path
from types import MethodType

import torch

SOURCE = Path(__file__).with_name("fast_norm.c")
FLAGS = ["-O3", "-march=native", "-ffast-math", "-shared", "-fPIC"]   # fast-math: vectorised exp


@lru_cache
def library():
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        return None
    folder = Path(tempfile.mkdtemp())
    subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", str(folder / "fast_norm.so"), "-lm"], check=True)
    return ctypes.CDLL(str(folder / "fast_norm.so"))


def call(function, *arguments):
    kinds = {float: ctypes.c_float, int: ctypes.c_int64}
    function(*[ctypes.c_void_p(a.data_ptr()) if isinstance(a, torch.Tensor) else kinds[type(a)](a) for a in arguments])


class NormSilu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gamma, beta, scale, shift, groups, eps):
        n, c, h, w = x.shape
        x = x.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
        scale, shift = scale.float().contiguous(), shift.float().contiguous()
        y = torch.empty_like(x, memory_format=torch.channels_last)
        a, b = torch.empty(n, c), torch.empty(n, c)
        mean, rstd = torch.empty(n, groups), torch.empty(n, groups)
        call(library().forward, x, gamma, beta, scale, shift, eps, n, h * w, c, groups, y, a, b, mean, rstd)
        ctx.save_for_backward(x, gamma, beta, scale, a, b, mean, rstd)
        ctx.groups = groups
        return y

    @staticmethod
    def backward(ctx, dy):
        x, gamma, beta, scale, a, b, mean, rstd = ctx.saved_tensors
        n, c, h, w = x.shape
        dy = dy.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
        dx = torch.empty_like(x, memory_format=torch.channels_last)
        dgamma, dbeta, dscale, dshift = (torch.empty(n, c) for _ in range(4))
        call(library().backward, dy, x, gamma, beta, scale, a, b, mean, rstd, n, h * w, c, ctx.groups, dx,
             dgamma, dbeta, dscale, dshift)
        return dx, dgamma.sum(0), dbeta.sum(0), dscale, dshift, None, None


def norm_silu(norm, x, scale, shift):
    return NormSilu.apply(x, norm.weight, norm.bias, scale, shift, norm.num_groups, norm.eps)


def block_forward(self, input_tensor, temb, *_args, **_kwargs):
    """diffusers' ResnetBlock2D.forward for scale_shift time embeddings."""
    x = input_tensor
    nothing = x.new_zeros(x.shape[:2], dtype=torch.float32)
    h = norm_silu(self.norm1, x, nothing, nothing)
    if self.upsample is not None:
        x, h = self.upsample(x), self.upsample(h)
    elif self.downsample is not None:
        x, h = self.downsample(x), self.downsample(h)
    h = self.conv1(h)
    scale, shift = self.time_emb_proj(self.nonlinearity(temb)).chunk(2, dim=1)
    h = self.conv2(norm_silu(self.norm2, h, scale, shift))
    if self.conv_shortcut is not None:
        x = self.conv_shortcut(x)
    return x + h


def head_forward(self, x):
    nothing = x.new_zeros(x.shape[:2], dtype=torch.float32)
    return norm_silu(self, x, nothing, nothing)


def speed_up(network):
    """Replaces the slow parts of a U-Net's forward."""
    from diffusers.models.attention_processor import AttnAddedKVProcessor
    from diffusers.models.resnet import ResnetBlock2D
    if library() is None:
        return
    if hasattr(network, "set_attn_processor"):
        # At the few positions of the small levels, plain matmuls beat the fused attention's backward.
        network.set_attn_processor(AttnAddedKVProcessor())
    network.conv_norm_out.forward = MethodType(head_forward, network.conv_norm_out)
    network.conv_act.forward = lambda x: x
    for module in network.modules():
        if isinstance(module, ResnetBlock2D):
            assert module.time_embedding_norm == "scale_shift" and module.output_scale_factor == 1
            module.forward = MethodType(block_forward, module)
