"""Finding data: in the folder given, in `SKINBOOK_DATA`, in Kaggle's input folder, in the cache, in this order."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from skinbook import config
from skinbook.config import Settings, SkinbookError
from skinbook.data.images import LARGEST_FILE, SUFFIXES
from skinbook.reading import size

DEPTH = 4  # Kaggle's longest way from its input folder to a table: datasets/owner/name/folder
MOST_FOLDERS = 5_000  # a whole disk given by mistake should end in a sentence, not in an hour of searching


def places(settings: Settings, root: Path | None = None) -> list[Path]:
    """The folders to search, in order. A root that is given is the only one.

    Raises
    ------
    SkinbookError
        If the root, or a folder that `SKINBOOK_DATA` names, is not a folder.
    """
    named = [(Path(root), "The folder given")] if root is not None else [(f, "SKINBOOK_DATA") for f in settings.data]
    for folder, origin in named:
        if not os.path.isdir(folder):
            raise SkinbookError(f"{origin} is {folder}, which is not a folder. Correct the path, or make the folder.")
    folders = [folder for folder, _ in named]
    if root is None:
        folders += [f for f in (config.KAGGLE_INPUT, settings.cache) if f.is_dir()]
    return folders


def folders_below(top: Path, depth: int = DEPTH) -> Iterator[tuple[Path, list[str]]]:
    """Every folder from `top` downwards with its files' names, nearest first, names in alphabetical order.

    Hidden folders are left out, and one that a link leads to again counts once. SkinbookError if `top` may not be read,
    or holds more than `MOST_FOLDERS` folders.
    """
    level, seen = [top], 0
    known: set[tuple[int, int]] = set()
    for _ in range(depth + 1):
        below: list[Path] = []
        for folder in level:
            seen += 1
            if seen > MOST_FOLDERS:
                raise SkinbookError(
                    f"{top} holds more than {MOST_FOLDERS} folders. Name the data set's own folder instead."
                )
            files: list[str] = []
            try:
                about = os.stat(folder)
                if (place := (about.st_dev, about.st_ino)) in known:
                    continue
                known.add(place)
                with os.scandir(folder) as entries:
                    for entry in sorted(entries, key=lambda e: e.name):
                        if entry.name.startswith("."):
                            continue
                        if _is_folder(entry):
                            below.append(folder / entry.name)
                        else:
                            files.append(entry.name)
            except OSError as error:
                if folder == top:
                    raise SkinbookError(
                        f"{top} cannot be read ({error.strerror}). Change its permissions, or name another folder."
                    ) from None
                continue
            yield folder, files
        level = below


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def find_file(top: Path, names: Sequence[str]) -> Path | None:
    """The nearest file at or below `top` with one of these names (in any case); in one folder, the first named."""
    wanted = [name.lower() for name in names]
    for folder, files in folders_below(top):
        here = {name.lower(): name for name in reversed(files)}
        for name in wanted:
            if name in here:
                return folder / here[name]
    return None


def find_images(tops: Iterable[Path], image_ids: Iterable[str], ending: str = "") -> dict[str, Path]:
    """Image files named `<image_id><ending>.<jpg, png, ...>` at or below the folders.

    A folder is searched only while images are lacking. Where an image lies in several places, the nearest counts, then
    the first in alphabetical order. (Kaggle's copy of HAM10000 holds every image twice.)
    """
    wanted = {f"{image_id}{ending}".lower(): image_id for image_id in image_ids}
    found: dict[str, Path] = {}
    for top in tops:
        if len(found) == len(wanted):
            break
        for folder, files in folders_below(top):
            for name in files:
                stem, dot, suffix = name.lower().rpartition(".")
                image_id = wanted.get(stem)
                if image_id is not None and dot + suffix in SUFFIXES and image_id not in found:
                    found[image_id] = folder / name
    return found


def find_listed(top: Path, names: Iterable[str]) -> dict[str, Path]:
    """The image files at or below a folder that a reader's table names, for those names that have one.

    names : as the table has them, such as `val/0.png`, `C:\\pictures\\0.png` or `ISIC_1`. Where a name has folders,
    only the folders of images count that agree with the longest end of them. There, a file with the name's ending goes
    first, then one at the name's very path from `top`; of copies, the nearest. A table from another machine may name
    folders that are not here: then the file's name alone counts, unless the file is another name's by its folder.

    Raises
    ------
    SkinbookError
        If several files are left and they differ, or as for `folders_below`.
    """
    wanted = {name: taken_apart(name) for name in names}
    stems = {stem(file) for _, file in wanted.values()}
    files: dict[str, list[tuple[tuple[str, ...], Path]]] = {}
    ends: set[tuple[str, ...]] = {()}  # of all folders that hold images
    for folder, inside in folders_below(top):
        pictures = [name for name in inside if name.lower().endswith(SUFFIXES)]
        if pictures:
            whole, _ = taken_apart(os.path.abspath(folder / pictures[0]))
            ends |= {whole[start:] for start in range(len(whole))}
            for name in pictures:
                if (short := stem(name.lower())) in stems:
                    files.setdefault(short, []).append((whole, folder / name))
    found: dict[str, Path] = {}
    taken: dict[Path, int] = {}  # by a name that agrees in so many folders
    end_of = {
        name: next(folders[start:] for start in range(len(folders) + 1) if folders[start:] in ends)
        for name, (folders, _) in wanted.items()
    }
    for name in sorted(wanted, key=lambda name: -len(end_of[name])):
        (folders, file), end = wanted[name], end_of[name]
        here = [path for whole, path in files.get(stem(file), ()) if whole[len(whole) - len(end) :] == end]
        if end != folders:  # it lies in another folder than the name's, so that it may be another name's
            here = [path for path in here if taken.get(path, 0) <= len(end)]
        here = [path for path in here if path.name.lower() == file] or here
        here = [path for path in here if taken_apart(str(path.parent.relative_to(top) / file))[0] == folders] or here
        if here:
            found[name] = _the_one(here, name, top)
            for path in here:  # all copies
                taken.setdefault(path, len(end))
    return {name: found[name] for name in wanted if name in found}


def _the_one(files: Sequence[Path], name: str, top: Path) -> Path:
    """The first of several files that are copies; SkinbookError if they are none."""
    if other := next((file for file, first in zip(files, copies(files), strict=True) if first), None):
        raise SkinbookError(
            f"{files[0]} and {other} differ, and {name} may be either. Write its folder and its ending where it is "
            f"listed, such as {other.relative_to(top).as_posix()}, or let --images lead to a folder that holds one of "
            "them only."
        )
    return files[0]


def copies(files: Sequence[Path]) -> list[int]:
    """For each file the place in the list of the first that is the same to the byte.

    One that cannot be read is like no other. Only files of one size are read, and none that is alone.
    """
    if len(files) < 2:
        return [0] * len(files)
    sizes = [_size(file) for file in files]
    alike = Counter(sizes)
    first: dict[object, int] = {}
    found = []
    for place, (file, length) in enumerate(zip(files, sizes, strict=True)):
        digest = None if length is None else _digest(file) if alike[length] > 1 else b""
        found.append(first.setdefault(file if digest is None else (length, digest), place))
    return found


def _size(file: Path) -> int | None:
    try:
        return size(file, LARGEST_FILE)
    except OSError:
        return None


def _digest(file: Path) -> bytes | None:
    try:
        with open(file, "rb") as held:
            return hashlib.file_digest(held, lambda: hashlib.blake2b(digest_size=16)).digest()
    except OSError:
        return None


def taken_apart(name: str) -> tuple[tuple[str, ...], str]:
    """The folders and the file of a name, in small letters, whatever system it was written on."""
    *folders, file = re.split(r"[\\/]", name.strip().lower())
    return tuple(folder for folder in folders if folder not in ("", ".")), file


def stem(file: str) -> str:
    """A file's name without the ending of an image, if it has one."""
    short, dot, suffix = file.rpartition(".")
    return short if dot + suffix.lower() in SUFFIXES else file


def in_its_folder(name: str, file: Path) -> bool:
    """Whether a file lies in a folder of the name that a table gives, if it gives one."""
    folders, _ = taken_apart(name)
    return folders[-1:] in ((), taken_apart(os.path.abspath(file))[0][-1:])


def all_there(found: dict[str, Path], image_ids: Sequence[str], table: Path) -> None:
    """SkinbookError if images of the table were not found, with how many, and the first."""
    lacking = [image_id for image_id in image_ids if image_id not in found]
    if lacking:
        raise SkinbookError(
            f"{table} lists {len(image_ids)} images, and {len(lacking)} of them have no file in {table.parent} "
            f"or below it (the first is {lacking[0]}). "
            "Copy the missing files there; `skinbook data verify` lists them all."
        )


def not_found(name: str, files: Sequence[str], searched: Sequence[Path], remedy: str) -> SkinbookError:
    """The error for a data set that lies in none of the places."""
    looked = ", ".join(map(str, searched)) or "no folder (SKINBOOK_DATA is not set, and there is no cache yet)"
    return SkinbookError(
        f"{name} was not found: looked for {' or '.join(files)} in {looked}. "
        f"Set SKINBOOK_DATA to the folder that holds it, or {remedy}."
    )
