"""Where pixels come from: image files on a disk, or arrays in an archive. Whatever the file holds, a reader gets RGB.

A photograph is turned upright by its EXIF mark, brought to sRGB by its colour profile, and made 8-bit RGB. A greyscale,
CMYK, palette, 16-bit or transparent image is converted with one warning that names the file. A file that is empty, cut
off, no image, one of several pictures, or absurdly large is refused with a sentence that says what to do.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import re
import threading
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import TiffImageFile

from skinbook.config import SkinbookError
from skinbook.data import directories
from skinbook.reading import contents, size

Read = TypeVar("Read")

# Decoders that a data set needs. The list is closed because Pillow knows formats that start other programs.
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
# The largest dermatoscope cameras have about 50 million pixels; a small file that claims more is a decompression bomb.
LARGEST = 80_000_000
LARGEST_FILE = 600_000_000  # bytes; so many pixels, 16 bits a colour and not compressed, have 480 MB
LARGEST_TILE = 1 << 24  # pixels; a TIFF's tiles may be larger than the picture, and each is held whole
# From so many pixels on photographs are decoded one at a time: memory must not depend on the number of threads.
ALONE = 24_000_000
_alone = threading.Lock()
# A scan takes ten bytes of a JPEG, and time for each of its pixels: of many in a large one, hours. Cameras write ten.
SCANS, MANY_SCANS_MATTER = 200, 5e11  # the latter: bytes times pixels
# Each strip of a TIFF may be the whole picture again. (Five: the planes of CMYK with alpha may be strips of their own.)
TIMES_COVERED = 5
_MARK = re.compile(rb"\xff[\x01\xc0-\xcf\xd8-\xfe]")
# What to do with a photograph for each mark of EXIF's orientation.
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
BAND = 256  # rows; several whole copies of the largest photographs would take gigabytes
SAME = 2  # grey levels by which a profile may differ from sRGB and still count as that; one comes from rounding alone
# Bytes of an archive of arrays, and of one of them: DermaMNIST's largest are 1.1 and 1.06 GB. (The header's: NumPy's.)
LARGEST_ARCHIVE, LARGEST_ARRAY, LONGEST_HEADER = 4_000_000_000, 2_000_000_000, 10_000
AGAIN = "Download or copy it again; `skinbook data verify` lists every such file"
# What a fingerprint takes of a file: so many bytes of its beginning, middle and end. Where pixels are packed, another
# changes nearly every byte behind it. Files that begin so may not be packed: of them, and of small ones, all counts.
PIECE, UNPACKED = 16_384, (b"BM", b"II", b"MM")


class _Refused(Exception):
    """A sound file that is not taken; says why, and what to do."""


def decode(path: Path, at_least: int | None = None) -> tuple[Image.Image, str | None]:
    """Read an image file as upright 8-bit sRGB.

    Parameters
    ----------
    path : the file.
    at_least : pixels; a JPEG whose shorter side is much larger may be decoded at 1/2, 1/4 or 1/8 of its size, as long
        as the shorter side keeps twice this number. That is faster, and not visible after a reduction to `at_least`.

    Returns
    -------
    The image in mode RGB, and what had to be converted ("greyscale", "CMYK", ...), or None.

    Raises
    ------
    SkinbookError
        If the file is missing, empty, cut off, not an image, larger than `LARGEST` pixels, one of several pictures that
        are one file, or would take far more time or memory than it has pixels; it names the file.
    """
    return _decoded(path, at_least, _upright_rgb)


def _decoded(path: Path, at_least: int | None, finish: Callable[[Image.Image], Read]) -> Read:
    """What `finish` makes of an image file's pixels, as they are stored; parameters and errors as for `decode`."""
    length = -1
    try:
        length = size(path, LARGEST_FILE)
        # Of a file, not of its name, Pillow makes no memory map: through one it garbles grey TIFFs that are to be turned.
        with open(path, "rb") as file:
            directories.check(file, length)
            file.seek(0)
            with Image.open(file, formats=FORMATS) as image:
                width, height = image.size
                if width * height > LARGEST:
                    raise Image.DecompressionBombError
                _must_end(image, path, file, length)
                if at_least and image.format == "JPEG":
                    scale = 2 * at_least / min(width, height)
                    image.draft(None, (int(np.ceil(width * scale)), int(np.ceil(height * scale))))
                with _alone if image.width * image.height > ALONE else contextlib.nullcontext():
                    image.load()
                    return finish(image)
    except _Refused as error:
        fault = f"{path} {error}"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        fault = (
            f"{path} claims more than {LARGEST // 1_000_000} million pixels; no photograph here needs that. Remove it"
        )
    except FileNotFoundError:
        fault = f"{path} is not there any more. {AGAIN}"
    except PermissionError:
        fault = f"{path} may not be read by this user. Change its permissions"
    except Exception as error:  # a damaged file can raise nearly anything in a decoder
        fault = f"{path} {_fault(error, length)}. {AGAIN}"
    raise SkinbookError(f"{fault}.")


def _fault(error: Exception, length: int) -> str:
    if isinstance(error, IsADirectoryError):
        return "is a folder, not an image"
    if isinstance(error, OSError) and error.errno is not None:
        return f"cannot be read ({error.strerror})"
    if length == 0:
        return "is empty (0 bytes)"
    if isinstance(error, Image.UnidentifiedImageError):
        return f"is not an image in one of the formats {', '.join(FORMATS)}"
    return f"is cut off or damaged ({str(error).strip().rstrip('.') or type(error).__name__})"


def _must_end(image: Image.Image, path: Path, file: BinaryIO, length: int) -> None:
    """Raise where a small file would take hours or gigabytes, or where its own checksums say that it is damaged."""
    if image.format in ("JPEG", "MPO") and length * image.width * image.height > MANY_SCANS_MATTER:
        scans = _scans(contents(path, LARGEST_FILE))
        if scans > SCANS:
            raise ValueError(f"{scans:,} scans, where a photograph has about ten")
    if isinstance(image, TiffImageFile):
        _tiff_must_end(image, file, length)
    # Of an MPO the first picture is the photograph, and the others are what the camera made of it.
    elif image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
        raise _Refused("is a film of several pictures, not one photograph. Save the right one as a file of its own")
    if image.format == "BMP" and image.info.get("compression") in (1, 2):
        raise _Refused("is a BMP of run lengths, in which a kilobyte can stand for gigabytes. Save it as PNG")
    if image.format == "PNG":
        with Image.open(path, formats=["PNG"]) as again:
            again.verify()  # Pillow passes over the checksums of the pixels when it reads them


def _tiff_must_end(image: TiffImageFile, file: BinaryIO, length: int) -> None:
    wide, high = (image.tag_v2.get(tag, 0) for tag in (322, 323))
    if not (isinstance(wide, int) and isinstance(high, int)):
        raise ValueError("tiles without a size")
    if wide * high > LARGEST_TILE:
        raise Image.DecompressionBombError
    covered = 0
    for _, box, *_ in image.tile:
        left, upper, right, lower = box or (0, 0, image.width, image.height)
        covered += (right - left) * (lower - upper)
    if covered > TIMES_COVERED * image.width * image.height:
        raise ValueError(f"strips that cover the picture {covered // (image.width * image.height):,} times")
    directories.check_below(image, file, length)
    if directories.several(file):
        raise _Refused("holds several pictures, not one photograph. Save the right one as a file of its own")


def _scans(data: bytes) -> int:
    """How many scans a JPEG has before its end."""
    place = scans = 0
    while (mark := _MARK.search(data, place)) and (kind := mark[0][1]) != 0xD9:
        place, scans = mark.end(), scans + (kind == 0xDA)
        if kind not in (0x01, 0xD8):  # what these begin is no segment, and has no length
            place += int.from_bytes(data[place : place + 2], "big")
    return scans


def _upright_rgb(image: Image.Image) -> tuple[Image.Image, str | None]:
    profile = image.info.get("icc_profile")
    image = _upright(image)
    kind, mode = None, image.mode
    if mode == "F":
        raise ValueError("floating-point pixels, which have no agreed range")
    if mode.startswith("I"):
        kind = "16-bit greyscale"
        image = _eight_bits(image)
    elif _see_through(image):
        kind = "transparent"
        image = _over(image, "white", "L" if mode in ("1", "L", "LA", "La") else "RGB")
    elif mode != "RGB":
        kind = {"1": "black and white", "L": "greyscale", "P": "palette"}.get(mode, mode)
    if profile:
        image = _to_srgb(image, profile)
    return image if image.mode == "RGB" else image.convert("RGB"), kind


def _upright(image: Image.Image) -> Image.Image:
    turn = TURNS.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    packed = image.info.get("Raw profile type exif")  # of a PNG; Pillow reads it where there is no other
    if isinstance(packed, str) and image.info.get("exif") is None:
        with contextlib.suppress(ValueError):
            image.info["exif"] = bytes.fromhex("".join(packed.split("\n")[3:]))
    if isinstance(block := image.info.get("exif"), bytes):
        directories.check_block(block)
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # a damaged mark is no reason to refuse the photograph
        return 1


def _whole_numbers(image: Image.Image) -> np.ndarray:
    """The pixels of an image of more than 8 bits, (height, width); ValueError where 16 bits cannot hold them."""
    grey = np.asarray(image)
    if grey.min() < 0 or grey.max() > 65535:
        raise ValueError("whole numbers beyond 16 bits, which have no agreed range")
    return grey


def _eight_bits(image: Image.Image) -> Image.Image:
    grey = _whole_numbers(image)
    small = np.empty(grey.shape, np.uint8)
    for top in range(0, len(grey), BAND):
        small[top : top + BAND] = (grey[top : top + BAND].astype(np.uint32) + 128) // 257
    return Image.fromarray(small)


def _see_through(image: Image.Image) -> bool:
    return image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info


def _over(image: Image.Image, colour: str, mode: str) -> Image.Image:
    """A transparent image on a ground of one colour, in another mode."""
    whole = Image.new(mode, image.size)
    for top in range(0, image.height, BAND):
        layer = image.crop((0, top, image.width, min(top + BAND, image.height))).convert("RGBA")
        whole.paste(Image.alpha_composite(Image.new("RGBA", layer.size, colour), layer).convert(mode), (0, top))
    return whole


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Apply the file's own colour profile; a broken or unfitting one is passed over, as viewers do."""
    try:
        mode, transform = _transform(profile)
        if transform is None or (mode == "CMYK") != (image.mode == "CMYK") or (mode == "L" and image.mode != "L"):
            return image
        return ImageCms.applyTransform(image.convert(mode), transform) or image
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image


@functools.lru_cache(maxsize=4)  # the photographs of one camera share theirs
def _transform(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """The mode that a profile is for, and the way from there to sRGB; None where that leads nowhere else.

    What a profile calls itself does not count: some that say sRGB mean another curve. ValueError for other modes.
    """
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = source.profile.xcolor_space.strip()
    if space not in ("RGB", "GRAY", "CMYK"):
        raise ValueError(f"a profile for {space}")
    mode = "L" if space == "GRAY" else space
    transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    if mode == "CMYK":
        return mode, transform
    steps = np.linspace(0, 255, 9).round().astype(np.uint8)
    colours = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(27, 27, 3)
    before = Image.fromarray(colours if mode == "RGB" else np.arange(256, dtype=np.uint8)[None])
    after = np.asarray(ImageCms.applyTransform(before, transform)).astype(int)
    leads_nowhere = np.abs(after - np.asarray(before.convert("RGB"))).max() <= SAME
    return mode, None if leads_nowhere else transform


def decode_mask(path: Path) -> np.ndarray:
    """Read a mask file as bool (height, width): True inside the lesion.

    Of two levels the higher one is inside (0/1, 0/100 and 0/255 all occur), and an image of one level is inside unless
    that is 0. Of more, as blurred edges have them, those above half of the range are inside. A level is a brightness;
    of 16-bit images, the number; of coloured palettes, the index, where black is below all; of transparent images, the
    brightness on black, or the alpha where all is one on black.

    Raises
    ------
    SkinbookError
        As for `decode`, and where nothing says which of several levels are inside: labels of several things, or a JPEG
        that is neither black nor has white. It names the file.
    """
    return _decoded(path, None, _inside)


def _inside(image: Image.Image) -> np.ndarray:
    lossy = image.format in ("JPEG", "MPO")
    image, top = _upright(image), 255
    if image.mode == "F":
        raise ValueError("floating-point pixels, which have no agreed range")
    if image.mode.startswith("I"):
        grey, top = _whole_numbers(image), 65535
    elif _see_through(image):
        on_black = _over(image, "black", "L")
        lowest, highest = on_black.getextrema()
        grey = np.asarray(image.convert("RGBA").getchannel("A") if lowest == highest else on_black)
    elif image.mode == "P" and (indices := _by_index(image)) is not None:
        grey, top = indices, 65535
    else:
        grey = np.asarray(image.convert("L"))
    counts = np.zeros(65536, np.int64)
    for start in range(0, len(grey), BAND):
        counts += np.bincount(grey[start : start + BAND].ravel(), minlength=65536)
    levels = np.flatnonzero(counts)
    if len(levels) <= 2 and not lossy:
        return grey > (levels[0] if len(levels) == 2 else 0)
    # Small numbers, and at most 255 besides for what is not to be judged, are labels; a blurred edge has all levels.
    labels = not lossy and levels[-2] < 32
    if levels[-1] > 0 and (labels or levels[-1] < 7 / 8 * top):
        raise _Refused(
            f"has {len(levels)} levels up to {levels[-1]}, which do not say what is inside the lesion. "
            "Save the mask as PNG, with 0 outside and 255 inside"
        )
    return grey > top // 2


def _by_index(image: Image.Image) -> np.ndarray | None:
    """The indices of a palette image, uint16 (height, width), from 1 on, and 0 where it is black.

    None where its colours are greys, all different: their brightness tells more. Elsewhere an index is a label.
    """
    indices = np.asarray(image)
    used = np.array([index for _, index in image.getcolors(256) or []])
    palette = np.zeros((256, 3), np.uint8)
    given = np.array(image.getpalette("RGB") or [], np.uint8).reshape(-1, 3)[:256]
    palette[: len(given)] = given
    different = len(np.unique(palette[used], axis=0)) == len(used)
    if different and (palette[used] == palette[used][:, :1]).all():
        return None
    value = np.arange(1, 257, dtype=np.uint16)
    if different:
        value[~palette.any(axis=1)] = 0
    return value[indices]


class Files:
    """Photographs (or masks) that are a file each.

    Parameters
    ----------
    paths : image_id to file.
    masks : whether the files are masks.
    absent : the sentence to give when an image_id has no file.
    """

    def __init__(self, paths: Mapping[str, Path], *, masks: bool = False, absent: str = "") -> None:
        self.paths = dict(paths)
        self.masks = masks
        self.absent = absent or "No file of it was found. `skinbook data verify` lists every such image."
        self._told: set[str] = set()

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, image_id: str) -> Path:
        """The file of an image; SkinbookError if there is none."""
        try:
            return self.paths[image_id]
        except KeyError:
            raise SkinbookError(f"Image {image_id}: {self.absent}") from None

    def read(self, image_id: str) -> np.ndarray:
        """The photograph, uint8 (height, width, 3), or the mask, bool (height, width)."""
        return decode_mask(self.path(image_id)) if self.masks else np.asarray(self.image(image_id))

    def image(self, image_id: str, at_least: int | None = None) -> Image.Image:
        """The photograph as a PIL image in RGB, perhaps reduced (see `decode`). Warns once a kind of conversion."""
        path = self.path(image_id)
        image, kind = decode(path, at_least)
        if kind and kind not in self._told:
            self._told.add(kind)
            warnings.warn(
                f"{path} is a {kind} image; it was converted to 8-bit RGB, and so is every other such image here. "
                "`skinbook data verify` lists them all.",
                stacklevel=2,
            )
        return image

    def fingerprint(self, image_ids: Sequence[str]) -> str:
        """32 hexadecimal digits from the image_ids, their files' lengths, and what stands in them (see `PIECE`)."""
        digest = hashlib.blake2b(digest_size=16)
        for image_id in image_ids:
            path = self.path(image_id)
            try:
                length = size(path, LARGEST_FILE)
                digest.update(f"{image_id}\x1f{length}\x1e".encode())
                digest.update(_told_apart_by(path, length))
            except OSError as error:
                raise SkinbookError(f"{path} cannot be read ({error.strerror}). {AGAIN}.") from None
        return digest.hexdigest()


def _told_apart_by(path: Path, length: int) -> bytes:
    """What tells a file from others of its length."""
    with open(path, "rb", buffering=0) as file:
        if length <= 3 * PIECE:
            return file.read(3 * PIECE)
        pieces = [file.read(PIECE)]
        if pieces[0].startswith(UNPACKED):
            file.seek(0)
            return hashlib.file_digest(file, "sha256").digest()
        for place in ((length - PIECE) // 2, length - PIECE):
            file.seek(place)
            pieces.append(file.read(PIECE))
        return b"".join(pieces)


class Npz:
    """Photographs that are rows of arrays in one `.npz` archive, uint8 (n, height, width, 3) each.

    An array is read whole when its first image is asked for, and kept: DermaMNIST at 224 px takes 1.5 GB of memory.

    Parameters
    ----------
    file : the archive; no pickled object in it is ever loaded.
    members : the names of its arrays, with the image_ids of their rows.
    """

    def __init__(self, file: Path, members: Mapping[str, Sequence[str]]) -> None:
        self.file = file
        self._place = {name: (member, row) for member, names in members.items() for row, name in enumerate(names)}
        self._pixels: dict[str, np.ndarray] = {}
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._place)

    def path(self, image_id: str) -> None:
        """None: the image is not a file of its own."""

    def read(self, image_id: str) -> np.ndarray:
        """The photograph, uint8 (height, width, 3)."""
        if image_id not in self._place:
            raise SkinbookError(f"Image {image_id} is not one of the {len(self)} images in {self.file}.")
        member, row = self._place[image_id]
        with self._lock:
            if member not in self._pixels:
                self._pixels[member] = npz_member(self.file, member)
        return self._pixels[member][row]

    def fingerprint(self, image_ids: Sequence[str]) -> str:
        """32 hexadecimal digits from the image_ids and the archive's own checksums of its arrays."""
        digest = hashlib.blake2b("\x1f".join(image_ids).encode(), digest_size=16)
        for name, (_, _, checksum) in sorted(npz_headers(self.file).items()):
            digest.update(f"\x1e{name}\x1f{checksum}".encode())
        return digest.hexdigest()


def npz_headers(file: Path) -> dict[str, tuple[tuple[int, ...], np.dtype, int]]:
    """Shape, dtype and CRC-32 of every array in an `.npz`, without reading the arrays.

    Raises
    ------
    SkinbookError
        If the file is not such an archive, an array claims another length than its header needs, more than
        `LARGEST_ARRAY` bytes, or the name of another one.
    """
    headers: dict[str, tuple[tuple[int, ...], np.dtype, int]] = {}
    try:
        size(file, LARGEST_ARCHIVE)
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                name = entry.filename.removesuffix(".npy")
                if name == entry.filename:
                    continue
                if name in headers or entry.file_size > LARGEST_ARRAY:
                    raise ValueError(f"{entry.filename} stands there twice, or claims {entry.file_size / 1e9:.1f} GB")
                with archive.open(entry) as stream:
                    start = stream.read(12)
                    if start[6:7] != b"\x01" and int.from_bytes(start[8:12], "little") > LONGEST_HEADER:
                        raise ValueError(f"{entry.filename} has a header of {LONGEST_HEADER} bytes or more")
                    stream.seek(0)
                    first = np.lib.format.read_magic(stream) == (1, 0)
                    header = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
                    shape, _, dtype = header(stream)
                    if entry.file_size != stream.tell() + int(np.prod(shape, dtype=object)) * dtype.itemsize:
                        raise ValueError(f"{entry.filename} is not as long as its header says")
                headers[name] = (shape, dtype, entry.CRC)
    except Exception as error:  # a damaged archive can raise nearly anything
        raise _npz_fault(file, error) from None
    return headers


def npz_member(file: Path, name: str) -> np.ndarray:
    """One array of an `.npz`; SkinbookError if it is damaged, or holds pickled objects."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            return archive[name]
    except Exception as error:  # as above
        raise _npz_fault(file, error) from None


def _npz_fault(file: Path, error: Exception) -> SkinbookError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).strip().rstrip(".")
    reason = reason or type(error).__name__
    return SkinbookError(f"{file} is not an .npz archive that can be read ({reason}). Download it again.")
