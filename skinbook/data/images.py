"""Where pixels come from: image files on a disk, or arrays in an archive. Whatever the file holds, a reader gets RGB.

A photograph is turned upright by its EXIF mark, brought to sRGB by its colour profile, and made 8-bit RGB. A greyscale,
CMYK, palette, 16-bit or transparent image is converted with one warning that names the file. A file that is empty, cut
off, no image, or absurdly large is refused with a sentence that says what to do.
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
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import TiffImageFile

from skinbook.config import SkinbookError
from skinbook.reading import contents, size

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
SAME = 2  # grey levels by which a profile may differ from sRGB and still count as that; one comes from rounding alone
# Bytes of an archive of arrays, and of one of them: DermaMNIST's largest are 1.1 and 1.06 GB. (The header's: NumPy's.)
LARGEST_ARCHIVE, LARGEST_ARRAY, LONGEST_HEADER = 4_000_000_000, 2_000_000_000, 10_000
AGAIN = "Download or copy it again; `skinbook data verify` lists every such file"


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
        If the file is missing, empty, cut off, not an image, or larger than `LARGEST` pixels; it names the file.
    """
    length = -1
    try:
        length = size(path, LARGEST_FILE)
        # Of a file, not of its name, Pillow makes no memory map: through one it garbles grey TIFFs that are to be turned.
        with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            if width * height > LARGEST:
                raise Image.DecompressionBombError
            _must_end(image, path, length)
            if at_least and image.format == "JPEG":
                scale = 2 * at_least / min(width, height)
                image.draft(None, (int(np.ceil(width * scale)), int(np.ceil(height * scale))))
            with _alone if image.width * image.height > ALONE else contextlib.nullcontext():
                image.load()
                return _upright_rgb(image)
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


def _must_end(image: Image.Image, path: Path, length: int) -> None:
    """Raise where a small file would take hours or gigabytes, or where its own checksums say that it is damaged."""
    if image.format in ("JPEG", "MPO") and length * image.width * image.height > MANY_SCANS_MATTER:
        scans = _scans(contents(path, LARGEST_FILE))
        if scans > SCANS:
            raise ValueError(f"{scans:,} scans, where a photograph has about ten")
    if isinstance(image, TiffImageFile) and image.tag_v2.get(322, 0) * image.tag_v2.get(323, 0) > LARGEST_TILE:
        raise Image.DecompressionBombError
    if image.format == "PNG":
        with Image.open(path, formats=["PNG"]) as again:
            again.verify()  # Pillow passes over the checksums of the pixels when it reads them


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
    turn = TURNS.get(_orientation(image))
    if turn is not None:
        image = image.transpose(turn)
    kind, mode = None, image.mode
    if mode == "F":
        raise ValueError("floating-point pixels, which have no agreed range")
    if mode.startswith("I"):
        kind = "16-bit greyscale"
        grey = np.asarray(image)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("whole numbers beyond 16 bits, which have no agreed range")
        grey = grey.astype(np.uint32)
        grey += 128
        grey //= 257
        image = Image.fromarray(grey.astype(np.uint8))
    elif mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        kind = "transparent"
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
        image = image.convert("L" if mode in ("1", "L", "LA", "La") else "RGB")
    elif mode != "RGB":
        kind = {"1": "black and white", "L": "greyscale", "P": "palette"}.get(mode, mode)
    if profile:
        image = _to_srgb(image, profile)
    return image if image.mode == "RGB" else image.convert("RGB"), kind


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(0x0112, 1))
    except Exception:  # a damaged mark is no reason to refuse the photograph
        return 1


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
    """Read a mask file as bool (height, width): True where it is brighter than half (0/1 and 0/255 both occur)."""
    grey = np.asarray(decode(path)[0].convert("L"))
    return grey > (0 if grey.max(initial=0) <= 1 else 127)


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
        """32 hexadecimal digits from the image_ids and their files' lengths (which survive a copy; times do not)."""
        digest = hashlib.blake2b(digest_size=16)
        for image_id in image_ids:
            path = self.path(image_id)
            try:
                digest.update(f"{image_id}\x1f{path.stat().st_size}\x1e".encode())
            except OSError as error:
                raise SkinbookError(f"{path} cannot be read ({error.strerror}). {AGAIN}.") from None
        return digest.hexdigest()


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
