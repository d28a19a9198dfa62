"""All the faults of a data set at once, each in a sentence of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd

from skinbook import config
from skinbook.config import Settings, SkinbookError, cores
from skinbook.data import bcn20000, catalog, dermamnist, download, locate
from skinbook.data.images import Npz, decode
from skinbook.data.schema import _first_fault, schema
from skinbook.diagnoses import CLASSES, DIAGNOSES
from skinbook.progress import bar


@dataclass
class Report:
    """What was looked at, what is wrong, and what is only unusual."""

    edition: str
    where: Path
    counts: dict[str, int] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify(
    edition: str, settings: Settings | None = None, root: Path | None = None, *, progress: bool = True
) -> Report:
    """Check the table, and decode every image and mask of an edition that lies on disk.

    Raises
    ------
    SkinbookError
        If the data set is not there at all, or the edition is generated (lab has no files to check).
    """
    if edition == "lab":
        raise SkinbookError("The lab edition is generated, so there are no files of it to verify.")
    settings = settings or config.settings()
    folder, path = catalog.find(edition, settings, root)
    report = Report(edition, path.parent)
    _check_hashes(report)
    if edition == "dermamnist":
        _check_archive(report, path)
        return report
    reader = import_module(f"skinbook.data.{edition}")
    try:
        table = reader.columns(path)
    except SkinbookError as error:  # without a table there is nothing to compare the images with
        report.faults.append(str(error))
        return report
    if edition == "bcn20000":
        table, left_out = reader.keep(table, path)
        if left_out:
            report.notes.append(f"{path}: {left_out} rows without a diagnosis are left out.")
    report.counts["rows"] = len(table)
    report.faults += table_faults(table, str(path), CLASSES[edition])
    ids = [name for name in dict.fromkeys(table["image_id"]) if name]
    images = locate.find_images([path.parent, folder], ids)
    _check_files(
        report, "images", images, ids, path, optional=path.name.lower() == bcn20000.ISIC.lower(), progress=progress
    )
    if edition == "ham10000":
        masks = locate.find_images([path.parent, folder], ids, ending=reader.MASK_ENDING)
        _check_files(report, "masks", masks, ids, path, optional=True, progress=progress)
    return report


def table_faults(table: pd.DataFrame, origin: str, classes: Sequence[str]) -> list[str]:
    """A sentence for every column and every wrong value in it; rows that share a value are counted, the first named.

    `table` keeps the row numbers of its file as its index.
    """
    import pandera.errors

    found: list[str] = []
    cases = []
    # A second time with numbers only: as long as an age is a word, pandera cannot tell which of the others is too high.
    for checked in (table, table.assign(age=pd.to_numeric(table["age"], errors="coerce"))):
        try:
            schema().validate(checked, lazy=True)
        except pandera.errors.SchemaErrors as error:
            cases.append(error.failure_cases.dropna(subset=["index"]))
    if cases:
        single = pd.concat(cases).drop_duplicates(["column", "index"])
        for (column, value), same in single.groupby(["column", "failure_case"], sort=False, dropna=False):
            concerned = table[table["image_id"] == value] if column == "image_id" else table
            found.append(_first_fault(concerned, same, origin))
    for code in [c for c in table["dx"].dropna().unique() if c in DIAGNOSES and c not in classes]:
        rows = table.index[table["dx"] == code]
        where = f"{origin}, row {rows[0] + 2}, column dx"
        found.append(f"{where}: {code!r} is no diagnosis of this data set ({len(rows)} such rows).")
    return found


def _check_files(
    report: Report, what: str, files: dict[str, Path], ids: list[str], table: Path, *, optional: bool, progress: bool
) -> None:
    report.counts[what] = len(files)
    lacking = [name for name in ids if name not in files]
    if optional and not files:
        report.notes.append(f"There are no {what} in {report.where} or below it.")
    else:
        report.faults += [f"{name} is in {table} and has no file among the {what}." for name in lacking]
    kinds: dict[str, list[Path]] = {}
    for path, fault, kind in _decode_all(list(files.values()), what, progress):
        if fault:
            report.faults.append(fault)
        elif kind and what == "images":
            kinds.setdefault(kind, []).append(path)
    for kind, paths in kinds.items():
        report.notes.append(f"{len(paths)} images are {kind} and are converted to 8-bit RGB; the first is {paths[0]}.")


def _decode_all(paths: list[Path], what: str, progress: bool) -> list[tuple[Path, str | None, str | None]]:
    def one(path: Path) -> tuple[Path, str | None, str | None]:
        try:
            return path, None, decode(path)[1]
        except SkinbookError as error:
            return path, str(error), None

    return _in_threads(one, paths, f"checking {what}", progress)


def _in_threads(function: Callable, items: list, label: str, progress: bool) -> list:
    with ThreadPoolExecutor(cores()) as pool, bar(len(items), label, shown=progress) as shown:
        done = []
        for result in pool.map(function, items):
            done.append(result)
            shown.update()
        return done


def _check_hashes(report: Report) -> None:
    """Files whose hash was recorded when they were downloaded still have it."""
    try:
        hashes = download.recorded(report.where)
    except SkinbookError as error:
        report.faults.append(str(error))
        return
    for name, expected in hashes.items():
        file = report.where / name
        if file.is_file() and download.file_hash(file, "sha256") != expected:
            report.faults.append(
                f"{file} is not the file that was downloaded: its SHA-256 has changed. Download it again."
            )


def _check_archive(report: Report, path: Path) -> None:
    expected = download.DERMAMNIST_MD5.get(path.name.lower())
    if expected and download.file_hash(path, "md5") != expected:
        report.notes.append(f"{path} has not the MD5 that MedMNIST publishes ({expected}).")
    try:
        table = dermamnist.read_table(path)
    except SkinbookError as error:
        report.faults.append(str(error))
        return
    report.counts |= {"rows": len(table), "images": len(table)}
    images = cast(Npz, dermamnist.load(path.parent).images)
    blank = []
    try:
        blank = [name for name in table["image_id"] if np.ptp(images.read(name)) == 0]
    except SkinbookError as error:
        report.faults.append(str(error))
    if blank:
        report.faults.append(f"{path}: {len(blank)} images have a single colour; the first is {blank[0]}.")
