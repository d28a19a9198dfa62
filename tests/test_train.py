"""`skinbook train`: from labelled photographs to a bundle; what chooses is validation, and the test comes last."""

from __future__ import annotations

import ast
import copy
import inspect
import textwrap
from pathlib import Path

import models
import nbformat
import numpy as np
import pytest
import torch
from layouts import write_csv
from test_bundle import Store

from skinbook import calibration, evaluate_given, losses, segmentation, train_bundle
from skinbook.bundle import Bundle
from skinbook.config import SkinbookError
from skinbook.splits import lesion_split
from skinbook.train_bundle import Recipe, train
from skinbook.training import fit

# One process draws or loads what these share (with `--dist loadgroup`, as `make unit` has it).
pytestmark = pytest.mark.xdist_group("train")

CLASSES = ("nv", "mel", "bcc", "vasc")
SMALL = Recipe(image=32, epochs=2, batch_size=16)


@pytest.fixture(scope="module")
def dataset(drawn_lesions):
    folder, table = drawn_lesions
    return evaluate_given.dataset(evaluate_given.read_labelled(table, folder), str(table))


@pytest.fixture(scope="module")
def trained(dataset, tmp_path_factory):
    lines: list[str] = []
    bundle, report = train(dataset, SMALL, tmp_path_factory.mktemp("cache"), log=lines.append)
    return bundle, report, lines


def weights_of(bundle):
    return torch.cat([value.float().flatten() for value in bundle.network.state_dict().values()])


def test_a_bundle_comes_out_whole(trained, dataset, tmp_path):
    bundle, report, lines = trained
    assert bundle.classes == dataset.classes == CLASSES
    split = lesion_split(dataset.table)
    assert bundle.split == split.fingerprint
    test = dataset.table.iloc[split.rows("test")]
    assert (report.photographs, report.lesions) == (len(test), test["lesion_id"].nunique())
    assert set(bundle.metrics) >= {"accuracy", "malignant ROC AUC", "sensitivity", "specificity", "recall of mel"}
    assert bundle.metrics["accuracy"][0] == report.metrics["accuracy"].value
    assert [line.split()[1] for line in lines if line.startswith("epoch ")] == ["1", "2"]
    again = Bundle.load(bundle.save(tmp_path))
    pixels = np.zeros((2, 32, 32, 3), dtype=np.uint8)
    np.testing.assert_allclose(again.answers(pixels).distances, bundle.answers(pixels).distances, rtol=1e-5)


def test_what_was_chosen_comes_from_validation(trained, dataset):
    bundle, _, _ = trained
    split, table = lesion_split(dataset.table), dataset.table
    rows = split.rows("validation")
    from skinbook.data import pixels

    images = np.stack([np.asarray(pixels.reduce(dataset.images.image(i), (32, 32))) for i in table["image_id"]])
    found = bundle.answers(images[rows])
    ill = table["dx"].iloc[rows].isin(["mel", "bcc"]).to_numpy()
    assert bundle.called_malignant(found.probabilities)[ill].mean() >= 0.95
    above = found.probabilities[ill][:, bundle.malignant].sum(axis=1)
    assert bundle.threshold == pytest.approx(above.min() if len(above) < 20 else np.sort(above)[len(above) // 20])
    assert (found.distances > bundle.limit * (1 + 1e-6)).sum() == int(0.01 * len(rows))
    logits, _ = bundle.outputs(images[rows])
    labels = table["dx"].map(CLASSES.index).to_numpy()[rows]
    assert bundle.temperature == pytest.approx(calibration.temperature_of(logits, labels))


@pytest.mark.parametrize(
    ("label", "kept"), [(np.argmin, train_bundle.TEMPERATURES[1]), (np.argmax, train_bundle.TEMPERATURES[0])]
)
def test_a_temperature_without_end_is_bounded_and_said(trained, tmp_path, label, kept):
    """The true labels score lowest, or all of them highest. The photographs are never copied whole."""
    bundle = copy.deepcopy(trained[0])
    images = np.random.default_rng(0).integers(0, 256, (160, 32, 32, 3), dtype=np.uint8).view(Store)
    images.read, lines = [], []
    rows = {"train": np.arange(150), "validation": np.arange(100, 160)}
    with torch.no_grad():  # so that each diagnosis is the likeliest of some
        bundle.network.head.bias.sub_(torch.from_numpy(bundle.outputs(np.asarray(images))[0].mean(axis=0)))
    labels = label(bundle.outputs(np.asarray(images))[0], axis=1)
    train_bundle.choose_operating_point(bundle, images, labels, rows, SMALL, "cpu", lines.append)
    assert images.read == [60, 128, 22]
    assert bundle.temperature == kept
    assert len(lines) == 1
    assert f"so it is {kept:g}, and the probabilities are not calibrated" in lines[0]
    assert Bundle.load(bundle.save(tmp_path)).temperature == kept


def test_it_knows_what_it_has_seen_and_the_test_lesions_it_has_not(trained, dataset):
    bundle, _, _ = trained
    split, table = lesion_split(dataset.table), dataset.table
    for part, seen in (("train", True), ("validation", True), ("test", False)):
        some = table.iloc[split.rows(part)]
        assert (bundle.seen.knows(some["image_id"], some["lesion_id"]) == seen).all(), part


def test_a_loss_that_is_no_number_names_the_images(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(
        train_bundle, "fit", lambda network, batches, *_, **__: fit(network, batches, epochs=1, loss=broken, log=None)
    )

    def broken(logits, labels):
        return logits.sum() * float("nan")

    with pytest.raises(SkinbookError, match=r"epoch 1, batch 1 \(") as told:
        train(dataset, SMALL, tmp_path)
    named = str(told.value).partition("(")[2].partition(")")[0].split(", ")
    assert len(named) > 1
    assert set(named) <= set(lesion_split(dataset.table).images("train"))


def test_the_test_lesions_have_no_part_in_it(trained, dataset, tmp_path):
    """With other diagnoses and other pixels in the test part, the bundle is the same to the bit."""

    class Blank:
        def __init__(self, source, test):
            self.source, self.test = source, test

        def read(self, image_id):
            pixels = np.array(self.source.read(image_id))
            return 255 - pixels if image_id in self.test else pixels

        def path(self, image_id):
            return None

        def fingerprint(self, image_ids):
            return "blank"

    bundle, report, lines = trained
    split = lesion_split(dataset.table)
    table = dataset.table.copy()
    test = split.rows("test")
    table.loc[test, "dx"] = table["dx"].iloc[test[::-1]].to_numpy()
    changed = type(dataset)("given", table, dataset.classes, Blank(dataset.images, set(split.images("test"))))
    parts = split.parts
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_bundle, "lesion_split", lambda *given, **more: type(split)(parts, "by lesion"))
        others: list[str] = []
        other, different = train(changed, SMALL, tmp_path, log=others.append)
    assert others == lines
    assert torch.equal(weights_of(bundle), weights_of(other))
    assert (bundle.temperature, bundle.threshold, bundle.limit) == (other.temperature, other.threshold, other.limit)
    assert different.metrics["accuracy"] != report.metrics["accuracy"]


def test_an_interrupted_training_resumes(trained, dataset, tmp_path):
    bundle, _, _ = trained

    class Killed(Exception):
        pass

    def log(line):
        if line.startswith("epoch 1"):
            raise Killed

    with pytest.raises(Killed):
        train(dataset, SMALL, tmp_path, checkpoint=tmp_path / "run.safetensors", log=log)
    assert (tmp_path / "run.safetensors").is_file()
    lines: list[str] = []
    resumed, _ = train(dataset, SMALL, tmp_path, checkpoint=tmp_path / "run.safetensors", log=lines.append)
    assert [line.split()[1] for line in lines if line.startswith("epoch ")] == ["2"]
    assert f"going on from {tmp_path / 'run.safetensors'}" in lines
    assert torch.equal(weights_of(bundle), weights_of(resumed))
    with pytest.raises(SkinbookError, match="belongs to another run"):
        train(dataset, Recipe(image=32, epochs=3, batch_size=16), tmp_path, checkpoint=tmp_path / "run.safetensors")


class Hungry(torch.nn.Module):
    """In evaluation memory does not suffice for more than so many photographs."""

    def __init__(self, inner, enough=10):
        super().__init__()
        self.inner, self.enough = inner, enough

    def forward(self, x):
        if not self.training and len(x) > self.enough:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.inner(x)


def test_a_training_does_not_end_for_want_of_memory_on_validation(trained, dataset, tmp_path, monkeypatch):
    """Batches of validation, and of what comes after the training, are larger than those of `batch_size` that a reader sets."""
    bundle, _, _ = trained
    made = train_bundle.Backbone

    def hungry(*given):
        backbone = made(*given)
        backbone.model.conv1 = Hungry(backbone.model.conv1)
        return backbone

    monkeypatch.setattr(train_bundle, "Backbone", hungry)
    again, _ = train(dataset, SMALL, tmp_path)
    torch.testing.assert_close(weights_of(again), weights_of(bundle))
    assert again.threshold == pytest.approx(bundle.threshold, rel=1e-3)
    assert again.limit == pytest.approx(bundle.limit, rel=1e-3)


def test_the_command(drawn_lesions, tmp_path, monkeypatch, capsys):
    folder, table = drawn_lesions
    monkeypatch.setenv("SKINBOOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SKINBOOK_DEVICE", "cpu")
    to = tmp_path / "mine"
    arguments = ["train", "--table", table, "--images", folder, "--to", to, "--image", "32", "--epochs", "1"]
    assert models.call(monkeypatch, *arguments) == 0
    said = capsys.readouterr()
    assert "epoch 1 " in said.err
    assert "On the test lesions" in said.out
    assert f"Saved in {to}" in said.out
    assert "teaching tool" in said.out
    assert models.call(monkeypatch, "evaluate", "-b", to, "--table", table, "--images", folder) == 1
    assert "--unseen leaves them out" in capsys.readouterr().out
    assert models.call(monkeypatch, "evaluate", "-b", to, "--table", table, "--images", folder, "--unseen") == 0
    card = Bundle.load(to)
    assert f"accuracy           {card.metrics['accuracy'][0]:.3f}" in capsys.readouterr().out  # the same test lesions
    assert models.call(monkeypatch, "bundle", "show", to) == 0
    assert '"split": "' + card.split in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--table", "t.csv"], "need both"),
        (["--epochs", "0"], "at least 16 pixels and at most 2048, 1 epoch"),
        (["--sensitivity", "95"], "shares between 0 and 1"),
        (["--network", "resnet99"], "not a network that timm knows"),
        (["--edition", "moles"], "not an edition"),
        (["--weights", "best"], "expected none, pretrained or lab"),
        (["--to", "{table}/b"], "cannot be made a folder"),
    ],
)
def test_usage(drawn_lesions, tmp_path, monkeypatch, capsys, options, sentence):
    folder, table = drawn_lesions
    monkeypatch.setenv("SKINBOOK_CACHE", str(tmp_path))
    options = [option.format(table=table) for option in options]
    if not {"--table", "--edition"} & set(options):
        options = [*options, "--table", table, "--images", folder]
    assert models.call(monkeypatch, "train", "--to", tmp_path / "b", *options) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.glob("b/*"))


@pytest.mark.skipif(
    not Path("/proc/self").is_dir(), reason="no folder here in which not even an administrator can write"
)
def test_a_folder_that_nothing_can_be_saved_in_is_refused_before_the_training(
    drawn_lesions, tmp_path, monkeypatch, capsys
):
    folder, table = drawn_lesions
    monkeypatch.setenv("SKINBOOK_CACHE", str(tmp_path))
    monkeypatch.setattr(train_bundle, "train", lambda *_, **__: pytest.fail("an hour of training would be lost"))
    assert models.call(monkeypatch, "train", "--to", "/proc", "--table", table, "--images", folder) == 2
    assert "/proc cannot be made a folder to write in" in capsys.readouterr().err


def test_too_few_lesions(drawn_lesions, tmp_path, monkeypatch):
    folder, _ = drawn_lesions
    monkeypatch.setattr(train_bundle, "fit", lambda *_, **__: pytest.fail("an hour of training would be lost"))
    header = ["image", "lesion_id", "dx"]
    for rows, sentence in (
        ([[f"DRAWN_nv_{k:03d}_0", f"L{k}", "nv"] for k in range(9)], "only the diagnosis nv"),
        ([[f"DRAWN_{dx}_000_0", dx, dx] for dx in CLASSES], "too few to train, choose and judge"),
        ([[f"DRAWN_{dx}_{k:03d}_0", f"{dx}{k}", dx] for dx in ("nv", "vasc") for k in range(9)], "is malignant"),
    ):
        labelled = evaluate_given.read_labelled(write_csv(tmp_path / "t.csv", header, rows), folder)
        with pytest.raises(SkinbookError, match=sentence):
            train(evaluate_given.dataset(labelled, "t.csv"), Recipe(image=16, epochs=1), tmp_path)


def tree(source: str) -> str:
    """The syntax tree of one function, as text, without its docstring."""
    found = ast.parse(textwrap.dedent(source)).body[0]
    if ast.get_docstring(found) is not None:
        found.body = found.body[1:]
    return ast.dump(found)


@pytest.mark.parametrize(
    ("chapter", "used"),
    [
        ("05_binary_malignancy", calibration.temperature_of),
        ("05_binary_malignancy", calibration.threshold_for),
        ("08_segmentation", losses.dice_loss),
        ("08_segmentation", segmentation.iou),
    ],
)
def test_what_a_chapter_teaches_is_what_is_used(chapter, used):
    chapters = Path(__file__).resolve().parent.parent / "chapters"
    notebook = nbformat.read(chapters / f"{chapter}.ipynb", as_version=4)
    name = used.__name__
    taught = [
        node
        for cell in notebook.cells
        if cell.cell_type == "code" and f"def {name}(" in cell.source
        for node in ast.parse(cell.source).body
        if getattr(node, "name", None) == name
    ]
    assert len(taught) == 1
    assert tree(ast.unparse(taught[0])) == tree(inspect.getsource(used))
