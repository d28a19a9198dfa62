"""Commands that hand on to a part with tests of its own, and the two trainings behind the lab, on very little."""

from __future__ import annotations

import json
from functools import partial

import models
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from skinbook import bench, bench_parts, book, evaluation, lab_backbone, lab_calibration
from skinbook.data import lab, pixels
from skinbook.diagnoses import CLASSES


@pytest.fixture
def few(monkeypatch):
    """A lab of thirty-two lesions, drawn in this process."""
    monkeypatch.setattr(lab, "LESIONS", dict.fromkeys(CLASSES["lab"], 4))
    monkeypatch.setattr(lab, "cores", lambda: 1)


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """What the commands of the book ask of its functions, which do nothing here."""
    found = []

    def stand_in(name, answer):
        monkeypatch.setattr(book, name, lambda *given: (found.append((name, *given)), answer)[1])

    stand_in("build", tmp_path / "index.html")
    stand_in("on_edition", tmp_path / "copy")
    stand_in("pair", None)
    stand_in("refresh", None)
    stand_in("generate", [book.HOME / "README.md"])
    stand_in("picture", tmp_path / "chapters" / "_assets" / "diagnoses.jpg")
    stand_in("move_repository", [book.HOME / "pyproject.toml"])
    monkeypatch.setattr(book, "checkout", lambda: tmp_path)
    monkeypatch.setattr(book, "chapters", lambda home, wanted: list(wanted) or ["01_a", "02_b"])
    return found


@pytest.mark.parametrize(
    ("command", "calls", "says"),
    [
        ("build", [("build", "")], "The book is built. Open {}/index.html\n"),
        ("build --edition ham10000", [("on_edition", "ham10000"), ("build", "copy")], "Open {}/index.html\n"),
        ("pair", [("pair", "01_a", "text"), ("pair", "02_b", "text")], ""),
        ("pair 02_b --source notebook", [("pair", "02_b", "notebook")], ""),
        ("refresh 02_b", [("refresh", "02_b")], "02_b ... 0 s\n"),
        ("generate", [("generate", "")], "changed README.md\n"),
        ("picture", [("picture", "chapters/_assets/diagnoses.jpg")], "changed chapters/_assets/diagnoses.jpg\n"),
        (
            "repository https://example.org/a/b",
            [("move_repository", "https://example.org/a/b", "")],
            "pyproject.toml\n",
        ),
    ],
)
def test_the_commands_of_the_book(command, calls, says, asked, tmp_path, monkeypatch, capsys):
    assert models.call(monkeypatch, "book", *command.split()) == 0
    places = [tuple(str(part).replace(str(tmp_path), "").lstrip("/") for part in call) for call in asked]
    assert places == calls
    assert capsys.readouterr().out.endswith(says.format(tmp_path))


def test_a_source_that_is_neither_text_nor_notebook(asked, monkeypatch, capsys):
    assert models.call(monkeypatch, "book", "pair", "--source", "words") == 2
    assert capsys.readouterr().err == "skinbook: The source is 'words'; expected text or notebook.\n"
    assert asked == []


def test_the_bench_measures_what_is_asked_and_saves_it(monkeypatch, tmp_path, capsys):
    given = []
    found = [{"side": 64, "skinbook": 0.06}]
    monkeypatch.setattr(bench, "training", lambda *how: (given.append(how[:3]), [])[1])
    monkeypatch.setitem(bench_parts.PARTS, "augmentation", lambda: found)
    to = tmp_path / "bench.json"
    asked = ["--parts", "training, augmentation", "--sides", "64, 128", "--networks", "resnet18", "--device", "cpu"]
    assert models.call(monkeypatch, "bench", *asked, "--seconds", 2, "--repeats", 1, "--to", to) == 0
    ((cases, seconds, repeats),) = given
    assert [(case.source, case.side, case.network, case.precision, case.device) for case in cases] == [
        ("lab", side, "resnet18", "fp32", "cpu") for side in (64, 128)
    ]
    assert (seconds, repeats) == (2.0, 1)
    saved = json.loads(to.read_text(encoding="utf-8"))
    assert (saved["training"], saved["augmentation"]) == ([], found)
    said = capsys.readouterr().out
    assert said.splitlines() == [*bench_parts.told("augmentation", found), f"Saved as {to}."]


@pytest.mark.parametrize(
    ("option", "value", "sentence"),
    [
        ("--parts", "training,speed", "'speed' is no part of the bench; choose from training, "),
        ("--sides", "64,8", "--sides is '64,8'; expected whole numbers from 16"),
        ("--sides", "large", "--sides is 'large'; expected whole numbers from 16"),
    ],
)
def test_what_the_bench_cannot_measure(option, value, sentence, monkeypatch, capsys):
    assert models.call(monkeypatch, "bench", option, value, "--device", "cpu") == 2
    assert sentence in capsys.readouterr().err


def test_the_labs_backbone_is_trained_on_structures(tmp_path, few, monkeypatch):
    import torch
    from safetensors.torch import safe_open

    from skinbook.networks import Backbone

    file, said = tmp_path / "backbone.safetensors", []
    seen, area_of = [], evaluation.roc_auc
    monkeypatch.setattr(evaluation, "roc_auc", lambda *given: seen.append(given) or area_of(*given))
    areas = lab_backbone.pretrain(file, lesions=40, epochs=1, log=said.append)
    assert list(areas) == list(lab_backbone.LABELS)
    _, truth = lab_backbone.examples(list(range(36, 40)))  # a tenth of the lesions, which no training saw
    for number, (area, (positive, scores, _)) in enumerate(zip(areas.values(), seen, strict=True)):
        assert positive.tolist() == (truth[:, number] == 1).tolist()
        both = 0 < positive.sum() < len(positive)
        assert area == (
            pytest.approx(roc_auc_score(positive, scores), abs=6e-4) if both else pytest.approx(np.nan, nan_ok=True)
        )
    assert sum(area == area for area in areas.values()) > 3
    assert len(said) == 1
    with safe_open(file, "pt") as held:
        about, kept = held.metadata(), {key: held.get_tensor(key) for key in held.keys()}  # noqa: SIM118 - not a dict
    assert about["arch"] == lab_backbone.ARCH
    assert "structures of 40 generated lesions" in about["trained"]
    torch.manual_seed(0)
    before = Backbone(lab_backbone.ARCH).model.state_dict()
    learned = [key for key, value in kept.items() if not torch.equal(value, before[key].half())]
    assert {"running_mean", "weight"} <= {key.split(".")[-1] for key in learned}


@pytest.mark.slow
def test_a_lab_is_measured_and_recorded(tmp_path, few, monkeypatch):
    network = lab_calibration.network_scores
    monkeypatch.setattr(lab_calibration, "network_scores", partial(network, epochs=1))
    monkeypatch.setattr(lab_calibration, "metadata_auc", lambda table, dx_type=False: 0.9 if dx_type else 0.8)
    monkeypatch.setattr(lab_calibration, "backbone_scores", lambda dataset, store, seed: {"rows": len(store.pixels)})
    file = tmp_path / "calibration.json"
    found = lab_calibration.calibrate(1, tmp_path, file)
    assert json.loads(file.read_text(encoding="utf-8")) == found
    mean = {name: one["mean"] for name, one in found["measurements"].items()}
    assert mean["rows"] == len(lab.recipe(0)) == found["photographs"]
    assert (mean["malignant ROC AUC of metadata"], mean["malignant ROC AUC of metadata and dx_type"]) == (0.8, 0.9)
    assert found["measurements"]["leakage"]["aim"] == [0.05, 1.0]
    seen, unseen = (
        f"balanced accuracy, {which}" for which in ("lesions seen in training", "the same photographs unseen")
    )
    assert mean["leakage"] == pytest.approx(mean[seen] - mean[unseen], abs=1e-4)
    assert 0 <= mean["balanced accuracy on unseen lesions"] <= 1
    dataset = lab.load(tmp_path, progress=False)
    again = network(dataset, pixels.build(dataset, lab_calibration.SIZE, tmp_path), 0, epochs=1)
    assert again["leakage"] == pytest.approx(mean["leakage"], abs=1e-4)


def test_several_labs_have_a_spread(tmp_path, monkeypatch):
    monkeypatch.setattr(lab_calibration, "measure", lambda seed, cache: {"leakage": 0.1 + 0.02 * seed})
    found = lab_calibration.calibrate(3, tmp_path, tmp_path / "c.json")["measurements"]["leakage"]
    assert found["seeds"] == [0.1, 0.12, 0.14]
    assert (found["mean"], found["sd"], found["range"]) == (0.12, 0.02, [0.1, 0.14])
