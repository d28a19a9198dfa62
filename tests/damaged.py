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


def packed(count: int = 50_000_000) -> bytes:
    """So many zero bytes, packed, without ever being held."""
    packer = zlib.compressobj(1)
    parts = [packer.compress(bytes(min(1 << 20, count - done))) for done in range(0, count, 1 << 20)]
    return b"".join([*parts, packer.flush()])


def png(width: int, height: int, depth: int, kind: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG with these numbers in its header, whatever its packed rows hold; `chunks` stand before them."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    others = b"".join(chunk(name, data) for name, data in chunks)
    return b"\x89PNG\r\n\x1a\n" + header + others + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


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


def directory(*entries: tuple[int, int, int, int], big: bool = False) -> bytes:
    """A directory of entries (number, type, count, value or place), to stand at the place that the header names."""
    count, entry, end = ("<Q", "<HHQQ", 8) if big else ("<H", "<HHII", 4)
    return struct.pack(count, len(entries)) + b"".join(struct.pack(entry, *one) for one in sorted(entries)) + bytes(end)


PICTURE = {256: 4, 257: 4, 258: 8, 259: 1, 262: 1, 273: 16, 277: 1, 278: 4, 279: 16}  # grey, 16 bytes from place 16 on


def shared(
    count: int,
    room: int,
    *more: tuple[int, int, int, int],
    picture: bool = True,
    big: bool = False,
    below: tuple[int, ...] = (),
) -> bytes:
    """A TIFF, or EXIF data, in which so many entries name the same `room` bytes, and some more entries.

    picture : whether it holds one of 4 x 4. below : numbers of entries that lead from directory to directory, and the
        last one to those many.
    """
    own = [(tag, 4, 1, value) for tag, value in PICTURE.items()] * picture + list(more)
    many = [(40_000 + number, 7, room, 16) for number in range(count)]
    head = b"II\x2b\0\x08\0\0\0" if big else b"II*\0"
    at = 16 + room
    header = head + struct.pack("<Q" if big else "<I8x", at)
    above = b""
    for tag in below:
        above += directory(*own, (tag, 4, 1, at + len(above) + 6 + 12 * (len(own) + 1)))
        own = []
    return header + bytes(room) + above + directory(*own, *many, big=big)


def segments(mark: int, name: bytes, data: bytes) -> bytes:
    """A JPEG that carries some data in segments."""
    parts = [name + data[start : start + 65_000] for start in range(0, len(data), 65_000)]
    jpeg = saved(Image.new("L", (8, 8)), "JPEG")
    return jpeg[:2] + b"".join(struct.pack(">BBH", 0xFF, mark, 2 + len(part)) + part for part in parts) + jpeg[2:]


def strips(width: int, height: int, rows: int, count: int, *more: tuple[int, int]) -> bytes:
    """A TIFF of so many strips of so many rows, all with the same bytes, and more entries (number, value)."""
    size, offsets = width * rows, struct.pack("<I", 8) * count
    places = [(273, 4, count, 8 + size), (279, 4, count, 8 + size + len(offsets))]
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 277: 1, 278: rows, **dict(more)}
    entries = directory(*((tag, 4, 1, value) for tag, value in tags.items()), *places)
    sizes = struct.pack("<I", size) * count
    return b"II*\0" + struct.pack("<I", 8 + size + 2 * len(offsets)) + b"\x80" * size + offsets + sizes + entries


def runs(width: int) -> bytes:
    """A BMP of run lengths, one row high, that goes on 255 rows higher."""
    header = struct.pack("<IiiHHIIiiII", 40, width, 1, 1, 8, 1, 4, 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1082, 0, 0, 1078) + header + bytes(1024) + bytes([0, 2, 255, 255])


BOMBS: dict[str, Callable[[], bytes]] = {
    "a PNG of 20,000 x 20,000": lambda: png(20_000, 20_000, 8, 2, packed(1000)),
    "a JPEG of 20,000 x 20,000": lambda: scans(20_000, 20_000, 0),
    "a JPEG of 100,000 scans": lambda: scans(8_000, 8_000, 100_000),
    "a TIFF with one tile of a thousand million pixels": lambda: tiff(16, 16, (322, 32_768), (323, 32_768)),
    "a TIFF with one strip of two thousand million rows": lambda: tiff(16, 16, (278, 2**31 - 1)),
    "a TIFF with a thousand strips where it has two": lambda: strips(1000, 1000, 500, 1000),
    "a WebP of 16,383 x 16,383": lambda: webp(16_383, 16_383),
    "a PNG with 50 MB of packed text": lambda: png(8, 8, 8, 0, packed(72), (b"zTXt", b"Comment\0\0" + packed())),
    "a PNG with a packed colour profile of 50 MB": lambda: png(8, 8, 8, 0, packed(72), (b"iCCP", b"p\0\0" + packed())),
    "a TIFF of 3,000 entries for the same 200 kB": lambda: shared(3000, 200_000),
    "a BigTIFF of 3,000 entries for the same 200 kB": lambda: shared(3000, 200_000, big=True),
    "a TIFF of a million resolutions": lambda: shared(0, 8_000_000, (282, 5, 1_000_000, 16)),
    "a TIFF whose EXIF has 3,000 entries": lambda: shared(3000, 200_000, below=(0x8769,)),
    "a TIFF whose places have 3,000 entries": lambda: shared(3000, 200_000, below=(0x8825,)),
    "a TIFF whose EXIF leads to 3,000 entries": lambda: shared(
        3000, 200_000, (0xA005, 4, 1, 16), below=(0x8769, 0xA005)
    ),
    "a JPEG whose EXIF has 3,000 entries": lambda: segments(0xE1, b"Exif\0\0", shared(3000, 200_000, picture=False)),
    "a JPEG whose index of pictures has 2,500 entries": lambda: segments(
        0xE2, b"MPF\0", shared(2500, 34_000, picture=False)
    ),
    "a JPEG of 6 MB of EXIF": lambda: segments(0xE1, b"Exif\0\0", bytes(6_000_000)),
    "a JPEG of 200,000 comments": lambda: b"\xff\xd8" + b"\xff\xfe\0\2" * 200_000 + segments(0xFE, b"", b"")[2:],
    "a PNG whose EXIF has 3,000 entries": lambda: png(
        8, 8, 8, 0, packed(72), (b"eXIf", shared(3000, 200_000, picture=False))
    ),
    "a PNG whose packed EXIF has 3,000 entries": lambda: png(
        8,
        8,
        8,
        0,
        packed(72),
        (
            b"zTXt",
            b"Raw profile type exif\0\0"
            + zlib.compress(b"\nexif\n1\n" + shared(3000, 200_000, picture=False).hex().encode()),
        ),
    ),
    "a WebP whose EXIF has 3,000 entries": lambda: saved(
        Image.new("RGB", (8, 8)), "WEBP", exif=shared(3000, 200_000, picture=False)
    ),
}
# No bombs, but the largest that are taken.
HONEST: dict[str, Callable[[], bytes]] = {
    "black and white": lambda: png(8_900, 8_900, 1, 0, packed((1 + 8_904 // 8) * 8_900)),
    "16 bits": lambda: png(8_900, 8_900, 16, 0, packed((1 + 2 * 8_900) * 8_900)),
    "see-through": lambda: png(8_900, 8_900, 8, 6, packed((1 + 4 * 8_900) * 8_900)),
}


def npz_bomb(file: Path) -> Path:
    """An archive whose one array has a header of 50 MB, packed into 50 kB."""
    length = 50_000_000
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train_labels.npy", b"\x93NUMPY\x02\0" + struct.pack("<I", length) + bytes(length))
    return file
