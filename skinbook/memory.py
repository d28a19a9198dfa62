"""Memory that torch on a CPU gives back is kept, so that the next batch finds it warm."""

from __future__ import annotations

import ctypes
import sys

TRIM_THRESHOLD, TOP_PAD, MMAP_THRESHOLD = -1, -2, -3  # as in glibc's malloc.h
MOST = 2**31 - 1  # mallopt takes a C int
OLD_MOST = 2**25  # glibc 2.31, for one, refuses a higher MMAP_THRESHOLD
PAD = 64 * 2**20  # bytes asked of the system at a time


def keep_freed_memory() -> bool:
    """Ask glibc's malloc to keep what is freed; whether it does so (it cannot on macOS, Windows and musl).

    By itself it hands every block above a few MB back to the system at once, and the system fills the next one with
    zeros, page by page, which a small network's batches feel. The process keeps its peak of memory instead, until it
    ends. torch asks for aligned blocks, and glibc 2.36 was seen to find a kept one for only some of them. Older
    versions keep blocks of at most 32 MB. `MALLOC_…` variables that are set in the environment are overruled.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    blocks = mallopt(MMAP_THRESHOLD, MOST) or mallopt(MMAP_THRESHOLD, OLD_MOST)  # which are kept up to this size
    return all([blocks, mallopt(TRIM_THRESHOLD, MOST), mallopt(TOP_PAD, PAD)])
