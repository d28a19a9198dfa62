"""A bundle as ONNX answers as the bundle does, with nothing but ONNX Runtime, and nothing else passes for it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import models
import numpy as np
import pytest
import torch

from skinbook import card, onnx_model, predict_files
from skinbook.bundle import Bundle
from skinbook.config import SkinbookError
from skinbook.data import lab
from skinbook.networks import Backbone, Classifier
from skinbook.novelty import Novelty
from skinbook.onnx_model import OnnxModel

# One process draws or loads what these share (with `--dist loadgroup`, as `make unit` has it).
pytestmark = pytest.mark.xdist_group("onnx")

CLASSES = ("nv", "mel", "bkl", "bcc", "ak", "scc", "vasc", "df")


@pytest.fixture(scope="module")
def photographs():
    """Sixteen lesions of the lab as it draws them, uint8 (16, 64, 64, 3)."""
    drawn = [lab.render_example(CLASSES[k % 8], ("onnx", k), 64).image for k in range(16)]
    return np.stack(drawn)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("onnx")
    return predict_files.open_model("lab"), folder, predict_files.open_model("lab").export_onnx(folder)


def test_both_give_the_same_answers(exported, photographs):
    bundle, folder, _ = exported
    theirs = OnnxModel.load(folder)
    ours = bundle.answers(photographs)
    for count in (1, 3, 16):  # the number of photographs is free
        found = theirs.answers(photographs[:count], batch_size=7)
        np.testing.assert_allclose(found.probabilities, ours.probabilities[:count], atol=1e-4)
        np.testing.assert_allclose(found.distances, ours.distances[:count], rtol=1e-4)
    assert theirs.answers(photographs[:0]).probabilities.shape == (0, 8)
    for name in ("classes", "image", "temperature", "threshold", "definition", "about", "limit", "refused"):
        assert getattr(theirs, name) == getattr(bundle, name), name


def test_one_without_limit_and_with_an_inner_stage(tmp_path, photographs):
    torch.manual_seed(0)
    network = Classifier(Backbone("test_resnet", "lab", 8), 2)
    bundle = Bundle(network, ("benign", "malignant"), 64, temperature=0.7, threshold=0.4)
    bundle.export_onnx(tmp_path)
    theirs = OnnxModel.load(tmp_path)
    np.testing.assert_allclose(theirs.answers(photographs).probabilities, bundle.probabilities(photographs), atol=1e-4)
    assert theirs.answers(photographs).distances is theirs.limit is None


def test_a_backbone_of_many_layers(tmp_path, photographs):
    """MobileNetV2 has several maps of each size, of which one counts, and more features than directions are kept."""
    torch.manual_seed(0)
    bundle = Bundle(Classifier(Backbone("mobilenet_v2"), 2), ("nv", "mel"), 64, threshold=0.4)
    _, features = bundle.outputs(photographs)
    bundle.novelty = Novelty.fit(features, features, 0.1)
    bundle.export_onnx(tmp_path)
    ours, theirs = bundle.answers(photographs), OnnxModel.load(tmp_path).answers(photographs)
    np.testing.assert_allclose(theirs.probabilities, ours.probabilities, atol=1e-4)
    np.testing.assert_allclose(theirs.distances, ours.distances, rtol=1e-3)


def test_the_graph_measures_the_distance_where_directions_share_a_variance(photographs, monkeypatch):
    monkeypatch.setattr("skinbook.novelty.DIRECTIONS", 8)
    bundle = predict_files.open_model("lab")
    _, features = bundle.outputs(photographs)
    bundle.novelty = Novelty.fit(features, features, 0.1)
    from skinbook.bundle import FromPixels

    with torch.inference_mode():
        probabilities, distances = FromPixels(bundle).eval()(torch.from_numpy(photographs))
    expected = bundle.answers(photographs)
    np.testing.assert_allclose(distances.numpy(), expected.distances, rtol=1e-4)
    np.testing.assert_allclose(probabilities.numpy(), expected.probabilities, atol=1e-5)


def test_the_file_explains_itself_and_tells_nothing_of_the_machine(exported):
    _, folder, file = exported
    import onnxruntime

    data = file.read_bytes()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    told = session.get_modelmeta().custom_metadata_map
    held = json.loads((folder / "onnx.json").read_text(encoding="utf-8"))
    assert json.loads(told["classes"]) == held["classes"] == list(CLASSES)
    assert json.loads(told["threshold"]) == held["threshold"]
    assert json.loads(told["novelty"]) == held["novelty"]
    assert "bicubic" in told["preprocessing"]
    for word in (b"site-packages", b".py", b"stack_trace", str(Path(predict_files.__file__).parent).encode()):
        assert word not in data, word
    assert len(list(folder.iterdir())) == 2


def test_predict_runs_it_and_needs_no_torch(exported, tmp_path, monkeypatch, capsys):
    _, folder, _ = exported
    models.lesions(tmp_path, ("nv", "mel"), each=2)
    found = []
    for bundle in ("lab", folder):
        assert models.call(monkeypatch, "predict", tmp_path, "-b", bundle, "--json") == 0
        found.append(json.loads(capsys.readouterr().out)["photographs"])
    for one, other in zip(*found, strict=True):
        assert one["file"] == other["file"]
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-4)
    code = (
        "import sys; from skinbook import cli\n"
        "try: cli.main()\nfinally: print('torch' in sys.modules, 'timm' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "predict", str(tmp_path), "-b", str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.endswith("False False\n")
    assert models.call(monkeypatch, "bundle", "onnx", folder, "--to", tmp_path / "twice") == 2
    assert "an ONNX export already" in capsys.readouterr().err


def copy(exported, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(exported[1], folder)
    return folder, folder / exported[2].name


def change(folder, **keys):
    """Change the card and seal it anew, as somebody would who wants to deceive."""
    file = folder / "onnx.json"
    held = {**json.loads(file.read_text(encoding="utf-8")), **keys}
    del held["seal"]
    card.write(file, held)


def test_a_file_or_card_that_was_tampered_with_is_refused(exported, tmp_path):
    folder, file = copy(exported, tmp_path)
    data = file.read_bytes()
    file.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    with pytest.raises(SkinbookError, match=r"not the file that onnx\.json was written with"):
        OnnxModel.load(folder)
    file.write_bytes(data)
    text = (folder / "onnx.json").read_text(encoding="utf-8")
    (folder / "onnx.json").write_text(text.replace('"threshold": 0.', '"threshold": 1.'), encoding="utf-8")
    with pytest.raises(SkinbookError, match="was changed after it was saved"):
        OnnxModel.load(folder)
    file.unlink()
    (folder / "onnx.json").write_text(text, encoding="utf-8")
    with pytest.raises(SkinbookError, match="cannot be read"):
        OnnxModel.load(folder)


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"classes": ["nv", "mel"]}, "not the model that"),
        ({"image": 32}, "not the model that"),
        ({"novelty": None}, "not the model that"),
        ({"format": 9}, "Update skinbook"),
        ({"classes": ["nv", "wart"]}, "not a diagnosis"),
        ({"temperature": 0.0}, "above 0"),
        ({"model": "../model.onnx"}, "outside its folder"),
    ],
)
def test_a_card_that_does_not_fit_its_model_is_refused(exported, tmp_path, keys, sentence):
    folder, _ = copy(exported, tmp_path)
    change(folder, **keys)
    with pytest.raises(SkinbookError, match=sentence):
        OnnxModel.load(folder)


def test_what_is_no_onnx_model_is_refused(exported, tmp_path):
    folder, file = copy(exported, tmp_path)
    import hashlib

    file.write_bytes(b"not a model")
    change(folder, sha256=hashlib.sha256(b"not a model").hexdigest())
    with pytest.raises(SkinbookError, match="not a model that can be run"):
        OnnxModel.load(folder)


def test_photographs_of_another_size_are_refused(exported, photographs):
    theirs = OnnxModel.load(exported[1])
    for wrong, sentence in ((photographs[:, :32, :32], "64 pixels a side"), (photographs / 255, "must be uint8")):
        with pytest.raises(SkinbookError, match=sentence):
            theirs.answers(wrong)


def test_without_the_libraries_it_says_what_to_install(exported, tmp_path, monkeypatch):
    def absent(name):
        raise ImportError(name)

    monkeypatch.setattr("importlib.import_module", absent)
    with pytest.raises(SkinbookError, match="needs onnxruntime, which is not installed"):
        OnnxModel.load(exported[1])
    with pytest.raises(SkinbookError, match="needs onnx, which is not installed"):
        onnx_model.export(exported[0], tmp_path)
