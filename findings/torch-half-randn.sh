#!/bin/sh
# torch.randn in half precision: another picture from the same seed after an upgrade.
#
# Expected  With a seeded CPU generator, torch.randn(n, dtype=torch.float16) is the float32 draw of the same seed, rounded,
#           and leaves the generator where that draw leaves it; the same for bfloat16, and in all releases.
# Happens   2.11.0         a stream of its own. Uniforms have as many bits as the type's mantissa, 11 or 8, and go through
#                          Box-Muller in that type: no value is beyond 3.9 in float16 or 3.3 in bfloat16, where a million
#                          normal values reach 5.
#           2.12.0         the float32 draw rounded, but of 10,000 values 7 in float16 and 1 in bfloat16 have another last
#                          bit.
#           2.13.0, 2.15.0 the float32 draw rounded.
#           From 2.12.0 on, where n > 16 and 16 does not divide n, the last 16 values are drawn from another place of the
#           stream than in float32, and the generator is left at another place.
# Versions  torch 2.11.0, 2.12.0, 2.13.0, 2.15.0 on CPython 3.11, Linux, x86-64 with AVX-512
# Date      2026-11-28
# Read      aten/src/ATen/native/cpu/DistributionTemplates.h (normal_fill and what calls it),
#           aten/src/ATen/core/TransformationHelper.h (uniform_real)
# Here      src/noise/torch.rs draws as 2.13 and later (--noise torch), or as 2.11 and earlier (--noise torch-2.11)
#
# Needs Python 3.11 with venv, and pip. Each version is installed into a folder that is removed again; on Linux that is
# several GB of download for each. Exits with 1 if anything is not as above.
set -eu
python=${PYTHON:-python3}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
trap 'exit 130' INT TERM

cat > "$folder/draw.py" <<'PYTHON'
import sys

import torch

MILLION = 1 << 20


def draw(n, dtype):
    """A draw of the seed, and the place where it leaves the generator, by the uniform value that comes next."""
    generator = torch.Generator("cpu").manual_seed(0)
    x = torch.randn(n, generator=generator, dtype=dtype)
    return x, torch.rand(1, generator=generator).item()


def share(same):
    return "all" if same.all() else "nearly all" if same.float().mean() > 0.99 else "few"


def report(name):
    dtype = getattr(torch, name)
    (x, _), (single, _) = draw(MILLION, dtype), draw(MILLION, torch.float32)
    largest = "small" if x.abs().max() < 4 else "normal"
    (odd, place), (odd_single, single_place) = draw(MILLION + 4, dtype), draw(MILLION + 4, torch.float32)
    same = odd == odd_single.to(dtype)
    found = [share(x == single.to(dtype)), largest, share(same[:-16]), share(same[-16:]), str(place == single_place)]
    print(f"  {name:8}  of 2^20 values {(x == single.to(dtype)).float().mean():7.2%} are the float32 draw rounded,", end=" ")
    print(f"{len(x.unique())} different ones, the largest {x.abs().max():.2f}")
    print(f"            of four more: {same[-16:].sum()} of the last 16, and {same[:-16].float().mean():.2%} before,", end=" ")
    print("the generator at", "the same place" if place == single_place else "another place")
    return found


# The values, the largest of them, those before the last 16 and the last 16 where 16 does not divide the size, and whether
# the generator is then where float32 leaves it.
EXPECTED = {
    "2.11": ["few", "small", "few", "few", "True"],
    "2.12": ["nearly all", "normal", "nearly all", "few", "False"],
    "2.13": ["all", "normal", "all", "few", "False"],
    "2.15": ["all", "normal", "all", "few", "False"],
}

print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}")
expected = EXPECTED[".".join(torch.__version__.split(".")[:2])]
changed = False
for name in ("float16", "bfloat16"):
    found = report(name)
    if found != expected:
        changed = True
        print(f"  CHANGED: {name} is {found}, was {expected}")
sys.exit(changed)
PYTHON

changed=0
for version in 2.11.0 2.12.0 2.13.0 2.15.0; do
    "$python" -m venv "$folder/venv"
    "$folder/venv/bin/python" -m pip install --quiet --no-cache-dir "torch==$version"
    "$folder/venv/bin/python" -W ignore "$folder/draw.py" || changed=1
    rm -rf "$folder/venv"
done
exit "$changed"
