"""The files around the package: commands, versions, licences, the public address."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from skinbook.book import repository

HOME = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((HOME / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=HOME, capture_output=True, text=True, check=False).stdout
    files = [HOME / name for name in listed.split("\0") if name and (HOME / name).is_file()]
    if not files:
        pytest.skip("not a git checkout: the tracked files are not known")
    return files


def texts() -> dict[Path, str]:
    """The tracked files that hold text people wrote."""
    kinds = {".md", ".ipynb", ".py", ".toml", ".yml", ".cff", ".txt", ".bib", ".css", ""}
    return {
        path: path.read_text(encoding="utf-8")
        for path in tracked()
        if path.suffix in kinds
        and path.name not in ("LICENSE", "LICENSE-TEXT")
        and "_assets/mathjax" not in path.as_posix()
    }


def name_of(requirement: str) -> str:
    return re.split(r"[<>=!~\[; ]", requirement)[0].lower().replace("_", "-")


def test_constraints_pin_every_requirement_and_nothing_that_only_one_system_has():
    lines = (HOME / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pinned = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    asked = [*PROJECT["project"]["dependencies"], *(r for extra in EXTRAS.values() for r in extra)]
    assert {name_of(r) for r in asked} <= set(pinned)
    assert not [name for name in pinned if name.startswith(("nvidia", "cuda", "triton", "skinbook"))]
    assert "uv" in pinned


def test_runtime_requirements_are_lower_bounds():
    for requirement in PROJECT["project"]["dependencies"]:
        assert re.fullmatch(r"[\w-]+>=[\d.]+", requirement), requirement
    assert {"book", "test"} <= set(EXTRAS)


def dry(*arguments: str) -> str:
    # These tests may themselves run under make, whose own variables would speak here.
    clean = {
        k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS")) and k not in ("CHAPTERS", "EDITION")
    }
    done = subprocess.run(["make", "-n", *arguments], cwd=HOME, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_commands():
    assert "skinbook book build" in dry("book")
    assert "--edition" not in dry("book")
    assert "build --edition ham10000" in dry("book", "EDITION=ham10000")
    assert 'SKINBOOK_CHAPTERS="01 03"' in dry("test", "CHAPTERS=01 03")
    assert "pytest --nbval" in dry("test")
    for tool in ("ruff check", "ruff format --check", "mypy", "codespell", "lint-imports"):
        assert tool in dry("lint")
    assert "ledger refresh" in dry("refresh-ledger")
    shown = subprocess.run(["make", "help"], cwd=HOME, capture_output=True, text=True, check=True).stdout
    targets = re.search(r"^\.PHONY: (.+)$", (HOME / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert targets is not None
    assert [name for name in targets[1].split() if f"make {name} " not in shown] == []


@pytest.mark.parametrize("lies_there", [True, False])
@pytest.mark.parametrize("browser", [True, False])
def test_ci_runs_everything_and_finds_real_lesions_where_they_lie(tmp_path, lies_there, browser):
    project = tmp_path / "project"
    (project / ".ci").mkdir(parents=True)
    shutil.copy(HOME / ".ci" / "run", project / ".ci" / "run")
    if lies_there:
        (tmp_path / "shared" / "data" / "weights").mkdir(parents=True)
    tools = tmp_path / "bin"
    tools.mkdir()
    make = 'echo "$1 data=$SKINBOOK_DATA weights=$SKINBOOK_WEIGHTS"\n[ "$1" != lint ] || exit ${FAIL:-0}'
    fakes = {"make": make, "apt-get": "exit 1", **({"chromium": "exit 0"} if browser else {})}
    for name, does in fakes.items():
        (tools / name).write_text(f"#!/bin/sh\n{does}\n", encoding="utf-8")
        (tools / name).chmod(0o755)
    for name in ("bash", "sh", "dirname"):
        (tools / name).symlink_to(shutil.which(name))
    environment = {**{k: v for k, v in os.environ.items() if not k.startswith("SKINBOOK_")}, "PATH": str(tools)}
    run = ["/usr/bin/env", "bash", str(project / ".ci" / "run")]
    done = subprocess.run(run, env=environment, capture_output=True, text=True, check=True)
    there = (tmp_path / "shared" / "data").resolve() if lies_there else ""
    weights = f"{there}/weights" if lies_there else ""
    said = [line for line in done.stdout.splitlines() if not line.startswith("==")]
    targets = ["test", "lint", "book", *(["test-browser"] if browser else [])]
    assert said == [f"{target} data={there} weights={weights}" for target in targets]
    assert ("test-browser: left out" in done.stdout) != browser
    failed = subprocess.run(run, env={**environment, "FAIL": "3"}, capture_output=True, text=True, check=False)
    assert failed.returncode != 0
    assert "book data" not in failed.stdout


def test_only_ci_names_the_folder_beside_the_project():
    here = Path(__file__)
    naming = [p for p, text in texts().items() if "../shared" in text and p != here]
    assert [p.relative_to(HOME).as_posix() for p in naming] == [".ci/run"]


def test_conda_users_get_the_same():
    wanted = yaml.safe_load((HOME / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    by_pip = next(d["pip"] for d in wanted if isinstance(d, dict))
    assert by_pip == ["--constraint constraints.txt", "--editable .[book,test,lint]"]


def test_one_public_address():
    address = repository()
    for path, text in texts().items():
        if path == Path(__file__) or path.name == "test_book.py":
            continue
        for found in re.findall(r"https://(?:colab\.research\.google\.com/)?github(?:\.com)?/[\w.-]+/skinbook\b", text):
            assert found.endswith(address.removeprefix("https://github.com")), path


def test_licences_and_citation():
    assert (HOME / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")
    assert "creativecommons.org/licenses/by/4.0" in (HOME / "LICENSE-TEXT").read_text(encoding="utf-8")
    citation = yaml.safe_load((HOME / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["project"]["version"]
    assert (HOME / "chapters" / "_assets" / "mathjax" / "LICENSE").is_file()


def test_a_reader_is_told_that_this_is_no_medical_device():
    config = yaml.safe_load((HOME / "_config.yml").read_text(encoding="utf-8"))
    for text in ((HOME / "README.md").read_text(encoding="utf-8"), config["html"]["extra_footer"]):
        assert "This is a teaching tool, not a medical device" in text
    assert "Not a medical device" in (HOME / "chapters" / "index.md").read_text(encoding="utf-8")


def test_a_floor_that_imports_upwards_is_found(tmp_path):
    shutil.copytree(HOME / "skinbook", tmp_path / "skinbook", ignore=shutil.ignore_patterns("__pycache__", "_data"))
    shutil.copy(HOME / "pyproject.toml", tmp_path)
    for path in (tmp_path / "skinbook", *(tmp_path / "skinbook").rglob("*")):
        path.chmod(path.stat().st_mode | 0o200)  # the checkout may be one that cannot be written
    linter = [str(Path(sys.executable).with_name("lint-imports")), "--no-logo", "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}

    def run() -> subprocess.CompletedProcess:
        return subprocess.run(linter, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    with (tmp_path / "skinbook" / "keyed.py").open("a") as file:
        file.write("\nimport skinbook.splits\n")
    upwards = run()
    assert upwards.returncode != 0
    assert "skinbook.keyed -> skinbook.splits" in upwards.stdout
    (tmp_path / "skinbook" / "attic.py").write_text("", encoding="utf-8")
    assert "attic" in run().stdout
