"""Tiny data sets on disk, in exactly the layouts that users have. The pixels are drawn from `skinbook.keyed`."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

from skinbook import keyed

HAM_HEADER = ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"]
HAM_CLASSES = ("nv", "mel", "bkl", "bcc", "akiec", "vasc", "df")


def photograph(key: str, width: int = 40, height: int = 30) -> Image.Image:
    """A brown patch on a pale ground with a little noise, mode RGB."""
    y, x = np.mgrid[0:height, 0:width]
    inside = ((x / width - 0.5) ** 2 + (y / height - 0.5) ** 2) < 0.08
    colour = np.where(inside[..., None], (120, 70, 50), (225, 190, 170))
    noise = keyed.integers(("photograph", key), height * width * 3, 20).reshape(height, width, 3)
    return Image.fromarray((colour + noise).astype(np.uint8))


def mask(width: int = 40, height: int = 30) -> Image.Image:
    """The patch of `photograph`, mode L, 0 and 255."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray((((x / width - 0.5) ** 2 + (y / height - 0.5) ** 2) < 0.08).astype(np.uint8) * 255)


def write_csv(path: Path, header: list[str], rows: list[list], delimiter: str = ",", encoding: str = "utf-8") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerow(header)
        writer.writerows(rows)
    return path


def ham_rows(count: int = 28) -> list[list]:
    """Two photographs a lesion; every class; an unknown sex, an unknown site, a missing age, an age of 0."""
    rows = []
    for i in range(count):
        dx = HAM_CLASSES[(i // 2) % 7]
        how = "histo" if dx in ("mel", "bcc", "akiec") else "follow_up" if dx == "nv" else "consensus"
        rows.append(
            [f"HAM_{i // 2:07d}", f"ISIC_{i:07d}", dx, how, f"{5.0 * (i % 18)}", "male" if i % 2 else "female", "back"]
        )
    rows[3][4] = ""
    rows[4][5] = "unknown"
    rows[5][6] = "unknown"
    return rows


def ham10000(
    top: Path, *, layout: str = "kaggle", masks: bool = True, count: int = 28, size: tuple[int, int] = (40, 30)
) -> Path:
    """HAM10000 as Kaggle ("kaggle", "kaggle-lower"), Dataverse or people ("one folder", "flat") lay it out."""
    rows = ham_rows(count)
    if layout == "dataverse":
        sources = ("rosendahl", "vidir_modern", "vidir_molemax", "vienna_dias")
        write_csv(
            top / "HAM10000_metadata", [*HAM_HEADER, "dataset"], [[*r, sources[i % 4]] for i, r in enumerate(rows)]
        )
    else:
        write_csv(top / "HAM10000_metadata.csv", HAM_HEADER, rows)
    for i, row in enumerate(rows):
        part = f"part_{1 + 2 * i // count}"
        folder = {
            "kaggle": f"HAM10000_images_{part}",
            "dataverse": f"HAM10000_images_{part}",
            "kaggle-lower": f"ham10000_images_{part}",
            "one folder": "images",
            "flat": ".",
        }[layout]
        (top / folder).mkdir(parents=True, exist_ok=True)
        photograph(row[1], *size).save(top / folder / f"{row[1]}.jpg", quality=95)
        if masks:
            (top / "HAM10000_segmentations_lesion_tschandl").mkdir(exist_ok=True)
            mask(*size).save(top / "HAM10000_segmentations_lesion_tschandl" / f"{row[1]}_segmentation.png")
    return top


BCN_HEADER = [
    "bcn_filename",
    "age_approx",
    "anatom_site_general",
    "diagnosis",
    "lesion_id",
    "capture_date",
    "sex",
    "split",
]
BCN_CLASSES = ("MEL", "NV", "BCC", "AK", "BKL", "DF", "VASC", "SCC")


def bcn20000_kaggle(top: Path, count: int = 24) -> Path:
    """BCN20000 as on Kaggle; the last two rows have no diagnosis, the third has no lesion_id."""
    rows = []
    for i in range(count):
        name = f"BCN_{i:010d}.jpg"
        diagnosis = BCN_CLASSES[i % 8] if i < count - 2 else ""
        rows.append(
            [name, f"{5.0 * (i % 18)}", "anterior torso", diagnosis, f"BCN_{i // 3:07d}", "2012-05-16", "male", "train"]
        )
        folder = top / "BCN_20k_train" / "bcn_20k_train"
        folder.mkdir(parents=True, exist_ok=True)
        photograph(name).save(folder / name, quality=95)
    rows[2][4] = ""
    write_csv(top / "bcn_20k_train.csv", BCN_HEADER, rows)
    (top / "BCN_20k_test" / "bcn_20k_test").mkdir(parents=True, exist_ok=True)
    write_csv(top / "bcn_20k_test.csv", ["bcn_filename"], [["BCN_0000099999.jpg"]])
    return top


def isic2019(top: Path, count: int = 30, images: bool = False) -> Path:
    """The ISIC 2019 pair: rows of HAM10000, BCN20000 and of no lesion; the last BCN row is UNK."""
    truth, metadata = [], []
    for i in range(count):
        name = f"ISIC_{50_000 + i:07d}"
        lesion = (f"HAM_{i:07d}", f"BCN_{i // 6:07d}", "")[i % 3]
        marks = [1.0 if k == i % 8 else 0.0 for k in range(8)] + [0.0]
        if i == count - 2:
            marks = [0.0] * 8 + [1.0]
        truth.append([name, *marks])
        metadata.append([name, 5 * (i % 18), "head/neck", lesion, "" if i == 1 else "female"])
        if images and lesion.startswith("BCN_"):
            folder = top / "ISIC_2019_Training_Input" / "ISIC_2019_Training_Input"
            folder.mkdir(parents=True, exist_ok=True)
            photograph(name).save(folder / f"{name}.jpg", quality=95)
    write_csv(top / "ISIC_2019_Training_GroundTruth.csv", ["image", *BCN_CLASSES, "UNK"], truth)
    write_csv(
        top / "ISIC_2019_Training_Metadata.csv",
        ["image", "age_approx", "anatom_site_general", "lesion_id", "sex"],
        metadata,
    )
    return top


def dermamnist(top: Path, size: int = 28, counts: tuple[int, int, int] = (14, 7, 7), name: str | None = None) -> Path:
    """DermaMNIST as MedMNIST distributes it; labels go round 0 to 6."""
    arrays = {}
    for part, count in zip(("train", "val", "test"), counts, strict=True):
        pixels = [np.asarray(photograph(f"{part}{i}", size, size)) for i in range(count)]
        arrays[f"{part}_images"] = np.stack(pixels)
        arrays[f"{part}_labels"] = (np.arange(count) % 7).astype(np.uint8)[:, None]
    top.mkdir(parents=True, exist_ok=True)
    file = top / (name or ("dermamnist.npz" if size == 28 else f"dermamnist_{size}.npz"))
    np.savez_compressed(file, **arrays)
    return top


def real(wanted: str) -> Path | None:
    """The real data set's table, where SKINBOOK_DATA leads to it; None otherwise."""
    import os
    from importlib import import_module

    for folder in filter(None, os.environ.get("SKINBOOK_DATA", "").split(os.pathsep)):
        if Path(folder).is_dir() and (table := import_module(f"skinbook.data.{wanted}").find(Path(folder))):
            return table
    return None
