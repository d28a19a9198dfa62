"""Metrics, each with an interval: the bootstrap over lesions.

Photographs of one lesion are not independent, so lesions are resampled, not photographs (the cluster bootstrap; see
Efron and Tibshirani, "An Introduction to the Bootstrap", 1993). Every metric is written once, for many weightings of
the photographs at a time: a resample is a weighting in which a photograph counts as often as its lesion was drawn.
Two models on the same photographs share the resamples, which makes their difference a paired one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from skinbook.config import SkinbookError
from skinbook.diagnoses import DEFAULT_DEFINITION, malignant
from skinbook.keyed import integers
from skinbook.rounding import shown

RESAMPLES = 1000
ROUNDING = 1e-6  # by which a probability may lie outside 0 to 1
CALIBRATION_BINS = 15
HELD = 10_000_000  # weights computed with at a time


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return shown(self.value, self.low, self.high).replace("  ", " ")


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities, float64 (n, classes), from logits of that shape."""
    logits = np.asarray(logits, dtype=np.float64)
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    return odds / odds.sum(axis=1, keepdims=True)


# Each metric below takes labels (n,), probabilities (n, classes) and weights (resamples, n); it returns (resamples,).


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int, weights: np.ndarray) -> np.ndarray:
    """Weighted counts (resamples, true class, predicted class)."""
    cells = np.zeros((len(labels), classes * classes), dtype=weights.dtype)
    cells[np.arange(len(labels)), labels * classes + predicted] = 1
    return (weights @ cells).reshape(-1, classes, classes)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """part / whole, and NaN where there is nothing to share."""
    return np.divide(part, whole, out=np.full(np.broadcast(part, whole).shape, np.nan), where=whole > 0)


def _mean_of_present(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis without NaN; NaN where nothing is left."""
    present = ~np.isnan(values)
    return _share(np.where(present, values, 0.0).sum(axis=-1), present.sum(axis=-1))


def accuracy(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Share of photographs whose most probable class is the true one."""
    right = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    return _share(weights @ right, weights.sum(axis=1))


def recalls(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Recall of every class, (resamples, classes); NaN for a class without photographs."""
    counts = confusion(labels, probabilities.argmax(axis=1), probabilities.shape[1], weights)
    return _share(counts.diagonal(axis1=1, axis2=2), counts.sum(axis=2))


def balanced_accuracy(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean recall over the classes that have photographs."""
    return _mean_of_present(recalls(labels, probabilities, weights))


def macro_f1(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean F1 over the classes that have photographs or predictions."""
    counts = confusion(labels, probabilities.argmax(axis=1), probabilities.shape[1], weights)
    hits = counts.diagonal(axis1=1, axis2=2)
    return _mean_of_present(_share(2 * hits, counts.sum(axis=1) + counts.sum(axis=2)))


def roc_auc(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting half.

    positive : bool (n,); scores : float (n,). NaN where a resample holds only one of the two kinds.
    """
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])  # where each tied group begins
    weight = weights[:, order]
    positives = np.add.reduceat(weight * positive[order], starts, axis=1)
    negatives = np.add.reduceat(weight * ~positive[order], starts, axis=1)
    below = np.cumsum(negatives, axis=1) - negatives
    won = (positives * (below + 0.5 * negatives)).sum(axis=1)
    return _share(won, positives.sum(axis=1) * negatives.sum(axis=1))


def macro_roc_auc(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean over the classes of the ROC AUC of that class against all others."""
    each = [roc_auc(labels == k, probabilities[:, k], weights) for k in range(probabilities.shape[1])]
    return _mean_of_present(np.stack(each, axis=1))


def calibration_error(labels: np.ndarray, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Expected calibration error of the most probable class, 15 equal bins (Guo et al. 2017, arXiv 1706.04599).

    As there, and in scikit-learn's `calibration_curve`, what lies on the border of two bins is in the lower one.
    """
    confidence = probabilities.max(axis=1)
    right = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    bins = np.searchsorted(np.linspace(0, 1, CALIBRATION_BINS + 1)[1:-1], confidence)
    gaps = np.zeros((len(labels), CALIBRATION_BINS))
    gaps[np.arange(len(labels)), bins] = right - confidence
    return _share(np.abs(weights @ gaps).sum(axis=1), weights.sum(axis=1))


METRICS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "accuracy": accuracy,
    "balanced accuracy": balanced_accuracy,
    "macro F1": macro_f1,
    "macro ROC AUC": macro_roc_auc,
    "calibration error": calibration_error,
}


class Evaluation:
    """One model's predictions on one set of photographs, and every metric of them.

    Parameters
    ----------
    labels : int (n,), positions in `classes`.
    probabilities : float (n, classes).
    lesions : (n,) names of the lesions that the photographs show; lesions are what is resampled.
    classes : codes of the diagnoses, in the order of the columns.
    resamples : how many; seed : of the resampling.

    Raises
    ------
    SkinbookError
        If the shapes disagree, a label is no class, a lesion has no name, or a probability is not a number from 0 to 1.
    """

    def __init__(self, labels, probabilities, lesions, classes, resamples: int = RESAMPLES, seed: int = 0) -> None:
        with np.errstate(invalid="ignore"):  # of a label that is not a number
            self.labels = np.asarray(labels).astype(np.int64)
        self.probabilities = np.asarray(probabilities, dtype=np.float64)
        unnamed = bool(pd.isna(np.asarray(lesions, dtype=object)).any())  # before NumPy makes "nan" of it
        self.lesions = np.asarray(lesions)
        self.classes = tuple(classes)
        self.resamples, self.seed = resamples, seed
        count = len(self.labels)
        if count == 0:
            raise SkinbookError("There are no photographs to evaluate.")
        shapes = (self.labels.shape, self.probabilities.shape, self.lesions.shape)
        if shapes != ((count,), (count, len(self.classes)), (count,)):
            raise SkinbookError(
                f"Evaluation needs labels, probabilities and lesions of the shapes ({count},), "
                f"({count}, {len(self.classes)}) and ({count},); got {', '.join(map(str, shapes))}."
            )
        whole = (self.labels == np.asarray(labels)).all()
        if not whole or self.labels.min() < 0 or self.labels.max() >= len(self.classes):
            raise SkinbookError(
                f"A label lies outside 0 to {len(self.classes) - 1} or is no whole number: give positions in the classes."
            )
        if unnamed:
            raise SkinbookError("A lesion has no name: give the photograph's own where its lesion is not known.")
        if not np.isfinite(self.probabilities).all():
            raise SkinbookError("A probability is not a finite number; the model has probably diverged.")
        if self.probabilities.min(initial=0) < -ROUNDING or self.probabilities.max(initial=0) > 1 + ROUNDING:
            raise SkinbookError("A probability lies outside 0 to 1: give probabilities (softmax), not logits.")

    @property
    def weights(self) -> np.ndarray:
        """float64 (resamples, n): how often each photograph's lesion was drawn. Read-only, and shared by evaluations."""
        return _resample_weights(tuple(self.lesions.tolist()), self.resamples, self.seed)

    def _function(self, metric: str, definition: str):
        if metric == "malignant ROC AUC":
            columns = np.array([malignant(dx, definition) for dx in self.classes])
            return lambda y, p, w: roc_auc(columns[y], p[:, columns].sum(axis=1), w)
        if metric.startswith("recall of ") and metric[len("recall of ") :] in self.classes:
            k = self.classes.index(metric[len("recall of ") :])
            return lambda y, p, w: recalls(y, p, w)[:, k]
        if metric not in METRICS:
            known = ", ".join([*METRICS, "malignant ROC AUC", "recall of <class>"])
            raise SkinbookError(f"{metric!r} is not a metric that skinbook knows; it knows {known}.")
        return METRICS[metric]

    def value(self, metric: str, definition: str = DEFAULT_DEFINITION) -> float:
        """The metric on the photographs as they are."""
        ones = np.ones((1, len(self.labels)))
        return float(self._function(metric, definition)(self.labels, self.probabilities, ones)[0])

    def resampled(self, metric: str, definition: str = DEFAULT_DEFINITION) -> np.ndarray:
        """The metric on every resample, float64 (resamples,)."""
        function, weights = self._function(metric, definition), self.weights
        step = max(1, HELD // len(self.labels))
        return np.concatenate(
            [
                function(self.labels, self.probabilities, weights[start : start + step])
                for start in range(0, self.resamples, step)
            ]
        )

    def metric(self, metric: str, definition: str = DEFAULT_DEFINITION) -> Interval:
        """The metric with its 95 % percentile interval.

        The calibration error's interval is mirrored about the value (the basic bootstrap): an error cannot be negative,
        so resamples of a small one are larger than it, and their percentiles can even leave it out.
        """
        found = interval(self.value(metric, definition), self.resampled(metric, definition))
        if metric == "calibration error":
            # NumPy's maximum, which keeps an end that is not known.
            low, high = np.maximum([0.0, found.value], 2 * found.value - np.array([found.high, found.low]))
            return Interval(found.value, float(low), float(high))
        return found

    def confusion(self) -> pd.DataFrame:
        """Counts: a row for each true class, a column for each predicted one."""
        ones = np.ones((1, len(self.labels)))
        counts = confusion(self.labels, self.probabilities.argmax(axis=1), len(self.classes), ones)[0].astype(int)
        return pd.DataFrame(
            counts, index=pd.Index(self.classes, name="true"), columns=pd.Index(self.classes, name="predicted")
        )

    def per_class(self) -> pd.DataFrame:
        """Precision, recall with its interval, F1 and support (photographs) of each class."""
        counts = self.confusion().to_numpy().astype(float)
        hits, predicted, support = counts.diagonal(), counts.sum(axis=0), counts.sum(axis=1)
        draws = recalls(self.labels, self.probabilities, self.weights)
        ends = [interval(np.nan, draws[:, k]) for k in range(len(self.classes))]
        return pd.DataFrame(
            {
                "precision": _share(hits, predicted),
                "recall": _share(hits, support),
                "recall low": [end.low for end in ends],
                "recall high": [end.high for end in ends],
                "F1": _share(2 * hits, predicted + support),
                "support": support.astype(int),
            },
            index=pd.Index(self.classes, name="class"),
        )


@lru_cache(maxsize=4)  # large, and the same for every model that is judged on the same photographs
def _resample_weights(lesions: tuple, resamples: int, seed: int) -> np.ndarray:
    names, lesion = np.unique(np.asarray(lesions), return_inverse=True)
    if len(names) < 2:  # one lesion resampled is the same lesion again: no resample has anything to say
        return np.zeros((resamples, len(lesions)))
    weights = np.empty((resamples, len(lesions)), dtype=np.float64)
    for row in range(resamples):
        counters = np.arange(row * len(names), (row + 1) * len(names), dtype=np.uint64)
        weights[row] = np.bincount(integers(("bootstrap", seed), counters, len(names)), minlength=len(names))[lesion]
    weights.flags.writeable = False
    return weights


def interval(value: float, draws: np.ndarray) -> Interval:
    """A value with the 2.5th and 97.5th percentile of its resamples.

    The ends are NaN where more than one resample in twenty has no value: then the value rests on so few lesions (one or
    two of a class; with three it depends on the draws) that resampling them says nothing.
    """
    present = draws[~np.isnan(draws)]
    low, high = np.percentile(present, [2.5, 97.5]) if len(present) >= 0.95 * len(draws) else (np.nan, np.nan)
    return Interval(float(value), float(low), float(high))


def difference(a: Evaluation, b: Evaluation, metric: str, definition: str = DEFAULT_DEFINITION) -> Interval:
    """a's metric less b's, paired: both are judged on the same photographs and the same resamples of lesions.

    Raises
    ------
    SkinbookError
        If the two were not judged on the same photographs in the same order.
    """
    same = len(a.labels) == len(b.labels) and (a.labels == b.labels).all() and (a.lesions == b.lesions).all()
    if not same or (a.seed, a.resamples) != (b.seed, b.resamples):
        raise SkinbookError("A paired difference needs two evaluations of the same photographs, in the same order.")
    return interval(
        a.value(metric, definition) - b.value(metric, definition),
        a.resampled(metric, definition) - b.resampled(metric, definition),
    )


def mean_interval(values: list[np.ndarray], point: list[float]) -> Interval:
    """The mean over several seeds of a metric whose resamples are shared: values are (resamples,) each."""
    return interval(float(np.mean(point)), np.mean(np.stack(values), axis=0))
