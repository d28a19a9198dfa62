"""What a chapter says, and when it refuses."""

import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

from skinbook import chapter, ledger
from skinbook.chapter import claim, exercise, judged, report, say
from skinbook.config import SkinbookError


def interval(value, low, high):
    return SimpleNamespace(value=value, low=low, high=high)


@pytest.fixture
def shown(monkeypatch):
    """What was shown: (text, MIME type, payload)."""
    seen = []
    monkeypatch.setattr(chapter, "_run", chapter._Run())
    monkeypatch.setattr(chapter, "_show", lambda text, mime, payload, **more: seen.append((text, mime, payload)))
    for variable in ("EDITION", "SCALE", "SEED", "DEVICE", "THREADS"):
        monkeypatch.delenv(f"SKINBOOK_{variable}", raising=False)
    return seen


@pytest.fixture
def recipes(monkeypatch, tmp_path):
    """The file of recipes, to write."""
    monkeypatch.setattr(chapter, "book_data", lambda *parts: tmp_path.joinpath(*parts))
    return tmp_path / "recipes.toml"


@pytest.mark.parametrize(
    ("value", "text", "carried"),
    [
        (0.8312, "AUC  0.83", 0.8312),
        (np.float32(0.5), "AUC  0.50", 0.5),
        (10015, "AUC  10,015", 10015),
        (np.int64(3), "AUC  3", 3),
        (np.array(0.25), "AUC  0.25", 0.25),
        (0.00012, "AUC  0.00012", 0.00012),
        (0.0, "AUC  0.00", 0.0),
        (math.nan, "AUC  undefined", None),
        (interval(0.8312, 0.8, 0.861), "AUC  0.83  [0.80, 0.86]", 0.8312),
        (interval(0.0001, -0.002, 0.3), "AUC  0.0001  [-0.0020, 0.3000]", 0.0001),
        (interval(0.01, 0.004, 0.016), "AUC  0.010  [0.004, 0.016]", 0.01),
        (interval(-0.000001, -0.002, 0.0), "AUC  0.0000  [-0.0020, 0.0000]", -0.000001),
    ],
)
def test_a_report_shows_a_number_and_carries_it_whole(shown, value, text, carried):
    report("AUC", value)
    assert shown[0][:2] == (text, ledger.REPORT)
    assert shown[0][2]["value"] == carried
    assert type(shown[0][2]["value"]) in (int, float, type(None))


def test_a_report_needs_a_name_of_its_own_and_a_number(shown):
    report("AUC", 1.0)
    with pytest.raises(SkinbookError, match="'AUC' is reported twice"):
        report("AUC", 2.0)
    with pytest.raises(SkinbookError, match="'words' is of type str; expected a number"):
        report("words", "many")
    report("words", 3)


def test_a_person_may_run_a_cell_again_but_not_use_a_name_twice_in_one(shown, monkeypatch):
    monkeypatch.setattr(chapter.progress, "watched", lambda: True)
    executions = iter(["first", "second", "second"])
    monkeypatch.setattr(chapter, "_execution", lambda: next(executions))
    report("AUC", 1.0)
    report("AUC", 1.0)
    with pytest.raises(SkinbookError, match="twice"):
        report("AUC", 1.0)


@pytest.mark.parametrize(
    ("low", "high", "above", "verdict"),
    [
        (0.01, 0.2, 0.0, "holds"),
        (0.0, 0.2, 0.0, "undecided"),
        (-0.1, 0.2, 0.0, "undecided"),
        (-0.1, 0.0, 0.0, "does not hold"),
        (-0.2, -0.1, 0.0, "does not hold"),
        (0.04, 0.2, 0.05, "undecided"),
        (0.06, 0.2, 0.05, "holds"),
    ],
)
def test_a_claim_is_judged_by_its_interval(low, high, above, verdict):
    assert judged(interval(0.0, low, high), above)[:2] == (verdict, "")


@pytest.mark.parametrize("wrong", [None, 0.3, "x", interval(0, math.nan, 1), interval(0, 1, -1), interval([], {}, "")])
def test_a_claim_never_raises(shown, wrong):
    claim("it flatters", wrong)
    assert shown[0][2]["verdict"] == "undecided"
    assert shown[0][2]["reason"]


def test_a_claim_shows_verdict_sentence_and_interval(shown):
    claim("it flatters", interval(0.1, 0.05, 0.2))
    text, mime, payload = shown[0]
    assert (text, mime) == ("holds: it flatters  0.10  [0.05, 0.20]", ledger.CLAIM)
    assert payload["above"] == 0.0


def test_what_may_be_said(shown):
    say("Nearly 38 % of HAM10000's photographs, and −0.12 with ResNet-18.")
    assert (
        chapter.blanked("Nearly 38 % of HAM10000, −0.12 with ResNet-18.") == "Nearly # % of HAM10000, # with ResNet-18."
    )
    with pytest.raises(SkinbookError, match="two numbers, and this one has 3"):
        say("1, 2 and 3")
    with pytest.raises(SkinbookError, match=r"two significant digits, and 0.831 has more"):
        say("AUC 0.831")
    for number in range(1, 5):
        say(f"Sentence {'abcde'[number]} has {number} and 2,400.")
    say("Sentence b has 9 and 2,400.")
    with pytest.raises(SkinbookError, match="may say 5 sentences"):
        say("And 1 more.")


def test_outside_a_notebook_text_is_printed(capsys):
    chapter._show("plain", ledger.SAY, {})
    assert capsys.readouterr().out == "plain\n"


def test_setup_says_in_one_line_what_it_runs_on(shown, recipes, monkeypatch):
    recipes.write_text('[07_x]\ntitle = "X"\nneeds = ["lesion_id"]\n[07_x.quick]\nepochs = 2\n', encoding="utf-8")
    monkeypatch.setenv("SKINBOOK_DEVICE", "cpu")
    monkeypatch.setenv("SKINBOOK_SEED", "3")
    import torch

    book = chapter.setup("07_x")
    drawn = torch.rand(1).item()
    assert shown == [
        (
            "skinbook: edition lab, scale quick, device cpu, data generated",
            ledger.SETUP,
            {"edition": "lab", "scale": "quick", "device": "cpu", "data": "generated"},
        )
    ]
    assert (book.name, book.title, book.seed, book.recipe.epochs) == ("07_x", "X", 3, 2)
    assert (torch.get_num_threads(), torch.initial_seed()) == (2, 3)
    report("AUC", 1)
    with warnings.catch_warnings(record=True) as heard:
        book = chapter.setup("07_x")
        warnings.warn("IProgress not found. Please update jupyter and ipywidgets.", UserWarning, stacklevel=1)
        warnings.warn("Something else.", UserWarning, stacklevel=1)
    assert [str(w.message) for w in heard] == ["Something else."]
    report("AUC", 1)
    assert torch.rand(1).item() == drawn
    shown.clear()
    monkeypatch.setenv("SKINBOOK_EDITION", "dermamnist")
    monkeypatch.setenv("SKINBOOK_DATA", "")
    monkeypatch.setenv("SKINBOOK_CACHE", str(recipes.parent / "none"))
    recipes.write_text("[07_x]\n", encoding="utf-8")
    chapter.setup("07_x")
    assert shown[0][0] == "skinbook: edition dermamnist, scale quick, device cpu, data not found"
    monkeypatch.setenv("SKINBOOK_DEVICE", "abacus")
    with pytest.raises(SkinbookError, match="SKINBOOK_DEVICE is 'abacus'"):
        chapter.setup("07_x")


def test_full_scale_may_reach_the_hub_after_quick_and_a_readers_own_choice_stays(shown, recipes, monkeypatch):
    import os
    import sys

    recipes.write_text("[07_x]\n", encoding="utf-8")
    constants = SimpleNamespace(HF_HUB_OFFLINE=True)  # the client reads the variable once, when it is imported
    monkeypatch.setitem(sys.modules, "huggingface_hub.constants", constants)
    monkeypatch.setattr(chapter, "_made_offline", False)

    def opened(scale):
        monkeypatch.setenv("SKINBOOK_SCALE", scale)
        chapter.setup("07_x")
        return os.environ.get("HF_HUB_OFFLINE")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert [opened("quick"), opened("full")] == ["1", "1"]
    assert constants.HF_HUB_OFFLINE
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert [opened("quick"), opened("quick"), opened("full")] == ["1", "1", None]
    assert not constants.HF_HUB_OFFLINE


def test_a_recipe_is_merged_from_base_scale_and_edition(recipes):
    recipes.write_text(
        "[07_x]\nsize = 64\nepochs = 1\n[07_x.full]\nepochs = 9\nlr = 0.1\n[07_x.ham10000-full]\nlr = 0.2\n",
        encoding="utf-8",
    )
    assert vars(chapter.recipe("07_x", "lab", "quick")["recipe"]) == {"size": 64, "epochs": 1}
    assert vars(chapter.recipe("07_x", "lab", "full")["recipe"]) == {"size": 64, "epochs": 9, "lr": 0.1}
    assert vars(chapter.recipe("07_x", "ham10000", "full")["recipe"]) == {"size": 64, "epochs": 9, "lr": 0.2}
    with pytest.raises(SkinbookError, match=r"'09_z' has no recipe in data/recipes.toml; there are 07_x"):
        chapter.recipe("09_z", "lab", "quick")
    recipes.write_text("[07_x\n", encoding="utf-8")
    with pytest.raises(SkinbookError, match=r"recipes.toml cannot be read"):
        chapter.recipe("07_x", "lab", "quick")


def test_an_edition_that_lacks_what_is_needed_is_refused(shown, recipes, monkeypatch):
    recipes.write_text('[07_x]\nneeds = ["lesion_id"]\n', encoding="utf-8")
    monkeypatch.setenv("SKINBOOK_EDITION", "dermamnist")
    with pytest.raises(SkinbookError, match=r"Chapter 07_x needs lesion_id .* the edition dermamnist has none"):
        chapter.setup("07_x")


def test_data_comes_late_and_the_split_has_a_seed_of_its_own(shown, recipes, monkeypatch):
    import pandas as pd

    from skinbook.data import catalog, pixels

    recipes.write_text('[07_x]\nneeds = ["masks"]\n', encoding="utf-8")
    table = pd.DataFrame(
        {"image_id": [f"i{k}" for k in range(40)], "lesion_id": [f"l{k // 2}" for k in range(40)], "dx": "nv"}
    )
    loaded = []
    provided = SimpleNamespace(
        table=table, classes=("nv",), provides=frozenset({"masks"}), identical=(("i0", "i39"),), edition="lab"
    )
    monkeypatch.setattr(catalog, "load", lambda edition, settings: loaded.append(edition) or provided)
    monkeypatch.setattr(pixels, "build", lambda dataset, size, cache, what: loaded.append((size, what)) or object())
    splits = []
    for seed in ("0", "5"):
        monkeypatch.setenv("SKINBOOK_SEED", seed)
        book = chapter.setup("07_x")
        splits.append(book.split.fingerprint)
    assert loaded == ["lab", "lab"]
    assert splits[0] == splits[1] == book.notes["split"]
    assert book.split.parts["i0"] == book.split.parts["i39"]
    assert book.pixels(32) is book.pixels(32)
    assert book.pixels(32, what="masks") is not book.pixels(32)
    assert loaded[2:] == [(32, "images"), (32, "masks")]
    provided.provides = frozenset()
    with pytest.raises(SkinbookError, match="needs masks of the lesions"):
        _ = chapter.setup("07_x").table


def test_an_exercise_is_right_or_not_yet(capsys):
    exercise("1", lambda: True)
    exercise("2", lambda: 1 / 0)
    assert capsys.readouterr().out == "Exercise 1: right\nExercise 2: not yet\n"
