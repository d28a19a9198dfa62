"""Faults on purpose: a process that is killed, cut short or robbed of its folder at moments that a key chooses.

Work is a function without arguments that writes into a folder. It runs in a process of its own, made by forking; the
moment is a number of file operations (openings, renames, removals, new folders) below that folder, or of bytes in a file.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skinbook import keyed
from skinbook.config import SkinbookError

KILLS = int(os.environ.get("SKINBOOK_KILLS", "3"))
FORK = multiprocessing.get_context("fork")  # a fresh interpreter would take seconds to start
OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
SECONDS = 300  # after which work counts as hanging

Work = Callable[[], object]


def moments(key: str, most: int, count: int = KILLS) -> list[int]:
    """So many numbers from 1 to `most`, always the same for a key."""
    return (1 + keyed.integers(("faults", key), count, most)).tolist()


@dataclass(frozen=True)
class End:
    """How work ended. killed : by a signal. said : the sentence of a SkinbookError, or the traceback of anything else.
    operations : how many file operations there were."""

    killed: bool
    said: str
    operations: int

    @property
    def well(self) -> bool:
        return not self.killed and not self.said


def run(
    work: Work,
    folder: Path,
    *,
    kill_at: int = 0,
    vanish_at: int = 0,
    kill_after: int = 0,
    refuse_after: int = 0,
) -> End:
    """Do work in a process of its own.

    kill_at : SIGKILL before this operation. vanish_at : the folder is removed before this operation.
    kill_after : the process dies when a file reaches so many bytes. refuse_after : the system refuses further bytes.
    """
    counted = FORK.Value("i", 0, lock=False)
    mine, theirs = FORK.Pipe(duplex=False)

    def act() -> None:
        if counted.value == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        if counted.value == vanish_at:
            shutil.rmtree(folder, ignore_errors=True)

    def heard(event: str, arguments: tuple) -> None:
        if event in OPERATIONS and isinstance(arguments[0], str | Path) and str(arguments[0]).startswith(str(folder)):
            counted.value += 1
            act()

    def child() -> None:
        limit = kill_after or refuse_after
        if limit:
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL if kill_after else signal.SIG_IGN)
        sys.addaudithook(heard)
        try:
            work()
            theirs.send("")
        except SkinbookError as error:
            theirs.send(str(error))
        except BaseException:
            theirs.send(traceback.format_exc())

    process = FORK.Process(target=child)
    process.start()
    process.join(SECONDS)
    if process.is_alive():
        process.kill()
        raise AssertionError(f"The work hangs after {counted.value} operations.")
    killed = process.exitcode in (-signal.SIGKILL, -signal.SIGXFSZ)
    assert killed or process.exitcode == 0, process.exitcode
    return End(killed, mine.recv() if mine.poll() else "", counted.value)


class Task:
    """Work in a place. It tells of each part that is done, so that what is done twice is seen, over all processes."""

    parts = 1

    def __init__(self) -> None:
        self.done = FORK.Value("i", 0, lock=False)
        self.last = 0

    def part_is_done(self, *_: Any) -> None:
        self.done.value += 1
        if self.done.value == self.last:
            os.kill(os.getpid(), signal.SIGKILL)

    def begin(self, place: Path) -> None:
        """Make what is there before."""
        place.mkdir(parents=True, exist_ok=True)

    def work(self, place: Path) -> Any:
        """Do the work, or what is left of it."""
        raise NotImplementedError

    def value(self, found: Any) -> object:
        """What can be compared of what `work` returns: bytes, weights, a table."""
        return found

    def do(self, place: Path) -> object:
        """Work to the end, and what comes of it."""
        return self.value(self.work(place))

    def look(self, place: Path) -> None:
        """Read what is there as a reader would, who must not find a half."""
        raise NotImplementedError

    def measure(self, place: Path) -> tuple[int, int]:
        """Do it undisturbed in a process of its own: how many file operations, and how large the largest file is."""
        self.begin(place)
        end = run(lambda: self.work(place), place)
        assert end.well, end.said
        return end.operations, max(file.stat().st_size for file in place.rglob("*") if file.is_file())

    def kills(self, folder: Path) -> Iterator[Path]:
        """Places in which it was killed: in turn before a file operation, in the middle of the largest file, after a part."""
        name = type(self).__name__
        operations, largest = self.measure(folder / "measured")
        before, within = moments(f"{name} operations", operations), moments(f"{name} bytes", largest - 1)
        after = moments(f"{name} parts", self.parts)
        for number in range(KILLS):
            place = folder / f"{number}"
            self.begin(place)
            self.done.value = 0
            moment = {}
            if number % 3 == 2 and self.parts > 1:
                self.last = after[number]
            elif number % 3 == 1:
                moment = {"kill_after": within[number]}
            else:
                moment = {"kill_at": before[number]}
            end = run(lambda place=place: self.work(place), place, **moment)
            assert end.killed, (moment, self.last, end)
            self.last = 0
            yield place


def is_one_sentence(text: str) -> bool:
    """Whether a message is for a reader: one line that ends as a sentence does, and no traceback."""
    return "\n" not in text.strip() and "Traceback" not in text and text.strip().endswith(".")


def together(*works: Work) -> list[str]:
    """What processes that began at the same moment said at their end: nothing where all went well."""
    begin, mouths = FORK.Barrier(len(works)), [FORK.Pipe(duplex=False) for _ in works]

    def child(work: Work, mouth) -> None:
        begin.wait(SECONDS)
        try:
            work()
            mouth.send("")
        except BaseException:
            mouth.send(traceback.format_exc())

    processes = [FORK.Process(target=child, args=(w, m[1])) for w, m in zip(works, mouths, strict=True)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(SECONDS)
    return [ear.recv() if ear.poll() else "no word" for ear, _ in mouths]


@contextlib.contextmanager
def ends_its_processes(program: list[str], pipe: Path, **options: Any) -> Iterator[subprocess.Popen]:
    """A command, once a process that it began has opened the pipe and written its number; what the test does to the
    command must end that process, too. Nobody is left over, whatever the test finds.
    """
    os.mkfifo(pipe)
    begun = 0
    command = subprocess.Popen([sys.executable, *program], **options)
    try:
        with pipe.open("rb", buffering=0) as held:  # waits for the other process
            begun = int(held.readline())
            yield command
            assert select.select([held], [], [], 60)[0], "what it began works on, a minute later"
            assert held.read() == b""  # the end of the pipe: nobody holds it
    finally:
        command.kill()
        command.wait()
        if begun:
            with contextlib.suppress(ProcessLookupError):
                os.kill(begun, signal.SIGKILL)
