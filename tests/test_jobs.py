"""Trainings in processes of their own end with the one that started them."""

import multiprocessing
import os
import threading
from pathlib import Path

import pytest
from faults import ends_its_processes

from skinbook import jobs
from skinbook.config import SkinbookError

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
    held, _ = multiprocessing.Pipe(duplex=False)
    assert jobs._end_with_parent(held) is None


def wait_or_fail(pipe: str) -> None:
    """Hold one end of a pipe for long; or, where a mark stands before its name, fail once somebody does."""
    if pipe.startswith("!"):
        with open(pipe[1:], "rb") as held:
            held.readline()
        raise SkinbookError("the second of two fails")
    with open(pipe, "w", buffering=1) as held:
        print(os.getpid(), file=held)
        threading.Event().wait(20)
    Path(f"{pipe}.late").touch()


pipes = pytest.mark.skipif(
    not hasattr(os, "mkfifo"), reason="no named pipes here, whose end tells that a process is gone"
)


@pipes
def test_the_first_that_fails_ends_the_others(tmp_path: Path):
    pipe = str(tmp_path / "pipe")
    os.mkfifo(pipe)
    with pytest.raises(SkinbookError, match="the second of two fails"):
        list(jobs.carried_out(wait_or_fail, [pipe, f"!{pipe}"], 2))
    assert not (tmp_path / "pipe.late").exists(), "the first worked on"


def end_or_square(number: int) -> int:
    if number == 3:
        os._exit(9)  # as the system does where memory is short
    return number**2


def test_a_process_that_the_system_ends_is_told_with_a_remedy():
    with pytest.raises(SkinbookError, match=r"for want of memory\. Run this again with fewer --jobs"):
        list(jobs.carried_out(end_or_square, [1, 3], 2))


@pipes
def test_a_killed_command_leaves_nobody_working(tmp_path: Path):
    program, pipe = tmp_path / "program.py", tmp_path / "pipe"
    program.write_text(PROGRAM, encoding="utf-8")
    with ends_its_processes([str(program), str(pipe)], pipe) as command:
        command.kill()
