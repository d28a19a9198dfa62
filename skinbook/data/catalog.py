"""One way in: the name of an edition becomes a `Dataset`, wherever its files lie."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from skinbook import config
from skinbook.config import EDITIONS, Settings, SkinbookError
from skinbook.data import locate
from skinbook.data.schema import Dataset

NAMES = {"lab": "The lab", "ham10000": "HAM10000", "bcn20000": "BCN20000", "dermamnist": "DermaMNIST"}


def load(edition: str, settings: Settings | None = None, root: Path | None = None) -> Dataset:
    """Load an edition from the first place that has it (see `skinbook.data.locate`); lab is generated and cached.

    Parameters
    ----------
    edition : one of `skinbook.config.EDITIONS`.
    settings : read from the environment if not given.
    root : look in this folder, and in no other.

    Raises
    ------
    SkinbookError
        If the edition is unknown, was not found, or its files are faulty.
    """
    settings = settings or config.settings()
    reader = _reader(edition)
    if edition == "lab":
        return reader.load(settings.cache)
    return reader.load(find(edition, settings, root)[0])


def find(edition: str, settings: Settings, root: Path | None = None) -> tuple[Path, Path]:
    """The first place that has an edition, and its table (or archive) there; SkinbookError if none has."""
    reader = _reader(edition)
    folders = locate.places(settings, root)
    for folder in folders:
        table = reader.find(folder)
        if table is not None:
            return folder, table
    raise locate.not_found(NAMES[edition], reader.TABLES, folders, reader.REMEDY)


@dataclass(frozen=True)
class Found:
    """An edition at hand, or not: where it lies (None if nowhere), and a line about it."""

    edition: str
    where: Path | None
    summary: str


def status(settings: Settings | None = None, root: Path | None = None) -> list[Found]:
    """What is found of every edition, and where; nothing is generated or downloaded, no image is opened.

    Raises
    ------
    SkinbookError
        If the root, or a folder that `SKINBOOK_DATA` names, is not a folder.
    """
    settings = settings or config.settings()
    locate.places(settings, root)
    found = [Found("lab", settings.cache, "always at hand: generated when it is first used")]
    for edition in EDITIONS[1:]:
        try:
            folder, table = find(edition, settings, root)
        except SkinbookError as error:
            found.append(Found(edition, None, str(error)))
            continue
        try:
            dataset = _reader(edition).load(folder)
        except SkinbookError as error:
            found.append(Found(edition, table.parent, f"{table}: {error}"))
            continue
        images = len(dataset.images) if hasattr(dataset.images, "__len__") else len(dataset.table)
        masks = ", with masks" if dataset.masks is not None else ""
        summary = f"{table}: {len(dataset.table)} rows, {images} images{masks}"
        found.append(Found(edition, table.parent, summary))
    return found


def _reader(edition: str):
    if edition not in EDITIONS:
        raise SkinbookError(f"{edition!r} is not an edition; choose from {', '.join(EDITIONS)}.")
    return import_module(f"skinbook.data.{edition}")
