"""What holds: tests that break something on purpose say so with the marker `holds`, and leave a row for maintainers.

`pytest tests -m holds --held data/held.json` writes the rows; `skinbook book generate` makes a page of them.
"""

from __future__ import annotations

import json
import os
import platform
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

PACKAGE = Path(__file__).parents[1] / "skinbook"
OUTCOMES = ("failed", "skipped", "held")  # the first that one of a row's tests has is the row's


@pytest.fixture(scope="session")
def drawn_lesions(tmp_path_factory) -> tuple[Path, Path]:
    """A folder of 112 drawn photographs of 56 lesions, four diagnoses, and its table; nobody changes it."""
    import models

    folder = tmp_path_factory.mktemp("drawn")
    return folder, models.lesions(folder, ("nv", "mel", "bcc", "vasc"), each=14, photographs=2, side=48)


@pytest.fixture(autouse=True)
def as_many_threads_after_a_test():
    """Commands set torch's threads for their process, which here is that of the tests: sums of others would differ."""
    before = torch.get_num_threads() if (torch := sys.modules.get("torch")) else None
    yield
    if before is not None:
        sys.modules["torch"].set_num_threads(before)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--held", type=Path, help="write what the tests marked with holds(...) found to this JSON file")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "holds(area, fault, expectation): breaks something on purpose; tests that share all three share a row of the "
        "maintainers' page. `record_property('measured', text)` adds what was measured.",
    )
    config.stash[_FOUND] = []
    # Weights that a developer has fetched at some time must not stand in for those that a test says are absent.
    os.environ["HF_HUB_CACHE"] = os.devnull
    # A shell without job control has what it starts in the background ignore Ctrl-C, which tests send to themselves.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # In the processes that tests start, too, a warning of the package's own code is an error. Python matches whole names.
    modules = [file.relative_to(PACKAGE.parent).with_suffix("").parts for file in sorted(PACKAGE.rglob("*.py"))]
    errors = [f"error:::{'.'.join(parts).removesuffix('.__init__')}" for parts in modules]
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, [os.environ.get("PYTHONWARNINGS", ""), *errors]))


_FOUND: pytest.StashKey[list[dict[str, Any]]] = pytest.StashKey()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    report = yield
    marker = item.get_closest_marker("holds")
    if marker and (report.when == "call" or not report.passed):
        area, fault, expectation = marker.args
        measured = [str(text) for name, text in item.user_properties if name == "measured"]
        outcome = "held" if report.passed else report.outcome
        why = str(report.longrepr[2]).removeprefix("Skipped: ") if report.skipped else ""
        item.config.stash[_FOUND].append(
            {
                "area": area,
                "fault": fault,
                "expectation": expectation,
                "outcome": outcome,
                "measured": measured,
                "why": why,
            }
        )
    return report


def rows(found: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each (area, fault, expectation), in order of area; its outcome is that of its worst test."""
    together: dict[tuple[str, str, str], dict[str, Any]] = {}
    for one in found:
        key = (one["area"], one["fault"], one["expectation"])
        row = together.setdefault(
            key,
            {
                **dict(zip(("area", "fault", "expectation"), key, strict=True)),
                "tests": 0,
                "outcome": "held",
                "measured": [],
            },
        )
        row["tests"] += 1
        row["outcome"] = min(row["outcome"], one["outcome"], key=OUTCOMES.index)
        row["measured"] += [text for text in (*one["measured"], one["why"]) if text and text not in row["measured"]]
    return [together[key] for key in sorted(together)]


def pytest_sessionfinish(session: pytest.Session) -> None:
    file = session.config.getoption("--held")
    if file is None or hasattr(session.config, "workerinput"):
        return
    about = {
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} CPU cores, {platform.system()}",
        "python": platform.python_version(),
        "kills": int(os.environ.get("SKINBOOK_KILLS", "3")),
    }
    found = {**about, "rows": rows(session.config.stash[_FOUND])}
    file.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
