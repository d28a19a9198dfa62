"""The lab's photographs as files, in HAM10000's layout, for whatever reads files: `skinbook lab write FOLDER`."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from PIL import Image

from skinbook.config import SkinbookError
from skinbook.data import lab
from skinbook.files import replaced
from skinbook.splits import PARTS, lesion_split

TABLE = "metadata.csv"
QUALITY = 95


def write(folder: Path, cache: Path, part: str = "test", count: int = 0) -> pd.DataFrame:
    """Write photographs of a part of the lab's split as JPEG files, and `metadata.csv` with HAM10000's columns.

    Parameters
    ----------
    folder : is made if it is not there. cache : where the lab is kept.
    part : train, validation or test. count : so many of them, in the table's order; 0 for all.

    Returns
    -------
    The rows of the table that were written.

    Raises
    ------
    SkinbookError
        If there is no such part, or a file cannot be written.
    """
    if part not in PARTS or count < 0:
        raise SkinbookError(f"The part is {part!r} and the count {count}; expected {', '.join(PARTS)}, and 0 or more.")
    dataset = lab.load(cache)
    rows = lesion_split(dataset.table).rows(part)
    table = dataset.table.iloc[rows[: count or None]].reset_index(drop=True)
    for image_id in table["image_id"]:
        with replaced(Path(folder) / f"{image_id}.jpg") as partial:
            image = Image.fromarray(dataset.images.read(image_id))
            image.save(partial, "JPEG", quality=QUALITY, subsampling=0)
    columns = table[["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "site"]].rename(
        columns={"site": "localization"}
    )
    with replaced(Path(folder) / TABLE) as partial:
        columns.to_csv(partial, index=False)
    return table
