"""The leakage audit: what stands on both sides of a split.

`audit(table, split)` looks for lesions, byte-identical files and near-duplicate photographs across the parts, for
columns that give the label away, and for a test set whose diagnoses are not the data set's. It says so in one line.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from skinbook.config import SkinbookError
from skinbook.data.schema import Dataset
from skinbook.diagnoses import DIAGNOSES, malignant
from skinbook.splits import PARTS, Split

# Bits of 255 in which two hashes may differ. On HAM10000, all but one of the 92 pairs within 28 bits share a lesion_id, and
# two million random pairs of other lesions never come nearer than 50.
NEAR = 28
HASH_SIDE, KEPT_SIDE = 32, 16
GIVEAWAY_ROWS = 50
MOST_PAIRS = 5_000_000  # of nearly the same photographs; beyond that they are blank, or copies by the thousand


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    lesions : one row a diagnosis and one for all: photographs in test, and those whose lesion is also in train or
        validation. identical, near : pairs of photographs on two sides (image_id, image_id, part, part; for `near` the
        distance in bits and whether the lesion is the same). giveaways : values of a column that decide the label.
    mix : the share of each diagnosis in each part.
    """

    lesions: pd.DataFrame
    identical: pd.DataFrame
    near: pd.DataFrame
    giveaways: pd.DataFrame
    mix: pd.DataFrame
    looked_at_images: bool
    notes: list[str] = field(default_factory=list)

    @property
    def leaks(self) -> bool:
        """Whether something of the test set is known elsewhere: a lesion, or one and the same file."""
        return self._count("shared") > 0 or self._identical_in_test() > 0

    def _identical_in_test(self) -> int:
        return int((self.identical[["part", "other part"]] == "test").any(axis=1).sum())

    def _count(self, column: str) -> int:
        return int(self.lesions[column].to_dict()["all"])

    @property
    def verdict(self) -> str:
        """One line."""
        shared, total = self._count("shared"), self._count("in test")
        found = []
        if shared:
            found.append(
                f"{shared} of {total} test photographs ({shared / total:.0%}) show a lesion that is also in training or "
                "validation"
            )
        if self._identical_in_test():
            found.append(f"{self._identical_in_test()} byte-identical pairs have one side in it")
        images = "" if self.looked_at_images else " (the images were not looked at)"
        if found:
            return f"LEAKS: {'; '.join(found)}{images}."
        return f"Clean: no lesion{' and no file' * self.looked_at_images} of the test set is anywhere else{images}."


def audit(table: pd.DataFrame, split: Split, dataset: Dataset | None = None, pixels: np.ndarray | None = None) -> Audit:
    """Audit a split.

    Parameters
    ----------
    table : the tidy table. split : a part for each of its photographs.
    dataset : where the photographs are, for finding byte-identical files.
    pixels : uint8 (n, height, width, 3) in the table's order, for finding near-duplicates.

    Raises
    ------
    SkinbookError
        If the split lacks a photograph, names one twice, has none in test, or names a part that is none of the three.
    """
    if (twice := split.parts.index[split.parts.index.duplicated()]).size:
        raise SkinbookError(f"The split names {twice[0]} twice. Give each photograph one part.")
    parts = split.parts.reindex(table["image_id"])
    if parts.isna().any():
        example = parts.index[parts.isna()][0]
        raise SkinbookError(f"The split says nothing of {parts.isna().sum()} photographs, such as {example}.")
    part = parts.to_numpy()
    if (strange := set(part) - set(PARTS)) or "test" not in part:
        told = f"names a part {sorted(map(str, strange))[0]!r}" if strange else "has no photograph in test"
        raise SkinbookError(f"The split {told}: there is nothing to audit. The parts are {', '.join(PARTS)}.")
    return Audit(
        lesions=shared_lesions(table, part),
        identical=_across(identical_files(table, dataset), table, part) if dataset else _no_pairs(),
        near=_across(near_duplicates(table, pixels), table, part) if pixels is not None else _no_pairs(),
        giveaways=giveaways(table),
        mix=pd.crosstab(table["dx"], part, normalize="columns")[[p for p in PARTS if p in set(part)]],
        looked_at_images=dataset is not None,
    )


def shared_lesions(table: pd.DataFrame, part: np.ndarray) -> pd.DataFrame:
    """For each diagnosis and for all: photographs in test, and how many show a lesion that is in train or validation."""
    known = set(table["lesion_id"][part != "test"])
    test = table[part == "test"]
    shared = test["lesion_id"].isin(known)
    counts = pd.DataFrame({"in test": test.groupby("dx").size(), "shared": shared.groupby(test["dx"]).sum()})
    counts = counts.sort_values("in test", ascending=False)
    counts.loc["all"] = [len(test), int(shared.sum())]
    counts = counts.astype(int)
    counts["share"] = counts["shared"] / counts["in test"]
    return counts


def identical_files(table: pd.DataFrame, dataset: Dataset) -> list[tuple[int, int, int]]:
    """Pairs of rows whose image files are the same to the byte (or whose pixels are, where there are no files)."""
    digests: dict[bytes, list[int]] = {}
    for row, image in enumerate(table["image_id"]):
        path = dataset.images.path(image)
        if path is None:
            digest = hashlib.blake2b(dataset.images.read(image).tobytes(), digest_size=16).digest()
        else:
            with open(path, "rb") as file:
                digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
        digests.setdefault(digest, []).append(row)
    return pairs_within(digests.values(), table["image_id"].to_numpy())


def pairs_within(groups: Iterable[Sequence[int]], names: Mapping[int, Any] | np.ndarray) -> list[tuple[int, int, int]]:
    """Every pair of rows that stand in one group, as (i, j, 0): copies of one file. names : what each row is called.

    Raises
    ------
    SkinbookError
        If there are more than `MOST_PAIRS`.
    """
    groups = [rows for rows in groups if len(rows) > 1]
    if sum(len(rows) * (len(rows) - 1) // 2 for rows in groups) > MOST_PAIRS:
        largest = max(groups, key=len)
        raise SkinbookError(
            f"{names[largest[0]]} and {len(largest) - 1:,} others are one and the same, too many to pair. Leave copies out."
        )
    return [(a, b, 0) for rows in groups for a, b in combinations(rows, 2)]


def means(count: int, parts: int) -> np.ndarray:
    """What, multiplied by `count` values in a row, gives the means of as many `parts` of it, float64 (parts, count).

    A part takes in whole values, so that neighbours share one where `count` is no multiple of `parts`.
    """
    start, end = np.arange(parts)[:, None] * count // parts, -(-np.arange(1, parts + 1)[:, None] * count // parts)
    within = (np.arange(count) >= start) & (np.arange(count) < end)
    return within / within.sum(axis=1, keepdims=True)


def perceptual_hashes(pixels: np.ndarray, chunk: int = 256) -> np.ndarray:
    """A hash of each photograph that barely changes with its brightness, contrast, size or compression.

    The signs of the lowest frequencies of a cosine transform of the grey image, without the constant one (the pHash of
    Zauner, "Implementation and benchmarking of perceptual image hash functions", 2010, with 255 bits instead of 64:
    centred lesions on plain skin look alike at 64 bits).

    Returns
    -------
    uint64 (n, 4).
    """
    k, x = np.arange(KEPT_SIDE)[:, None], np.arange(HASH_SIDE)[None, :]
    basis = np.cos(np.pi * k * (2 * x + 1) / (2 * HASH_SIDE))
    down, across = (basis @ means(side, HASH_SIDE) for side in pixels.shape[1:3])
    hashes = []
    for start in range(0, len(pixels), chunk):
        grey = pixels[start : start + chunk] @ np.array([0.299, 0.587, 0.114])
        waves = (down @ grey @ across.T).reshape(len(grey), -1)
        waves[:, 0] = np.inf  # the constant one: it says how bright the photograph is, nothing else
        signs = waves > np.median(waves, axis=1, keepdims=True)
        hashes.append(np.packbits(signs, axis=1).view(np.uint64))
    return np.concatenate(hashes)


def near_duplicates(table: pd.DataFrame, pixels: np.ndarray, within: int = NEAR) -> list[tuple[int, int, int]]:
    """Pairs of rows whose perceptual hashes differ in at most `within` bits, with that number."""
    return near_pairs(perceptual_hashes(pixels), within)


OF_BYTE = np.array([number.bit_count() for number in range(256)], dtype=np.uint8)


def bits_set(words: np.ndarray) -> np.ndarray:
    """How many bits of each word are one, uint8, from uint64 of any shape."""
    if hasattr(np, "bitwise_count"):
        return np.bitwise_count(words)
    return OF_BYTE[np.ascontiguousarray(words)[..., None].view(np.uint8)].sum(axis=-1, dtype=np.uint8)  # numpy 1


def near_pairs(hashes: np.ndarray, within: int = NEAR) -> list[tuple[int, int, int]]:
    """Pairs (i, j, bits) of hashes, uint64 (n, 4), that differ in at most `within` bits; i < j.

    Raises
    ------
    SkinbookError
        If there are more than `MOST_PAIRS`.
    """
    pairs: list[tuple[int, int, int]] = []
    for start in range(0, len(hashes), 256):
        block = hashes[start : start + 256]
        later = hashes[start:]
        distance = np.zeros((len(block), len(later)), dtype=np.uint16)
        for word in range(hashes.shape[1]):
            distance += bits_set(block[:, None, word] ^ later[None, :, word])
        rows, others = np.nonzero(distance <= within)
        rows, others = rows[rows < others], others[rows < others]
        if len(pairs) + len(rows) > MOST_PAIRS:
            like = start + int(np.bincount(rows).argmax())
            raise SkinbookError(
                f"More than {MOST_PAIRS:,} pairs of photographs are nearly one and the same; number {like} (counted from "
                "0) has most. Leave blank photographs and copies out."
            )
        pairs += [(start + int(a), start + int(b), int(distance[a, b])) for a, b in zip(rows, others, strict=True)]
    return pairs


def giveaways(table: pd.DataFrame) -> pd.DataFrame:
    """Values of a column that decide the label: every photograph that has one has the same diagnosis, or none is cancer.

    A value counts from `GIVEAWAY_ROWS` photographs on, and where so many alike would come by chance less than once in
    a million times ("chance" is the logarithm, to base 10, of how likely that is if the value meant nothing).
    """
    found = []
    labels = [table["dx"]]
    if table["dx"].isin(DIAGNOSES).all():
        labels.append(table["dx"].map(lambda dx: "malignant" if malignant(dx) else "benign"))
    shares = [label.value_counts(normalize=True) for label in labels]
    for column in (c for c in ("dx_type", "age", "sex", "site", "source") if c in table):
        for value, rows in table.groupby(column).groups.items():
            if len(rows) < GIVEAWAY_ROWS:
                continue
            for label, share in zip(labels, shares, strict=True):
                always = label[rows].iloc[0]
                # Photographs of one lesion agree by nature, so lesions are what is counted.
                chance = table["lesion_id"][rows].nunique() * np.log10(share[always])
                if (label[rows] == always).all() and chance < -6:
                    found.append((column, value, always, len(rows), round(float(chance))))
                    break
    return pd.DataFrame(found, columns=["column", "value", "always", "photographs", "chance (log10)"])


def _across(pairs: list[tuple[int, int, int]], table: pd.DataFrame, part: np.ndarray) -> pd.DataFrame:
    lesion, image = table["lesion_id"].to_numpy(), table["image_id"].to_numpy()
    rows = [
        (image[a], image[b], part[a], part[b], distance, lesion[a] == lesion[b])
        for a, b, distance in pairs
        if part[a] != part[b]
    ]
    return pd.DataFrame(rows, columns=_no_pairs().columns)


def _no_pairs() -> pd.DataFrame:
    return pd.DataFrame(columns=["image", "other image", "part", "other part", "distance", "same lesion"])
