import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

mpl.use("Agg")
import matplotlib.pyplot as plt

from skinbook import plots
from skinbook.evaluation import Evaluation, Interval, roc_auc, softmax
from skinbook.keyed import uniform


@pytest.fixture(autouse=True)
def closed():
    plots.use_style()
    yield
    plt.close("all")


def test_class_distribution_shows_every_class_even_an_empty_one():
    table = pd.DataFrame({"dx": ["nv"] * 6 + ["mel"] * 2})
    ax = plots.class_distribution(table, ("nv", "mel", "df"))
    assert [bar.get_width() for bar in ax.patches] == [6, 2, 0]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["nv", "mel", "df"]
    assert [t.get_text().strip() for t in ax.texts] == ["6 (75%)", "2 (25%)", "0 (0%)"]
    assert ax.get_xlabel() == "photographs"


def test_class_distribution_by_part_adds_up():
    table = pd.DataFrame({"dx": ["nv", "nv", "mel", "nv"]})
    ax = plots.class_distribution(table, ("nv", "mel"), np.array(["train", "test", "train", "train"]))
    assert sum(bar.get_width() for bar in ax.patches) == 4
    assert {t.get_text() for t in ax.get_legend().get_texts()} == {"train", "test"}


def test_curves_draw_what_the_history_has():
    history = pd.DataFrame({"epoch": [1, 2], "train loss": [2.0, 1.0], "validation loss": [2.1, 1.5]})
    left, right = plots.curves(history, best_epoch=2).axes
    assert [list(line.get_ydata()) for line in left.lines[:2]] == [[2.0, 1.0], [2.1, 1.5]]
    assert [line.get_label() for line in right.lines] == ["epoch kept"]


def test_curves_name_the_parts_where_training_has_an_accuracy_too():
    losses = {"epoch": [1, 2], "train loss": [2.0, 1.0], "validation loss": [2.1, 1.5]}
    history = pd.DataFrame(losses | {"validation accuracy": [0.5, 0.6], "validation balanced accuracy": [0.3, 0.4]})
    right = plots.curves(history).axes[1]
    labels = [line.get_label() for line in right.lines]
    assert (right.get_title(loc="left"), labels) == ("Validation", ["accuracy", "balanced accuracy"])
    history = pd.DataFrame(losses | {"train accuracy": [0.7, 0.9], "validation accuracy": [0.5, 0.6]})
    right = plots.curves(history).axes[1]
    labels = [line.get_label() for line in right.lines]
    assert (right.get_title(loc="left"), labels) == ("Accuracy", ["train", "validation"])
    assert [list(line.get_ydata()) for line in right.lines] == [[0.7, 0.9], [0.5, 0.6]]


def test_the_confusion_matrix_shows_counts_in_the_right_cells():
    counts = pd.DataFrame([[5, 1], [0, 0]], index=["nv", "mel"], columns=["nv", "mel"])
    ax = plots.confusion_matrix(counts)
    assert [t.get_text() for t in ax.texts] == ["5", "1", "0", "0"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted", "true")


def test_intervals_are_drawn_where_they_are():
    ax = plots.intervals({"a": Interval(0.5, 0.4, 0.7), "b": Interval(0.1, 0.0, 0.2)}, "gain", reference=0)
    assert list(ax.lines[0].get_xdata()) == [0.4, 0.7]
    assert list(ax.lines[1].get_xdata()) == [0.5]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a", "b"]
    assert ax.texts[0].get_text() == "0.50 [0.40, 0.70]"


def test_a_gallery_shows_every_image_with_its_caption():
    figure = plots.gallery([np.zeros((4, 4, 3), np.uint8)] * 7, [f"photograph {k}" for k in range(7)], columns=3)
    shown = [ax for ax in figure.axes if ax.images]
    assert [ax.get_title() for ax in shown] == [f"photograph {k}" for k in range(7)]
    assert len(figure.axes) == 9


@pytest.mark.parametrize(("count", "columns"), [(6, 3), (8, 4), (12, 4), (5, 3)])
def test_a_gallery_is_not_too_wide_for_a_phone(count, columns):
    figure = plots.gallery([np.zeros((4, 4, 3), np.uint8)] * count, [""] * count)
    assert figure.axes[0].get_gridspec().ncols == columns


def test_the_palette_stays_apart_for_colour_blind_readers():
    """Okabe and Ito's colours differ in lightness too, so that they are told apart even in grey (but for the grey)."""
    grey = [np.dot(mpl.colors.to_rgb(colour), [0.299, 0.587, 0.114]) for colour in plots.PALETTE[:4]]
    assert np.diff(sorted(grey)).min() > 0.04


def judged(tied=False):
    """Sixty lesions of two photographs each, and scores that know something about them."""
    lesions = np.repeat(np.arange(60), 2)
    positive = uniform("plots: positive", 60)[lesions] < 0.4
    scores = uniform("plots: scores", 120) + 0.2 * positive
    scores = scores.round(1) if tied else scores
    chances = np.stack([1 - scores / 1.3, scores / 1.3], axis=1)
    return positive, scores, Evaluation(positive, chances, lesions, ("nv", "mel"), resamples=200).weights


@pytest.mark.parametrize("tied", [False, True])
def test_the_roc_curve_encloses_the_area_and_lies_in_its_band(tied):
    positive, scores, weights = judged(tied)
    ax = plots.roc_curve(positive, scores, weights, "model")
    alarms, found = ax.lines[0].get_data()
    area = roc_auc(positive, scores, np.ones((1, len(scores))))[0]
    assert found.mean() == pytest.approx(area, abs=0.01)
    assert found[-1] == 1
    assert (np.diff(found) >= -1e-12).all()
    band = ax.collections[0].get_paths()[0].vertices
    inside = [band[np.isclose(band[:, 0], x), 1] for x in alarms[20:120:20]]
    assert all(y.min() <= f <= y.max() and y.min() < y.max() for y, f in zip(inside, found[20:120:20], strict=True))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("1 − specificity", "sensitivity")


@pytest.mark.parametrize("tied", [False, True])
def test_the_precision_recall_curve_goes_through_the_counts(tied):
    positive, scores, weights = judged(tied)
    recalls, found = plots.precision_recall_curve(positive, scores, weights).lines[0].get_data()
    assert found[-1] == pytest.approx(positive[scores >= scores[positive].min()].mean())
    half = np.sort(scores[positive])[::-1][int(np.ceil(0.5 * positive.sum())) - 1]
    assert found[np.isclose(recalls, 0.5)][0] == pytest.approx(positive[scores >= half].mean())


@pytest.mark.parametrize("curve", [plots.roc_curve, plots.precision_recall_curve])
def test_resamples_without_a_positive_have_no_curve(curve):
    positive, scores = np.arange(20) < 4, np.linspace(1, 0, 20)
    weights = np.ones((100, 20))
    weights[:4, positive] = 0
    ax = curve(positive, scores, weights)
    band = ax.collections[0].get_paths()[0].vertices
    assert band[:, 1].min() == pytest.approx(
        min(ax.lines[0].get_ydata())
    )  # as those that have one, which are all alike
    weights[:6, positive] = 0
    assert len(curve(positive, scores, weights).collections) == 0
    weights = np.ones((100, 20))
    weights[:6, ~positive] = 0  # no false alarm is possible, and all that is found is right
    assert len(curve(positive, scores, weights).collections) == (curve is plots.precision_recall_curve)


def test_curves_can_share_axes():
    positive, scores, weights = judged()
    ax = plots.roc_curve(positive, scores, weights, "one")
    assert plots.roc_curve(positive, -scores, weights, "other", ax) is ax
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["one", "other"]


def test_reliability_puts_what_happened_against_what_was_stated():
    positive, scores, weights = judged()
    chances = softmax(np.stack([np.zeros(120), scores], axis=1))[:, 1]
    ax = plots.reliability(positive, chances, weights, "model", groups=4)
    stated, seen = ax.lines[1].get_data()  # the first is the diagonal
    lowest = np.argsort(chances)[:30]
    assert (stated[0], seen[0]) == (pytest.approx(chances[lowest].mean()), pytest.approx(positive[lowest].mean()))
    assert len(stated) == 4
    assert (np.diff(stated) > 0).all()
    low, high = ax.collections[0].get_segments()[2][:, 1]
    assert low < seen[2] < high
    assert plots.reliability(positive, chances / 2, weights, "half", ax, groups=4) is ax
    assert len(ax.lines) == 3
