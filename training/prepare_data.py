#!/usr/bin/env python3
"""Training pictures: fetch freely licensed emoji packages and draw them as small RGBA arrays.

One command does both steps, and either may be repeated: archives already there are only checked, not fetched.

  prepare_data.py --packages packages --data data

writes
  data/<style>_<size>.npy   uint8 [N, size, size, 4], premultiplied RGBA, one row per concept of that style
  data/index.json           the concepts (name, keywords, group) and which of them each style has
  data/sheet_<style>.png    a contact sheet, to look at

Needs npm on the path (for archives that are not there yet), numpy, pillow with WebP, and resvg-py.
"""
import argparse
import base64
import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

# Package -> version and the sha512 that the registry states for its archive.
PACKAGES = {
    "emojibase-data": (
        "17.0.0", "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA=="),
    "@lobehub/fluent-emoji-3d": (
        "1.1.0", "Wlq2lVStTnr8BDpIJ0pEnTKO4LuDxxqTEhTvRtD1DLRF0me7ogeRQjKoehDHXuVJ2Qaecgl5wRBv60lUAG3h7g=="),
    "@iconify-json/fluent-emoji-flat": (
        "1.2.6", "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw=="),
    "@iconify-json/noto": (
        "1.2.9", "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw=="),
}
# Style -> package. All are MIT or Apache-2.0: neither share-alike nor a notice per picture.
STYLES = {
    "3d": "@lobehub/fluent-emoji-3d",
    "flat": "@iconify-json/fluent-emoji-flat",
    "cartoon": "@iconify-json/noto",
}
# Subgroups of letters, signs and arrows: poor pictures with poor captions.
SKIPPED_SUBGROUPS = {
    "transport-sign", "arrow", "religion", "zodiac", "av-symbol", "gender", "math", "punctuation", "currency",
    "keycap", "alphanum", "family", "person-symbol",
}
GROUPS = {0, 1, 3, 4, 5, 6, 7, 8}  # all of emojibase but components and flags
DRAWN = 256                        # side at which everything is drawn before it is shrunk
SIZES = (256, 128, 64, 32)
MARGIN = 0.06                      # of the side, left free around each picture


def package_dir(packages, name):
    return packages / name.strip("@").replace("/", "-") / "package"


def fetch(packages):
    """Downloads, checks and unpacks every package."""
    packages.mkdir(parents=True, exist_ok=True)
    for name, (version, expected) in PACKAGES.items():
        target = package_dir(packages, name).parent
        archive = packages / f"{target.name}-{version}.tgz"
        if not archive.exists():
            command = ["npm", "pack", f"{name}@{version}", "--silent", "--pack-destination", str(packages)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        found = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if found != expected:
            sys.exit(f"{archive}: sha512 is {found}, expected {expected}")
        if not target.exists():
            target.mkdir()
            with tarfile.open(archive) as t:
                t.extractall(target, filter="data")
        print(f"{archive.name}: {archive.stat().st_size / 1e6:.1f} MB, checked", flush=True)


def plain(text):
    """Lower case, with the quotes and accents that nobody types replaced."""
    for typed, fancy in [("'", "\u2019"), ("", "\u201c"), ("", "\u201d"), ("n", "\u00f1")]:
        text = text.replace(fancy, typed)
    return text.lower().strip()


def concepts(packages):
    """The emoji to be learnt: no skin tones and no gendered variants."""
    root = package_dir(packages, "emojibase-data")
    names = json.loads((root / "meta/groups.json").read_text())
    found = []
    for row in json.loads((root / "en/data.json").read_text()):
        if row.get("group") not in GROUPS:
            continue
        label, subgroup = plain(row["label"]), names["subgroups"][str(row["subgroup"])]
        person = names["groups"][str(row["group"])] == "people-body"
        variant = re.match(r"(man|woman|men|women)\b.", label) or ":" in label or "facing" in label
        if subgroup in SKIPPED_SUBGROUPS or (person and variant):
            continue
        found.append({
            "code": row["hexcode"].lower(),
            "label": label,
            "keywords": [k for k in map(plain, row.get("tags", [])) if k != label],
            "group": names["groups"][str(row["group"])],
            "subgroup": subgroup,
        })
    return found


def spellings(code):
    """A code-point sequence with and without variation selectors: the packages differ in that."""
    bare = "-".join(part for part in code.split("-") if part != "fe0f")
    return [code, bare, code + "-fe0f", bare + "-fe0f"]


class IconSet:
    """An Iconify JSON package: SVG bodies by name, and names by code point."""

    def __init__(self, root):
        d = json.loads((root / "icons.json").read_text())
        self.icons, self.aliases = d["icons"], d.get("aliases", {})
        self.width, self.height = d.get("width", 16), d.get("height", 16)
        self.names = json.loads((root / "chars.json").read_text())

    def draw(self, concept):
        name = next((self.names[s] for s in spellings(concept["code"]) if s in self.names), None)
        if name not in self.icons:
            name = self.aliases.get(name, {}).get("parent")
        icon = self.icons.get(name)
        if icon is None:
            return None
        box = [icon.get(k, v) for k, v in [("left", 0), ("top", 0), ("width", self.width), ("height", self.height)]]
        view = " ".join(map(str, box))
        return draw_svg('<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
                        f'viewBox="{view}" width="{DRAWN}" height="{DRAWN}">{icon["body"]}</svg>')


class PictureFolder:
    """A package of WebP pictures named by code point."""

    def __init__(self, root):
        self.files = {p.stem.lower(): p for p in root.rglob("*.webp")}

    def draw(self, concept):
        path = next((self.files[s] for s in spellings(concept["code"]) if s in self.files), None)
        return None if path is None else premultiplied(Image.open(path).convert("RGBA").resize((DRAWN, DRAWN)))


def draw_svg(svg):
    import resvg_py
    png = resvg_py.svg_to_bytes(svg_string=svg, width=DRAWN, height=DRAWN, skip_system_fonts=True)
    drawn = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    square = Image.new("RGBA", (DRAWN, DRAWN))
    square.paste(drawn, ((DRAWN - drawn.width) // 2, (DRAWN - drawn.height) // 2))
    return premultiplied(square)


def premultiplied(image):
    """Float [H, W, 4] with colour times alpha, so that shrinking does not pull in hidden colours."""
    a = np.asarray(image).astype(np.float32)
    a[..., :3] *= a[..., 3:] / 255
    return a


def fill_square(a):
    """Scales the drawing so that its longer side fills the square less the margin, and centres it."""
    ys, xs = np.where(a[..., 3] > 8)
    if len(ys) == 0:
        return None
    top, bottom, left, right = ys.min(), ys.max() + 1, xs.min(), xs.max() + 1
    scale = round(DRAWN * (1 - 2 * MARGIN)) / max(bottom - top, right - left)
    width, height = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    planes = [Image.fromarray(a[top:bottom, left:right, k]).resize((width, height), Image.LANCZOS) for k in range(4)]
    out = np.zeros_like(a)
    y, x = (DRAWN - height) // 2, (DRAWN - width) // 2
    out[y:y + height, x:x + width] = np.stack([np.asarray(p) for p in planes], -1)
    return out.clip(0, 255)


def shrunk(a, size):
    f = a.shape[0] // size
    return (a.reshape(size, f, size, f, 4).mean((1, 3)) + 0.5).astype(np.uint8)


def sheet(pictures, columns=32):
    """White contact sheet of RGBA rows."""
    size = pictures.shape[1]
    rows = -(-len(pictures) // columns)
    page = np.full((rows * columns, size, size, 3), 255, np.uint8)
    page[:len(pictures)] = pictures[..., :3] + (255 - pictures[..., 3:])
    page = page.reshape(rows, columns, size, size, 3).swapaxes(1, 2).reshape(rows * size, columns * size, 3)
    return Image.fromarray(page)


def render(packages, data, threads):
    """Draws every concept in every style at every size."""
    data.mkdir(parents=True, exist_ok=True)
    rows = concepts(packages)
    index = {"concepts": rows, "styles": {}}
    for style, package in STYLES.items():
        root = package_dir(packages, package)
        source = PictureFolder(root) if style == "3d" else IconSet(root)

        def one(concept):
            a = source.draw(concept)
            a = None if a is None else fill_square(a)
            return None if a is None else [shrunk(a, s) for s in SIZES]

        with ThreadPoolExecutor(threads) as pool:
            drawn = list(pool.map(one, rows))
        have = [i for i, d in enumerate(drawn) if d is not None]
        for k, size in enumerate(SIZES):
            np.save(data / f"{style}_{size}.npy", np.stack([drawn[i][k] for i in have]))
        sheet(np.stack([drawn[i][SIZES.index(32)] for i in have])).save(data / f"sheet_{style}.png")
        index["styles"][style] = have
        print(f"{style}: {len(have)} of {len(rows)} concepts", flush=True)
    (data / "index.json").write_text(json.dumps(index, ensure_ascii=False))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, default=Path("packages"), help="folder of the package archives")
    parser.add_argument("--data", type=Path, default=Path("data"), help="folder to be written")
    parser.add_argument("--threads", type=int, default=2)
    a = parser.parse_args()
    fetch(a.packages)
    render(a.packages, a.data, a.threads)


if __name__ == "__main__":
    main()
