import numpy as np
import pytest
from sklearn import metrics as reference

from skinbook import keyed
from skinbook.config import SkinbookError
from skinbook.evaluation import Evaluation, difference, macro_f1, roc_auc, softmax

CLASSES = ("nv", "mel", "bkl", "df")


def predictions(count=400, lesions=150, seed=0, ties=False):
    labels = np.digitize(keyed.uniform(("labels", seed), count), [0.6, 0.8, 0.93])
    logits = keyed.normal(("logits", seed), count * 4).reshape(count, 4)
    logits[np.arange(count), labels] += 1.0
    if ties:
        logits = np.round(logits)
    return labels, softmax(logits), keyed.integers(("lesions", seed), count, lesions)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_metrics_agree_with_scikit_learn(seed, ties):
    labels, p, lesions = predictions(seed=seed, ties=ties)
    e = Evaluation(labels, p, lesions, CLASSES)
    predicted = p.argmax(axis=1)
    assert e.value("accuracy") == pytest.approx(reference.accuracy_score(labels, predicted), abs=1e-9)
    assert e.value("balanced accuracy") == pytest.approx(reference.balanced_accuracy_score(labels, predicted), abs=1e-9)
    assert e.value("macro F1") == pytest.approx(reference.f1_score(labels, predicted, average="macro"), abs=1e-9)
    auc = reference.roc_auc_score(labels, p, multi_class="ovr", average="macro")
    assert e.value("macro ROC AUC") == pytest.approx(auc, abs=1e-9)
    assert e.value("malignant ROC AUC") == pytest.approx(reference.roc_auc_score(labels == 1, p[:, 1]), abs=1e-9)
    assert (e.confusion().to_numpy() == reference.confusion_matrix(labels, predicted)).all()
    table = e.per_class()
    precision, recall, f1, support = reference.precision_recall_fscore_support(labels, predicted, labels=range(4))
    for name, column in (("precision", precision), ("recall", recall), ("F1", f1), ("support", support)):
        assert table[name].to_numpy() == pytest.approx(column, abs=1e-9)


def test_a_resample_is_what_it_says_lesions_drawn_with_their_photographs():
    labels, p, lesions = predictions()
    e = Evaluation(labels, p, lesions, CLASSES, resamples=5)
    for r in range(5):
        for lesion in np.unique(lesions):
            assert len(set(e.weights[r][lesions == lesion])) == 1
        repeated = np.repeat(np.arange(len(labels)), e.weights[r].astype(int))
        expected = reference.balanced_accuracy_score(labels[repeated], p[repeated].argmax(axis=1))
        assert e.resampled("balanced accuracy")[r] == pytest.approx(expected, abs=1e-9)
        expected = reference.roc_auc_score(labels[repeated] == 1, p[repeated, 1])
        assert e.resampled("malignant ROC AUC")[r] == pytest.approx(expected, abs=1e-9)


def test_models_on_the_same_photographs_share_resamples_that_nobody_can_change():
    labels, p, lesions = predictions()
    e = Evaluation(labels, p, lesions, CLASSES, resamples=5)
    assert e.weights is Evaluation(labels, p[::-1], lesions.copy(), CLASSES, resamples=5).weights
    assert (e.weights != Evaluation(labels, p, lesions, CLASSES, resamples=5, seed=1).weights).any()
    assert e.weights.shape != Evaluation(labels, p, lesions[::-1], CLASSES, resamples=6).weights.shape
    with pytest.raises(ValueError, match="read-only"):
        e.weights[0, 0] = 7


def test_the_interval_over_lesions_is_wider_than_one_over_photographs():
    """Ten identical photographs of every lesion add no information, and the interval must not shrink for them."""
    labels, p, _ = predictions(count=100)
    once = Evaluation(labels, p, np.arange(100), CLASSES).metric("accuracy")
    ten = Evaluation(np.repeat(labels, 10), np.repeat(p, 10, axis=0), np.repeat(np.arange(100), 10), CLASSES).metric(
        "accuracy"
    )
    assert (ten.low, ten.high) == pytest.approx((once.low, once.high))
    naive = Evaluation(np.repeat(labels, 10), np.repeat(p, 10, axis=0), np.arange(1000), CLASSES).metric("accuracy")
    assert naive.high - naive.low < 0.5 * (once.high - once.low)


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    covered = 0
    for seed in range(200):
        right = keyed.uniform(("right", seed), 120) < 0.7
        p = np.where(right[:, None], [[0.9, 0.1]], [[0.1, 0.9]])
        interval = Evaluation(np.zeros(120, int), p, np.arange(120), ("nv", "mel"), resamples=300).metric("accuracy")
        covered += interval.low <= 0.7 <= interval.high
    assert 180 <= covered <= 199


def test_calibration_error_by_hand():
    p = np.array([[0.8, 0.2]] * 10)
    labels = np.array([0] * 5 + [1] * 5)  # 80 % sure, right half of the time
    assert Evaluation(labels, p, np.arange(10), ("nv", "mel")).value("calibration error") == pytest.approx(0.3)


def test_the_interval_of_a_small_calibration_error_holds_it():
    """A model that is right as often as it says, on a few hundred photographs."""
    confidence = 0.5 + 0.5 * keyed.uniform("confidence", 300)
    labels = (keyed.uniform("right", 300) > confidence).astype(int)
    found = Evaluation(labels, np.stack([confidence, 1 - confidence], 1), np.arange(300), ("nv", "mel")).metric(
        "calibration error"
    )
    assert 0 <= found.low <= found.value <= found.high


def test_degenerate_inputs():
    one = Evaluation([0, 0], [[0.6, 0.4], [0.3, 0.7]], ["L", "L"], ("nv", "mel"))
    assert one.value("balanced accuracy") == 0.5
    assert np.isnan(one.value("malignant ROC AUC"))
    assert np.isnan(one.metric("malignant ROC AUC").low)
    assert np.isnan(one.metric("balanced accuracy").low)
    few = Evaluation([0] * 30 + [1, 1], [[0.9, 0.1]] * 30 + [[0.1, 0.9]] * 2, [*range(30), "x", "x"], ("nv", "mel"))
    assert few.value("recall of mel") == 1
    assert np.isnan(few.metric("recall of mel").low)
    assert few.per_class()["recall low"].isna().tolist() == [False, True]
    constant = roc_auc(np.array([True, False, False]), np.ones(3), np.ones((1, 3)))
    assert constant[0] == 0.5
    absent = macro_f1(np.array([0, 1]), np.array([[0.9, 0.1, 0], [0.2, 0.8, 0]]), np.ones((1, 2)))
    assert absent[0] == 1.0


def test_a_difference_is_paired():
    labels, p, lesions = predictions()
    _, q, _ = predictions(seed=1)
    q = softmax(np.log(p) + 0.1 * np.log(q))
    a, b = Evaluation(labels, p, lesions, CLASSES), Evaluation(labels, q, lesions, CLASSES)
    paired = difference(a, b, "balanced accuracy")
    assert paired.value == pytest.approx(a.value("balanced accuracy") - b.value("balanced accuracy"))
    alone = a.metric("balanced accuracy")
    assert paired.high - paired.low < alone.high - alone.low
    zero = difference(a, a, "macro ROC AUC")
    assert (zero.value, zero.low, zero.high) == (0, 0, 0)
    with pytest.raises(SkinbookError, match="same photographs"):
        difference(a, Evaluation(labels[::-1], p, lesions, CLASSES), "accuracy")


def test_bad_predictions_are_refused():
    with pytest.raises(SkinbookError, match="shape"):
        Evaluation([0, 1], np.ones((2, 3)) / 3, ["a", "b"], ("nv", "mel"))
    with pytest.raises(SkinbookError, match="finite"):
        Evaluation([0], [[np.nan, 1]], ["a"], ("nv", "mel"))
    with pytest.raises(SkinbookError, match="outside"):
        Evaluation([2], [[0.5, 0.5]], ["a"], ("nv", "mel"))
    with pytest.raises(SkinbookError, match="not a metric"):
        Evaluation([0], [[0.5, 0.5]], ["a"], ("nv", "mel")).value("speed")
