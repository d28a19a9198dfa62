"""The maintainers' table is what the marked tests found, and complete."""

import ast
import json
from pathlib import Path

import pytest

HOME = Path(__file__).parents[1]
pytest_plugins = ["pytester"]


def _marked() -> set[tuple[str, ...]]:
    """(area, fault, expectation) of every `holds` marker in the tests, read from their source."""
    found = set()
    for file in sorted((HOME / "tests").glob("test_*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.holds":
                found.add(tuple(ast.literal_eval(argument) for argument in node.args))
    return found


def test_every_fault_that_is_tested_has_its_row_and_held():
    told = json.loads((HOME / "data" / "held.json").read_text(encoding="utf-8"))
    rows = {(row["area"], row["fault"], row["expectation"]): row for row in told["rows"]}
    assert rows.keys() == _marked(), "run `make held`, which writes the table anew"
    assert not [key for key, row in rows.items() if row["outcome"] == "failed"]
    assert not [key for key, row in rows.items() if row["outcome"] == "skipped" and not row["measured"]]


def test_a_row_says_what_its_tests_found(pytester: pytest.Pytester):
    pytester.makeconftest((HOME / "tests" / "conftest.py").read_text(encoding="utf-8"))
    pytester.makepyfile(
        """
        import pytest

        @pytest.mark.holds("files", "a kill", "nothing is lost")
        @pytest.mark.parametrize("number", [1, 2])
        def test_kill(number, record_property):
            record_property("measured", "two kills")

        @pytest.mark.holds("files", "a full disk", "one sentence")
        @pytest.mark.parametrize("full", [True, False])
        def test_full(full):
            assert not full

        @pytest.mark.holds("files", "no disk", "one sentence")
        def test_none():
            pytest.skip("there is a disk")
        """
    )
    pytester.runpytest("--held", "held.json", "-p", "no:randomly").assert_outcomes(passed=3, failed=1, skipped=1)
    told = json.loads((pytester.path / "held.json").read_text(encoding="utf-8"))
    found = {row["fault"]: (row["tests"], row["outcome"], row["measured"]) for row in told["rows"]}
    assert found == {
        "a kill": (2, "held", ["two kills"]),
        "a full disk": (2, "failed", []),
        "no disk": (1, "skipped", ["there is a disk"]),
    }
