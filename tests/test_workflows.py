"""The workflows of .github: their schema, what they may do, and that each command in them exists."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

HOME = Path(__file__).resolve().parent.parent
FILES = sorted((HOME / ".github" / "workflows").glob("*.yml"))
# The only jobs that may write anything, and what.
MAY_WRITE = {
    ("gpu", "tell"): {"issues": "write"},
    ("pages", "publish"): {"pages": "write", "id-token": "write"},
}
MAKEFILE = (HOME / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))


def read(file: Path) -> dict[Any, Any]:
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def commands(job: dict[str, Any]) -> list[str]:
    return [step["run"] for step in job["steps"] if "run" in step]


def faults(name: str, workflow: dict[Any, Any]) -> list[str]:
    """What is wrong with a workflow that its schema allows."""
    found = []
    if workflow.get("permissions") != {"contents": "read"}:
        found.append("may do more than read, as a whole")
    if "concurrency" not in workflow:
        found.append("may run twice at a time")
    for key, job in workflow["jobs"].items():
        if job.get("permissions", {}) != MAY_WRITE.get((name, key), {}):
            found.append(f"{key}: may write {job.get('permissions', {})}")
        if "timeout-minutes" not in job:
            found.append(f"{key}: has no timeout")
        for step in job["steps"]:
            if "uses" in step and not re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"]):
                found.append(f"{key}: {step['uses']} is not one of GitHub's own actions at a major version")
        for command in commands(job):
            found += [
                f"{key}: there is no target {target!r}"
                for target in re.findall(r"\bmake +([a-z-]+)", command)
                if target not in TARGETS
            ]
            if "${{" in command:
                found.append(f"{key}: what GitHub fills in should reach a command as a variable, not as its text")
    return found


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_workflow_keeps_the_rules(file):
    assert faults(file.stem, read(file)) == []


def test_no_two_workflows_have_one_action_at_two_versions():
    used = {step["uses"] for f in FILES for job in read(f)["jobs"].values() for step in job["steps"] if "uses" in step}
    assert len({use.partition("@")[0] for use in used}) == len(used)


def validate(*files: Path) -> subprocess.CompletedProcess:
    check = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows"]
    return subprocess.run([*check, *map(str, files)], capture_output=True, text=True, check=False)


def test_the_workflows_follow_their_schema(tmp_path):
    done = validate(*FILES)
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / "wrong.yml"
    wrong.write_text(FILES[0].read_text(encoding="utf-8").replace("runs-on:", "run-on:"), encoding="utf-8")
    assert validate(wrong).returncode != 0


SOUND = """
permissions: {contents: read}
concurrency: {group: g}
jobs:
  one:
    runs-on: ubuntu-latest
    timeout-minutes: 5
    steps:
      - uses: actions/checkout@v7
      - run: make test
"""


@pytest.mark.parametrize(
    ("sound", "wrong", "fault"),
    [
        ("", "", None),
        ("contents: read", "contents: write", "may do more than read"),
        ("concurrency: {group: g}", "", "twice at a time"),
        ("    timeout-minutes: 5", "    permissions: {issues: write}\n    timeout-minutes: 5", "one: may write"),
        ("    timeout-minutes: 5", "", "one: has no timeout"),
        ("checkout@v7", "checkout@main", "actions/checkout@main is not"),
        ("actions/checkout@v7", "somebody/checkout@v1", "somebody/checkout@v1 is not"),
        ("make test", "make tests", "no target 'tests'"),
        ("make test", "echo ${{ github.head_ref }}", "as a variable"),
    ],
)
def test_each_rule_is_seen_to_fail(sound, wrong, fault):
    found = faults("trial", yaml.safe_load(SOUND.replace(sound, wrong) if sound else SOUND))
    assert (found == []) if fault is None else (len(found) == 1 and fault in found[0])


def test_what_is_promised_is_run():
    """Three Pythons on the oldest and newest libraries; a GPU and the links every week; pages at each change."""
    jobs = {file.stem: read(file)["jobs"] for file in FILES}
    matrix = jobs["ci"]["versions"]["strategy"]["matrix"]
    assert len(matrix["python"]) == 3
    assert matrix["versions"] == ["oldest", "newest"]
    assert {"make test-oldest", "make test-newest"} <= set(commands(jobs["ci"]["versions"]))
    on_gpu = "\n".join(commands(jobs["gpu"]["chapters"]))
    assert on_gpu.count("pytest --nbval") == 2
    assert "--record" in on_gpu
    assert "colab-images" in jobs["gpu"]["chapters"]["container"]["image"]
    assert "make book" in commands(jobs["pages"]["build"])
    for name in ("gpu", "links"):
        # YAML reads the key `on` as true.
        assert re.fullmatch(
            r"\d+ \d+ \* \* \d", read(HOME / ".github" / "workflows" / f"{name}.yml")[True]["schedule"][0]["cron"]
        )


def test_the_commands_of_skinbook_in_workflows_exist():
    from typer.main import get_command

    from skinbook.cli import _mounted

    group = get_command(_mounted())
    for file in FILES:
        for job in read(file)["jobs"].values():
            for line in "\n".join(commands(job)).splitlines():
                if line.strip().startswith("skinbook "):
                    _, name, *given = line.split()
                    command = group.commands[name]
                    command = command.commands[given.pop(0)] if hasattr(command, "commands") else command
                    known = {option for parameter in command.params for option in parameter.opts}
                    assert {word for word in given if word.startswith("--")} <= known


def dry(*arguments: str) -> str:
    """What make would run."""
    # This test may itself run under make, whose own variables would speak here.
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS")) and k != "CHAPTERS"}
    return subprocess.run(
        ["make", "-n", *arguments], cwd=HOME, env=clean, capture_output=True, text=True, check=True
    ).stdout


def test_the_targets_that_workflows_and_contributors_use():
    oldest, newest = dry("test-oldest"), dry("test-newest")
    assert "--resolution lowest-direct --only-binary torch" in oldest
    assert "--upgrade --editable" in newest
    for name, text in (("test-oldest", oldest), ("test-newest", newest)):
        assert f"_build/{name}/bin/python -m pytest tests" in text
        assert "constraints" not in text
    assert 'SKINBOOK_ALONE="all"' in dry("test-alone")
    assert 'SKINBOOK_ALONE="01 03"' in dry("test-alone", "CHAPTERS=01 03")
    assert "pre-commit install" in dry("hooks")
    assert "links --check" in dry("links", "CHECK=yes")
    assert "--check" not in dry("links")


def test_the_hooks_use_tools_of_the_project_and_name_no_version():
    config = yaml.safe_load((HOME / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    hooks = config["repos"][0]["hooks"]
    extras = tomllib.loads((HOME / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    installed = {"skinbook", *(re.split(r"[<>=]", one)[0] for name in ("lint", "test") for one in extras[name])}
    for hook in hooks:
        assert hook["language"] == "system"
        assert set(re.findall(r"\$\{VENV:-\.venv\}/bin/([\w-]+)", hook["entry"])) <= installed
        assert (hook["entry"].endswith('"$@"\' --')) == hook.get("pass_filenames", True)
    assert {hook["id"] for hook in hooks} == {"ruff-check", "ruff-format", "codespell", "book", "workflows"}
