"""The lab edition: about 2,400 generated photographs of 960 lesions, whose truth is known.

The table follows HAM10000's distributions of age, sex, site and confirmation within each diagnosis (`STATISTICS`:
rounded summaries, no rows). The photographs are drawn by `skinbook.data.dermoscopy`, once, by all cores, and cached.
Everything comes from `skinbook.keyed`, so the lab is the same on every machine.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import multiprocessing
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from skinbook import keyed
from skinbook.config import SkinbookError, cores
from skinbook.data import dermoscopy, drawing
from skinbook.data.dermoscopy import SOURCES, STRUCTURES, Photograph
from skinbook.data.schema import Dataset, tidy
from skinbook.diagnoses import CLASSES, malignant
from skinbook.progress import bar

SIZE = 128  # pixels; photographs are square
LESIONS = {"nv": 388, "mel": 140, "bkl": 96, "bcc": 104, "ak": 68, "scc": 56, "vasc": 54, "df": 54}
# The share of lesions with one, two, ... six photographs: 2.5 a lesion on average.
PHOTOGRAPHS = (0.30, 0.27, 0.20, 0.13, 0.06, 0.04)
RULER, INK = 0.06, 0.04  # how often a photograph shows one, where no shortcut is planted


@dataclass(frozen=True)
class Statistics:
    """What HAM10000 says about the patients of one diagnosis, rounded.

    `age` holds the 0, 5, 25, 50, 75, 95 and 100 % quantiles in years; `male` the share of men; `site` shares of sites;
    `dx_type` shares of how the diagnosis was confirmed; `age_zero`, `no_age`, `no_sex`, `no_site` how often a value is
    0 or missing.
    """

    age: tuple[int, ...]
    male: float
    site: dict[str, float]
    dx_type: dict[str, float]
    age_zero: float = 0.0
    no_age: float = 0.0
    no_sex: float = 0.0
    no_site: float = 0.0


# Summaries of the table of Tschandl, Rosendahl and Kittler, "The HAM10000 dataset", Scientific Data 2018. It has one
# class for actinic keratosis and in-situ carcinoma: the lab's ak keeps its numbers and leans to the face, and its scc
# is somewhat older and leans to the limbs.
STATISTICS = {
    "nv": Statistics(
        (5, 20, 40, 45, 55, 75, 85), 0.51,
        {"lower extremity": 0.22, "back": 0.21, "trunk": 0.19, "abdomen": 0.13, "upper extremity": 0.10, "foot": 0.04,
         "chest": 0.03, "face": 0.02, "neck": 0.01, "hand": 0.01, "genital": 0.01, "scalp": 0.01, "ear": 0.01},
        {"follow_up": 0.55, "histo": 0.37, "consensus": 0.08}, 0.005, 0.007, 0.007, 0.03,
    ),
    "mel": Statistics(
        (15, 30, 50, 60, 70, 85, 85), 0.62,
        {"back": 0.29, "upper extremity": 0.19, "lower extremity": 0.17, "face": 0.09, "chest": 0.06, "abdomen": 0.06,
         "trunk": 0.04, "neck": 0.03, "foot": 0.03, "ear": 0.02, "scalp": 0.02},
        {"histo": 1.0}, 0.0, 0.002, 0.0, 0.01,
    ),
    "bkl": Statistics(
        (25, 40, 55, 65, 75, 85, 85), 0.57,
        {"face": 0.29, "back": 0.19, "lower extremity": 0.16, "upper extremity": 0.10, "chest": 0.07, "trunk": 0.07,
         "abdomen": 0.04, "scalp": 0.03, "neck": 0.03, "hand": 0.01, "ear": 0.01},
        {"histo": 0.70, "consensus": 0.24, "confocal": 0.06}, 0.005, 0.009, 0.009, 0.02,
    ),
    "bcc": Statistics(
        (25, 40, 60, 70, 75, 85, 85), 0.62,
        {"back": 0.36, "face": 0.20, "lower extremity": 0.11, "upper extremity": 0.10, "chest": 0.09, "scalp": 0.04,
         "abdomen": 0.04, "neck": 0.03, "trunk": 0.02, "foot": 0.01},
        {"histo": 1.0}, 0.0, 0.0, 0.0, 0.01,
    ),
    "ak": Statistics(
        (35, 45, 60, 70, 75, 85, 85), 0.68,
        {"face": 0.42, "lower extremity": 0.14, "upper extremity": 0.17, "back": 0.09, "scalp": 0.06, "hand": 0.04,
         "chest": 0.04, "neck": 0.03, "ear": 0.01},
        {"histo": 1.0},
    ),
    "scc": Statistics(
        (40, 50, 60, 70, 80, 85, 85), 0.68,
        {"face": 0.27, "lower extremity": 0.26, "upper extremity": 0.21, "back": 0.09, "scalp": 0.04, "hand": 0.05,
         "chest": 0.04, "neck": 0.03, "abdomen": 0.01},
        {"histo": 1.0},
    ),
    "vasc": Statistics(
        (5, 15, 45, 55, 70, 80, 85), 0.49,
        {"trunk": 0.22, "lower extremity": 0.19, "abdomen": 0.19, "back": 0.16, "upper extremity": 0.08, "face": 0.06,
         "chest": 0.04, "hand": 0.04, "neck": 0.02},
        {"consensus": 0.53, "histo": 0.47}, 0.03,
    ),
    "df": Statistics(
        (25, 35, 45, 50, 65, 75, 80), 0.55,
        {"lower extremity": 0.71, "upper extremity": 0.21, "abdomen": 0.04, "back": 0.02, "foot": 0.02},
        {"consensus": 0.52, "histo": 0.48},
    ),
}  # fmt: skip


# The table ----------------------------------------------------------------------------------------------------------


def recipe(seed: int = 0, shortcut: float = 0.0) -> pd.DataFrame:
    """The lab's table and, beside it, what only a generator can know.

    Parameters
    ----------
    seed : another seed gives other lesions and patients.
    shortcut : 0 to 1. At 0 rulers and ink are as frequent with every diagnosis; at 1 every cancer has both,
        and nothing else has either.

    Returns
    -------
    The columns of `skinbook.data.schema.COLUMNS`, and `lesion` (its number), `photograph` (its number among the
    lesion's), `skin_type` (Fitzpatrick, 1 to 6), `ruler` and `ink` (bool).

    Raises
    ------
    SkinbookError
        If the shortcut is not between 0 and 1.
    """
    if not 0 <= shortcut <= 1:
        raise SkinbookError(f"The shortcut is {shortcut}; expected a number from 0 (none) to 1 (every cancer).")
    lesions = pd.concat([_patients(dx, count, seed) for dx, count in LESIONS.items()], ignore_index=True)
    # A lesion's number says nothing of its diagnosis, nor a photograph's of its lesion.
    lesions = lesions.iloc[keyed.permutation(("lab", seed, "lesions"), len(lesions))].reset_index(drop=True)
    lesions["lesion"] = np.arange(len(lesions))
    lesions["lesion_id"] = [f"LAB_L{number:04d}" for number in lesions["lesion"]]
    table = lesions.loc[lesions.index.repeat(lesions["photographs"])]
    table = table.assign(photograph=table.groupby("lesion").cumcount()).drop(columns="photographs")
    table = table.iloc[keyed.permutation(("lab", seed, "photographs"), len(table))].reset_index(drop=True)
    table.insert(0, "image_id", [f"LAB_{number:07d}" for number in range(len(table))])
    cancer = table["dx"].map(malignant).to_numpy()
    counters = table["lesion"].to_numpy() * 16 + table["photograph"].to_numpy()
    for artefact, share in (("ruler", RULER), ("ink", INK)):
        chance = share + shortcut * (np.where(cancer, 1.0, 0.0) - share)
        table[artefact] = keyed.uniform(("lab", seed, artefact), counters) < chance
    return table


def _spread(key: keyed.Key, count: int) -> np.ndarray:
    """Uniform draws in [0, 1) that fill the range evenly (one in each count-th of it), in random order."""
    parts = (key,) if isinstance(key, int | str) else tuple(key)
    return (keyed.permutation((*parts, "order"), count) + keyed.uniform((*parts, "place"), count)) / count


def _choose(draws: np.ndarray, shares: dict[str, float]) -> np.ndarray:
    """The name whose part of [0, 1) each draw falls into; shares that do not add up to 1 are scaled."""
    edges = np.cumsum(list(shares.values()))
    return np.asarray(list(shares))[np.searchsorted(edges[:-1] / edges[-1], draws, side="right")]


def _patients(dx: str, count: int, seed: int) -> pd.DataFrame:
    """One row a lesion of a diagnosis: its patient, how it was confirmed, and how often it was photographed."""
    statistics = STATISTICS[dx]

    def draws(name: str) -> np.ndarray:
        return _spread(("lab", seed, dx, name), count)

    age = 5.0 * np.rint(np.interp(draws("age"), (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1), statistics.age) / 5)
    odd = draws("odd age")
    age[odd < statistics.age_zero] = 0
    age[odd >= 1 - statistics.no_age] = np.nan
    sex = np.where(draws("sex") < statistics.male, "male", "female").astype(object)
    sex[draws("no sex") < statistics.no_sex] = None
    site = _choose(draws("site"), statistics.site).astype(object)
    site[draws("no site") < statistics.no_site] = None
    return pd.DataFrame(
        {
            "dx": dx,
            "dx_type": _choose(draws("dx_type"), statistics.dx_type).astype(object),
            "age": age,
            "sex": sex,
            "site": site,
            "source": _choose(draws("source"), dict.fromkeys(SOURCES, 1.0)).astype(object),
            "skin_type": 1 + np.searchsorted(np.cumsum(SKIN_TYPES[:-1]), draws("skin"), side="right"),
            "photographs": 1 + np.searchsorted(np.cumsum(PHOTOGRAPHS[:-1]), draws("photographs"), side="right"),
        }
    )


SKIN_TYPES = (0.12, 0.32, 0.30, 0.14, 0.07, 0.05)  # shares of Fitzpatrick types I to VI


# Drawing and caching ------------------------------------------------------------------------------------------------

T = TypeVar("T")
R = TypeVar("R")
Task = tuple[str, int, int, int, Photograph]  # diagnosis, seed, lesion's number, skin type, photograph


def _tasks(table: pd.DataFrame, seed: int) -> list[Task]:
    names = ("dx", "lesion", "skin_type", "photograph", "source", "ruler", "ink")
    return [
        (dx, seed, lesion, skin_type, Photograph(number, source, ruler, ink))
        for dx, lesion, skin_type, number, source, ruler, ink in zip(*(table[n].tolist() for n in names), strict=True)
    ]


def _draw(task: Task, height: int = SIZE, width: int = SIZE) -> dermoscopy.Rendering:
    dx, seed, number, skin_type, photograph = task
    return dermoscopy.render(dermoscopy.lesion(dx, ("lab", seed, number), skin_type), photograph, height, width)


def _draw_chunk(tasks: list[Task]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Photographs, lesion masks, and structures as one bit each of a 16-bit number."""
    images, lesions, bits = [], [], []
    for task in tasks:
        rendering = _draw(task)
        images.append(rendering.image)
        lesions.append(rendering.lesion)
        packed = np.zeros((SIZE, SIZE), np.uint16)
        for name, mask in rendering.structures.items():
            packed |= mask.astype(np.uint16) << np.uint16(STRUCTURES.index(name))
        bits.append(packed)
    return np.stack(images), np.stack(lesions), np.stack(bits)


def in_parallel(function: Callable[[list[T]], R], items: list[T]) -> Iterator[R]:
    """`function` of 32 items at a time, in order, by as many processes as there are cores.

    The function and its module are imported anew by every process, so both should be light.

    Raises
    ------
    SkinbookError
        If a script calls this while Python, starting a worker, imports the script for the second time.
    """
    chunks = [items[start : start + 32] for start in range(0, len(items), 32)]
    done, workers = 0, min(cores(), len(chunks), 16)
    if multiprocessing.parent_process() is not None:
        raise SkinbookError(
            "A worker process has called the lab: put your script's code under `if __name__ == '__main__':`."
        )
    if workers > 1:
        try:
            with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
                for result in pool.map(function, chunks):
                    yield result
                    done += 1
            return
        except BrokenProcessPool:
            pass  # No processes to be had here: this one goes on alone.
    yield from map(function, chunks[done:])


# The cached arrays: file, shape of one photograph's part, dtype.
FILES = (
    ("photographs.npy", (SIZE, SIZE, 3), np.uint8),
    ("lesions.npy", (SIZE, SIZE), np.bool_),
    ("structures.npy", (SIZE, SIZE), np.uint16),
)


def _fingerprint(seed: int, shortcut: float) -> str:
    """Changes with the seed, the shortcut and the code that draws."""
    digest = hashlib.blake2b(f"{seed} {float(shortcut)!r}".encode(), digest_size=8)
    for source in (__file__, dermoscopy.__file__, drawing.__file__, keyed.__file__):
        digest.update(Path(source).read_bytes())
    return digest.hexdigest()


def _render_into(folder: Path, tasks: list[Task], progress: bool) -> None:
    """Draw all photographs into a folder of .npy files, which appears only when it is complete."""
    # Not by the number of this process, which another one has, too, where a cache is shared by containers.
    partial = folder.with_name(f"{folder.name}.partial-{uuid.uuid4().hex}")
    try:
        partial.mkdir(parents=True)
        with ExitStack() as stack:
            files = [stack.enter_context(open(partial / name, "wb")) for name, _, _ in FILES]
            for file, (_, shape, dtype) in zip(files, FILES, strict=True):
                descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
                header = {"descr": descr, "fortran_order": False, "shape": (len(tasks), *shape)}
                np.lib.format.write_array_header_1_0(file, header)
            shown = stack.enter_context(bar(len(tasks), "drawing the lab", unit="photograph", shown=progress))
            # Plain writing, not memory mapping: on a full disk it fails with an error and not with a crash.
            for arrays in in_parallel(_draw_chunk, tasks):
                for file, array in zip(files, arrays, strict=True):
                    file.write(array.tobytes())
                shown.update(len(arrays[0]))
        os.replace(partial, folder)
    except OSError as error:
        # Another process may have been faster; its files are the same.
        if not folder.is_dir():
            reason = "no space is left" if error.errno == errno.ENOSPC else (error.strerror or str(error))
            raise SkinbookError(
                f"The lab's photographs (about 240 MB) cannot be written to {folder.parent}: {reason}. "
                "Make room there, or set SKINBOOK_CACHE to another folder."
            ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _clear(folder: Path) -> None:
    """Remove what drawings that were killed have left: nobody draws for a day."""
    with contextlib.suppress(OSError):
        for left in folder.glob("*.partial-*"):
            if time.time() - left.stat().st_mtime > 24 * 60 * 60:
                shutil.rmtree(left, ignore_errors=True)


class Photographs:
    """The lab's photographs (or, with `array` the masks), read from the cache by image_id."""

    def __init__(self, array: np.ndarray, structures: np.ndarray, truth: pd.DataFrame, seed: int, fingerprint: str):
        self.array, self.bits, self.truth, self.seed = array, structures, truth, seed
        self._rows = {image_id: row for row, image_id in enumerate(truth["image_id"])}
        self._fingerprint = fingerprint

    def row(self, image_id: str) -> int:
        if image_id not in self._rows:
            last = len(self._rows) - 1
            raise SkinbookError(f"The lab has no photograph {image_id!r}; it has LAB_0000000 to LAB_{last:07d}.")
        return self._rows[image_id]

    def read(self, image_id: str) -> np.ndarray:
        """The photograph, uint8 (128, 128, 3), or the mask, bool (128, 128)."""
        return np.array(self.array[self.row(image_id)])

    def path(self, image_id: str) -> Path | None:
        return None

    def fingerprint(self, image_ids: list[str]) -> str:
        text = "\n".join([self._fingerprint, *image_ids])
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    def task(self, image_id: str) -> Task:
        return _tasks(self.truth.iloc[[self.row(image_id)]], self.seed)[0]


def load(cache: Path, *, seed: int = 0, shortcut: float = 0.0, progress: bool = True) -> Dataset:
    """The lab, drawn if the cache does not have it yet (about half a minute on two cores).

    Parameters
    ----------
    cache : where to keep the pixels (250 MB), in `lab/<fingerprint>`.
    seed, shortcut : as in `recipe`.
    progress : show a progress bar in a terminal.

    Raises
    ------
    SkinbookError
        If the shortcut is out of range, or the cache cannot be written.
    """
    truth = recipe(seed, shortcut)
    fingerprint = _fingerprint(seed, shortcut)
    folder = Path(cache) / "lab" / fingerprint
    if not folder.is_dir():
        _clear(folder.parent)
        _render_into(folder, _tasks(truth, seed), progress)
    photographs, lesions, structures = (_open(folder / name, (len(truth), *shape)) for name, shape, _ in FILES)
    return Dataset(
        edition="lab",
        table=tidy(truth, "the lab"),
        classes=CLASSES["lab"],
        images=Photographs(photographs, structures, truth, seed, fingerprint),
        masks=Photographs(lesions, structures, truth, seed, fingerprint + " masks"),
        where=folder,
    )


def _open(file: Path, shape: tuple[int, ...]) -> np.ndarray:
    try:
        array = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise SkinbookError(
            f"The cached file {file} is missing or damaged. Remove its folder; it is drawn anew."
        ) from error
    if array.shape != shape:
        raise SkinbookError(f"The cached file {file} holds {array.shape} and not {shape}. Remove its folder.")
    return array


# What only a generator can tell -------------------------------------------------------------------------------------


def _lab(dataset: Dataset) -> Photographs:
    if not isinstance(dataset.images, Photographs):
        raise SkinbookError(f"This asks for what only the lab edition knows, but the edition is {dataset.edition}.")
    return dataset.images


def truth(dataset: Dataset) -> pd.DataFrame:
    """The table with `lesion`, `photograph`, `skin_type`, `ruler` and `ink` beside it (see `recipe`)."""
    return _lab(dataset).truth.copy()


def structures(dataset: Dataset, image_id: str) -> dict[str, np.ndarray]:
    """The structures that can be seen in a photograph: name to mask, bool (128, 128)."""
    source = _lab(dataset)
    bits = np.asarray(source.bits[source.row(image_id)])
    masks = {name: (bits >> np.uint16(place) & np.uint16(1)).astype(bool) for place, name in enumerate(STRUCTURES)}
    return {name: mask for name, mask in masks.items() if mask.any()}


def hairs(dataset: Dataset) -> np.ndarray:
    """How many hairs are drawn across each photograph of the table, int64 (photographs,)."""
    source = _lab(dataset)
    tasks = _tasks(source.truth.iloc[[source.row(image_id) for image_id in dataset.table["image_id"]]], source.seed)
    return np.array([dermoscopy.lesion(dx, ("lab", seed, number), skin).hairs for dx, seed, number, skin, _ in tasks])


def render(dataset: Dataset, image_id: str, size: tuple[int, int] = (450, 600)) -> dermoscopy.Rendering:
    """Draw a photograph of the lab again at another size (height, width)."""
    return _draw(_lab(dataset).task(image_id), *size)


def with_shortcut(dataset: Dataset, image_ids: list[str], kind: str | None, size: int = SIZE) -> np.ndarray:
    """The same photographs with a "ruler" or "ink" laid into each, or with None of them.

    Returns
    -------
    uint8 (photographs, size, size, 3).
    """
    if kind not in ("ruler", "ink", None):
        raise SkinbookError(f"{kind!r} is not a shortcut that the lab can plant; choose ruler, ink or None.")
    images = []
    for image_id in image_ids:
        dx, seed, number, skin_type, photograph = _lab(dataset).task(image_id)
        planted = replace(photograph, ruler=kind == "ruler", ink=kind == "ink")
        images.append(_draw((dx, seed, number, skin_type, planted), size, size).image)
    return np.stack(images)


def render_example(
    dx: str, key: keyed.Key, size: int = SIZE, skin_type: int | None = None, photograph: Photograph | None = None
) -> dermoscopy.Rendering:
    """Draw one lesion of a diagnosis on demand; the same key gives the same lesion.

    Parameters
    ----------
    dx : one of the lab's diagnoses.
    key : a string or whole number, or several.
    size : height and width in pixels.
    skin_type : Fitzpatrick type, 1 to 6; drawn if not given.
    photograph : camera and artefacts; photograph 0 without artefacts if not given.
    """
    if dx not in CLASSES["lab"]:
        raise SkinbookError(f"{dx!r} is not a diagnosis of the lab; choose from {', '.join(CLASSES['lab'])}.")
    parts = (key,) if isinstance(key, int | str) else tuple(key)
    return dermoscopy.render(
        dermoscopy.lesion(dx, ("example", *parts), skin_type), photograph or Photograph(), size, size
    )
