"""What every model that is handed on can be asked, whether torch runs it or ONNX Runtime; and its card, sealed JSON.

A card is a JSON file that a person can read. Its last entry, the seal, is a hash of all others, and another entry is the
hash of the weights file: so whatever was changed, damaged or mixed up after saving is noticed. (A seal is no signature:
it does not say who made the model.)
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from skinbook.config import SkinbookError
from skinbook.diagnoses import DIAGNOSES, malignant
from skinbook.files import replaced
from skinbook.reading import contents, strict_json

LARGEST = 10_000_000  # bytes of a card
LARGEST_WEIGHTS = 4_000_000_000  # a billion parameters
ROUNDING = 1e-6  # by which a sum of probabilities may go over 1
LARGEST_SIDE = 2048  # pixels of a photograph as a network sees it
BINARY = ("benign", "malignant")
DISCLAIMER = "This is a teaching tool, not a medical device."
Kinds = Mapping[str, type | tuple[type, ...]]
# What every card holds, and of which kind.
COMMON: Kinds = {
    "classes": list,
    "image": int,
    "mean": list,
    "std": list,
    "temperature": (int, float),
    "threshold": (int, float, type(None)),
    "definition": str,
    "about": str,
    "novelty": (dict, type(None)),
    "sha256": str,
}


@dataclass(frozen=True)
class Answers:
    """probabilities : float64 (n, classes), calibrated. distances : float64 (n,), or None where the model has none."""

    probabilities: np.ndarray
    distances: np.ndarray | None


class Model:
    """A classifier with its operating point. What differs is how `answers` computes."""

    classes: tuple[str, ...]
    image: int
    temperature: float
    threshold: float | None
    definition: str
    about: str

    @property
    def limit(self) -> float | None:
        """The distance beyond which a photograph counts as unlike those of training."""
        raise NotImplementedError

    @property
    def refused(self) -> float | None:
        """The share of validation photographs that lie beyond the limit."""
        raise NotImplementedError

    def answers(self, pixels: np.ndarray, batch_size: int = 64, device: str = "cpu") -> Answers:
        """Answers for square photographs, uint8 (n, side, side, 3)."""
        raise NotImplementedError

    def check(self) -> None:
        """SkinbookError if a class, the temperature, the threshold, the definition or the side makes no sense."""
        if len(set(self.classes)) != len(self.classes) or len(self.classes) < 2:
            raise SkinbookError(f"The classes are {', '.join(self.classes)}; expected at least two, each of them once.")
        unknown = [name for name in self.classes if name not in DIAGNOSES]
        if unknown and self.classes != BINARY:
            raise SkinbookError(
                f"{unknown[0]!r} is not a diagnosis that skinbook knows, and the classes are not {BINARY}."
            )
        if not 1e-6 <= self.temperature <= 1e6:
            raise SkinbookError(
                f"The temperature is {self.temperature}; expected a number above 0, neither tiny nor huge."
            )
        malignant("nv", self.definition)  # raises where nobody knows it
        if not 1 <= self.image <= LARGEST_SIDE:
            raise SkinbookError(f"The image side is {self.image}; expected a number of pixels, at most {LARGEST_SIDE}.")
        if self.threshold is not None and not 0 <= self.threshold <= 1 + ROUNDING:
            raise SkinbookError(f"The threshold is {self.threshold}; expected a probability.")

    @property
    def malignant(self) -> np.ndarray:
        """bool (classes,): which columns count as malignant."""
        if self.classes == BINARY:
            return np.array([False, True])
        return np.array([malignant(dx, self.definition) for dx in self.classes])

    def called_malignant(self, probabilities: np.ndarray) -> np.ndarray:
        """bool (n,): whose malignant probability reaches the threshold.

        Raises
        ------
        SkinbookError
            If no threshold was chosen for this model.
        """
        if self.threshold is None:
            raise SkinbookError("This bundle has no operating point: choose a threshold on validation photographs.")
        return probabilities[:, self.malignant].sum(axis=1) >= self.threshold

    def unlike(self, distances: np.ndarray | None) -> np.ndarray | None:
        """bool (n,): which photographs lie beyond the limit; None where the model cannot tell."""
        limit = self.limit
        if distances is None or limit is None:
            return None
        return ~(distances <= limit)  # a distance that is not a number is no reason to answer


def must_be_photographs(pixels: np.ndarray) -> None:
    """SkinbookError unless these are square photographs, uint8 (n, side, side, 3)."""
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.shape[1] != pixels.shape[2]:
        raise SkinbookError(f"Photographs must be uint8 (n, side, side, 3); got {pixels.dtype} {pixels.shape}.")


def plain(value: Any) -> Any:
    """The same for JSON, which has no word for "not a number": None takes its place."""
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _seal(card: Mapping[str, Any]) -> str:
    text = json.dumps(card, sort_keys=True, ensure_ascii=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write(file: Path, card: Mapping[str, Any]) -> None:
    """Write a card with its seal, whole or not at all."""
    told = plain(card)
    told["seal"] = _seal(told)
    with replaced(file) as partial:
        partial.write_text(json.dumps(told, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def read(file: Path, kinds: Kinds, number: int) -> dict[str, Any]:
    """A card whose entries are all there and of their kind, in this format, and unchanged since it was written.

    Raises
    ------
    SkinbookError
        If it is anything else.
    """
    try:
        card = strict_json(contents(file, LARGEST).decode("utf-8"))
    except OSError as error:
        raise SkinbookError(
            f"{file} cannot be read ({error.strerror}). Name the folder of a bundle: {file.name} and its weights."
        ) from None
    except ValueError as error:
        raise SkinbookError(f"{file} is not JSON ({error}). Fetch the bundle again.") from None
    found: Any = card.get("format") if isinstance(card, dict) else None
    if not _is(found, int):
        raise SkinbookError(f"{file} has no usable 'format'. Fetch the bundle again, or save it anew.")
    if found != number:
        remedy = "Update skinbook." if found > number else "Train or save the model again."
        raise SkinbookError(f"{file} has format {found}, and this skinbook reads {number}. {remedy}")
    for key, kind in {**COMMON, **kinds, "seal": str}.items():
        if key not in card or not _is(card[key], kind):
            raise SkinbookError(f"{file} has no usable {key!r}. Fetch the bundle again, or save it anew.")
    if not all(_is(value, (int, float)) for value in (card["novelty"] or {}).values()):
        raise SkinbookError(f"{file} has no usable 'novelty'. Fetch the bundle again, or save it anew.")
    for key, length in (("mean", 3), ("std", 3), ("classes", None)):
        part_kind = str if key == "classes" else (int, float)
        if not all(_is(part, part_kind) for part in card[key]) or length not in (None, len(card[key])):
            raise SkinbookError(f"{file} has no usable {key!r}. Fetch the bundle again, or save it anew.")
    if _seal({key: value for key, value in card.items() if key != "seal"}) != card["seal"]:
        raise SkinbookError(
            f"{file} was changed after it was saved. Fetch the bundle again, or change it in Python and save it there."
        )
    return card


@contextmanager
def naming(card: Path) -> Iterator[None]:
    """A block whose SkinbookError, on what a card says, names the card and what to do."""
    try:
        yield
    except SkinbookError as error:
        raise SkinbookError(f"{card}: {error} Fetch the bundle again, or save it anew.") from None


def sealed_file(folder: Path, name: str, sha256: str, card: Path) -> bytes:
    """The bytes of a file that a card names; SkinbookError if it is elsewhere, absent, or another file."""
    file = folder / name
    if file.parent != folder:
        raise SkinbookError(f"{card} names a file outside its folder ({name!r}). Use another bundle.")
    try:
        data = contents(file, LARGEST_WEIGHTS)
    except OSError as error:
        raise SkinbookError(f"{file} cannot be read ({error.strerror}). Fetch the bundle again.") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise SkinbookError(f"{file} is not the file that {card.name} was written with. Fetch the bundle again.")
    return data


def _is(value: Any, kind: type | tuple[type, ...]) -> bool:
    """Whether a value is of a kind, and a number besides one that a computer can compute with."""
    moderate = not isinstance(value, int | float) or abs(value) < 1e15
    return isinstance(value, kind) and not isinstance(value, bool) and moderate
