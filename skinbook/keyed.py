"""Random numbers that depend on nothing but their key.

`uniform(("augment", seed, epoch), images)` gives image 17 the same draw whatever else is in its batch, however many
processes share the work, and whichever version of NumPy or torch is installed. That is what lets a killed run resume
exactly and a split stay the same for ever. The generator is SplitMix64 (Steele, Lea and Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014), used as a hash of key and counter.
"""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Sequence

import numpy as np

Key = int | str | Sequence["int | str"]


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def key_bits(key: Key) -> int:
    """A 64-bit whole number from a key of strings and whole numbers, the same on every machine."""
    parts = (key,) if isinstance(key, int | str) else tuple(key)
    # A whole number of NumPy's counts as the same whole number of Python's.
    named = [("str", part) if isinstance(part, str) else ("int", operator.index(part)) for part in parts]
    text = "\x1f".join(f"{kind}:{part}" for kind, part in named)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def bits(key: Key, counters: int | np.ndarray) -> np.ndarray:
    """64 random bits for each counter.

    Parameters
    ----------
    key : a string, a whole number, or a sequence of them.
    counters : how many draws (counters 0, 1, ...), or an array of whole numbers that names each draw.

    Returns
    -------
    uint64 array of the counters' shape.
    """
    counts = (
        np.arange(counters, dtype=np.uint64)
        if isinstance(counters, int | np.integer)
        else np.asarray(counters).astype(np.uint64)
    )
    with np.errstate(over="ignore"):
        return _mix(_mix(np.uint64(key_bits(key)) + (counts + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)))


def uniform(key: Key, counters: int | np.ndarray, low: float = 0.0, high: float = 1.0) -> np.ndarray:
    """Uniform draws in [low, high), float64, of the counters' shape."""
    return low + (high - low) * ((bits(key, counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53)


def normal(key: Key, counters: int | np.ndarray) -> np.ndarray:
    """Standard normal draws, float64, of the counters' shape (Box and Muller, 1958)."""
    parts = (key,) if isinstance(key, int | str) else tuple(key)
    radius = np.sqrt(-2.0 * np.log1p(-uniform((*parts, "radius"), counters)))
    return radius * np.cos(2.0 * np.pi * uniform((*parts, "angle"), counters))


def integers(key: Key, counters: int | np.ndarray, below: int) -> np.ndarray:
    """Whole numbers in [0, below), int64, of the counters' shape."""
    return np.minimum((uniform(key, counters) * below).astype(np.int64), below - 1)


def permutation(key: Key, count: int) -> np.ndarray:
    """A random order of 0 .. count-1, int64."""
    return np.argsort(bits(key, count), kind="stable").astype(np.int64)
