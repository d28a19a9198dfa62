"""Where pixels come from: image files on a disk, or arrays in an archive. Whatever the file holds, a reader gets RGB.

A photograph is turned upright by its EXIF mark, brought to sRGB by its colour profile, and made 8-bit RGB. A greyscale,
CMYK, palette, 16-bit or transparent image is converted with one warning that names the file. A file that is empty, cut
off, no image, or absurdly large is refused with a sentence that says what to do.
"""

from __future__ import annotations

import hashlib
import io
import threading
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageCms, ImageOps

from skinbook.config import SkinbookError

# Decoders that a data set needs. The list is closed because Pillow knows formats that start other programs.
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP")
SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
# The largest dermatoscope cameras have about 50 million pixels; a small file that claims more is a decompression bomb.
LARGEST = 80_000_000
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
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if width * height > LARGEST:
                raise Image.DecompressionBombError
            if at_least and image.format == "JPEG":
                scale = 2 * at_least / min(width, height)
                image.draft(None, (int(np.ceil(width * scale)), int(np.ceil(height * scale))))
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
        fault = f"{path} {_fault(path, error)}. {AGAIN}"
    raise SkinbookError(f"{fault}.")


def _fault(path: Path, error: Exception) -> str:
    if path.is_dir():
        return "is a folder, not an image"
    if path.stat().st_size == 0:
        return "is empty (0 bytes)"
    if isinstance(error, Image.UnidentifiedImageError):
        return f"is not an image in one of the formats {', '.join(FORMATS)}"
    return f"is cut off or damaged ({str(error).strip().rstrip('.') or type(error).__name__})"


def _upright_rgb(image: Image.Image) -> tuple[Image.Image, str | None]:
    profile = image.info.get("icc_profile")
    if _orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    kind, mode = None, image.mode
    if mode == "F":
        raise ValueError("floating-point pixels, which have no agreed range")
    if mode.startswith("I"):
        kind = "16-bit greyscale"
        grey = np.asarray(image).astype(np.int64)
        image = Image.fromarray(np.clip((grey + 128) // 257, 0, 255).astype(np.uint8), "L")
    elif mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        kind = "transparent"
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    elif mode != "RGB":
        kind = {"1": "black and white", "L": "greyscale", "P": "palette"}.get(mode, mode)
    if profile and image.mode in ("RGB", "CMYK", "L"):
        image = _to_srgb(image, profile)
    return image if image.mode == "RGB" else image.convert("RGB"), kind


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(0x0112, 1)
    except Exception:  # a damaged mark is no reason to refuse the photograph
        return 1


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Apply the file's own colour profile; a broken or unfitting one is passed over, as viewers do."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in (ImageCms.getProfileDescription(source) or ""):
            return image
        return ImageCms.profileToProfile(image, source, ImageCms.createProfile("sRGB"), outputMode="RGB") or image
    except (ImageCms.PyCMSError, OSError, ValueError):
        return image


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
        If the file is not such an archive, or an array claims another length than its header needs.
    """
    headers = {}
    try:
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                if not entry.filename.endswith(".npy"):
                    continue
                with archive.open(entry) as stream:
                    first = np.lib.format.read_magic(stream) == (1, 0)
                    header = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
                    shape, _, dtype = header(stream)
                    if entry.file_size != stream.tell() + int(np.prod(shape, dtype=object)) * dtype.itemsize:
                        raise ValueError(f"{entry.filename} is not as long as its header says")
                headers[entry.filename.removesuffix(".npy")] = (shape, dtype, entry.CRC)
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
