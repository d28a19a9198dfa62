"""The ledger: what is written, how it is read, and what is noticed when it is out of date."""

import json
import math
import os
import re
import statistics
from importlib import metadata
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
        ([{}], "holds"),
        ([{"verdict": "undecided"}], "holds"),
        ([{"value": 0.01}], "holds"),
        ([{"value": 0.01}, {"value": -0.01}], "undecided"),
        ([{"value": 0.0}], "undecided"),  # no gain at all is not above zero
        ([{"verdict": "undecided", "reason": "the interval's ends are the wrong way round"}], "undecided"),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_seeds_that_contradict_each_other_decide_no_claim(others, verdict, sign):
    # The averaged interval, [0.7, 0.9], says "holds" each time; its mirror image "does not hold".
    low, high = sorted((sign * 0.7, sign * 0.9))
    first = told(0, sign * 0.8, low, high)
    others = [other | {key: sign * other[key] for key in ("value",) if key in other} for other in others]
    claims = [{"it flatters": first["claims"]["it flatters"] | other} for other in others]
    runs_ = {0: first} | {seed: told(seed, sign * 0.8, low, high, claims=one) for seed, one in enumerate(claims, 1)}
    if sign < 0:  # what does not lie above, does not hold: nor where it is zero
        at_zero = others == [{"value": 0.0}]
        verdict = "does not hold" if verdict == "holds" or at_zero else verdict
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
    first = file.read_text(encoding="utf-8")
    assert ledger.held("results", "ham10000", "quick") == ["01_y", "03_x"]
    ledger.write("results", "ham10000", "quick", "03_x", one)
    assert file.read_text(encoding="utf-8") == first
    assert ledger.read("results", "ham10000", "quick", "03_x") == json.loads(json.dumps(one))
    # A lock that is removed after use is two locks: whoever waits for the old one, and whoever makes a new one.
    assert len(list((tmp_path / "cache" / "locks").iterdir())) == 1
    # And none where the wheel would take it along.
    assert [p.name for p in file.parent.iterdir()] == ["ham10000-quick.json"]
    assert ledger.read("results", "lab", "full", "03_x") == {}
    file.write_text("{", encoding="utf-8")
    with pytest.raises(SkinbookError, match=r"data/results/ham10000-quick.json cannot be read"):
        ledger.read("results", "ham10000", "quick", "03_x")


@pytest.mark.parametrize("values", [[0.70, 0.72, 0.75, 0.71, 0.74], [0.70, 0.72, 0.75, 0.71]])
def test_a_tolerance_is_half_a_prediction_interval(values):
    measured = ledger.tolerances([told(seed, value, 0, 1) for seed, value in enumerate(values)])
    n, mean = len(values), statistics.mean(values)
    sd = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    wanted = stats.t.ppf(0.995, n - 1) * sd * math.sqrt(1 + 1 / n)
    assert measured["reports"]["AUC"]["tolerance"] == pytest.approx(wanted, rel=1e-2)
    assert measured["reports"]["photographs"]["tolerance"] == 0.0
    assert measured["claims"]["it flatters"] == {"varies": False, "verdicts": ["holds"] * n}


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


def test_a_view_is_not_hashed_as_long_as_it_only_shows():
    base = ledger.code_hash([cell("x = f(1)"), cell("ax = plots.curves(x)")])

    def with_view(source):
        return ledger.code_hash(
            [cell("x = f(1)"), cell(source, tags=["view", "hide-cell"]), cell("ax = plots.curves(x)")]
        )

    for source in (
        "x.per_class().round(2)",
        "_, panels = plt.subplots(1, 2)\nfor k, line in enumerate(x.values()):\n    panels[k].plot(np.log(line))\nplt.show()",
        "plots.confusion_matrix(x.confusion())",
        "[len(one) for one in x if one.value('accuracy') > 0.5]",
    ):
        assert with_view(source) == base, source
    for source in (
        "report('accuracy', 1)",  # computes, or says a result
        "fit(x)",
        "x.update(a=1)",
        "(lambda: x)()",
        "show(x)",  # a function of the chapter's own
        "ax = plots.intervals(x)",  # a name that another cell uses
        "f = 1",  # one that another cell only reads
        "for x in range(3):\n    plt.show()",
        "x[0] = 1",  # changes what others have made
        "x.rate = 1",
        "x += 1",
        "del x",
        "import f",
        "def f():\n    return 2",
        "%pip install -q skinbook",
    ):
        assert with_view(source) != base, source


def test_the_package_is_hashed_without_comments_and_docstrings(tmp_path):
    file = tmp_path / "a.py"
    file.write_text('"""Says."""\n\n\ndef f(x):\n    """More."""\n    return x  # why\n', encoding="utf-8")
    first = ledger.package_hash(tmp_path)
    file.write_text('"""Says more."""\ndef f(x): return (x)\n', encoding="utf-8")
    assert ledger.package_hash(tmp_path) == first
    file.write_text("def f(x): return x + 1\n", encoding="utf-8")
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


# At the ends


@pytest.mark.parametrize(
    ("low", "high", "above", "verdict"),
    [
        (0.1, 0.2, 0.0, "holds"),
        (0.0, 0.2, 0.0, "undecided"),
        (-0.1, 0.2, 0.0, "undecided"),
        (-0.1, 0.0, 0.0, "does not hold"),
        (-0.2, -0.1, 0.0, "does not hold"),
        (0.5, 0.7, 0.6, "undecided"),
        (0.7, 0.8, 0.6, "holds"),
        (0.4, 0.6, 0.6, "does not hold"),
    ],
)
def test_a_claim_holds_where_the_whole_interval_lies_above(low, high, above, verdict):
    assert ledger.verdict(low, high, above) == verdict
    if above == 0:
        assert ledger.verdict(low, high) == verdict


def test_what_a_reader_sees():
    value = {"value": 0.8351, "low": 0.8, "high": 0.9}
    assert ledger.seen(ledger.REPORT, {"name": "AUC", **value}) == {"text/plain": "AUC  0.84  [0.80, 0.90]"}
    assert ledger.seen(ledger.SAY, {"text": "So."}) == {"text/plain": "So.", "text/markdown": "So."}
    claim = {"sentence": "it flatters", "verdict": "holds", **value}
    assert ledger.seen(ledger.CLAIM, claim)["text/plain"] == "holds: it flatters  0.84  [0.80, 0.90]"
    assert ledger.seen(ledger.CLAIM, claim | {"reason": "no interval"}) == {
        "text/plain": "holds: it flatters  no interval",
        "text/markdown": "**holds**: it flatters (no interval)",
    }


def test_what_is_gathered_is_all_but_the_name():
    said = {"data": {ledger.REPORT: {"name": "AUC", "value": 1, "low": None, "high": None}}}
    other = {"data": {ledger.REPORT: {"name": "F1", "value": 2}}}
    claimed = {"data": {ledger.CLAIM: {"sentence": "it flatters", "verdict": "holds", "high": 1}}}
    found = ledger.said([{"cell_type": "markdown"}, cell("", said, other), cell("", claimed)])
    assert found == {
        "reports": {"AUC": {"value": 1, "low": None, "high": None}, "F1": {"value": 2}},
        "claims": {"it flatters": {"verdict": "holds", "high": 1}},
    }
    with pytest.raises(SkinbookError, match=r"^'AUC' is reported twice in this chapter"):
        ledger.said([cell("", said), cell("", said)])


def test_surroundings_are_versions_and_hardware(monkeypatch):
    import platform

    import torch

    about = ledger.surroundings()
    assert set(about["versions"]) == {"skinbook", "python", *ledger.LIBRARIES}
    assert about["versions"]["torch"] == metadata.version("torch")
    assert set(about["hardware"]) == {"cpu", "cores"}
    monkeypatch.setattr(ledger, "LIBRARIES", ("no such library", "numpy"))
    assert set(ledger.surroundings()["versions"]) == {"skinbook", "python", "numpy"}
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {process: 0, 3: 0, 5: 0}, raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    assert ledger.surroundings()["hardware"]["cores"] == 3
    monkeypatch.delattr("os.sched_getaffinity")
    assert ledger.surroundings()["hardware"]["cores"] == 64
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A GPU")
    for device, name in (("cuda", "A GPU"), ("mps", "Apple GPU"), ("cpu", None)):
        assert ledger.surroundings("".join(device))["hardware"].get("accelerator") == name
    text = "processor\t: 0\nmodel name\t: A CPU: the fast one \nmodel name\t: Another\n"
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: text)
    assert ledger.surroundings()["hardware"]["cpu"] == "A CPU: the fast one"
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: "processor: 0\n")
    assert ledger.surroundings()["hardware"]["cpu"] == "arm"

    def absent(self, encoding):
        raise FileNotFoundError(self)

    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(Path, "read_text", absent)
    assert ledger.surroundings()["hardware"]["cpu"] == "x86_64"


def test_hashes_tell_calls_constants_recipes_and_names_of_files(tmp_path):
    def of(source, recipe=None):
        return ledger.code_hash([cell(source)], recipe)

    sources = ["f()", "g()", "1", "2", "x = None", "x = 'None'", "f(1, 2)", "f(2, 1)", "'f'()", "x = 'says'", "x.says"]
    assert len({of(source) for source in sources}) == len(sources)
    assert of("'says'\nx = 1") == of("'says more'\nx = 1") == of("x = 1")
    assert of("x = 1", {"a": 1, "b": 2}) == of("x = 1", {"b": 2, "a": 1}) != of("x = 1", {"a": 1, "b": 3})
    assert of("x = 1", {}) == of("x = 1")
    assert re.fullmatch("[0-9a-f]{12}", of("x = 1"))
    assert ledger.digest("a", "b") != ledger.digest("ab")
    hashes = [ledger.package_hash()]
    assert re.fullmatch("[0-9a-f]{12}", hashes[0])
    for name in ("a.py", "b.py"):
        (tmp_path / name).write_text("x = 1\n", encoding="utf-8")
        hashes.append(ledger.package_hash(tmp_path))
        (tmp_path / name).unlink()
    assert len(set(hashes)) == 3


def test_a_file_says_what_it_is_and_is_written_for_people(folder):
    for kind, about in (
        ("tolerances", "Written by `skinbook spread`"),
        ("results", "Written by `skinbook` with `--record`"),
    ):
        text = ledger.write(kind, "ham10000", "quick", "03_x", {"reports": {"√2": 1.5}}).read_text(encoding="utf-8")
        whole = json.loads(text)
        assert whole["about"].startswith(about)
        assert (whole["edition"], whole["scale"]) == ("ham10000", "quick")
        assert text.endswith('\n "chapters": {\n  "03_x": {\n   "reports": {\n    "√2": 1.5\n   }\n  }\n }\n}\n')
    ledger.write("results", "ham10000", "quick", "01_a", {})
    ledger.write("results", "ham10000", "quick", "02_b", {})
    assert ledger.held("results", "ham10000", "quick") == ["01_a", "02_b", "03_x"]


def test_the_seed_that_differs_is_named_wherever_it_comes():
    def entry(**others):
        same = {seed: told(seed, 0.8, 0.7, 0.9) for seed in (7, 3, 5)}
        return ledger.entry(same | {int(seed[1:]): other for seed, other in others.items()}, "2026-01-31")

    assert list(entry()["provenance"]["minutes"]) == ["3", "5", "7"]
    measured = {"value": 0.8, "low": 0.7, "high": 0.9}
    more = {"AUC": measured, "photographs": measured, "recall": measured, "F1": measured}
    for seed in (5, 7):
        at = f"Seeds 3 and {seed} "
        with pytest.raises(SkinbookError, match=at + "differ in their reports: 'F1' is in one of them only"):
            entry(**{f"_{seed}": told(seed, 1, 1, 1, reports=more)})
        with pytest.raises(SkinbookError, match=at + "differ in their reports: 'AUC' is in one of them only"):
            entry(**{f"_{seed}": told(seed, 1, 1, 1, reports={})})
        with pytest.raises(SkinbookError, match=at + "differ in their claims: 'it flatters' is in one of them only"):
            entry(**{f"_{seed}": told(seed, 1, 1, 1, claims={})})
        for code in ("a", "z"):
            with pytest.raises(SkinbookError, match=at + "ran different code"):
                entry(**{f"_{seed}": told(seed, 1, 1, 1, code=code)})
        for split in ("0000", "zzzz"):
            facts = SURROUNDINGS | {"notes": {"weights": "none", "split": split}}
            with pytest.raises(SkinbookError, match=at + re.escape(f"differ in split ('5917' and '{split}')")):
                entry(**{f"_{seed}": told(seed, 1, 1, 1, facts=facts)})
        other = told(seed, 0.8, 0.7, 0.9)
        for above in (-0.5, 0.5):
            other["claims"]["it flatters"]["above"] = above
            with pytest.raises(SkinbookError, match=at + f"hold the claim 'it flatters' against 0.0 and {above}"):
                entry(**{f"_{seed}": other})
    for note in ("machine", "seed", "threads", "version"):
        facts = [SURROUNDINGS | {"notes": {"weights": "none", "split": "5917", note: k}} for k in (1, 2, 1)]
        found = entry(**{f"_{seed}": told(seed, 1, 1, 1, facts=f) for seed, f in zip((3, 5, 7), facts, strict=True)})
        assert found["provenance"][note] == [1, 2]
    found = entry(_5=told(5, 1, 1, 1, package="other"))["provenance"]
    assert (found["package"], found["minutes"]["5"], found["hardware"]) == (
        ["9ac4", "other"],
        1.3,
        SURROUNDINGS["hardware"],
    )


def test_means_over_seeds_keep_what_is_the_same_and_what_is_unknown():
    def mean(*values, part="value"):
        runs_ = {
            k: told(k, *(v if part == each else 0.5 for each in ("value", "low", "high"))) for k, v in enumerate(values)
        }
        return ledger.entry(runs_, "2026-01-31")["reports"]["AUC"][part]

    assert repr(mean(10015, 10015, 10015)) == "10015"
    assert repr(mean(7)) == "7"
    assert mean(1, 2, 6) == 3
    assert mean(0.1, 0.2) == pytest.approx(0.15)
    assert mean(None, 0.2, part="low") is None
    assert mean(0.2, None, 0.2) is None
    assert mean(None, part="high") is None


@pytest.mark.parametrize(
    ("seeds", "verdict"),
    [
        ([(0.15, 0.1, 0.2), (-0.01, 0.3, 0.4)], "undecided"),
        ([(0.15, 0.1, 0.2), (0.01, 0.3, 0.4)], "holds"),
        ([(0.15, 0.1, 0.2)], "holds"),
        ([(-0.15, -0.2, -0.1)], "does not hold"),
        ([(-0.15, -0.2, -0.1), (0.01, -0.2, -0.1)], "undecided"),
        ([(0.15, None, 0.2)], "undecided"),
        ([(0.15, 0.1, None)], "undecided"),
        ([(0.15, 0.1, 0.2), (None, 0.1, 0.2)], "undecided"),
        ([(0.01, -0.1, 0.1), (0.3, 0.2, 0.4)], "holds"),
    ],
)
def test_a_claim_is_decided_by_the_averaged_interval_of_seeds_that_agree(seeds, verdict):
    runs_ = {}
    for seed, (value, low, high) in enumerate(seeds):
        runs_[seed] = told(seed, 0.8, 0.7, 0.9)
        # Without "above": above zero.
        runs_[seed]["claims"] = {"it flatters": {"verdict": "holds", "value": value, "low": low, "high": high}}
    found = ledger.entry(runs_, "2026-01-31")["claims"]["it flatters"]
    assert (found["verdict"], found["above"]) == (verdict, 0.0)


def test_tolerances_of_too_few_values_or_of_ends_that_move():
    assert ledger.EXACT == 1e-9
    two = [told(0, 0.7, 0, 1), told(1, 0.8, 0, 1), told(2, None, None, None)]
    about = ledger.tolerances(two)["reports"]["AUC"]
    assert about == {"tolerance": 0, "sd": 0, "threads": 0, "n": 2, "values": [0.7, 0.8, None]}
    values = (0.70, 0.72, 0.75)
    wide = [told(seed, value, seed / 4, 1) for seed, value in enumerate(values)]
    tight = [told(seed, value, 0, 1) for seed, value in enumerate(values)]
    assert ledger.tolerances(wide)["reports"]["AUC"] == ledger.tolerances(tight)["reports"]["AUC"]
    # Where the value stayed, the end that moved more counts, whichever it is.
    low = [told(seed, 0.9, value, 0.95 + seed / 1000) for seed, value in enumerate(values)]
    high = [told(seed, 0.9, 0.1 + seed / 1000, value) for seed, value in enumerate(values)]
    expected = ledger.tolerances(tight)["reports"]["AUC"]
    for moved in (low, high):
        found = ledger.tolerances(moved)["reports"]["AUC"]
        assert {key: found[key] for key in ("tolerance", "sd", "threads")} == {
            key: expected[key] for key in ("tolerance", "sd", "threads")
        }
        assert found["values"] == [0.9] * 3
    assert expected["sd"] == float(f"{statistics.stdev(values):.3g}")
    whole = ledger.tolerances(tight)
    assert (whole["code"], whole["runs"]) == ("c0de", [{"seed": 0}, {"seed": 1}, {"seed": 2}])
    steady = ledger.tolerances([told(s, 1, 0, 1, claims={"it flatters": {"verdict": "holds"}}) for s in range(3)])
    assert steady["claims"] == {"it flatters": {"varies": False, "verdicts": ["holds"] * 3}}


def test_a_tolerance_has_three_digits_and_is_never_too_small():
    for size, rounded in ((0.1234, 0.124), (0.1236, 0.124), (0.12396, 0.124), (12.34, 12.4), (0.25, 0.25), (0.0, 0.0)):
        assert ledger._rounded_up(size) == rounded


def test_verdicts_are_those_of_one_seed_as_far_as_there_are_any(folder):
    about = {
        "runs": [{"seed": 0}, {"seed": 1}, {"seed": 0}, {"seed": -1}, {"seed": 0}],
        "claims": {"it flatters": {"verdicts": ["holds", "undecided", None, "does not hold"]}},
    }
    ledger.write("tolerances", "lab", "quick", "03_x", about)
    assert ledger.verdicts("lab", "quick", "03_x", "it flatters") == {"holds"}
    assert ledger.verdicts("lab", "quick", "03_x", "it flatters", 1) == {"undecided"}
    assert ledger.verdicts("lab", "quick", "03_x", "it flatters", -1) == {"does not hold"}


def test_a_page_lays_out_names_values_and_seeds(folder):
    entry = ledger.entry({0: told(0, 0.8, 0.7, 0.9), 1: told(1, 0.8, 0.7, 0.9)}, "2026-01-31")
    entry["reports"]["a < b"] = entry["reports"]["AUC"]
    ledger.write("results", "ham10000", "quick", "03_x", entry)
    text, html = ledger.page("03_x", "ham10000", "quick", ["nothing"])
    assert text.splitlines()[:8] == [
        "name         value [95 % interval]      seeds",
        "it flatters  holds: 0.80  [0.70, 0.90]  2",
        "",
        "The other 3 results",
        "",
        "name         value [95 % interval]  seeds",
        "AUC          0.80  [0.70, 0.90]     2",
        "photographs  10,015                 2",
    ]
    assert html.count("<thead><tr><th>name</th><th>value [95 % interval]</th><th>seeds</th></tr></thead>") == 2
    assert "<tr><td>a &lt; b</td><td>0.80  [0.70, 0.90]</td><td>2</td></tr>" in html
    assert "<summary>The other 3 results</summary>" in html
    assert "<summary>The other 2 results</summary>" in ledger.page("03_x", "ham10000", "quick", ["AUC"])[1]
    # Without claims, all reports stand open.
    ledger.write("results", "ham10000", "quick", "03_x", entry | {"claims": {}})
    assert "<details>" not in ledger.page("03_x", "ham10000", "quick")[1]
    named = ledger.page("03_x", "ham10000", "quick", ["photographs"])[1]
    assert named.index("photographs") < named.index("<details>") < named.index("AUC")


@pytest.mark.parametrize(
    ("verdict", "low", "high", "says"),
    [
        ("undecided", -0.2, -0.1, "undecided (seeds disagree)"),
        ("undecided", 0.1, 0.2, "undecided (seeds disagree)"),
        ("undecided", -0.1, 0.2, "undecided"),
        ("does not hold", -0.2, -0.1, "does not hold"),
        ("does not hold", 0.1, 0.2, "does not hold"),
        ("holds", 0.1, 0.2, "holds"),
    ],
)
def test_seeds_disagree_where_the_mean_of_their_intervals_would_decide(verdict, low, high, says):
    found = {"verdict": "".join(verdict), "low": low, "high": high, "above": 0.0}
    assert ledger.verdict_over_seeds(found) == says


def test_the_line_on_provenance_names_what_there_is():
    about = {
        "date": "2026-01-31",
        "hardware": {"cores": 1},
        "versions": {"numpy": "2"},
        "minutes": {"0": 1.0, "1": 4.0},
    }
    line = ledger.provenance_line(about | {"versions": {"timm": "1.0"}}, "lab", "full")
    assert line == "lab, full scale, 2026-01-31; 1 CPU core; 2.5 minutes a seed; timm 1.0."
    more = {"hardware": {"cores": 3, "accelerator": "A GPU"}, "weights": ["a", "b"], "split": "5917"}
    line = ledger.provenance_line(about | {"versions": {"timm": "1.0"}} | more, "lab", "full")
    assert line == ("lab, full scale, 2026-01-31; A GPU; 2.5 minutes a seed; timm 1.0; weights: a, b; split 5917.")
    assert "; 3 CPU cores; " in ledger.provenance_line(about | {"hardware": {"cores": 3}}, "lab", "full")
    parts = {
        "weights": "none",
        "weights, small": "none",
        "weights, map": "w",
        "weights, head": "w",
        "weights, far": "x",
    }
    assert "; weights: none; of map, head: w; of far: x." in ledger.provenance_line(about | parts, "lab", "full")


def test_every_page_that_is_not_the_ledgers_is_named(folder):
    asked = {"edition": "ham10000", "scale": "quick", "names": None}
    stored = [{"data": {ledger.LEDGER: asked | {"chapter": f"0{k}_x", "digest": d}}} for k, d in enumerate("0z")]
    assert [fault.partition(" on ")[0] for fault in ledger.out_of_date(stored)] == [
        "The stored results of 00_x",
        "The stored results of 01_x",
    ]


@pytest.mark.parametrize(
    ("mime", "payload", "lacks"),
    [
        (ledger.CLAIM, {"sentence": "it flatters"}, "verdict"),
        (ledger.CLAIM, {"verdict": "holds"}, "sentence"),
        (ledger.CLAIM, {"sentence": "it flatters", "verdict": 1}, "verdict"),
        (ledger.SAY, {"text": None}, "text"),
        (ledger.SAY, ["text"], "text"),
        (ledger.SAY, "text", "text"),
    ],
)
def test_an_output_that_carries_no_usable_bundle_is_named(mime, payload, lacks):
    with pytest.raises(SkinbookError, match=f"carries {re.escape(mime)} without a usable '{lacks}'"):
        ledger.payloads([{"data": {mime: payload}}], mime)
    assert ledger.payloads([{"data": {mime: payload}}, {"name": "stdout"}], ledger.FACTS) == []


@pytest.mark.parametrize("text", ["[]", '{"chapters": []}', '{"chapters": {"03_x": ["AUC"]}}', '"' + "x" * 100 + '"'])
def test_a_ledger_that_holds_no_chapters_is_named(folder, text):
    file = folder / "results" / "ham10000-quick.json"
    file.parent.mkdir()
    file.write_text(text)
    with pytest.raises(SkinbookError, match=r"data/results/ham10000-quick.json cannot be read") as caught:
        ledger.held("results", "ham10000", "quick")
    assert "x" * 50 not in str(caught.value)


@pytest.mark.parametrize(
    ("entry", "error"),
    [
        ({"reports": ["AUC"]}, "AttributeError"),
        ({"reports": {"AUC": {"value": 1}}}, "KeyError"),
        ({"reports": {"AUC": 5}}, "TypeError"),
    ],
)
def test_a_chapter_that_does_not_hold_what_was_recorded_is_named(folder, entry, error):
    ledger.write("results", "ham10000", "quick", "03_x", entry)
    with pytest.raises(SkinbookError, match=f"ham10000-quick.json does not hold what was recorded .{error}"):
        ledger.value("AUC", "03_x", "ham10000", "quick")


@pytest.mark.parametrize(
    ("change", "error"), [({"minutes": {}}, "ZeroDivisionError"), ({"minutes": {"0": "x"}}, "TypeError")]
)
def test_a_page_of_what_was_not_recorded_is_named(folder, change, error):
    entry = ledger.entry({0: told(0, 0.8, 0.7, 0.9)}, "2026-01-31")
    ledger.write("results", "ham10000", "quick", "03_x", entry | {"provenance": entry["provenance"] | change})
    with pytest.raises(SkinbookError, match=f"does not hold what was recorded .{error}"):
        ledger.page("03_x", "ham10000", "quick")


def test_what_is_no_number_is_not_written(folder):
    file = ledger.write("results", "ham10000", "".join("quick"), "03_x", {"reports": {}})
    before = file.read_text()
    with pytest.raises(ValueError, match="JSON compliant"):
        ledger.write("results", "ham10000", "quick", "03_x", {"reports": {"AUC": {"value": math.nan}}})
    assert file.read_text() == before
    assert ledger.write("".join("results"), "ham10000", "quick", "03_x", {"reports": {}}).read_text() == before


def test_writers_whose_caches_differ_wait_for_each_other_too(folder, monkeypatch):
    fcntl = pytest.importorskip("fcntl", reason="no such locks on this system")
    load, held = ledger._load, []

    def loaded(file):
        other = os.open(file.parent, os.O_RDONLY)  # as another process would
        try:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held.append(False)
        except BlockingIOError:
            held.append(True)
        finally:
            os.close(other)
        return load(file)

    monkeypatch.setattr(ledger, "_load", loaded)
    ledger.write("results", "ham10000", "quick", "03_x", {})
    assert held == [True]
    assert [one.name for one in (folder / "results").iterdir()] == ["ham10000-quick.json"]


def test_seeds_that_ran_on_different_machines_are_all_told():
    one, other = told(0, 0.8, 0.7, 0.9), told(1, 0.6, 0.5, 0.8)
    about = ledger.entry({0: one, 1: other}, "2026-01-31")["provenance"]
    assert "; 2 CPU cores; " in ledger.provenance_line(about, "ham10000", "full")
    elsewhere = {
        "versions": {"skinbook": "0.1.0", "torch": "2.16.0"},
        "hardware": {"cores": 16, "accelerator": "A GPU"},
    }
    other = other | {"facts": other["facts"] | elsewhere}
    about = ledger.entry({0: one, 1: other}, "2026-01-31")["provenance"]
    line = ledger.provenance_line(about, "ham10000", "full")
    assert "; 2 CPU cores and A GPU; " in line
    assert "; skinbook 0.1.0, torch 2.15.0 and 2.16.0" in line
