"""What a chapter says, and how it is checked: `setup` opens it, `report`, `claim` and `say` carry what it measures.

Each of them shows text for the reader and carries the same facts in a MIME bundle of its own beside it. The nbval
plugin, `skinbook run` and `skinbook spread` read those bundles, never the text.
"""

from __future__ import annotations

import math
import numbers
import os
import re
import sys
import tomllib
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from skinbook import config, ledger, progress
from skinbook.config import EDITIONS, SCALES, Settings, SkinbookError, book_data
from skinbook.ledger import CLAIM, FACTS, LEDGER, REPORT, SAY, SETUP, seen
from skinbook.memory import keep_freed_memory

if TYPE_CHECKING:
    import pandas as pd

    from skinbook.data.pixels import Store
    from skinbook.data.schema import Dataset
    from skinbook.splits import Split

# What no copy of an edition can provide, known without looking for its files.
LACKING = {
    "bcn20000": frozenset({"dx_type", "masks"}),
    "dermamnist": frozenset({"lesion_id", "metadata", "dx_type", "masks"}),
}
WORDS = {
    "lesion_id": "lesion_id (which photographs show one lesion)",
    "metadata": "metadata (age, sex and site)",
    "dx_type": "dx_type (how a diagnosis was made)",
    "masks": "masks of the lesions",
}
DEVICES = ("cpu", "cuda", "mps")
MOST_SAID = 5
# A number in a sentence, but not the one in a name such as ResNet-18, HAM10000 or 0.5.x.
NUMBER = re.compile(r"(?<![\w.])(?<![A-Za-z]-)[-+−]?\d+(?:[.,]\d+)*")


@dataclass
class Chapter:
    """An open chapter: its settings, its recipe, and the data it runs on (loaded when first asked for)."""

    name: str
    settings: Settings
    recipe: SimpleNamespace
    device: str
    title: str = ""
    needs: tuple[str, ...] = ()
    notes: dict[str, Any] = field(default_factory=dict)
    _stores: dict[tuple, Store] = field(default_factory=dict, repr=False)

    @property
    def edition(self) -> str:
        return self.settings.edition

    @property
    def scale(self) -> str:
        return self.settings.scale

    @property
    def seed(self) -> int:
        """Seeds every draw of the run, but not the split."""
        return self.settings.seed

    @cached_property
    def dataset(self) -> Dataset:
        """The edition's table and images. SkinbookError if they are not found, or lack what the chapter needs."""
        from skinbook.data import catalog

        dataset = catalog.load(self.edition, self.settings)
        _check_needs(self.name, self.needs, self.edition, frozenset(self.needs) - dataset.provides)
        return dataset

    @property
    def table(self) -> pd.DataFrame:
        return self.dataset.table

    @property
    def classes(self) -> tuple[str, ...]:
        return self.dataset.classes

    @cached_property
    def split(self) -> Split:
        """The one frozen split by lesion. Its seed is always 0, so that runs with other seeds share their test part."""
        from skinbook.splits import lesion_split

        split = lesion_split(self.table, seed=0, identical=self.dataset.identical)
        self.notes.setdefault("split", split.fingerprint)
        return split

    def pixels(self, size: int | tuple[int, int], what: str = "images") -> Store:
        """The store of decoded images (or `what="masks"`) of this size; built in the cache when first asked for."""
        from skinbook.data import pixels

        key = (size, what)
        if key not in self._stores:
            self._stores[key] = pixels.build(self.dataset, size, self.settings.cache, what=what)
        return self._stores[key]

    def note(self, **facts: Any) -> None:
        """Hand on a fact about where the results come from, for the ledger: `book.note(weights="none")`."""
        self.notes.update(facts)


@dataclass
class _Run:
    """What was said since the setup cell, to find a name used twice."""

    chapter: Chapter | None = None
    reported: dict[str, object] = field(default_factory=dict)
    said: set[str] = field(default_factory=set)


_run = _Run()
_made_offline = False  # whether HF_HUB_OFFLINE is set because `setup` set it


def setup(name: str) -> Chapter:
    """Open a chapter: read the settings, choose the device, seed torch, and say in one line what this runs on.

    Raises
    ------
    SkinbookError
        If a setting is not allowed, the chapter has no recipe, or the edition lacks what it needs.
    """
    settings = config.settings()
    about = recipe(name, settings.edition, settings.scale)
    _check_needs(name, about["needs"], settings.edition, lacking(about["needs"], settings.edition))
    _keep_offline(settings.scale == "quick")  # which needs nothing from a hub
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # tqdm asks for ipywidgets on stderr, with a path of the machine; its bars do without.
    warnings.filterwarnings("ignore", message="IProgress not found")
    import torch

    torch.set_num_threads(settings.threads)
    keep_freed_memory()
    torch.manual_seed(settings.seed)
    repeatable_sums()
    chapter = Chapter(name, settings, about["recipe"], device(), about["title"], about["needs"])
    global _run
    _run = _Run(chapter)
    opened = {"edition": settings.edition, "scale": settings.scale, "device": chapter.device, "data": _data(settings)}
    _show("skinbook: " + ", ".join(f"{key} {value}" for key, value in opened.items()), SETUP, opened)
    return chapter


def repeatable_sums() -> None:
    """Have a GPU sum alike in every run, and in full fp32; of no effect elsewhere. Each process that trains asks for it."""
    import torch

    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    # Full fp32 on every device, so that numbers compare: newer GPUs would round inputs to TF32.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


def _data(settings: Settings) -> str:
    """The table (or archive) that the chapter reads: its name, and not the folder, which is a reader's own affair."""
    from skinbook.data import catalog

    if settings.edition == "lab":
        return "generated"
    try:
        return catalog.find(settings.edition, settings)[1].name
    except SkinbookError:  # `Chapter.dataset` says what to do
        return "not found"


def _keep_offline(wanted: bool) -> None:
    """Ask nothing of a hub, whose client tries for 23 s a file without a network; a reader's own choice stays."""
    global _made_offline
    if wanted and "HF_HUB_OFFLINE" not in os.environ:
        os.environ["HF_HUB_OFFLINE"], _made_offline = "1", True
    elif not wanted and _made_offline:
        os.environ.pop("HF_HUB_OFFLINE", None)
        _made_offline = False
        if client := sys.modules.get("huggingface_hub.constants"):  # has read the variable when it was imported
            client.HF_HUB_OFFLINE = False  # type: ignore[attr-defined]


def recipe(name: str, edition: str, scale: str) -> dict[str, Any]:
    """A chapter's `title`, `needs` and `recipe`: base keys, then the scale's, then those of edition and scale.

    Raises
    ------
    SkinbookError
        If data/recipes.toml has no such chapter, or cannot be read.
    """
    file = book_data("recipes.toml")
    try:
        recipes = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise SkinbookError(f"The recipes {file.name} cannot be read ({error}). Restore the file.") from None
    if name not in recipes:
        raise SkinbookError(f"{name!r} has no recipe in data/recipes.toml; there are {', '.join(recipes)}.")
    chapter = recipes[name]
    special = {"title", "needs", *SCALES, *(f"{e}-{s}" for e in EDITIONS for s in SCALES)}
    merged = {key: value for key, value in chapter.items() if key not in special}
    merged |= chapter.get(scale, {}) | chapter.get(f"{edition}-{scale}", {})
    needs = tuple(chapter.get("needs", ()))
    return {"title": chapter.get("title", ""), "needs": needs, "recipe": SimpleNamespace(**merged)}


def lacking(needs: tuple[str, ...], edition: str) -> frozenset[str]:
    """What a chapter needs and no copy of this edition can provide."""
    return frozenset(needs) & LACKING.get(edition, frozenset())


def _check_needs(name: str, needs: tuple[str, ...], edition: str, absent: frozenset[str]) -> None:
    if absent:
        raise SkinbookError(left_out(name, edition, absent))


def left_out(name: str, edition: str, absent: frozenset[str]) -> str:
    """The sentence that says why a chapter is left out on an edition."""
    what = ", ".join(WORDS.get(need, need) for need in sorted(absent))
    return (
        f"Chapter {name} needs {what}, and the edition {edition} has none: "
        "set SKINBOOK_EDITION to one that has, such as lab."
    )


def device() -> str:
    """`SKINBOOK_DEVICE`, or the best at hand: cuda, mps, cpu."""
    import torch

    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    wanted = os.environ.get("SKINBOOK_DEVICE", "").strip().lower()
    if not wanted:
        return next(name for name in ("cuda", "mps", "cpu") if there[name])
    if wanted not in DEVICES:
        raise SkinbookError(f"SKINBOOK_DEVICE is {wanted!r}, which is not one of {', '.join(DEVICES)}.")
    if not there[wanted]:
        raise SkinbookError(f"SKINBOOK_DEVICE is {wanted}, and torch finds none here: unset it, or set it to cpu.")
    return wanted


def report(name: str, value: Any, digits: int = 2) -> None:
    """Show a number under its name, and carry it for the checks.

    Parameters
    ----------
    name : unique in the chapter; the same in every run.
    value : a number, or an object with `.value`, `.low` and `.high`. Whole numbers are counts and are shown whole.
    digits : decimals shown (what is carried is not rounded).

    Raises
    ------
    SkinbookError
        If the chapter has reported that name already, or the value is no number.
    """
    # A person may run a cell again; in a run from top to bottom a name that comes twice is a mistake.
    here = _execution()
    if name in _run.reported and (_run.reported[name] == here or not progress.watched()):
        raise SkinbookError(f"{name!r} is reported twice in this chapter: give one of the two another name.")
    payload = {"name": name, **_measured(value, f"The report {name!r}")}
    _run.reported[name] = here
    _show(seen(REPORT, payload, digits)["text/plain"], REPORT, payload)


def claim(sentence: str, interval: Any, above: float = 0.0) -> None:
    """Say whether a sentence holds, from an interval of what it is about; it never raises.

    It holds where the whole interval lies above `above`, does not hold where none of it does, and is undecided
    otherwise, or where the interval is faulty (the reason is then shown).
    """
    verdict, reason, measured = judged(interval, above)
    payload = {"sentence": str(sentence), "verdict": verdict, **measured, "above": float(above)}
    if reason:
        payload["reason"] = reason
    texts = seen(CLAIM, payload)
    _show(texts["text/plain"], CLAIM, payload, markdown=texts["text/markdown"])


def judged(interval: Any, above: float = 0.0) -> tuple[str, str, dict[str, Any]]:
    """Verdict, the reason why there is none (or ""), and value, low and high, of an interval."""
    try:
        measured = _measured(interval, "The interval")
    except Exception:  # whatever a reader hands in, the page goes on
        measured = {"value": None, "low": None, "high": None}
    low, high = measured["low"], measured["high"]
    if low is None or high is None:
        return ledger.UNDECIDED, "there is no interval", measured
    if low > high:
        return ledger.UNDECIDED, "the interval's ends are the wrong way round", measured
    return ledger.verdict(low, high, above), "", measured


def say(text: str) -> None:
    """Show a sentence that must carry a number: Markdown, with at most two numbers of two significant digits.

    Raises
    ------
    SkinbookError
        If it has more numbers or digits, or the chapter has said five such sentences already.
    """
    found = NUMBER.findall(text)
    if len(found) > 2:
        raise SkinbookError(f"A sentence that is said may carry two numbers, and this one has {len(found)}: {text!r}.")
    if fine := [number for number in found if _significant(number) > 2]:
        raise SkinbookError(f"A number that is said has two significant digits, and {fine[0]} has more: {text!r}.")
    _run.said.add(blanked(text))
    if len(_run.said) > MOST_SAID:
        raise SkinbookError(
            f"A chapter may say {MOST_SAID} sentences with numbers, and this is one more: {text!r}. Write it without "
            "numbers, as Markdown (after changing such sentences, run the setup cell again)."
        )
    _show(text, SAY, {"text": text}, markdown=text)


def blanked(text: str) -> str:
    """A sentence with its numbers blanked out: they are covered by reports."""
    return NUMBER.sub("#", text)


def _significant(number: str) -> int:
    """How many digits of a number mean something: 2 in 0.83, 2,400 and 38."""
    digits = re.sub(r"\D", "", number).lstrip("0")
    return len(digits if "." in number else digits.rstrip("0"))


def _measured(value: Any, what: str) -> dict[str, Any]:
    """`value`, `low` and `high` as plain numbers; None for what is not there, or not finite."""
    parts = ("value", "low", "high")
    if all(hasattr(value, part) for part in parts):
        return {part: _number(getattr(value, part), what) for part in parts}
    return {"value": _number(value, what), "low": None, "high": None}


def _number(value: Any, what: str) -> int | float | None:
    if value is None:
        return None
    if hasattr(value, "item") and not isinstance(value, numbers.Number):
        value = value.item()  # a tensor or array of one number
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value) if math.isfinite(value) else None
    raise SkinbookError(f"{what} is of type {type(value).__name__}; expected a number, or an interval.")


def _execution() -> object:
    """Names the execution of a cell that we are in; one and the same outside a notebook."""
    from IPython import get_ipython

    kernel = getattr(get_ipython(), "kernel", None)
    return kernel.get_parent().get("header", {}).get("msg_id") if kernel is not None else None


def _show(text: str, mime: str, payload: dict[str, Any], markdown: str | None = None, html: str | None = None) -> None:
    """Text for the reader and a payload for the checks, in one bundle; plain text outside a notebook."""
    from IPython import get_ipython
    from IPython.display import display

    if get_ipython() is None:
        print(text)
        return
    bundle: dict[str, Any] = {"text/plain": text, mime: payload}
    bundle |= {"text/markdown": markdown} if markdown else {}
    bundle |= {"text/html": html} if html else {}
    display(bundle, raw=True)


def ledger_table(
    chapter: str | None = None,
    edition: str = "ham10000",
    scale: str = "quick",
    names: list[str] | None = None,
) -> None:
    """Show what the ledger holds of a chapter (this one, if not named), or that it holds nothing.

    names : these results first, in this order; then come the claims, and all other numbers are folded below.
    """
    name = chapter or (_run.chapter.name if _run.chapter else "")
    text, html = ledger.page(name, edition, scale, names)
    asked = {"chapter": name, "edition": edition, "scale": scale, "names": names, "digest": ledger.digest(text, html)}
    _show(text, LEDGER, asked, html=html)


def ledger_value(
    name: str, chapter: str | None = None, edition: str = "ham10000", scale: str = "quick"
) -> SimpleNamespace | None:
    """One result of the ledger, with `.value`, `.low` and `.high`, or None if it has none under that name."""
    return ledger.value(name, chapter or (_run.chapter.name if _run.chapter else ""), edition, scale)


def facts() -> None:
    """Show where this run's results come from; `skinbook run` appends this to a chapter."""
    found = ledger.surroundings(_run.chapter.device if _run.chapter else "cpu")
    found["notes"] = dict(_run.chapter.notes) if _run.chapter else {}
    _show("facts", FACTS, found)


def exercise(name: str, check: Callable[[], Any]) -> None:
    """Say whether an exercise is right: "not yet" until `check` returns something true, whatever else happens in it."""
    try:
        right = bool(check())
    except Exception:
        right = False  # an unfinished answer may fail in any way
    print(f"Exercise {name}: {'right' if right else 'not yet'}")
