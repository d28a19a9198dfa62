"""What `make steady` found, and that it finds what it should: a flake, a crash, an order, and where it stopped."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import steady

from skinbook.pages import held

HOME = Path(__file__).parents[1]


def test_what_was_found_is_whole_and_without_failure():
    found = json.loads((HOME / "data" / "steady.json").read_text(encoding="utf-8"))
    assert {"date", "machine", "python"} <= found.keys()
    rows = {row["fault"]: row for row in found["rows"]}
    assert [(fault, rows[fault]["expectation"]) for fault in rows] == list(steady.WAYS.values())
    for row in found["rows"]:
        assert row["area"] == steady.AREA
        assert row["outcome"] in ("held", "skipped"), row
        assert row["measured"], row
        assert (row["tests"] > 0) == bool(row["commits"]) == (row["outcome"] == "held")


def commit(home: Path) -> None:
    git = ["git", "-C", str(home), "-c", "user.name=Somebody", "-c", "user.email=somebody@example.org"]
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "All"], check=True)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A repository with four tests that note their order, one of which fails where a file `home / broken` lies."""
    home = tmp_path / "project"
    (home / "tests").mkdir(parents=True)
    (home / "data").mkdir()
    (home / "tests" / "test_some.py").write_text(
        "import os, pytest\n"
        "from pathlib import Path\n"
        "HOME = Path(os.environ['HOME'])\n"
        "@pytest.mark.parametrize('number', range(4))\n"
        "def test_one(number):\n"
        "    with (HOME / 'order').open('a') as file:\n"
        "        file.write(str(number))\n"
        "    assert number != 2 or not (HOME / 'broken').exists()\n"
        "def test_left_out():\n"
        "    pytest.skip('why not')\n",
        encoding="utf-8",
    )
    (home / "pyproject.toml").write_text(
        '[tool.pytest.ini_options]\nmarkers = ["slow: slow"]\naddopts = "-p no:skinbook -p no:nbval -p no:hypothesispytest"\n',
        encoding="utf-8",
    )
    subprocess.run(["git", "init", "--quiet", str(home)], check=True)
    commit(home)
    monkeypatch.setattr(steady, "HOME", home)
    monkeypatch.setattr(steady, "PLACE", tmp_path / "steady")
    (tmp_path / "steady").mkdir()
    # One process, so that the order can be seen.
    monkeypatch.setitem(steady.SUITES, "the unit tests", ("tests", "-m", "not slow"))
    return home


def test_a_round_is_in_its_order_its_surroundings_and_is_not_run_twice(project):
    place = steady.PLACE
    order = place / "plain" / "home" / "order"
    plain = steady.Round("order", "plain", "the unit tests")
    found = steady.run(plain)
    assert (found["tests"], found["skipped"], found["failed"]) == (5, 1, [])
    assert order.read_text(encoding="utf-8") == "0123"
    assert steady.run(plain) == found
    assert order.read_text(encoding="utf-8") == "0123"
    steady.run(steady.Round("order", "mixed", "the unit tests", ("--random-order-seed=3",)))
    assert order.read_text(encoding="utf-8")[4:] != "0123"
    assert sorted(order.read_text(encoding="utf-8")[4:]) == list("0123")


@pytest.mark.holds("the same answer", "a test that fails once in a while", "the round, its test and its log are named")
def test_a_flake_is_found_told_and_shown(project, monkeypatch, capsys, tmp_path):
    one = steady.Round("path", "some", "the unit tests", folder="ä place")
    monkeypatch.setattr(steady, "rounds", lambda way: iter([one]))
    (steady.PLACE / "ä place" / "home").mkdir(parents=True)
    (steady.PLACE / "ä place" / "home" / "broken").touch()
    assert steady.main(["--ways", "path"]) == 1
    assert "1 FAILED: tests.test_some::test_one[2]" in capsys.readouterr().out
    assert "assert (2 != 2" in (steady.PLACE / "some.log").read_text(encoding="utf-8", errors="replace")
    told = project / "data" / "steady.json"
    rows = {row["fault"]: row for row in json.loads(told.read_text(encoding="utf-8"))["rows"]}
    failed, left_out = rows[steady.WAYS["path"][0]], rows[steady.WAYS["order"][0]]
    assert (failed["outcome"], failed["tests"]) == ("failed", 5)
    assert failed["measured"][-1] == "failed: tests.test_some::test_one[2]"
    assert (left_out["outcome"], left_out["measured"]) == ("skipped", ["no round yet"])
    (tmp_path / "held.json").write_text(
        json.dumps({"date": "d", "machine": "m", "python": "p", "kills": 3, "rows": []}), encoding="utf-8"
    )
    page = held(tmp_path / "held.json", told)
    assert "## The same answer" in page
    assert "**did not hold**: the unit tests, 1 of 1 rounds of 4 tests" in page
    assert "not tried: no round yet" in page
    # What failed stays so until it is begun anew, with what is committed then.
    (project / "tests" / "test_some.py").write_text("def test_other():\n    pass\n", encoding="utf-8")
    commit(project)
    assert steady.main(["--ways", "path"]) == 1
    assert steady.main(["--ways", "path", "--anew"]) == 0
    assert "1 passed" in capsys.readouterr().out
    assert json.loads((steady.PLACE / "some.json").read_text(encoding="utf-8"))["tests"] == 1


def test_a_clone_that_cannot_be_written(project):
    clone = steady.clone(steady.PLACE / "readonly")
    assert not [path for path in (clone, *clone.rglob("*")) if path.stat().st_mode & 0o222]
    assert (clone / "tests" / "test_some.py").is_file()
    steady.forget(["readonly"], [])
    assert not clone.exists()


def test_a_crash_is_a_failure(tmp_path):
    assert steady.read(tmp_path / "none.xml", -11)["failed"] == ["pytest ended with -11"]
    (tmp_path / "half.xml").write_text(
        '<testsuites><testsuite><testcase classname="a" name="b"/></testsuite></testsuites>', encoding="utf-8"
    )
    assert steady.read(tmp_path / "half.xml", 2) == {"tests": 1, "skipped": 0, "failed": ["pytest ended with 2"]}
    assert steady.read(tmp_path / "half.xml", 0)["failed"] == []


def test_what_this_machine_lacks_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(steady, "works", lambda *command: False)
    monkeypatch.setattr(steady, "PLACE", tmp_path)
    rows = {row["fault"]: row for row in steady.told()["rows"]}
    assert rows[steady.WAYS["offline"][0]]["measured"] == ["unshare is not allowed or not complete here"]
    assert rows[steady.WAYS["locale"][0]]["measured"] == ["localedef makes no Turkish locale here"]
    assert {row["outcome"] for row in rows.values()} == {"skipped"}


def test_there_are_as_many_rounds_as_promised():
    rounds = {way: list(steady.rounds(way)) for way in ("order", "chapters", "threads")}
    assert {way: len(found) for way, found in rounds.items()} == {"order": 20, "chapters": 3, "threads": 6}
    assert len({one.arguments for one in rounds["order"]}) == 20
    assert {one.variables["SKINBOOK_THREADS"] for one in rounds["threads"]} == {"1", "2", "4"}


def test_a_way_that_is_not_tried_here_keeps_its_row(tmp_path, monkeypatch):
    monkeypatch.setattr(steady, "PLACE", tmp_path)
    monkeypatch.setattr(steady, "works", lambda *command: True)
    found = steady.told()
    assert {row["measured"][0] for row in found["rows"]} == {"no round yet"}
    fault = steady.WAYS["order"][0]
    old = {"area": steady.AREA, "fault": fault, "tests": 7, "outcome": "held", "measured": ["once"], "commits": ["a"]}
    rows = [{**old, "expectation": steady.WAYS["order"][1]}]
    kept = steady.told({**found, "date": "2026-01-02", "rows": rows})["rows"]
    assert kept[0] == {**rows[0], "date": "2026-01-02"}
    assert [row["tests"] for row in kept[1:]] == [0] * 7
    elsewhere = steady.told({**found, "machine": "another", "rows": rows})["rows"]
    assert elsewhere[0]["measured"] == ["no round yet"]
    one = {
        "way": "order",
        "suite": "the unit tests",
        "tests": 3,
        "skipped": 0,
        "failed": [],
        "seconds": 2,
        "commit": "b",
    }
    (tmp_path / "one.json").write_text(json.dumps(one), encoding="utf-8")
    new = steady.told({**found, "rows": rows})["rows"][0]
    assert (new["tests"], new["commits"]) == (3, ["b"])
    file = tmp_path / "held.json"
    file.write_text(json.dumps({**found, "kills": 3, "rows": []}), encoding="utf-8")
    both = {**found, "rows": [{**new, "date": "2026-01-04"}, {**kept[0], "date": "2026-01-02"}]}
    (tmp_path / "steady.json").write_text(json.dumps(both), encoding="utf-8")
    assert "Rounds of tests: 2026-01-02 and 2026-01-04 on" in held(file, tmp_path / "steady.json")
