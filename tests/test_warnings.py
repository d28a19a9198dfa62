"""A warning of the package's own code is an error: in a test, and in a process that a test starts."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

# What several tests have in common: their row on the maintainers' page.
own_warnings = pytest.mark.holds(
    "the same answer",
    "a warning that the package's own code causes",
    "the test fails, also where the code runs in a process of its own",
)

pytest_plugins = ["pytester"]
HOME = Path(__file__).parents[1]
# `speak` warns as a function of the module does: by itself, of its caller, as a library's would, and through NumPy.
SPEAKING = """
import warnings

def function(module, source):
    names = {"__name__": module, "warnings": warnings}
    exec("def speak(inner=None):\\n    " + source, names)
    return names["speak"]

old = "warnings.warn('this is old', DeprecationWarning, stacklevel=%d)"
itself = {module: function(module, old % 1) for module in ("skinbook", "skinbook.data.lab", "elsewhere")}
called = function("skinbook.splits", "inner()")
library = function("pandas.core", old % 2)
divides = function("skinbook.evaluation", "import numpy as np; np.ones(1) / np.zeros(1)")
"""
WARNS = {
    "the package": "itself['skinbook']()",
    "a module below a folder": "itself['skinbook.data.lab']()",
    "a library, of the package's call": "called(library)",
    "numpy, of the package's numbers": "divides()",
}


@own_warnings
def test_a_warning_of_the_package_turns_a_test_red(pytester: pytest.Pytester, monkeypatch):
    filters = tomllib.loads((HOME / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
    pytester.makeini("[pytest]\nfilterwarnings =\n" + "\n".join(f"    {line}" for line in filters["filterwarnings"]))
    calls = [*WARNS.values(), "itself['elsewhere']()"]
    tests = "\n".join(f"def test_{number}():\n    {call}" for number, call in enumerate(calls))
    pytester.makepyfile(f"{SPEAKING}\n{tests}")
    # In a process without the variable: pytest shows a warning of another's old code only where nothing is set.
    monkeypatch.delenv("PYTHONWARNINGS", raising=False)
    ran = pytester.runpytest_subprocess("-p", "no:nbval", "-p", "no:skinbook")
    ran.assert_outcomes(failed=len(WARNS), passed=1, warnings=1)


@pytest.mark.parametrize("name", WARNS)
@own_warnings
def test_a_warning_of_the_package_ends_a_process_that_a_test_starts(name):
    def ended(call: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", f"{SPEAKING}\n{call}"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    red = ended(WARNS[name])
    assert red.returncode == 1
    assert "Warning: " in red.stderr.splitlines()[-1]
    assert ended("itself['elsewhere']()").returncode == 0
