import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

mpl.use("Agg")
import matplotlib.pyplot as plt

from skinbook import plots
from skinbook.evaluation import Interval


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


def test_the_palette_stays_apart_for_colour_blind_readers():
    """Okabe and Ito's colours differ in lightness too, so that they are told apart even in grey (but for the grey)."""
    grey = [np.dot(mpl.colors.to_rgb(colour), [0.299, 0.587, 0.114]) for colour in plots.PALETTE[:4]]
    assert len({round(value, 2) for value in grey}) == 4
