"""Reading the CSV files that people have: other separators and encodings, odd case, blanks, words for "unknown"."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from skinbook.config import SkinbookError
from skinbook.reading import contents

LARGEST = 200_000_000  # bytes; the ISIC archive's whole table is a tenth of it
MOST_CELLS, MOST_COLUMNS = 25_000_000, 2_000
MISSING = ("", "unknown", "na", "n/a", "nan", "none", "null")


def read(path: Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read a table of text separated by commas, semicolons or tabs.

    Parameters
    ----------
    path : the file, in UTF-8, UTF-16 with its mark, or Windows-1252.
    columns : names that must be there; upper and lower case count as the same, and the spelling given here is used.

    Returns
    -------
    A DataFrame of text, blanks around every cell removed; row i stands in line i + 2 of a spreadsheet.

    Raises
    ------
    SkinbookError
        If the file cannot be read, is empty or cut off, lacks a column, has one twice, has a row with too many cells, or
        a quotation mark without its other one has swallowed rows.
    """
    text = _text(path)
    header = text.lstrip("\n").split("\n", 1)[0]
    separator = max(",;\t", key=header.count)
    if header.count(separator) > MOST_COLUMNS or text.count(separator) + text.count("\n") > MOST_CELLS:
        raise SkinbookError(
            f"{path} has over {MOST_COLUMNS:,} columns or {MOST_CELLS:,} cells, too many for this table. "
            "Name the right file."
        )
    try:
        # The header is read as a row like any other: pandas would rename the second of two columns of one name, and
        # would take a first row with too many cells for one that names its row.
        whole = pd.read_csv(
            io.StringIO(text),
            sep=separator,
            header=None,
            dtype=str,
            keep_default_na=False,
            skipinitialspace=True,
            index_col=False,
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, csv.Error) as error:
        raise SkinbookError(f"{path} is not a table that can be read ({str(error).strip()}). Get it again.") from None
    spelling = {c.lower(): c for c in columns}
    names = whole.iloc[0].fillna("").str.strip()
    table = whole.iloc[1:].reset_index(drop=True)
    table.columns = pd.Index([spelling.get(name.lower(), name) for name in names])
    lacking = [c for c in columns if c not in table.columns]
    if lacking:
        raise SkinbookError(
            f"{path} lacks the column{'s' * (len(lacking) > 1)} {', '.join(lacking)}; "
            f"it has {', '.join(table.columns)[:300]}. Use the table as it was distributed."
        )
    doubled = [c for c in columns if (table.columns == c).sum() > 1]
    if doubled:
        raise SkinbookError(f"{path} has the column {doubled[0]} more than once. Use the table as it was distributed.")
    last = text.rsplit("\n", 1)[-1]
    if last and '"' not in last and last.count(separator) + 1 < len(names):
        raise SkinbookError(f"{path} is cut off: its last row has not all of its cells. Download it again.")
    if '"' in text:
        _must_have_its_rows(table, separator, path)
    table = table.apply(lambda column: column.fillna("").str.strip())
    filled = np.flatnonzero((table != "").any(axis=1))  # spreadsheets leave rows of separators at the end
    if not len(filled):
        raise SkinbookError(f"{path} has a header and no rows. Download it again.")
    return table.iloc[: filled[-1] + 1]


def _must_have_its_rows(table: pd.DataFrame, separator: str, path: Path) -> None:
    """SkinbookError if a cell holds what looks like a row, as it does between two quotation marks that are no pair."""
    row = rf"\n(?:[^\n{separator}]*{separator}){{{max(1, table.shape[1] - 1)}}}"
    swallowed = table.apply(lambda column: column.str.contains(row, na=False)).any(axis=1)
    if swallowed.any():
        raise SkinbookError(
            f"{path}, row {int(swallowed.to_numpy().argmax()) + 2}: a cell holds whole rows, so that a quotation mark is "
            "missing near there. Correct it."
        )


def _text(path: Path) -> str:
    try:
        raw = contents(path, LARGEST)
    except OSError as error:
        raise SkinbookError(f"{path} cannot be read ({error.strerror}). Check the path and its permissions.") from None
    encoding = "utf-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError:
        text = raw.decode("cp1252", errors="replace")
    if not text.strip():
        raise SkinbookError(f"{path} is empty. Download it again.")
    if "\0" in text:
        raise SkinbookError(f"{path} holds zero bytes, so it is not a table of text. Download it again.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def known(column: pd.Series, names: Mapping[str, str] | None = None) -> pd.Series:
    """Text in lower case, a word for "unknown" as a missing value, and other spellings by `names`."""
    text = column.str.lower()
    text = text.replace(dict(names)) if names else text
    return text.mask(text.isin(MISSING), np.nan)


def numbers(column: pd.Series) -> pd.Series:
    """Numbers, and words for "unknown" as missing. Any other text stays as it is, for the schema to find and name."""
    text = known(column)
    value = pd.to_numeric(text.str.replace(",", "."), errors="coerce")
    wrong = value.isna() & text.notna()
    return value.astype(object).where(~wrong, text) if wrong.any() else value.astype("float64")


def only(table: pd.DataFrame, classes: Sequence[str], path: Path) -> pd.DataFrame:
    """The table as it is; SkinbookError if it holds a diagnosis that this data set does not have."""
    wrong = table.index[~table["dx"].isin(classes)]
    if len(wrong):
        raise SkinbookError(
            f"{path}, row {wrong[0] + 2}, column dx: found {table['dx'][wrong[0]]!r}, which this data set does not "
            f"have ({len(wrong)} such rows); expected one of {', '.join(classes)}. Correct the table."
        )
    return table
