"""What happens when a process is killed, a disk is full or a folder vanishes while work is under way.

Each task writes something into a place, and returns what can be compared: bytes, weights, a table. The same task, done
again after a fault, must give what it gives undisturbed.
"""

import copy
import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import faults
import nbformat
import numpy as np
import pytest
import test_bundle
import test_training
import torch
from faults import KILLS, Task, is_one_sentence, moments
from models import call, lesions
from nbformat.v4 import new_code_cell, new_notebook, new_output
from safetensors import safe_open
from test_download import BODY, MD5, Server
from test_pixels import drawn

from skinbook import chapter, ledger, runs
from skinbook.bundle import Bundle
from skinbook.config import SkinbookError
from skinbook.data import pixels
from skinbook.data.download import Remote, fetch, fetch_and_unpack
from skinbook.files import replaced
from skinbook.training import fit

EPOCHS, SEEDS = 3, 3
ENTRY = {"provenance": {"about": "x" * 9000}, "reports": {"AUC": {"value": 0.8, "seeds": {}}}, "claims": {}}
# Kills its kernel where it is the number-th cell, the first time.
CELL = """import os
if {number} == {killed} and os.environ["SKINBOOK_SEED"] == "1" and not os.path.exists("killed"):
    open("killed", "w").close()
    os.kill(os.getpid(), 9)"""
FACTS = f"""from IPython.display import display
display({{{ledger.FACTS!r}: {{"hardware": {{}}, "versions": {{}}, "notes": {{}}}}}}, raw=True)"""


class PixelStore(Task):
    parts = 400

    def work(self, place):
        return pixels.build(drawn(self.parts, self.part_is_done), 8, place, workers=2)

    def value(self, found):
        return found.path.read_bytes(), found.image_ids

    def look(self, place):
        for file in place.glob("pixels/*.npy"):
            assert np.load(file).shape == (self.parts, 8, 8, 3)
            assert json.loads(file.with_suffix(".json").read_text())["digests"]


class Download(Task):
    def __init__(self, server):
        super().__init__()
        server.files["a"] = BODY
        self.remote = Remote("file.bin", (server.url("a"),), MD5)

    def work(self, place):
        return fetch(self.remote, place)

    def value(self, found):
        return found.read_bytes()

    def look(self, place):
        file = place / "file.bin"
        assert not file.exists() or file.read_bytes() == BODY


class Training(Task):
    parts = EPOCHS

    def work(self, place):
        network = test_training.a_network()
        result = fit(
            network,
            test_training.TRAIN,
            test_training.VALIDATION,
            epochs=EPOCHS,
            learning_rate=1e-2,
            checkpoint=place / "run.safetensors",
            log=self.part_is_done,
        )
        return test_training.weights_of(network).numpy().tobytes(), result.history.to_csv()

    def look(self, place):
        if (place / "run.safetensors").exists():
            with safe_open(place / "run.safetensors", "pt") as held:
                assert 1 <= len(json.loads(held.metadata()["run"])["history"]) <= EPOCHS


class Ledger(Task):
    def __init__(self, monkeypatch):
        super().__init__()
        self.monkeypatch = monkeypatch

    def at(self, place):
        self.monkeypatch.setattr(ledger, "book_data", lambda *parts: place.joinpath("data", *parts))

    def begin(self, place):
        self.at(place)
        ledger.write("results", "ham10000", "quick", "01_a", ENTRY)

    def work(self, place):
        self.at(place)
        ledger.write("results", "ham10000", "quick", "01_a", ENTRY)
        return ledger.write("results", "ham10000", "quick", "07_x", ENTRY)

    def value(self, found):
        return found.read_bytes()

    def look(self, place):
        self.at(place)
        assert ledger.held("results", "ham10000", "quick") in (["01_a"], ["01_a", "07_x"])


class Runs(Task):
    """`skinbook run` with a stand-in for the kernel, so that twenty kills take no minutes."""

    parts = SEEDS

    def __init__(self, monkeypatch, execute=None):
        super().__init__()
        self.monkeypatch = monkeypatch
        monkeypatch.setattr(runs, "execute", execute or self.execute)
        monkeypatch.setattr(ledger, "package_hash", lambda: "package")

    def at(self, place):
        for module in (chapter, ledger, runs):
            self.monkeypatch.setattr(module, "book_data", lambda *parts: place.joinpath("data", *parts))

    def execute(self, cells, folder, environment, label):
        self.part_is_done()
        seed = int(environment["SKINBOOK_SEED"])
        said = {"name": "AUC", "value": 0.8 + seed / 100, "low": 0.7, "high": 0.9}
        facts = {"hardware": {"cores": 2}, "versions": {}, "notes": {}}
        for cell, mime, payload in ((cells.cells[0], ledger.REPORT, said), (cells.cells[1], ledger.FACTS, facts)):
            cell.outputs = [new_output("display_data", {mime: payload})]

    def begin(self, place):
        (place / "chapters").mkdir(parents=True, exist_ok=True)
        (place / "data").mkdir(exist_ok=True)
        (place / "_toc.yml").touch()
        (place / "data" / "recipes.toml").write_text("[07_x]\n")
        (place / "chapters" / "07_x.ipynb").write_text(nbformat.writes(new_notebook(cells=[new_code_cell("1")])))

    def work(self, place):
        self.at(place)
        runs.run(["07"], "ham10000", "quick", SEEDS, record=True, resume=True, home=place, tell=str)

    def value(self, _):
        found = copy.deepcopy(ledger.read("results", "ham10000", "quick", "07_x"))
        assert set(found["provenance"].pop("minutes")) == {"0", "1", "2"}
        del found["provenance"]["date"]
        return found, ledger.read("tolerances", "ham10000", "quick", "07_x")

    def look(self, place):
        for file in place.glob("_build/**/[!.]*.*"):
            assert json.loads(file.read_text())
        for file in place.glob("data/*/[!.]*.json"):
            assert list(json.loads(file.read_text())["chapters"]) == ["07_x"]


class Bundles(Task):
    def __init__(self):
        super().__init__()
        self.old, self.new = test_bundle.bundle(), test_bundle.bundle(about="x" * 9000)
        with torch.no_grad():
            self.new.network.head.bias += 1

    def begin(self, place):
        self.old.save(place)

    def work(self, place):
        return self.new.save(place)

    def value(self, found):
        return {file.name: file.read_bytes() for file in sorted(found.iterdir())}

    def look(self, place):
        bias = Bundle.load(place).network.head.bias
        assert any(torch.equal(bias, one.network.head.bias) for one in (self.old, self.new))


@pytest.fixture
def server():
    server = Server()
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def _as_always(tmp_path, monkeypatch):
    """A cache of its own, and one thread, so that sums are formed in one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("SKINBOOK_CACHE", str(tmp_path / "cache"))
    yield
    torch.set_num_threads(threads)


TASKS = {
    "store": lambda server, monkeypatch: PixelStore(),
    "download": lambda server, monkeypatch: Download(server),
    "training": lambda server, monkeypatch: Training(),
    "ledger": lambda server, monkeypatch: Ledger(monkeypatch),
    "runs": lambda server, monkeypatch: Runs(monkeypatch),
    "bundle": lambda server, monkeypatch: Bundles(),
}


@pytest.fixture
def task(request, server, monkeypatch):
    return TASKS[request.param](server, monkeypatch)


def files(place: Path) -> list[str]:
    """What lies in a place, hidden files and all, but for locks, which stay."""
    found = (file.relative_to(place).as_posix() for file in place.rglob("*") if file.is_file())
    return sorted(name for name in found if not name.endswith(".lock"))


@pytest.mark.parametrize(
    ("task", "most"),
    [
        pytest.param(
            "store",
            96,
            marks=pytest.mark.holds(
                "faults while working",
                "SIGKILL while the pixel store is built",
                "the next build takes over what was finished; the store is the same, byte for byte",
            ),
        ),
        pytest.param(
            "download",
            0,
            marks=pytest.mark.holds(
                "faults while working",
                "SIGKILL during a download",
                "the next one asks for the rest only; the file is the same, byte for byte",
            ),
        ),
        pytest.param(
            "training",
            1,
            marks=pytest.mark.holds(
                "faults while working",
                "SIGKILL during fit()",
                "it goes on from the last epoch; the final weights are the same, bit for bit",
            ),
        ),
        pytest.param(
            "runs",
            1,
            marks=pytest.mark.holds(
                "faults while working",
                "SIGKILL during skinbook run",
                "with --resume finished seeds are kept; the ledger says the same",
            ),
        ),
        pytest.param(
            "ledger",
            0,
            marks=pytest.mark.holds(
                "faults while working",
                "SIGKILL while the ledger is written",
                "a reader finds the old one or the new one, whole",
            ),
        ),
        pytest.param(
            "bundle",
            0,
            marks=pytest.mark.holds(
                "faults while working",
                "SIGKILL while a bundle is written",
                "a reader finds the old one or the new one, whole",
            ),
        ),
    ],
    indirect=["task"],
)
def test_a_kill(task, most, tmp_path, record_property, server):
    task.begin(tmp_path / "reference")
    undisturbed = task.do(tmp_path / "reference")
    lost = []
    for place in task.kills(tmp_path):
        task.look(place)
        part = place / "file.bin.part"
        have = part.stat().st_size if part.exists() and part.with_name("file.bin.part.json").exists() else 0
        server.asked.clear()
        assert task.do(place) == undisturbed
        if 0 < have < len(BODY):
            assert server.asked == [("a", f"bytes={have}-")]
        lost.append(task.done.value - task.parts)
        assert files(place) == files(tmp_path / "reference")
    if most:
        assert max(lost) <= most
    again = f", at most {max(lost)} {PARTS[type(task)]} done twice" if most else ""
    record_property("measured", f"{len(lost)} kills{again}")


PARTS = {PixelStore: "images", Training: "epochs", Runs: "seeds"}
every_task = pytest.mark.parametrize("task", list(TASKS), indirect=True)


@every_task
@pytest.mark.holds(
    "faults while working",
    "the system takes no more bytes in the middle of a file",
    "one sentence; the same work, done again, ends as if nothing had been",
)
def test_no_more_bytes(task, tmp_path, record_property):
    task.begin(tmp_path / "reference")
    undisturbed = task.do(tmp_path / "reference")
    _, largest = task.measure(tmp_path / "measured")
    for number, limit in enumerate(moments(f"{type(task).__name__} refused", largest - 1)):
        place = tmp_path / str(number)
        task.begin(place)
        end = faults.run(lambda place=place: task.work(place), place, refuse_after=limit)
        assert is_one_sentence(end.said), end
        assert "File too large" in end.said
        task.look(place)
        assert task.do(place) == undisturbed
        assert files(place) == files(tmp_path / "reference")
    record_property("measured", f"{KILLS} places in the file for each kind of work")


@every_task
@pytest.mark.holds(
    "faults while working",
    "a folder that vanishes while it is worked in",
    "one sentence, or the folder is made anew; the same work, done again, ends as if nothing had been",
)
def test_a_folder_that_vanishes(task, tmp_path, record_property):
    task.begin(tmp_path / "reference")
    undisturbed = task.do(tmp_path / "reference")
    operations, _ = task.measure(tmp_path / "measured")
    for number, moment in enumerate(moments(f"{type(task).__name__} vanishes", operations)):
        place = tmp_path / str(number)
        task.begin(place)
        end = faults.run(lambda place=place: task.work(place), place, vanish_at=moment)
        assert end.well or is_one_sentence(end.said), end
        task.begin(place)
        assert task.do(place) == undisturbed
        assert not [name for name in files(place) if "part" in name.rpartition(".")[2]]
    record_property("measured", f"{KILLS} moments for each kind of work")


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """A disk of 8 MB in memory, where this user may mount one."""
    monkeypatch.setattr(pixels, "SPARE", 0)
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    if sys.platform != "linux" or os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a disk can be mounted by root on Linux only")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@every_task
@pytest.mark.holds(
    "faults while working",
    "a disk that is full",
    "one sentence; what was there is whole, and with room the work ends as if nothing had been",
)
def test_a_full_disk(task, tmp_path, disk):
    task.begin(tmp_path / "reference")
    undisturbed = task.do(tmp_path / "reference")
    task.begin(disk / "place")
    filler = disk / "filler"
    with pytest.raises(OSError, match="No space left"):  # noqa: SIM117 - only the writing is to fail
        with open(filler, "wb") as file:
            file.write(bytes(16_000_000))
    with pytest.raises(SkinbookError, match=r"[Nn]o space") as told:
        task.do(disk / "place")
    assert is_one_sentence(str(told.value))
    task.look(disk / "place")
    filler.unlink()
    assert task.do(disk / "place") == undisturbed


@every_task
@pytest.mark.holds(
    "faults while working",
    "a disk that may only be read",
    "one sentence; what was there is whole, and with leave to write the work ends as if nothing had been",
)
def test_a_disk_that_may_only_be_read(task, tmp_path, disk):
    task.begin(tmp_path / "reference")
    undisturbed = task.do(tmp_path / "reference")
    task.begin(disk / "place")
    remount = ["mount", "-o", "remount,{}", str(disk)]
    subprocess.run([part.format("ro") for part in remount], check=True)
    with pytest.raises(SkinbookError, match="Read-only file system") as told:
        task.do(disk / "place")
    assert is_one_sentence(str(told.value))
    task.look(disk / "place")
    subprocess.run([part.format("rw") for part in remount], check=True)
    assert task.do(disk / "place") == undisturbed


@every_task
@pytest.mark.holds(
    "faults while working",
    "a file where a folder should be",
    "one sentence, and a traceback nowhere",
)
def test_a_file_where_a_folder_should_be(task, tmp_path):
    place = tmp_path / "place"
    if isinstance(task, Runs):
        task.begin(place)
        (place / "_build").touch()
    else:
        place.touch()
    with pytest.raises(SkinbookError) as told:
        task.do(place)
    assert is_one_sentence(str(told.value))
    assert str(place) in str(told.value)


@every_task
@pytest.mark.holds(
    "faults while working",
    "two processes that do the same work in one place at once",
    "they wait for each other or do it twice; the result is the same, byte for byte",
)
def test_two_at_once(task, tmp_path):
    task.begin(tmp_path / "reference")
    undisturbed = task.do(tmp_path / "reference")
    for number in range(KILLS):
        place = tmp_path / str(number)
        task.begin(place)
        assert faults.together(*[lambda place=place: task.work(place)] * 2) == ["", ""]
        task.look(place)
        assert task.do(place) == undisturbed
        assert files(place) == files(tmp_path / "reference")


@pytest.mark.holds(
    "faults while working",
    "two processes that write one ledger at once",
    "both chapters stand in it",
)
def test_two_chapters_at_once(tmp_path, monkeypatch):
    task = Ledger(monkeypatch)
    task.begin(tmp_path)

    def write(names):
        for name in names:
            ledger.write("results", "ham10000", "quick", name, ENTRY)

    names = [[f"{number:02d}_{letter}" for number in range(10)] for letter in "ab"]
    assert faults.together(*(lambda part=part: write(part) for part in names)) == ["", ""]
    assert ledger.held("results", "ham10000", "quick") == sorted({*names[0], *names[1]})
    assert files(tmp_path / "data") == ["results/ham10000-quick.json"]


@pytest.mark.holds(
    "faults while working",
    "two processes that save other bundles in one folder at once",
    "the folder holds one of them, whole",
)
def test_two_bundles_at_once(tmp_path):
    task = Bundles()
    for number in range(KILLS):
        place = tmp_path / str(number)
        assert faults.together(*(lambda one=one, place=place: one.save(place) for one in (task.old, task.new))) == [
            "",
            "",
        ]
        task.look(place)
        assert len(files(place)) == 2


@pytest.mark.holds(
    "faults while working",
    "two processes that download one archive at once",
    "it is fetched and unpacked once",
)
def test_two_downloads_at_once(tmp_path, server):
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        for number in range(200):
            archive.writestr(f"{number}.jpg", bytes(5000))
    server.files["z"] = (tmp_path / "z.zip").read_bytes()
    remote = Remote("part.zip", (server.url("z"),))
    assert faults.together(*[lambda: fetch_and_unpack(remote, tmp_path / "data")] * 2) == ["", ""]
    assert len(server.asked) == 1
    assert files(tmp_path / "data") == sorted(["hashes.json", *(f"part/{number}.jpg" for number in range(200))])


def test_a_kill_after_the_unpacking_leaves_no_archive(tmp_path, server):
    with zipfile.ZipFile(tmp_path / "z.zip", "w") as archive:
        archive.writestr("x.jpg", b"1")
    server.files["z"] = (tmp_path / "z.zip").read_bytes()
    remote, place = Remote("part.zip", (server.url("z"),)), tmp_path / "data"

    def fetched() -> None:
        fetch_and_unpack(remote, place)

    def cleared() -> None:
        assert files(place) == ["hashes.json", "part/x.jpg"]
        (place / "hashes.json").unlink()
        shutil.rmtree(place / "part")

    # Counted in a folder that was used before, as it is below: locks may be made in one operation less there.
    fetched()
    cleared()
    whole = faults.run(fetched, place)
    cleared()
    for moment in range(whole.operations - 7, whole.operations + 1):
        assert faults.run(fetched, place, kill_at=moment).killed, moment
        fetched()
        cleared()


def sweep() -> list[tuple[str, int]]:
    """Commands whose target is missing, is a file where a folder should be, or has a name that no system takes.

    {file} is a file, {none} is nothing, {folder} an empty folder, {table} a table, {split} a split, {long} a name of 300
    letters.
    """
    return [
        ("data status --root {none}", 2),
        ("data status --root {file}", 2),
        ("data status --root {long}", 2),
        ("data verify ham10000 --root {none}", 2),
        ("data verify ham10000 --root {folder}", 2),
        ("data get ham10000 cache={file}", 2),
        ("run {none}.ipynb", 2),
        ("run {folder}/x.ipynb", 2),
        ("run {long}.ipynb", 2),
        ("spread {none}.ipynb", 2),
        ("strongest --models {none}", 2),
        ("strongest --models {folder}", 2),
        ("copied --systems {none}", 2),
        ("copied --systems {folder}", 2),
        ("copied --systems {file}", 2),
        ("train --to {file}", 2),
        ("train --to {file}/below", 2),
        ("train --to {none} --table {none} --images {folder}", 2),
        ("train --to {none} --table {table} --images {none}", 2),
        ("train --to {none} cache={file}", 2),
        ("evaluate -b {none} --table {table} --images {folder}", 2),
        ("evaluate -b {file} --table {table} --images {folder}", 2),
        ("evaluate -b {long} --table {table} --images {folder}", 2),
        ("evaluate -b lab --table {none} --images {folder}", 2),
        ("evaluate -b lab --table {folder} --images {folder}", 2),
        ("evaluate -b lab --table {table} --images {none}", 2),
        ("evaluate -b lab --table {table} --images {file}", 2),
        ("predict {none} -b {none}", 2),
        ("predict {none} -b {file}", 2),
        ("predict {long} -b lab", 1),
        ("audit {none}", 2),
        ("audit {folder}", 2),
        ("audit {long}", 2),
        ("audit train={none} test={file}", 2),
        ("audit {split} --table {none}", 2),
        ("audit {split} --images {none}", 2),
        ("bench --to {file}/x.json --parts training", 2),
        ("book pair 99", 2),
        ("book repository nowhere", 2),
        ("app -b {none}", 2),
        ("app -b {file} --port 0", 2),
        ("bundle show {none}", 2),
        ("bundle show {file}", 2),
        ("bundle show {long}", 2),
        ("bundle onnx lab --to {file}", 2),
        ("lab write {file}", 2),
        ("lab write {file}/below", 2),
        ("lab write {none} cache={file}", 2),
        ("lab calibrate --seeds 1 cache={file}", 2),
        ("ledger refresh {none}.ipynb", 2),
        ("ledger status data={folder}", 2),
    ]


@pytest.fixture
def targets(tmp_path, monkeypatch):
    """What commands are pointed at; and nothing is measured, drawn or exported before it is written."""
    import pandas as pd

    from skinbook import bench
    from skinbook.data import lab

    made = {name: tmp_path / name for name in ("file", "none", "folder")}
    made["file"].touch()
    made["folder"].mkdir()
    made["long"] = tmp_path / ("a" * 300)
    made["split"] = tmp_path / "split.csv"
    made["split"].write_text("image,part\na,train\nb,test\n")
    made["table"] = lesions(tmp_path / "lesions", ("nv", "mel"), each=1, side=48)
    load = lab.load

    def small(cache, **options):
        if cache != tmp_path / "cache":
            return load(cache, **options)
        count = 40
        table = pd.DataFrame({name: [f"{name}{n}" for n in range(count)] for name in ("image_id", "lesion_id")})
        table[["dx", "dx_type", "sex", "site"]], table["age"] = "nv", 50.0
        data = drawn()
        data.images.read = lambda image_id: np.zeros((8, 8, 3), np.uint8)
        return type("Small", (), {"table": table, "images": data.images})

    monkeypatch.setattr(lab, "load", small)
    monkeypatch.setattr(bench, "training", lambda *given: [])
    return made


@pytest.mark.holds(
    "faults while working",
    "a command whose target is missing, of the wrong kind, or no name at all",
    "one sentence and an exit code, never a traceback",
)
@pytest.mark.parametrize(("line", "code"), sweep())
def test_every_command_with_a_wrong_target(line, code, targets, monkeypatch, capsys, tmp_path):
    words = [word.format_map(targets) for word in line.split()]
    for word in [word for word in words if word.startswith(("cache=", "data="))]:
        words.remove(word)
        kind, _, place = word.partition("=")
        if kind == "cache":
            monkeypatch.setenv("SKINBOOK_CACHE", place)
        else:
            (targets["folder"] / "lab-quick.json").mkdir()
            monkeypatch.setattr(runs, "book_data", lambda *parts: targets["folder"])
            monkeypatch.setattr(ledger, "book_data", lambda *parts: targets["folder"].joinpath(*parts[1:]))
    assert call(monkeypatch, *words) == code
    out, err = capsys.readouterr()
    said = err.strip().splitlines()
    assert is_one_sentence(said[-1]), said
    assert "Traceback" not in "".join(said)
    wrong = {str(targets[name]) for name in ("file", "none", "folder", "long") if f"{{{name}}}" in line}
    whole = out if line.startswith("predict {long}") else said[-1]  # whose last line counts the photographs
    assert not wrong or any(Path(target).name[:60] in whole for target in wrong), said


def test_the_sweep_knows_every_command():
    from skinbook import cli

    there = {command.name or command.callback.__name__ for command in cli._mounted().registered_commands}
    there |= {group.name for group in cli.app.registered_groups}
    assert there == {line.split()[0] for line, _ in sweep()}


@pytest.mark.holds(
    "faults while working",
    "a command whose output cannot be written",
    "one sentence and an exit code, never a traceback",
)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_an_output_that_takes_nothing():
    with open("/dev/full", "w") as full:
        program = [sys.executable, "-c", "from skinbook.cli import main; main()", "--help"]
        done = subprocess.run(program, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("skinbook: Reading or writing failed (no space is left).")
    assert is_one_sentence(done.stderr)


def test_what_killed_writers_left_is_removed_and_what_living_ones_write_is_not(tmp_path):
    file = tmp_path / "table.csv"

    def write():
        with replaced(file) as partial:
            partial.write_text("half")
            os.kill(os.getpid(), 9)

    assert faults.run(write, tmp_path).killed
    (left,) = files(tmp_path)
    own, other = (left.replace(left.split("-")[-1], f"{pid}.partial") for pid in (os.getppid(), "x"))
    for name in (own, other):
        (tmp_path / name).write_text("of somebody who lives")
    with replaced(file) as partial:
        partial.write_text("whole")
    assert files(tmp_path) == sorted([own, other, "table.csv"])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_an_error_that_only_a_sync_in_the_background_tells_of_is_not_passed_over(number, tmp_path, monkeypatch):
    """The system tells of a failed write once: the sync of the whole file, later, finds nothing wrong any more."""
    told = []

    def sync(descriptor):
        if not told:
            told.append(descriptor)
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", sync)
    with pytest.raises(SkinbookError, match=r"No space left in|cannot be written in .*Input/output error"):
        pixels.build(drawn(100), 8, tmp_path)
    assert files(tmp_path) == []


@pytest.mark.holds(
    "faults while working",
    "SIGKILL of the kernel in which a chapter runs",
    "one sentence; with --resume finished seeds are kept, and the rest is run",
)
@pytest.mark.slow
def test_a_kernel_is_killed(tmp_path, monkeypatch, record_property):
    task = Runs(monkeypatch, runs.execute)
    monkeypatch.setattr(runs, "FACTS_CELL", FACTS)
    for number, cell in enumerate(moments("kernel", 3)):
        place = tmp_path / str(number)
        task.begin(place)
        task.at(place)
        cells = [new_code_cell(CELL.format(number=number, killed=cell)) for number in (1, 2, 3)]
        (place / "chapters" / "07_x.ipynb").write_text(nbformat.writes(new_notebook(cells=cells)))
        with pytest.raises(SkinbookError, match=f"seed 1: cell {cell} of 4 failed .the kernel died") as told:
            runs.run(["07"], "lab", "quick", 2, home=place, tell=str)
        assert is_one_sentence(str(told.value))
        lines: list[str] = []
        assert runs.run(["07"], "lab", "quick", 2, resume=True, home=place, tell=lines.append)["07_x"]["reports"] == {}
        assert [line for line in lines if line.endswith("already there")] == [
            "07_x on lab-quick, seed 0: already there"
        ]
    record_property("measured", f"{KILLS} kills")


# Trains, and kills itself at the beginning of its `stop`-th batch. A process of its own: a fork cannot use a GPU.
TRAINS = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import test_training

from skinbook.chapter import repeatable_sums
from skinbook.training import fit

device, place, stop = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
seen = 0


def count(*_):
    global seen
    seen += 1
    if seen == stop:
        os.kill(os.getpid(), signal.SIGKILL)


repeatable_sums()
network = test_training.a_network()
network.register_forward_pre_hook(count)
train, validation = (replace(of, device=device) for of in (test_training.TRAIN, test_training.VALIDATION))
fit(network, train, validation, epochs=4, checkpoint=place / "run.safetensors", **test_training.QUIET)
np.save(place / "weights.npy", test_training.weights_of(network).cpu().numpy())
(place / "seen").write_text(str(seen))
"""
BATCHES = 4 * (5 + 3)  # of the training above, those of validation among them


@pytest.mark.parametrize(
    ("device", "within"),
    [
        pytest.param(
            "cpu",
            0.0,
            marks=pytest.mark.holds(
                "faults while working",
                "SIGKILL in the middle of an epoch of fit()",
                "it goes on from the last epoch; the final weights are the same, bit for bit",
            ),
        ),
        pytest.param(
            "cuda",
            1e-5,
            marks=pytest.mark.holds(
                "faults while working",
                "SIGKILL in the middle of an epoch of fit(), on a GPU",
                "it goes on from the last epoch; the final weights are the same to 1e-5",
            ),
        ),
    ],
)
@pytest.mark.slow
def test_a_kill_within_an_epoch(device, within, tmp_path, record_property):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU here")

    def train(place: Path, stop: int) -> int:
        place.mkdir(exist_ok=True)
        program = [sys.executable, "-c", TRAINS, device, str(place), str(stop)]
        return subprocess.run(program, cwd=Path(__file__).parent, check=False).returncode

    assert train(tmp_path / "whole", 0) == 0
    whole = np.load(tmp_path / "whole" / "weights.npy")
    stops = sorted(set(moments("batch", BATCHES)))
    for stop in stops:
        place = tmp_path / str(stop)
        assert train(place, stop) == -9
        assert not (place / "weights.npy").exists()
        assert train(place, 0) == 0
        # It begins with the epoch that was cut off, of eight batches with those of validation.
        assert int((place / "seen").read_text()) == BATCHES - 8 * ((stop - 1) // 8)
        assert np.abs(np.load(place / "weights.npy") - whole).max() <= within
    record_property("measured", f"{len(stops)} kills, at batch {', '.join(map(str, stops))} of {BATCHES}")
