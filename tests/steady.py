"""The same answer every time: the tests again and again, in random order and in other surroundings.

`make steady` does all of it, `python tests/steady.py --rounds 3 --ways order threads` a part. What is committed is run,
from clones of the checkout under `_build/steady`, so that files may change meanwhile; homes, caches and temporary files
lie there too. A run that was cut off goes on where it stopped, with the same commit; `--anew` begins these ways again,
with what is committed now. Each round leaves a log there and a line here, and all of them together a row for each way
in `data/steady.json`, for the maintainers' page. The exit code is 1 where a test failed, in whichever round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parent.parent
PLACE = HOME / "_build" / "steady"
AREA = "the same answer"
# Each way: what is done to the tests, and what should come of it.
WAYS = {
    "order": ("the unit tests in random order", "all pass, every time"),
    "chapters": ("every chapter, again and again", "every number within its tolerance, every verdict the same"),
    "threads": ("one, two and four threads", "the unit tests and a chapter pass"),
    "locale": ("a Turkish locale that is not UTF-8, the C locale, and two time zones", "the unit tests and a chapter pass"),
    "path": ("checkout, home and temporary files below spaces and non-ASCII letters", "the unit tests and a chapter pass"),
    "user": ("a user without privileges", "the unit tests and a chapter pass"),
    "readonly": ("a checkout that cannot be written, and such a user", "the unit tests and a chapter pass"),
    "offline": ("no network but the machine's own", "the unit tests and a chapter pass"),
}  # fmt: skip
SUITES = {
    "the unit tests": ("tests", "-m", "not slow", "--numprocesses", "2", "--dist", "loadgroup"),
    "a chapter": ("--nbval", "chapters/01_eda.ipynb"),
    "all chapters": ("--nbval", "chapters"),
}
LONGEST = 2 * 60 * 60  # seconds; what hangs has failed


class CannotTry(Exception):
    """Why a way cannot be tried on this machine."""


@dataclass(frozen=True)
class Round:
    """One run of pytest: a suite, its environment, what the command begins with, and the folder of its clone and home."""

    way: str
    name: str
    suite: str
    arguments: tuple[str, ...] = ()
    variables: dict[str, str] = field(default_factory=dict)
    prefix: tuple[str, ...] = ()
    folder: str = "plain"


# The ways -----------------------------------------------------------------------------------------------------------


def rounds(way: str) -> Iterator[Round]:
    """The rounds of a way, in order.

    Raises
    ------
    CannotTry
        If this machine lacks what it needs.
    """
    if way == "order":
        for seed in range(1, 21):
            # By module, as fixtures are shared; every fifth time through all modules at once.
            bucket = "global" if seed % 5 == 0 else "module"
            order = (f"--random-order-bucket={bucket}", f"--random-order-seed={seed}")
            yield Round(way, f"order-{seed:02d}", "the unit tests", order, {"PYTHONHASHSEED": str(seed)})
    elif way == "chapters":
        for number in (1, 2, 3):
            yield Round(way, f"chapters-{number}", "all chapters")
    elif way == "threads":
        for count in ("1", "2", "4"):
            names = ("SKINBOOK_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
            yield from _both(way, f"threads-{count}", variables=dict.fromkeys(names, count))
    elif way == "locale":
        yield from _both(way, "locale-tr", variables={**turkish(), "TZ": "<+1345>-13:45"})
        yield from _both(way, "locale-c", variables={"LC_ALL": "C", "LANG": "C", "TZ": "<-0930>9:30"})
    elif way == "path":
        yield from _both(way, "path", folder="a path with späces, ñ and 皮膚")
    elif way == "user":
        yield from _both(way, "user", prefix=unprivileged())
    elif way == "readonly":
        yield from _both(way, "readonly", prefix=unprivileged(), folder="readonly")
    else:
        yield from _both(way, "offline", prefix=offline())


def _both(way: str, name: str, **more: Any) -> Iterator[Round]:
    yield Round(way, f"{name}-unit", "the unit tests", **more)
    yield Round(way, f"{name}-chapter", "a chapter", **more)


def turkish() -> dict[str, str]:
    """Variables of a locale with another alphabet, another decimal point and, in files, another encoding."""
    name, folder = "tr_TR.ISO-8859-9", PLACE / "locale"
    folder.mkdir(parents=True, exist_ok=True)
    make = ["localedef", "--no-archive", "-i", "tr_TR", "-f", "ISO-8859-9", str(folder / name)]
    if not (folder / name).is_dir() and not works(*make):
        raise CannotTry("localedef makes no Turkish locale here")
    return {"LOCPATH": str(folder), "LC_ALL": name, "LANG": name}


def unprivileged() -> tuple[str, ...]:
    """What a command begins with to run as a user whom permissions bind; nothing, unless root asks.

    A namespace in which root is an ordinary user: it reads what root may read, and has none of root's powers.
    """
    if os.geteuid():
        return ()
    return _if_it_works("unshare", "--user", "--map-user=1000", "--map-group=1000")


def offline() -> tuple[str, ...]:
    """What a command begins with to have no network but 127.0.0.1."""
    user = ("--user", "--map-root-user") if os.geteuid() else ()
    return _if_it_works("unshare", *user, "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")


def _if_it_works(*prefix: str) -> tuple[str, ...]:
    if not works(*prefix, "true"):
        raise CannotTry(f"{prefix[0]} is not allowed or not complete here")
    return prefix


def works(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


# A round ------------------------------------------------------------------------------------------------------------


def clone(folder: Path) -> Path:
    """What is committed, in `folder` / checkout; the clone that is there already, where there is one."""
    checkout = folder / "checkout"
    if not checkout.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["git", "clone", "--quiet", "--shared", str(HOME), str(checkout)], check=True)
        if folder.name == "readonly":
            subprocess.run(["chmod", "-R", "a-w", str(checkout)], check=True)
    return checkout


def forget(folders: Iterable[str], ways: Iterable[str]) -> None:
    """Remove the outcomes of these ways, and the clones that they are run in."""
    for file in PLACE.glob("*.json"):
        if json.loads(file.read_text(encoding="utf-8"))["way"] in ways:
            file.unlink()
    for checkout in (PLACE / folder / "checkout" for folder in folders):
        if checkout.is_dir():
            subprocess.run(["chmod", "-R", "u+w", str(checkout)], check=True)
            shutil.rmtree(checkout)


def run(one: Round) -> dict[str, Any]:
    """Run a round unless its outcome is there; returns the outcome, and keeps it beside the log."""
    kept = PLACE / f"{one.name}.json"
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    checkout = clone(PLACE / one.folder)
    own, log, report = PLACE / one.folder / "home", PLACE / f"{one.name}.log", PLACE / f"{one.name}.xml"
    for folder in (own / "tmp", own / ".cache"):
        folder.mkdir(parents=True, exist_ok=True)
    # The lab is drawn once, in the plain place, and copied.
    drawn, ours = PLACE / "plain" / "home" / ".cache" / "skinbook", own / ".cache" / "skinbook"
    if drawn.is_dir() and not ours.is_dir():
        shutil.copytree(drawn, ours)
    report.unlink(missing_ok=True)
    environment = {
        **{k: v for k, v in os.environ.items() if not re.match("SKINBOOK_|PYTHON|PYTEST|XDG_|LC_|LANG", k)},
        "PYTHONPATH": str(checkout),
        "HOME": str(own),
        "TMPDIR": str(own / "tmp"),
        "HYPOTHESIS_STORAGE_DIRECTORY": str(own / "hypothesis"),
        # As `make unit`: two processes at once, one thread each. Chapters run alone and choose for themselves.
        **({"OMP_NUM_THREADS": "1"} if one.suite == "the unit tests" else {}),
        **one.variables,
    }
    pytest = [sys.executable, "-m", "pytest", *SUITES[one.suite], *one.arguments]
    command = [*one.prefix, *pytest, f"--junitxml={report}", "-p", "no:cacheprovider"]
    began = time.monotonic()
    with log.open("wb") as file:
        try:
            ended = subprocess.run(
                command, cwd=checkout, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False, timeout=LONGEST
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            ended = -1
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=checkout, capture_output=True, check=True)
    outcome = {
        "way": one.way,
        "suite": one.suite,
        "commit": commit.stdout.decode().strip(),
        "seconds": round(time.monotonic() - began),
        **read(report, ended),
    }
    partial = kept.with_suffix(".partial")
    partial.write_text(json.dumps(outcome, indent=1) + "\n", encoding="utf-8")
    partial.replace(kept)
    return outcome


def read(report: Path, ended: int) -> dict[str, Any]:
    """How many tests a JUnit report counts, how many were skipped, and the names of those that failed.

    ended : pytest's exit status. One that no failed test explains is a failure of its own.
    """
    cases = [] if not report.is_file() else list(ET.parse(report).getroot().iter("testcase"))
    failed = [
        f"{case.get('classname')}::{case.get('name')}".strip(":")
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]
    if ended and not failed:
        failed = [f"pytest ended with {ended}"]
    return {"tests": len(cases), "skipped": sum(case.find("skipped") is not None for case in cases), "failed": failed}


# What is told -------------------------------------------------------------------------------------------------------


def line(name: str, outcome: dict[str, Any]) -> str:
    """A round in one line."""
    count = f"{outcome['tests'] - outcome['skipped'] - len(outcome['failed']):,} passed"
    failed = f", {len(outcome['failed'])} FAILED: {', '.join(outcome['failed'][:3])}" if outcome["failed"] else ""
    return f"{name:18} {count}, {outcome['skipped']} skipped, {outcome['seconds']} s{failed}"


def row(way: str, outcomes: list[dict[str, Any]], planned: dict[str, int], why: str = "") -> dict[str, Any]:
    """A way's row of the maintainers' page; planned : how many rounds of each suite it has. why : it was not tried."""
    fault, expectation = WAYS[way]
    failed = sorted({name for one in outcomes for name in one["failed"]})
    measured = [why] if why else []
    for suite, wanted in planned.items():
        if ran := [one for one in outcomes if one["suite"] == suite]:
            times = sorted({one["seconds"] for one in ran})
            many = " to ".join(str(end) for end in dict.fromkeys((times[0], times[-1])))
            tests = max(one["tests"] - one["skipped"] for one in ran)
            what = "tests" if suite == "the unit tests" else "cells and checks"
            measured.append(f"{suite}, {len(ran)} of {wanted} rounds of {tests:,} {what}, {many} s each")
    return {
        "area": AREA,
        "fault": fault,
        "expectation": expectation,
        "tests": sum(one["tests"] for one in outcomes),
        "outcome": "failed" if failed else "held" if outcomes else "skipped",
        "measured": measured + [f"failed: {name}" for name in failed],
        "commits": sorted({one["commit"] for one in outcomes}),
    }


def told(earlier: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Everything that was found up to now, for `data/steady.json`.

    earlier : what stands there. A way that was not tried in this checkout keeps its row, if that is from such a machine.
    """
    kept: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    dates: dict[str, str] = {}
    for file in sorted(PLACE.glob("*.json")):
        outcome = json.loads(file.read_text(encoding="utf-8"))
        kept[outcome["way"]].append(outcome)
        day = time.strftime("%Y-%m-%d", time.gmtime(file.stat().st_mtime))
        dates[outcome["way"]] = max(day, dates.get(outcome["way"], ""))
    here = {"machine": f"{os.cpu_count()} CPU cores, {platform.system()}", "python": platform.python_version()}
    earlier = earlier if earlier and here.items() <= earlier.items() else {"rows": []}
    before = {row["fault"]: {"date": earlier["date"], **row} for row in earlier["rows"] if row["tests"]}
    found = []
    for way, outcomes in kept.items():
        try:
            suites = [one.suite for one in rounds(way)]
        except CannotTry as error:
            found.append(row(way, [], {}, str(error)))
            continue
        planned = {suite: suites.count(suite) for suite in dict.fromkeys(suites)}
        if outcomes:
            found.append({**row(way, outcomes, planned), "date": dates[way]})
        else:
            found.append(before.get(WAYS[way][0]) or row(way, [], {}, "no round yet"))
    return {"date": time.strftime("%Y-%m-%d"), **here, "rows": found}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="only these")
    parser.add_argument("--rounds", type=int, default=20, help="at most so many of order and of chapters")
    parser.add_argument(
        "--anew", action="store_true", help="forget what these ways found, and run what is committed now"
    )
    given = parser.parse_args(arguments)
    PLACE.mkdir(parents=True, exist_ok=True)
    wanted = {}
    for way in given.ways:
        try:
            wanted[way] = list(rounds(way))
        except CannotTry as error:
            print(f"{way:18} not tried: {error}", flush=True)
    if given.anew:
        forget({one.folder for ways in wanted.values() for one in ways}, wanted)
    flakes = 0
    for way, some in wanted.items():
        for one in some[: given.rounds] if way in ("order", "chapters") else some:
            outcome = run(one)
            flakes += bool(outcome["failed"])
            print(line(one.name, outcome), flush=True)
    file = HOME / "data" / "steady.json"
    found = told(json.loads(file.read_text(encoding="utf-8")) if file.exists() else None)
    file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for one in found["rows"]:
        print(f"{one['outcome']:8} {one['fault']}: {'; '.join(one['measured'])}")
    print(f"{flakes} rounds failed; logs in {PLACE}" if flakes else "No round failed.")
    return int(flakes > 0)


if __name__ == "__main__":
    sys.exit(main())
