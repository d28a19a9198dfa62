"""Reading what others made: never more than so many bytes, never from a pipe that may not end, and strict JSON.

Errors are the system's own, OSError, so that whoever reads a file says which it is and what to do about it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from pathlib import Path
from typing import Any, NoReturn


def size(file: Path, largest: int) -> int:
    """Bytes of a file.

    Raises
    ------
    OSError
        If it is not there, is a folder, a pipe or a device, has more than `largest` bytes, or no file can have its name.
    """
    try:
        about = os.stat(file)
    except ValueError:  # a zero byte
        raise OSError(errno.EINVAL, "no file can have this name") from None
    if stat.S_ISDIR(about.st_mode):
        raise IsADirectoryError(errno.EISDIR, "it is a folder, not a file")
    if not stat.S_ISREG(about.st_mode):
        raise OSError(errno.EINVAL, "it is a pipe or a device, not a file")
    if about.st_size > largest:
        raise OSError(errno.EFBIG, f"it has more than {largest / 1e6:,.0f} MB")
    return about.st_size


def contents(file: Path, largest: int) -> bytes:
    """The bytes of a file, at most `largest`; OSError as for `size`."""
    size(file, largest)
    with open(file, "rb") as held:
        data = held.read(largest + 1)  # a file may grow, and some of the system's own say that they are empty
    if len(data) > largest:
        raise OSError(errno.EFBIG, f"it has more than {largest / 1e6:,.0f} MB")
    return data


def strict_json(text: str | bytes) -> Any:
    """What JSON says; ValueError for anything else: NaN and Infinity, text that is no UTF-8, lists nested without end."""
    try:
        return json.loads(text, parse_constant=_no_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def one_line(text: str) -> str:
    """A text for a terminal: control characters, which a file's name may hold, as \\x and two digits."""
    return re.sub(r"[\x00-\x1f\x7f-\x9f]", lambda found: f"\\x{ord(found[0]):02x}", text)
