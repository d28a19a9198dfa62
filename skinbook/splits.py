"""Which photographs train a model, which choose it, and which judge it.

A split here depends on nothing but the table and a seed: it draws from `skinbook.keyed`, so it is the same on every
machine and with every version of every library, and its fingerprint goes into every result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from skinbook.config import SkinbookError
from skinbook.keyed import key_bits

PARTS = ("train", "validation", "test")
FRACTIONS = (0.65, 0.15, 0.20)


@dataclass(frozen=True)
class Split:
    """The part of each photograph: `parts` is a Series of PARTS, indexed by image_id, in the table's order."""

    parts: pd.Series
    kind: str

    def rows(self, part: str) -> np.ndarray:
        """Row numbers (int64) of a part's photographs in the table."""
        return np.flatnonzero(self.parts.to_numpy() == part)

    def images(self, part: str) -> list[str]:
        """image_ids of a part."""
        return self.parts.index[self.parts == part].tolist()

    @property
    def fingerprint(self) -> str:
        """Twelve hexadecimal digits that change when any photograph changes its part."""
        lines = sorted(f"{image}\t{part}" for image, part in self.parts.items())
        return hashlib.blake2b("\n".join(lines).encode(), digest_size=6).hexdigest()


def lesion_split(
    table: pd.DataFrame,
    seed: int = 0,
    fractions: Sequence[float] = FRACTIONS,
    identical: Iterable[tuple[str, str]] = (),
) -> Split:
    """Split by lesion: all photographs of a lesion stand on one side, and every part has the same mix.

    Lesions are taken in a keyed order within each stratum (diagnosis, and one photograph or several), and each goes to
    the part that lags furthest behind its share of that diagnosis. Stratifying by the number of photographs matters: a
    split that sends lesions with many photographs to training leaves a test set of nearly all nevi.

    Parameters
    ----------
    table : the tidy table; `image_id`, `lesion_id` and `dx` are used.
    seed : another seed, another split.
    fractions : the shares of train, validation and test; they sum to 1.
    identical : pairs of image_ids that are one photograph under two lesion_ids; they stay on one side.
    """
    shares = _checked(fractions)
    lesions = _joined(table, identical)
    about = pd.DataFrame({"lesion": lesions, "dx": table["dx"].to_numpy()})
    groups = about.groupby("lesion", sort=True).agg(dx=("dx", lambda d: d.mode().iloc[0]), photographs=("dx", "size"))
    groups["several"] = groups["photographs"] > 1
    groups["order"] = [key_bits(("lesion split", seed, str(lesion))) for lesion in groups.index]
    groups = groups.sort_values(["dx", "several", "order"])
    part_of: dict[str, str] = {}
    for _, same_dx in groups.groupby("dx", sort=True):
        filled = np.zeros(len(PARTS))
        for lesion, photographs in zip(same_dx.index, same_dx["photographs"], strict=True):
            lag = shares * (filled.sum() + photographs) - filled
            chosen = int(np.argmax(lag))
            filled[chosen] += photographs
            part_of[lesion] = PARTS[chosen]
    parts = [part_of[lesion] for lesion in lesions]
    return Split(pd.Series(parts, index=pd.Index(table["image_id"], name="image_id"), name="part"), "by lesion")


def random_split(table: pd.DataFrame, seed: int = 0, fractions: Sequence[float] = FRACTIONS) -> Split:
    """The widely copied way: split photographs at random, stratified by diagnosis, whatever lesion they show."""
    shares = _checked(fractions)
    order = np.array([key_bits(("random split", seed, str(image))) for image in table["image_id"]], dtype=np.uint64)
    parts = np.empty(len(table), dtype=object)
    for same_dx in table.groupby("dx", sort=True).indices.values():
        rows = np.asarray(same_dx)[np.argsort(order[same_dx], kind="stable")]
        ends = np.rint(np.cumsum(shares) * len(rows)).astype(int)
        for part, chosen in zip(PARTS, np.split(rows, ends[:-1]), strict=True):
            parts[chosen] = part
    return Split(
        pd.Series(parts, index=pd.Index(table["image_id"], name="image_id"), name="part", dtype="str"), "random"
    )


@dataclass(frozen=True)
class LeakagePair:
    """Rows of the table for the paired measurement of leakage; `seen` and `unseen` differ in one thing only.

    test : one photograph of every test lesion that has several.
    seen : training rows that include the other photographs of the test lesions.
    unseen : training rows that hold as many photographs of the same diagnoses, from other lesions instead.
    """

    test: np.ndarray
    seen: np.ndarray
    unseen: np.ndarray


def leakage_pair(
    table: pd.DataFrame, split: Split, seed: int = 0, identical: Iterable[tuple[str, str]] = ()
) -> LeakagePair:
    """Two training sets for one frozen set of test photographs, equal in size and in every diagnosis's count.

    `unseen` is the training part as it stands. In `seen`, the other photographs of each test lesion take the place of as
    many photographs of one training lesion of the same diagnosis. The lesion given up has just as many, where there is
    such a one, so that both sets hold equally many lesions too: more of them would be an advantage of its own.

    Parameters
    ----------
    table, split : as for `lesion_split`. seed : of the choices. identical : pairs of image_ids that are one photograph.

    Raises
    ------
    SkinbookError
        If the split is not by lesion, no test lesion has a second photograph, or training has too few of a diagnosis to
        exchange.
    """
    part = split.parts.reindex(table["image_id"]).to_numpy()
    lesions = _joined(table, identical)
    if set(lesions[part == "test"]) & set(lesions[part != "test"]):
        raise SkinbookError("Leakage is measured on a split by lesion, and on this one test lesions are in training.")
    copies = {image for pair in identical for image in pair}
    test: list[int] = []
    siblings: list[list[int]] = []
    for rows in _lesions_in_order(table, lesions, np.flatnonzero(part == "test"), ("leakage test", seed)):
        chosen = min(rows, key=lambda row: key_bits(("leakage test", seed, str(table["image_id"].iloc[row]))))
        others = [row for row in rows if row != chosen and table["image_id"].iloc[row] not in copies]
        if others:
            test.append(chosen)
            siblings.append(others)
    if not test:
        raise SkinbookError("No test lesion has a second photograph, so leakage cannot be measured on this split.")
    train = np.flatnonzero(part == "train")
    dx = table["dx"].to_numpy()
    spare: dict[str, list[list[int]]] = {}
    for rows in _lesions_in_order(table, lesions, train, ("leakage exchange", seed)):
        spare.setdefault(str(dx[rows[0]]), []).append(rows)
    given_up: list[int] = []
    for others in sorted(siblings, key=len, reverse=True):
        pool = spare.get(str(dx[others[0]]), [])
        enough = [place for place, rows in enumerate(pool) if len(rows) >= len(others)]
        if not enough:
            raise SkinbookError(
                f"Training has too few photographs of {dx[others[0]]} to exchange for the test lesions'."
            )
        nearest = min(enough, key=lambda place: len(pool[place]))
        given_up.extend(pool.pop(nearest)[: len(others)])
    seen = np.union1d(np.setdiff1d(train, given_up), np.concatenate(siblings))
    return LeakagePair(np.sort(np.array(test)), seen.astype(np.int64), train)


def _lesions_in_order(
    table: pd.DataFrame, lesions: np.ndarray, rows: np.ndarray, key: tuple[str, int]
) -> list[list[int]]:
    """The rows of each lesion among these rows, lesions in a keyed order."""
    groups = pd.Series(rows).groupby(lesions[rows].astype(str)).agg(list)
    return [groups[lesion] for lesion in sorted(groups.index, key=lambda lesion: key_bits((*key, str(lesion))))]


def _joined(table: pd.DataFrame, identical: Iterable[tuple[str, str]]) -> np.ndarray:
    """A lesion name for each row, the same for lesions that share an identical photograph."""
    lesion_of = dict(zip(table["image_id"], table["lesion_id"], strict=True))
    stands_for: dict[str, str] = {}

    def head(lesion: str) -> str:
        while lesion in stands_for:
            lesion = stands_for[lesion]
        return lesion

    for first, second in identical:
        if first in lesion_of and second in lesion_of:
            one, other = sorted((head(lesion_of[first]), head(lesion_of[second])))
            if one != other:
                stands_for[other] = one
    return np.array([head(lesion) for lesion in table["lesion_id"]], dtype=object)


def _checked(fractions: Sequence[float]) -> np.ndarray:
    try:
        shares = np.asarray(fractions, dtype=np.float64)
    except (TypeError, ValueError):
        shares = np.zeros(0)
    if shares.shape != (len(PARTS),) or (shares < 0).any() or not np.isclose(shares.sum(), 1.0):
        raise SkinbookError(
            f"fractions must be three shares that sum to 1 (train, validation, test); got {fractions!r}."
        )
    return shares
