"""Chapters are executed in kernels of their own; these are tiny ones."""

import json
import os
import signal
import subprocess
import sys
import threading

import nbformat
import pytest
import torch
from faults import ends_its_processes
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from skinbook import chapter, ledger, runs
from skinbook.config import SkinbookError, cores, threads_of

MEASURE = """from types import SimpleNamespace as S
import os
from skinbook.chapter import claim, report
seed, threads = int(os.environ["SKINBOOK_SEED"]), int(os.environ.get("SKINBOOK_THREADS", 2))
report("AUC", S(value=0.8 + seed / 100, low=0.7, high=0.9))
report("photographs", 7)
claim("it flatters", S(value=0.1, low=0.05 - seed, high=0.2))"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A checkout with one tiny chapter."""
    (tmp_path / "_toc.yml").touch()
    (tmp_path / "chapters").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "recipes.toml").write_text('[07_x]\nneeds = ["lesion_id"]\n[08_y]\n', encoding="utf-8")
    for module in (chapter, ledger, runs):
        monkeypatch.setattr(module, "book_data", lambda *parts: tmp_path.joinpath("data", *parts))
    for variable in ("EDITION", "SCALE", "SEED", "DEVICE", "THREADS"):
        monkeypatch.delenv(f"SKINBOOK_{variable}", raising=False)
    write(tmp_path, "07_x", new_code_cell(MEASURE))
    return tmp_path


def write(home, name, *cells):
    path = home / "chapters" / f"{name}.ipynb"
    path.write_text(nbformat.writes(new_notebook(cells=[new_markdown_cell("# X"), *cells])) + "\n", encoding="utf-8")
    return path


def test_chapters_are_named_in_three_ways(home):
    path = home / "chapters" / "07_x.ipynb"
    for names in ([], ["07"], ["07_x"], [str(path)]):
        assert runs.notebooks(names, home) == [path]
    with pytest.raises(SkinbookError, match="'99' is not a chapter; there are 07_x"):
        runs.notebooks(["99"], home)
    with pytest.raises(SkinbookError, match=r"no notebook elsewhere.ipynb"):
        runs.notebooks(["elsewhere.ipynb"], home)
    path.write_text("{", encoding="utf-8")
    with pytest.raises(SkinbookError, match=r"07_x.ipynb cannot be read as a notebook"):
        runs.read(path)


@pytest.mark.slow
def test_a_run_over_seeds_is_recorded_and_resumed(home):
    told = []
    entries = runs.run(["07"], "ham10000", "quick", seeds=3, record=True, home=home, tell=told.append)
    held = ledger.read("results", "ham10000", "quick", "07_x")
    assert held == json.loads(json.dumps(entries["07_x"]))
    assert held["reports"]["AUC"]["seeds"]["1"]["value"] == pytest.approx(0.81)
    assert held["claims"]["it flatters"]["verdict"] == "undecided"
    about = held["provenance"]
    assert about["code"] == runs.code_of(home / "chapters" / "07_x.ipynb", "ham10000", "quick")
    assert set(about["minutes"]) == {"0", "1", "2"}
    assert about["versions"]["python"]
    assert about["hardware"]["cores"]
    measured = ledger.read("tolerances", "ham10000", "quick", "07_x")
    assert measured["reports"]["AUC"]["n"] == 3
    assert measured["claims"]["it flatters"]["varies"]
    assert any("THE CLAIM VARIES" in line for line in told)
    assert runs.status(home) == []
    executed = nbformat.read(next((home / "_build" / "runs").rglob("seed-0-*.ipynb")), as_version=4)
    assert len(executed.cells) == 2
    told.clear()
    runs.run(["07"], "ham10000", "quick", seeds=2, record=True, resume=True, home=home, tell=told.append)
    assert sum(line.endswith("already there") for line in told) == 2
    assert told[-1] == "2 seeds cannot measure tolerances, 3 can: those of 07_x on ham10000-quick stay as they are."
    assert set(ledger.read("results", "ham10000", "quick", "07_x")["provenance"]["minutes"]) == {"0", "1"}
    assert ledger.read("tolerances", "ham10000", "quick", "07_x") == measured
    write(home, "07_x", new_code_cell(MEASURE + "\nseed + 1"))
    faults = runs.status(home)
    assert "run `skinbook run 07_x --edition ham10000 --scale quick --record`" in faults[0]
    assert "run `skinbook spread 07_x --edition ham10000 --scale quick`" in faults[1]
    (home / "chapters" / "07_x.ipynb").unlink()
    assert "there is no such chapter" in runs.status(home)[0]


@pytest.mark.slow
def test_spread_covers_seeds_and_threads(home):
    told = []
    with pytest.raises(SkinbookError, match="The number of seeds is 2; expected a whole number of at least 3"):
        runs.spread(["07"], seeds=2, home=home, tell=told.append)
    assert told == []
    runs.spread(["07"], seeds=3, threads=(1,), instructions=("native",), home=home, tell=told.append)
    measured = ledger.read("tolerances", "lab", "quick", "07_x")
    assert measured["runs"] == [{"seed": seed, "threads": 1} for seed in range(3)]
    assert measured["reports"]["photographs"]["tolerance"] == 0


def test_spread_counts_the_stored_outputs_as_a_run(home, monkeypatch):
    def fragment(notebook, folder, environment, resume, tell, also):
        seed = int(environment["SKINBOOK_SEED"])
        claimed = {"it flatters": {"value": 0.1, "low": -0.01, "high": 0.2, "verdict": ledger.UNDECIDED}}
        reports = {"AUC": {"value": 0.8 + seed / 100, "low": None, "high": None}}
        return {"code": "c", "run": {"seed": seed, "threads": 1}, "reports": reports, "claims": claimed}

    def bundle(kind, payload):
        return nbformat.v4.new_output("display_data", {kind: payload})

    monkeypatch.setattr(runs, "fragment", fragment)
    cell = new_code_cell(MEASURE)
    cell.outputs = [
        bundle(ledger.REPORT, {"name": "AUC", "value": 0.83, "low": None, "high": None}),
        bundle(
            ledger.CLAIM, {"sentence": "it flatters", "value": 0.1, "low": 0.01, "high": 0.2, "verdict": ledger.HOLDS}
        ),
    ]
    write(home, "07_x", cell)
    given = {"threads": (1,), "instructions": ("native",), "home": home, "tell": lambda line: None}
    runs.spread(["07"], seeds=3, **given)
    measured = ledger.read("tolerances", "lab", "quick", "07_x")
    assert measured["runs"][-1] == {"seed": 0, "stored": 1}
    assert measured["reports"]["AUC"]["threads"] == pytest.approx(0.03)
    assert ledger.verdicts("lab", "quick", "07_x", "it flatters") == {ledger.HOLDS, ledger.UNDECIDED}
    cell.outputs = cell.outputs[:1]  # of other code: it claims less
    write(home, "07_x", cell)
    runs.spread(["07"], seeds=3, **given)
    assert {"seed": 0, "stored": 1} not in ledger.read("tolerances", "lab", "quick", "07_x")["runs"]


def test_spread_covers_a_processor_without_avx512(monkeypatch):
    monkeypatch.setattr(runs.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(runs, "_widest", lambda: "AVX512")
    assert runs._ways((1, 2), ("native", "avx2")) == [(1, "native"), (2, "native"), (1, "avx2")]
    monkeypatch.setattr(runs, "_widest", lambda: "AVX2")  # what is native there has its name
    assert runs._ways((1, 2), ("native", "avx2")) == [(1, "avx2"), (2, "avx2")]
    assert runs._ways((1, 2), ("native",)) == [(1, "native"), (2, "native")]
    monkeypatch.setattr(runs.platform, "machine", lambda: "aarch64")
    assert runs._ways((1,), ("native", "avx2")) == [(1, "native")]
    with pytest.raises(SkinbookError, match="'sse' is no set of instructions; choose from native, avx2"):
        runs._ways((1,), ("sse",))


def test_runs_with_fewer_instructions_are_runs_of_their_own(home, monkeypatch):
    monkeypatch.setattr(runs.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(runs, "_widest", lambda: "AVX512")
    given = []
    kept = {"code": "c", "reports": {"AUC": {"value": 0.5, "low": None, "high": None}}, "claims": {}}

    def fragment(notebook, folder, environment, resume, tell, also):
        given.append((environment.get("SKINBOOK_INSTRUCTIONS"), also.get("ATEN_CPU_CAPABILITY")))
        assert environment["SKINBOOK_SEED"] == "0" or len(given) <= 3  # the other seeds run in the first way only
        return kept | {"run": {"seed": int(environment["SKINBOOK_SEED"]), "threads": 1}}

    monkeypatch.setattr(runs, "fragment", fragment)
    runs.spread(["07"], seeds=3, threads=(1,), home=home, tell=lambda line: None)
    assert sorted(given, key=str) == [("avx2", "avx2"), *[(None, None)] * 3]


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"), reason="no AVX2 on this processor"
)
@pytest.mark.slow
def test_torch_obeys_the_smaller_set_of_instructions():
    code = "import torch; print(torch.backends.cpu.get_cpu_capability())"
    environment = {**os.environ, **runs.INSTRUCTIONS["avx2"]}
    said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "AVX2"


@pytest.mark.slow
def test_one_seed_is_recorded_and_compared_exactly(home):
    told = []
    runs.run(["07"], "ham10000", "quick", record=True, home=home, tell=told.append)
    assert told[-1] == (
        "1 seed cannot measure tolerances, 3 can: the checks of 07_x on ham10000-quick compare exactly (to 1e-09)."
    )
    assert ledger.held("results", "ham10000", "quick") == ["07_x"]
    assert ledger.held("tolerances", "ham10000", "quick") == []
    assert ledger.tolerance("ham10000", "quick", "07_x", "AUC") == ledger.EXACT


def test_a_report_that_is_often_undefined_is_named(home):
    told = []
    about = {"value": None, "low": None, "high": None}
    done = [
        {"run": {"seed": s}, "code": "c", "reports": {"AUC": about | {"value": v}}, "claims": {}}
        for s, v in enumerate((0.7, 0.8, None))
    ]
    runs._write_tolerances(done, "lab", "quick", "07_x", told.append)
    assert told[1] == "  !! AUC: only 2 of 3 seeds give a number. It is compared exactly."


@pytest.mark.slow
def test_a_chapter_that_fails_is_one_sentence_and_leaves_its_notebook(home):
    write(home, "08_y", new_code_cell("print('before')"), new_code_cell("1 / 0"))
    with pytest.raises(SkinbookError, match=r"08_y on lab-quick, seed 0: cell 3 of 4 failed \(ZeroDivisionError: "):
        runs.run(["08"], home=home, record=True, tell=lambda line: None)
    kept = nbformat.read(next((home / "_build" / "runs").rglob("*.ipynb")), as_version=4)
    assert kept.cells[1].outputs[0].text == "before\n"
    write(home, "08_y", new_code_cell("import os\nos._exit(1)"))
    with pytest.raises(SkinbookError, match=r"cell 2 of 3 failed .the kernel died, perhaps for want of memory"):
        runs.run(["08"], home=home, tell=lambda line: None)
    assert not list((home / "_build").rglob("*.json"))
    assert not (home / "data" / "results").exists()


def test_a_seed_that_fails_ends_the_others_and_those_that_wait(monkeypatch):
    begun, ended, told, started = threading.Event(), threading.Event(), [], []
    monkeypatch.setattr(runs, "_end_kernels", ended.set)

    def work(seed):
        started.append(seed)
        if seed == 1:
            begun.wait(60)
            raise SkinbookError("seed 1 fails")
        begun.set()
        ended.wait(20)
        return seed

    with pytest.raises(SkinbookError, match="seed 1 fails"):
        runs._side_by_side(work, range(4), 2, told.append)
    assert ended.is_set(), "the first seed runs on"
    assert len(started) < 4
    assert told == ["All other seeds were broken off, too. Those that are finished are kept for --resume."]
    told.clear()
    with pytest.raises(SkinbookError, match="seed 1 fails"):
        runs._side_by_side(work, [1], 1, told.append)
    assert told == [], "there are no others"
    assert runs._side_by_side(lambda seed: seed * 2, range(5), 2, told.append) == [0, 2, 4, 6, 8]


WAITS = """import os
if os.environ["SKINBOOK_SEED"] == "1":
    with open("pipe", "w", buffering=1) as held:  # closed by the system when this kernel ends
        print(os.getpid(), file=held)
        import threading
        threading.Event().wait()"""
PROGRAM = """import sys
from pathlib import Path
from skinbook import chapter, ledger, runs
home = Path(sys.argv[1])
for module in (chapter, ledger, runs):
    module.book_data = lambda *parts: home.joinpath("data", *parts)
runs.run(["08"], seeds=3, home=home)"""


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here, whose end tells that a process is gone")
@pytest.mark.slow
def test_ctrl_c_ends_a_run_and_its_kernels_and_keeps_the_seeds_that_are_finished(home):
    write(home, "08_y", new_code_cell(WAITS))
    pipe = home / "chapters" / "pipe"
    program = ["-c", PROGRAM, str(home)]
    with ends_its_processes(program, pipe, stdout=subprocess.PIPE, text=True) as command:
        command.send_signal(signal.SIGINT)  # to the command alone, as the terminal reaches no other session
        said, _ = command.communicate(timeout=60)
    assert command.returncode != 0
    assert "seed 2" not in said
    assert said.endswith("Those that are finished are kept for --resume.\n")
    assert [kept.name[:6] for kept in (home / "_build").rglob("*.json")] == ["seed-0"]


def test_a_chapter_without_what_it_needs_is_left_out_by_name(home):
    told = []
    assert runs.run(["07"], "dermamnist", "quick", home=home, tell=told.append) == {}
    assert told[0].startswith("Left out: Chapter 07_x needs lesion_id")


def test_wrong_settings_are_one_sentence(home):
    with pytest.raises(SkinbookError, match="mars-quick is not an edition and a scale"):
        runs.run(["07"], "mars", home=home)
    with pytest.raises(SkinbookError, match="The number of seeds is 0"):
        runs.run(["07"], seeds=0, home=home)
    with pytest.raises(SkinbookError, match="recorded in a checkout"):
        runs.run(["07"], record=True, home=home / "elsewhere")


@pytest.mark.slow
def test_only_the_cells_of_the_ledger_are_refreshed(home):
    setup = new_code_cell("from skinbook.chapter import ledger_table\nx = 1", metadata={"tags": ["setup"]})
    other = new_code_cell("x", execution_count=2, outputs=[new_output("stream", text="kept\n")])
    shows = new_code_cell("ledger_table('99_none')", execution_count=3, metadata={"tags": ["ledger"]})
    path = write(home, "08_y", setup, other, shows)
    before = json.loads(path.read_text(encoding="utf-8"))
    assert runs.refresh_ledger(["08"], home, tell=lambda line: None) == [path]
    after = json.loads(path.read_text(encoding="utf-8"))
    data = after["cells"][3]["outputs"][0]["data"]
    assert data["text/plain"] == ["The ledger holds no results of 99_none on ham10000 at quick scale yet."]
    after["cells"][3]["outputs"] = []
    assert after == before
    assert runs.refresh_ledger(["08"], home) == []
    path.write_text(
        path.read_text(encoding="utf-8").replace('"execution_count": 3', '"execution_count": null'), encoding="utf-8"
    )
    assert runs.refresh_ledger(["08"], home, tell=lambda line: None) == [path], "a cell whose source changed"
    assert json.loads(path.read_text(encoding="utf-8"))["cells"][3]["execution_count"] == 3
    path.write_text(path.read_text(encoding="utf-8").replace("\n ", "\n  "), encoding="utf-8")
    with pytest.raises(SkinbookError, match="not in the form that `make pair` writes"):
        runs.refresh_ledger(["08"], home)


def test_seeds_side_by_side_share_the_cores_that_the_process_may_use(home, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(6)), raising=False)
    given = []

    def fragment(notebook, folder, environment, resume, tell, also):
        given.append(also)
        found = {"code": "c", "package": "p", "minutes": 0.0, "reports": {}, "claims": {}}
        return found | {"facts": {"hardware": {}, "versions": {}}}

    monkeypatch.setattr(runs, "fragment", fragment)
    runs.run(["07"], home=home, tell=str, jobs=2)
    runs.run(["07"], home=home, tell=str)
    monkeypatch.setenv("SKINBOOK_THREADS", "4")
    runs.run(["07"], home=home, tell=str, jobs=2)
    both = ("SKINBOOK_THREADS", "OMP_NUM_THREADS")
    assert given == [dict.fromkeys(both, "3"), {}, dict.fromkeys(both, "4")]
    assert (threads_of(1), threads_of(2)) == (4, 4)
    monkeypatch.delenv("SKINBOOK_THREADS")
    assert (threads_of(1), threads_of(2), threads_of(9)) == (2, 3, 1)
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cores() == 64


@pytest.mark.slow
def test_seeds_side_by_side_say_what_seeds_in_turn_say(home):
    in_turn = runs.run(["07"], seeds=2, home=home, tell=str)["07_x"]
    told = []
    beside = runs.run(["07"], seeds=2, home=home, tell=told.append, jobs=2)["07_x"]
    assert beside["reports"] == in_turn["reports"]
    assert beside["claims"] == in_turn["claims"]
    again = []
    runs.run(["07"], seeds=2, home=home, tell=again.append, resume=True)
    assert sum(line.endswith("already there") for line in again) == 2, "the number of jobs is no part of a run's name"
    with pytest.raises(SkinbookError, match=r"The number of jobs is 0; expected a whole number of at least 1\."):
        runs.run(["07"], home=home, tell=str, jobs=0)


@pytest.mark.slow
def test_a_run_kept_from_another_package_says_so(home, monkeypatch):
    runs.run(["07"], home=home, tell=str)
    monkeypatch.setattr(ledger, "package_hash", lambda: "another")
    told = []
    runs.run(["07"], home=home, tell=told.append, resume=True)
    assert "made by another version of the package" in told[0]
