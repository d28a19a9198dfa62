"""Several trainings at a time, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.connection import wait
from typing import TypeVar

Order = TypeVar("Order")
Done = TypeVar("Done")


def carried_out(work: Callable[[Order], Done], orders: Iterable[Order], jobs: int) -> Iterator[Done]:
    """What `work` returns for each of the orders, in their order: `jobs` at a time, in processes that end with this one.

    With one job it is done here. `work` and its orders travel by pickle, so `work` is a function of a module.
    """
    if jobs == 1:
        yield from map(work, orders)
        return
    # Not forked: a fork takes over torch's threads as they are at that moment, and can wait for them for ever.
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=fresh, initializer=_end_with_parent) as pool:
        yield from pool.map(work, orders)


def _end_with_parent() -> None:
    """End this process when the one that started it is gone: killed, it cannot say so, and nobody would take the result."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
