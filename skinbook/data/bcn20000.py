"""BCN20000 (Hernández-Pérez and others, Scientific Data 11, 641, 2024), in the two forms that people have.

Kaggle's: `bcn_20k_train.csv` with the columns bcn_filename, diagnosis, lesion_id, age_approx, sex, anatom_site_general,
and the images in `BCN_20k_train/bcn_20k_train`. ISIC 2019's: `ISIC_2019_Training_Metadata.csv` beside
`ISIC_2019_Training_GroundTruth.csv`, where BCN20000 is the rows whose lesion_id begins with `BCN_`; its images are
optional, and without them the table is all there is.

Eight diagnoses; its `ak` is actinic keratosis alone and not HAM10000's `akiec`. Rows without a diagnosis are left
out, and counted in `table.attrs["left_out"]`. A photograph without a lesion_id counts as the only one of its lesion.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from skinbook.config import SkinbookError
from skinbook.data import locate, tables
from skinbook.data.images import Files
from skinbook.data.schema import Dataset, tidy
from skinbook.diagnoses import CLASSES

KAGGLE = "bcn_20k_train.csv"
ISIC = "ISIC_2019_Training_Metadata.csv"
ISIC_TRUTH = "ISIC_2019_Training_GroundTruth.csv"
TABLES = (KAGGLE, ISIC)
COLUMNS = ("bcn_filename", "diagnosis", "lesion_id", "age_approx", "sex", "anatom_site_general")
ISIC_COLUMNS = ("image", "age_approx", "anatom_site_general", "lesion_id", "sex")
ISIC_CLASSES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")
REMEDY = "run `skinbook data get bcn20000`"


def find(folder: Path) -> Path | None:
    """The table nearest to the folder, or None."""
    return locate.find_file(folder, TABLES)


def columns(path: Path) -> pd.DataFrame:
    """The eight columns of the tidy table, in the order of the file and not yet checked; `dx` may be missing."""
    return _isic(path) if path.name.lower() == ISIC.lower() else _kaggle(path)


def _kaggle(path: Path) -> pd.DataFrame:
    raw = tables.read(path, COLUMNS)
    image_id = raw["bcn_filename"].str.replace(r"\.(?:jpe?g|png)$", "", case=False, regex=True)
    return _eight(raw, image_id, tables.known(raw["diagnosis"]))


def _isic(path: Path) -> pd.DataFrame:
    truth_path = locate.find_file(path.parent, [ISIC_TRUTH])
    if truth_path is None:
        raise SkinbookError(f"{path} has no {ISIC_TRUTH} beside it, which holds the diagnoses. Download it as well.")
    raw = tables.read(path, ISIC_COLUMNS)
    truth = tables.read(truth_path, ("image", *ISIC_CLASSES))
    if truth["image"].duplicated().any():
        doubled = truth["image"][truth["image"].duplicated()].iloc[0]
        raise SkinbookError(f"{truth_path} has {doubled} more than once. Download it again.")
    lacking = raw["image"][~raw["image"].isin(truth["image"])]
    if len(lacking):
        raise SkinbookError(
            f"{truth_path} lacks {len(lacking)} images of {path.name}, the first {lacking.iloc[0]}. "
            "Download both again."
        )
    marks = truth[list(ISIC_CLASSES)].apply(pd.to_numeric, errors="coerce")
    wrong = ~marks.isin([0, 1]).all(axis=1) | (marks.sum(axis=1) > 1)
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise SkinbookError(
            f"{truth_path}, row {row + 2}: expected 0 in every class but one, which has 1. Download it again."
        )
    named = marks.idxmax(axis=1).str.lower().where(marks.sum(axis=1) == 1)  # none of the eight, or "UNK": missing
    dx = named.set_axis(truth["image"]).reindex(raw["image"]).reset_index(drop=True)
    return _eight(raw, raw["image"], dx)


def _eight(raw: pd.DataFrame, image_id: pd.Series, dx: pd.Series) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "image_id": image_id,
            "lesion_id": raw["lesion_id"].mask(raw["lesion_id"].str.lower().isin(tables.MISSING), image_id),
            "dx": dx,
            "dx_type": pd.Series(np.nan, index=raw.index, dtype=object),
            "age": tables.numbers(raw["age_approx"]),
            "sex": tables.known(raw["sex"]),
            "site": tables.known(raw["anatom_site_general"]),
            "source": "bcn20000",
        }
    )


def read_table(path: Path) -> pd.DataFrame:
    """The tidy table in the order of image_id."""
    table = columns(path)
    kept, left_out = keep(table, path)
    if kept.empty:
        raise SkinbookError(f"{path} holds no photograph of BCN20000 with a diagnosis. Is it the right file?")
    # Checked whole, rows to be left out included, so that the row a message names is the file's.
    checked = tables.only(tidy(table.assign(dx=table["dx"].fillna("nv")), str(path)), CLASSES["bcn20000"], path)
    checked = checked.loc[kept.index].sort_values("image_id", ignore_index=True)
    checked.attrs["left_out"] = left_out
    return checked


def keep(table: pd.DataFrame, path: Path) -> tuple[pd.DataFrame, int]:
    """The rows of BCN20000 that have a diagnosis, under their row numbers, and how many have none."""
    is_isic = path.name.lower() == ISIC.lower()
    ours = table["lesion_id"].str.startswith("BCN_") | (not is_isic)
    return table[ours & table["dx"].notna()], int((ours & table["dx"].isna()).sum())


def load(folder: Path) -> Dataset:
    """Read BCN20000 from a folder, or from below it.

    Raises
    ------
    SkinbookError
        If there is no table, the table is wrong, or an image of it is not on the disk. (The ISIC 2019 pair may come
        without any image; then only reading one raises.)
    """
    path = find(folder)
    if path is None:
        raise locate.not_found("BCN20000", TABLES, [folder], REMEDY)
    table = read_table(path)
    ids = table["image_id"].tolist()
    images = locate.find_images([path.parent, folder], ids)
    if images or path.name.lower() != ISIC.lower():
        locate.all_there(images, ids, path)
    return Dataset(
        edition="bcn20000",
        table=table,
        classes=CLASSES["bcn20000"],
        images=Files(images, absent=f"{path} came without images. Put ISIC 2019's training images beside it."),
        provides=frozenset({"lesion_id", "metadata"}),
        where=path.parent,
    )
