"""Progress for a person who is looking, and silence everywhere else."""

from __future__ import annotations

import os
import sys


def watched() -> bool:
    """Whether a person is looking: at a terminal, or at a notebook that they run themselves.

    Tests, `nbval` and `nbconvert` start kernels too, so a kernel alone is no sign of a person: each of the programs in
    which people run notebooks leaves a mark of its own.
    """
    if "PYTEST_VERSION" in os.environ or "PYTEST_CURRENT_TEST" in os.environ:
        return False
    if "ipykernel" in sys.modules:
        marks = ("JPY_SESSION_NAME", "VSCODE_PID", "COLAB_RELEASE_TAG")
        return any(mark in os.environ for mark in marks) or os.environ.get("KAGGLE_KERNEL_RUN_TYPE") == "Interactive"
    return sys.stderr is not None and sys.stderr.isatty()


class Unseen:
    """A bar that nobody looks at.

    tqdm's own disabled bar takes a lock that all processes share, and starts a thread that takes it every ten seconds. A
    process that is forked meanwhile, or whose neighbour is killed meanwhile, would wait for it for ever.
    """

    def update(self, n: int = 1) -> None:
        """Do nothing."""

    def __enter__(self) -> Unseen:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def bar(total: int, what: str, *, unit: str = "image", shown: bool = True):
    """A tqdm bar of `total` steps with the label `what`, where `shown` and a person is looking; else an unseen one."""
    if not (shown and watched()):
        return Unseen()
    from tqdm.auto import tqdm as drawn  # a widget in a notebook, a line in a terminal

    return drawn(total=total, desc=what, unit=f" {unit}", leave=False)
