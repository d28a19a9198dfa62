"""The pixel store: every image is decoded and reduced once, into one memory-mapped uint8 array.

Training reads rows of that array and no JPEG. A store is a plain `.npy` file with a record beside it (`.json`: which
image is which row, and a digest of every chunk of 32 rows). It is written as `.partial` first, chunk by chunk: the
chunk is written, then its digest goes into a list of finished chunks, while the next two are decoded. After a kill or a
power cut at any moment, a second build takes over the chunks that are listed and still have their digest, and decodes
the rest: a kill costs at most the chunk that was being written and the two that were begun, 96 images in all. Only the
last step, a rename, makes a store.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from skinbook import keyed
from skinbook.config import SkinbookError, cores
from skinbook.data.images import Files
from skinbook.data.schema import Dataset, ImageSource
from skinbook.files import replaced
from skinbook.progress import bar

CHUNK = 32  # rows; a kill can cost three chunks
TASK = 2  # rows a thread takes at a time
DECODING = 2  # raise it when the same file would give other pixels, so that old stores are not used again
VERIFY_ALL = 512_000_000  # bytes; larger stores have 64 of their chunks checked when they are opened
SAMPLE = 64  # chunks
SPARE = 64_000_000  # bytes that must stay free on the disk


@dataclass(frozen=True)
class Store:
    """Decoded pixels: photographs as uint8 (n, height, width, 3), masks as uint8 (n, height, width) of 0 and 1."""

    pixels: np.ndarray
    image_ids: list[str]
    fingerprint: str
    size: tuple[int, int]
    path: Path
    _row: dict[str, int] = field(repr=False, compare=False, default_factory=dict)

    def rows(self, image_ids: Sequence[str]) -> np.ndarray:
        """Row numbers of images, int64, in the order asked for. SkinbookError names one that is not in the store."""
        if not self._row:
            self._row.update((image_id, row) for row, image_id in enumerate(self.image_ids))
        try:
            return np.array([self._row[image_id] for image_id in image_ids], dtype=np.int64)
        except KeyError as lacking:
            raise SkinbookError(f"The pixel store has no image {lacking}; build it from a table that has.") from None


def reduce(
    image: Image.Image, size: tuple[int, int], resample: Image.Resampling = Image.Resampling.BICUBIC
) -> Image.Image:
    """Cut the largest centred part with the shape of `size` (height, width), and reduce it to `size`, antialiased."""
    height, width = size
    scale = min(image.width / width, image.height / height)
    # Rounding must not put the cut outside the image.
    wide, high = min(image.width, width * scale), min(image.height, height * scale)
    left, top = (image.width - wide) / 2, (image.height - high) / 2
    box = (left, top, min(image.width, left + wide), min(image.height, top + high))
    return image.resize((width, height), resample, box=box)


def build(
    dataset: Dataset,
    size: int | tuple[int, int],
    cache: Path,
    *,
    what: str = "images",
    progress: bool = True,
    workers: int | None = None,
) -> Store:
    """The pixel store of a data set: opened if it is there and sound, else built.

    Parameters
    ----------
    dataset : its table gives the rows and their order.
    size : (height, width) in pixels, or one number for a square; the centre is cut to that shape, then reduced.
    cache : the store lies in its folder `pixels`.
    what : "images", or "masks": a mask is averaged over each pixel's area and is 1 where at least half is covered.
    progress : show a bar to a person who is looking.
    workers : threads; as many as CPU cores if not given.

    Raises
    ------
    SkinbookError
        If an image cannot be read, the disk is full, or the cache cannot be written; no half-written store is left.
    """
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    source = dataset.images if what == "images" else dataset.masks
    if what not in ("images", "masks") or min(height, width) < 1:
        raise SkinbookError(
            f"A pixel store holds images or masks of at least 1 pixel, not {what!r} of {height} × {width}."
        )
    if source is None:
        raise SkinbookError(f"The edition {dataset.edition} has no masks here; choose one that has, such as lab.")
    image_ids = dataset.table["image_id"].tolist()
    identity = f"{DECODING} {what} {height}x{width} {source.fingerprint(image_ids)}"
    fingerprint = hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()
    path = Path(cache) / "pixels" / f"{dataset.edition}-{what}-{height}x{width}-{fingerprint[:12]}.npy"
    plan = _Plan(path, fingerprint, image_ids, (height, width), what)
    store = plan.open()
    if store is not None:
        with contextlib.suppress(OSError):  # a kill just after the last rename leaves the list
            plan.finished.unlink()
        return store
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        from filelock import FileLock

        with FileLock(f"{path}.lock"):  # a second process waits here, and then finds the store finished
            store = plan.open()
            if store is None:
                try:
                    _fill(plan, source, progress, workers or cores())
                except (SkinbookError, OSError):
                    plan.remove_partial()
                    raise
                store = plan.open(everything=False)  # what it holds was digested a moment ago
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _no_space(path.parent, plan.bytes) from None
        raise SkinbookError(
            f"The pixel store cannot be written in {path.parent} ({error.strerror}). "
            "Set SKINBOOK_CACHE to a folder that you may write to."
        ) from None
    if store is None:
        raise SkinbookError(f"The pixel store {path} changed while it was written. Remove it and run this again.")
    return store


def _no_space(folder: Path, needed: int) -> SkinbookError:
    return SkinbookError(
        f"No space left in {folder} for a pixel store of {needed / 1e6:,.0f} MB. "
        "Free some, or set SKINBOOK_CACHE to a folder on a larger disk."
    )


@dataclass(frozen=True)
class _Plan:
    """Where a store lies and what it must hold."""

    path: Path
    fingerprint: str
    image_ids: list[str]
    size: tuple[int, int]
    what: str

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.image_ids), *self.size, *((3,) if self.what == "images" else ()))

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def partial(self) -> Path:
        return self.path.with_suffix(".npy.partial")

    @property
    def finished(self) -> Path:
        """The list of finished chunks of the partial file."""
        return self.path.with_suffix(".chunks")

    @property
    def record(self) -> Path:
        return self.path.with_suffix(".json")

    def chunks(self) -> list[range]:
        count = len(self.image_ids)
        return [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]

    def remove_partial(self) -> None:
        for leftover in (self.partial, self.finished):
            leftover.unlink(missing_ok=True)

    def open(self, everything: bool = True) -> Store | None:
        """The finished store, or None if there is none or it is not what its record says (it is then built anew).

        `everything`: check every chunk of a store that is not large, and not a sample of them.
        """
        try:
            record = json.loads(self.record.read_text())
            pixels = np.load(self.path, mmap_mode="r", allow_pickle=False)
            digests = list(record["digests"])
            sound = (record["fingerprint"], record["image_ids"]) == (self.fingerprint, self.image_ids)
            if not sound or (pixels.shape, pixels.dtype) != (self.shape, np.uint8):
                return None
        except Exception:  # damaged files can raise nearly anything
            return None
        chunks = self.chunks()
        sample = list(range(len(chunks)))
        if self.bytes > VERIFY_ALL or not everything:
            drawn = keyed.integers(("verify", self.fingerprint), SAMPLE - 2, len(chunks)).tolist()
            sample = sorted({0, len(chunks) - 1, *drawn})
        if len(digests) != len(chunks):
            return None
        if any(_digest(pixels[chunks[i].start : chunks[i].stop]) != digests[i] for i in sample):
            return None
        return Store(pixels, self.image_ids, self.fingerprint, self.size, self.path)


def _digest(rows: np.ndarray) -> str:
    # SHA-256 is what processors have instructions for: two to three times as fast as BLAKE2 where they have.
    return hashlib.sha256(np.ascontiguousarray(rows).data).hexdigest()[:32]


def _fill(plan: _Plan, source: ImageSource, progress: bool, workers: int) -> None:
    """Write the partial file chunk by chunk, taking over what an interrupted build finished, and rename it."""
    header = _npy_header(plan.shape)
    already = plan.partial.stat().st_size if plan.partial.exists() else 0
    if shutil.disk_usage(plan.path.parent).free < plan.bytes - already + SPARE:
        raise _no_space(plan.path.parent, plan.bytes)
    row_bytes = int(np.prod(plan.shape[1:]))
    going_on = already == len(header) + plan.bytes
    digests = _taken_over(plan, len(header), row_bytes) if going_on else {}
    synced: list[Future[None]] = []
    # Plain writes, not a writable memory map: on a full disk a write gives an error, a map kills the process.
    with (
        open(plan.partial, "r+b" if going_on else "w+b") as pixels,
        open(plan.finished, "a" if going_on else "w") as finished,
        ThreadPoolExecutor(1) as syncing,  # a slow disk must not keep the decoders waiting
        ThreadPoolExecutor(1) as writing,  # while the next chunk is decoded
    ):
        if not going_on:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(pixels.fileno(), 0, len(header) + plan.bytes)
            else:
                pixels.truncate(len(header) + plan.bytes)
        pixels.write(header)
        chunks = plan.chunks()
        todo = [index for index in range(len(chunks)) if index not in digests]
        done = len(plan.image_ids) - sum(len(chunks[index]) for index in todo)

        def write(index: int, rows: np.ndarray) -> int:
            pixels.seek(len(header) + index * CHUNK * row_bytes)
            pixels.write(rows.data)
            pixels.flush()
            digests[index] = _digest(rows)
            finished.write(f"{index} {digests[index]}\n")
            finished.flush()
            synced.extend(syncing.submit(os.fsync, file.fileno()) for file in (pixels, finished))
            return len(rows)

        with bar(len(plan.image_ids), f"decoding {plan.what}", shown=progress) as shown:
            shown.update(done)
            under_way: Future[int] | None = None
            for index, rows in _decoded(plan, source, todo, workers):
                if under_way is not None:
                    shown.update(under_way.result())
                under_way = writing.submit(write, index, rows)
            if under_way is not None:
                shown.update(under_way.result())
        for one in synced:
            one.result()  # the system tells of an error once: not again when the file is synced as a whole
        _to_disk(pixels)
    record = {
        "fingerprint": plan.fingerprint,
        "decoding": DECODING,
        "what": plan.what,
        "size": plan.size,
        "image_ids": plan.image_ids,
        "digests": [digests[i] for i in range(len(digests))],
    }
    unfinished = plan.record.with_suffix(".json.partial")
    with open(unfinished, "w") as file:
        json.dump(record, file)
        _to_disk(file)
    os.replace(unfinished, plan.record)
    os.replace(plan.partial, plan.path)
    plan.finished.unlink(missing_ok=True)


def _npy_header(shape: tuple[int, ...]) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return file.getvalue()


def _to_disk(file) -> None:
    file.flush()
    os.fsync(file.fileno())


def _taken_over(plan: _Plan, offset: int, row_bytes: int) -> dict[int, str]:
    """Chunks that an interrupted build listed and whose bytes still have the digest; the list then holds no others.

    The list is replaced and never emptied, so that a second kill here costs nothing.
    """
    chunks, sound = plan.chunks(), {}
    text = plan.finished.read_text(errors="replace") if plan.finished.exists() else ""
    with open(plan.partial, "rb") as pixels:
        for line in text.splitlines():
            index, _, digest = line.partition(" ")
            if not (index.isdecimal() and int(index) < len(chunks) and len(digest) == 32):
                continue  # a line cut off
            rows = chunks[int(index)]
            pixels.seek(offset + rows.start * row_bytes)
            if _digest(np.frombuffer(pixels.read(len(rows) * row_bytes), dtype=np.uint8)) == digest:
                sound[int(index)] = digest
    with replaced(plan.finished) as partial:
        partial.write_text("".join(f"{index} {digest}\n" for index, digest in sound.items()))
    return sound


def _decoded(plan: _Plan, source: ImageSource, todo: list[int], workers: int) -> Iterator[tuple[int, np.ndarray]]:
    """Chunks in order, uint8. While one is finished the next is under way, so that no thread waits for the last row."""
    pool, chunks = ThreadPoolExecutor(workers), plan.chunks()

    def begin(index: int) -> tuple[int, np.ndarray, list[Future[None]]]:
        names = plan.image_ids[chunks[index].start : chunks[index].stop]
        rows = np.empty((len(names), *plan.shape[1:]), dtype=np.uint8)
        parts = [slice(start, start + TASK) for start in range(0, len(names), TASK)]
        return index, rows, [pool.submit(_decode_rows, plan, source, names[part], rows[part]) for part in parts]

    try:
        begun = [begin(index) for index in todo[:1]]
        for following in [*todo[1:], None]:
            if following is not None:
                begun.append(begin(following))
            if begun:
                index, rows, tasks = begun.pop(0)
                for task in tasks:
                    task.result()
                yield index, rows
    finally:
        pool.shutdown(cancel_futures=True)


def _decode_rows(plan: _Plan, source: ImageSource, image_ids: list[str], into: np.ndarray) -> None:
    for row, image_id in enumerate(image_ids):
        if plan.what == "masks":
            mask = Image.fromarray(np.asarray(source.read(image_id)).astype(np.uint8) * 255)
            into[row] = np.asarray(reduce(mask, plan.size, Image.Resampling.BOX)) >= 128
        else:
            image = _open(source, image_id, at_least=max(plan.size))
            into[row] = image if image.size[::-1] == plan.size else reduce(image, plan.size)


def _open(source: ImageSource, image_id: str, at_least: int) -> Image.Image:
    if isinstance(source, Files):
        return source.image(image_id, at_least)
    return Image.fromarray(source.read(image_id))
