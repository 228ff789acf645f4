"""Puts the reports of `engine bench --json` together, and sets an earlier collection beside a later one.

    python gpu_report.py collect ALL.json cuda-f16.json cuda-f32.json
    python gpu_report.py compare OLD.json NEW.json

A collection has one entry per device, type and case, with the median in seconds and, for what was run with `--profile`,
the seconds of each kernel. `compare` prints a table in Markdown: old and new time, and how many times faster the new one
is; then the kernels of profiled cases that changed by more than a twentieth. Only Python's own library is needed.
"""

import json
import sys
from pathlib import Path

# A kernel is named if its time changed by more than this share of the shorter time.
CHANGED = 0.05


def read(path):
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        sys.exit(f"gpu_report.py: {path}: {error}")


def collect(paths):
    """Cases of all reports by device and type, and name."""
    collection = {}
    for path in paths:
        report = read(path)
        try:
            cases = collection.setdefault(f"{report['device']}, {report['dtype']}", {})
            for row in report["cases"]:
                case = {"median_s": row["median_s"]}
                if row.get("profile"):
                    case["kernels_s"] = {kernel["kernel"]: kernel["seconds"] for kernel in row["profile"]["kernels"]}
                # A case that was profiled in a report of its own keeps its kernels.
                cases[row["name"]] = {**cases.get(row["name"], {}), **case}
        except (KeyError, TypeError) as error:
            sys.exit(f"gpu_report.py: {path}: not what engine bench --json prints: {error!r}")
    return collection


def micro(seconds):
    return f"{seconds * 1e6:.1f} us"


def row(name, old, new):
    return f"| {name} | {micro(old)} | {micro(new)} | {old / new:.2f} |" if old and new else None


def kernels(name, old, new):
    """Lines for the kernels of a case that changed, those with the largest difference first."""
    pairs = [(kernel, old.get(kernel, 0.0), new.get(kernel, 0.0)) for kernel in {*old, *new}]
    changed = [pair for pair in pairs if abs(pair[1] - pair[2]) > CHANGED * min(pair[1], pair[2])]
    changed.sort(key=lambda pair: (-abs(pair[1] - pair[2]), pair[0]))
    return [f"| {name}: {kernel} | {micro(a)} | {micro(b)} | {micro(a - b)} |" for kernel, a, b in changed]


def compare(old, new):
    """The lines of the comparison."""
    lines, profiles = [], []
    for device, cases in new.items():
        earlier = old.get(device, {})
        shared = [name for name in cases if name in earlier]
        if not shared:
            lines += [f"{device}: the earlier collection has none of these cases", ""]
            continue
        lines += [f"{device}", "", "| case | before | now | times faster |", "|---|---|---|---|"]
        lines += [row(name, earlier[name]["median_s"], cases[name]["median_s"]) for name in shared]
        lines += [""]
        for name in shared:
            if "kernels_s" in earlier[name] and "kernels_s" in cases[name]:
                profiles += kernels(name, earlier[name]["kernels_s"], cases[name]["kernels_s"])
    if profiles:
        lines += ["| kernel | before | now | saved |", "|---|---|---|---|", *profiles, ""]
    return [line for line in lines if line is not None]


def main():
    match sys.argv[1:]:
        case ["collect", out, *reports] if reports:
            Path(out).write_text(json.dumps(collect(reports), indent=1) + "\n")
        case ["compare", old, new]:
            print("\n".join(compare(read(old), read(new))))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
