"""The strongest model: validation chooses, the test is opened once, and what is trained is not trained again."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from skinbook import evaluate_given, ledger, strongest, strongest_masks
from skinbook.bundle import Bundle
from skinbook.config import SkinbookError
from skinbook.data import catalog, lab
from skinbook.diagnoses import CLASSES as CLASSES_OF
from skinbook.evaluation import softmax
from skinbook.keyed import key_bits
from skinbook.strongest import ENSEMBLE, OWN, SINGLE, Chosen, Entrant, Lesions, Plan, Trained

# One process draws or loads what these share (with `--dist loadgroup`, as `make unit` has it).
pytestmark = pytest.mark.xdist_group("strongest")

CLASSES = ("nv", "mel", "bcc", "vasc")
TINY = Entrant("tiny", "test_resnet", "lab", 32, 2, 1e-3, batch_size=16, average=0.9)


@pytest.fixture(scope="module")
def lesions(drawn_lesions):
    folder, table = drawn_lesions
    return Lesions.of(evaluate_given.dataset(evaluate_given.read_labelled(table, folder), str(table)))


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def kept(lesions, cache, tmp_path_factory):
    return strongest.train(TINY, 0, lesions, tmp_path_factory.mktemp("strongest"), cache)


def made_up(
    lesions: Lesions, name: str, validation: float, test: float, seed: int = 0, weights: str = "file"
) -> Trained:
    """Scores that are noise and so much of the truth, on validation and on test."""
    draw = np.random.default_rng([seed, *name.encode()])
    scores = {}
    for part, truth in (("validation", validation), ("test", test)):
        labels = lesions.labels[lesions.rows[part]]
        noise = draw.normal(size=(len(labels), len(CLASSES)))
        for view in strongest.VIEWS:
            scores[part, view] = noise + truth * np.eye(len(CLASSES))[labels]
    about = {
        "weights": weights,
        "split": lesions.split.fingerprint,
        "minutes": 1.5,
        "package": "p",
        "code": "c",
        "precision": "bf16" if name == "other" else "fp32",
        **ledger.surroundings(),
    }
    return Trained(replace(TINY, name=name), seed, scores, about, Path("none"))


def test_what_is_trained_is_kept_and_not_trained_again(lesions, kept, cache, monkeypatch):
    found = strongest.load(kept)
    assert (found.entrant, found.seed, found.about["weights"]) == (TINY, 0, "lab backbone")
    assert {key: scores.shape for key, scores in found.scores.items()} == {
        (part, view): (len(lesions.rows[part]), len(CLASSES)) for part in strongest.PARTS for view in strongest.VIEWS
    }
    assert sorted(file.suffix for file in kept.parent.iterdir()) == [".npz", ".safetensors"]
    monkeypatch.setattr(strongest, "fit", None)  # so that training would fail
    assert strongest.train(TINY, 0, lesions, kept.parent, cache) == kept
    for other in (replace(TINY, epochs=3), replace(TINY, strength=0.5)):
        assert strongest.file_of(other, 0, lesions, kept.parent) != kept
    assert strongest.file_of(TINY, 1, lesions, kept.parent) != kept
    with monkeypatch.context() as other:
        other.setenv("SKINBOOK_PRECISION", "bf16")
        assert strongest.file_of(TINY, 0, lesions, kept.parent) != kept


def test_an_interrupted_training_ends_as_an_undisturbed_one(lesions, kept, cache, tmp_path, monkeypatch):
    fit = strongest.fit

    def cut_off(*arguments, log, **options):
        def after_first(line):
            log(line)
            raise KeyboardInterrupt

        return fit(*arguments, log=after_first, **options)

    monkeypatch.setattr(strongest, "fit", cut_off)
    with pytest.raises(KeyboardInterrupt):
        strongest.train(TINY, 0, lesions, tmp_path, cache)
    assert [file.suffix for file in tmp_path.iterdir() if file.suffix == ".npz"] == []
    monkeypatch.setattr(strongest, "fit", fit)
    lines: list[str] = []
    whole, again = (
        strongest.load(kept),
        strongest.load(strongest.train(TINY, 0, lesions, tmp_path, cache, log=lines.append)),
    )
    assert [line.split()[1] for line in lines if line.startswith("epoch ")] == ["2"]
    for key, scores in whole.scores.items():
        np.testing.assert_array_equal(again.scores[key], scores)
    assert again.about["minutes"] > 0


def test_scores_that_are_damaged_are_named(kept, tmp_path):
    damaged = tmp_path / "scores.npz"
    damaged.write_bytes(kept.read_bytes()[:-200])
    with pytest.raises(SkinbookError, match=r"scores\.npz.*Delete"):
        strongest.load(damaged)
    whole = kept.read_bytes()
    flags = whole.index(b"PK\1\2") + 8
    encrypted = [whole[:flags] + flag + whole[flags + 1 :] for flag in (b"\x01", b"\x20", b"\x40")]
    for data in (b"", whole[:40], *encrypted):
        damaged.write_bytes(data)
        with pytest.raises(SkinbookError, match=r"scores\.npz.*Delete"):
            strongest.load(damaged)


def test_a_clock_that_a_copy_has_cut_off_begins_anew(tmp_path):
    file = tmp_path / "x.minutes"
    file.write_text("2.5", encoding="utf-8")
    assert strongest.Clock(file).before == 2.5
    file.write_text("", encoding="utf-8")
    assert strongest.Clock(file).keep() < 0.1


def test_other_photographs_of_the_same_names_are_trained_on_anew(lesions, tmp_path, monkeypatch):
    """HAM10000 in another size has the same names and the same split; so has the lab after its code was changed."""

    def names():
        outline = strongest_masks.Outliner(weights="lab")
        found = [strongest.file_of(one, 0, lesions, tmp_path) for one in (TINY, replace(TINY, weights="none"))]
        return [path.name for path in found] + lesions.seen(outline.weights, "masks")

    before = names()
    assert before == names()
    monkeypatch.setattr(type(lesions.dataset.images), "fingerprint", lambda self, ids: "others")
    assert not set(before[:2]) & set(names()[:2])
    monkeypatch.undo()
    backbone = tmp_path / "lab_backbone.safetensors"
    backbone.write_bytes(b"trained anew")
    monkeypatch.setattr(strongest, "book_data", lambda name: tmp_path / name)
    assert [a == b for a, b in zip(before[:2], names()[:2], strict=True)] == [False, True]


def test_a_bundle_without_its_weights_says_what_to_bring(lesions, kept, cache, tmp_path):
    for data in (None, b"damaged"):
        weights = tmp_path / "of.safetensors"
        if data is not None:
            weights.write_bytes(data)
        with pytest.raises(SkinbookError, match=r"of\.safetensors cannot be read .*Bring them .*or delete of\.npz"):
            strongest.bundle_of(replace(strongest.load(kept), weights=weights), lesions, cache)


def test_a_bundle_that_cannot_be_saved_is_told_before_the_training_and_one_that_is_not_made_after_it(
    lesions, tmp_path, monkeypatch
):
    monkeypatch.setattr("skinbook.data.catalog.load", lambda *_: lesions.dataset)
    monkeypatch.setattr(strongest, "load", lambda kept: made_up(lesions, "other", 1, 1))
    (tmp_path / "taken").touch()
    monkeypatch.setattr(strongest, "carried_out", lambda *_: pytest.fail("a training was begun"))
    with pytest.raises(SkinbookError, match="taken cannot be made a folder to write in"):
        strongest.run("lab", 1, bundle=tmp_path / "taken", folder=tmp_path)
    monkeypatch.setattr(strongest, "carried_out", lambda *_: [("kept", "")])
    told = []
    strongest.run("lab", 1, bundle=tmp_path / "b", folder=tmp_path, tell=told.append)
    assert told[-1] == "No model that began with the book's own weights was trained, so no bundle is saved."


def test_an_ensemble_names_every_machine_of_its_members(lesions, tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "book_data", lambda *parts: tmp_path.joinpath(*parts))
    here, there = made_up(lesions, "a", 2, 2), made_up(lesions, "b", 2, 2)
    gpu = {"accelerator": "a GPU", "cores": 16, "cpu": "another"}
    there = replace(there, about={**there.about, "hardware": gpu})
    strongest.record({ENSEMBLE: {seed: Chosen((here, there)) for seed in (0, 1)}}, lesions, "lab")
    about = ledger.read("results", "lab", "full", ENSEMBLE)["provenance"]
    assert ledger.machines(about) == [here.about["hardware"], gpu]
    assert "a GPU" in ledger.provenance_line(about, "lab", "full")
    assert about["versions"] == here.about["versions"]


def test_a_model_without_its_weights_or_its_device_is_left_out(lesions, cache, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.delenv("SKINBOOK_WEIGHTS", raising=False)
    with pytest.raises(strongest.NotAtHand, match=r"tiny is left out.*pretrained weights"):
        strongest.train(replace(TINY, weights="pretrained"), 0, lesions, tmp_path, cache)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(strongest.Lesions, "of", classmethod(lambda cls, dataset: lesions))
    monkeypatch.setattr("skinbook.data.catalog.load", lambda *_: lesions.dataset)
    order = strongest.Order(replace(TINY, device="cuda"), 0, "lab", tmp_path, torch.get_num_threads(), "cpu")
    assert strongest.carry_out(order) == (None, "tiny is left out: it is for a machine with cuda.")


def test_validation_chooses_whatever_the_test_would_say(lesions):
    honest, lucky = made_up(lesions, "honest", 3, 0), made_up(lesions, "lucky", 0.5, 9)
    wanted = Plan((), ensemble=2)
    chosen = strongest.choose([lucky, honest], lesions, wanted)
    assert chosen[SINGLE][0].members == (honest,)
    # With the truth of the test in the hands of the other one, nothing changes.
    other = strongest.choose([made_up(lesions, "lucky", 0.5, 0), honest], lesions, wanted)
    assert other[SINGLE][0].members == (honest,)
    assert [m.entrant.name for m in chosen[ENSEMBLE][0].members] == [m.entrant.name for m in other[ENSEMBLE][0].members]


def test_the_mean_over_seeds_chooses_a_model_and_own_weights_are_apart(lesions):
    steady = [made_up(lesions, "steady", 2, 1, seed) for seed in (1, 0)]
    once = [made_up(lesions, "once", 9, 1, 0), made_up(lesions, "once", 0, 1, 1)]
    own = [made_up(lesions, "own", 1, 1, 0, strongest.SCRATCH)]
    chosen = strongest.choose([*steady, *once, *own], lesions, Plan(()))
    assert {seed: one.members[0] for seed, one in chosen[SINGLE].items()} == {0: steady[1], 1: steady[0]}
    assert [one.members[0] for one in chosen[OWN].values()] == own
    assert OWN not in strongest.choose(steady, lesions, Plan(()))


def test_an_ensemble_takes_whom_helps_and_no_more(lesions):
    several = [made_up(lesions, f"model {k}", 1.0, 1.0) for k in range(5)]
    metric = "macro ROC AUC"
    found = strongest.ensemble(several, lesions, metric, 3)
    values = [
        strongest.by_validation(Chosen(found.members[:count]), lesions, metric)
        for count in range(1, len(found.members) + 1)
    ]
    assert 1 < len(found.members) <= 3
    assert values == sorted(set(values))
    assert values[0] == max(strongest.by_validation(Chosen((one,)), lesions, metric) for one in several)
    assert strongest.ensemble([several[0]], lesions, metric, 3).members == (several[0],)
    both = Chosen(tuple(several[:2])).scores("test")
    mean = np.mean([softmax(one.scores["test", "four views"]) for one in several[:2]], axis=0)
    np.testing.assert_allclose(softmax(both), mean)


def test_the_test_is_judged_with_what_validation_gave(lesions):
    sharp = made_up(lesions, "sharp", 2, 2)
    for key in sharp.scores:
        sharp.scores[key][:] *= 20  # far too sure of itself
    found = strongest.reports(Chosen((sharp,)), lesions)
    labels, prior = lesions.labels[lesions.rows["test"]], lesions.prior.double().numpy()
    scores = sharp.scores["test", "four views"]
    recalls = [np.mean(scores[labels == k].argmax(axis=1) == k) for k in range(len(CLASSES))]
    assert found["balanced accuracy"].value == pytest.approx(np.mean(recalls))
    assert found["accuracy"].value == pytest.approx(np.mean((scores + prior).argmax(axis=1) == labels))
    assert found["temperature"].value > 2
    assert found["balanced accuracy, four views less one"].value == 0  # the views are the same here
    assert found["recall of mel"].value == pytest.approx(recalls[lesions.dataset.classes.index("mel")])


def test_what_is_left_of_the_prior_in_the_scores_is_taken_off(lesions):
    lesions = mostly_nevi(lesions)
    whole = made_up(lesions, "one", 1, 1)
    assert strongest.equally_frequent(whole, lesions) is whole
    half = half_adjusted(whole, lesions)
    found = strongest.reports(Chosen((strongest.equally_frequent(half, lesions),)), lesions)
    for name, wanted in strongest.reports(Chosen((whole,)), lesions).items():
        assert vars(found[name]) == pytest.approx(vars(wanted), nan_ok=True)
    untouched = strongest.reports(Chosen((half,)), lesions)
    assert untouched["balanced accuracy"].value != found["balanced accuracy"].value


def mostly_nevi(lesions: Lesions) -> Lesions:
    train = lesions.rows["train"]
    rare = [np.flatnonzero(lesions.labels[train] == k)[:2] for k in range(1, len(CLASSES))]
    few = np.concatenate([np.flatnonzero(lesions.labels[train] == 0), *rare])
    return replace(lesions, rows={**lesions.rows, "train": train[few]})


def half_adjusted(one: Trained, lesions: Lesions) -> Trained:
    """The same answer from a network whose loss took off half of the prior."""
    scores = {key: found + lesions.prior.double().numpy() / 2 for key, found in one.scores.items()}
    return replace(one, entrant=replace(one.entrant, strength=0.5), scores=scores)


def test_jobs_share_the_cores_and_choices_see_equal_classes(lesions, tmp_path, monkeypatch):
    monkeypatch.delenv("SKINBOOK_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)), raising=False)
    lesions = mostly_nevi(lesions)
    monkeypatch.setattr(strongest.Lesions, "of", classmethod(lambda cls, dataset: lesions))
    monkeypatch.setattr("skinbook.data.catalog.load", lambda *_: lesions.dataset)
    whole, threads, choices = made_up(lesions, "one", 1, 1), [], []

    def carried_out(work, orders, jobs):
        threads.append({order.threads for order in orders})
        return [(tmp_path, "")]

    monkeypatch.setattr(strongest, "carried_out", carried_out)
    monkeypatch.setattr(strongest, "load", lambda file: half_adjusted(whole, lesions))
    monkeypatch.setattr(strongest, "choose", lambda kept, *_: choices.append(kept[0].scores) or {})
    strongest.run("lab", jobs=2, folder=tmp_path)
    monkeypatch.setenv("SKINBOOK_THREADS", "4")
    strongest.run("lab", jobs=2, folder=tmp_path)
    assert threads == [{3}, {4}]
    for key, scores in whole.scores.items():
        np.testing.assert_allclose(choices[0][key], scores)


def test_choices_go_into_the_ledger(lesions, tmp_path, monkeypatch):
    monkeypatch.setattr(ledger, "book_data", lambda *parts: tmp_path.joinpath(*parts))
    monkeypatch.setenv("SKINBOOK_CACHE", str(tmp_path / "cache"))
    trained = [made_up(lesions, name, 1, 1, seed) for name in ("one", "other") for seed in range(3)]
    trained = [replace(one, about={**one.about, "precision": ("fp32", "bf16", "fp32")[one.seed]}) for one in trained]
    chosen = strongest.choose(trained, lesions, Plan((), ensemble=3))
    strongest.record(chosen, lesions, "ham10000")
    told = json.loads((tmp_path / "results" / "ham10000-full.json").read_text(encoding="utf-8"))["chapters"]
    assert set(told) == {SINGLE, ENSEMBLE}
    single, together = told[SINGLE], told[ENSEMBLE]
    assert single["provenance"]["minutes"] == {"0": 1.5, "1": 1.5, "2": 1.5}
    assert len(single["reports"]["balanced accuracy"]["seeds"]) == 3
    assert "(seed " in together["provenance"]["model"]
    assert single["provenance"]["split"] == lesions.split.fingerprint
    used = {
        name: [", ".join(dict.fromkeys(m.about["precision"] for m in one.members)) for one in of_seed.values()]
        for name, of_seed in chosen.items()
    }
    assert {name: told[name]["provenance"]["precision"] for name in told} == {
        name: ledger.one_or_all(precisions) for name, precisions in used.items()
    }
    assert used[SINGLE] == ["fp32", "bf16", "fp32"]


def test_a_bundle_of_it_says_the_same(lesions, kept, cache, tmp_path):
    trained = strongest.load(kept)
    bundle, report = strongest.bundle_of(trained, lesions, cache)
    assert Bundle.load(bundle.save(tmp_path)).metrics == bundle.metrics == report.measured()
    from skinbook.data import pixels

    images = pixels.build(lesions.dataset, TINY.image, cache).pixels[lesions.rows["test"]]
    logits, _ = bundle.outputs(images)
    wanted = trained.scores["test", "one view"] + lesions.prior.numpy()
    np.testing.assert_allclose(logits, wanted, atol=2e-2)  # the scores are kept as float16
    assert bundle.threshold is not None
    assert bundle.novelty is not None
    assert "seed 0" in bundle.about


def test_a_bundle_s_choices_are_told(lesions, kept, cache, monkeypatch):
    """That a network cannot be calibrated was kept from whoever saved the strongest one."""
    told = []
    monkeypatch.setattr("skinbook.train_bundle.temperature_of", lambda logits, labels: 1e9)
    strongest.bundle_of(strongest.load(kept), lesions, cache, log=told.append)
    assert ["no usable temperature" in line for line in told] == [True]


def test_the_book_s_list_of_models_can_be_read(tmp_path):
    wanted = strongest.plan()
    assert wanted.choices.keys() == {SINGLE, OWN, ENSEMBLE, strongest_masks.NAME}
    assert len({one.name for one in wanted.entrants}) == len(wanted.entrants)
    wrong = tmp_path / "models.toml"
    wrong.write_text('[models."x"]\nnetwork = "resnet18"\nepoch = 3\n', encoding="utf-8")
    for text in (wrong.read_bytes(), b"models = 3", b"[[models]]", b"# \xe4", b"models = {x = 3}"):
        wrong.write_bytes(text)
        with pytest.raises(SkinbookError, match=r"models\.toml is not a list of models.*Restore"):
            strongest.plan(wrong)


def test_an_outline_s_name_follows_its_precision(lesions, tmp_path, monkeypatch):
    monkeypatch.delenv("SKINBOOK_PRECISION", raising=False)
    recipe = strongest_masks.Outliner()
    of = [asdict(recipe), 0, lesions.split.fingerprint, *lesions.seen("lab", "masks")]
    known_by = key_bits(json.dumps(of, sort_keys=True))
    kept = tmp_path / f"outline-0-{known_by:016x}.json"
    kept.touch()

    def decoded(*_):
        raise InterruptedError("it would be trained")

    monkeypatch.setattr(strongest_masks.pixels, "build", decoded)
    for precision in ("", "bf16"):
        monkeypatch.setenv("SKINBOOK_PRECISION", precision)
        assert strongest_masks.train(recipe, 0, lesions, tmp_path, tmp_path) == kept
    monkeypatch.setenv("SKINBOOK_PRECISION", "fp32")
    with pytest.raises(InterruptedError):
        strongest_masks.train(recipe, 0, lesions, tmp_path, tmp_path)
    monkeypatch.setenv("SKINBOOK_PRECISION", "fp16")
    with pytest.raises(SkinbookError, match="not trained in fp16: set SKINBOOK_PRECISION to fp32, bf16 or auto"):
        strongest_masks.train(recipe, 0, lesions, tmp_path, tmp_path)


@pytest.mark.slow
def test_an_outline_is_learned_kept_and_judged(tmp_path, monkeypatch):
    monkeypatch.setenv("SKINBOOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(lab, "LESIONS", dict.fromkeys(CLASSES_OF["lab"], 6))  # the whole lab takes minutes to draw
    whole = catalog.load("lab")
    monkeypatch.setattr(ledger, "book_data", lambda *parts: tmp_path.joinpath(*parts))
    some = whole.table.groupby("dx").head(12)
    few = replace(whole, table=some.reset_index(drop=True))
    monkeypatch.setattr("skinbook.data.catalog.load", lambda *_: few)
    recipe = strongest_masks.Outliner("test_resnet", "lab", 32, (16, 16, 8, 8, 8), epochs=2, learning_rate=3e-3)
    lines: list[str] = []
    about = {"recipe": recipe, "folder": tmp_path / "kept", "tell": lines.append}
    files = strongest_masks.run("ham10000", 1, recorded=True, **about)
    assert len(lines) == 3
    assert strongest_masks.run("ham10000", 1, **about) == files
    assert len(lines) == 3  # nothing was trained again
    told = ledger.read("results", "ham10000", "full", strongest_masks.NAME)
    lesions = Lesions.of(few)
    overlap = np.array(json.loads(files[0].read_text(encoding="utf-8"))["test overlap"])
    assert len(overlap) == len(lesions.rows["test"])
    assert told["reports"]["IoU"]["value"] == pytest.approx(overlap.mean())
    assert told["reports"]["Dice"]["value"] == pytest.approx((2 * overlap / (1 + overlap)).mean())
    assert told["reports"]["share of failures"]["value"] == pytest.approx((overlap < 0.65).mean())
    assert overlap.mean() > 0.3  # it learns: an answer at random shares less with a lesion
    broken = replace(recipe, learning_rate=1e30)
    with pytest.raises(SkinbookError, match=r"The loss is (nan|inf) in seed 0, epoch 1, batch [2-9] \(LAB_"):
        strongest_masks.run("ham10000", 1, recipe=broken, folder=tmp_path / "broken")
    assert not list((tmp_path / "broken").iterdir())
    step = torch.optim.AdamW.step

    def spoils(self, *given, **named):
        done = step(self, *given, **named)
        self.param_groups[0]["params"][-1].data.fill_(torch.nan)
        return done

    with monkeypatch.context() as patched:
        patched.setattr(torch.optim.AdamW, "step", spoils)
        with pytest.raises(SkinbookError, match="Seed 0, epoch 1: the weights are no numbers"):
            strongest_masks.run("ham10000", 1, recipe=replace(recipe, batch_size=999), folder=tmp_path / "broken")
        patched.setattr(torch.optim.AdamW, "step", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no more")))
        with pytest.raises(SkinbookError, match=r"does not suffice for a batch of 16 .*batch_size=8"):
            strongest_masks.run("ham10000", 1, recipe=recipe, folder=tmp_path / "broken")
    assert not list((tmp_path / "broken").iterdir())
    assert told["provenance"]["precision"] == "bf16"
    measured = []
    monkeypatch.setattr(strongest_masks, "faster_precision", lambda *_: measured.append(1) or "fp32")
    for asked, times in (("fp32", 0), ("auto", 1)):
        monkeypatch.setenv("SKINBOOK_PRECISION", asked)
        (file,) = strongest_masks.run("ham10000", 1, recipe=replace(recipe, epochs=1), folder=tmp_path / "kept")
        assert json.loads(file.read_text(encoding="utf-8"))["precision"] == "fp32"
        assert len(measured) == times
