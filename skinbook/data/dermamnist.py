"""DermaMNIST: HAM10000 made small, at 28 to 224 px (Yang and others, MedMNIST v2, Scientific Data 10, 41, 2023).

One `.npz` file. It says nothing of lesions, so that every photograph has to count as a lesion of its own, though many
share one, and there are no metadata. Its labels are numbers in MedMNIST's own order, mapped here by name. The image_id
keeps the part MedMNIST put it in: `train_00000`, `val_00000`, `test_00000`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from skinbook.config import SkinbookError
from skinbook.data import locate
from skinbook.data.images import Npz, npz_headers, npz_member
from skinbook.data.schema import Dataset, tidy
from skinbook.diagnoses import CLASSES

# Of several sizes the largest counts: the pixel store makes it smaller.
TABLES = ("dermamnist_224.npz", "dermamnist_128.npz", "dermamnist_64.npz", "dermamnist.npz")
PARTS = ("train", "val", "test")
LABELS = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
REMEDY = "run `skinbook data get dermamnist`"


def find(folder: Path) -> Path | None:
    """The archive nearest to the folder, or None."""
    return locate.find_file(folder, TABLES)


def read_table(path: Path) -> pd.DataFrame:
    """The tidy table in MedMNIST's order: train, val, test."""
    headers = npz_headers(path)
    wanted = [f"{part}_{what}" for part in PARTS for what in ("images", "labels")]
    lacking = [key for key in wanted if key not in headers]
    if lacking:
        raise SkinbookError(
            f"{path} lacks {', '.join(lacking)}; it has {', '.join(sorted(headers))[:200] or 'no arrays'}. "
            "Use one of MedMNIST's own files, dermamnist*.npz."
        )
    ids, labels = [], []
    for part in PARTS:
        shape, dtype, _ = headers[f"{part}_images"]
        if len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3 or dtype != np.uint8:
            raise SkinbookError(
                f"{path}: {part}_images is {dtype} of shape {shape}; expected uint8 (n, size, size, 3). "
                "Use one of MedMNIST's own files, dermamnist*.npz."
            )
        label_shape, label_dtype, _ = headers[f"{part}_labels"]
        if label_shape not in ((shape[0],), (shape[0], 1)) or label_dtype.kind not in "iu":
            raise SkinbookError(
                f"{path}: {part}_labels is {label_dtype} of shape {label_shape}; expected {shape[0]} whole numbers. "
                "Download it again."
            )
        values = npz_member(path, f"{part}_labels").reshape(-1)
        wrong = np.flatnonzero((values < 0) | (values >= len(LABELS)))
        if len(wrong):
            raise SkinbookError(
                f"{path}: {part}_labels has {values[wrong[0]]} in row {wrong[0]}; expected 0 to {len(LABELS) - 1}. "
                "Download it again."
            )
        ids += [f"{part}_{row:05d}" for row in range(shape[0])]
        labels += values.tolist()
    nothing = pd.Series(np.nan, index=range(len(ids)), dtype=object)
    table = pd.DataFrame({"image_id": ids, "lesion_id": ids, "dx": [LABELS[label] for label in labels]})
    table = table.assign(dx_type=nothing, age=np.nan, sex=nothing, site=nothing, source="dermamnist")
    return tidy(table, str(path))


def load(folder: Path) -> Dataset:
    """Read DermaMNIST from a folder, or from below it.

    Raises
    ------
    SkinbookError
        If there is no archive, or it is damaged or another one.
    """
    path = find(folder)
    if path is None:
        raise locate.not_found("DermaMNIST", TABLES, [folder], REMEDY)
    table = read_table(path)
    parts = table["image_id"].str.rpartition("_")[0]
    return Dataset(
        edition="dermamnist",
        table=table,
        classes=CLASSES["dermamnist"],
        images=Npz(path, {f"{part}_images": table["image_id"][parts == part].tolist() for part in PARTS}),
        provides=frozenset(),
        where=path.parent,
    )
