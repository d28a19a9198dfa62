"""A bundle gives the same answers after saving and loading, and anything else is refused."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from skinbook import card
from skinbook.bundle import Bundle, Seen
from skinbook.config import SkinbookError
from skinbook.networks import Backbone, Classifier
from skinbook.novelty import Novelty

PHOTOGRAPHS = np.random.default_rng(0).integers(0, 256, (5, 48, 48, 3), dtype=np.uint8)
LAB = ("nv", "mel", "bkl", "bcc", "ak", "scc", "vasc", "df")


def bundle(classes=LAB, stride=None, **options):
    torch.manual_seed(0)
    return Bundle(Classifier(Backbone("test_resnet", "lab", stride), len(classes)), classes, 32, **options)


@pytest.mark.parametrize("stride", [None, 8])
def test_saved_and_loaded_it_answers_as_before(tmp_path, stride):
    before = bundle(
        stride=stride, temperature=1.7, threshold=0.3, split="abc", metrics={"accuracy": [0.8, 0.7, 0.9]}, about="lab"
    )
    after = Bundle.load(before.save(tmp_path / "b"))
    np.testing.assert_allclose(after.probabilities(PHOTOGRAPHS), before.probabilities(PHOTOGRAPHS), atol=1e-6)
    for name in ("classes", "image", "temperature", "threshold", "definition", "split", "metrics", "about"):
        assert getattr(after, name) == getattr(before, name), name
    assert after.network.backbone.mean == before.network.backbone.mean != (0.5, 0.5, 0.5)
    assert len(list((tmp_path / "b").iterdir())) == 2


def test_probabilities_are_tempered_and_follow_the_order_of_the_classes():
    plain, cool = bundle(), bundle(temperature=4.0)
    p, q = plain.probabilities(PHOTOGRAPHS), cool.probabilities(PHOTOGRAPHS)
    np.testing.assert_allclose(p.sum(axis=1), 1)
    np.testing.assert_allclose(np.log(p[:, 0] / p[:, 1]), 4 * np.log(q[:, 0] / q[:, 1]))
    assert plain.probabilities(PHOTOGRAPHS[:0]).shape == (0, 8)


def test_short_memory_makes_smaller_batches_and_no_other_answers(monkeypatch):
    one, seen = bundle(), []
    expected = one.outputs(PHOTOGRAPHS)
    forward = type(one.network.backbone).with_early_maps

    def hungry(backbone, x):
        seen.append(len(x))
        if len(x) > enough:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(backbone, x)

    monkeypatch.setattr(type(one.network.backbone), "with_early_maps", hungry)
    enough = 2
    for found, before in zip(one.outputs(PHOTOGRAPHS, 4), expected, strict=True):
        np.testing.assert_allclose(found, before, rtol=1e-4, atol=1e-5)
    assert seen == [4, 2, 2, 1]
    enough = 0
    with pytest.raises(SkinbookError, match=r"memory of cpu does not suffice for a batch of 1 .*Try a smaller network"):
        one.answers(PHOTOGRAPHS)


class Store(np.ndarray):
    """Photographs that note how many are read at once."""

    read: list[int]

    def __getitem__(self, key):
        found = np.asarray(self)[key]
        self.read.append(len(found))
        return found


def test_rows_are_read_a_batch_at_a_time_and_give_what_a_copy_gives():
    one, rows, store = bundle(), np.array([4, 0, 3]), PHOTOGRAPHS.view(Store)
    store.read = []
    for found, copied in zip(one.outputs(store, 2, rows=rows), one.outputs(PHOTOGRAPHS[rows], 2), strict=True):
        assert np.array_equal(found, copied)
    assert np.array_equal(one.answers(store, 2, rows=rows).probabilities, one.probabilities(PHOTOGRAPHS[rows], 2))
    assert store.read == [2, 1] * 2
    assert one.answers(store, rows=rows[:0]).probabilities.shape == (0, 8)
    with pytest.raises(SkinbookError, match="no photographs"):
        one.outputs(store, rows=rows[:0])


def test_what_nobody_could_open_is_not_saved(tmp_path):
    one = bundle()
    one.save(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    one.temperature = 3e6
    with pytest.raises(SkinbookError, match=r"temperature is 3000000\.0"):
        one.save(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_the_operating_point():
    sums = np.eye(8)
    assert bundle(threshold=0.5).called_malignant(sums).tolist() == [False, True, False, True, True, True, False, False]
    assert bundle(threshold=0.5, definition="mel").called_malignant(sums).sum() == 1
    assert bundle(("benign", "malignant"), threshold=0.5).called_malignant(np.eye(2)).tolist() == [False, True]
    with pytest.raises(SkinbookError, match="no operating point"):
        bundle().called_malignant(sums)


def test_a_second_bundle_takes_the_place_of_the_first(tmp_path):
    bundle().save(tmp_path)
    other = bundle()
    with torch.no_grad():
        other.network.head.bias += 1
    other.save(tmp_path)
    assert len(list(tmp_path.glob("weights-*"))) == 1
    assert torch.equal(Bundle.load(tmp_path).network.head.bias, other.network.head.bias)


def change(folder, sealed=True, **keys):
    """Change entries of a card; sealed: as if it had been saved like this."""
    file = folder / "bundle.json"
    held = {**json.loads(file.read_text(encoding="utf-8")), **keys}
    if sealed:
        del held["seal"]
        card.write(file, held)
    else:
        file.write_text(json.dumps(held), encoding="utf-8")


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"format": 3}, "this skinbook reads 2. Update skinbook"),
        ({"format": 1}, "this skinbook reads 2. Train or save the model again"),
        ({"format": "2"}, "no usable 'format'"),
        ({"classes": ["nv", "mel"]}, "does not hold a test_resnet"),
        ({"classes": ["nv", 3]}, "no usable 'classes'"),
        ({"classes": "nv mel"}, "no usable 'classes'"),
        ({"mean": [0.5]}, "no usable 'mean'"),
        ({"temperature": True}, "no usable 'temperature'"),
        ({"temperature": 0}, "expected a number above 0"),
        ({"image": 0}, "expected a number of pixels"),
        ({"network": "test_vit"}, "does not hold a test_vit"),
        ({"network": "no_such"}, "not a network that timm knows"),
        ({"weights": "../other.safetensors"}, "outside its folder"),
        ({"weights": "other.safetensors"}, "cannot be read"),
        ({"sha256": "0" * 64}, "is not the file"),
        ({"definition": "all"}, "not a definition of malignant"),
        ({"novelty": 3}, "no usable 'novelty'"),
        ({"novelty": {"limit": 3.0}}, "does not hold a test_resnet"),
        ({"novelty": {"limit": 0.0, "refused": 0.01}}, "does not hold a test_resnet"),
    ],
)
def test_a_bundle_that_was_changed_is_refused(tmp_path, keys, sentence):
    bundle().save(tmp_path)
    change(tmp_path, **keys)
    with pytest.raises(SkinbookError, match=sentence):
        Bundle.load(tmp_path)


@pytest.mark.parametrize(
    "keys", [{"temperature": 1.1}, {"threshold": 0.2}, {"definition": "mel"}, {"metrics": {"accuracy": 1.0}}]
)
def test_a_card_that_was_changed_by_hand_is_refused(tmp_path, keys):
    bundle(threshold=0.3).save(tmp_path)
    change(tmp_path, sealed=False, **keys)
    with pytest.raises(SkinbookError, match="was changed after it was saved"):
        Bundle.load(tmp_path)
    bundle(**{**keys, "threshold": 0.3}).save(tmp_path)  # in Python anything may be changed
    assert Bundle.load(tmp_path).threshold == 0.3


def test_weights_of_another_bundle_are_refused(tmp_path):
    bundle().save(tmp_path / "a")
    bundle(stride=8).save(tmp_path / "b")
    ours, theirs = (next((tmp_path / name).glob("weights-*")) for name in "ab")
    ours.write_bytes(theirs.read_bytes())
    with pytest.raises(SkinbookError, match=r"not the file that bundle\.json was written with"):
        Bundle.load(tmp_path / "a")


def test_a_card_is_strict_json_whatever_could_not_be_measured(tmp_path):
    bundle(metrics={"recall of df": [float("nan"), np.float64("inf"), np.float32(0.5)]}).save(tmp_path)
    text = (tmp_path / "bundle.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail)["metrics"]["recall of df"] == [None, None, 0.5]


def test_what_is_strange_and_what_was_seen_go_with_the_bundle(tmp_path):
    one = bundle()
    assert one.unlike(one.answers(PHOTOGRAPHS).distances) is None
    _, features = one.outputs(PHOTOGRAPHS)
    one.novelty = Novelty.fit(features, features, 0.3)
    one.seen = Seen.of(["ISIC_1", "ISIC_2"], ["HAM_1"])
    again = Bundle.load(one.save(tmp_path))
    found = again.answers(PHOTOGRAPHS)
    np.testing.assert_allclose(found.distances, one.answers(PHOTOGRAPHS).distances, rtol=1e-6)
    assert again.unlike(found.distances).sum() == 1
    assert again.unlike(np.array([np.nan, 0.0, np.inf])).tolist() == [True, False, True]
    asked = ["ISIC_2", "ISIC_3", "ISIC_4"], ["HAM_3", "HAM_1", "ISIC_1"]
    assert again.seen.knows(*asked).tolist() == [True, True, False]
    assert again.refused == 0.3
    with pytest.raises(SkinbookError, match="belongs to another network"):
        Bundle(bundle(stride=8).network, LAB, 32, novelty=one.novelty).answers(PHOTOGRAPHS)


def test_damaged_files_are_refused(tmp_path):
    with pytest.raises(SkinbookError, match="Name the folder of a bundle"):
        Bundle.load(tmp_path)
    bundle().save(tmp_path)
    weights = next(tmp_path.glob("weights-*"))
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(SkinbookError, match=r"not the file that bundle\.json was written with"):
        Bundle.load(tmp_path)
    (tmp_path / "bundle.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(SkinbookError, match="no usable 'format'"):
        Bundle.load(tmp_path)
    (tmp_path / "bundle.json").write_text("{", encoding="utf-8")
    with pytest.raises(SkinbookError, match="is not JSON"):
        Bundle.load(tmp_path)


def test_a_network_that_does_not_fit_its_classes_is_refused():
    with pytest.raises(SkinbookError, match="8 logits, and there are 2 classes"):
        Bundle(bundle().network, ("nv", "mel"), 32)
    with pytest.raises(SkinbookError, match="'wart' is not a diagnosis"):
        Bundle(bundle().network, ("nv", "wart"), 32)
    for wrong in (PHOTOGRAPHS.astype(float), PHOTOGRAPHS[:, :40], PHOTOGRAPHS[0]):
        with pytest.raises(SkinbookError, match="must be uint8"):
            bundle().probabilities(wrong)


@pytest.mark.slow
def test_nothing_is_imported_where_tensors_have_no_memory():
    """What a library makes of tensors while it is imported would have none either: torch 2.6 could train no more."""
    code = """
import sys, torch.utils._device as device
made, seen = device.DeviceContext.__init__, []
def making(self, *given):
    seen.append("timm" in sys.modules)
    made(self, *given)
device.DeviceContext.__init__ = making
from skinbook import config, predict_files
predict_files.open_model(config.book_data("lab_bundle"))
assert seen == [True], seen
"""
    subprocess.run([sys.executable, "-c", code], check=True)
