"""A pytest plugin that teaches nbval the book's reports and claims.

It is loaded wherever pytest runs with skinbook installed, and does nothing unless `--nbval` meets a notebook that uses
skinbook. On lab/quick every output is compared with the stored one: reports within their measured tolerance, claims by
their verdict, everything else as nbval compares. On any other edition or scale only reports and claims count, against
the ledger, and the rest must merely run. `SKINBOOK_CHAPTERS="01 03"` narrows the notebooks.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from skinbook import ledger
from skinbook.config import Settings, SkinbookError, settings
from skinbook.ledger import CLAIM, REPORT, SAY, SETUP, payloads

try:
    from nbval.plugin import IPyNbCell, IPyNbFile
except ImportError:  # pytest without nbval: there are no notebooks to check
    IPyNbCell, IPyNbFile = pytest.Item, pytest.File  # type: ignore[misc,assignment]
    NBVAL = False
else:
    NBVAL = True

# The beginnings of paths that name a machine. A web address has a letter, or another slash, before its slashes.
START = r"(?<![\w.~</-])"
MACHINE = re.compile(
    rf"{START}(?:/(?:home|Users|work|workspace|mnt|private|kaggle|content|opt|srv|var/folders)/[\w.~-]|/(?:root|tmp)\b"
    r"|/(?!/)[\w.+/-]{0,200}(?:site|dist)-packages/)"
    r"|\bfile:/+[\w.~-]|\b[A-Za-z]:\\+Users\\"
)
CELL_TIMEOUT = 3 * 60 * 60.0  # seconds, where real lesions are trained on; nbval's own default does for lab
NBVAL_TIMEOUT = 2000.0


def pytest_configure(config: pytest.Config) -> None:
    """Keep a notebook's cells together when xdist spreads the tests over processes."""
    if NBVAL and config.getoption("nbval", False) and getattr(config.option, "dist", "no") == "load":
        config.option.dist = "loadfile"


@pytest.hookimpl(wrapper=True)
def pytest_collect_file(file_path: Path, parent: pytest.Collector):
    """Put a `ChapterFile` in the place of nbval's collector of a notebook that uses skinbook."""
    found = yield
    if not NBVAL or not any(type(node) is IPyNbFile for node in found) or not _uses_skinbook(file_path):
        return found
    wanted = os.environ.get("SKINBOOK_CHAPTERS", "").split()
    name = file_path.stem
    if wanted and re.match(r"\d\d_", name):
        parent.config.stash.setdefault(SEEN, set()).update({name, name[:2], name[3:]})
        if not {name, name[:2], name[3:]} & set(wanted):
            return [node for node in found if type(node) is not IPyNbFile]
    return [
        ChapterFile.from_parent(parent, path=file_path) if type(node) is IPyNbFile else node  # type: ignore[call-arg]
        for node in found
    ]


SEEN = pytest.StashKey[set[str]]()


def pytest_collection_modifyitems(config: pytest.Config) -> None:
    """A chapter that `SKINBOOK_CHAPTERS` names and that is not there should not pass in silence."""
    seen = config.stash.get(SEEN, set())
    absent = [name for name in os.environ.get("SKINBOOK_CHAPTERS", "").split() if name not in seen]
    if seen and absent:
        raise pytest.UsageError(f"SKINBOOK_CHAPTERS names {absent[0]!r}, and there is no such chapter: correct it.")


def _uses_skinbook(notebook: Path) -> bool:
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8")).get("cells", [])
        return any(cell.get("cell_type") == "code" and "skinbook" in "".join(cell.get("source", "")) for cell in cells)
    except (OSError, ValueError, AttributeError, TypeError, RecursionError):
        return False  # nbval says what is wrong with it


class ChapterFile(IPyNbFile):
    """A chapter: what is stored, its text twin, each cell as it runs, and the whole against the ledger."""

    nb: Any
    settings: Settings

    def collect(self) -> Iterator[pytest.Item]:
        try:
            self.settings = settings()
            absent = _lacking(self.path.stem, self.settings)
        except SkinbookError as error:
            raise self.CollectError(str(error)) from None
        if absent:
            yield LeftOut.from_parent(self, name="left out", reason=absent)
            return
        self.made: dict[str, set[str]] = {"reports": set(), "claims": set()}
        self.broken = False
        now = self.settings
        self.on_lab = now.edition == "lab" and now.scale == "quick"
        # With another seed numbers move within their tolerances, and what is printed moves freely.
        self.exactly = self.on_lab and now.seed == 0
        self.entry = {} if self.on_lab else ledger.read("results", now.edition, now.scale, self.path.stem)
        cells = list(super().collect())
        yield Stored.from_parent(self, name="stored outputs")
        if self.path.with_suffix(".md").is_file():
            yield Twin.from_parent(self, name="text twin")
        for cell in cells:
            yield ChapterCell.from_parent(  # type: ignore[call-arg]
                self, name=cell.name, cell_num=cell.cell_num, cell=cell.cell, options=cell.options
            )
        for name, cell in exercises(self.nb.cells):
            yield ExerciseCell.from_parent(  # type: ignore[call-arg]
                self,
                name=name,
                cell_num=len(cells),
                cell=cell,
                options=defaultdict(bool, check=True),
            )
        if self.entry:
            yield Whole.from_parent(self, name="ledger")
        elif not self.on_lab:
            where = f"{now.edition}-{now.scale}"
            reason = f"The ledger holds no results of {self.path.stem} on {where}: its cells must merely run."
            yield LeftOut.from_parent(self, name="ledger", reason=reason)

    def setup(self) -> None:
        """Start the kernel: that of the Python that runs pytest, unless another was asked for."""
        option = self.config.option
        asked = option.nbval_current_env, option.nbval_cell_timeout
        option.nbval_current_env = asked[0] or not option.nbval_kernel_name
        if not self.on_lab and asked[1] == NBVAL_TIMEOUT:
            option.nbval_cell_timeout = CELL_TIMEOUT
        super().setup()
        option.nbval_current_env = asked[0]

    def tolerance(self, name: str) -> float:
        return ledger.tolerance(self.settings.edition, self.settings.scale, self.path.stem, name)

    def may_be(self, sentence: str, now: str, then: str) -> bool:
        """Whether a claim may come out so: as before, or as it did with nothing changed but threads and instructions.

        What is stored on the lab is seed 0's. Another seed is held against what was measured of it, if anything was.
        """
        seed = self.settings.seed
        measured = ledger.verdicts(self.settings.edition, self.settings.scale, self.path.stem, sentence, seed)
        if self.on_lab and seed and measured:
            return now in measured
        return now == then or {now, then} <= measured

    def remedy(self) -> str:
        """What to do where a change is meant."""
        number = self.path.stem[:2]
        if self.on_lab:
            return f"find out why, or, where the change is meant, run `make refresh CHAPTERS={number}`"
        where = f"--edition {self.settings.edition} --scale {self.settings.scale}"
        about = self.entry.get("provenance", {})
        weights = dict.fromkeys(str(about[key]) for key in about if key == "weights" or key.startswith("weights, "))
        why = "find out why" + (
            f" (on record are the weights {', '.join(weights)}: are yours others?)" if weights else ""
        )
        return f"{why}, or, where the change is meant, run `skinbook run {number} {where} --record`"

    def expected(self, kind: str, stored: dict[str, Any]) -> dict[str, Any]:
        """What the reports or claims of a cell are held against: the stored ones, or this seed's of the ledger."""
        if self.on_lab:
            return stored
        seed = str(self.settings.seed)
        return {name: held["seeds"].get(seed, held) for name, held in self.entry.get(kind, {}).items()}


def _lacking(name: str, now: Settings) -> str:
    """The sentence that leaves a chapter out on this edition, or "" (a notebook without a recipe is never left out)."""
    from skinbook import chapter

    try:
        needs = chapter.recipe(name, now.edition, now.scale)["needs"]
    except SkinbookError:
        return ""
    absent = chapter.lacking(needs, now.edition)
    return chapter.left_out(name, now.edition, absent) if absent else ""


class ChapterCell(IPyNbCell):
    """A cell of a chapter, as it runs."""

    parent: ChapterFile

    def runtest(self) -> None:
        try:
            super().runtest()
        except Exception:
            self.parent.broken = True
            raise
        if faults := self.faults():
            self.raise_cell_error("\n".join(faults))

    def compare_outputs(self, test, ref, skip_compare=None) -> bool:
        """Compare as nbval does, without the outputs that are judged by what they carry."""
        if not self.parent.exactly:
            return True
        same = super().compare_outputs(self._plain(test), self._plain(ref), skip_compare)
        if not same:
            self.comparison_traceback.insert(0, f"{self._hint()}\n")
        return same

    def _hint(self) -> str:
        if self._tagged("ledger"):
            return "What the ledger gives is not what is stored: run `make refresh-ledger`."
        return (
            f"An output is not what is stored: {self.parent.remedy()} (logs and times are tagged nbval-ignore-output)."
        )

    def _tagged(self, tag: str) -> bool:
        return tag in self.cell.metadata.get("tags", ())

    def _plain(self, outputs: list[Any]) -> list[Any]:
        carried = {SETUP, REPORT, CLAIM} | (set() if self._tagged("ledger") else {SAY})
        return [o for o in outputs if not carried & set(o.get("data", {})) and not _is_stderr(o)]

    def faults(self) -> list[str]:
        """Sentences on what this run of the cell said."""
        fresh, stored, file = self.test_outputs or [], self.cell.outputs, self.parent
        faults = [f"An output names a path of this machine ({path}): print less." for path in paths_in(fresh)]
        if file.on_lab and self.options["check"]:
            faults += [
                f"The cell writes to stderr ({_first_line(o.text)}): put right what it warns of, "
                "or tag a cell of logs nbval-ignore-output."
                for o in fresh
                if _is_stderr(o)
            ]
        for made in payloads(fresh, REPORT):
            file.made["reports"].add(made["name"])
        for made in payloads(fresh, CLAIM):
            file.made["claims"].add(made["sentence"])
        if self.cell.execution_count is None or not (file.on_lab or file.entry):
            return faults
        faults += self._differing("reports", REPORT, "name", fresh, stored)
        faults += self._differing("claims", CLAIM, "sentence", fresh, stored)
        if file.exactly:
            faults += self._unlike_said(fresh, stored)
        return faults

    def _differing(self, kind: str, mime: str, key: str, fresh: list[Any], stored: list[Any]) -> list[str]:
        file = self.parent
        now = {made[key]: made for made in payloads(fresh, mime)}
        if len(now) < len(list(payloads(fresh, mime))):
            return [f"One of {', '.join(map(repr, now))} is said twice in this cell: give each its own name."]
        then = file.expected(kind, {made[key]: made for made in payloads(stored, mime)})
        against = "stored" if file.on_lab else "in the ledger"
        faults = [f"{name!r} is not {against}: {file.remedy()}." for name in now if name not in then]
        if file.on_lab:
            faults += [
                f"{name!r} is stored, and this run lacks it: {file.remedy()}." for name in then if name not in now
            ]
        for name in now.keys() & then.keys():
            a, b = now[name], then[name]
            if kind == "claims" and a.get("above", 0.0) != b.get("above", 0.0):
                faults.append(f"The claim {name!r} is held against another value than {against}: {file.remedy()}.")
            if kind == "reports" and any((a.get(end) is None) != (b.get(end) is None) for end in ("low", "high")):
                faults.append(f"{name!r} has an interval now or {against}, and not both: {file.remedy()}.")
            if kind == "claims" and not file.may_be(name, a["verdict"], b["verdict"]):
                faults.append(f"The claim {name!r} was {b['verdict']!r} and is {a['verdict']!r} now: {file.remedy()}.")
            if kind == "reports" and not near(a["value"], b["value"], file.tolerance(name)):
                faults.append(
                    f"{name!r} is {a['value']}, and {b['value']} is {against}, with a tolerance of "
                    f"{file.tolerance(name):.3g}: {file.remedy()}."
                )
        return faults

    def _unlike_said(self, fresh: list[Any], stored: list[Any]) -> list[str]:
        from skinbook.chapter import blanked

        now, then = ([blanked(made["text"]) for made in payloads(outputs, SAY)] for outputs in (fresh, stored))
        faults = [
            f"A sentence reads differently now ({a!r}, stored {b!r}): {self.parent.remedy()}."
            for a, b in zip(now, then, strict=False)
            if a != b
        ]
        if len(now) != len(then):
            faults.append(f"The cell says {len(now)} sentences, and {len(then)} are stored: {self.parent.remedy()}.")
        return faults


def exercises(cells: list[Any]) -> Iterator[tuple[str, Any]]:
    """Cells that try an exercise's solution, and the wrong answer beside it, in the chapter's own namespace."""
    from nbformat.v4 import new_code_cell, new_output

    for name, parts in exercise_parts(cells).items():
        for kind, says in (("solution", "right"), ("wrong", "not yet")):
            if all(parts.values()):
                output = new_output("stream", name="stdout", text=f"Exercise {name}: {says}\n")
                source = f"{parts[kind]}\n{parts['check']}"
                yield f"exercise {name}, {kind}", new_code_cell(source, outputs=[output], execution_count=1)


def exercise_parts(cells: list[Any]) -> dict[str, dict[str, str]]:
    """For each exercise its `solution`, a `wrong` answer and its `check`; "" for what it lacks.

    A solution is a Markdown cell tagged `solution` whose metadata `skinbook` name the exercise and hold a wrong answer;
    the one code cell that calls `exercise("…")` with that name is its check.
    """
    found = {}
    for cell in cells:
        if "solution" in cell.metadata.get("tags", ()):
            about = cell.metadata.get("skinbook", {})
            name, fenced = about.get("exercise", "?"), re.search(r"```python\n(.*?)```", cell.source, re.DOTALL)
            checks = [c.source for c in cells if c.cell_type == "code" and f'exercise("{name}"' in c.source]
            found[name] = {
                "solution": fenced[1] if fenced else "",
                "wrong": about.get("wrong", ""),
                "check": checks[0] if len(checks) == 1 else "",
            }
    return found


class ExerciseCell(ChapterCell):
    """A solution that must be right, or a wrong answer that must not be."""

    def compare_outputs(self, test, ref, skip_compare=None) -> bool:
        return IPyNbCell.compare_outputs(self, test, ref, skip_compare)


def near(a: float | None, b: float | None, tolerance: float) -> bool:
    """Whether two values agree; an undefined one agrees with an undefined one."""
    return a is b if a is None or b is None else abs(a - b) <= tolerance


def _is_stderr(output: Any) -> bool:
    return output.get("output_type") == "stream" and output.get("name") == "stderr"


def _first_line(text: str) -> str:
    return text.strip().splitlines()[0][:120] if text.strip() else "an empty line"


def paths_in(outputs: list[Any]) -> list[str]:
    """Paths of a machine in what outputs show or carry (pictures aside)."""
    now = settings()
    folders = [Path.home(), Path.cwd(), tempfile.gettempdir(), sys.prefix, now.cache, now.weights, *now.data]
    places = {Path(place).absolute() for place in folders if place} - {Path("/usr")}
    names = "|".join(re.escape(str(place)) for place in sorted(places) if place != place.parent)
    here = re.compile(rf"{START}(?:{names})(?![\w-])")
    found = []
    for output in outputs:
        data = output.get("data", {})
        texts = [output.get("text", ""), *output.get("traceback", ()), output.get("evalue", "")]
        texts += [v if isinstance(v, str) else json.dumps(v) for k, v in data.items() if not k.startswith("image/")]
        for text in texts:
            if match := MACHINE.search(text) or here.search(text):
                found.append(text[match.start() : match.start() + 40].split("\n")[0])
    return found


def unlike_carried(outputs: list[Any]) -> list[str]:
    """Words on outputs that show a reader something else than what they carry for the checks."""
    faults = []
    for data in (output.get("data", {}) for output in outputs):
        shows = {form: text for form, text in data.items() if form.startswith("text/")}
        for mime in {REPORT, CLAIM, SAY} & set(data):
            digits = (2, 0, 1, 3, 4, 5, 6) if mime == REPORT else (2,)
            allowed = [ledger.seen(mime, data[mime], number) for number in digits]
            if shows not in allowed:
                meant = next((texts for texts in allowed if texts["text/plain"] == shows.get("text/plain")), allowed[0])
                form = next(form for form in (*shows, *meant) if shows.get(form) != meant.get(form))
                faults.append(f"shows {shows.get(form)!r}, and what it carries reads {meant.get(form)!r}")
    return faults


class _Check(pytest.Item):
    """A check of a chapter as a whole: `faults` are its sentences."""

    parent: ChapterFile

    def faults(self) -> list[str]:
        raise NotImplementedError

    def runtest(self) -> None:
        if faults := self.faults():
            pytest.fail("\n".join(faults), pytrace=False)

    def reportinfo(self):
        return self.path, 0, f"{self.parent.path.name}: {self.name}"


class LeftOut(_Check):
    """Something that this run leaves out, with its reason."""

    def __init__(self, *, reason: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.reason = reason
        self.add_marker(pytest.mark.skip(reason=reason))

    def faults(self) -> list[str]:
        return []


class Stored(_Check):
    """What the notebook's file holds, before anything runs."""

    def faults(self) -> list[str]:
        remedy = f"run `make refresh CHAPTERS={self.parent.path.stem[:2]}`"
        faults = []
        cells = [cell for cell in self.parent.nb.cells if cell.cell_type == "code"]
        for number, cell in enumerate(cells):
            tags = cell.metadata.get("tags", ())
            skipped = "nbval-skip" in tags or "NBVAL_SKIP" in cell.source
            here = []
            if cell.source.strip() and cell.execution_count is None and not skipped:
                here.append(f"was never executed: {remedy}")
            here += [
                f"has stderr stored ({_first_line(output.text)}): put right what it warns of, and {remedy}"
                for output in cell.outputs
                if _is_stderr(output)
            ]
            here += [
                f"has a path of a machine stored ({path}): print less, and {remedy}" for path in paths_in(cell.outputs)
            ]
            here += [f"{fault}: {remedy}" for fault in unlike_carried(cell.outputs)]
            here += [
                f"was stored on {made['edition']}-{made['scale']}, and the outputs in git are lab-quick's: {remedy}"
                for made in payloads(cell.outputs, SETUP)
                if (made["edition"], made["scale"]) != ("lab", "quick")
            ]
            faults += [f"Cell {number} {fault}." for fault in here] + ledger.out_of_date(cell.outputs)
        faults += [
            f"Exercise {name} lacks its {part}: see CONTRIBUTING.md on exercises."
            for name, parts in exercise_parts(self.parent.nb.cells).items()
            for part, source in parts.items()
            if not source
        ]
        try:
            ledger.said(cells)
        except SkinbookError as error:
            faults.append(str(error))
        return faults


class Twin(_Check):
    """The notebook's text twin has the same cells."""

    def faults(self) -> list[str]:
        try:
            import jupytext
        except ImportError:
            pytest.skip("jupytext is not installed, so the text twin cannot be read: pip install jupytext.")
        text = self.parent.path.with_suffix(".md")
        a, b = ([_essence(c) for c in nb.cells] for nb in (self.parent.nb, jupytext.read(text)))
        for number, (one, other) in enumerate(zip(a, b, strict=False)):
            if one != other:
                what = next(word for word, x, y in zip(("type", "source", "tags"), one, other, strict=True) if x != y)
                begins = _first_line(one[1])
                return [
                    f"{self.parent.path.name} and {text.name} differ in the {what} of cell {number + 1} ({begins}): "
                    "run `make pair` (or `make pair FROM=notebook`)."
                ]
        if len(a) != len(b):
            return [f"{self.parent.path.name} has {len(a)} cells and {text.name} has {len(b)}: run `make pair`."]
        return []


def _essence(cell: Any) -> tuple[str, str, tuple[str, ...]]:
    return cell.cell_type, cell.source.strip(), tuple(cell.metadata.get("tags", ()))


class Whole(_Check):
    """Every report and claim that the ledger holds was made by this run."""

    def faults(self) -> list[str]:
        if self.parent.broken:
            pytest.skip("A cell failed, so that some reports could not be made.")
        return [
            f"{name!r} is in the ledger, and this run lacks it: {self.parent.remedy()}."
            for kind in ("reports", "claims")
            for name in self.parent.entry.get(kind, {})
            if name not in self.parent.made[kind]
        ]
