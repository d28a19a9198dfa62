"""The ledger: results of real lesions, each with where it comes from; and the tolerances of results.

`data/results/<edition>-<scale>.json` is written by `skinbook run --record` alone, never by hand and never by a test.
`data/tolerances/<edition>-<scale>.json` says how far a result may move from run to run, as measured by
`skinbook spread` (or by the seeds of a recorded run).
"""

from __future__ import annotations

import ast
import hashlib
import html
import json
import math
import platform
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from skinbook import __version__
from skinbook.config import SkinbookError, book_data, cores
from skinbook.files import alone_in, locked, replaced
from skinbook.reading import strict_json
from skinbook.rounding import shown

# The bundles in which a notebook's outputs carry what was said.
SETUP, REPORT, CLAIM, SAY, LEDGER, FACTS = (
    f"application/vnd.skinbook.{kind}+json" for kind in ("setup", "report", "claim", "say", "ledger", "facts")
)
NUMBER = (int, float, type(None))
CARRIES: dict[str, dict[str, Any]] = {  # what a check reads of each
    REPORT: {"name": str, "value": NUMBER},
    CLAIM: {"sentence": str, "verdict": str},
    SAY: {"text": str},
    SETUP: {"edition": str, "scale": str},
    LEDGER: {"chapter": str, "edition": str, "scale": str, "digest": str},
}
HOLDS, UNDECIDED, FAILS = "holds", "undecided", "does not hold"
EXACT = 1e-9  # how near a result that has no tolerance must be
LIBRARIES = ("torch", "torchvision", "timm", "numpy", "pandas")
LEAST_SEEDS = 3  # of fewer, the interval of one further seed is so wide that it checks nothing
NOT_MEASURED = ("exercise", "ledger")  # tags of cells that leave a chapter's results as they are
# A cell tagged `view` does so too, where it calls nothing but these: they look up what has been computed, or draw it.
LOOKS = {"enumerate", "len", "range", "round", "sorted", "zip"}
VIEWS = {"confusion", "items", "keys", "log", "mean", "per_class", "round", "value", "values"}  # methods
VIEWS |= {"axhline", "axvline", "confusion_matrix", "get_major_locator", "intervals", "legend", "plot"}
VIEWS |= {"set", "set_params", "set_title", "show", "subplots"}
ABOUT_RESULTS = (
    "Written by `skinbook` with `--record`, never by hand. A value is the mean over the seeds; low and high are the means "
    "of the ends of the seeds' intervals. A claim's verdict comes from that averaged interval; it is undecided where "
    "a seed's value lies on the other side of what the claim names, or where a seed gives no interval."
)
ABOUT_TOLERANCES = (
    f"Written by `skinbook spread`, or by `skinbook run --record`, with at least {LEAST_SEEDS} seeds. A tolerance is "
    "half the width of the 99 % prediction interval of one further seed (a seed's value is the mean over its numbers of "
    "threads and sets of instructions), and the largest difference between those. Where the value never moved, it is that of its interval; "
    "a report of which nothing moved has tolerance 0."
)


def verdict(low: float, high: float, above: float = 0.0) -> str:
    """What an interval says about a claim that something lies above a value."""
    if low > above:
        return HOLDS
    return FAILS if high <= above else UNDECIDED


def seen(mime: str, payload: Mapping[str, Any], digits: int = 2) -> dict[str, str]:
    """What a reader sees of a report, a claim or a sentence, by the form of the text."""
    if mime == SAY:
        return {"text/plain": payload["text"], "text/markdown": payload["text"]}
    number = shown(payload["value"], payload["low"], payload["high"], digits)
    if mime == REPORT:
        return {"text/plain": f"{payload['name']}  {number}"}
    held, sentence, detail = payload["verdict"], payload["sentence"], payload.get("reason") or number
    return {"text/plain": f"{held}: {sentence}  {detail}", "text/markdown": f"**{held}**: {sentence} ({detail})"}


# What a run said


def said(cells: Iterable[Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """The reports and claims in the outputs of a notebook's cells, each by its name, in order.

    Raises
    ------
    SkinbookError
        If a name or a sentence comes twice.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {"reports": {}, "claims": {}}
    for cell in cells:
        for kind, mime, key in (("reports", REPORT, "name"), ("claims", CLAIM, "sentence")):
            for payload in payloads(cell.get("outputs", ()), mime):
                if payload[key] in found[kind]:
                    raise SkinbookError(
                        f"{payload[key]!r} is {'reported' if kind == 'reports' else 'claimed'} twice in this chapter: "
                        "reword one of the two."
                    )
                found[kind][payload[key]] = {k: v for k, v in payload.items() if k != key}
    return found


def payloads(outputs: Iterable[Any], mime: str) -> list[dict[str, Any]]:
    """What the outputs of a cell carry in bundles of one kind; SkinbookError where one is no such bundle."""
    found = [output["data"][mime] for output in outputs if mime in output.get("data", {})]
    for payload in found:
        for key, kind in CARRIES.get(mime, {}).items():
            if not isinstance(payload, dict) or not isinstance(payload.get(key, ...), kind):
                raise SkinbookError(
                    f"An output carries {mime} without a usable {key!r}, so that it cannot be checked: run `make refresh`."
                )
    return found


# Where results come from


def surroundings(device: str = "cpu") -> dict[str, Any]:
    """Versions and hardware, in words that name no machine."""
    versions = {"skinbook": __version__, "python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    hardware: dict[str, Any] = {"cpu": _cpu(), "cores": cores()}
    if device != "cpu":
        import torch

        hardware["accelerator"] = torch.cuda.get_device_name() if device == "cuda" else "Apple GPU"
    return {"versions": versions, "hardware": hardware}


def _cpu() -> str:
    """The processor's model."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def code_hash(cells: Iterable[Any], recipe: Mapping[str, Any] | None = None) -> str:
    """Twelve digits that change with a chapter's code or recipe, and not with comments, formatting, views or exercises."""
    from IPython.core.inputtransformer2 import TransformerManager

    code, views = [], []
    for cell in cells:
        tags = set(cell["metadata"].get("tags", ()))
        if cell["cell_type"] == "code" and not tags & set(NOT_MEASURED):
            source = TransformerManager().transform_cell(cell["source"])
            code.append(source)
            if "view" in tags and only_views(source):
                views.append(source)
    # What a view gives a name to must be nobody else's: it would have a say in what is measured.
    others = {name for source in code if source not in views for name in _names(source)}
    code = [source for source in code if source not in views or others & set(_names(source, given=True))]
    return _hashed([*map(_normal_source, code), json.dumps(recipe or {}, sort_keys=True, default=str)])


def only_views(source: str) -> bool:
    """Whether a cell does no more than show what there is: it calls `LOOKS` and `VIEWS` alone, and changes no name but its own."""
    changes = (
        ast.AugAssign,
        ast.Delete,
        ast.Global,
        ast.Import,
        ast.ImportFrom,
        ast.FunctionDef,
        ast.ClassDef,
        ast.Lambda,
    )
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            called = node.func
            looks = isinstance(called, ast.Name) and called.id in LOOKS
            if not looks and not (isinstance(called, ast.Attribute) and called.attr in VIEWS):
                return False
        elif isinstance(node, changes) or (
            isinstance(node, (ast.Attribute, ast.Subscript)) and not isinstance(node.ctx, ast.Load)
        ):
            return False
    return True


def _names(source: str, given: bool = False) -> list[str]:
    """The names in a cell, or those that it gives to something."""
    named = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)]
    return [node.id for node in named if not given or not isinstance(node.ctx, ast.Load)]


def package_hash(folder: Path | None = None) -> str:
    """Twelve digits that change with the package's code, and not with its comments, docstrings or formatting."""
    folder = folder or Path(__file__).resolve().parent
    files = sorted(folder.rglob("*.py"), key=lambda file: file.relative_to(folder).as_posix())
    return _hashed(
        text
        for file in files
        for text in (file.relative_to(folder).as_posix(), _normal_source(file.read_text(encoding="utf-8")))
    )


def _hashed(texts: Iterable[str]) -> str:
    return hashlib.blake2b("\0".join(texts).encode(), digest_size=6).hexdigest()


def _normal_source(source: str) -> str:
    """Code without comments, formatting and docstrings, the same on every version of Python.

    (`ast.dump` isn't: newer versions have fields that older ones lack. Empty fields are left out here.)
    """

    def normal(node: Any) -> Any:
        if isinstance(node, ast.AST):
            fields = {name: normal(value) for name, value in ast.iter_fields(node)}
            return [type(node).__name__, {k: v for k, v in fields.items() if v not in (None, [])}]
        if isinstance(node, list):
            return [normal(item) for item in node if not _is_text(item)]
        return repr(node) if node is not None else None

    return json.dumps(normal(ast.parse(source)), sort_keys=True)


def _is_text(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


# Ledger and tolerances


def file_of(kind: str, edition: str, scale: str) -> Path:
    """The file of `results` or `tolerances` of an edition at a scale."""
    return book_data(kind, f"{edition}-{scale}.json")


def read(kind: str, edition: str, scale: str, chapter: str) -> dict[str, Any]:
    """What a file holds of one chapter; empty where there is no file or no such chapter."""
    return _load(file_of(kind, edition, scale)).get("chapters", {}).get(chapter, {})


def held(kind: str, edition: str, scale: str) -> list[str]:
    """The chapters that a file holds."""
    return list(_load(file_of(kind, edition, scale)).get("chapters", {}))


def _load(file: Path) -> dict[str, Any]:
    try:
        whole = strict_json(file.read_bytes())
        for part in (whole, whole.get("chapters", {}), *whole.get("chapters", {}).values()):
            if not isinstance(part, dict):
                raise ValueError(f"it holds {str(part)[:40]!r} in the place of chapters")
        return whole
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, AttributeError) as error:
        raise SkinbookError(
            f"data/{file.parent.name}/{file.name} cannot be read ({error}). Restore it from git."
        ) from None


@contextmanager
def _sound(kind: str, edition: str, scale: str) -> Iterator[None]:
    """A block that reads of a file what `write` puts there; where it is something else, the sentence names the file."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise SkinbookError(
            f"data/{kind}/{edition}-{scale}.json does not hold what was recorded ({type(error).__name__}: {error}). "
            "Restore it from git."
        ) from error


def write(kind: str, edition: str, scale: str, chapter: str, entry: Mapping[str, Any]) -> Path:
    """Put a chapter's entry in the place of its last one; the other chapters stay as they are.

    Raises
    ------
    SkinbookError
        If the ledger cannot be read or written; it is then as it was.
    """
    file = file_of(kind, edition, scale)
    about = ABOUT_RESULTS if kind == "results" else ABOUT_TOLERANCES
    with alone_in(file.parent), locked(file):  # the lock of the file lies in the cache, and caches differ
        chapters = _load(file).get("chapters", {}) | {chapter: entry}
        whole = {"about": about, "edition": edition, "scale": scale, "chapters": dict(sorted(chapters.items()))}
        with replaced(file) as partial:
            partial.write_text(
                json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8"
            )
    return file


def entry(runs: Mapping[int, Mapping[str, Any]], date: str) -> dict[str, Any]:
    """The ledger's entry of a chapter.

    Parameters
    ----------
    runs : what `skinbook run` kept of each seed: `reports`, `claims`, `facts`, `minutes`, `code` and `package`.
    date : the day, in UTC, as 2026-01-31.

    Raises
    ------
    SkinbookError
        If the seeds do not report and claim the same things, or do not come from the same code, weights and split.
    """
    seeds = sorted(runs)
    first = runs[seeds[0]]
    notes = {seed: runs[seed]["facts"].get("notes", {}) for seed in seeds}
    noted = sorted({key for about in notes.values() for key in about})
    for seed in seeds[1:]:
        for kind in ("reports", "claims"):
            if odd := sorted(set(runs[seed][kind]) ^ set(first[kind])):
                raise SkinbookError(
                    f"Seeds {seeds[0]} and {seed} differ in their {kind}: {odd[0]!r} is in one of them only. "
                    "A chapter must say the same things with every seed."
                )
        if runs[seed]["code"] != first["code"]:
            raise SkinbookError(f"Seeds {seeds[0]} and {seed} ran different code. Run them again without --resume.")
        for key in noted:
            a, b = (notes[s].get(key) for s in (seeds[0], seed))
            if a != b and (key == "split" or key.startswith("weights")):
                raise SkinbookError(
                    f"Seeds {seeds[0]} and {seed} differ in {key} ({a!r} and {b!r}), and results of different "
                    "provenance are not averaged: run them again without --resume, on the same data and weights."
                )
    provenance = {
        "date": date,
        "code": first["code"],
        "package": one_or_all(runs[s]["package"] for s in seeds),
        **{key: one_or_all(notes[s].get(key) for s in seeds) for key in noted},
        # A run of several trainings may name several machines.
        **{
            key: one_or_all(one for s in seeds for one in _each(runs[s]["facts"][key]))
            for key in ("hardware", "versions")
        },
        "minutes": {str(s): round(runs[s]["minutes"], 1) for s in seeds},
    }
    return {
        "provenance": provenance,
        "reports": {name: _over_seeds({s: runs[s]["reports"][name] for s in seeds}) for name in first["reports"]},
        "claims": {
            name: _claim_over_seeds(name, {s: runs[s]["claims"][name] for s in seeds}) for name in first["claims"]
        },
    }


def one_or_all(values: Iterable[Any]) -> Any:
    """The value that all share, or else the list of those that differ."""
    different: list[Any] = []
    for value in values:
        if value not in different:
            different.append(value)
    return different[0] if len(different) == 1 else different


def _each(found: Any) -> list[Any]:
    return found if isinstance(found, list) else [found]


def _over_seeds(seeds: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    means = {key: _mean([payload[key] for payload in seeds.values()]) for key in ("value", "low", "high")}
    return means | {"seeds": {str(seed): dict(payload) for seed, payload in seeds.items()}}


def _claim_over_seeds(sentence: str, seeds: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    over = _over_seeds(seeds)
    against = {seed: payload.get("above", 0.0) for seed, payload in seeds.items()}
    first, above = next(iter(against.items()))
    if odd := [seed for seed in against if against[seed] != above]:
        raise SkinbookError(
            f"Seeds {first} and {odd[0]} hold the claim {sentence!r} against {above} and {against[odd[0]]}. "
            "A chapter must claim the same with every seed."
        )
    known = None not in (over["value"], over["low"], over["high"])
    decided = known and not any(payload.get("reason") for payload in seeds.values())
    held = verdict(over["low"], over["high"], above) if decided else UNDECIDED
    if held != UNDECIDED and any((payload["value"] > above) != (held == HOLDS) for payload in seeds.values()):
        held = UNDECIDED  # the interval knows nothing of how far trainings differ: one of them says the contrary
    return {"verdict": held, "above": above, **over}


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    if len(there) < len(values) or not there:
        return None
    return there[0] if len(set(there)) == 1 else math.fsum(there) / len(there)


def tolerances(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A chapter's entry of tolerances, from runs that differ in seed or threads (`reports`, `claims`, `run`, `code`).

    The tolerance is t(0.995, n-1) · sd · √(1 + 1/n), half the width of the 99 % prediction interval of one further seed
    (for instance Hahn and Meeker, "Statistical Intervals", 1991, section 4.7), and the largest difference within a seed.
    Numbers of threads and sets of instructions are no independent runs: a seed's value is the mean over its own, and n
    counts the seeds. The tolerance is 0 where all runs gave one value and one interval, or where fewer than three seeds
    gave any; where the value stayed and its interval moved, the tolerance is that of the end that moved more.

    Raises
    ------
    SkinbookError
        If there are fewer than three seeds.
    """
    from scipy import stats

    seeds = [run["run"]["seed"] for run in runs]
    if len(set(seeds)) < LEAST_SEEDS:
        raise SkinbookError(
            f"{len(set(seeds))} seeds cannot measure a tolerance; expected at least {LEAST_SEEDS}: ask for more seeds."
        )

    def moved(name: str, part: str) -> dict[str, Any]:
        values = [run["reports"].get(name, {}).get(part) for run in runs]
        numbers = [(seed, value) for seed, value in zip(seeds, values, strict=True) if value is not None]
        of_seed = [[value for seed, value in numbers if seed == one] for one in dict(numbers)]
        n, sd, threads, tolerance = len(of_seed), 0.0, 0.0, 0.0
        if n >= LEAST_SEEDS:
            sd = statistics.stdev(map(statistics.mean, of_seed))
            threads = max(max(found) - min(found) for found in of_seed)
            tolerance = sd * float(stats.t.ppf(0.995, n - 1)) * math.sqrt(1 + 1 / n) + threads
        rounded = {"sd": float(f"{sd:.3g}"), "threads": float(f"{threads:.3g}")}
        return {"tolerance": _rounded_up(tolerance)} | rounded | {"n": n, "values": values}

    def spread(name: str) -> dict[str, Any]:
        found = moved(name, "value")
        if found["tolerance"] == 0:
            # A share of few photographs can come out the same by chance; then the ends of its interval tell.
            ends = max((moved(name, end) for end in ("low", "high")), key=lambda end: end["tolerance"])
            found |= {key: ends[key] for key in ("tolerance", "sd", "threads") if ends["tolerance"] > 0}
        return found

    def verdicts(sentence: str) -> dict[str, Any]:
        seen = [run["claims"].get(sentence, {}).get("verdict") for run in runs]
        return {"varies": len(set(seen)) > 1, "verdicts": seen}

    return {
        "code": runs[0]["code"],
        "runs": [run["run"] for run in runs],
        "reports": {name: spread(name) for name in dict.fromkeys(n for run in runs for n in run["reports"])},
        "claims": {name: verdicts(name) for name in dict.fromkeys(n for run in runs for n in run["claims"])},
    }


def _rounded_up(size: float) -> float:
    """Three significant digits, and never less: what was measured must be within the tolerance."""
    return float(f"{size:.3g}") if float(f"{size:.3g}") >= size else float(f"{size * 1.005:.3g}")


def verdicts(edition: str, scale: str, chapter: str, sentence: str, seed: int = 0) -> set[str]:
    """The verdicts that a claim had in the runs of one seed, which differ in nothing but threads and instructions."""
    with _sound("tolerances", edition, scale):
        return _verdicts(edition, scale, chapter, sentence, seed)


def _verdicts(edition: str, scale: str, chapter: str, sentence: str, seed: int) -> set[str]:
    measured = read("tolerances", edition, scale, chapter)
    seen = measured.get("claims", {}).get(sentence, {}).get("verdicts", [])
    runs = measured.get("runs", [])
    return {verdict for run, verdict in zip(runs, seen, strict=False) if run["seed"] == seed and verdict}


def tolerance(edition: str, scale: str, chapter: str, name: str) -> float:
    """How far a report may move; `EXACT` where nothing else was measured."""
    with _sound("tolerances", edition, scale):
        measured = read("tolerances", edition, scale, chapter).get("reports", {}).get(name, {})
        return max(EXACT, float(measured.get("tolerance", 0.0)))


# On a page


def value(name: str, chapter: str, edition: str, scale: str) -> SimpleNamespace | None:
    """A report's or claim's `.value`, `.low` and `.high`, or None."""
    with _sound("results", edition, scale):
        stored = read("results", edition, scale, chapter)
        found = stored.get("reports", {}).get(name) or stored.get("claims", {}).get(name)
        return SimpleNamespace(**{key: found[key] for key in ("value", "low", "high")}) if found else None


def page(chapter: str, edition: str, scale: str, names: Sequence[str] | None = None) -> tuple[str, str]:
    """A chapter's results as text and as HTML: what is named, then its claims, then, folded, all other numbers; and a
    line on where they come from."""
    with _sound("results", edition, scale):
        return _page(chapter, edition, scale, names)


def _page(chapter: str, edition: str, scale: str, names: Sequence[str] | None) -> tuple[str, str]:
    stored = read("results", edition, scale, chapter)
    claims = {
        n: (n, f"{verdict_over_seeds(c)}: {shown(c['value'], c['low'], c['high'])}", str(len(c["seeds"])))
        for n, c in stored.get("claims", {}).items()
    }
    reports = {
        n: (n, shown(r["value"], r["low"], r["high"]), str(len(r["seeds"])))
        for n, r in stored.get("reports", {}).items()
    }
    rows = claims | reports
    if not rows:
        sentence = f"The ledger holds no results of {chapter} on {edition} at {scale} scale yet."
        return sentence, f"<p>{html.escape(sentence)}</p>"
    first = list(dict.fromkeys([*(name for name in names or () if name in rows), *claims])) or list(reports)
    others = [name for name in rows if name not in first]
    line = provenance_line(stored["provenance"], edition, scale)
    texts, parts = _laid_out([rows[name] for name in first])
    if others:
        text, table = _laid_out([rows[name] for name in others])
        title = f"The other {len(others)} results" if len(others) > 1 else "The other result"
        texts += f"\n\n{title}\n\n{text}"
        parts += f"\n<details>\n<summary>{title}</summary>\n{table}\n</details>"
    return f"{texts}\n\n{line}", f"{parts}\n<p><small>{html.escape(line)}</small></p>"


def _laid_out(rows: Sequence[tuple[str, str, str]]) -> tuple[str, str]:
    """A table as text and as HTML; not by pandas, which cuts long texts and may do it otherwise in its next version."""
    table = [("name", "value [95 % interval]", "seeds"), *rows]
    widths = [max(len(row[column]) for row in table) for column in range(3)]
    text = "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table)
    head, *body = (
        "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
        for tag, row in zip(["th", *["td"] * len(rows)], table, strict=True)
    )
    lines = ["<table>", f"<thead><tr>{head}</tr></thead>", "<tbody>", *(f"<tr>{row}</tr>" for row in body)]
    return text, "\n".join([*lines, "</tbody>", "</table>"])


def verdict_over_seeds(found: Mapping[str, Any]) -> str:
    """A recorded claim's verdict, with a word where its interval alone would say more than its seeds agree on."""
    low, high, held = found["low"], found["high"], found["verdict"]
    torn = held == UNDECIDED and low is not None and verdict(low, high, found["above"]) != UNDECIDED
    return f"{held} (seeds disagree)" if torn else held


def machines(about: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The hardware that a provenance names: one dictionary, or one for each machine that its seeds ran on."""
    return _each(about["hardware"])


def versions(about: Mapping[str, Any]) -> dict[str, str]:
    """The versions that a provenance names, of each package all that its seeds ran with."""
    found = _each(about["versions"])
    names = dict.fromkeys(name for one in found for name in one)
    return {name: " and ".join(dict.fromkeys(str(one[name]) for one in found if name in one)) for name in names}


def provenance_line(about: Mapping[str, Any], edition: str, scale: str) -> str:
    """Where results come from, in one line."""
    minutes, used = list(about["minutes"].values()), versions(about)
    shown = (m.get("accelerator", f"{m['cores']} CPU core{'s' if m['cores'] != 1 else ''}") for m in machines(about))
    parts = [
        f"{edition}, {scale} scale, {about['date']}",
        " and ".join(dict.fromkeys(shown)),
        f"{math.fsum(minutes) / len(minutes):.1f} minutes a seed",
        ", ".join(f"{name} {used[name]}" for name in ("skinbook", "torch", "timm") if name in used),
    ]
    if about.get("weights"):
        weights = about["weights"]
        said = weights if isinstance(weights, str) else ", ".join(map(str, weights))
        others: dict[str, list[str]] = {}
        for key, value in about.items():
            if key.startswith("weights, ") and value != weights:
                others.setdefault(str(value), []).append(key.removeprefix("weights, "))
        parts.append("; ".join([f"weights: {said}", *(f"of {', '.join(of)}: {value}" for value, of in others.items())]))
    if about.get("split"):
        parts.append(f"split {about['split']}")
    return "; ".join(parts) + "."


def digest(*texts: str) -> str:
    """Twelve digits by which a stored page is known to be the ledger's of today."""
    return _hashed(texts)


def out_of_date(outputs: Iterable[Any]) -> list[str]:
    """Sentences on outputs of a cell tagged `ledger` that are not what the ledger gives now."""
    faults = []
    for asked in payloads(outputs, LEDGER):
        now = page(asked["chapter"], asked["edition"], asked["scale"], asked["names"])
        if digest(*now) != asked["digest"]:
            faults.append(
                f"The stored results of {asked['chapter']} on {asked['edition']}-{asked['scale']} are not those of the "
                "ledger: run `make refresh-ledger`."
            )
    return faults
