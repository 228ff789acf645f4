"""Times single steps of this engine and of PyTorch alternately on one machine, and prints the ratio.

    cargo bench --bench steps --no-run
    python compare_steps.py --model CHECKPOINT decoder super_res_first prior

Both load the same component of a checkpoint in the diffusers layout and get tensors of the same shapes: a guided pair for
prior and decoder, one picture for super-resolution. Rounds alternate, one step of each, so that whatever else the
machine does meets both. The median of the rounds' ratios is reported with the smallest and largest; a ratio above
one means that this engine is faster. PyTorch runs what diffusers' pipeline calls at every step, without the sampler's
arithmetic, which this engine's step includes.

`--json FILE` keeps the numbers of all rounds.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

# Waiting threads of a parallel region must sleep, or they would take time from the other side's turn.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import torch  # noqa: E402
from diffusers import PriorTransformer, UNet2DConditionModel, UNet2DModel  # noqa: E402

HERE = os.path.dirname(os.path.abspath(__file__))


class Engine:
    """The bench `steps` as a process that runs one step for every line it is given."""

    def __init__(self, model, stage, pictures, threads):
        command = ["cargo", "bench", "-q", "--bench", "steps", "--", os.path.abspath(model), stage, str(pictures), str(threads)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, cwd=HERE, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        self.once = self.answer("once")

    def answer(self, word):
        for line in self.process.stdout:
            if line.startswith(word + " "):
                return float(line.split()[1])
        raise SystemExit("the bench `steps` ended early; run it by hand to see why")

    def step(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.answer("step")

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def torch_step(model, stage, pictures, dtype):
    """A function that runs the stage's network once, on bounded random tensors."""
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
        return lambda: net(x, timestep=torch.tensor(500), **text)
    if stage == "decoder":
        net = UNet2DConditionModel.from_pretrained(path, torch_dtype=dtype).eval()
        c, rows = net.config, 2 * pictures
        text = {
            "encoder_hidden_states": draw(rows, 81, c.cross_attention_dim),
            "class_labels": draw(rows, 4 * c.block_out_channels[0]),
            "attention_mask": torch.ones(rows, 81, dtype=torch.bool),
        }
        x = draw(rows, c.in_channels, c.sample_size, c.sample_size)
        return lambda: net(x, timestep=torch.tensor(500), **text)
    net = UNet2DModel.from_pretrained(path, torch_dtype=dtype).eval()
    x = draw(pictures, net.config.in_channels, net.config.sample_size, net.config.sample_size)
    return lambda: net(x, timestep=torch.tensor(500))


def compare(options, stage):
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[options.dtype]
    engine = Engine(options.model, stage, options.pictures, options.threads)
    peer = torch_step(options.model, stage, options.pictures, dtype)

    def timed():
        started = time.perf_counter()
        peer()
        return time.perf_counter() - started

    with torch.inference_mode():
        engine.step(), timed()
        rounds = [(engine.step(), timed()) for _ in range(options.rounds)]
    engine.close()
    ratios = [theirs / ours for ours, theirs in rounds]
    result = {
        "stage": stage,
        "rounds": rounds,
        "once_s": engine.once,
        "ours_s": statistics.median(ours for ours, _ in rounds),
        "torch_s": statistics.median(theirs for _, theirs in rounds),
        "ratio": statistics.median(ratios),
        "least": min(ratios),
        "most": max(ratios),
    }
    line = "| {stage} | {ours_s:.3f} s | {torch_s:.3f} s | {ratio:.2f} ({least:.2f} to {most:.2f}) |"
    print(line.format(**result), flush=True)
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="checkpoint folder")
    parser.add_argument("--pictures", type=int, default=1)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32", help="what PyTorch computes in")
    parser.add_argument("--json", help="file to write")
    parser.add_argument("stages", nargs="+", choices=["prior", "decoder", "super_res_first", "super_res_last"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"torch {torch.__version__}, {options.dtype}, {options.threads} threads, median of {options.rounds} rounds\n")
    print("| step | this engine | PyTorch | ratio (spread) |\n|---|---|---|---|", flush=True)
    results = [compare(options, stage) for stage in options.stages]
    if options.json:
        with open(options.json, "w") as file:
            json.dump(results, file, indent=1)


if __name__ == "__main__":
    sys.exit(main())
