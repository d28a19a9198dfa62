"""The one tidy table that every data set becomes, and what a data set consists of.

Nothing downstream knows where a row came from. One row is one photograph:

| column     | dtype   | meaning                                                        | missing |
|------------|---------|----------------------------------------------------------------|---------|
| image_id   | string  | names the photograph; unique                                   | never   |
| lesion_id  | string  | names the lesion that it shows; several photographs may share it | never |
| dx         | string  | the diagnosis, a code of `skinbook.diagnoses`                  | never   |
| dx_type    | string  | how the diagnosis was made: histo, follow_up, consensus, confocal | may be |
| age        | float64 | years at the time of the photograph, 0 to 120                  | may be  |
| sex        | string  | female or male                                                 | may be  |
| site       | string  | where on the body, in the data set's own words                 | may be  |
| source     | string  | the clinic or collection that it comes from                    | never   |
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pandas as pd

from skinbook.config import SkinbookError
from skinbook.diagnoses import DIAGNOSES

COLUMNS = ("image_id", "lesion_id", "dx", "dx_type", "age", "sex", "site", "source")
DX_TYPES = ("histo", "follow_up", "consensus", "confocal")
SEXES = ("female", "male")
PROVISIONS = frozenset({"lesion_id", "metadata", "dx_type", "masks"})


class ImageSource(Protocol):
    """Where the pixels of a data set come from: files, an archive, or a generator."""

    def read(self, image_id: str) -> np.ndarray:
        """The photograph as uint8 (height, width, 3), or a mask as bool (height, width)."""

    def path(self, image_id: str) -> Path | None:
        """The file that holds the image, or None where it is not a file of its own."""

    def fingerprint(self, image_ids: list[str]) -> str:
        """A short hash that changes when any of these images changes on disk."""


@dataclass(frozen=True)
class Dataset:
    """A table, its pixels, and what the data set can be asked for."""

    edition: str
    table: pd.DataFrame
    classes: tuple[str, ...]
    images: ImageSource
    masks: ImageSource | None = None
    provides: frozenset[str] = PROVISIONS
    where: Path | None = None
    # Pairs of image_ids that are one and the same file. A split keeps them together, whatever their lesion_ids.
    identical: tuple[tuple[str, str], ...] = ()


def schema():
    """The pandera schema of the table (imported late: pandera is slow to load)."""
    import pandera.pandas as pa

    # Missing text equals nothing, and is not "unknown whether equal" as in pandas 2's own type for text.
    text = pd.StringDtype(na_value=np.nan) if pd.__version__ >= "3" else str
    return pa.DataFrameSchema(
        {
            "image_id": pa.Column(text, pa.Check.str_length(min_value=1), unique=True),
            "lesion_id": pa.Column(text, pa.Check.str_length(min_value=1)),
            "dx": pa.Column(text, pa.Check.isin(list(DIAGNOSES))),
            "dx_type": pa.Column(text, pa.Check.isin(DX_TYPES), nullable=True),
            "age": pa.Column("float64", pa.Check.in_range(0, 120), nullable=True),
            "sex": pa.Column(text, pa.Check.isin(SEXES), nullable=True),
            "site": pa.Column(text, pa.Check.str_length(min_value=1), nullable=True),
            "source": pa.Column(text),
        },
        strict=True,
        ordered=True,
        coerce=True,
        index=pa.Index("int64"),
    )


def tidy(table: pd.DataFrame, origin: str) -> pd.DataFrame:
    """Check a table against the schema and return it with the schema's column order and dtypes, index 0 .. n-1.

    Parameters
    ----------
    table : the eight columns of `COLUMNS`, in any order, any others besides.
    origin : the file (or generator) it was read from, for the message.

    Raises
    ------
    SkinbookError
        Naming the file, the first row (counted as in a spreadsheet: the header is row 1) and column that is wrong,
        what was expected, and how many rows have the fault.
    """
    import pandera.errors

    lacking = [c for c in COLUMNS if c not in table.columns]
    if lacking:
        raise SkinbookError(
            f"{origin} lacks the column{'s' * (len(lacking) > 1)} {', '.join(lacking)}; it has {', '.join(map(str, table.columns))}."
        )
    if doubled := [c for c in COLUMNS if (table.columns == c).sum() > 1]:
        raise SkinbookError(f"{origin} has the column {doubled[0]} more than once. Remove one of them.")
    table = table.loc[:, list(COLUMNS)].reset_index(drop=True)
    try:
        return schema().validate(table, lazy=True)
    except pandera.errors.SchemaErrors as error:
        faults = error.failure_cases
    raise SkinbookError(_first_fault(table, faults, origin))


def _first_fault(table: pd.DataFrame, faults: pd.DataFrame, origin: str) -> str:
    fault = faults.sort_values("index", na_position="last", kind="stable").iloc[0]
    column, check = str(fault["column"]), str(fault["check"])
    count = faults["index"][faults["column"] == fault["column"]].nunique()
    found = fault["failure_case"]
    found = found.item() if hasattr(found, "item") else found
    if check == "field_uniqueness":
        names = table["image_id"].astype(str)
        doubled = names[names.duplicated()].iloc[0]
        rows = (table.index[names == doubled] + 2).tolist()
        return (
            f"{origin}: image_id {doubled!r} stands in rows {', '.join(map(str, rows))}; every image may appear once. "
            "Repeated rows are usually oversampled copies: remove them before splitting."
        )
    expected = {
        "dx": f"one of {', '.join(DIAGNOSES)}",
        "dx_type": f"one of {', '.join(DX_TYPES)}, or empty",
        "age": "a number of years from 0 to 120, or empty",
        "sex": "female, male, or empty",
    }.get(column, "a text that is not empty")
    where = f"row {int(fault['index']) + 2}, " if pd.notna(fault["index"]) else ""
    more = f" ({count} such rows)" if count > 1 else ""
    return f"{origin}, {where}column {column}: found {found!r:.200}, expected {expected}{more}. Correct the table."
