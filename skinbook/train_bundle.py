"""From labelled photographs to a bundle, the way the book teaches it: `skinbook train --to my-model`.

The split is by lesion. Training lesions teach; validation lesions choose the epoch, the temperature, the threshold and
the limit beyond which a photograph counts as unlike; the test lesions are opened once, at the end, and nothing follows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from skinbook.augment import Augment
from skinbook.batches import Batches
from skinbook.bundle import Bundle, Seen
from skinbook.calibration import temperature_of, threshold_for
from skinbook.card import LARGEST_SIDE
from skinbook.config import SkinbookError
from skinbook.data import pixels
from skinbook.data.schema import Dataset
from skinbook.diagnoses import malignant
from skinbook.evaluate_given import Report, judge
from skinbook.evaluation import softmax
from skinbook.networks import Backbone, Classifier
from skinbook.novelty import REFUSED, Novelty
from skinbook.splits import Split, lesion_split
from skinbook.training import fit

# A photograph may be turned, mirrored and moved, and lit a little differently: its diagnosis stays.
CHANGES = Augment(
    flip=True, rotate=180, zoom=(0.9, 1.2), shift=0.05, brightness=0.1, contrast=0.1, saturation=0.1, hue=0.01
)
# How a bundle speaks of what it was trained on, and of the licence that its weights inherit.
ON = {
    "lab": "the lab's generated lesions",
    "given": "lesions that were given",
    "ham10000": "HAM10000",
    "bcn20000": "BCN20000",
    "dermamnist": "DermaMNIST",
}
# Between these the temperature is chosen. Where the true labels score lower than others the best one grows without end,
# and where all of validation is right it shrinks without end: neither says how sure a model may be.
TEMPERATURES = (0.05, 20.0)
LICENCES = dict.fromkeys(
    ("ham10000", "bcn20000", "dermamnist"), " The licence of the photographs, CC BY-NC 4.0, holds for it."
)


@dataclass(frozen=True)
class Recipe:
    """What sizes a training. weights : none, pretrained or lab, as in `networks.Backbone`; image : pixels a side.

    sensitivity : the share of malignant validation photographs that the threshold is to call malignant.
    refused : the share of validation photographs that the limit leaves out.
    """

    network: str = "test_resnet"
    weights: str = "lab"
    image: int = 64
    epochs: int = 12
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    seed: int = 0
    sensitivity: float = 0.95
    refused: float = REFUSED

    def __post_init__(self) -> None:
        side = 16 <= self.image <= LARGEST_SIDE
        if not (side and self.epochs >= 1 and self.batch_size >= 2 and 0 < self.learning_rate < np.inf):
            raise SkinbookError(
                f"{self.image} pixels, {self.epochs} epochs, batches of {self.batch_size}, rate {self.learning_rate}: "
                f"expected at least 16 pixels and at most {LARGEST_SIDE}, 1 epoch, batches of 2 and a rate above 0."
            )
        if not (0 < self.sensitivity <= 1 and 0 < self.refused < 1):
            raise SkinbookError(
                f"The sensitivity is {self.sensitivity} and the share to refuse {self.refused}; expected shares between "
                "0 and 1, such as 0.95 and 0.01."
            )


def train(
    dataset: Dataset,
    recipe: Recipe,
    cache: Path,
    *,
    device: str = "cpu",
    checkpoint: Path | None = None,
    log: Callable[[str], None] | None = None,
) -> tuple[Bundle, Report]:
    """Train a classifier, choose all that is to be chosen on validation, and judge it on the test lesions.

    Parameters
    ----------
    cache : where decoded photographs are kept. device : cpu, cuda or mps.
    checkpoint : written after every epoch, and resumed from where it exists. log : is handed lines.

    Raises
    ------
    SkinbookError
        If there are too few lesions for three parts, no malignant one is among those of validation, or the checkpoint
        belongs to another training.
    """
    tell = log or (lambda line: None)
    split = lesion_split(dataset.table, identical=dataset.identical)
    rows = rows_of(dataset, split)
    tell(
        ", ".join(f"{part} {len(found):,}" for part, found in rows.items())
        + f" photographs (split {split.fingerprint})"
    )
    images = pixels.build(dataset, recipe.image, cache).pixels
    classes = dataset.classes
    labels = dataset.table["dx"].map({dx: k for k, dx in enumerate(classes)}).to_numpy(dtype=np.int64)
    torch.manual_seed(recipe.seed)
    network = Classifier(Backbone(recipe.network, recipe.weights), len(classes))
    tell(f"{recipe.network} at {recipe.image} px, weights: {network.backbone.weights}")
    wanted: dict[str, Any] = {
        "size": recipe.image,
        "mean": network.backbone.mean,
        "std": network.backbone.std,
        "device": device,
        "names": dataset.table["image_id"].tolist(),
    }
    if checkpoint is not None and checkpoint.exists():
        tell(f"going on from {checkpoint}")
    train_on = Batches(
        images, labels, rows["train"], recipe.batch_size, augment=CHANGES, shuffle=True, seed=recipe.seed, **wanted
    )
    trained = fit(
        network,
        train_on,
        Batches(images, labels, rows["validation"], 128, **wanted),
        epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        monitor="loss",  # which wants probabilities to be right, not only the ranking
        seed=recipe.seed,
        checkpoint=checkpoint,
        log=log,
        origin=network.backbone.weights,
    )
    about = (
        f"{recipe.network} at {recipe.image} px, trained on {ON.get(dataset.edition, dataset.edition)} "
        f"(weights before: {network.backbone.weights}; {recipe.epochs} epochs, seed {recipe.seed})."
        + LICENCES.get(dataset.edition, "")
    )
    bundle = Bundle(network, classes, recipe.image, split=split.fingerprint, about=about)
    choose_operating_point(bundle, images, labels, rows, recipe, device, tell)
    tell(
        f"from validation: epoch {trained.best_epoch}, temperature {bundle.temperature:.2f}, "
        f"threshold {bundle.threshold:.3f} (sensitivity {recipe.sensitivity:.0%}), "
        f"distance {bundle.limit:.1f} ({recipe.refused:.0%} beyond it)"
    )
    table = dataset.table
    known = np.concatenate([rows["train"], rows["validation"]])
    bundle.seen = Seen.of(table["image_id"].iloc[known], table["lesion_id"].iloc[known])
    report = judged(bundle, images, table, rows["test"], device)
    bundle.metrics = report.measured()
    bundle.network.to("cpu")
    return bundle, report


def rows_of(dataset: Dataset, split: Split) -> dict[str, np.ndarray]:
    """The rows of each part; SkinbookError if a part lacks what has to be chosen or judged on it."""
    if len(dataset.classes) < 2:
        raise SkinbookError(
            f"The table has only the diagnosis {', '.join(dataset.classes)}; training needs at least two."
        )
    rows = {part: split.rows(part) for part in ("train", "validation", "test")}
    dx = dataset.table["dx"].to_numpy()
    for part, found in rows.items():
        if len(set(dx[found])) < 2:
            raise SkinbookError(
                f"The {part} part has photographs of fewer than two diagnoses: {len(dx)} photographs of "
                f"{dataset.table['lesion_id'].nunique()} lesions are too few to train, choose and judge a model."
            )
    if not any(malignant(one) for one in set(dx[rows["validation"]])):  # before an hour of training, not after it
        raise SkinbookError("No validation photograph is malignant, so no threshold can be chosen. Give more lesions.")
    return rows


def choose_operating_point(
    bundle: Bundle,
    images: np.ndarray,
    labels: np.ndarray,
    rows: dict[str, np.ndarray],
    recipe: Recipe,
    device: str,
    log: Callable[[str], None] | None = None,
) -> None:
    """Temperature, threshold and limit, from validation photographs only.

    The temperature stays within `TEMPERATURES`; `log` is handed a line where the best one lies beyond.
    """
    validation = rows["validation"]
    logits, features = bundle.outputs(images, 128, device, validation)
    best = temperature_of(logits, labels[validation])
    # The search may also end at what is no number; then the network's own probabilities stay.
    bundle.temperature = 1.0 if np.isnan(best) else float(np.clip(best, *TEMPERATURES))
    if log is not None and bundle.temperature != best:
        log(
            f"validation gives no usable temperature ({best:.3g}), so it is {bundle.temperature:g}, and the probabilities "
            "are not calibrated: look at the labels, train for longer, or give more lesions"
        )
    ill = bundle.malignant[labels[validation]]
    scores = softmax(logits / bundle.temperature)[:, bundle.malignant].sum(axis=1)
    bundle.threshold = float(threshold_for(recipe.sensitivity, ill, scores))
    _, usual = bundle.outputs(images, 128, device, rows["train"])
    bundle.novelty = Novelty.fit(usual, features, recipe.refused)


def judged(bundle: Bundle, images: np.ndarray, table: pd.DataFrame, test: np.ndarray, device: str) -> Report:
    """The test lesions, opened once."""
    found = bundle.answers(images, 128, device, test)
    dx, lesions = (table[name].to_numpy(dtype=object)[test] for name in ("dx", "lesion_id"))
    report = judge(bundle, dx, lesions, found.probabilities)
    unlike = bundle.unlike(found.distances)
    report.refused, report.seen = None if unlike is None else int(unlike.sum()), 0
    return report
