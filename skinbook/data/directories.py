"""The directories of TIFF and EXIF, and a JPEG's marks, looked at before Pillow reads them.

An entry of a directory names a piece of the file, and thousands may name the same piece. Pillow copies it for each, and
makes of every number a Python object, which takes up to forty times the space: 200 kB can take gigabytes.
"""

from __future__ import annotations

import io
import struct
from typing import BinaryIO, NamedTuple

from PIL.JpegImagePlugin import MARKER
from PIL.TiffImagePlugin import TiffImageFile

# Honest entries share nothing. A colour profile has 3 MB at most; Photoshop's layers, not read here, far more.
TIMES, SPARE, LARGEST_CLAIM = 4, 1 << 16, 64_000_000  # the size of the file, and bytes
MOST_NUMBERS = 1 << 18  # of a directory: two for each of 65,536 strips, and the colours of a palette
MOST_ENTRIES = 65_535  # what two bytes can count; BigTIFF has eight for it
LARGEST_EXIF = 1 << 20  # bytes; one segment has 64 kB, and cameras that need more write two or three
MOST_MARKS = 100_000  # of a JPEG before its first scan; cameras write twenty
MOST_PAGES = 32  # a TIFF's smaller versions of one picture: each is half of the one before
SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
BYTES = (1, 2, 7)  # types whose values stay bytes or text
EXIF, GPS, INTEROP = 0x8769, 0x8825, 0xA005  # entries that lead to a directory of their own
WIDTH, SUBFILE, OLD_SUBFILE = 256, 254, 255


class Entry(NamedTuple):
    """One entry: its number, the type of its values and how many, and the field that holds them or leads to them."""

    tag: int
    kind: int
    values: int
    field: bytes


class Layout(NamedTuple):
    """How a file writes its directories: struct's mark of the byte order, whether BigTIFF, and where the first is."""

    order: str
    big: bool
    first: int


def check(file: BinaryIO, length: int) -> None:
    """Raise ValueError where a JPEG or a TIFF would have Pillow take far more memory than it has bytes.

    Parameters
    ----------
    file : an image of any kind, open at its beginning; others than JPEG and TIFF pass.
    length : its bytes.
    """
    if file.read(3) == b"\xff\xd8\xff":
        for block in _blocks(file):
            check_block(block)
    else:
        _check_first(file, length)


def check_block(block: bytes) -> None:
    """The same for EXIF data, as a file carries it."""
    if len(block) > LARGEST_EXIF:
        raise ValueError(f"over {LARGEST_EXIF // 1_000_000} MB of EXIF data, where a photograph has some kB")
    while block.startswith(b"Exif\0\0"):
        block = block[6:]
    _check_first(io.BytesIO(block), len(block))


def check_below(image: TiffImageFile, file: BinaryIO, length: int) -> None:
    """The same for the directories that a TIFF's first one leads to, where Pillow says they are."""
    layout, exif = _layout(file), image.getexif()
    for tag in (EXIF, GPS, INTEROP):  # the third stands in the first
        place = (exif.get_ifd(EXIF) if tag == INTEROP else exif).get(tag)
        if layout and isinstance(place, int) and place >= 0:
            _check_directory(_directory(file, layout, place)[0], layout, length)


def several(file: BinaryIO) -> bool:
    """Whether a TIFF holds another picture than the first; masks and smaller versions of that one do not count."""
    layout = _layout(file)
    if layout is None:
        return False
    place, seen = layout.first, set[int]()
    while place and place not in seen:
        entries, following = _directory(file, layout, place)
        numbers = {entry.tag: _number(entry, layout) for entry in entries}
        about = numbers.get(SUBFILE, 1 if numbers.get(OLD_SUBFILE) == 2 else 0)
        if seen and WIDTH in numbers and not about & 5:
            return True
        seen.add(place)
        if len(seen) > MOST_PAGES:
            return True
        place = following
    return False


def _layout(file: BinaryIO) -> Layout | None:
    """None where there is no header of a TIFF."""
    file.seek(0)
    head = file.read(16)
    order, big = {b"II": "<", b"MM": ">"}.get(head[:2]), head[2:3] == b"\x2b"
    if order is None or len(head) < (16 if big else 8):
        return None
    return Layout(order, big, struct.unpack_from(order + "Q" if big else order + "I", head, 8 if big else 4)[0])


def _directory(file: BinaryIO, layout: Layout, place: int) -> tuple[list[Entry], int]:
    """The entries of the directory at a place, as many as there are, and the place of the next one, or 0."""
    order, wide = layout.order, 8 if layout.big else 2
    if place >= 1 << 63:
        return [], 0
    file.seek(place)
    count = int.from_bytes(file.read(wide), "little" if order == "<" else "big")
    if count > MOST_ENTRIES:
        raise ValueError(f"a directory of {count:,} entries, where a photograph has a hundred")
    form = struct.Struct(order + ("HHQ8s" if layout.big else "HHI4s"))
    data = file.read(count * form.size)
    entries = [Entry(*entry) for entry in form.iter_unpack(data[: len(data) // form.size * form.size])]
    if len(entries) < count:
        return entries, 0
    return entries, int.from_bytes(file.read(8 if layout.big else 4), "little" if order == "<" else "big")


def _number(entry: Entry, layout: Layout) -> int:
    """The value of an entry that is one whole number."""
    return int.from_bytes(entry.field[: SIZES.get(entry.kind, 0)], "little" if layout.order == "<" else "big")


def _check_first(file: BinaryIO, length: int) -> None:
    layout = _layout(file)
    if layout:
        _check_directory(_directory(file, layout, layout.first)[0], layout, length)


def _check_directory(entries: list[Entry], layout: Layout, length: int) -> None:
    claimed = numbers = 0
    for entry in entries:
        size = entry.values * SIZES.get(entry.kind, 0)
        beyond = size > len(entry.field)
        place = int.from_bytes(entry.field, "little" if layout.order == "<" else "big") if beyond else 0
        if place + size <= length:  # at the first that goes beyond the end, Pillow stops to read
            claimed += size
            numbers += entry.values if size and entry.kind not in BYTES else 0
    if claimed > min(TIMES * length + SPARE, LARGEST_CLAIM) or numbers > MOST_NUMBERS:
        raise ValueError(
            f"{len(entries):,} entries beside its pixels, which name {claimed / 1e6:,.0f} MB and {numbers:,} numbers"
        )


def _blocks(file: BinaryIO) -> tuple[bytes, bytes]:
    """The EXIF data of a JPEG and its index of pictures, found in the way in which Pillow finds them."""
    exif = index = b""
    file.seek(2)
    for _ in range(MOST_MARKS):
        first = file.read(1)
        mark = file.read(1) if first == b"\xff" else b"\0"
        if mark == b"\xff":  # a filler: the mark may begin with this one
            file.seek(-1, io.SEEK_CUR)
        elif not first or not mark or mark == b"\xda" or b"\0" < mark < b"\xc0":
            return exif, index
        elif mark > b"\0" and MARKER[0xFF00 | mark[0]][2] is not None:  # else it begins no segment
            part = file.read(max(0, int.from_bytes(file.read(2), "big") - 2))
            if mark == b"\xe1" and part.startswith(b"Exif\0\0") and len(exif) <= LARGEST_EXIF:
                exif += part[6:]
            elif mark == b"\xe2" and part.startswith(b"MPF\0"):
                index = part[4:]
    raise ValueError(f"over {MOST_MARKS:,} marks and stray bytes before its pixels, where a photograph has twenty")
