"""Bad input for the tests, the same at every run: damaged copies of files, files that claim too much, colour profiles."""

from __future__ import annotations

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms

from skinbook import keyed

INPUTS = int(os.environ.get("SKINBOOK_INPUTS", "1"))  # so many times as many generated inputs
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


def mutants(name: str, data: bytes, count: int) -> Iterator[bytes]:
    """`count * INPUTS` damaged copies of some bytes, each with one to four changes."""
    for number in range(count * INPUTS):
        draws = iter(keyed.bits(("damaged", name, number), 64).tolist())
        damaged = bytearray(data)
        for _ in range(1 + next(draws) % 4):
            _change(damaged, draws)
        yield bytes(damaged)


def _change(data: bytearray, draws: Iterator[int]) -> None:
    # Headers stand at the beginning, and those of a ZIP at the end: half of the changes fall there.
    where, length = next(draws) % 4, len(data) or 1
    near = min(256, length)
    place = next(draws) % near + (length - near if where == 1 else 0) if where < 2 else next(draws) % length
    kind, size, drawn = next(draws) % 8, 1 + next(draws) % 64, next(draws)
    if kind < 2:
        data[place : place + 1] = bytes([(data[place] if data else 0) ^ 1 << drawn % 8])
    elif kind < 4:
        number, wide = EXTREMES[drawn % len(EXTREMES)], (1, 2, 4)[drawn % 3]
        data[place : place + wide] = (number % 256**wide).to_bytes(wide, ("little", "big")[drawn % 2])
    elif kind == 4:
        del data[place:]
    elif kind == 5:
        del data[place : place + size]
    elif kind == 6:
        data[place:place] = data[place : place + size]
    else:
        data[place:place] = keyed.bits(("inserted", drawn), 8).tobytes()[: size % 16]


# Photographs ----------------------------------------------------------------------------------------------------------


def saved(image: Image.Image, kind: str, **options) -> bytes:
    held = io.BytesIO()
    image.save(held, kind, **options)
    return held.getvalue()


def marked(orientation: int) -> Image.Exif:
    """EXIF that says how a photograph is to be turned."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


# How a camera stores an upright picture for each mark: the inverse of what a viewer has to do.
STORED = {
    1: lambda image: image,
    2: lambda image: image.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
    3: lambda image: image.transpose(Image.Transpose.ROTATE_180),
    4: lambda image: image.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
    5: lambda image: image.transpose(Image.Transpose.TRANSPOSE),
    6: lambda image: image.transpose(Image.Transpose.ROTATE_90),
    7: lambda image: image.transpose(Image.Transpose.TRANSVERSE),
    8: lambda image: image.transpose(Image.Transpose.ROTATE_270),
}

# The colours of light that red, green and blue stand for, as XYZ under D50, and the curve of the numbers.
SRGB = ((0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410))
ADOBE = ((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457))
P3 = ((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407))
WIDE = {"Adobe RGB": (ADOBE, 563 / 256), "Display P3": (P3, None), "linear sRGB": (SRGB, 1.0)}  # gamma; None: sRGB's


def profile(name: str) -> bytes:
    """A colour profile: Pillow's own of sRGB with other colours and another curve."""
    colours, gamma = WIDE[name]
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    data[24:36] = struct.pack(">6H", 2026, 1, 1, 0, 0, 0)  # when it was made

    def place(tag: bytes) -> int:
        at = data.index(tag, 128) + 4
        return int.from_bytes(data[at : at + 4], "big")

    for tag, colour in zip((b"rXYZ", b"gXYZ", b"bXYZ"), colours, strict=True):
        data[place(tag) + 8 : place(tag) + 20] = struct.pack(">3i", *(round(x * 65536) for x in colour))
    if gamma is not None:
        for tag in (b"rTRC", b"gTRC", b"bTRC"):
            data[place(tag) : place(tag) + 14] = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
    return bytes(data)


def through(name: str, pixels: np.ndarray) -> np.ndarray:
    """What numbers under a profile are in sRGB, float (..., 3) in 0..255, by hand."""
    colours, gamma = WIDE[name]
    x = pixels / 255
    light = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4) if gamma is None else x**gamma
    light = np.clip(light @ np.array(colours) @ np.linalg.inv(np.array(SRGB)), 0, 1)
    return 255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)


# What claims too much -------------------------------------------------------------------------------------------------


def png(width: int, height: int, depth: int, kind: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG with these numbers in its header, whatever its rows hold; `chunks` stand before them."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    others = b"".join(chunk(name, data) for name, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + header + others + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b"")


def scans(width: int, height: int, count: int) -> bytes:
    """A progressive JPEG of one colour with so many scans more than it needs, ten bytes each."""
    data = saved(Image.new("L", (64, 64), 128), "JPEG", progressive=True)
    at = data.index(b"\xff\xc2") + 5
    data = data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]
    end = data.index(b"\xff\xd9")
    return data[:end] + data[data.rindex(b"\xff\xda") : end] * count + data[end:]


def tiff(width: int, height: int, *more: tuple[int, int]) -> bytes:
    """A greyscale TIFF, packed, with more entries (number, value) in its directory; its pixels are cut off."""
    data = zlib.compress(bytes(1000))
    tags = {256: width, 257: height, 258: 8, 259: 8, 262: 1, 277: 1, **dict(more)}
    places = {324: 8, 325: len(data)} if 322 in tags else {273: 8, 279: len(data)}
    entries = sorted({**tags, **places}.items())
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", tag, 4, 1, v) for tag, v in entries)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory + bytes(4)


def webp(width: int, height: int) -> bytes:
    """A WebP whose header claims a canvas of this size, round a small picture."""
    data = bytearray(saved(Image.new("RGBA", (8, 8), (1, 2, 3, 4)), "WEBP", lossless=True))
    small = bytes(data[12:])
    canvas = struct.pack("<I", 0x10)[:4] + (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + canvas + small
    return b"RIFF" + struct.pack("<I", len(body)) + body


def packed() -> bytes:
    return zlib.compress(bytes(50_000_000))


BOMBS: dict[str, Callable[[], bytes]] = {
    "a PNG of 20,000 x 20,000": lambda: png(20_000, 20_000, 8, 2, bytes(1000)),
    "a JPEG of 20,000 x 20,000": lambda: scans(20_000, 20_000, 0),
    "a JPEG of 100,000 scans": lambda: scans(8_000, 8_000, 100_000),
    "a TIFF with one tile of a thousand million pixels": lambda: tiff(16, 16, (322, 32_768), (323, 32_768)),
    "a TIFF with one strip of two thousand million rows": lambda: tiff(16, 16, (278, 2**31 - 1)),
    "a WebP of 16,383 x 16,383": lambda: webp(16_383, 16_383),
    "a PNG with 50 MB of packed text": lambda: png(8, 8, 8, 0, bytes(72), (b"zTXt", b"Comment\0\0" + packed())),
    "a PNG with a packed colour profile of 50 MB": lambda: png(8, 8, 8, 0, bytes(72), (b"iCCP", b"p\0\0" + packed())),
    # No bomb, but the largest that is taken.
    "a PNG of nearly 80 million pixels": lambda: png(8_900, 8_900, 1, 0, bytes((1 + 8_904 // 8) * 8_900)),
}


def npz_bomb(file: Path) -> Path:
    """An archive whose one array has a header of 50 MB, packed into 50 kB."""
    length = 50_000_000
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train_labels.npy", b"\x93NUMPY\x02\0" + struct.pack("<I", length) + bytes(length))
    return file
