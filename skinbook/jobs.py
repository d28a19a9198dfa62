"""Several trainings at a time, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection, wait
from typing import TypeVar

from skinbook.config import SkinbookError

Order = TypeVar("Order")
Done = TypeVar("Done")


def carried_out(work: Callable[[Order], Done], orders: Iterable[Order], jobs: int) -> Iterator[Done]:
    """What `work` returns for each of the orders, in their order: `jobs` at a time, in processes that end with this one.

    With one job it is done here. `work` and its orders travel by pickle, so `work` is a function of a module. When one
    fails, Ctrl+C comes, or nobody asks for the rest, all processes end at once, whatever they are about.

    Raises
    ------
    SkinbookError
        If the system ends one of the processes.
    """
    if jobs == 1:
        yield from map(work, orders)
        return
    # Not forked: a fork takes over torch's threads as they are at that moment, and can wait for them for ever.
    fresh = multiprocessing.get_context("spawn")
    held, ending = fresh.Pipe(duplex=False)
    with ProcessPoolExecutor(jobs, mp_context=fresh, initializer=_end_with_parent, initargs=(held,)) as pool:
        try:
            asked = deque(pool.submit(work, order) for order in orders)
            for one in as_completed(tuple(asked)):
                one.result()  # the first that fails, not the first of the orders
                while asked and asked[0].done():
                    yield asked.popleft().result()
        except BrokenProcessPool:
            ending.close()
            raise SkinbookError(
                "The system has ended one of the processes, most likely for want of memory. Run this again with fewer "
                "--jobs: what is finished is kept."
            ) from None
        except BaseException:
            ending.close()  # else they would work on for hours, and this would wait for them
            raise


def _end_with_parent(held: Connection) -> None:
    """End this process when the one that started it closes the other end of a pipe, or is gone: killed, it cannot say so."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel, held])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
