"""Writing a file so that nobody ever reads half of it, and so that two processes do not write it at once."""

from __future__ import annotations

import errno
import functools
import hashlib
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from skinbook.config import SkinbookError, settings


@contextmanager
def replaced(file: Path) -> Iterator[Path]:
    """A path to write to; what was written takes the place of `file` at once when the block ends well.

    Raises
    ------
    SkinbookError
        If the folder cannot be written or the disk is full; `file` is as it was, and nothing is left beside it.
    """
    partial = file.with_name(f".{file.name}.{_machine()}-{os.getpid()}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _clear(file.parent)
        yield partial
        with open(partial, "rb") as held:
            os.fsync(held.fileno())
        os.replace(partial, file)
    except OSError as error:
        raise SkinbookError(
            f"{file} could not be written: {reason(error)}. Free some space or choose another folder."
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """A block that one process at a time is in for the same `file`; another one waits.

    The lock lies in the cache, since what lies beside `file` may be handed on. It stays: another process may be waiting
    for it, and would not see one that is made anew.

    Raises
    ------
    SkinbookError
        If the cache cannot be written.
    """
    from filelock import FileLock

    named = hashlib.blake2b(str(file.resolve()).encode(), digest_size=8).hexdigest()
    lock = settings().cache / "locks" / f"{named}.lock"
    with ExitStack() as stack:
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(lock))
        except OSError as error:
            raise SkinbookError(
                f"{lock.parent} cannot be written ({reason(error)}). Set SKINBOOK_CACHE to a folder that you may write to."
            ) from None
        yield


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """A block that one process at a time is in for the same folder, which is made where it is not there.

    The lock is on the folder itself, so that nothing is left in it. Where the system or the disk has no such lock
    (Windows, some network disks), nobody waits.
    """
    with ExitStack() as stack:
        with suppress(ImportError, OSError):
            import fcntl

            folder.mkdir(parents=True, exist_ok=True)
            held = os.open(folder, os.O_RDONLY)
            stack.callback(os.close, held)
            fcntl.flock(held, fcntl.LOCK_EX)
        yield


def make_writable(folder: Path) -> None:
    """Make a folder where there is none; SkinbookError if that, or writing in it, is not possible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SkinbookError(
            f"{folder} cannot be made a folder to write in ({reason(error)}). Choose another one."
        ) from None


def reason(error: OSError) -> str:
    """What the system says of its error, in few words."""
    return "no space is left" if error.errno in (errno.ENOSPC, errno.EDQUOT) else (error.strerror or str(error))


@functools.cache
def _machine() -> str:
    """Eight digits for this machine: a folder may be shared, and only here can it be told whether a writer lives."""
    return hashlib.blake2b(platform.node().encode(), digest_size=4).hexdigest()


def _clear(folder: Path) -> None:
    """Remove what writers that were killed have left in a folder."""
    import psutil

    for left in folder.glob(f".*.{_machine()}-*.partial"):
        writer = left.name.removesuffix(".partial").rpartition("-")[2]
        if writer.isdecimal() and not psutil.pid_exists(int(writer)):
            left.unlink(missing_ok=True)
