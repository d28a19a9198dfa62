"""Memory that is given back to malloc (here by NumPy) is kept: counted in pages that the system had to fill anew."""

import platform
import subprocess
import sys
from types import SimpleNamespace

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
    blocks = [numpy.ones(3 * 2**20) for _ in range(3)]  # of 24 MB: older versions of glibc keep none above 32
    del blocks
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def pages(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", PAGES, how], check=True, capture_output=True, text=True)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="this system's malloc is not glibc's")
def test_a_freed_block_is_used_again():
    assert pages("kept") < 10
    assert pages("given back") >= 3 * 24 // 2  # at least one fault for every huge page


@pytest.mark.parametrize(("most", "kept"), [(2**31 - 1, True), (2**25, True), (0, False)])
def test_an_older_glibc_is_asked_for_less(monkeypatch, most, kept):
    taken = {}

    def mallopt(which, value):
        if which == memory.MMAP_THRESHOLD and value > most:
            return 0
        taken[which] = value
        return 1

    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    assert memory.keep_freed_memory() is kept
    assert taken.get(memory.MMAP_THRESHOLD, 0) == most


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert memory.keep_freed_memory() is False
    monkeypatch.setattr(memory.sys, "platform", "linux")
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: object())
    assert memory.keep_freed_memory() is False
