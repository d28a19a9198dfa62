"""Memory that is given back to malloc (here by NumPy) is kept: counted in pages that the system had to fill anew."""

import subprocess
import sys

import pytest

from skinbook import memory

PAGES = """
import resource, sys
import numpy
from skinbook.memory import keep_freed_memory

if sys.argv[1] == "kept":
    assert keep_freed_memory()
for turn in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = numpy.ones(2**23)  # 64 MB
    del block
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", PAGES, how], check=True, capture_output=True, text=True)
    return int(done.stdout)


@pytest.mark.skipif(not memory.keep_freed_memory(), reason="this system's malloc is not glibc's")
def test_a_freed_block_is_used_again():
    assert pages("kept") < 10
    assert pages("given back") >= 2**26 // 2**21  # at least one fault for every huge page


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert memory.keep_freed_memory() is False
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert memory.keep_freed_memory() is False
