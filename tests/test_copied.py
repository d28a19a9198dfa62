"""The five systems as copied: their networks are the chapters', each is trained three ways, and the test is opened once."""

from __future__ import annotations

import ast
import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace as Namespace

import numpy as np
import pytest

from skinbook import chapter, copied, evaluate_given, ledger, pages, runs
from skinbook.config import SkinbookError
from skinbook.copied import KINDS, Photographs, System, Trained
from skinbook.evaluation import Interval
from skinbook.keyed import key_bits
from skinbook.networks import parameters
from skinbook.strongest import seen

# One process draws or loads what these share (with `--dist loadgroup`, as `make unit` has it).
pytestmark = pytest.mark.xdist_group("copied")

CHAPTERS = Path(__file__).resolve().parents[1] / "chapters"
CHAPTERS_OF_THEM = ("03_cnn_lstm", "04_transfer_learning", "05_binary_malignancy", "06_metadata_fusion")
TAUGHT = {
    "03_cnn_lstm": ["CNNLSTM"],
    "04_transfer_learning": ["CustomCNN"],
    "06_metadata_fusion": ["MetadataMLP", "FusionHead", "Fusion", "encoded"],
}


def definitions(code: str) -> dict[str, str]:
    return {
        node.name: ast.dump(node) for node in ast.parse(code).body if isinstance(node, ast.ClassDef | ast.FunctionDef)
    }


@pytest.mark.parametrize("name_of_chapter", TAUGHT)
def test_what_is_measured_is_what_the_chapter_teaches(name_of_chapter):
    notebook = json.loads((CHAPTERS / f"{name_of_chapter}.ipynb").read_text(encoding="utf-8"))
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    taught: dict[str, str] = {}
    for cell in cells:
        if any(f"{kind} {name}(" in cell for kind in ("class", "def") for name in TAUGHT[name_of_chapter]):
            taught |= definitions(cell)
    ours = definitions(Path(copied.__file__).read_text(encoding="utf-8"))
    for name in TAUGHT[name_of_chapter]:
        assert ours[name] == taught[name], f"{name} is another in chapter {name_of_chapter}: copy it anew"
    changed = definitions(Path(copied.__file__).read_text(encoding="utf-8").replace("0.3", "0.4"))
    assert changed["MetadataMLP"] != ours["MetadataMLP"]  # so the comparison can fail


def test_the_systems_are_as_large_as_their_authors_and_the_chapters_say(monkeypatch):
    monkeypatch.delenv("SKINBOOK_WEIGHTS", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    held = {name: ledger.read("results", "ham10000", "quick", name)["reports"] for name in CHAPTERS_OF_THEM}
    told = {
        "copied_cnn_lstm": None,  # eight classes as published, seven here: told apart below
        "copied_resnet50": held["04_transfer_learning"]["parameters of ResNet-50 as copied"]["value"],
        "copied_custom_cnn": held["04_transfer_learning"]["parameters of the custom CNN at full size"]["value"],
        "copied_binary": held["05_binary_malignancy"]["parameters as copied"]["value"],
        "copied_metadata": held["06_metadata_fusion"]["parameters as copied"]["value"],
    }
    scratch = {system.name: system for system in copied.systems("scratch")}
    full = {system.name: system for system in copied.systems("full")}
    assert {name: one.network for name, one in scratch.items()} == {name: one.network for name, one in full.items()}
    for name, many in told.items():
        network, _, weights = copied.network_of(scratch[name], 2 if scratch[name].binary else 7, 23)
        assert weights == "none (from scratch)"
        if many is None:
            network, _, _ = copied.network_of(scratch[name], 8)
            many = held["03_cnn_lstm"]["parameters as copied"]["value"]
        assert parameters(network) == many, name
    with pytest.raises(copied.NotAtHand, match="pretrained weights"):
        copied.network_of(full["copied_binary"], 2)


def test_the_page_shows_the_scores_that_are_measured():
    assert tuple(pages._list_of_systems()["metrics"]) == copied.METRICS
    assert set(pages._list_of_systems()["sizes"]) == set(copied.SIZES)


TINY = System(
    name="tiny",
    title="Tiny",
    size="scratch",
    chapter="03_cnn_lstm",
    joint="CNNLSTM",
    network="test_resnet",
    weights="none",
    image=32,
    epochs=2,
    learning_rate=1e-3,
    optimizer="adam",
    schedule="constant",
    monitor="accuracy",
)
FORM = replace(TINY, name="form", joint="Fusion", form=("age", "sex", "site", "dx_type"), augment={"flip": True})
PLAIN = replace(FORM, name="plain", form=("age", "sex", "site"), beside="form")
BINARY = replace(TINY, name="binary", joint="", binary=True, schedule="plateau", monitor="loss")


@pytest.fixture(scope="module")
def photographs(drawn_lesions):
    folder, table = drawn_lesions
    dataset = evaluate_given.dataset(evaluate_given.read_labelled(table, folder), str(table))
    draw = np.random.default_rng(0)
    dataset.table["age"] = draw.choice([np.nan, 0.0, 30.0, 70.0], len(dataset.table))
    dataset.table["sex"] = draw.choice(["female", "male"], len(dataset.table))
    dataset.table["site"] = draw.choice(["back", "face"], len(dataset.table))
    dataset.table["dx_type"] = np.where(dataset.table["dx"] == "nv", "follow_up", "histo")
    return Photographs.of(dataset)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def kept(photographs, cache, tmp_path_factory):
    """A few trainings by name, kind and seed."""
    folder = tmp_path_factory.mktemp("copied")
    wanted = ((TINY, "seen", 0), (FORM, "unseen", 0), (BINARY, "unseen", 0))
    return {
        (system.name, kind, seed): copied.load(copied.train(system, kind, seed, photographs, folder, cache))
        for system, kind, seed in wanted
    }


def test_each_kind_trains_on_as_many_photographs_and_only_one_knows_the_paired_lesions(photographs):
    lesions = photographs.dataset.table["lesion_id"].to_numpy()
    rows = photographs.rows
    known = {kind: set(lesions[rows[kind, "train"]]) | set(lesions[rows[kind, "validation"]]) for kind in KINDS}
    assert set(lesions[rows["shuffled", "test"]]) & known["shuffled"]
    assert not set(lesions[rows["unseen", "test"]]) & known["unseen"]
    assert set(lesions[rows["seen", "test"]]) <= set(lesions[rows["seen", "train"]])
    assert set(rows["seen", "test"]) <= set(rows["unseen", "test"])
    assert not set(rows["seen", "test"]) & set(rows["seen", "train"])
    many = [np.bincount(photographs.labels(TINY)[rows[kind, "train"]]) for kind in ("seen", "unseen")]
    np.testing.assert_array_equal(*many)


@pytest.mark.slow
def test_what_is_trained_is_kept_and_not_trained_again(photographs, kept, cache, tmp_path, monkeypatch):
    one = kept["form", "unseen", 0]
    assert (one.system, one.kind, one.seed) == (FORM, "unseen", 0)
    assert one.logits.shape == (len(photographs.rows["unseen", "test"]), 4)
    assert kept["binary", "unseen", 0].logits.shape == (len(photographs.rows["unseen", "test"]), 2)
    file = copied.train(TINY, "seen", 0, photographs, tmp_path, cache)
    np.testing.assert_array_equal(copied.load(file).logits, kept["tiny", "seen", 0].logits)
    assert [path.suffix for path in tmp_path.iterdir()] == [".npz"]
    monkeypatch.setattr(copied, "fit", None)  # so that training would fail
    assert copied.train(TINY, "seen", 0, photographs, tmp_path, cache) == file
    for other in (replace(TINY, epochs=3), replace(TINY, size="small")):
        assert copied.file_of(other, "seen", 0, photographs, tmp_path) != file
    assert copied.file_of(replace(TINY, title="Another"), "seen", 0, photographs, tmp_path) == file
    assert copied.file_of(TINY, "unseen", 0, photographs, tmp_path) != file


@pytest.mark.slow
def test_an_interrupted_training_ends_as_an_undisturbed_one(photographs, kept, cache, tmp_path, monkeypatch):
    fit = copied.fit

    def cut_off(*arguments, log, **options):
        def after_first(line):
            log(line)
            raise KeyboardInterrupt

        return fit(*arguments, log=after_first, **options)

    with monkeypatch.context() as once:
        once.setattr(copied, "fit", cut_off)
        with pytest.raises(KeyboardInterrupt):
            copied.train(FORM, "unseen", 0, photographs, tmp_path, cache)
    assert [file for file in tmp_path.iterdir() if file.suffix == ".npz"] == []
    again = copied.load(copied.train(FORM, "unseen", 0, photographs, tmp_path, cache))
    np.testing.assert_array_equal(again.logits, kept["form", "unseen", 0].logits)


def test_scores_that_are_damaged_are_named(photographs, tmp_path):
    file = copied.file_of(TINY, "seen", 0, photographs, tmp_path)
    one = made_up(photographs, TINY, "seen", 1.0)
    copied.keep(file, {**one.about, "system": asdict(TINY), "kind": "seen", "seed": 0}, {"logits": one.logits})
    np.testing.assert_array_equal(copied.load(file).logits, one.logits)
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(SkinbookError, match=r"tiny-scratch-seen-0.*Delete the file"):
        copied.load(file)


def test_trainings_of_another_precision_have_files_of_their_own(photographs, tmp_path, monkeypatch):
    about = [copied._own(TINY), "seen", 0, photographs.split.fingerprint, *seen(photographs.dataset, TINY.weights)]
    for precision in ("", "fp32", "bf16"):
        monkeypatch.setenv("SKINBOOK_PRECISION", precision)
        file = copied.file_of(TINY, "seen", 0, photographs, tmp_path)
        same = f"{key_bits(json.dumps(about, sort_keys=True)):016x}" in file.name
        assert same == (precision != "bf16")


def test_jobs_share_the_cores(photographs, tmp_path, monkeypatch):
    monkeypatch.delenv("SKINBOOK_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)), raising=False)
    monkeypatch.setattr(Photographs, "of", classmethod(lambda cls, dataset: photographs))
    monkeypatch.setattr("skinbook.data.catalog.load", lambda *_: photographs.dataset)
    threads = []
    monkeypatch.setattr(copied, "carried_out", lambda work, orders, jobs: threads.append(orders[0].threads) or [])
    for asked in ("", "4"):
        monkeypatch.setenv("SKINBOOK_THREADS", asked)
        with pytest.raises(SkinbookError, match="Not one of the systems"):
            copied.run("ham10000", sizes=["scratch"], jobs=2, folder=tmp_path)
    assert threads == [3, 4]


def test_a_form_without_dx_type_holds_nothing_of_it(photographs):
    rows = photographs.rows["unseen", "train"]
    table = photographs.dataset.table
    whole, plain = (copied.form_of(system, table, rows) for system in (FORM, PLAIN))
    assert (whole.shape[1], plain.shape[1]) == (7, 5)
    assert abs(whole[rows, 0].mean()) < 1e-5
    other = table.assign(dx_type="histo")
    np.testing.assert_array_equal(copied.form_of(PLAIN, other, rows), plain)
    assert copied.form_of(TINY, table, rows) is None


def made_up(photographs, system, kind, truth, seed=0):
    """Scores that are noise and so much of the truth."""
    rows = photographs.rows[kind, "test"]
    labels = photographs.labels(system)[rows]
    draw = np.random.default_rng(seed)
    number = len(photographs.classes(system))
    about = {"parameters": 5, "photographs": 7, "minutes": 1.5, "split": "s", "weights": "w", "package": "p"}
    about["precision"] = "bf16" if kind == "seen" else "fp32"
    noise = draw.normal(size=(len(rows), number))
    return Trained(system, kind, seed, noise + truth * np.eye(number)[labels], about | ledger.surroundings())


def test_the_leak_is_what_seen_has_over_unseen_on_the_same_photographs(photographs):
    truth = {"seen": 9.0, "unseen": 0.0, "shuffled": 3.0}
    own = {kind: made_up(photographs, TINY, kind, truth[kind]) for kind in KINDS}
    found = copied.reports(own, photographs)
    assert found["paired test, other photographs seen: accuracy"].value == 1
    gain = found["the leak: accuracy"]
    assert gain.value == pytest.approx(1 - found["paired test, lesions never seen: accuracy"].value)
    assert gain.low > 0
    place = [list(photographs.rows["unseen", "test"]).index(row) for row in photographs.rows["seen", "test"]]
    right = own["unseen"].logits[place].argmax(1) == photographs.labels(TINY)[photographs.rows["seen", "test"]]
    assert found["paired test, lesions never seen: accuracy"].value == pytest.approx(right.mean())
    same = own | {"seen": replace(own["seen"], logits=own["unseen"].logits[place])}
    assert copied.reports(same, photographs)["the leak: accuracy"].value == 0


def test_gains_are_paired_differences_on_the_same_lesions(photographs):
    own = {kind: made_up(photographs, TINY, kind, 1.0, seed=n) for n, kind in enumerate(KINDS)}
    found = copied.gains(own, None, photographs)
    assert list(found) == [f"other photographs of a lesion flatter the system ({m})" for m in copied.METRICS]
    gain = found["other photographs of a lesion flatter the system (accuracy)"]
    alone = copied.reports(own, photographs)["the leak: accuracy"]
    assert (gain.value, gain.low, gain.high) == (alone.value, alone.low, alone.high)


def test_dx_type_is_measured_against_the_same_system_without_it(photographs):
    own = {kind: made_up(photographs, PLAIN, kind, 0.0) for kind in KINDS}
    found = copied.gains(own, made_up(photographs, FORM, "unseen", 9.0), photographs)
    missing = 1 - copied.reports(own, photographs)["unseen lesions: accuracy"].value
    assert found["dx_type flatters the system (accuracy)"].value == pytest.approx(missing)
    assert found["dx_type flatters the system (malignant ROC AUC)"].value > 0
    assert len(found) == 2 * len(copied.METRICS)


def test_two_classes_have_a_malignant_area_too(photographs):
    own = {kind: made_up(photographs, BINARY, kind, 9.0) for kind in KINDS}
    assert copied.reports(own, photographs)["unseen lesions: malignant ROC AUC"].value == 1


@pytest.mark.slow
def test_the_whole_way_into_the_ledger_and_onto_the_page(photographs, tmp_path, monkeypatch):
    listed = tmp_path / "systems.toml"
    own = {
        key: value for key, value in vars(replace(PLAIN, epochs=1)).items() if key not in ("name", "size", "patience")
    }
    lines = [f"[systems.{name}]" for name in ("form", "plain")]
    for place, system in enumerate((FORM, PLAIN)):
        fields = {**own, "form": list(system.form), "beside": system.beside}
        fields = {key: value for key, value in fields.items() if key != "augment"}
        lines[place] += "".join(f"\n{key} = {json.dumps(value)}" for key, value in fields.items())
        lines[place] += "\naugment = { flip = true }\nscratch = {}"
    listed.write_text("\n\n".join(lines), encoding="utf-8")
    monkeypatch.setattr(Photographs, "of", classmethod(lambda cls, dataset: photographs))
    monkeypatch.setattr("skinbook.data.catalog.load", lambda *_: photographs.dataset)
    monkeypatch.setattr(ledger, "book_data", lambda *parts: tmp_path.joinpath(*parts))
    monkeypatch.setenv("SKINBOOK_CACHE", str(tmp_path / "cache"))
    (tmp_path / "results").mkdir()
    told: list[str] = []
    arguments = {"sizes": ["scratch"], "seeds": 1, "folder": tmp_path / "kept", "file": listed, "tell": told.append}
    assert copied.run("lab", **arguments) == ["form, scratch", "plain, scratch"]
    assert ledger.held("results", "lab", "full") == []
    assert not any("Recorded" in line for line in told)
    monkeypatch.setattr(copied, "fit", None)  # all is trained
    copied.run("lab", recorded=True, **arguments)
    held = ledger.read("results", "lab", "full", "plain, scratch")
    assert held["provenance"]["model"] == "Tiny"
    causes = ["other photographs of a lesion flatter", "dx_type flatters"]
    for name, many in (("form", 1), ("plain", 2)):
        claims = ledger.read("results", "lab", "full", f"{name}, scratch")["claims"]
        assert set(claims) == {f"{cause} the system ({m})" for cause in causes[:many] for m in copied.METRICS}
        for claim in claims.values():
            assert claim["verdict"] == ledger.verdict(claim["low"], claim["high"])
    monkeypatch.setattr(copied, "systems", lambda size: [FORM, PLAIN])
    file = tmp_path / "results" / "lab-full.json"
    assert (
        "holds plain, scratch as it was before" in runs._of_a_system(file, "lab", "plain, scratch")[0]
    )  # other epochs
    monkeypatch.setattr(copied, "systems", lambda size: [replace(one, epochs=1) for one in (FORM, PLAIN)])
    assert runs._of_a_system(file, "lab", "plain, scratch") == []
    assert "or remove the entry" in runs._of_a_system(file, "lab", "plain, huge")[0]
    about = {
        "systems": {"form": {"title": "With a form"}, "plain": {"title": "Without"}},
        "metrics": list(copied.METRICS),
    }
    about["sizes"] = {"scratch": {"title": "From nothing", "about": "Tiny networks."}}
    monkeypatch.setattr(pages, "_list_of_systems", lambda: about)
    text = pages.copied("lab")
    assert text.startswith("## From nothing\n\nTiny networks.")
    assert text.count("| Without |") == 3 + 3 + 3
    assert text.count("| With a form |") == 3 + 3
    assert pages._title("plain, scratch", "lab", "full") == "Without, from nothing"
    assert pages.copied("bcn20000") == "Nothing is recorded yet."


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"seeds": 0}, "expected at least one of each"),
        ({"jobs": 0}, "expected at least one of each"),
        ({"sizes": ["huge"]}, "'huge' is no size of a copied system; choose from full, small, scratch"),
        ({"only": ["copied_nothing"]}, "'copied_nothing' is not a copied system"),
        ({"file": Path("nowhere.toml")}, "nowhere.toml is not a list of systems"),
    ],
)
def test_a_wrong_wish_gets_a_sentence(options, sentence):
    with pytest.raises(SkinbookError, match=sentence):
        copied.run("lab", **options)


def test_seeds_that_contradict_each_other_are_seen(photographs, tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "book_data", lambda *parts: tmp_path.joinpath(*parts))
    (tmp_path / "results").mkdir()
    truth = [{"seen": 9.0, "unseen": 0.0, "shuffled": 1.0}, {"seen": 0.0, "unseen": 9.0, "shuffled": 1.0}]

    def recorded(seeds, **about):
        trained = {
            (kind, seed): made_up(photographs, TINY, kind, truth[which][kind], seed=seed)
            for seed, which in enumerate(seeds)
            for kind in KINDS
        }
        for (kind, _), one in trained.items():
            one.about.update(about if kind == "seen" else {})
        copied.record(TINY, trained, {}, photographs, "lab")
        return ledger.read("results", "lab", "full", TINY.key)["claims"]

    name = "other photographs of a lesion flatter the system (accuracy)"
    alike, torn = recorded([0, 0])[name], recorded([0, 1])[name]
    assert alike["verdict"] == "holds"
    assert alike["value"] == pytest.approx(np.mean([one["value"] for one in alike["seeds"].values()]))
    assert len({one["low"] for one in alike["seeds"].values()}) == 2
    assert torn["verdict"] == "undecided"
    assert [one["verdict"] for one in torn["seeds"].values()] == ["holds", "does not hold"]
    assert ledger.read("results", "lab", "full", TINY.key)["provenance"]["precision"] == "bf16, fp32"
    with pytest.raises(SkinbookError, match=r"trained with different weights: other, w\."):
        recorded([0], weights="other")


def test_a_gain_without_an_interval_is_undecided():
    assert copied._payload(Interval(0.5, np.nan, np.nan)) == {
        "verdict": "undecided",
        "value": 0.5,
        "low": None,
        "high": None,
    }


def test_what_is_judged_beside_another_waits_for_it(photographs, tmp_path):
    with pytest.raises(SkinbookError, match="plain, scratch is judged beside form, scratch, which is not trained"):
        copied._trained_before(PLAIN, 1, [FORM, PLAIN], photographs, tmp_path)
    with pytest.raises(SkinbookError, match="beside form, scratch, which is not trained"):
        copied._trained_before(PLAIN, 1, [PLAIN], photographs, tmp_path)
    assert copied._trained_before(TINY, 1, [FORM, PLAIN], photographs, tmp_path) == {}


def test_exactly_as_copied_is_what_the_chapters_recipes_say():
    full = {system.name: system for system in copied.systems("full")}
    recipes = {name: vars(chapter.recipe(name, "ham10000", "full")["recipe"]) for name in CHAPTERS_OF_THEM}
    for name, system in full.items():
        told = recipes[system.chapter]
        custom = name == "copied_custom_cnn"
        assert system.image == told["image"], name
        assert system.batch_size == told["batch_size"], name
        assert system.epochs == told["custom_epochs" if custom else "epochs"], name
        assert system.learning_rate == told["custom_rate" if custom else "learning_rate"], name
        assert system.network == ("" if custom else told["network"]), name
        if "augment" in told:
            assert system.augment == told["augment"], name
        if "weight_decay" in told:
            assert system.weight_decay == told["weight_decay"], name
    assert full["copied_resnet50"].patience == recipes["04_transfer_learning"]["patience"]
    assert recipes["03_cnn_lstm"]["hidden"] == copied.CNNLSTM(Namespace(channels=4), 2).lstm.hidden_size
    text = (CHAPTERS / "04_transfer_learning.md").read_text(encoding="utf-8")
    told = eval_free(text, "change = Augment(")
    assert full["copied_resnet50"].augment == full["copied_custom_cnn"].augment
    assert {key: list(value) if isinstance(value, tuple) else value for key, value in told.items()} == full[
        "copied_resnet50"
    ].augment


def test_what_the_page_says_of_a_size_is_so():
    told = {size: about["about"] for size, about in pages._list_of_systems()["sizes"].items()}
    numbers = {6: "six", 12: "twelve"}
    for size in ("small", "scratch"):
        (image,) = {system.image for system in copied.systems(size)}
        (epochs,) = {system.epochs for system in copied.systems(size)}
        assert f"{image} pixels" in told[size]
        assert numbers[epochs] in told[size]
    assert {(system.network, system.weights) for system in copied.systems("small")} == {("mobilenet_v2", "pretrained")}
    assert {s.precision for s in copied.systems("scratch") if s.joint != "CustomCNN"} == {"bf16"}


def eval_free(text: str, call: str) -> dict[str, object]:
    """The keywords of a call, as a chapter's text has it."""
    begin = text.index(call)
    tree = ast.parse(text[begin : text.index(")  # fmt", begin) + 1].split("=", 1)[1].strip(), mode="eval")
    assert isinstance(tree.body, ast.Call)
    return {str(word.arg): ast.literal_eval(word.value) for word in tree.body.keywords}


def test_a_system_is_left_out_where_the_device_or_the_edition_lacks_something(photographs, monkeypatch):
    full = replace(TINY, size="full")
    assert copied.left_out(full, "ham10000", "cpu") == "tiny, full: left out, since it wants a GPU."
    assert copied.left_out(full, "ham10000", "cuda") == copied.left_out(TINY, "ham10000", "cpu") == ""
    (metadata,) = [system for system in copied.systems("small") if system.name == "copied_metadata"]
    assert copied.left_out(metadata, "ham10000", "cpu") == ""
    assert "left out, since bcn20000 has no dx_type" in copied.left_out(metadata, "bcn20000", "cpu")
    monkeypatch.setattr(Photographs, "of", classmethod(lambda cls, dataset: photographs))
    monkeypatch.setattr("skinbook.data.catalog.load", lambda *_: photographs.dataset)
    told: list[str] = []
    with pytest.raises(SkinbookError, match="Not one of the systems could be trained here"):
        copied.run("lab", sizes=["full"], only=["copied_binary"], tell=told.append)
    assert told == ["copied_binary, full: left out, since it wants a GPU."]
