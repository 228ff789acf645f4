"""Small pictures in many formats, with the colours that Pillow and transformers read from them.

    python tests/golden/pictures/make.py        # writes pictures.safetensors beside itself

For each picture NAME of a group:
    GROUP/NAME/file     the bytes of the file
    GROUP/NAME/white    [H, W, 3], upright as PIL.ImageOps.exif_transpose gives it, with the colours of CLIPImageProcessor
    GROUP/NAME/drop     [H, W, 3], the same by diffusers.utils.load_image, where that differs
Groups: exact (formats without loss), near (JPEG and WebP with loss; decoders differ by rounding), settings (no colours but
`text`: the bytes of what a web interface wrote), refused (files that this engine does not read, without colours).
"""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from diffusers.utils import load_image
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from safetensors.torch import save_file
from transformers.image_transforms import convert_to_rgb

tensors = {}


def drawn(width, height, channels=3):
    """Smooth colours with an edge in them, and all levels of transparency."""
    y, x = np.mgrid[0:height, 0:width] / max(width, height)
    alpha = np.abs(np.sin(7 * x + 5 * y)) * 300 - 20
    colours = [x * 255, y * 255, (x + y) * 127]
    planes = {1: colours[:1], 2: [colours[0], alpha], 3: colours, 4: [*colours, alpha]}[channels]
    picture = np.stack([np.clip(plane, 0, 255) for plane in planes], -1).astype(np.uint8)
    picture[height // 3 : height // 2, width // 4 : width // 2, : min(channels, 3)] = 200
    return picture[..., 0] if channels == 1 else picture


def put(name, file):
    tensors[f"{name}/file"] = torch.frombuffer(bytearray(file), dtype=torch.uint8)


def add(name, file):
    put(name, file)
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(file)))
    white = convert_to_rgb(image, return_numpy=True)
    tensors[f"{name}/white"] = torch.from_numpy(white.copy())
    drop = np.array(load_image(Image.open(io.BytesIO(file))))
    if not np.array_equal(white, drop):
        tensors[f"{name}/drop"] = torch.from_numpy(drop)


def saved(image, ending, **options):
    file = io.BytesIO()
    image.save(file, ending, **options)
    return file.getvalue()


def png(width, height, depth, colour, rows, before=(), after=()):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    body = [chunk(b"IHDR", header), *(chunk(*c) for c in before)]
    body.append(chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))))
    body += [*(chunk(*c) for c in after), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def exif(orientation, order=">", comment=None):
    """One directory with the orientation, and the camera's with a comment as piexif's helper makes it."""
    comment = b"UNICODE\0" + comment.encode("utf-16-be") if comment is not None else b""
    entries = [struct.pack(order + "HHIHxx", 0x0112, 3, 1, orientation)] if orientation else []
    entries += [struct.pack(order + "HHII", 0x8769, 4, 1, 8 + 2 + 12 * (len(entries) + 1) + 4)] if comment else []
    block = (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(order + "IH", 8, len(entries))
    block += b"".join(entries) + bytes(4)
    if comment:
        block += struct.pack(order + "HHHII", 1, 0x9286, 7, len(comment), len(block) + 18) + bytes(4) + comment
    return block


def xmp(attribute):
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description {attribute}/></x:xmpmeta>'.encode()


def transparent_pngs():
    rgba = drawn(19, 13, 4)
    add("exact/png-rgba", saved(Image.fromarray(rgba), "png"))
    add("exact/png-la", saved(Image.fromarray(drawn(19, 13, 2), "LA"), "png"))
    wide = (rgba.astype(np.uint16) * 257 - rgba % 7).astype(">u2")
    add("exact/png-rgba-16", png(19, 13, 16, 6, [row.tobytes() for row in wide]))
    add("exact/png-la-16", png(19, 13, 16, 4, [row[:, [0, 3]].tobytes() for row in wide]))
    palette = (b"PLTE", bytes(range(0, 48)))
    indices = [bytes((x + 3 * y) % 16 for x in range(10)) for y in range(6)]
    packed = [bytes(row[k] << 4 | row[k + 1] for k in range(0, 10, 2)) for row in indices]
    add("exact/png-palette-8", png(10, 6, 8, 3, indices, [palette, (b"tRNS", bytes(range(0, 160, 16)))]))
    add("exact/png-palette-4", png(10, 6, 4, 3, packed, [palette, (b"tRNS", b"\xff\xff\0\xff")]))
    add("exact/png-palette-1", png(10, 6, 1, 3, [b"\xa5\x40"] * 6, [(b"PLTE", b"\x10\x20\x30\xe0\xd0\xc0"), (b"tRNS", b"\x80")]))
    grey = [bytes((17 * x + 5 * y) % 256 for x in range(10)) for y in range(6)]
    add("exact/png-grey-8", png(10, 6, 8, 0, grey, [(b"tRNS", b"\0\x22")]))
    # Numbers below what the bits can be, and the bytes that Pillow makes of them.
    for depth, rows in [(1, [b"\xa5\x40"] * 4), (2, [b"\x1b\xb1\x40"] * 4), (4, packed)]:
        for key in (0, 1, 85):
            add(f"exact/png-grey-{depth}-key-{key}", png(10, len(rows), depth, 0, rows, [(b"tRNS", struct.pack(">H", key))]))
    rgb = [bytes(v for x in range(10) for v in (25 * x, 40 * y, 7)) for y in range(6)]
    add("exact/png-rgb-8", png(10, 6, 8, 2, rgb, [(b"tRNS", struct.pack(">3H", 75, 80, 7))]))
    wide = [struct.pack(">30H", *(v * 257 for v in row)) for row in rgb]
    for name, key in [("stored", (75 * 257, 80 * 257, 7 * 257)), ("bytes", (75, 80, 7))]:
        add(f"exact/png-rgb-16-key-{name}", png(10, 6, 16, 2, wide, [(b"tRNS", struct.pack(">3H", *key))]))


def orientations():
    rgb = drawn(7, 5)
    rows = [row.tobytes() for row in rgb]
    for number in range(0, 10):
        order = "<" if number % 2 else ">"
        add(f"exact/png-exif-{number}", png(7, 5, 8, 2, rows, [(b"eXIf", exif(number, order))]))
    profile = exif(6)
    text = f"\nexif\n{len(profile) + 6:8}\n" + "".join(
        f"{(b'Exif' + bytes(2) + profile).hex()[k : k + 72]}\n" for k in range(0, 2 * len(profile) + 12, 72)
    )
    raw = b"Raw profile type exif\0"
    add("exact/png-raw-profile", png(7, 5, 8, 2, rows, [(b"zTXt", raw + b"\0" + zlib.compress(text.encode()))]))
    add("exact/png-raw-profile-behind", png(7, 5, 8, 2, rows, [], [(b"tEXt", raw + text.encode())]))
    add("exact/png-exif-behind", png(7, 5, 8, 2, rows, [], [(b"eXIf", exif(8))]))
    itxt = b"XML:com.adobe.xmp\0\0\0\0\0"
    packet = (b"iTXt", itxt + xmp('tiff:Orientation="6"'))
    add("exact/png-xmp-attribute", png(7, 5, 8, 2, rows, [packet]))
    element = b"<tiff:Orientation>5</tiff:Orientation>"
    add("exact/png-xmp-element", png(7, 5, 8, 2, rows, [(b"iTXt", itxt + element)]))
    add("exact/png-exif-before-xmp", png(7, 5, 8, 2, rows, [(b"eXIf", exif(1)), packet]))
    add("exact/png-exif-without-it", png(7, 5, 8, 2, rows, [(b"eXIf", exif(0, comment="a")), packet]))
    image = Image.fromarray(rgb)
    for name, options in {"exif": {"exif": b"Exif\0\0" + exif(6, "<")}, "xmp": {"xmp": xmp('tiff:Orientation="7"')}}.items():
        add(f"exact/webp-{name}", saved(image, "webp", lossless=True, exact=True, **options))
        add(f"near/jpeg-{name}", saved(Image.fromarray(drawn(40, 25)), "jpeg", quality=95, **options))
    directory = ImageFileDirectory_v2()
    directory[0x0112] = 6
    add("exact/tiff-exif", saved(image, "tiff", tiffinfo=directory))


def without_loss():
    rgb, rgba = Image.fromarray(drawn(21, 14)), Image.fromarray(drawn(21, 14, 4))
    grey = Image.fromarray(drawn(21, 14, 1))
    palette, bits = rgb.quantize(13), grey.convert("1")
    for ending in ("webp", "tiff", "qoi", "bmp"):
        options = {"lossless": True, "exact": True} if ending == "webp" else {}
        add(f"exact/{ending}-rgb", saved(rgb, ending, **options))
        add(f"exact/{ending}-rgba", saved(rgba, ending, **options))
    for ending in ("tiff", "bmp", "gif"):
        for name, image in [("grey", grey), ("palette", palette), ("bits", bits)]:
            is_read = (ending, name) != ("tiff", "palette")
            (add if is_read else put)(f"{'exact' if is_read else 'refused'}/{ending}-{name}", saved(image, ending))
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 108, 21, 14, 1, 32, 3, 21 * 14 * 4, 2835, 2835, 0, 0) + masks + bytes(52)
    pixels = np.array(rgba)[::-1, :, [2, 1, 0, 3]].tobytes()
    add("exact/bmp-rgba-v4", b"BM" + struct.pack("<IHHI", 14 + 108 + len(pixels), 0, 0, 14 + 108) + header + pixels)
    upright = np.array(rgb)[:, :, ::-1]
    rows = b"".join(row.tobytes() + b"\0" for row in upright)
    header = struct.pack("<IiiHHIIiiII", 40, 21, -14, 1, 24, 0, len(rows), 0, 0, 0, 0)
    add("exact/bmp-from-the-top", b"BM" + struct.pack("<IHHI", 54 + len(rows), 0, 0, 54) + header + rows)
    runs = b"".join(bytes([5, 1, 3, 0, 0, 3, 2, 1, 0, 0, 2, 2]) + b"\0\0" for _ in range(4)) + b"\0\1"
    header = struct.pack("<IiiHHIIiiII", 40, 13, 4, 1, 8, 1, len(runs), 0, 0, 4, 4)
    colours = bytes([9, 8, 7, 0, 60, 50, 40, 0, 100, 200, 250, 0, 1, 2, 3, 0])
    add("exact/bmp-rle", b"BM" + struct.pack("<IHHI", 54 + 16 + len(runs), 0, 0, 54 + 16) + header + colours + runs)
    header = struct.pack("<IiiHHIIiiII", 40, 13, 3, 1, 4, 2, len(runs), 0, 0, 4, 4)
    runs = b"".join(bytes([5, 0x12, 0, 5, 0x30, 0x12, 0x30, 0, 2, 0x22]) + b"\0\0" for _ in range(3)) + b"\0\1"
    add("exact/bmp-rle-4", b"BM" + struct.pack("<IHHI", 54 + 16 + len(runs), 0, 0, 54 + 16) + header + colours + runs)
    words = (np.arange(21 * 14) * 199 % 65536).astype("<u2").reshape(14, 21)
    words = b"".join(row.tobytes() + b"\0\0" for row in words)
    header = struct.pack("<IiiHHIIiiII", 40, 21, 14, 1, 16, 0, len(words), 0, 0, 0, 0)
    add("exact/bmp-555", b"BM" + struct.pack("<IHHI", 54 + len(words), 0, 0, 54) + header + words)
    header = struct.pack("<IiiHHIIiiII", 40, 21, 14, 1, 16, 3, len(words), 0, 0, 0, 0)
    header += struct.pack("<3I", 0xF800, 0x7E0, 0x1F)
    add("exact/bmp-565", b"BM" + struct.pack("<IHHI", 66 + len(words), 0, 0, 66) + header + words)
    old = struct.pack("<IHHHH", 12, 9, 5, 1, 4) + bytes(range(0, 240, 5))
    nibbles = bytes((31 * k) % 256 for k in range(5 * 8))
    add("exact/bmp-old-4", b"BM" + struct.pack("<IHHI", 14 + len(old) + 40, 0, 0, 14 + len(old)) + old + nibbles)
    for kind in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        add(f"exact/tiff-{kind}", saved(rgb, "tiff", compression=kind))
    add("exact/tiff-la", saved(Image.fromarray(drawn(21, 14, 2), "LA"), "tiff"))
    add("exact/tiff-cmyk", saved(Image.fromarray(drawn(21, 14, 4), "CMYK"), "tiff"))
    directory = ImageFileDirectory_v2()
    directory[338] = (1,)
    add("exact/tiff-premultiplied", saved(rgba, "tiff", tiffinfo=directory))
    add("exact/gif-transparent", saved(rgba, "gif"))
    add("exact/gif-sequential", saved(palette, "gif", interlace=0))
    moving = saved(palette, "gif", save_all=True, append_images=[rgb.rotate(90).quantize(5), grey], duration=50)
    add("exact/gif-moving", moving)
    # A frame that leaves some of its canvas free, with and without a transparent colour, and one that reaches beyond it.
    for name, control, canvas in [
        ("part", b"", (8, 6)),
        ("part-transparent", b"\x21\xf9\4\1\0\0\3\0", (8, 6)),
        ("beyond", b"", (4, 3)),
    ]:
        table = bytes([10, 20, 30, 250, 0, 0, 0, 250, 0, 0, 0, 250])
        frame = b"\x2c" + struct.pack("<HHHHB", 2, 1, 4, 3, 0) + b"\2"
        data = lzw([k % 4 for k in range(12)])
        file = b"GIF89a" + struct.pack("<HHBBB", *canvas, 0x91, 0, 0) + table + control + frame
        add(f"exact/gif-{name}", file + bytes([len(data)]) + data + b"\0;")
    frames = [rgba, rgba.rotate(180)]
    add("exact/webp-moving", saved(frames[0], "webp", save_all=True, append_images=frames[1:], lossless=True, exact=True))


def lzw(indices):
    """Codes of three bits with the table emptied before it grows."""
    codes = [c for index in indices for c in (4, index)] + [5]
    number = sum(code << 3 * k for k, code in enumerate(codes))
    return number.to_bytes((3 * len(codes) + 7) // 8, "little")


def with_loss():
    rgb, grey = Image.fromarray(drawn(45, 37)), Image.fromarray(drawn(45, 37, 1))
    for name, options in {
        "444": {"subsampling": 0},
        "422": {"subsampling": 1},
        "420": {"subsampling": 2},
        "progressive": {"progressive": True},
        "50": {"quality": 50},
    }.items():
        add(f"near/jpeg-{name}", saved(rgb, "jpeg", **{"quality": 92, **options}))
    add("near/jpeg-grey", saved(grey, "jpeg", quality=92))
    add("near/webp", saved(rgb, "webp", quality=90))
    add("near/webp-alpha", saved(Image.fromarray(drawn(45, 37, 4)), "webp", quality=90))
    add("near/tiff-jpeg", saved(rgb, "tiff", compression="jpeg"))
    put("refused/jpeg-cmyk", saved(Image.fromarray(drawn(16, 16, 4), "CMYK"), "jpeg"))
    twelve = bytearray(saved(rgb, "jpeg"))
    twelve[twelve.index(b"\xff\xc0") + 4] = 12
    put("refused/jpeg-12-bits", bytes(twelve))
    floats = Image.fromarray(np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4))
    put("refused/tiff-floats", saved(floats, "tiff"))


def settings():
    text = "a cat, 猫\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 8x8"
    image = Image.fromarray(drawn(8, 8))
    files = {
        "jpeg": saved(image, "jpeg", exif=b"Exif\0\0" + exif(0, comment=text)),
        "webp": saved(image, "webp", exif=exif(0, "<", comment=text)),
        "png": saved(image, "png", exif=exif(0, comment=text)),
    }
    for name, file in files.items():
        put(f"settings/{name}", file)
        tensors[f"settings/{name}/text"] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)


for part in (transparent_pngs, orientations, without_loss, with_loss, settings):
    part()
save_file(tensors, Path(__file__).with_name("pictures.safetensors"))
print(f"{sum(name.endswith('/file') for name in tensors)} files")
