"""Times this engine and PyTorch alternately on one machine, and prints the ratios.

    cargo build --release && cargo build --release --example one_step
    pip install -r benches/peers/requirements.txt
    python benches/peers/compare.py --model CHECKPOINT decoder super_res_first prior
    python benches/peers/compare.py --model CHECKPOINT --dtype bf16 --best decoder
    python benches/peers/compare.py --model models/default picture
    python benches/peers/compare.py --model KANDINSKY unet movq
    python benches/peers/compare.py --model STABLE_UNCLIP unet vae

A stage is one step of its network. Both sides load the same component of a checkpoint in the layout of diffusers and
get tensors of the same shapes: a guided pair for prior, decoder and U-Net, one picture for super-resolution and
autoencoders, which decode. Rounds alternate,
one step of each, so that other load on the machine affects both. PyTorch runs the network as diffusers' pipeline calls
it; this engine's step also includes the sampler's arithmetic. With `--best` PyTorch runs it in further ways in the same
rounds, channels last and compiled, each with a row of its own; the fastest is marked.

`picture` is a whole picture with the checkpoint's default steps: in a process with loaded weights, and as a process of
its own, from its start to the file, with its peak memory.

The result is the median of the rounds' ratios with the smallest and largest; above one, this engine is faster. On a machine
that other programs use, `--least` takes the least times of both sides and their ratio instead of medians. `--json
FILE` saves all rounds; `--table FILE` writes the table between the marks `<!-- compare.py: NAME -->` and `<!-- end -->`
of a text file, with `NAME` from `--name`.
"""

import argparse
import copy
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

# Idle OpenMP threads must sleep, or they would slow down the other side.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch  # noqa: E402
from diffusers import AutoencoderKL, PriorTransformer, UNet2DConditionModel, UNet2DModel, VQModel  # noqa: E402

ROOT = Path(__file__).parents[2]
PROMPT = "a red apple"
PIPE = subprocess.PIPE


class Engine:
    """The example `one_step` as a process, which runs one step per line of its input."""

    def __init__(self, options, stage, threads):
        command = [ROOT / "target/release/examples/one_step", options.model, stage, options.pictures, threads]
        command = [str(part) for part in [*command, options.dtype]]
        self.process = subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=subprocess.DEVNULL, text=True)

    def step(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith("step "):
                return float(line.split()[1])
        raise SystemExit("the example one_step exited early; run it by hand to see its error")

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def torch_step(model, stage, pictures, dtype):
    """The stage's network, and a function that runs it once, on bounded random tensors."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    path = os.path.join(model, stage)
    if stage == "prior":
        net = PriorTransformer.from_pretrained(path, torch_dtype=dtype).eval()
        c, rows = net.config, 2 * pictures
        text = {
            "proj_embedding": draw(rows, c.embedding_dim),
            "encoder_hidden_states": draw(rows, c.num_embeddings, c.embedding_dim),
            "attention_mask": torch.ones(rows, c.num_embeddings, dtype=torch.bool),
        }
        x = draw(rows, c.embedding_dim)
        return net, lambda net: net(x, timestep=torch.tensor(500), **text)
    if stage == "decoder":
        net = UNet2DConditionModel.from_pretrained(path, torch_dtype=dtype).eval()
        c, rows = net.config, 2 * pictures
        text = {
            "encoder_hidden_states": draw(rows, 81, c.cross_attention_dim),
            "class_labels": draw(rows, 4 * c.block_out_channels[0]),
            "attention_mask": torch.ones(rows, 81, dtype=torch.bool),
        }
        x = draw(rows, c.in_channels, c.sample_size, c.sample_size)
        return net, lambda net: net(x, timestep=torch.tensor(500), **text)
    if stage == "unet":
        net = UNet2DConditionModel.from_pretrained(path, torch_dtype=dtype).eval()
        c, rows = net.config, 2 * pictures
        if c.addition_embed_type == "image":
            given = {"encoder_hidden_states": None, "added_cond_kwargs": {"image_embeds": draw(rows, c.encoder_hid_dim)}}
        else:
            given = {"encoder_hidden_states": draw(rows, 77, c.cross_attention_dim)}
            given["class_labels"] = draw(rows, c.projection_class_embeddings_input_dim)
        x = draw(rows, c.in_channels, c.sample_size, c.sample_size)
        return net, lambda net: net(x, timestep=torch.tensor(500), **given)
    if stage in ("movq", "vae"):
        kind, options = (VQModel, {"force_not_quantize": True}) if stage == "movq" else (AutoencoderKL, {})
        net = kind.from_pretrained(path, torch_dtype=dtype).eval()
        latents = json.loads((Path(model) / "unet/config.json").read_text())["sample_size"]
        x = draw(pictures, net.config.latent_channels, latents, latents)
        return net, lambda net: net.decode(x, **options)
    net = UNet2DModel.from_pretrained(path, torch_dtype=dtype).eval()
    x = draw(pictures, net.config.in_channels, net.config.sample_size, net.config.sample_size)
    return net, lambda net: net(x, timestep=torch.tensor(500))


def torch_ways(options, stage, dtype):
    """The ways in which PyTorch runs a step, by name."""
    net, run = torch_step(options.model, stage, options.pictures, dtype)
    ways = {"as called": lambda: timed(lambda: run(net))}
    if options.best:
        last = copy.deepcopy(net).to(memory_format=torch.channels_last)
        compiled = torch.compile(last)
        ways["channels last"] = lambda: timed(lambda: run(last))
        ways["channels last, compiled"] = lambda: timed(lambda: run(compiled))
    return ways


def torch_picture(model, dtype):
    """A function that makes a whole picture as the engine does by default."""
    sys.path.insert(0, str(ROOT / "tests/golden"))
    from make import load_pipeline

    pipe = load_pipeline(Path(model)).to(dtype)
    pipe.set_progress_bar_config(disable=True)
    defaults = json.loads((Path(model) / "model_index.json").read_text()).get("_engine_defaults", {})
    names = {
        "prior_num_inference_steps": ("prior_steps", 25),
        "decoder_num_inference_steps": ("decoder_steps", 25),
        "super_res_num_inference_steps": ("super_res_steps", 7),
        "prior_guidance_scale": ("prior_guidance", 4.0),
        "decoder_guidance_scale": ("decoder_guidance", 8.0),
    }
    settings = {theirs: defaults.get(ours, value) for theirs, (ours, value) in names.items()}
    return lambda: pipe(PROMPT, generator=torch.Generator().manual_seed(0), **settings).images[0]


def timed(work):
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


# A forked process starts with its parent's peak memory, so a small process starts the measured one.
MEASURE = """
import os, sys, time
started = time.perf_counter()
null = [(os.POSIX_SPAWN_OPEN, n, os.devnull, os.O_WRONLY, 0) for n in (1, 2)]
_, status, usage = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=null), 0)
print(time.perf_counter() - started, usage.ru_maxrss / 1024 if status == 0 else sys.exit(1))
"""


def process(command):
    """Seconds and peak MiB of a process."""
    command = [sys.executable, "-c", MEASURE, *map(str, command)]
    done = subprocess.run(command, stdout=PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{command[3]} failed; run it by hand to see its error")
    return tuple(float(value) for value in done.stdout.split())


def report(what, rounds, unit="s", least=False):
    """Prints and returns a row of the table; `rounds` holds pairs of this engine's and the peer's results."""
    ratios = [theirs / ours for ours, theirs in rounds]
    ours, theirs = (min(side) if least else statistics.median(side) for side in zip(*rounds))
    ratio = theirs / ours if least else statistics.median(ratios)
    digits = 3 if unit == "s" else 0
    line = f"| {what} | {ours:.{digits}f} {unit} | {theirs:.{digits}f} {unit} "
    line += f"| {ratio:.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
    print(line, flush=True)
    return {"what": what, "unit": unit, "rounds": rounds, "ratio": ratio, "line": line}


def compare_step(options, stage, dtype):
    engine = Engine(options, stage, options.threads)
    alone = Engine(options, stage, 1) if options.one_thread else None
    with torch.inference_mode():
        peers = {"one thread": alone.step} if alone else torch_ways(options, stage, dtype)
        engine.step(), [peer() for peer in peers.values()]
        rounds = [(engine.step(), *(peer() for peer in peers.values())) for _ in range(options.rounds)]
    engine.close()
    if alone:
        alone.close()
    columns = list(zip(*rounds))
    middle = min if options.least else statistics.median
    best = min(range(1, len(columns)), key=lambda i: middle(columns[i]))
    results = []
    for i, way in enumerate(peers, 1):
        mark = ", its best" if options.best and i == best else ""
        what = f"{stage} step, {options.dtype}, {way}{mark}" if len(peers) > 1 else f"{stage} step, {options.dtype}"
        results.append(report(what, list(zip(columns[0], columns[i])), least=options.least))
    return results


def compare_picture(options, dtype):
    engine, peer = Engine(options, "picture", options.threads), torch_picture(options.model, dtype)
    with torch.inference_mode():
        engine.step(), peer()
        rounds = [(engine.step(), timed(peer)) for _ in range(options.rounds)]
    engine.close()
    results = [report(f"picture once loaded, {options.dtype}", rounds)]
    with tempfile.TemporaryDirectory() as folder:
        run = [ROOT / "target/release/engine", "run", "-m", options.model, "-p", PROMPT, "--device", "cpu", "-q"]
        run += ["--threads", options.threads, "--dtype", options.dtype, "-o", f"{folder}/a.png"]
        own = [sys.executable, __file__, "--model", options.model, "--dtype", options.dtype]
        own += ["--threads", options.threads, "--alone", f"{folder}/b.png", "picture"]
        pairs = [(process(run), process(own)) for _ in range(options.rounds)]
    results.append(report("picture from the process's start", [(a[0], b[0]) for a, b in pairs]))
    results.append(report("peak memory of that process", [(a[1], b[1]) for a, b in pairs], "MiB"))
    return results


def write_table(path, name, lines):
    """Replaces the table between its marks in a text file."""
    text = Path(path).read_text()
    begin, end = f"<!-- compare.py: {name} -->\n", "<!-- end -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(text):
        raise SystemExit(f"{path}: expected a line {begin.strip()}, and a line {end} after it")
    Path(path).write_text(pattern.sub(lambda _: begin + "\n".join(lines) + "\n" + end, text, count=1))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint folder")
    parser.add_argument("--pictures", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32", help="precision of both sides")
    parser.add_argument("--one-thread", action="store_true", help="compare with one thread, not with PyTorch")
    parser.add_argument("--best", action="store_true", help="also time PyTorch with channels last, and compiled")
    parser.add_argument("--least", action="store_true", help="compare least times, not medians")
    parser.add_argument("--json", help="file for all rounds")
    parser.add_argument("--table", help="text file whose table is replaced")
    parser.add_argument("--name", help="name of the table in that file")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    stages = ["prior", "decoder", "super_res_first", "super_res_last", "unet", "movq", "vae", "picture"]
    parser.add_argument("what", nargs="+", choices=stages)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    if options.alone:
        with torch.inference_mode():
            return torch_picture(options.model, dtype)().save(options.alone)

    results = []
    peer, column = f"torch {torch.__version__.split('+')[0]}, ", "PyTorch"
    if options.one_thread:
        peer, column = "", "one thread"
    head = f"{peer}{options.threads} threads, median of {options.rounds} rounds"
    lines = [f"| {head} | this engine | {column} | ratio (spread) |", "|---|---|---|---|"]
    print("\n".join(lines), flush=True)
    for what in options.what:
        results += compare_picture(options, dtype) if what == "picture" else compare_step(options, what, dtype)
    if options.json:
        Path(options.json).write_text(json.dumps(results, indent=1))
    if options.table:
        write_table(options.table, options.name, lines + [result["line"] for result in results])


if __name__ == "__main__":
    sys.exit(main())
