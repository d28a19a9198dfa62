"""Photographs on a disk, and what a model says of each: `skinbook predict photo.jpg --bundle B`.

Threads decode while the model computes. Answers come in the order of the files; a file that cannot be read, and a
photograph that is unlike those of training, become answers that say so.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from skinbook.card import BINARY, DISCLAIMER, Model, plain
from skinbook.config import SkinbookError, book_data, cores
from skinbook.data import images, locate
from skinbook.data.pixels import reduce
from skinbook.diagnoses import DIAGNOSES
from skinbook.reading import one_line

BATCH = 64
AHEAD = 4 * BATCH  # photographs that may be decoded before they are asked for: 13 MB at 128 pixels
BATCH_PIXELS = BATCH * 256 * 256  # of larger photographs there are fewer in a batch, and ahead
LAB, REAL = "lab", "ham10000"
OURS = {LAB: "lab_bundle", REAL: "ham10000_bundle"}  # the models that come with the book
CARDS = ("bundle.json", "onnx.json")  # of a bundle, and of its ONNX export
STYLES = ("text", "json", "csv")


def is_ours(folder: Path | str) -> bool:
    """Whether the name is that of a model of the book, and no folder here holds a bundle under that name.

    A folder `ham10000` may as well be the data set.
    """
    return str(folder) in OURS and not any(os.path.isfile(os.path.join(folder, card)) for card in CARDS)


def open_model(folder: Path | str) -> Model:
    """The bundle in a folder, or the ONNX model exported from one.

    Two words stand for small models that come with the book: "ham10000" for one that has learned from HAM10000, "lab" for
    one that has learned from generated lesions only. (A folder of that name goes before it where it holds a bundle.)

    Raises
    ------
    SkinbookError
        If the folder holds neither, or one that is damaged.
    """
    folder = Path(folder)
    if is_ours(folder):
        folder = book_data(OURS[str(folder)])
    if os.path.isfile(folder / "onnx.json") and not os.path.isfile(folder / "bundle.json"):
        from skinbook.onnx_model import OnnxModel

        return OnnxModel.load(folder)
    from skinbook.bundle import Bundle

    return Bundle.load(folder)


@dataclass(frozen=True)
class Answer:
    """What a model says of one file: probabilities, float64 (classes,), and the distance from training; or the fault."""

    file: str
    probabilities: np.ndarray | None = None
    distance: float | None = None
    unlike: bool = False
    fault: str = ""


def answers(model: Model, files: Sequence[str | Path], device: str = "cpu") -> Iterator[Answer]:
    """One answer for each file, in their order."""
    size = max(1, min(BATCH, BATCH_PIXELS // model.image**2))
    decoded, names = _decoded(files, model.image, min(AHEAD, 4 * size)), iter(files)
    while some := list(islice(decoded, size)):
        read = [pixels for pixels in some if isinstance(pixels, np.ndarray)]
        found = model.answers(np.stack(read), size, device) if read else None
        unlike = None if found is None else model.unlike(found.distances)
        row = 0
        for pixels, file in zip(some, names, strict=False):  # `some` first: it ends the loop and takes no name too many
            if found is None or not isinstance(pixels, np.ndarray):
                yield Answer(str(file), fault=str(pixels))
                continue
            distance = None if found.distances is None else float(found.distances[row])
            strange = unlike is not None and bool(unlike[row])
            if np.isfinite(found.probabilities[row]).all():
                yield Answer(str(file), found.probabilities[row], distance, strange)
            else:
                fault = f"{file} got an answer that is not a number. Fetch the bundle again, or train another."
                yield Answer(str(file), fault=fault)
            row += 1


def _decoded(files: Iterable[str | Path], side: int, ahead: int) -> Iterator[np.ndarray | SkinbookError]:
    """Each file as uint8 (side, side, 3), or why not, in order, `ahead` of them ahead of time."""

    def read(file: str | Path) -> np.ndarray | SkinbookError:
        try:
            image, _ = images.decode(Path(file), at_least=side)
        except SkinbookError as error:
            return SkinbookError(str(error).replace(f" {images.AGAIN}.", ""))  # which is about data sets
        return np.asarray(image if image.size == (side, side) else reduce(image, (side, side)))

    waiting: deque[Future] = deque()
    rest = iter(files)
    pool = ThreadPoolExecutor(cores())
    try:
        for file in rest:
            waiting.append(pool.submit(read, file))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def listed(given: Iterable[str]) -> list[str]:
    """Files, with the photographs in or below a folder in its place (by folder, then by name)."""
    files: list[str] = []
    for name in given:
        if not os.path.isdir(name):
            files.append(name)
            continue
        below = [
            str(folder / file)
            for folder, names in locate.folders_below(Path(name), depth=64)
            for file in names
            if Path(file).suffix.lower() in images.SUFFIXES
        ]
        files += sorted(below) or [name]  # a folder without any is a fault of its own
    return files


@dataclass(frozen=True)
class Prediction:
    """One line of the output. status : answered, refused or failed; what does not apply is None or empty."""

    file: str
    status: str
    diagnosis: str | None = None
    probabilities: dict[str, float] = field(default_factory=dict)
    malignant: float | None = None
    called_malignant: bool | None = None
    distance: float | None = None
    reason: str = ""


def prediction(model: Model, answer: Answer, anyway: bool = False) -> Prediction:
    """What an answer means for this model. anyway : a photograph unlike those of training gets its probabilities too."""
    if answer.probabilities is None:
        return Prediction(answer.file, "failed", reason=answer.fault)
    reason = ""
    if answer.unlike:
        reason = (
            "This does not look like the dermoscopic photographs that the model learned from "
            f"(distance {answer.distance:.1f}; its limit is {model.limit:.1f})."
        )
        if not anyway:
            return Prediction(answer.file, "refused", distance=answer.distance, reason=reason)
    p = answer.probabilities
    called = None if model.threshold is None else bool(model.called_malignant(p[None])[0])
    return Prediction(
        answer.file,
        "answered",
        model.classes[int(p.argmax())],
        dict(zip(model.classes, p.tolist(), strict=True)),
        float(p[model.malignant].sum()),
        called,
        answer.distance,
        reason,
    )


def told(model: Model) -> dict[str, Any]:
    """What a reader of the predictions must know of the model, ready for JSON."""
    return {
        "note": DISCLAIMER,
        "model": model.about,
        "classes": list(model.classes),
        "malignant_classes": [name for name, ill in zip(model.classes, model.malignant, strict=True) if ill],
        "threshold": model.threshold,
        "distance_limit": model.limit,
        "refused_of_validation": model.refused,
    }


def lines(model: Model, predictions: Iterable[Prediction], style: str = "text") -> Iterator[str]:
    """The output, a piece at a time as predictions come, each with its line ends."""
    if style == "text":
        yield from (_text(model, one) for one in predictions)
    elif style == "csv":
        yield from _csv(model, predictions)
    else:
        yield json.dumps(plain(told(model)), indent=1)[:-2] + ',\n "photographs": ['
        first = True
        for one in predictions:
            yield ("\n  " if first else ",\n  ") + json.dumps(plain(vars(one)))
            first = False
        yield "\n ]\n}\n"


def _text(model: Model, one: Prediction) -> str:
    file = one_line(one.file)
    if one.status != "answered":
        return f"{file}\n  {one.status}: {one_line(one.reason)}\n"
    ranked = sorted(one.probabilities.items(), key=lambda item: -item[1])
    named = [f"{DIAGNOSES[dx].name if dx in DIAGNOSES else dx} {p:.2f}" for dx, p in ranked]
    text = f"{file}\n"
    if model.classes != BINARY:
        text += f"  {', '.join(named)}\n"
    text += f"  malignant {one.malignant:.2f}"
    if model.threshold is not None:
        beyond = "at or above" if one.called_malignant else "below"
        text += f", {beyond} the operating point of {model.threshold:.2f}: called {BINARY[bool(one.called_malignant)]}"
    return text + "\n" + (f"  but: {one.reason}\n" if one.reason else "")


def _csv(model: Model, predictions: Iterable[Prediction]) -> Iterator[str]:
    def row(cells: list[Any]) -> str:
        held = io.StringIO()
        csv.writer(held, lineterminator="\n").writerow(["" if cell is None else cell for cell in cells])
        return held.getvalue()

    yield row(
        ["file", "status", "diagnosis", "malignant", "called_malignant", "distance"]
        + [f"p_{name}" for name in model.classes]
        + ["reason"]
    )
    for one in predictions:
        numbers = [None if v is None else f"{v:.6f}" for v in (one.malignant, one.distance)]
        each = [f"{one.probabilities[name]:.6f}" if one.probabilities else None for name in model.classes]
        called = None if one.called_malignant is None else str(one.called_malignant).lower()
        yield row([one.file, one.status, one.diagnosis, numbers[0], called, numbers[1], *each, one.reason])
