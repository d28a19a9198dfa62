"""Finding data: in the folder given, in `SKINBOOK_DATA`, in Kaggle's input folder, in the cache, in this order."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from skinbook import config
from skinbook.config import Settings, SkinbookError
from skinbook.data.images import SUFFIXES

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
