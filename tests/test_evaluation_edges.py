"""Metrics and intervals by hand, at the ends of what they accept."""

from dataclasses import FrozenInstanceError

import numpy as np
import pytest

from skinbook import keyed
from skinbook.config import SkinbookError
from skinbook.evaluation import (
    METRICS,
    Evaluation,
    Interval,
    accuracy,
    balanced_accuracy,
    calibration_error,
    confusion,
    difference,
    interval,
    macro_roc_auc,
    mean_interval,
    recalls,
    roc_auc,
    softmax,
)

CLASSES = ("nv", "mel", "bkl")


def a_model(count=300, lesions=120, seed=0, sure=1.0):
    labels = np.digitize(keyed.uniform(("labels", seed), count), [0.6, 0.8])
    logits = keyed.normal(("logits", seed), count * 3).reshape(count, 3)
    logits[np.arange(count), labels] += 1.0
    return labels, softmax(sure * logits), keyed.integers(("lesions", seed), count, lesions)


def binary(confidence, right):
    """Labels and probabilities of a model that is so sure of the first of two classes, and right or not."""
    p = np.array(confidence, dtype=float)
    return np.where(right, 0, 1), np.stack([p, 1 - p], axis=1)


def percentiles(draws):
    return pytest.approx(tuple(np.percentile(draws, [2.5, 97.5])), abs=1e-12)


def test_an_interval_reads_as_a_value_and_its_ends_and_cannot_be_changed():
    found = Interval(0.8351, 0.8012, 0.8777)
    assert str(found) == "0.84 [0.80, 0.88]"
    with pytest.raises(FrozenInstanceError):
        found.low = 0.0


def test_softmax_by_hand_and_of_logits_that_are_large():
    found = softmax([[0, np.log(3)], [1000, 1000], [-1000, 0]])
    assert found == pytest.approx(np.array([[0.25, 0.75], [0.5, 0.5], [0, 1]]), abs=1e-12)
    assert found.dtype == np.float64


def test_counts_are_weighted_for_every_resample():
    labels, predicted = np.array([0, 1, 2, 2]), np.array([0, 2, 2, 1])
    weights = np.array([[1.0, 1, 1, 1], [0, 2, 3, 5]])
    assert confusion(labels, predicted, 3, weights).tolist() == [
        [[1, 0, 0], [0, 0, 1], [0, 1, 1]],
        [[0, 0, 0], [0, 0, 2], [0, 5, 3]],
    ]


def test_metrics_of_resamples_that_lack_a_class_or_everything():
    labels, p = np.array([0, 1, 2]), np.array([[0.8, 0.1, 0.1], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8]])
    weights = np.array([[1.0, 1, 1], [2, 1, 0], [0, 0, 0]])
    none = [np.nan] * 3
    assert accuracy(labels, p, weights) == pytest.approx([2 / 3, 2 / 3, np.nan], nan_ok=True)
    assert recalls(labels, p, weights) == pytest.approx(np.array([[1, 0, 1], [1, 0, np.nan], none]), nan_ok=True)
    assert balanced_accuracy(labels, p, weights) == pytest.approx([2 / 3, 1 / 2, np.nan], nan_ok=True)
    # Of two photographs of nv and one of mel, nv and mel are told from the rest without fault; bkl has none.
    assert macro_roc_auc(labels, p, weights)[1:] == pytest.approx([1, np.nan], nan_ok=True)
    # The bin from 0.8 holds two that are right, the one from 0.6 one that is wrong.
    expected = [(2 * 0.2 + 0.6) / 3, (2 * 0.2 + 0.6) / 3, np.nan]
    assert calibration_error(labels, p, weights) == pytest.approx(expected, nan_ok=True)


def test_roc_auc_counts_ties_half_and_weights_every_pair():
    positive, scores = np.array([True, False, True, False]), np.array([0.9, 0.5, 0.5, 0.1])
    weights = np.array([[1.0, 1, 1, 1], [2, 3, 5, 7], [1, 0, 1, 0]])
    # Pairs: (0.9, 0.5) and (0.9, 0.1) and (0.5, 0.1) are won, (0.5, 0.5) is half won.
    by_hand = (2 * 3 + 2 * 7 + 5 * 7 + 5 * 3 / 2) / (7 * 10)
    assert roc_auc(positive, scores, weights) == pytest.approx([3.5 / 4, by_hand, np.nan], nan_ok=True)


@pytest.mark.parametrize(
    ("confidence", "right", "expected"),
    [
        ([1.0, 0.95], [False, True], (1.0 - 0.05) / 2),  # a whole certainty is in the last bin, not beyond it
        ([0.93, 0.94], [True, False], (0.07 + 0.94) / 2),  # the last bin begins at 14/15
        ([0.86, 0.87], [True, False], (0.14 + 0.87) / 2),  # and the one before at 13/15
        ([0.87, 0.93], [True, False], (0.93 - 0.13) / 2),
        ([0.6, 0.8], [True, True], (0.4 + 0.2) / 2),
    ],
)
def test_the_calibration_error_has_fifteen_bins(confidence, right, expected):
    labels, p = binary(confidence, right)
    assert calibration_error(labels, p, np.ones((1, 2)))[0] == pytest.approx(expected)


def test_a_weight_counts_in_the_calibration_error():
    labels, p = binary([0.6, 0.9], [True, False])
    assert calibration_error(labels, p, np.array([[3.0, 1.0]]))[0] == pytest.approx((3 * 0.4 + 0.9) / 4)


def test_what_an_evaluation_refuses():
    good = {"labels": [0, 1, 2], "probabilities": np.eye(3), "lesions": ["a", "b", "c"], "classes": CLASSES}
    assert Evaluation(**good).value("accuracy") == 1
    for change, words in (
        ({"labels": [], "probabilities": np.zeros((0, 3)), "lesions": []}, "no photographs to evaluate"),
        ({"probabilities": np.eye(3)[:2]}, r"shapes \(3,\), \(3, 3\) and \(3,\); got \(3,\), \(2, 3\), \(3,\)"),
        ({"probabilities": np.eye(4)}, r"got \(3,\), \(4, 4\), \(3,\)"),
        ({"probabilities": np.eye(3)[:, :2]}, r"got \(3,\), \(3, 2\)"),
        ({"lesions": ["a", "b"]}, r"got \(3,\), \(3, 3\), \(2,\)"),
        ({"lesions": ["a", "b", "c", "d"]}, r"got \(3,\), \(3, 3\), \(4,\)"),
        ({"labels": [0, 1, 3]}, "0 to 2"),
        ({"labels": [0, 1, 7]}, "0 to 2"),
        ({"labels": [-1, 1, 2]}, "0 to 2"),
        ({"labels": [-2, 1, 2]}, "0 to 2"),
        ({"probabilities": np.where(np.eye(3) > 0, np.nan, 0)}, "not a finite number"),
        ({"probabilities": np.eye(3) * 1.001}, "outside 0 to 1"),
        ({"probabilities": np.eye(3) - 0.001}, "outside 0 to 1"),
    ):
        with pytest.raises(SkinbookError, match=words):
            Evaluation(**good | change)
    assert Evaluation(**good | {"probabilities": np.eye(3) * (1 + 5e-7) - 2e-7}).value("accuracy") == 1
    assert Evaluation([0], [[0.5, 0.3, 0.2]], ["a"], CLASSES).value("accuracy") == 1


def test_a_thousand_resamples_of_seed_0_unless_others_are_asked_for():
    labels, p, lesions = a_model(50, 20)
    e = Evaluation(labels, p, lesions, CLASSES)
    assert e.weights.shape == (1000, 50)
    assert (e.weights == Evaluation(labels, p, lesions, CLASSES, resamples=1000, seed=0).weights).all()
    few = Evaluation(labels, p, lesions, CLASSES, resamples=7)
    assert few.resampled("accuracy").shape == (7,)


@pytest.mark.parametrize("lesions", [2, 3, 50])
def test_a_resample_draws_as_many_lesions_as_there_are(lesions):
    names = np.arange(lesions)
    weights = Evaluation(names % 3, np.eye(3)[names % 3], names, CLASSES, resamples=200, seed=lesions).weights
    assert (weights.sum(axis=1) == lesions).all()
    drawn = weights.mean(axis=0)
    assert drawn.min() > 0.7
    assert drawn.max() < 1.3
    assert not (weights == 1).all()


def test_one_lesion_resampled_says_nothing():
    one = Evaluation([0, 1], np.eye(3)[:2], ["L", "L"], CLASSES, resamples=5)
    assert not one.weights.any()
    assert one.weights.shape == (5, 2)


def test_a_recall_is_that_of_its_class_and_of_none_other():
    labels, p, lesions = a_model()
    e = Evaluation(labels, p, lesions, CLASSES, resamples=50)
    predicted = p.argmax(axis=1)
    for k, name in enumerate(CLASSES):
        assert e.value(f"recall of {name}") == pytest.approx((predicted[labels == k] == k).mean())
        assert e.per_class().loc[name, "recall"] == e.value(f"recall of {name}")
    for unknown in ("recall of df", "recall of ", "accuracy of nv", "zeal"):
        with pytest.raises(SkinbookError, match="is not a metric that skinbook knows; it knows accuracy"):
            e.value(unknown)


@pytest.mark.parametrize("metric", ["accuracy", "balanced accuracy", "macro F1", "macro ROC AUC", "malignant ROC AUC"])
def test_the_interval_of_a_metric_is_that_of_its_resamples(metric):
    e = Evaluation(*a_model(), CLASSES, resamples=300)
    found = e.metric(metric)
    assert found.value == e.value(metric)
    assert (found.low, found.high) == percentiles(e.resampled(metric))


def test_the_interval_of_the_calibration_error_is_mirrored_and_never_negative():
    for sure, cut in ((4.0, False), (1.1, True)):
        e = Evaluation(*a_model(sure=sure), CLASSES, resamples=300)
        value, draws = e.value("calibration error"), e.resampled("calibration error")
        low, high = np.percentile(draws, [2.5, 97.5])
        found = e.metric("calibration error")
        assert found.value == value
        assert (2 * value - high < 0) == cut
        assert found.low == (0.0 if cut else pytest.approx(2 * value - high))
        assert found.high == pytest.approx(2 * value - low)
    one = Evaluation([0, 0], [[0.7, 0.3, 0.0]] * 2, ["L", "L"], CLASSES, resamples=50).metric("calibration error")
    assert one.value == pytest.approx(0.3)
    assert np.isnan([one.low, one.high]).all()
    far = Evaluation([0] * 40, [[0.7, 0.3, 0.0]] * 40, range(40), CLASSES, resamples=50)
    assert (far.metric("calibration error").low, far.metric("calibration error").high) == pytest.approx((0.3, 0.3))


def test_the_interval_of_the_calibration_error_holds_it_where_hardly_a_resample_is_as_small():
    confidence = 0.5 + 0.5 * keyed.uniform(("c", 9, 300), 300)
    labels = (keyed.uniform(("r", 9, 300), 300) > confidence).astype(int)
    e = Evaluation(labels, np.stack([confidence, 1 - confidence], 1), range(300), ("nv", "mel"), resamples=200)
    found = e.metric("calibration error")
    assert np.percentile(e.resampled("calibration error"), 2.5) > found.value
    assert found.low < found.value == found.high


def test_each_class_has_the_interval_of_its_recall():
    e = Evaluation(*a_model(), CLASSES, resamples=300)
    table = e.per_class()
    draws = recalls(e.labels, e.probabilities, e.weights)
    for k, name in enumerate(CLASSES):
        assert tuple(table.loc[name, ["recall low", "recall high"]]) == percentiles(draws[:, k])
    assert (table["recall low"] < table["recall high"]).all()
    assert table.index.name == "class"
    counts = e.confusion()
    assert (counts.index.name, counts.columns.name) == ("true", "predicted")
    assert counts.to_numpy().dtype.kind == "i"


def test_an_interval_has_ends_where_at_most_one_resample_in_twenty_has_no_value():
    draws = np.arange(1001) / 1000
    found = interval(7.0, draws)
    assert (found.value, found.low, found.high) == (7.0, pytest.approx(0.025), pytest.approx(0.975))
    draws = np.arange(100.0)
    draws[:5] = np.nan
    assert (interval(0, draws).low, interval(0, draws).high) == percentiles(draws[5:])
    draws[5] = np.nan
    assert np.isnan([interval(0, draws).low, interval(0, draws).high]).all()


def test_a_difference_is_that_of_each_resample():
    labels, p, lesions = a_model()
    q = softmax(np.log(p) + 0.3 * keyed.normal("other", p.size).reshape(p.shape))
    a, b = (Evaluation(labels, each, lesions, CLASSES, resamples=300) for each in (p, q))
    for metric in ("accuracy", "malignant ROC AUC"):
        found = difference(a, b, metric)
        assert found.value == pytest.approx(a.value(metric) - b.value(metric), abs=1e-12)
        assert found.value != 0
        assert (found.low, found.high) == percentiles(a.resampled(metric) - b.resampled(metric))


def test_a_difference_needs_the_same_photographs_lesions_and_resamples():
    labels, p, lesions = a_model(40, 20)
    other_labels, other_lesions = labels.copy(), lesions.copy()
    other_labels[0] = (labels[0] + 1) % 3
    other_lesions[0] = 99
    a = Evaluation(labels, p, lesions, CLASSES, resamples=20)
    others = [
        Evaluation(other_labels, p, lesions, CLASSES, resamples=20),
        Evaluation(labels, p, other_lesions, CLASSES, resamples=20),
        Evaluation(labels[:-1], p[:-1], lesions[:-1], CLASSES, resamples=20),
        Evaluation(labels, p, lesions, CLASSES, resamples=20, seed=1),
        Evaluation(labels, p, lesions, CLASSES, resamples=21),
    ]
    for b in others:
        for pair in ((a, b), (b, a)):
            with pytest.raises(SkinbookError, match="same photographs, in the same order"):
                difference(*pair, "accuracy")
    assert difference(a, Evaluation(labels, p, lesions, CLASSES, resamples=20), "accuracy").value == 0


def test_the_mean_over_seeds_is_that_of_each_resample():
    values = [np.arange(101.0), np.arange(101.0)[::-1] ** 2 / 10]
    found = mean_interval(values, [1.0, 2.0])
    assert found.value == 1.5
    assert (found.low, found.high) == percentiles((values[0] + values[1]) / 2)


def test_labels_in_a_column_are_refused():
    chances = np.eye(3)[np.arange(30) % 3]
    with pytest.raises(SkinbookError, match=r"shapes \(30,\), \(30, 3\) and \(30,\); got \(30, 1\)"):
        Evaluation((np.arange(30) % 3)[:, None], chances, np.arange(30), ("a", "b", "c"))


def test_a_lesion_without_a_name_is_refused_in_a_list_too():
    with pytest.raises(SkinbookError, match="A lesion has no name"):
        Evaluation([0, 1, 0], np.eye(2)[[0, 1, 0]], ["L1", "L2", float("nan")], ("a", "b"))


def test_resamples_in_pieces_are_the_same(monkeypatch):
    rng = np.random.default_rng(0)
    chances = rng.dirichlet(np.ones(3), 40)
    labels, lesions = rng.integers(0, 3, 40), rng.integers(0, 25, 40)
    whole = Evaluation(labels, chances, lesions, ("nv", "mel", "bcc"), resamples=50)
    pieces = Evaluation(labels, chances, lesions, ("nv", "mel", "bcc"), resamples=50)
    for metric in METRICS:
        expected = whole.resampled(metric)
        with monkeypatch.context() as small:
            small.setattr("skinbook.evaluation.HELD", 7 * 40)
            np.testing.assert_allclose(pieces.resampled(metric), expected, rtol=0, atol=1e-12)
