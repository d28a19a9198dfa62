"""One way in: the name of an edition becomes a `Dataset`, wherever its files lie."""

from __future__ import annotations

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
    folders = locate.places(settings, root)
    for folder in folders:
        if reader.find(folder) is not None:
            return reader.load(folder)
    raise locate.not_found(NAMES[edition], reader.TABLES, folders, reader.REMEDY)


def _reader(edition: str):
    if edition not in EDITIONS:
        raise SkinbookError(f"{edition!r} is not an edition; choose from {', '.join(EDITIONS)}.")
    return import_module(f"skinbook.data.{edition}")
