"""Each notebook alone, as Colab and Kaggle have it: an empty folder, the package from a wheel, no network, no data.

The checkout is hidden from the kernel, so that the setup cell must install. Its `%pip` unpacks the wheel of this
checkout, which is what pip does beside libraries that are already there; a socket to anywhere but this machine, and
anything of `google.colab`, is refused and remembered. `make test` runs one chapter whole (the quickest) and every setup cell;
`make test-alone` runs all chapters whole.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from layouts import ham10000
from packaging.requirements import Requirement

from skinbook import book, chapter, config, ledger, runs
from skinbook.data import catalog

HOME = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow
KEPT = {"torch", "torchvision", "numpy"}  # what Colab and Kaggle bring, and no installation may replace
NAMED = os.environ.get("SKINBOOK_ALONE", "01")
WHOLE = book.chapters(wanted=[] if NAMED == "all" else [NAMED])
CACHE = config.settings().cache

# Read by every Python that starts there: skinbook is where it is installed or nowhere, and no socket leads elsewhere.
SITE = """
import os, socket, sys
from importlib.machinery import PathFinder


class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return super().find_spec(name, [{target!r}] if name == "skinbook" else path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
connect, look_up = socket.socket.connect, socket.getaddrinfo


def refuse(what):
    with open({asked!r}, "a") as file:
        file.write(what + "\\n")
    raise OSError("There is no network here.")


def guarded(self, address):
    if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
        refuse(f"a connection to {{address[0]}}")
    return connect(self, address)


def guarded_look_up(host, *given, **more):
    if host not in (None, "", "127.0.0.1", "::1", "localhost", "0.0.0.0"):
        refuse(f"the address of {{host}}")
    return look_up(host, *given, **more)


socket.socket.connect, socket.getaddrinfo = guarded, guarded_look_up
import google.colab
"""
# Colab's own module: there, and of no use.
COLAB = """
def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    with open({asked!r}, "a") as file:
        file.write(f"google.colab.{{name}}\\n")
    raise OSError(f"google.colab.{{name}} would ask something.")
"""
# What IPython runs before the first cell: `%pip install` unpacks the wheel, whatever address it is given.
PIP = """
import importlib, zipfile
from IPython.core.magic import register_line_magic


@register_line_magic
def pip(line):
    with open({installed!r}, "a") as file:
        file.write(line + "\\n")
    with zipfile.ZipFile({wheel!r}) as packed:
        packed.extractall({target!r})
    importlib.invalidate_caches()
"""
SETUP_CELLS = """
import json, shutil, sys
from pathlib import Path
from IPython.core.interactiveshell import InteractiveShell

shell = InteractiveShell.instance()
shell.run_cell(Path({startup!r}).read_text()).raise_error()
for source in json.load(sys.stdin):
    for module in [name for name in sys.modules if name.split(".")[0] == "skinbook"]:
        del sys.modules[module]
    shutil.rmtree({target!r})
    Path({target!r}).mkdir()
    for time in ("first", "again"):
        shell.run_cell(source).raise_error()
    print("from", sys.modules["skinbook"].__file__)
"""


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=HOME, capture_output=True, text=True, check=True)
    return next(folder.glob("*.whl"))


class Elsewhere:
    """A machine with torch and without skinbook: `environment` for its processes, and what happened on it."""

    def __init__(self, top: Path, wheel: Path):
        self.folder, self.target = top / "folder", top / "installed"
        self.asked, self.installed, stand_ins = top / "asked.txt", top / "installed.txt", top / "stand_ins"
        self.startup = top / "ipython" / "profile_default" / "startup" / "pip.py"
        for place in (self.folder, self.target, self.startup.parent, stand_ins / "google" / "colab", top / "home"):
            place.mkdir(parents=True)
        # Decoded pixels are the same everywhere; drawing them again would take most of the time.
        CACHE.mkdir(parents=True, exist_ok=True)
        (top / "home" / ".cache").mkdir()
        (top / "home" / ".cache" / "skinbook").symlink_to(CACHE, target_is_directory=True)
        names = {
            "asked": str(self.asked),
            "installed": str(self.installed),
            "wheel": str(wheel),
            "target": str(self.target),
            "startup": str(self.startup),
        }
        (stand_ins / "sitecustomize.py").write_text(SITE.format(**names))
        (stand_ins / "google" / "colab" / "__init__.py").write_text(COLAB.format(**names))
        self.startup.write_text(PIP.format(**names))
        self.script = SETUP_CELLS.format(**names)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("SKINBOOK_", "PYTHON", "XDG_", "JUPYTER_"))}
        self.environment = {
            **kept,
            "HOME": str(top / "home"),
            "IPYTHONDIR": str(top / "ipython"),
            "PYTHONPATH": f"{stand_ins}{os.pathsep}{self.target}",
            "HF_HUB_OFFLINE": "1",
        }

    def heard(self, file: Path) -> list[str]:
        return file.read_text().splitlines() if file.is_file() else []


@pytest.fixture
def elsewhere(tmp_path, wheel) -> Iterator[Elsewhere]:
    there = Elsewhere(tmp_path, wheel)
    yield there
    assert there.heard(there.asked) == []


def install_line() -> str:
    return f'install -q "skinbook @ git+{book.repository()}"'


def notebook(name: str) -> nbformat.NotebookNode:
    return nbformat.read(HOME / "chapters" / f"{name}.ipynb", as_version=4)


def setup_cell(name: str) -> str:
    return next(cell.source for cell in notebook(name).cells if "setup" in cell.metadata.get("tags", ()))


@pytest.mark.parametrize("name", WHOLE)
def test_a_chapter_runs_alone(name, elsewhere):
    file = elsewhere.folder / f"{name}.ipynb"
    file.write_bytes((HOME / "chapters" / file.name).read_bytes())
    cells = nbformat.read(file, as_version=4)
    stored = ledger.said(cells.cells)
    cells.cells.append(nbformat.v4.new_code_cell("import skinbook\nprint(skinbook.__file__)"))
    runs.execute(cells, elsewhere.folder, elsewhere.environment, name)
    code = [cell for cell in cells.cells if cell.cell_type == "code"]
    assert Path(code[-1].outputs[0].text.strip()) == elsewhere.target / "skinbook" / "__init__.py"
    opened = ledger.payloads(code[0].outputs, ledger.SETUP)[0]
    assert (opened["edition"], opened["scale"]) == ("lab", "quick")
    assert elsewhere.heard(elsewhere.installed) == [install_line()]
    now = ledger.said(code)
    assert [list(now[kind]) for kind in stored] == [list(stored[kind]) for kind in stored]
    assert [path.name for path in elsewhere.folder.iterdir()] == [file.name], "a chapter leaves nothing behind"


def run_setup_cells(elsewhere: Elsewhere, sources: list[str]) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", elsewhere.script]
    given = {"input": json.dumps(sources), "cwd": elsewhere.folder, "env": elsewhere.environment}
    return subprocess.run(command, **given, capture_output=True, text=True, check=False)


def test_every_setup_cell_installs_once_and_says_in_one_line_what_it_runs_on(elsewhere):
    names = book.chapters()
    done = run_setup_cells(elsewhere, [setup_cell(name) for name in names])
    assert done.returncode == 0, done.stdout + done.stderr
    assert elsewhere.heard(elsewhere.installed) == [install_line()] * len(names)
    says = re.compile(r"skinbook: edition lab, scale quick, device \w+, data generated")
    lines = done.stdout.splitlines()
    for _ in names:
        first, again, origin = lines[:3]
        assert says.match(first)
        assert again == first
        assert origin == f"from {elsewhere.target / 'skinbook' / '__init__.py'}"
        lines = lines[3:]
    assert lines == []
    assert list(elsewhere.folder.iterdir()) == []


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("import urllib.request as r; r.urlopen('http://elsewhere.invalid')", "the address of elsewhere.invalid"),
        ("import socket; socket.create_connection(('192.0.2.1', 80))", "192.0.2.1"),
        ("from google.colab import drive", "google.colab.drive"),
        ("input('Which folder?')", None),
    ],
)
def test_what_a_setup_cell_may_not_do(tmp_path, wheel, source, fault):
    there = Elsewhere(tmp_path, wheel)
    assert run_setup_cells(there, [source]).returncode != 0
    assert [fault in line for line in there.heard(there.asked)] == ([True] if fault else [])


def requirements(distribution) -> list[Requirement]:
    """What a distribution needs, extras aside."""
    asked = [Requirement(line) for line in distribution.requires or ()]
    return [r for r in asked if not r.marker or r.marker.evaluate({"extra": ""})]


def test_the_wheel_leaves_torch_torchvision_and_numpy_alone(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as packed:
        packed.extractall(tmp_path)
    asked = {r.name: r for r in requirements(next(iter(metadata.distributions(path=[str(tmp_path)]))))}
    assert set(asked) >= KEPT
    for one in asked.values():
        assert not one.url
        assert [s.operator for s in one.specifier] == [">="], f"{one} is not a lower bound alone"
    assert replacing(asked) == []


def replacing(asked: Iterable[str], find=metadata.distribution) -> list[str]:
    """What is needed, at any depth, and would have one version of what Colab and Kaggle bring, and no other."""
    found, seen, waiting = [], set(KEPT), list(asked)
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for one in requirements(find(name)):
            if one.name.lower() in KEPT and {s.operator for s in one.specifier} & {"==", "===", "~="}:
                found.append(f"{name} needs {one}")
            waiting.append(one.name)
    return found


def test_a_library_that_would_replace_torch_is_found():
    needs = {"a": ["b>=1", "extra-one; extra == 'more'"], "b": ["torch==2.5.*", "numpy<3,>=1.26"]}
    assert replacing(["a"], lambda name: SimpleNamespace(requires=needs[name])) == ["b needs torch==2.5.*"]


# Kaggle's folders, under a root of our own


@pytest.fixture
def kaggle(tmp_path, monkeypatch) -> Path:
    for variable in [name for name in os.environ if name.startswith("SKINBOOK_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("SKINBOOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SKINBOOK_DEVICE", "cpu")
    monkeypatch.setattr(config, "KAGGLE_INPUT", tmp_path / "input")
    return tmp_path / "input"


def test_without_data_kaggle_runs_the_lab(kaggle):
    assert config.settings().edition == "lab"
    (kaggle / "some-other-set").mkdir(parents=True)
    assert config.settings().edition == "lab"


@pytest.mark.parametrize(
    "attached", ["skin-cancer-mnist-ham10000", "datasets/kmader/skin-cancer-mnist-ham10000", "mine/a folder"]
)
@pytest.mark.parametrize("masks", ["none", "in the set", "a set of their own"])
def test_ham10000_that_is_attached_in_kaggle_is_found_without_a_setting(kaggle, monkeypatch, masks, attached):
    top = ham10000(kaggle / attached, layout="kaggle", masks=masks != "none")
    if masks == "a set of their own":
        folder = top / "HAM10000_segmentations_lesion_tschandl"
        (kaggle / "ham10000-lesion-segmentations").mkdir()
        folder.rename(kaggle / "ham10000-lesion-segmentations" / folder.name)
    said = []
    monkeypatch.setattr(chapter, "_show", lambda text, mime, payload, **more: said.append(text))
    opened = chapter.setup("01_eda")
    assert said == ["skinbook: edition ham10000, scale quick, device cpu, data HAM10000_metadata.csv"]
    assert opened.dataset.where == top
    assert len(opened.table) == 28
    assert ("masks" in opened.dataset.provides) == (masks != "none")
    assert catalog.load("ham10000").where == top
