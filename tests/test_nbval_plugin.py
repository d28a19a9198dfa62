"""Each thing that must turn a run of the chapters red does so, and the right notebook is green."""

import json
import os
import re
from types import SimpleNamespace

import jupytext
import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from skinbook import chapter, ledger
from skinbook.nbval_plugin import MACHINE, near, paths_in, unlike_carried

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


@pytest.mark.parametrize("arguments", [["chapters"], ["chapters/02_number.ipynb", "chapters/17_within.ipynb"]])
def test_a_folder_and_one_notebook_by_name_are_checked_alike(inner, arguments):
    inner.makeconftest(CONFTEST)
    folder = inner.path / "chapters"
    write(folder, "02_number", one("report('AUC', 0.83)", reported("AUC", 0.84)))
    write(folder, "17_within", one("report('AUC', 0.83)", reported("AUC", 0.84)))
    about = {"chapters": {"17_within": {"reports": {"AUC": {"tolerance": 0.02}}}}}
    (inner.path / "data" / "tolerances").mkdir(parents=True)
    (inner.path / "data" / "tolerances" / "lab-quick.json").write_text(json.dumps(about))
    red, _ = outcome(inner, "--nbval", *arguments)
    assert red == {"02_number": ["Cell 0"]}


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
    (inner.path / "data" / "results" / "ham10000-quick.json").write_text(json.dumps({"chapters": held}))
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
    assert "stored outputs" not in outcome(inner, "--nbval", "--collect-only", apart=False)[1]
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
