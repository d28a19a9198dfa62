"""Writing a file so that nobody ever reads half of it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from skinbook.config import SkinbookError


@contextmanager
def replaced(file: Path) -> Iterator[Path]:
    """A path to write to; what was written takes the place of `file` at once when the block ends well.

    Raises
    ------
    SkinbookError
        If the folder cannot be written or the disk is full; `file` is as it was, and nothing is left beside it.
    """
    partial = file.with_name(f".{file.name}.{os.getpid()}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        with open(partial, "rb") as held:
            os.fsync(held.fileno())
        os.replace(partial, file)
    except OSError as error:
        reason = "no space is left" if error.errno == errno.ENOSPC else (error.strerror or str(error))
        raise SkinbookError(
            f"{file} could not be written: {reason}. Free some space or choose another folder."
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
