"""Reading the CSV files that people have: other separators and encodings, odd case, blanks, words for "unknown"."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from skinbook.config import SkinbookError

LARGEST = 200_000_000  # bytes; the ISIC archive's whole table is a tenth of it
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
        If the file cannot be read, is empty, lacks a column, has one twice, or has a row with too many cells.
    """
    text = _text(path)
    header = text.lstrip("\n").split("\n", 1)[0]
    separator = max(",;\t", key=header.count)
    try:
        table = pd.read_csv(
            io.StringIO(text), sep=separator, dtype=str, keep_default_na=False, skipinitialspace=True, index_col=False
        )
    except (pd.errors.ParserError, pd.errors.EmptyDataError, csv.Error) as error:
        raise SkinbookError(f"{path} is not a table that can be read ({str(error).strip()}). Get it again.") from None
    spelling = {c.lower(): c for c in columns}
    table.columns = [spelling.get(str(c).strip().lower(), str(c).strip()) for c in table.columns]
    lacking = [c for c in columns if c not in table.columns]
    if lacking:
        raise SkinbookError(
            f"{path} lacks the column{'s' * (len(lacking) > 1)} {', '.join(lacking)}; "
            f"it has {', '.join(table.columns)[:300]}. Use the table as it was distributed."
        )
    doubled = [c for c in columns if (table.columns == c).sum() > 1]
    if doubled:
        raise SkinbookError(f"{path} has the column {doubled[0]} more than once. Use the table as it was distributed.")
    if table.empty:
        raise SkinbookError(f"{path} has a header and no rows. Download it again.")
    return table.apply(lambda column: column.fillna("").str.strip())


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST:
            raise SkinbookError(
                f"{path} has over {LARGEST // 1_000_000} MB, too much for this table. Name the right file."
            )
        raw = path.read_bytes()
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
