"""A bundle gives the same answers after saving and loading, and anything else is refused."""

import json

import numpy as np
import pytest
import torch

from skinbook.bundle import Bundle
from skinbook.config import SkinbookError
from skinbook.networks import Backbone, Classifier

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


def change(folder, **keys):
    file = folder / "bundle.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **keys}))


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"format": 2}, "this skinbook reads 1"),
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
    ],
)
def test_a_bundle_that_was_changed_is_refused(tmp_path, keys, sentence):
    bundle().save(tmp_path)
    change(tmp_path, **keys)
    with pytest.raises(SkinbookError, match=sentence):
        Bundle.load(tmp_path)


def test_damaged_files_are_refused(tmp_path):
    with pytest.raises(SkinbookError, match="Name the folder of a bundle"):
        Bundle.load(tmp_path)
    bundle().save(tmp_path)
    weights = next(tmp_path.glob("weights-*"))
    data = weights.read_bytes()
    weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(SkinbookError, match=r"not the file that bundle\.json was written with"):
        Bundle.load(tmp_path)
    (tmp_path / "bundle.json").write_text("[1]")
    with pytest.raises(SkinbookError, match="no usable 'format'"):
        Bundle.load(tmp_path)
    (tmp_path / "bundle.json").write_text("{")
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
