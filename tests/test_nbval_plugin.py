"""Each thing that must turn a run of the chapters red does so, and the right notebook is green."""

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import jupytext
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output, new_raw_cell

from skinbook import chapter, ledger, nbval_plugin
from skinbook.nbval_plugin import MACHINE, Stored, Twin, exercise_parts, exercises, near, paths_in, unlike_carried

pytest_plugins = "pytester"

IMPORT = (
    "from skinbook.chapter import claim, ledger_table, report, say, setup\nfrom types import SimpleNamespace as S\n"
)
# The pytest that runs inside looks for ledger and tolerances beside the notebooks.
CONFTEST = """
from pathlib import Path
from skinbook import ledger
ledger.book_data = lambda *parts: Path(__file__).parent.joinpath("data", *parts)
"""


def shows(mime=None, payload=None, text="as it was"):
    return new_output("display_data", {"text/plain": text, **({mime: payload} if mime else {})})


def carried(mime, payload, **seen):
    """An output as a chapter makes it; `seen` replaces what a reader sees in a form ("plain", "markdown", "html")."""
    texts = ledger.seen(mime, payload) | {f"text/{form}": text for form, text in seen.items()}
    return new_output("display_data", {**texts, mime: payload})


def reported(name, value, **seen):
    return carried(ledger.REPORT, {"name": name, "value": value, "low": None, "high": None}, **seen)


def claimed(sentence, verdict, **seen):
    payload = {"sentence": sentence, "verdict": verdict, "value": 0.1, "low": 0.05, "high": 0.2}
    return carried(ledger.CLAIM, payload, **seen)


def told(text, **seen):
    return carried(ledger.SAY, {"text": text}, **seen)


def prints(text, name="stdout"):
    return new_output("stream", name=name, text=text)


def cell(source, *outputs, tags=(), count=1):
    made = new_code_cell(source, outputs=list(outputs), execution_count=count)
    made.metadata["tags"] = list(tags)
    return made


def write(folder, name, *cells, twin=None):
    folder.mkdir(exist_ok=True)
    notebook = new_notebook(cells=[new_markdown_cell("# A chapter"), *cells])
    nbformat.write(notebook, folder / f"{name}.ipynb")
    if twin is not None:
        notebook.cells[-1].source = twin
        jupytext.write(notebook, folder / f"{name}.md", fmt="md:myst")


def one(call, *outputs, **about):
    return cell(IMPORT + call, *outputs, **about)


@pytest.fixture
def inner(pytester, monkeypatch):
    """A folder to run pytest in, with every setting unset."""
    for variable in ("EDITION", "SCALE", "SEED", "CHAPTERS", "DATA", "WEIGHTS", "DEVICE", "THREADS"):
        monkeypatch.delenv(f"SKINBOOK_{variable}", raising=False)
    return pytester


def outcome(pytester, *arguments, apart=True):
    """What failed, as {notebook: its red items}, and all that pytest printed."""
    run = pytester.runpytest_subprocess if apart else pytester.runpytest_inprocess
    result = run("-rfEs", "-p", "no:cacheprovider", "-p", "no:xdist", *arguments)
    printed = result.stdout.str() + result.stderr.str()
    red = {}
    line = r"^(?:FAILED|ERROR) (?:chapters/)?(\w+)\.ipynb::(.+?)(?: - .*)?$"
    for name, item in re.findall(line, printed, re.MULTILINE):
        red.setdefault(name, []).append(item)
    return red, printed


def right(folder):
    source = """
setup("03_cnn_lstm")
report("AUC", 0.83)
claim("it flatters", S(value=0.1, low=0.05, high=0.2))
say("About 38 % of them.")
print("same")"""
    write(
        folder,
        "01_right",
        one(
            source,
            shows(ledger.SETUP, {"edition": "lab", "scale": "quick", "device": "cuda"}),
            reported("AUC", 0.83),
            claimed("it flatters", "holds"),
            told("About 41 % of them."),
            prints("same\n"),
        ),
        cell(
            "import sys\nprint('3.1 s')\nprint('slow', file=sys.stderr)",
            prints("2.9 s\n"),
            tags=["nbval-ignore-output"],
        ),
        cell("raise ValueError('stop')", count=None, tags=["nbval-skip"]),
        cell("1 + 1", new_output("execute_result", {"text/plain": "2"}, execution_count=2), count=2),
        twin="1 + 1",
    )


def wrong(folder):
    log, setup = ["nbval-ignore-output"], {"edition": "ham10000", "scale": "quick", "device": "cpu"}
    write(
        folder,
        "02_runs",
        one("report('AUC', 0.83)", reported("AUC", 0.84)),
        cell("claim('it flatters', S(value=0, low=-1, high=1))", claimed("it flatters", "holds")),
        cell("report('F1', 0.83)", reported("F1", 0.83), reported("recall", 0.5)),
        cell("report('loss', 0.5)"),
        cell("import sys\nprint('UserWarning', file=sys.stderr)"),
        cell("import pathlib\nprint(pathlib.Path.home() / 'x')", prints("x\n"), tags=log),
        cell("print(1)", prints("2\n")),
        cell("say('Nearly 38 % leak.')", told("Fully 38 % leak.")),
        cell("print(1)", prints("1\n")),
    )
    write(
        folder,
        "03_stored",
        cell("# skinbook", count=None),
        cell("1", prints("UserWarning: old\n", "stderr"), tags=log),
        cell("1", prints("/home/ann/x.csv\n"), tags=log),
        cell("print(1)", shows(ledger.SETUP, setup), prints("1\n")),
        cell("1", reported("AUC", 1), tags=["nbval-skip"]),
        cell("1", reported("AUC", 1), tags=["nbval-skip"]),
        cell("1", reported("F1", 0.8351, plain="F1  0.95"), tags=["nbval-skip"]),
    )
    stale = {"chapter": "99_none", "edition": "ham10000", "scale": "quick", "names": None, "digest": "0"}
    write(folder, "04_ledger", one("ledger_table('99_none')", shows(ledger.LEDGER, stale), tags=["ledger"]))
    write(folder, "05_twin", cell("print(1)  # skinbook", prints("1\n")), twin="print(2)  # skinbook")


@pytest.mark.slow
def test_each_fault_turns_the_whole_run_red(inner):
    inner.makeconftest(CONFTEST)
    folder = inner.path / "chapters"
    right(folder)
    wrong(folder)
    red, printed = outcome(inner, "--nbval")
    assert red == {
        "02_runs": [f"Cell {number}" for number in range(8)],
        "03_stored": ["stored outputs"],
        "04_ledger": ["stored outputs", "Cell 0"],
        "05_twin": ["text twin"],
    }
    for sentence in (
        "'AUC' is 0.83, and 0.84 is stored, with a tolerance of 1e-09: find out why",
        "The claim 'it flatters' was 'holds' and is 'undecided' now",
        "'recall' is stored, and this run lacks it",
        "'loss' is not stored",
        "The cell writes to stderr (UserWarning)",
        "An output names a path of this machine",
        "An output is not what is stored",
        "A sentence reads differently now",
        "Cell 0 was never executed: run `make refresh CHAPTERS=03`.",
        "Cell 1 has stderr stored (UserWarning: old)",
        "Cell 2 has a path of a machine stored (/home/ann/x.csv)",
        "Cell 3 was stored on ham10000-quick",
        "'AUC' is reported twice in this chapter",
        "Cell 6 shows 'F1  0.95', and what it carries reads 'F1  0.84': run `make refresh CHAPTERS=03`.",
        "are not those of the ledger: run `make refresh-ledger`.",
        "What the ledger gives is not what is stored: run `make refresh-ledger`.",
        "05_twin.ipynb and 05_twin.md differ in the source of cell 2 (print(1)  # skinbook): run `make pair`",
    ):
        assert sentence in printed


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["chapters"], ["chapters/02_number.ipynb", "chapters/17_within.ipynb"]])
def test_a_folder_and_one_notebook_by_name_are_checked_alike(inner, arguments):
    inner.makeconftest(CONFTEST)
    folder = inner.path / "chapters"
    write(folder, "02_number", one("report('AUC', 0.83)", reported("AUC", 0.84)))
    write(folder, "17_within", one("report('AUC', 0.83)", reported("AUC", 0.84)))
    about = {"chapters": {"17_within": {"reports": {"AUC": {"tolerance": 0.02}}}}}
    (inner.path / "data" / "tolerances").mkdir(parents=True)
    (inner.path / "data" / "tolerances" / "lab-quick.json").write_text(json.dumps(about), encoding="utf-8")
    red, _ = outcome(inner, "--nbval", *arguments)
    assert red == {"02_number": ["Cell 0"]}


@pytest.mark.slow
def test_another_edition_counts_only_what_the_ledger_holds(inner, monkeypatch):
    inner.makeconftest(CONFTEST)
    monkeypatch.setenv("SKINBOOK_EDITION", "ham10000")
    monkeypatch.setenv("SKINBOOK_SEED", "1")

    def entry(value, verdict, *more):
        seeds = {"0": {"value": 0.1, "verdict": "undecided"}, "1": {"value": value, "verdict": verdict}}
        report = {"value": 0.4, "seeds": seeds}
        return {
            "reports": dict.fromkeys(("AUC", *more), report),
            "claims": {"it flatters": {"verdict": "undecided", "seeds": seeds}},
        }

    held = {"01_right": entry(0.7, "holds"), "02_wrong": entry(0.71, "undecided", "recall")}
    (inner.path / "data" / "results").mkdir(parents=True)
    (inner.path / "data" / "results" / "ham10000-quick.json").write_text(
        json.dumps({"chapters": held}), encoding="utf-8"
    )
    for name in ("01_right", "02_wrong", "03_unknown"):
        write(
            inner.path / "chapters",
            name,
            one("report('AUC', 0.7); print('real')", reported("AUC", 0.1), prints("lab\n")),
            cell("claim('it flatters', S(value=1, low=1, high=1))", claimed("it flatters", "does not hold")),
        )
    red, printed = outcome(inner, "--nbval")
    assert red == {"02_wrong": ["Cell 0", "Cell 1", "ledger"]}
    assert "'AUC' is 0.7, and 0.71 is in the ledger" in printed
    assert "The claim 'it flatters' was 'undecided' and is 'holds' now" in printed
    assert "'recall' is in the ledger, and this run lacks it" in printed
    assert "The ledger holds no results of 03_unknown on ham10000-quick: its cells must merely run." in printed


def test_a_chapter_that_lacks_what_it_needs_is_left_out_by_name(inner, monkeypatch):
    monkeypatch.setenv("SKINBOOK_EDITION", "dermamnist")
    write(inner.path / "chapters", "03_cnn_lstm", one("report('AUC', 0.7)"))
    red, printed = outcome(inner, "--nbval", apart=False)
    assert not red
    assert "1 skipped" in printed
    assert "Chapter 03_cnn_lstm needs lesion_id" in printed


def test_chapters_are_narrowed_and_a_wrong_name_is_an_error(inner, monkeypatch):
    for name in ("01_a", "02_b"):
        write(inner.path / "chapters", name, cell("1  # skinbook"))
    monkeypatch.setenv("SKINBOOK_CHAPTERS", "02")
    assert "01_a" not in outcome(inner, "--nbval", "--collect-only", apart=False)[1]
    assert "02_b" in outcome(inner, "--nbval", "--collect-only", apart=False)[1]
    monkeypatch.setenv("SKINBOOK_CHAPTERS", "02 77")
    assert "SKINBOOK_CHAPTERS names '77'" in outcome(inner, "--nbval", "--collect-only", apart=False)[1]


def test_other_peoples_notebooks_and_wrong_settings(inner, monkeypatch):
    write(inner.path, "theirs", cell("print(1)", count=None))
    printed = outcome(inner, "--nbval", "--collect-only", apart=False)[1]
    assert "theirs.ipynb" in printed
    assert "Cell 0" in printed
    assert "stored outputs" not in printed
    write(inner.path, "ours", cell("1  # skinbook"))
    monkeypatch.setenv("SKINBOOK_EDITION", "moon")
    printed = outcome(inner, "--nbval", "--collect-only", apart=False)[1]
    assert "SKINBOOK_EDITION is 'moon', which is not one of lab" in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize("digits", range(7))
def test_a_report_may_show_any_number_of_digits(digits):
    payload = {"name": "AUC", "value": 0.8351234, "low": 0.8, "high": 0.9}
    seen = ledger.seen(ledger.REPORT, payload, digits)["text/plain"]
    assert unlike_carried([carried(ledger.REPORT, payload, plain=seen)]) == []


@pytest.mark.parametrize(
    ("output", "shows"),
    [
        (reported("AUC", 0.8351, plain="AUC  0.9"), "'AUC  0.9'"),
        (reported("AUC", 0.8351, plain="F1  0.84"), "'F1  0.84'"),
        (reported("AUC", 0.8351, html="<b>0.99</b>"), "'<b>0.99</b>'"),
        (claimed("it flatters", "undecided", plain="holds: it flatters  0.10  [0.05, 0.20]"), "'holds: it flatters"),
        (claimed("it flatters", "holds", plain="holds: it is fair  0.10  [0.05, 0.20]"), "'holds: it is fair"),
        (claimed("it flatters", "holds", plain="holds: it flatters  0.90  [0.85, 0.95]"), "'holds: it flatters  0.90"),
        (claimed("it flatters", "undecided", markdown="**holds**: it flatters (0.10)"), "'**holds**"),
        (told("About 38 %.", plain="About 83 %."), "'About 83 %.'"),
        (told("About 38 %.", markdown="About 83 %."), "'About 83 %.'"),
    ],
)
def test_what_a_reader_sees_is_what_is_carried(output, shows):
    (fault,) = unlike_carried([output])
    assert fault.startswith(f"shows {shows}")


def test_what_a_chapter_shows_is_what_it_carries(monkeypatch):
    outputs = []

    def show(text, mime, payload, markdown=None):
        outputs.append(shows(mime, payload, text))
        outputs[-1].data |= {"text/markdown": markdown} if markdown else {}

    monkeypatch.setattr(chapter, "_run", chapter._Run())
    monkeypatch.setattr(chapter, "_show", show)
    chapter.report("AUC", SimpleNamespace(value=0.8351, low=-0.0001, high=0.9), digits=3)
    chapter.report("photographs", 10015)
    chapter.report("undefined", float("nan"))
    chapter.claim("it flatters", SimpleNamespace(value=0.1, low=0.05, high=0.2))
    chapter.claim("it is fair", None)
    chapter.say("About 38 %.")
    assert len(outputs) == 6
    assert unlike_carried(outputs) == []


@pytest.mark.parametrize(
    "text",
    [
        "/home/ann",
        "in '/root/.cache'",
        "see /tmp",
        "/Users/ann/x",
        r"C:\Users\ann",
        "/work/x",
        '"/kaggle/input/y"',
        "file:///home/alice/x.py",
        "file:/data/x.py",
        "PATH=/usr/bin:/home/alice/bin",
        "/opt/conda/lib/python3/site-packages/x.py",
        'File "/usr/lib/python3/dist-packages/x.py", line 3',
        "/srv/ci/book",
        "in /var/folders/x1/T/y",
    ],
)
def test_paths_of_machines_are_seen(text):
    assert MACHINE.search(text)
    assert paths_in([prints(text)])


@pytest.mark.parametrize(
    "text",
    [
        "https://example.org/home/x",
        "https://example.org/opt/x",
        "http://localhost:8888/srv/x",
        "https://example.org/x/site-packages/y.py",
        "data/results",
        "1/2",
        "and/or",
        "</home/>",
        "~/work/x",
        "benign/malignant",
    ],
)
def test_other_slashes_are_left_alone(text):
    assert not MACHINE.search(text)
    assert not paths_in([prints(text)])


def test_folders_of_the_settings_and_of_this_python_are_seen(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", "/var/elsewhere")
    monkeypatch.setattr("sys.prefix", "/big/conda/envs/book")
    monkeypatch.setenv("SKINBOOK_DATA", os.pathsep.join(("/lesions", "/big/ham10000", "data")))
    monkeypatch.setenv("SKINBOOK_CACHE", "/scratch/pixels")
    monkeypatch.setenv("SKINBOOK_WEIGHTS", "/models/resnet18.safetensors")
    monkeypatch.setattr("os.getcwd", lambda: "/checkout/book")
    for text in (
        "read /lesions",
        "'/big/ham10000/table.csv'",
        "/scratch/pixels/1f",
        "from /models/resnet18.safetensors.",
        "/checkout/book/chapters",
        "/checkout/book/data/results",
        "/big/conda/envs/book/bin/python",
    ):
        assert paths_in([prints(text)]), text
    for text in ("https://example.org/lesions/", "/lesionsize", "data/results", "benign/lesions", "/big/other"):
        assert not paths_in([prints(text)]), text


def test_pictures_are_not_searched_for_paths():
    assert not paths_in([new_output("display_data", {"image/png": " /tmp/ "})])


def test_near():
    assert near(None, None, 0.0)
    assert near(1.0, 1.05, 0.1)
    assert not near(1.0, None, 0.1)
    assert not near(1.0, 1.2, 0.1)


def with_exercise(folder, name, solution, wrong):
    """A chapter with one exercise: double a number."""
    check = 'from skinbook.chapter import exercise\nexercise("1", lambda: double(3) == 6)'
    answer = new_markdown_cell(f"<details>\n\n```python\n{solution}\n```\n\n</details>")
    answer.metadata = {"tags": ["solution"], "skinbook": {"exercise": "1", "wrong": wrong}}
    stub = cell("def double(x):\n    return None", tags=["exercise"])
    write(folder, name, stub, cell(check, prints("Exercise 1: not yet\n"), tags=["exercise"], count=2), answer)


@pytest.mark.slow
def test_a_solution_must_be_right_and_a_wrong_answer_must_not(inner):
    good, bad = "def double(x):\n    return 2 * x", "def double(x):\n    return x"
    with_exercise(inner.path, "01_right", good, bad)
    with_exercise(inner.path, "02_wrong_solution", bad, bad)
    with_exercise(inner.path, "03_check_that_cannot_fail", good, good)
    with_exercise(inner.path, "04_no_wrong_answer", good, "")
    red, printed = outcome(inner, "--nbval")
    assert red == {
        "02_wrong_solution": ["exercise 1, solution"],
        "03_check_that_cannot_fail": ["exercise 1, wrong"],
        "04_no_wrong_answer": ["stored outputs"],
    }, printed
    assert "Exercise 1 lacks its wrong" in printed


# One part after another, without a kernel


@pytest.fixture
def collected(inner, monkeypatch):
    """Collects a chapter in this process: its items by name, whose cells can be told what they put out."""
    monkeypatch.setattr(ledger, "book_data", lambda *parts: inner.path.joinpath("data", *parts))

    def collect(*cells, name="03_x", twin=None, arguments=()):
        write(inner.path, name, *cells, twin=twin)
        items, _ = inner.inline_genitems("--nbval", "-p", "no:cacheprovider", *arguments, f"{name}.ipynb")
        return {item.name: item for item in items}

    return collect


def keep(folder, kind, edition, scale, about):
    """A file of the ledger or of tolerances beside the notebooks."""
    file = folder / "data" / kind / f"{edition}-{scale}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"chapters": about}), encoding="utf-8")


def ran(item, *outputs):
    """What the plugin says of a cell that has put this out."""
    item.test_outputs = list(outputs)
    return item.faults()


REMEDY = "find out why, or, where the change is meant, run `make refresh CHAPTERS=03`"


@pytest.mark.parametrize(
    ("nbval", "dist", "becomes"),
    [(True, "load", "loadfile"), (False, "load", "load"), (None, "load", "load")]
    + [(True, other, other) for other in ("no", "each", "loadscope", "worksteal")],
)
def test_the_cells_of_a_notebook_stay_in_one_process(nbval, dist, becomes):
    asked = {} if nbval is None else {"nbval": nbval}
    config = SimpleNamespace(getoption=asked.get, option=SimpleNamespace(dist="".join(dist)))
    nbval_plugin.pytest_configure(config)
    assert config.option.dist == becomes
    nbval_plugin.pytest_configure(SimpleNamespace(getoption=asked.get, option=SimpleNamespace()))  # without xdist


def test_what_is_collected_of_a_chapter(collected):
    items = collected(cell("# skinbook"), cell("2", count=2), twin="2")
    assert list(items) == ["stored outputs", "text twin", "Cell 0", "Cell 1"]
    file = items["Cell 1"].parent
    assert (file.on_lab, file.exactly, file.broken, file.entry) == (True, True, False, {})
    assert file.made == {"reports": set(), "claims": set()}
    assert list(collected(cell("# skinbook"), name="04_y")) == ["stored outputs", "Cell 0"]
    item = items["stored outputs"]
    assert item.reportinfo() == (item.path, 0, "03_x.ipynb: stored outputs")


@pytest.mark.parametrize(
    ("setting", "value", "on_lab", "exactly"),
    [
        ("SEED", "0", True, True),
        ("SEED", "1", True, False),
        ("SCALE", "full", False, False),
        ("EDITION", "ham10000", False, False),
    ],
)
def test_outputs_are_compared_with_the_stored_ones_on_lab_alone(
    collected, monkeypatch, setting, value, on_lab, exactly
):
    monkeypatch.setenv(f"SKINBOOK_{setting}", value)
    file = collected(cell("# skinbook"))["Cell 0"].parent
    assert (file.on_lab, file.exactly) == (on_lab, exactly)


@pytest.mark.parametrize("wanted", ["02", "02_b", "b", "b 01"])
def test_a_chapter_is_named_by_number_name_or_both(inner, monkeypatch, wanted):
    for name in ("01_a", "02_b", "03_c", "unnumbered"):
        write(inner.path, name, cell("# skinbook"))
    monkeypatch.setenv("SKINBOOK_CHAPTERS", wanted)
    items, _ = inner.inline_genitems("--nbval", "-p", "no:cacheprovider")
    expected = {"02_b", "unnumbered"} | ({"01_a"} if "01" in wanted else set())
    assert {item.path.stem for item in items} == expected


def test_the_first_chapter_that_is_not_there_is_named(inner, monkeypatch):
    write(inner.path, "01_a", cell("# skinbook"))
    monkeypatch.setenv("SKINBOOK_CHAPTERS", "01 77 88")
    printed = outcome(inner, "--nbval", "--collect-only", apart=False)[1]
    assert "SKINBOOK_CHAPTERS names '77', and there is no such chapter: correct it." in printed
    # Without notebooks nothing was narrowed.
    file = inner.makepyfile("def test_it(): pass")
    printed = outcome(inner, file.name, "--collect-only", apart=False)[1]
    assert "1 test collected" in printed
    assert "SKINBOOK_CHAPTERS names" not in printed


def test_another_plugins_collector_of_notebooks_stays(inner, monkeypatch):
    inner.makeconftest(
        """
        import pytest

        class Item(pytest.Item):
            def runtest(self): pass

        class Other(pytest.File):
            def collect(self):
                yield Item.from_parent(self, name="other")

        def pytest_collect_file(file_path, parent):
            return Other.from_parent(parent, path=file_path) if file_path.suffix == ".ipynb" else None
        """
    )
    for name in ("01_a", "02_b"):
        write(inner.path, name, cell("# skinbook"))
    monkeypatch.setenv("SKINBOOK_CHAPTERS", "02")
    items, _ = inner.inline_genitems("--nbval", "-p", "no:cacheprovider")
    found = [(item.path.stem, item.name) for item in items]
    assert sorted(found) == [("01_a", "other"), ("02_b", "Cell 0"), ("02_b", "other"), ("02_b", "stored outputs")]


def test_a_notebook_is_a_chapter_if_its_code_uses_skinbook(tmp_path):
    def uses(text):
        (tmp_path / "x.ipynb").write_text(text, encoding="utf-8")
        return nbval_plugin._uses_skinbook(tmp_path / "x.ipynb")

    def holds(kind, source):
        return json.dumps(
            {"cells": [{"cell_type": "raw"}, {"cell_type": "code"}, {"cell_type": kind, "source": source}]}
        )

    assert uses(holds("code", "import skinbook"))
    assert uses(holds("code", ["import numpy\n", "import skin", "book"]))
    assert not uses(holds("code", "import numpy"))
    assert not uses(holds("markdown", "about skinbook"))
    for broken in ("{", "[]", "{}"):
        assert not uses(broken)
    assert not nbval_plugin._uses_skinbook(tmp_path / "absent.ipynb")


def test_a_run_is_held_against_what_is_stored(collected):
    stored = reported("AUC", 0.8), claimed("it flatters", "undecided"), told("About 41 % of them.")
    item = collected(cell("# skinbook", *stored))["Cell 0"]
    assert ran(item, *stored) == []
    assert item.parent.made == {"reports": {"AUC"}, "claims": {"it flatters"}}
    assert ran(item, stored[0], stored[1], told("About 38 % of them.")) == []
    for value in (0.9, 0.7, 0.0):
        assert ran(item, reported("AUC", value), *stored[1:]) == [
            f"'AUC' is {value}, and 0.8 is stored, with a tolerance of 1e-09: {REMEDY}."
        ]
    for verdict in ("holds", "does not hold", "unheard of"):
        assert ran(item, stored[0], claimed("it flatters", verdict), stored[2]) == [
            f"The claim 'it flatters' was 'undecided' and is {verdict!r} now: {REMEDY}."
        ]
    assert ran(item, *stored, reported("F1", 0.5), claimed("it is fair", "holds")) == [
        f"'F1' is not stored: {REMEDY}.",
        f"'it is fair' is not stored: {REMEDY}.",
    ]
    assert ran(item, stored[2]) == [
        f"'AUC' is stored, and this run lacks it: {REMEDY}.",
        f"'it flatters' is stored, and this run lacks it: {REMEDY}.",
    ]
    for other in ("Some 41 % of them.", "A bare 41 % of them."):  # later in the alphabet, and earlier
        assert ran(item, *stored[:2], told(other)) == [
            f"A sentence reads differently now ({other.replace('41', '#')!r}, stored 'About # % of them.'): {REMEDY}."
        ]
    assert ran(item, *stored, told("More.")) == [f"The cell says 2 sentences, and 1 are stored: {REMEDY}."]
    assert ran(item, *stored[:2]) == [f"The cell says 0 sentences, and 1 are stored: {REMEDY}."]
    item.test_outputs = None  # a cell that is skipped puts nothing out
    assert len(item.faults()) == 3


def test_a_cell_that_was_never_executed_has_nothing_to_be_held_against(collected):
    item = collected(cell("# skinbook", count=None))["Cell 0"]
    assert ran(item, reported("AUC", 0.8), told("More.")) == []
    assert item.parent.made["reports"] == {"AUC"}


def test_with_another_seed_sentences_may_differ_and_numbers_within_their_tolerance(inner, collected, monkeypatch):
    monkeypatch.setenv("SKINBOOK_SEED", "1")
    keep(inner.path, "tolerances", "lab", "quick", {"03_x": {"reports": {"AUC": {"tolerance": 0.25}}}})
    item = collected(cell("# skinbook", reported("AUC", 0.5), told("About 41 %.")))["Cell 0"]
    assert ran(item, reported("AUC", 0.75)) == []
    assert ran(item, reported("AUC", 0.25), told("None.")) == []
    assert ran(item, reported("AUC", 0.751)) == [
        f"'AUC' is 0.751, and 0.5 is stored, with a tolerance of 0.25: {REMEDY}."
    ]


@pytest.mark.parametrize(
    ("verdicts", "may"),
    [
        ([("holds", 0), ("undecided", 0)], True),
        ([("holds", 0), ("undecided", 0), ("does not hold", 0)], True),
        ([("holds", 0)], False),
        ([("holds", 0), ("undecided", 1)], False),
        ([("holds", 0), ("does not hold", 0)], False),
    ],
)
def test_a_verdict_may_change_as_it_did_with_the_number_of_threads(inner, collected, verdicts, may):
    about = {
        "runs": [{"seed": seed} for _, seed in verdicts],
        "claims": {"it flatters": {"verdicts": [verdict for verdict, _ in verdicts]}},
    }
    keep(inner.path, "tolerances", "lab", "quick", {"03_x": about})
    item = collected(cell("# skinbook", claimed("it flatters", "holds")))["Cell 0"]
    faults = ran(item, claimed("it flatters", "undecided"))
    assert (faults == []) == may
    assert ran(item, claimed("it flatters", "holds")) == []


def test_another_edition_is_held_against_its_seed_in_the_ledger_or_the_mean(inner, collected, monkeypatch):
    monkeypatch.setenv("SKINBOOK_EDITION", "ham10000")
    seeds = {"0": {"value": 0.7}}
    keep(inner.path, "results", "ham10000", "quick", {"03_x": {"reports": {"AUC": {"value": 0.6, "seeds": seeds}}}})
    stderr = prints("UserWarning", "stderr")

    def outcome_of(value, seed):
        monkeypatch.setenv("SKINBOOK_SEED", seed)
        items = collected(cell("# skinbook", reported("AUC", 0.1), reported("F1", 0.5), told("41 %.")))
        assert list(items) == ["stored outputs", "Cell 0", "ledger"]
        assert items["Cell 0"].compare_outputs([prints("1")], [prints("2")])
        return ran(items["Cell 0"], reported("AUC", value), stderr, told("More."), told("And more."))

    remedy = (
        "find out why, or, where the change is meant, run `skinbook run 03 --edition ham10000 --scale quick --record`"
    )
    assert outcome_of(0.7, "0") == outcome_of(0.6, "1") == []
    assert outcome_of(0.6, "0") == [f"'AUC' is 0.6, and 0.7 is in the ledger, with a tolerance of 1e-09: {remedy}."]
    items = collected(cell("# skinbook"))
    assert ran(items["Cell 0"], reported("F1", 0.5)) == [f"'F1' is not in the ledger: {remedy}."]
    try:
        assert items["ledger"].faults() == [f"'AUC' is in the ledger, and this run lacks it: {remedy}."]
        ran(items["Cell 0"], reported("AUC", 0.7))
        assert items["ledger"].faults() == []
    except pytest.skip.Exception as skipped:  # it would skip this test, and nobody would see red
        pytest.fail(str(skipped))
    items["ledger"].parent.broken = True
    with pytest.raises(pytest.skip.Exception, match="A cell failed"):
        items["ledger"].faults()


def test_who_gets_other_numbers_on_real_lesions_is_told_which_weights_the_recorded_ones_began_with(
    inner, collected, monkeypatch
):
    monkeypatch.setenv("SKINBOOK_EDITION", "ham10000")
    about = {
        "weights": "a.safetensors",
        "weights, map": "b.safetensors",
        "weights, head": "a.safetensors",
        "split": "x",
    }
    entry = {"provenance": about, "reports": {"AUC": {"value": 0.6, "seeds": {}}}}
    keep(inner.path, "results", "ham10000", "quick", {"03_x": entry})
    (fault,) = ran(collected(cell("# skinbook", reported("AUC", 0.6)))["Cell 0"], reported("AUC", 0.5))
    assert "find out why (on record are the weights a.safetensors, b.safetensors: are yours others?), or" in fault


def test_what_is_carried_and_stderr_are_not_compared_as_text(collected):
    items = collected(cell("# skinbook"), cell("2", tags=["ledger"], count=2))
    item, of_ledger = items["Cell 0"], items["Cell 1"]
    setup = {"edition": "lab", "scale": "quick", "device": "cpu"}
    pairs = [
        (shows(ledger.SETUP, setup, "cpu"), shows(ledger.SETUP, setup | {"device": "cuda"}, "cuda")),
        (reported("AUC", 0.8), reported("AUC", 0.9)),
        (claimed("it flatters", "holds"), claimed("it flatters", "undecided")),
        (told("About 38 %."), told("About 41 %.")),
        (prints("slow", "stderr"), prints("slower", "stderr")),
    ]
    for number, (a, b) in enumerate(pairs):
        assert item.compare_outputs([prints("same"), a], [prints("same"), b]), number
        assert item.compare_outputs([prints("same"), a], [prints("same")]), number
        assert not item.compare_outputs([prints("one"), a], [prints("other"), b]), number
    assert item.comparison_traceback[0] == (
        f"An output is not what is stored: {REMEDY} (logs and times are tagged nbval-ignore-output).\n"
    )
    # A sentence of the ledger's cells is what the ledger gives, to the letter.
    assert not of_ledger.compare_outputs([pairs[3][0]], [pairs[3][1]])
    assert of_ledger.comparison_traceback[0].startswith("What the ledger gives is not what is stored")
    assert of_ledger.compare_outputs([pairs[1][0]], [pairs[1][1]])


def test_stderr_and_paths_of_a_run_are_faults_unless_it_is_tagged(collected):
    items = collected(cell("# skinbook"), cell("2", tags=["nbval-ignore-output"], count=2))
    warns, path = prints("\nUserWarning: x\nmore", "stderr"), prints("/home/ann/x")
    assert ran(items["Cell 0"], warns, prints("fine")) == [
        "The cell writes to stderr (UserWarning: x): put right what it warns of, "
        "or tag a cell of logs nbval-ignore-output."
    ]
    assert ran(items["Cell 1"], warns) == []
    for item in items["Cell 0"], items["Cell 1"]:
        assert ran(item, path) == ["An output names a path of this machine (/home/ann/x): print less."]


def test_a_cell_that_fails_breaks_the_chapter_and_one_with_faults_fails(collected, monkeypatch):
    from nbval.plugin import IPyNbCell, NbCellError

    item = collected(cell("# skinbook"))["Cell 0"]
    monkeypatch.setattr(IPyNbCell, "runtest", lambda self: setattr(self, "test_outputs", []))
    item.runtest()
    assert not item.parent.broken
    monkeypatch.setattr(IPyNbCell, "runtest", lambda self: setattr(self, "test_outputs", [reported("AUC", 1)]))
    with pytest.raises(NbCellError, match="'AUC' is not stored"):
        item.runtest()
    assert not item.parent.broken

    def stops(self):
        raise NbCellError(0, "stop", "1 / 0")

    monkeypatch.setattr(IPyNbCell, "runtest", stops)
    with pytest.raises(NbCellError, match="stop"):
        item.runtest()
    assert item.parent.broken


@pytest.mark.parametrize(
    ("edition", "asked", "kernel", "timeout", "current", "given"),
    [
        ("lab", False, "", 2000.0, True, 2000.0),
        ("lab", False, "python3", 2000.0, False, 2000.0),
        ("lab", True, "", 60.0, True, 60.0),
        ("ham10000", False, "", 2000.0, True, 10800.0),
        ("ham10000", False, "", 2500.0, True, 2500.0),
        ("ham10000", False, "", 60.0, True, 60.0),
    ],
)
def test_the_kernel_is_this_pythons_and_has_three_hours_for_a_cell_of_real_lesions(
    collected, monkeypatch, edition, asked, kernel, timeout, current, given
):
    from nbval.plugin import IPyNbFile

    monkeypatch.setenv("SKINBOOK_EDITION", edition)
    file = collected(cell("# skinbook"))["Cell 0"].parent
    option, seen = file.config.option, []
    assert option.nbval_cell_timeout == 2000.0  # nbval's own
    option.nbval_current_env, option.nbval_kernel_name, option.nbval_cell_timeout = asked, kernel, float(str(timeout))
    monkeypatch.setattr(
        IPyNbFile, "setup", lambda self: seen.append((option.nbval_current_env, option.nbval_cell_timeout))
    )
    file.setup()
    assert seen == [(current, given)]
    assert option.nbval_current_env == asked


def test_a_check_of_the_whole_fails_in_its_own_words(collected):
    item = collected(cell("# skinbook", count=None))["stored outputs"]
    with pytest.raises(pytest.fail.Exception, match="Cell 0 was never executed") as caught:
        item.runtest()
    assert not caught.value.pytrace
    collected(cell("# skinbook"))["stored outputs"].runtest()


def checked(check, *cells, folder=None, twin=None):
    """What a check of the whole says of a notebook."""
    if folder is not None:
        write(folder, "03_x", *cells, twin=twin)
    path = (folder or Path()) / "03_x.ipynb"
    return check.faults(SimpleNamespace(parent=SimpleNamespace(path=path, nb=new_notebook(cells=list(cells)))))


def test_what_is_stored_is_looked_at_cell_by_cell():
    remedy = "run `make refresh CHAPTERS=03`"
    setup = {"edition": "lab", "scale": "quick"}
    right = [
        new_markdown_cell("words"),
        cell("1", shows(ledger.SETUP, setup), prints("1\n")),
        cell(" \n", count=None),
        cell("1", count=None, tags=["nbval-skip"]),
        cell("# NBVAL_SKIP\n1", count=None),
        cell("1", reported("AUC", 1)),
    ]
    assert checked(Stored, *right) == []
    assert checked(Stored, *right, cell("1", count=None)) == [f"Cell 5 was never executed: {remedy}."]
    for edition, scale in (("lab", "full"), ("ham10000", "quick"), ("ph2", "quick")):
        other = cell("1", shows(ledger.SETUP, {"edition": edition, "scale": scale}))
        assert checked(Stored, *right, other) == [
            f"Cell 5 was stored on {edition}-{scale}, and the outputs in git are lab-quick's: {remedy}."
        ]
    faulty = cell("1", prints("UserWarning: old\nmore", "stderr"), prints("/home/ann/x"), told("A.", plain="B."))
    assert checked(Stored, *right, faulty) == [
        f"Cell 5 has stderr stored (UserWarning: old): put right what it warns of, and {remedy}.",
        f"Cell 5 has a path of a machine stored (/home/ann/x): print less, and {remedy}.",
        f"Cell 5 shows 'B.', and what it carries reads 'A.': {remedy}.",
    ]
    assert checked(Stored, *right, cell("1", reported("AUC", 1))) == [
        "'AUC' is reported twice in this chapter: reword one of the two."
    ]


def answer(name, solution="double = 2", wrong="double = 3"):
    made = new_markdown_cell(f"Why.\n\n```python\n{solution}\n```\n\nAnd\n\n```python\nmore\n```\n")
    made.metadata = {"tags": ["solution"], "skinbook": {"exercise": name, "wrong": wrong}}
    return made


def test_an_exercise_has_a_solution_a_wrong_answer_and_one_check():
    check = 'exercise("1", lambda: double == 2)'
    plain = new_markdown_cell('```python\nexercise("1")\n```')
    raw = new_raw_cell('exercise("1")')
    whole = [cell("stub"), plain, raw, cell(check), answer("1")]
    parts = {"solution": "double = 2\n", "wrong": "double = 3", "check": check}
    assert exercise_parts(whole) == {"1": parts}
    tried = dict(exercises(whole))
    assert list(tried) == ["exercise 1, solution", "exercise 1, wrong"]
    for (name, made), (part, says) in zip(tried.items(), (("solution", "right"), ("wrong", "not yet")), strict=True):
        assert made.source == f"{parts[part]}\n{check}", name
        assert [(o.name, o.text) for o in made.outputs] == [("stdout", f"Exercise 1: {says}\n")]
        assert made.execution_count == 1
    for lacking, cells in {
        "check": [cell(check), cell(check), answer("1")],
        "solution": [cell(check), new_markdown_cell("none", metadata=answer("1").metadata)],
        "wrong": [cell(check), answer("1", wrong="")],
    }.items():
        assert exercise_parts(cells)["1"][lacking] == ""
        assert list(exercises(cells)) == []
        assert checked(Stored, *cells) == [f"Exercise 1 lacks its {lacking}: see CONTRIBUTING.md on exercises."]
    assert exercise_parts([answer("1")])["1"]["check"] == ""
    assert exercise_parts([new_markdown_cell("x", metadata={"tags": ["solution"]})]) == {
        "?": {"solution": "", "wrong": "", "check": ""}
    }


def test_exercises_are_tried_whatever_the_first_cell_is_tagged(collected):
    first = cell("# skinbook", tags=["raises-exception", "nbval-skip"], count=None)
    items = collected(first, cell('exercise("1", 1)', count=2), answer("1"))
    assert list(items) == ["stored outputs", "Cell 0", "Cell 1", "exercise 1, solution", "exercise 1, wrong"]
    item = items["exercise 1, solution"]
    assert (item.options["check"], item.options["skip"], item.options["check_exception"]) == (True, False, False)
    assert item.cell_num == 2
    assert not item.compare_outputs([prints("not yet")], [prints("right")])
    assert item.compare_outputs([prints("right")], [prints("right")])


def test_the_text_twin_has_the_same_cells(tmp_path):
    cells = [cell("1  # skinbook"), cell("2", tags=["setup"])]

    def says(*of_twin):
        write(tmp_path, "03_x", *of_twin)
        jupytext.write(nbformat.read(tmp_path / "03_x.ipynb", as_version=4), tmp_path / "03_x.md", fmt="md:myst")
        notebook = new_notebook(cells=[new_markdown_cell("# A chapter"), *cells])
        return Twin.faults(SimpleNamespace(parent=SimpleNamespace(path=tmp_path / "03_x.ipynb", nb=notebook)))

    ends = ": run `make pair` (or `make pair FROM=notebook`)."
    assert says(*cells) == []
    for other in ("3", "1"):
        assert says(cells[0], cell(other, tags=["setup"])) == [
            f"03_x.ipynb and 03_x.md differ in the source of cell 3 (2){ends}"
        ]
    assert says(cells[0], cell("2")) == [f"03_x.ipynb and 03_x.md differ in the tags of cell 3 (2){ends}"]
    assert says(cells[0], new_markdown_cell("2")) == [f"03_x.ipynb and 03_x.md differ in the type of cell 3 (2){ends}"]
    assert says(cells[0]) == ["03_x.ipynb has 3 cells and 03_x.md has 2: run `make pair`."]
    assert says(*cells, cell("3")) == ["03_x.ipynb has 3 cells and 03_x.md has 4: run `make pair`."]


def test_two_values_are_near_within_the_tolerance_and_at_its_end():
    assert near(0.5, 0.75, 0.25)
    assert near(0.75, 0.5, 0.25)
    assert near(5.0, 5.0, 0.0)
    assert not near(0.5, 0.8, 0.25)
    assert not near(0.8, 0.5, 0.25)
    assert not near(2.0, 1.0, 0.5)  # one is a multiple of the other
    assert not near(None, 1.0, 2.0)
    assert not near(None, 0.0, 0.0)


def test_what_is_stderr_and_its_first_line():
    assert nbval_plugin._is_stderr(prints("x", "stderr"))
    assert not nbval_plugin._is_stderr(prints("x"))
    assert not nbval_plugin._is_stderr(new_output("error", ename="stderr", evalue="", traceback=[]))
    assert not nbval_plugin._is_stderr({"output_type": "update_display_data", "name": "stderr"})
    assert nbval_plugin._first_line("\n  one\ntwo") == "one"
    assert nbval_plugin._first_line("x" * 200) == "x" * 120
    assert nbval_plugin._first_line(" \n") == "an empty line"


def test_a_path_is_quoted_from_where_it_begins_and_not_for_long(monkeypatch):
    monkeypatch.delenv("SKINBOOK_DATA", raising=False)
    long = "/home/ann/" + "x" * 60
    assert paths_in([prints(f"read\nfrom {long}\nand more")]) == [long[:40]]
    assert paths_in([prints("read /home/ann/x\nand more")]) == ["/home/ann/x"]
    error = new_output("error", ename="E", evalue="in /home/ann/y", traceback=["fine", "File /home/ann/z"])
    assert paths_in([error]) == ["/home/ann/z", "/home/ann/y"]
    data = {"text/plain": "/home/ann", "application/json": {"at": "/home/bob"}, "image/svg+xml": "/home/eve"}
    assert paths_in([new_output("display_data", data)]) == ["/home/ann", '/home/bob"}']


@pytest.mark.parametrize("prefix", ["/usr", "/big/conda"])
def test_the_systems_own_folder_and_the_root_are_no_secret(monkeypatch, prefix):
    monkeypatch.setattr("sys.prefix", prefix)
    monkeypatch.setenv("SKINBOOK_DATA", "/")
    assert paths_in([prints("/usr/share/dict/words, and / or 1 / 2")]) == []


def test_a_fault_names_the_form_in_which_another_thing_is_shown():
    payload = {"name": "AUC", "value": 0.8351234, "low": None, "high": None}
    three = ledger.seen(ledger.REPORT, payload, 3)["text/plain"]
    assert unlike_carried([carried(ledger.REPORT, payload, plain=three, html="<b>0.99</b>")]) == [
        "shows '<b>0.99</b>', and what it carries reads None"
    ]
    assert unlike_carried([carried(ledger.REPORT, payload, plain="AUC  0.9")]) == [
        "shows 'AUC  0.9', and what it carries reads 'AUC  0.84'"
    ]
    about = {"sentence": "it flatters", "verdict": "holds", "value": 0.1234, "low": 0.0512, "high": 0.2456}
    for digits in (1, 3):
        (fault,) = unlike_carried([carried(ledger.CLAIM, about, **_forms(ledger.seen(ledger.CLAIM, about, digits)))])
        assert fault.endswith("what it carries reads 'holds: it flatters  0.12  [0.05, 0.25]'")
    for text in ("A.", "Z."):
        assert unlike_carried([told("M.", markdown=text)]) == [f"shows {text!r}, and what it carries reads 'M.'"]


def _forms(seen):
    return {form.removeprefix("text/"): text for form, text in seen.items()}


def test_another_seed_is_held_against_its_own_verdicts_on_the_lab(inner, collected, monkeypatch):
    about = {
        "runs": [{"seed": 0}, {"seed": 1}],
        "claims": {"it flatters": {"verdicts": ["holds", "undecided"]}},
    }
    keep(inner.path, "tolerances", "lab", "quick", {"03_x": about})
    for seed, verdict, may in (
        ("1", "undecided", True),
        ("1", "holds", False),
        ("0", "undecided", False),
        ("2", "holds", True),
    ):
        monkeypatch.setenv("SKINBOOK_SEED", seed)
        item = collected(cell("# skinbook", claimed("it flatters", "holds")))["Cell 0"]
        assert (ran(item, claimed("it flatters", verdict)) == []) == may


def test_what_is_said_twice_or_without_its_interval_or_against_another_value_is_seen(collected):
    item = collected(cell("# skinbook", reported("AUC", 0.5), claimed("it flatters", "holds")))["Cell 0"]
    now = claimed("it flatters", "holds")
    assert ran(item, reported("AUC", 0.5), now) == []
    (fault,) = ran(item, reported("AUC", 0.5), claimed("it flatters", "undecided"), now)
    assert fault == "One of 'it flatters' is said twice in this cell: give each its own name."
    other = reported("AUC", 0.5)
    other["data"][ledger.REPORT] = {**other["data"][ledger.REPORT], "low": 0.4, "high": 0.6}
    moved = claimed("it flatters", "holds")
    for above in (-1.0, 1.0):
        moved["data"][ledger.CLAIM] = {**moved["data"][ledger.CLAIM], "above": above}
        (fault,) = ran(item, reported("AUC", 0.5), moved)
        assert fault.startswith("The claim 'it flatters' is held against another value than stored")
    (fault,) = ran(item, other, now)
    assert fault.startswith("'AUC' has an interval now or stored, and not both")
    (fault,) = ran(collected(cell("# skinbook", other))["Cell 0"], reported("AUC", 0.5))
    assert fault.startswith("'AUC' has an interval now or stored, and not both")
