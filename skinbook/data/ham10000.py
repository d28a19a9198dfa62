"""HAM10000: 10,015 photographs of 7,470 lesions (Tschandl, Rosendahl and Kittler, Scientific Data 5, 180161, 2018).

Two tables are in use: Kaggle's `HAM10000_metadata.csv`, and Harvard Dataverse's `HAM10000_metadata` (no ending, or
`.tab`), which has the column `dataset` besides and is preferred where both are there. The images lie in two `part`
folders, in one folder, or beside the table, in any size; the masks are `<image_id>_segmentation.png` and optional.

The table keeps what the file says, with one exception: the word "unknown" becomes a missing value. So the 39 ages of 0
stay 0, although hardly any of them is the age of a newborn; chapter 01 looks at them.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from skinbook.data import locate, tables
from skinbook.data.images import Files
from skinbook.data.schema import PROVISIONS, Dataset, tidy
from skinbook.diagnoses import CLASSES

TABLES = ("HAM10000_metadata", "HAM10000_metadata.tab", "HAM10000_metadata.csv")
COLUMNS = ("lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization")
MASK_ENDING = "_segmentation"
# One photograph under two names, byte for byte, found by hashing all 10,015 files. (Each pair shares its lesion_id.)
IDENTICAL = (("ISIC_0024366", "ISIC_0029861"), ("ISIC_0024777", "ISIC_0029938"))
REMEDY = "run `skinbook data get ham10000`"


def find(folder: Path) -> Path | None:
    """The table nearest to the folder, or None."""
    return locate.find_file(folder, TABLES)


def columns(path: Path) -> pd.DataFrame:
    """The eight columns of the tidy table, in the order of the file and not yet checked."""
    raw = tables.read(path, COLUMNS)
    has_dataset = "dataset" in raw.columns
    return pd.DataFrame(
        {
            "image_id": raw["image_id"],
            # A word for "unknown" is no lesion's name: photographs that share it would count as one lesion.
            "lesion_id": raw["lesion_id"].mask(raw["lesion_id"].str.lower().isin(tables.MISSING), ""),
            "dx": raw["dx"].str.lower(),
            "dx_type": tables.known(raw["dx_type"]),
            "age": tables.numbers(raw["age"]),
            "sex": tables.known(raw["sex"]),
            "site": tables.known(raw["localization"]),
            "source": raw["dataset"].where(raw["dataset"] != "", "ham10000") if has_dataset else "ham10000",
        }
    )


def read_table(path: Path) -> pd.DataFrame:
    """The tidy table in the order of image_id. `source` is the file's `dataset`, or "ham10000" where it has none."""
    table = tables.only(tidy(columns(path), str(path)), CLASSES["ham10000"], path)
    return table.sort_values("image_id", ignore_index=True)


def load(folder: Path) -> Dataset:
    """Read HAM10000 from a folder, or from below it.

    Raises
    ------
    SkinbookError
        If there is no table, the table is wrong, or an image of it is not on the disk.
    """
    path = find(folder)
    if path is None:
        raise locate.not_found("HAM10000", TABLES[::2], [folder], REMEDY)
    table = read_table(path)
    ids = table["image_id"].tolist()
    images = locate.find_images([path.parent, folder], ids)
    locate.all_there(images, ids, path)
    masks = locate.find_images([path.parent, folder], ids, ending=MASK_ENDING)
    complete = len(masks) == len(ids)
    return Dataset(
        edition="ham10000",
        table=table,
        classes=CLASSES["ham10000"],
        images=Files(images),
        masks=Files(masks, masks=True) if complete else None,
        provides=PROVISIONS if complete else PROVISIONS - {"masks"},
        where=path.parent,
        identical=tuple(pair for pair in IDENTICAL if set(pair) <= set(ids)),
    )
