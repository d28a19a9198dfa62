"""The two dials (edition, scale) and the few other settings, all read from environment variables.

| variable             | meaning                                                   | unset                              |
|----------------------|-----------------------------------------------------------|------------------------------------|
| `SKINBOOK_EDITION`   | which lesions: lab, ham10000, bcn20000, dermamnist        | lab (ham10000 on Kaggle, if there) |
| `SKINBOOK_SCALE`     | how much compute: quick, full                             | quick                              |
| `SKINBOOK_DATA`      | folders to look in for data, separated as in `PATH`       | none                               |
| `SKINBOOK_WEIGHTS`   | a folder (or file) of pretrained weights                  | none                               |
| `SKINBOOK_CACHE`     | where decoded pixels and downloads are kept               | `~/.cache/skinbook`                |
| `SKINBOOK_SEED`      | the seed of every draw that a run makes                   | 0                                  |
| `SKINBOOK_DEVICE`    | cpu, cuda or mps                                          | the best one at hand               |
| `SKINBOOK_THREADS`   | CPU threads that torch uses                               | 2, so that results repeat          |
| `SKINBOOK_PRECISION` | auto, fp32, bf16 or fp16; overrides the recipe            | the recipe's                       |

Of several trainings at a time (`--jobs`), each takes its share of the cores where `SKINBOOK_THREADS` is unset.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

EDITIONS = ("lab", "ham10000", "bcn20000", "dermamnist")
SCALES = ("quick", "full")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
KAGGLE_INPUT = Path("/kaggle/input")


class SkinbookError(Exception):
    """Something a reader can put right. The message says what is wrong, where, and what to do."""


@dataclass(frozen=True)
class Settings:
    """One reading of the environment."""

    edition: str
    scale: str
    seed: int
    threads: int
    precision: str | None
    data: tuple[Path, ...]
    weights: Path | None
    cache: Path


def _choice(variable: str, allowed: tuple[str, ...]) -> str | None:
    value = os.environ.get(variable, "").strip().lower()
    if not value:
        return None
    if value not in allowed:
        raise SkinbookError(
            f"{variable} is {value!r}, which is not one of {', '.join(allowed)}. Set it to one of those."
        )
    return value


def _whole_number(variable: str, default: int, least: int) -> int:
    text = os.environ.get(variable, "").strip()
    if not text:
        return default
    if not text.isdecimal() or len(text) > 18 or int(text) < least:
        raise SkinbookError(f"{variable} is {text!r}; expected a whole number of at least {least}.")
    return int(text)


def _path(text: str) -> Path:
    return Path(os.path.expanduser(text))  # which leaves the name of a user whom nobody knows as it is


def settings() -> Settings:
    """Read the settings from the environment.

    Raises
    ------
    SkinbookError
        If a variable holds a value that is not allowed; the message names the variable and the choices.
    """
    folders = os.environ.get("SKINBOOK_DATA", "")
    weights = os.environ.get("SKINBOOK_WEIGHTS", "").strip()
    cache = os.environ.get("SKINBOOK_CACHE", "").strip()
    return Settings(
        edition=_choice("SKINBOOK_EDITION", EDITIONS) or _default_edition(),
        scale=_choice("SKINBOOK_SCALE", SCALES) or "quick",
        seed=_whole_number("SKINBOOK_SEED", 0, 0),
        threads=_whole_number("SKINBOOK_THREADS", 2, 1),
        precision=_choice("SKINBOOK_PRECISION", PRECISIONS),
        data=tuple(_path(f) for f in folders.split(os.pathsep) if f.strip()),
        weights=_path(weights) if weights else None,
        cache=_path(cache) if cache else Path.home() / ".cache" / "skinbook",
    )


def cores() -> int:
    """CPU cores that this process may use: a container, a scheduler or `taskset` may leave it fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_of(jobs: int) -> int:
    """Threads of each of so many trainings at a time: `SKINBOOK_THREADS` if it is set, else its share of the cores.

    One alone takes what `settings` says, so that results repeat on a machine with other cores.
    """
    return settings().threads if jobs == 1 else _whole_number("SKINBOOK_THREADS", max(1, cores() // jobs), 1)


def _default_edition() -> str:
    """Lab, except on Kaggle with HAM10000 attached (recognised by its table).

    Kaggle attaches a set as `name`, or as `datasets/owner/name`; people put a folder of their own inside.
    """
    below = ("*/" * depth for depth in range(1, 5))
    if any(next(KAGGLE_INPUT.glob(f"{folders}HAM10000_metadata*"), None) for folders in below):
        return "ham10000"
    return "lab"


def book_data(*parts: str) -> Path:
    """Path of a file the book carries (ledger, tolerances, recipes, lab backbone).

    In a checkout that is the folder `data` beside the package; in an installed wheel it is `skinbook/_data`.
    """
    package = Path(__file__).resolve().parent
    carried = package / "_data"
    return (carried if carried.is_dir() else package.parent / "data").joinpath(*parts)
