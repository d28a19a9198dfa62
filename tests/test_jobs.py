"""Trainings in processes of their own end with the one that started them."""

import contextlib
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from skinbook import jobs

PROGRAM = """
import os, sys, threading
from skinbook.jobs import carried_out

def work(pipe):
    with open(pipe, "w", buffering=1) as held:  # closed by the system when this process ends
        print(os.getpid(), file=held)
        threading.Event().wait()

if __name__ == "__main__":
    list(carried_out(work, sys.argv[1:], 2))
"""


def square(number: int) -> tuple[int, int]:
    return number**2, os.getpid()


@pytest.mark.parametrize(("many", "elsewhere"), [(1, False), (2, True)])
def test_the_orders_are_carried_out_in_their_order(many, elsewhere):
    found = list(jobs.carried_out(square, range(5), many))
    assert [value for value, _ in found] == [0, 1, 4, 9, 16]
    assert (os.getpid() not in {pid for _, pid in found}) == elsewhere


def test_the_first_process_of_all_has_nobody_to_end_with():
    assert jobs._end_with_parent() is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here, whose end tells that a process is gone")
def test_a_killed_command_leaves_nobody_working(tmp_path: Path):
    program, pipe = tmp_path / "program.py", tmp_path / "pipe"
    program.write_text(PROGRAM, encoding="utf-8")
    os.mkfifo(pipe)
    worker = 0
    command = subprocess.Popen([sys.executable, str(program), str(pipe)])
    try:
        with pipe.open("rb", buffering=0) as held:  # waits for the worker
            worker = int(held.readline())
            command.kill()
            assert select.select([held], [], [], 60)[0], "the worker works on, a minute after its command was killed"
            assert held.read() == b""  # the end of the pipe: nobody holds it
    finally:
        command.kill()
        command.wait()
        if worker:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
