"""The ledger: what is written, how it is read, and what is noticed when it is out of date."""

import json
import math
import re
from pathlib import Path

import nbformat
import pytest
from scipy import stats

from skinbook import ledger, runs
from skinbook.config import SkinbookError

CHAPTERS = sorted((Path(__file__).resolve().parent.parent / "chapters").glob("[0-9][0-9]_*.ipynb"))
SURROUNDINGS = {"versions": {"skinbook": "0.1.0", "torch": "2.15.0"}, "hardware": {"cpu": "A CPU", "cores": 2}}


def cell(source, *outputs, tags=(), kind="code"):
    return {"cell_type": kind, "source": source, "metadata": {"tags": list(tags)}, "outputs": list(outputs)}


def told(seed, value, low, high, **more):
    measured = {"value": value, "low": low, "high": high}
    return {
        "run": {"seed": seed},
        "code": "c0de",
        "package": "9ac4",
        "minutes": 1.26,
        "facts": SURROUNDINGS | {"notes": {"weights": "none", "split": "5917"}},
        "reports": {"AUC": measured, "photographs": {"value": 10015, "low": None, "high": None}},
        "claims": {"it flatters": {**measured, "verdict": "holds", "above": 0.0}},
        **more,
    }


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Where the ledger lies."""
    monkeypatch.setattr(ledger, "book_data", lambda *parts: tmp_path.joinpath(*parts))
    monkeypatch.setenv("SKINBOOK_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_an_entry_is_the_mean_over_the_seeds():
    entry = ledger.entry({0: told(0, 0.8, 0.7, 0.9), 1: told(1, 0.6, -0.9, 0.8)}, "2026-01-31")
    auc = entry["reports"]["AUC"]
    assert [round(auc[key], 9) for key in ("value", "low", "high")] == [0.7, -0.1, 0.85]
    assert auc["seeds"]["1"] == {"value": 0.6, "low": -0.9, "high": 0.8}
    assert entry["reports"]["photographs"]["value"] == 10015
    claim = entry["claims"]["it flatters"]
    assert (claim["verdict"], claim["seeds"]["0"]["verdict"]) == ("undecided", "holds")
    about = entry["provenance"]
    assert (about["split"], about["weights"], about["minutes"]) == ("5917", "none", {"0": 1.3, "1": 1.3})
    assert (about["code"], about["package"], about["date"]) == ("c0de", "9ac4", "2026-01-31")


@pytest.mark.parametrize(
    ("others", "verdict"),
    [
        ([{"verdict": "holds"}], "holds"),
        ([{"verdict": "undecided"}], "holds"),
        ([{"verdict": "undecided"}, {"verdict": "does not hold"}], "undecided"),
        ([{"verdict": "undecided", "reason": "the interval's ends are the wrong way round"}], "undecided"),
    ],
)
def test_seeds_that_contradict_each_other_decide_no_claim(others, verdict):
    # The averaged interval, [0.7, 0.9], says "holds" each time.
    first = told(0, 0.8, 0.7, 0.9)
    claims = [{"it flatters": first["claims"]["it flatters"] | other} for other in others]
    runs_ = {0: first} | {seed: told(seed, 0.8, 0.7, 0.9, claims=one) for seed, one in enumerate(claims, start=1)}
    assert ledger.entry(runs_, "2026-01-31")["claims"]["it flatters"]["verdict"] == verdict


def test_a_claim_is_above_the_same_value_with_every_seed():
    other = told(1, 0.8, 0.7, 0.9)
    other["claims"]["it flatters"]["above"] = 0.5
    with pytest.raises(SkinbookError, match=r"Seeds 0 and 1 hold the claim 'it flatters' against 0.0 and 0.5"):
        ledger.entry({0: told(0, 0.8, 0.7, 0.9), 1: other}, "2026-01-31")


@pytest.mark.parametrize(
    ("notes", "sentence"),
    [
        ({"weights": "resnet18", "split": "5917"}, "Seeds 0 and 1 differ in weights ('none' and 'resnet18')"),
        ({"weights": "none", "split": "0000"}, "Seeds 0 and 1 differ in split ('5917' and '0000')"),
        ({"weights": "none", "split": "5917", "weights, map": "x"}, "differ in weights, map (None and 'x')"),
    ],
)
def test_results_of_different_provenance_are_not_averaged(notes, sentence):
    other = told(1, 0.8, 0.7, 0.9, facts=SURROUNDINGS | {"notes": notes})
    with pytest.raises(SkinbookError, match=re.escape(sentence)):
        ledger.entry({0: told(0, 0.8, 0.7, 0.9), 1: other}, "2026-01-31")


def test_seeds_that_do_not_fit_together_are_refused():
    with pytest.raises(SkinbookError, match="Seeds 0 and 1 differ in their reports: 'photographs' is in one"):
        ledger.entry({0: told(0, 1, 1, 1), 1: told(1, 1, 1, 1, reports={"AUC": {}})}, "2026-01-31")
    with pytest.raises(SkinbookError, match="ran different code"):
        ledger.entry({0: told(0, 1, 1, 1), 1: told(1, 1, 1, 1, code="other")}, "2026-01-31")


def test_writing_keeps_other_chapters_and_the_lock(folder, tmp_path):
    one, other = ledger.entry({0: told(0, 0.8, 0.7, 0.9)}, "2026-01-31"), {"reports": {}}
    ledger.write("results", "ham10000", "quick", "03_x", one)
    file = ledger.write("results", "ham10000", "quick", "01_y", other)
    first = file.read_text()
    assert ledger.held("results", "ham10000", "quick") == ["01_y", "03_x"]
    ledger.write("results", "ham10000", "quick", "03_x", one)
    assert file.read_text() == first
    assert ledger.read("results", "ham10000", "quick", "03_x") == json.loads(json.dumps(one))
    # A lock that is removed after use is two locks: whoever waits for the old one, and whoever makes a new one.
    assert len(list((tmp_path / "cache" / "locks").iterdir())) == 1
    # And none where the wheel would take it along.
    assert [p.name for p in file.parent.iterdir()] == ["ham10000-quick.json"]
    assert ledger.read("results", "lab", "full", "03_x") == {}
    file.write_text("{")
    with pytest.raises(SkinbookError, match=r"data/results/ham10000-quick.json cannot be read"):
        ledger.read("results", "ham10000", "quick", "03_x")


def test_a_tolerance_is_half_a_prediction_interval():
    values = [0.70, 0.72, 0.75, 0.71, 0.74]
    measured = ledger.tolerances([told(seed, value, 0, 1) for seed, value in enumerate(values)])
    n, mean = 5, sum(values) / 5
    sd = math.sqrt(sum((v - mean) ** 2 for v in values) / 4)
    wanted = stats.t.ppf(0.995, n - 1) * sd * math.sqrt(1 + 1 / n)
    assert measured["reports"]["AUC"]["tolerance"] == pytest.approx(wanted, rel=5e-3)
    assert measured["reports"]["photographs"]["tolerance"] == 0.0
    assert measured["claims"]["it flatters"] == {"varies": False, "verdicts": ["holds"] * 5}


def test_numbers_of_threads_are_no_further_seeds():
    values = {0: (0.70, 0.71), 1: (0.72, 0.72), 2: (0.75, 0.73)}
    done = [
        told(seed, value, 0, 1, run={"seed": seed, "threads": threads})
        for seed, pair in values.items()
        for threads, value in zip((1, 2), pair, strict=True)
    ]
    about = ledger.tolerances(done)["reports"]["AUC"]
    means = [0.705, 0.72, 0.74]
    mean = sum(means) / 3
    sd = math.sqrt(sum((m - mean) ** 2 for m in means) / 2)
    wanted = stats.t.ppf(0.995, 2) * sd * math.sqrt(1 + 1 / 3) + 0.02
    assert about["tolerance"] == pytest.approx(wanted, rel=5e-3)
    assert (about["n"], about["threads"], about["values"]) == (3, 0.02, [0.70, 0.71, 0.72, 0.72, 0.75, 0.73])
    # Threads alone move it: the seeds agree.
    alike = [told(s, v, 0, 1, run={"seed": s, "threads": t}) for s in range(3) for t, v in ((1, 0.5), (2, 0.75))]
    assert ledger.tolerances(alike)["reports"]["AUC"]["tolerance"] == 0.25
    assert ledger.tolerances(alike)["reports"]["photographs"]["tolerance"] == 0


def test_fewer_than_three_seeds_measure_no_tolerance():
    with pytest.raises(SkinbookError, match="2 seeds cannot measure a tolerance; expected at least 3"):
        ledger.tolerances([told(0, 1, 0, 1), told(0, 1, 0, 1), told(1, 2, 0, 1)])
    undefined = [told(0, 0.7, 0, 1), told(1, 0.8, 0, 1), told(2, None, None, None)]
    about = ledger.tolerances(undefined)["reports"]["AUC"]
    assert (about["n"], about["tolerance"]) == (2, 0)


def test_a_claim_that_varies_is_recorded_as_such():
    claims = {"it flatters": {"verdict": "undecided"}}
    measured = ledger.tolerances([told(0, 1, 0, 1), told(1, 1, 0, 1), told(2, 1, 0, 1, claims=claims)])
    assert measured["claims"]["it flatters"]["varies"]


def test_a_verdict_may_change_with_the_number_of_threads_but_not_with_the_seed(folder):
    def run(seed, threads, verdict):
        claims = {"it flatters": {"verdict": verdict}}
        return told(seed, 1, 0, 1, claims=claims, run={"seed": seed, "threads": threads})

    runs = [run(0, 1, "holds"), run(1, 1, "does not hold"), run(2, 1, "holds"), run(0, 2, "undecided")]
    ledger.write("tolerances", "lab", "quick", "03_x", ledger.tolerances(runs))
    assert ledger.verdicts("lab", "quick", "03_x", "it flatters") == {"holds", "undecided"}
    assert ledger.verdicts("lab", "quick", "03_x", "another") == set()


def test_a_tolerance_is_rounded_up():
    far = 1.3157528638839722 - 1.3157527446746826
    assert ledger._rounded_up(far) >= far
    assert ledger._rounded_up(0.25) == 0.25


def test_tolerances_are_exact_where_nothing_was_measured(folder):
    assert ledger.tolerance("lab", "quick", "03_x", "AUC") == ledger.EXACT
    ledger.write("tolerances", "lab", "quick", "03_x", ledger.tolerances([told(s, s, 0, 1) for s in (0, 1, 2)]))
    assert ledger.tolerance("lab", "quick", "03_x", "AUC") > 1
    assert ledger.tolerance("lab", "quick", "03_x", "photographs") == ledger.EXACT


def test_code_is_hashed_without_comments_formatting_and_exercises():
    base = ledger.code_hash([cell("x = f(1, 'a')")])
    same = [
        [cell('x = f(\n    1,\n    "a",\n)  # why')],
        [cell("x = f(1, 'a')"), cell("y = 2", tags=["exercise"]), cell("z()", tags=["ledger"])],
        [cell("x = f(1, 'a')"), cell("words", kind="markdown")],
    ]
    assert [ledger.code_hash(cells) for cells in same] == [base] * 3
    assert ledger.code_hash([cell("x = f(2, 'a')")]) != base
    assert ledger.code_hash([cell("x = f(1, 'a')")], {"epochs": 2}) != base
    assert ledger.code_hash([cell("%pip install -q skinbook\nx = f(1, 'a')")]) != base


def test_the_package_is_hashed_without_comments_and_docstrings(tmp_path):
    file = tmp_path / "a.py"
    file.write_text('"""Says."""\n\n\ndef f(x):\n    """More."""\n    return x  # why\n')
    first = ledger.package_hash(tmp_path)
    file.write_text('"""Says more."""\ndef f(x): return (x)\n')
    assert ledger.package_hash(tmp_path) == first
    file.write_text("def f(x): return x + 1\n")
    assert ledger.package_hash(tmp_path) != first


def test_a_page_shows_results_and_where_they_come_from(folder):
    text, html = ledger.page("03_x", "ham10000", "quick")
    assert text == "The ledger holds no results of 03_x on ham10000 at quick scale yet."
    entry = ledger.entry({0: told(0, 0.8, 0.7, 0.9), 1: told(1, 0.7, 0.6, 0.8)}, "2026-01-31")
    ledger.write("results", "ham10000", "quick", "03_x", entry)
    text, html = ledger.page("03_x", "ham10000", "quick")
    for part in ("0.75  [0.65, 0.85]", "10,015", "holds: 0.75"):
        assert part in text
        assert part in html
    assert "<tr><td>photographs</td><td>10,015</td><td>2</td></tr>" in html
    assert text.endswith(
        "ham10000, quick scale, 2026-01-31; 2 CPU cores; 1.3 minutes a seed; skinbook 0.1.0, torch 2.15.0; "
        "weights: none; split 5917."
    )
    # What is named comes first, then the claims; all else is folded.
    open_, _, folded = ledger.page("03_x", "ham10000", "quick", ["AUC"])[1].partition("<details>")
    assert [name for name in ("AUC", "it flatters", "photographs") if f"<td>{name}</td>" in open_] == [
        "AUC",
        "it flatters",
    ]
    assert open_.index("AUC") < open_.index("it flatters")
    assert "<td>photographs</td>" in folded
    assert "<summary>The other result</summary>" in folded
    assert ledger.value("AUC", "03_x", "ham10000", "quick").low == pytest.approx(0.65)
    assert ledger.value("it flatters", "03_x", "ham10000", "quick").high == pytest.approx(0.85)
    assert ledger.value("nothing", "03_x", "ham10000", "quick") is None


def test_a_verdict_that_its_seeds_contradict_says_so():
    found = {"verdict": ledger.UNDECIDED, "low": 0.1, "high": 0.2, "above": 0.0}
    assert ledger.verdict_over_seeds(found) == "undecided (seeds disagree)"
    assert ledger.verdict_over_seeds(found | {"low": -0.1}) == "undecided"
    assert ledger.verdict_over_seeds(found | {"low": None, "high": None}) == "undecided"
    assert ledger.verdict_over_seeds(found | {"verdict": ledger.HOLDS}) == "holds"


def test_a_page_that_is_not_the_ledgers_is_noticed(folder):
    asked = {"chapter": "03_x", "edition": "ham10000", "scale": "quick", "names": None}
    asked["digest"] = ledger.digest(*ledger.page("03_x", "ham10000", "quick"))
    stored = [{"data": {ledger.LEDGER: asked}}]
    assert ledger.out_of_date(stored) == []
    ledger.write("results", "ham10000", "quick", "03_x", ledger.entry({0: told(0, 0.8, 0.7, 0.9)}, "2026-01-31"))
    assert "run `make refresh-ledger`" in ledger.out_of_date(stored)[0]


def test_what_a_notebook_says_is_gathered_and_a_name_may_come_once():
    said = {"data": {ledger.REPORT: {"name": "AUC", "value": 1, "low": None, "high": None}}}
    claimed = {"data": {ledger.CLAIM: {"sentence": "it flatters", "verdict": "holds"}}}
    found = ledger.said([cell("", said), cell("", claimed, {"text": "log"})])
    assert found["reports"]["AUC"]["value"] == 1
    assert found["claims"] == {"it flatters": {"verdict": "holds"}}
    with pytest.raises(SkinbookError, match="'it flatters' is claimed twice"):
        ledger.said([cell("", claimed, claimed)])


def test_surroundings_name_no_machine():
    about = json.dumps(ledger.surroundings())
    assert "numpy" in about
    assert "/" not in about.replace("(R)", "")


@pytest.mark.parametrize("notebook", CHAPTERS, ids=lambda path: path.stem)
def test_the_stored_pages_of_the_chapters_are_the_ledgers(notebook):
    cells = [c for c in nbformat.read(notebook, as_version=4).cells if c.cell_type == "code"]
    assert [fault for c in cells for fault in ledger.out_of_date(c.outputs)] == []


def test_the_ledger_in_git_comes_from_the_chapters_in_git():
    # Tolerances may be older: `skinbook ledger status` lists those, and nothing is wrong on a page.
    assert runs.status(kinds=["results"]) == []


def test_a_value_that_stayed_by_chance_is_as_loose_as_its_interval():
    stayed = [told(seed, 0.9, 0.80 + seed / 100, 0.95) for seed in range(3)]
    assert ledger.tolerances(stayed)["reports"]["AUC"]["tolerance"] > 0.01
    assert ledger.tolerances(stayed)["reports"]["photographs"]["tolerance"] == 0
    exact = [told(seed, 0.9, 0.80, 0.95) for seed in range(3)]
    assert ledger.tolerances(exact)["reports"]["AUC"]["tolerance"] == 0
