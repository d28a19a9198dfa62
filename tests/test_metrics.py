"""Every metric is scikit-learn's to 1e-9: on random inputs, on degenerate ones, and under the weights of resampling."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from scipy.stats import spearmanr
from sklearn import metrics as reference
from sklearn.calibration import calibration_curve
from sklearn.utils.class_weight import compute_class_weight

from skinbook import evaluation, explain
from skinbook.calibration import temperature_of, threshold_for
from skinbook.evaluate_given import share
from skinbook.evaluation import CALIBRATION_BINS, METRICS, Evaluation
from skinbook.losses import class_weights

AREA = "the same answer"
CLASSES = ("nv", "mel", "bkl", "bcc", "df")
INPUTS = 20 * int(os.environ.get("SKINBOOK_INPUTS", "1"))
LITTLE = {"rel": 0, "abs": 1e-9, "nan_ok": True}
few = settings(max_examples=INPUTS, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def judged(draw, kinds=("random", "ties", "constant", "sure")) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels (n,), probabilities (n, classes) and weights (2, n): ones, and how often each was drawn; few or one class."""
    count, classes = draw(st.integers(1, 40)), draw(st.integers(2, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    labels = rng.integers(0, draw(st.integers(1, classes)), count)
    kind = draw(st.sampled_from(kinds))
    if kind == "random":
        scores = rng.random((count, classes))
    elif kind == "ties":  # many on the borders of the fifteen bins
        scores = rng.integers(0, 4, (count, classes)) + np.eye(classes)[rng.integers(0, classes, count)]
    elif kind == "constant":
        scores = np.tile(rng.integers(1, 4, classes), (count, 1))
    else:
        scores = np.eye(classes)[rng.integers(0, classes, count)]
    drawn = rng.integers(0, draw(st.sampled_from([2, 4])), count)
    return labels, scores / scores.sum(axis=1, keepdims=True), np.stack([np.ones(count), drawn]).astype(float)


# What scikit-learn says ---------------------------------------------------------------------------------------------


def quiet(function: Callable[..., Any], *given, **more) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of classes that are absent
        return function(*given, **more)


def area(positive: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> float:
    """Of what was drawn; not a number where only one kind was."""
    kept = weights > 0
    if len(np.unique(positive[kept])) < 2:
        return np.nan
    return reference.roc_auc_score(positive[kept], scores[kept], sample_weight=weights[kept])


def calibration_error(labels, probabilities, weights) -> float:
    """From scikit-learn's curve, which knows no weights, and pandas' count of each bin."""
    again = np.repeat(np.arange(len(labels)), weights.astype(int))
    confidence, right = probabilities.max(axis=1)[again], (probabilities.argmax(axis=1) == labels)[again]
    happened, said = calibration_curve(right, confidence, n_bins=CALIBRATION_BINS)
    bins = pd.cut(confidence, np.linspace(0, 1, CALIBRATION_BINS + 1), include_lowest=True)
    counts = pd.Series(bins).value_counts(sort=False).to_numpy()
    return float(np.abs(happened - said) @ counts[counts > 0] / counts.sum())


def expected(metric: str, labels, probabilities, weights) -> float:
    """A metric by scikit-learn, NaN where nothing was drawn."""
    kept, every = weights > 0, range(probabilities.shape[1])
    if not kept.any():
        return np.nan
    labels, probabilities, weights = labels[kept], probabilities[kept], weights[kept]
    given = (labels, probabilities.argmax(axis=1))
    whole = {"labels": every, "average": "macro", "zero_division": np.nan, "sample_weight": weights}
    if metric == "accuracy":
        return reference.accuracy_score(*given, sample_weight=weights)
    if metric == "balanced accuracy":
        return quiet(reference.balanced_accuracy_score, *given, sample_weight=weights)
    if metric == "macro F1":
        return quiet(reference.f1_score, *given, **whole)
    if metric == "macro ROC AUC":
        areas = [area(labels == k, probabilities[:, k], weights) for k in every]
        return quiet(np.nanmean, areas)
    assert metric == "calibration error"
    return calibration_error(labels, probabilities, weights)


# Agreement ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.holds(
    "the same answer",
    "random predictions, tied ones, constant ones, one class, weights of resampling",
    "every metric is scikit-learn's to 1e-9",
)
def test_a_metric_is_scikit_learns(metric, record_property):
    tried = []

    @few
    @given(judged())
    def agrees(found):
        labels, probabilities, weights = found
        ours = METRICS[metric](labels, probabilities, weights)
        theirs = [expected(metric, labels, probabilities, one) for one in weights]
        tried.append(np.nanmax(np.abs(ours - theirs), initial=0))
        assert ours == pytest.approx(theirs, **LITTLE)

    agrees()
    record_property("measured", f"{metric}: {len(tried)} inputs, at most {max(tried):.0e} apart")


@few
@given(judged())
def test_what_metrics_are_made_of_is_scikit_learns(found):
    labels, probabilities, weights = found
    predicted, classes = probabilities.argmax(axis=1), probabilities.shape[1]
    counts = evaluation.confusion(labels, predicted, classes, weights)
    recalls = evaluation.recalls(labels, probabilities, weights)
    areas = evaluation.roc_auc(labels == 0, probabilities[:, 0], weights)
    for k, one in enumerate(weights):
        more = {"labels": range(classes), "sample_weight": one}
        if not one.any():  # scikit-learn refuses
            assert not counts[k].any()
            assert np.isnan(recalls[k]).all()
            continue
        assert counts[k] == pytest.approx(quiet(reference.confusion_matrix, labels, predicted, **more), **LITTLE)
        each = quiet(reference.recall_score, labels, predicted, average=None, zero_division=np.nan, **more)
        assert recalls[k] == pytest.approx(each, **LITTLE)
        assert areas[k] == pytest.approx(area(labels == 0, probabilities[:, 0], one), **LITTLE)


@few
@given(judged())
def test_an_evaluation_is_scikit_learns(found):
    labels, probabilities, _ = found
    count, classes = probabilities.shape
    one = Evaluation(labels, probabilities, np.arange(count) // 2, CLASSES[:classes], resamples=1)
    for metric in METRICS:
        assert one.value(metric) == pytest.approx(expected(metric, labels, probabilities, np.ones(count)), **LITTLE)
        drawn = [expected(metric, labels, probabilities, weights) for weights in one.weights]
        assert one.resampled(metric) == pytest.approx(drawn, **LITTLE)
    ill = np.isin(np.array(CLASSES), ["mel", "bcc"])[:classes]
    malignant = area(ill[labels], probabilities[:, ill].sum(axis=1), np.ones(count))
    assert one.value("malignant ROC AUC") == pytest.approx(malignant, **LITTLE)
    more = {"labels": range(classes), "zero_division": np.nan}
    columns = quiet(reference.precision_recall_fscore_support, labels, probabilities.argmax(axis=1), **more)
    for name, column in zip(("precision", "recall", "F1", "support"), columns, strict=True):
        assert one.per_class()[name].to_numpy() == pytest.approx(column, **LITTLE)
        if name == "recall":
            assert [one.value(f"recall of {dx}") for dx in CLASSES[:classes]] == pytest.approx(column, **LITTLE)


@pytest.mark.holds(
    "the same answer", "one lesion, or one photograph", "the value is scikit-learn's, and no interval is made up"
)
@pytest.mark.parametrize("count", [1, 6])
def test_one_lesion_has_a_value_and_no_interval(count):
    labels = np.arange(count) % 2
    probabilities = np.tile([[0.6, 0.4]], (count, 1))
    one = Evaluation(labels, probabilities, ["L"] * count, ("nv", "mel"))
    for metric in METRICS:
        found = one.metric(metric)
        assert found.value == pytest.approx(expected(metric, labels, probabilities, np.ones(count)), **LITTLE)
        assert np.isnan([found.low, found.high]).all()


@few
@given(judged(), st.floats(0, 1))
def test_sensitivity_and_specificity_are_scikit_learns(found, threshold):
    labels, probabilities, weights = found
    ill, called = labels == 1, probabilities[:, 1] >= threshold
    for hits, among, kind in ((called, ill, True), (~called, ~ill, False)):
        more = {"pos_label": kind, "zero_division": np.nan, "sample_weight": weights[0]}
        value = quiet(reference.recall_score, ill, called, **more)
        assert share(hits, among, weights).value == pytest.approx(value, **LITTLE)


@few
@given(judged(), st.floats(0.01, 1))
def test_the_operating_point_is_scikit_learns(found, sensitivity):
    labels, probabilities, _ = found
    ill, scores = labels == 0, probabilities[:, 0]
    if ill.any():
        _, found_ill, thresholds = quiet(reference.roc_curve, ill, scores, drop_intermediate=False)
        assert threshold_for(sensitivity, ill, scores) == thresholds[found_ill >= sensitivity - 1e-9].max()


@pytest.mark.parametrize("present", [4, 2])
# Without a line search the optimiser stops short where a network is more than twice too unsure.
@pytest.mark.parametrize("too_sure", [0.01, 0.1, 0.3, 1.0, 4.0, 100.0])
def test_no_other_temperature_has_a_smaller_log_loss(present, too_sure):
    rng = np.random.default_rng(present)
    logits = np.round(rng.normal(size=(200, 4)), 1)
    labels = np.minimum((softmax(logits, axis=1).cumsum(axis=1) < rng.random((200, 1))).sum(axis=1), present - 1)
    logits *= too_sure

    def log_loss(log_t: float) -> float:
        return reference.log_loss(labels, softmax(logits / np.exp(log_t), axis=1), labels=range(4))

    best = minimize_scalar(log_loss, bounds=(-12, 12), method="bounded", options={"xatol": 1e-10})
    found = temperature_of(logits, labels)
    assert log_loss(np.log(found)) == pytest.approx(best.fun, rel=0, abs=1e-9)
    assert log_loss(np.log(1.05 * found)) > best.fun + 1e-5


@few
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_class_weights_are_scikit_learns(labels):
    labels = np.array([*range(5), *labels])
    theirs = compute_class_weight("balanced", classes=np.arange(5), y=labels)
    assert torch.equal(class_weights(labels, 5), torch.tensor(theirs, dtype=torch.float32))


@few
@given(st.integers(0, 2**32 - 1), st.sampled_from([3, 50]))
def test_softmax_and_the_similarity_of_maps_are_scipys(seed, levels):
    rng = np.random.default_rng(seed)
    logits = 300 * rng.normal(size=(6, 4))
    assert evaluation.softmax(logits) == pytest.approx(softmax(logits, axis=1), **LITTLE)
    maps, others = rng.integers(0, levels, (2, 6, 4, 4)).astype(float)
    maps[0] = 1
    theirs = [quiet(spearmanr, a.ravel(), b.ravel()).statistic for a, b in zip(maps, others, strict=True)]
    assert explain.similarity(maps, others) == pytest.approx(np.nan_to_num(theirs), **LITTLE)
