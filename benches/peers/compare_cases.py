"""Times the shapes of `engine bench` in PyTorch and prints both side by side.

    engine bench --device cuda --dtype f16 --json --filter decoder-64px > ours.json
    python compare_cases.py --device cuda --dtype f16 ours.json

Operations are PyTorch's (cuBLAS, cuDNN, scaled_dot_product_attention) on channels-last pictures. On a GPU both sides
run as CUDA graphs, so launches cost neither side. Networks are diffusers' with Karlo's configuration and random
weights, eager, and compiled with `--compile`. Shares are of the device's roofline in this run: a large matmul, and a
copy of memory. `--device cpu` works too.

The table has for each case: time, rates, share of the roofline, PyTorch's time, and its ratio to the engine's.

`--trace A B` instead compares two recordings of `engine run --trace`, and exits with 1 if a tensor differs by more than
2e-3 of its largest element, or a pixel by more than 2 of 255.
"""

import argparse
import json
import math
import os
import statistics
import sys
import time

import torch
import torch.nn.functional as F

CONFIGURATIONS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "src", "cases", "karlo")
DTYPES = {"f32": torch.float32, "tf32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
TENSOR_BAR, PIXEL_BAR = 2e-3, 2


class Peer:
    """Builds PyTorch's version of a case, for one device and type."""

    def __init__(self, device, dtype):
        self.device, self.dtype = device, dtype
        self.generator = torch.Generator().manual_seed(0)

    def draw(self, *shape):
        return torch.randn(shape, generator=self.generator).to(self.device, self.dtype)

    def picture(self, n, h, w, c):
        """A tensor [N, C, H, W] in channels-last memory format."""
        return self.draw(n, c, h, w).to(memory_format=torch.channels_last)

    def linear(self, rows, depth, outputs, residual=False):
        x, w, b = self.draw(rows, depth), self.draw(outputs, depth) / math.sqrt(depth), self.draw(outputs)
        added = self.draw(rows, outputs) if residual else None
        run = (lambda: F.linear(x, w, b) + added) if residual else (lambda: F.linear(x, w, b))
        return run, 2 * rows * depth * outputs

    def conv2d(self, n, side, c, outputs):
        x = self.picture(n, side, side, c)
        w = (self.draw(outputs, c, 3, 3) / math.sqrt(9 * c)).to(memory_format=torch.channels_last)
        b = self.draw(outputs)
        return lambda: F.conv2d(x, w, b, padding=1), 2 * n * side * side * outputs * 9 * c

    def attention(self, n, queries, keys, heads, width):
        q = self.draw(n, heads, queries, width)
        k, v = self.draw(n, heads, keys, width), self.draw(n, heads, keys, width)
        return lambda: F.scaled_dot_product_attention(q, k, v), 4 * n * heads * queries * keys * width

    def group_norm(self, n, side, c, groups):
        x, style = self.picture(n, side, side, c), self.draw(n, 2 * c, 1, 1)
        w, b = self.draw(c), self.draw(c)
        scale, shift = style.chunk(2, 1)
        return lambda: F.silu(F.group_norm(x, groups, w, b, 1e-5) * (1 + scale) + shift), 5 * x.numel()

    def layer_norm(self, rows, width):
        x, w, b = self.draw(rows, width), self.draw(width), self.draw(width)
        return lambda: F.layer_norm(x, (width,), w, b, 1e-5), 5 * x.numel()

    def pointwise(self, function, *shape, operands=1):
        x = [self.draw(*shape) for _ in range(operands)]
        return lambda: function(*x), x[0].numel()

    def network(self, name):
        """A network, and a function that runs one step of it as diffusers' pipeline does."""
        import diffusers

        file, kind = {
            "prior": ("prior.json", diffusers.PriorTransformer),
            "decoder": ("decoder.json", diffusers.UNet2DConditionModel),
            "super_res": ("super_res_first.json", diffusers.UNet2DModel),
        }[name]
        with open(os.path.join(CONFIGURATIONS, file)) as text:
            config = json.load(text)
        with torch.device(self.device):
            torch.set_default_dtype(self.dtype)
            net = kind.from_config(config).eval()
            torch.set_default_dtype(torch.float32)
        c, when = net.config, torch.tensor(500, device=self.device)
        if name == "prior":
            shape = {
                "proj_embedding": self.draw(2, c.embedding_dim),
                "encoder_hidden_states": self.draw(2, c.num_embeddings, c.embedding_dim),
                "attention_mask": torch.ones(2, c.num_embeddings, dtype=torch.bool, device=self.device),
            }
            x = self.draw(2, c.embedding_dim)
            return net, lambda net: net(x, timestep=when, **shape)
        net = net.to(memory_format=torch.channels_last)
        if name == "decoder":
            text = {
                "encoder_hidden_states": self.draw(2, 81, c.cross_attention_dim),
                "class_labels": self.draw(2, 4 * c.block_out_channels[0]),
                "attention_mask": torch.ones(2, 81, dtype=torch.bool, device=self.device),
            }
            x = self.picture(2, c.sample_size, c.sample_size, c.in_channels)
            return net, lambda net: net(x, timestep=when, **text)
        x = self.picture(1, c.sample_size, c.sample_size, c.in_channels)
        return net, lambda net: net(x, timestep=when)


# Cases by the engine's names; their shapes are in `src/cases/ops.rs`. `table` checks that both sides have the same
# FLOPs.
CASES = {
    "linear/decoder-attention-out": lambda p: p.linear(2048, 640, 640, residual=True),
    "linear/prior-step": lambda p: p.linear(324, 2048, 8192),
    "linear/prior-up": lambda p: p.linear(6, 2048, 8192),
    "conv2d/decoder-64px": lambda p: p.conv2d(2, 64, 320, 320),
    "conv2d/decoder-32px": lambda p: p.conv2d(2, 32, 640, 640),
    "conv2d/decoder-16px": lambda p: p.conv2d(2, 16, 960, 960),
    "conv2d/decoder-8px": lambda p: p.conv2d(2, 8, 1280, 1280),
    "conv2d/super-res-256px": lambda p: p.conv2d(1, 256, 320, 320),
    "attention/decoder-32px-batch": lambda p: p.attention(2, 1024, 1105, 10, 64),
    "attention/decoder-8px": lambda p: p.attention(2, 64, 145, 10, 64),
    "group_norm/decoder-64px": lambda p: p.group_norm(2, 64, 320, 32),
    "layer_norm/prior-batch": lambda p: p.layer_norm(324, 2048),
    "pointwise/silu-decoder-64px": lambda p: p.pointwise(F.silu, 2, 64, 64, 320),
    "pointwise/add-decoder-64px": lambda p: p.pointwise(torch.add, 2, 64, 64, 320, operands=2),
}
NETWORKS = {f"{name}/karlo": name for name in ("prior", "decoder", "super_res")}
# Steps per picture.
PICTURE = {"prior/karlo": 25, "decoder/karlo": 25, "super_res/karlo": 7}


def synchronize(device):
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(run, device, budget):
    """Median of several samples, each of enough runs to make the timer's overhead negligible."""

    def sample(count):
        synchronize(device)
        started = time.perf_counter()
        for _ in range(count):
            run()
        synchronize(device)
        return (time.perf_counter() - started) / count

    sample(1)
    once = sample(1)
    count = max(1, math.ceil(4e-3 / max(once, 1e-9)))
    # For work of seconds (networks on a CPU) the one timed run is enough.
    started, samples = time.perf_counter(), [once] if once > 1 else []
    while len(samples) < (1 if once > 1 else 5) or time.perf_counter() - started < budget:
        samples.append(sample(count))
    return statistics.median(samples)


def replayed(run, device):
    """The function as a CUDA graph, on a GPU."""
    if device != "cuda":
        return run
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(), run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def peaks(peer, device, budget):
    """FLOP/s of a large matmul, bytes per second of a copy."""
    n, words = (8192, 1 << 28) if device == "cuda" else (1024, 1 << 24)
    a, b = peer.draw(n, n), peer.draw(n, n)
    flops = 2 * n**3 / seconds(lambda: a @ b, device, budget)
    x = torch.zeros(words, device=device)
    y = torch.empty_like(x)
    return flops, 8 * words / seconds(lambda: y.copy_(x), device, budget)


def network_times(peer, name, options):
    """Seconds of a step, eager and compiled; None if not compiled."""
    net, step = peer.network(name)
    times = [seconds(lambda: step(net), options.device, options.seconds), None]
    if options.compile:
        try:
            compiled = torch.compile(net, mode="reduce-overhead")
            times[1] = seconds(lambda: step(compiled), options.device, options.seconds)
        except Exception as error:
            print(f"{name}: compiling failed: {type(error).__name__}", file=sys.stderr)
    return times


def micro(value):
    return "" if value is None else f"{1e6 * value:.1f}"


def table(report, options):
    """Yields the lines of the table for one report of the engine."""
    dtype = report["dtype"]
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = dtype == "tf32"
    peer = Peer(options.device, DTYPES[dtype])
    flops_peak, bytes_peak = peaks(peer, options.device, options.seconds)
    # The engine appends the type to the device's name unless it is f32.
    yield f"### {report['device'].removesuffix(f' in {dtype}')}, {dtype}"
    yield ""
    yield f"PyTorch {torch.__version__}; a large matmul reaches {flops_peak / 1e12:.2f} TFLOP/s, a copy"
    yield f"{bytes_peak / 1e9:.0f} GB/s; the share is of the one that bounds the case."
    yield ""
    yield "| case | us | TFLOP/s | GB/s | share | PyTorch us | ratio | compiled us | ratio |"
    yield "|---|---|---|---|---|---|---|---|---|"
    picture = [0.0, 0.0, 0.0]
    rows = {row["name"]: row for row in report["cases"]}
    for name in [name for name in [*CASES, *NETWORKS] if name in rows]:
        row, compiled = rows[name], None
        if name in CASES:
            run, flops = CASES[name](peer)
            if flops != row["flops"]:
                raise SystemExit(f"{name}: {flops} FLOPs here, {row['flops']} in the engine's report")
            theirs = seconds(replayed(run, options.device), options.device, options.seconds)
        else:
            theirs, compiled = network_times(peer, NETWORKS[name], options)
        ours = row["median_s"]
        share = max(row["flops"] / flops_peak, row["bytes"] / bytes_peak) / ours
        if name in PICTURE:
            for at, value in enumerate((ours, theirs, compiled)):
                known = picture[at] is not None and value is not None
                picture[at] = picture[at] + PICTURE[name] * value if known else None
        yield (
            f"| {name} | {micro(ours)} | {row['flops'] / ours / 1e12:.3f} | {row['bytes'] / ours / 1e9:.1f} "
            f"| {100 * share:.0f} % | {micro(theirs)} | {theirs / ours:.2f} "
            f"| {micro(compiled)} | {'' if compiled is None else f'{compiled / ours:.2f}'} |"
        )
    if all(name in rows for name in NETWORKS):
        ours, theirs, compiled = picture
        compiled = "" if compiled is None else f", compiled {compiled:.3f} s (ratio {compiled / ours:.2f})"
        yield ""
        yield f"The networks of a picture, 25 + 25 + 7 steps: {ours:.3f} s; PyTorch {theirs:.3f} s"
        yield f"(ratio {theirs / ours:.2f}){compiled}."


def compare_traces(want_file, got_file):
    """Prints the largest difference of each stage; returns whether all are within the limits."""
    from safetensors.torch import load_file

    want, got = load_file(want_file), load_file(got_file)
    if want.keys() != got.keys():
        raise SystemExit(f"{sorted(want.keys() ^ got.keys())} are in one recording only")
    worst = {}
    for name, tensor in want.items():
        a, b = tensor.float(), got[name].float()
        finite = bool(torch.isfinite(b).all())
        # Pictures are bytes, or floats from 0 to 1.
        largest = 255.0 if name == "image/u8" else 1.0 if name == "image/float" else a.abs().max().item()
        error = (a - b).abs().max().item() / max(largest, sys.float_info.min) if finite else math.inf
        stage = name.split("/")[0]
        worst[stage] = max(worst.get(stage, (-1.0, "")), (error, name))
    for stage, (error, name) in worst.items():
        print(f"{stage:<12} {error:.1e} in {name}")
    return all(error <= (PIXEL_BAR / 255 if stage == "image" else TENSOR_BAR) for stage, (error, _) in worst.items())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", help="reports of engine bench --json, one per type")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--seconds", type=float, default=0.2, help="time per case")
    parser.add_argument("--compile", action="store_true", help="also time compiled networks")
    parser.add_argument("--cases", action="store_true", help="print the names of all cases")
    parser.add_argument("--trace", nargs=2, metavar=("WANT", "GOT"), help="compare two recordings")
    options = parser.parse_args()
    if options.cases:
        print("\n".join([*CASES, *NETWORKS]))
        return 0
    if options.trace:
        return 0 if compare_traces(*options.trace) else 1
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no CUDA device; --device cpu runs without one")
    with torch.inference_mode():
        for file in options.files:
            with open(file) as text:
                report = json.load(text)
            for line in table(report, options):
                print(line, flush=True)
            print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
