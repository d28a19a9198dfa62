"""One look for every figure: colour-blind-safe, on a light card of its own so that it reads in dark mode too.

Every function returns a matplotlib Axes (or Figure, where it says so). The text for readers who cannot see a figure
stands in the notebook cell's metadata (`mystnb.image.alt`), where the page takes it from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from skinbook.evaluation import Interval, interval

# Okabe and Ito's palette (2008), made to be told apart by colour-blind readers.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#F0E442")
BLUES = sns.light_palette(PALETTE[0], as_cmap=True)


def use_style() -> None:
    """Set the look for all figures that follow."""
    sns.set_theme(style="ticks", palette=list(PALETTE), font_scale=0.95)
    plt.rcParams.update(
        {
            "figure.figsize": (6.4, 3.6),
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "figure.facecolor": "white",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlelocation": "left",
            "axes.titlesize": "medium",
            "axes.titleweight": "bold",
            # What lies behind a legend is dimmed and not hidden.
            "legend.framealpha": 0.8,
            "legend.edgecolor": "none",
        }
    )


def class_distribution(table: pd.DataFrame, classes: Sequence[str], part: np.ndarray | None = None) -> Axes:
    """Photographs of each diagnosis as horizontal bars, with their count; in one colour a part where parts are given."""
    _, ax = plt.subplots(figsize=(6.4, 0.34 * len(classes) + 1.2))
    parts = np.full(len(table), "photographs") if part is None else part
    counts = pd.crosstab(table["dx"], parts).reindex(list(classes), fill_value=0)
    left = np.zeros(len(classes))
    for column in counts:
        ax.barh(list(classes), counts[column], left=left, label=column)
        left += counts[column].to_numpy()
    for row, total in enumerate(left):
        ax.text(total, row, f" {int(total):,} ({total / left.sum():.0%})", va="center")
    ax.invert_yaxis()
    ax.margins(x=0.18)
    ax.set_xlabel("photographs")
    if part is not None:
        ax.legend(loc="lower right")
    return ax


def curves(history: pd.DataFrame, best_epoch: int | None = None) -> Figure:
    """Training and validation curves: loss on the left, accuracies on the right. `history` as `fit()` returns it, in
    which training has no accuracy; where a loop has counted it too, as `train accuracy`, it is drawn beside.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.6, 3.2))
    for column in ("train loss", "validation loss"):
        if column in history:
            left.plot(history["epoch"], history[column], label=column.removesuffix(" loss"))
    both = "train accuracy" in history
    for column in ("train accuracy", "validation accuracy", "validation balanced accuracy"):
        if column in history:
            label = column.removesuffix(" accuracy") if both else column.removeprefix("validation ")
            right.plot(history["epoch"], history[column], label=label)
    for ax, title in ((left, "Loss"), (right, "Accuracy" if both else "Validation")):
        ax.set(xlabel="epoch", title=title)
        if best_epoch:
            ax.axvline(best_epoch, color="0.6", linestyle=":", label="epoch kept")
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2, frameon=False)
    right.set_ylim(0, 1)
    return figure


def confusion_matrix(counts: pd.DataFrame) -> Axes:
    """A confusion matrix: the colour is the share of the true class (row), the number is the count of photographs."""
    side = max(0.52 * len(counts) + 1.4, 3.2)  # two classes have long names
    _, ax = plt.subplots(figsize=(side + 0.8, side))
    totals = counts.sum(axis=1).replace(0, 1)
    sns.heatmap(
        counts.div(totals, axis=0),
        annot=counts,
        fmt="d",
        cmap=BLUES,
        vmin=0,
        vmax=1,
        square=True,
        linewidths=0.5,
        cbar_kws={"label": "share of the true class"},
        ax=ax,
    )
    ax.set(xlabel="predicted", ylabel="true")
    ax.tick_params(axis="y", rotation=0)
    return ax


def intervals(values: Mapping[str, Interval], xlabel: str, reference: float | None = None) -> Axes:
    """A forest plot: a point and its 95 % interval on each line, from the top in the order given."""
    _, ax = plt.subplots(figsize=(6.4, 0.42 * len(values) + 1.0))
    for row, found in enumerate(values.values()):
        ax.plot([found.low, found.high], [row, row], color=PALETTE[0], linewidth=2)
        ax.plot(found.value, row, "o", color=PALETTE[0])
        ax.text(1.02, row, str(found), transform=ax.get_yaxis_transform(), va="center", fontsize="small")
    ax.set_yticks(range(len(values)), list(values))
    ax.invert_yaxis()
    ax.set_ylim(len(values) - 0.5, -0.5)
    if reference is not None:
        ax.axvline(reference, color="0.6", linestyle=":")
    ax.set_xlabel(xlabel)
    return ax


def gallery(images: Sequence[np.ndarray], captions: Sequence[str], columns: int | None = None) -> Figure:
    """Photographs in a grid, uint8 (height, width, 3) each, with a caption above each one.

    columns : four where that fills the rows, else three, if not given; more would be too small on a phone.
    """
    columns = columns or (4 if len(images) % 4 == 0 else 3)
    rows = -(-len(images) // columns)
    side = min(1.9, 8 / columns)  # no wider than the page
    figure, axes = plt.subplots(rows, columns, figsize=(side * columns, (side + 0.25) * rows), squeeze=False)
    for ax in axes.flat:
        ax.axis("off")
    for ax, image, caption in zip(axes.flat, images, captions, strict=False):
        ax.imshow(image)
        ax.set_title(caption, fontsize="small", fontweight="normal", loc="center")
    return figure


def roc_curve(
    positive: np.ndarray, scores: np.ndarray, weights: np.ndarray, label: str | None = None, ax: Axes | None = None
) -> Axes:
    """Sensitivity against the share of false alarms, with a pointwise 95 % band over resamples.

    positive : bool (n,); scores : float (n,), high for positive. weights : float (resamples, n), how often each
    photograph counts in each resample (`Evaluation.weights`). ax : another curve's, to draw over it.
    """
    alarms = np.linspace(0, 1, 201)

    def curve(weights: np.ndarray) -> np.ndarray:
        hits, others = _called(positive, scores, weights)
        found = np.stack([np.interp(alarms, f, s) for f, s in zip(others, hits, strict=True)])
        found[~(weights[:, positive].any(axis=1) & weights[:, ~positive].any(axis=1))] = np.nan
        return found

    return _banded(alarms, curve, weights, "1 − specificity", "sensitivity", label, ax)


def precision_recall_curve(
    positive: np.ndarray, scores: np.ndarray, weights: np.ndarray, label: str | None = None, ax: Axes | None = None
) -> Axes:
    """Precision against recall (sensitivity), with a pointwise 95 % band over resamples. Parameters as `roc_curve`."""
    recalls = np.linspace(0.005, 1, 200)

    def curve(weights: np.ndarray) -> np.ndarray:
        hits, others = _called(positive, scores, weights)
        sick, healthy = weights[:, positive].sum(axis=1), weights[:, ~positive].sum(axis=1)
        found = []
        for row in range(len(weights)):
            first = np.minimum(np.searchsorted(hits[row], recalls - 1e-12), hits.shape[1] - 1)
            true, false = hits[row, first] * sick[row], others[row, first] * healthy[row]
            found.append(true / np.maximum(true + false, 1e-12))
        return np.where(sick[:, None] > 0, np.stack(found), np.nan)

    return _banded(recalls, curve, weights, "recall", "precision", label, ax)


def reliability(
    positive: np.ndarray,
    probabilities: np.ndarray,
    weights: np.ndarray,
    label: str | None = None,
    ax: Axes | None = None,
    groups: int = 8,
) -> Axes:
    """A reliability diagram: the photographs in groups of equal size by their probability; for each group its mean
    probability, and the share that is positive with its 95 % interval. On the dotted line the two agree.

    Parameters as `roc_curve`; probabilities : float (n,), of being positive.
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(4.2, 4.0))
        ax.plot([0, 1], [0, 1], ":", color="0.6")
        ax.set(xlim=(0, 1), ylim=(0, 1), xlabel="stated probability", ylabel="share that is positive", aspect="equal")
    stated, seen = [], []
    for group in np.array_split(np.argsort(probabilities, kind="stable"), groups):
        total = weights[:, group].sum(axis=1)
        draws = np.full(len(weights), np.nan)
        np.divide(weights[:, group] @ positive[group], total, out=draws, where=total > 0)
        stated.append(probabilities[group].mean())
        seen.append(interval(positive[group].mean(), draws))
    (line,) = ax.plot(stated, [share.value for share in seen], "o-", markersize=4, label=label)
    ax.vlines(stated, [s.low for s in seen], [s.high for s in seen], color=line.get_color(), alpha=0.6)
    if label is not None:
        ax.legend(loc="upper left")
    return ax


def _called(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the positive and of the others that score at least so much, from none to all: (resamples, steps)."""
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.r_[np.diff(scores[order]) != 0, True])  # tied photographs are called together
    shares = []
    for kind in (positive, ~positive):
        counts = np.cumsum(weights[:, order] * kind[order], axis=1)
        shares.append(np.pad(counts[:, ends] / np.maximum(counts[:, -1:], 1e-12), ((0, 0), (1, 0))))
    return shares[0], shares[1]


def _banded(x: np.ndarray, curve, weights: np.ndarray, xlabel: str, ylabel: str, label, ax: Axes | None) -> Axes:
    """The curve of the photographs as they are, and the band of those resamples that have one.

    There is no band where more than one resample in twenty has none, as in `evaluation.interval`.
    """
    if ax is None:
        _, ax = plt.subplots(figsize=(4.2, 4.0))
    (line,) = ax.plot(x, curve(np.ones((1, weights.shape[1])))[0], label=label)
    draws = curve(weights)
    present = draws[~np.isnan(draws).any(axis=1)]
    if len(present) >= 0.95 * len(draws):
        low, high = np.percentile(present, [2.5, 97.5], axis=0)
        ax.fill_between(x, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel=xlabel, ylabel=ylabel, aspect="equal")
    if label is not None:
        ax.legend(loc="lower right" if ylabel == "sensitivity" else "lower left")
    return ax
