"""The pages that are generated: references from BibTeX, results from the ledger, published numbers from their table."""

from __future__ import annotations

import hashlib
import json
import re
import statistics
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from skinbook import chapter, ledger
from skinbook.bench import NETWORKS, ratios
from skinbook.bench_parts import IN_COMPANY, told
from skinbook.config import EDITIONS, SCALES, SkinbookError, book_data
from skinbook.files import replaced
from skinbook.rounding import decimals, shown

RESULTS = re.compile(r"(<!-- results\s(.*?)-->\n)(.*?)(<!-- /results -->)", re.DOTALL)
# Claims are drawn on one axis where they are shares or differences of shares; years and degrees have no place on it.
WIDEST = 1.0
LESS_IS_BETTER = ("calibration error",)
ARCHIVE = 400_000  # photographs, about as many as the ISIC archive holds
SIDES = (64, 128, 224)
# How far the loss curve of two processes may be from that of one in a test. `data/devices.json` has what was measured.
ALLOWED = {"without batch normalisation": 1e-5, "with batch normalisation": 0.15}


def slug(heading: str) -> str:
    """The anchor that GitHub and the rendered book give a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def references(bibliography: Path) -> str:
    """The page of references as Markdown, one heading (and so one anchor) for each entry of a BibTeX file.

    An entry's `keywords` names its group, its `annote` says what the book takes from it.
    """
    from pybtex.database import parse_file

    groups: dict[str, list[str]] = {}
    entries = parse_file(str(bibliography)).entries.values()
    for entry in sorted(entries, key=lambda e: (e.persons["author"][0].last_names[-1].lower(), e.fields["year"])):
        groups.setdefault(entry.fields["keywords"], []).append(_reference(entry))
    head = (
        "# References\n\n<!-- Generated from references.bib by `make generate`. -->\n\n"
        "What the book builds on, each with a word on what it takes from there. "
        "The BibTeX is in the repository, `chapters/references.bib`."
    )
    return "\n\n".join([head, *(f"## {group}\n\n" + "\n\n".join(groups[group]) for group in sorted(groups))]) + "\n"


def _reference(entry) -> str:
    fields = {key: re.sub(r"[{}]", "", value) for key, value in entry.fields.items()}
    people = [
        re.sub(r"[{}]", "", " ".join(map(str, [*p.first_names, *p.middle_names, *p.prelast_names, *p.last_names])))
        for p in entry.persons["author"]
    ]
    family = [re.sub(r"[{}]", "", " ".join([*p.prelast_names, *p.last_names])) for p in entry.persons["author"]]
    short = family[0] if len(family) == 1 else " and ".join(family) if len(family) == 2 else f"{family[0]} et al."
    shown = people if len(people) <= 6 else [*people[:5], "others"]
    names = shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
    venue = fields.get("journal") or fields.get("booktitle") or fields.get("howpublished", "")
    if "volume" in fields:
        venue += f" {fields['volume']}" + (f", {fields['pages'].replace('--', '–')}" if "pages" in fields else "")
    if "doi" in fields:
        link = f"[doi:{fields['doi']}](https://doi.org/{fields['doi']})"
    elif "eprint" in fields:
        link = f"[arXiv:{fields['eprint']}](https://arxiv.org/abs/{fields['eprint']})"
    else:
        link = f"<{fields['url']}>"
    heading = f"### {short}, {fields['year']}"
    return f"{heading}\n\n{names}. *{fields['title']}*. {venue}, {fields['year']}. {link}\n\n{fields['annote']}"


def filled(text: str, block: str, name: str = "results") -> str:
    """A page with a block between its markers, `<!-- name ... -->` and `<!-- /name -->`."""
    marked = re.compile(rf"(<!-- {name}\s(.*?)-->\n)(.*?)(<!-- /{name} -->)", re.DOTALL)
    return marked.sub(lambda m: f"{m[1]}\n{block}\n\n{m[4]}", text, count=1)


def with_results(text: str, pages: str = "chapters/") -> str:
    """A page with the results that it names, from the ledger, in place of what stands between its markers.

    A marker names them, a line each: `chapter: name of the result`, and then perhaps ` => what the reader is told`.

    Parameters
    ----------
    text : the page; it may have several markers. pages : where the chapters lie, as seen from it.

    Raises
    ------
    SkinbookError
        If a named result is not in the ledger, although its chapter is.
    """
    return RESULTS.sub(lambda m: f"{m[1]}\n{_named_results(m[2], pages)}\n\n{m[4]}", text)


def _named_results(wanted_lines: str, pages: str) -> str:
    rows, dates = [], set()
    for line in wanted_lines.splitlines():
        name, _, rest = (part.strip() for part in line.partition(":"))
        wanted, _, told = (part.strip() for part in rest.partition("=>"))
        page = "strongest" if name in _choices() else "copied" if ", " in name else ""
        if not (held := ledger.read("results", "ham10000", "full" if page else "quick", name)):
            continue
        found = {**held["reports"], **held["claims"]}
        if wanted not in found:
            raise SkinbookError(
                f"A page shows {wanted!r} of {name}, which the ledger does not hold: mend its marker (`<!-- results`)."
            )
        link = f"[{page}]({pages}{page}.md)" if page else f"[{name[:2]}]({pages}{name}.ipynb)"
        rows.append([link, told or wanted, *_result_cells(found[wanted])])
        dates.add(held["provenance"]["date"])
    if not rows:
        return "Nothing is recorded yet."
    table = _table(["Chapter", "On HAM10000", "Measured", "95 % interval", "Seeds"], rows)
    first, last = min(dates), max(dates)
    when = f"Recorded {first if first == last else f'from {first} to {last}'}, the chapters at quick scale."
    return f"{table}\n\n{when} [All results]({pages}results.md), and where they come from."


def all_results() -> str:
    """The whole ledger as Markdown: each chapter's claims and numbers on each edition, and where they come from."""
    parts = []
    for edition, scale in ((e, s) for e in EDITIONS for s in SCALES):
        for name in ledger.held("results", edition, scale):
            held = ledger.read("results", edition, scale, name)
            size = name.partition(", ")[2] or scale  # sizes of a copied system are its own
            parts.append(f"## {_title(name, edition, scale)}: {edition}, {size}")
            parts.append(ledger.provenance_line(held["provenance"], edition, size))
            if held["claims"]:
                parts.append(_claims(held["claims"]))
            rows = [[what, *_result_cells(found)] for what, found in held["reports"].items()]
            if rows:
                numbers = _table(["Result", "Measured", "95 % interval", "Seeds"], rows)
                parts.append(f"<details>\n<summary>Its {len(rows)} numbers</summary>\n\n{numbers}\n\n</details>")
    return "\n\n".join(parts) or "No results on real lesions are recorded yet."


def _title(name: str, edition: str, scale: str) -> str:
    """What a heading calls an entry of the ledger: a chapter, a choice of `data/models.toml` or a system of `data/systems.toml`."""
    if name in (choices := _choices()):
        return choices[name]["title"]
    system, _, size = name.partition(", ")
    if size:
        listed = _list_of_systems()
        return f"{listed['systems'][system]['title']}, {listed['sizes'][size]['title'].lower()}"
    return f"{name[:2]} {chapter.recipe(name, edition, scale)['title']}"


def _choices() -> dict[str, dict[str, Any]]:
    return _list_of_models()["choices"]


def _list_of_models() -> dict[str, Any]:
    return tomllib.loads(book_data("models.toml").read_text(encoding="utf-8"))


def bundled(folder: Path) -> str:
    """What the card of a bundle says that it measured on the test lesions, as Markdown."""
    card = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    rows = [
        [name, *_result_cells({"value": value, "low": low, "high": high, "seeds": ()})[:2]]
        for name, (value, low, high) in card["metrics"].items()
    ]
    return f"{card['about']}\n\n" + _table(["On the test lesions", "Measured", "95 % interval"], rows)


def strongest(edition: str = "ham10000") -> str:
    """The strongest models as Markdown: who was chosen, what was aimed at, and what the test lesions gave."""
    parts, models = [], _list_of_models()["models"]
    for name, choice in _choices().items():
        parts.append(f"## {choice['title']}")
        if not (held := ledger.read("results", edition, "full", name)):
            parts.append("Nothing is recorded yet.")
            continue
        about = held["provenance"]
        parts.append(_chosen(name, about, models) if choice.get("chosen", True) else f"**{about['model']}**.")
        rows = []
        for what, found in held["reports"].items():
            aim = choice["aims"].get(what)
            reached = aim is not None and (found["value"] <= aim if what in LESS_IS_BETTER else found["value"] >= aim)
            bound = "at most" if what in LESS_IS_BETTER else "at least"
            verdict = ("reached" if reached else "**not reached**") if aim is not None else ""
            rows.append([what, *_result_cells(found), "" if aim is None else f"{bound} {aim:.2f}: {verdict}"])
        parts.append(_table(["On the test lesions", "Measured", "95 % interval", "Seeds", "Aimed at"], rows))
        parts.append(ledger.provenance_line(about, edition, "full"))
    return "\n\n".join(parts)


def _chosen(name: str, about: Mapping[str, Any], models: Mapping[str, Mapping[str, Any]]) -> str:
    """Which model was chosen, from which, and which could not take part on the machine that it was measured on."""
    competed: list[str] = []
    left_out: list[str] = []
    on_gpu = any("accelerator" in machine for machine in ledger.machines(about))
    for one, model in models.items():
        if name != "strongest_own" or model["weights"] != "pretrained":
            (competed if on_gpu or not model.get("device") else left_out).append(one)
    if competed == [about["model"]]:
        told = f"**{about['model']}**, the only one that could take part: nothing was to be chosen."
    else:
        told = f"Chosen on validation, from {' and '.join(competed)}: **{about['model']}**."
    return told + (f" Left out, for want of a GPU: {', '.join(left_out)}." if left_out else "")


def copied(edition: str = "ham10000") -> str:
    """The five systems as copied, as Markdown: for each size that is recorded, what a random split says of them, what
    unseen lesions say, and what the leak is worth."""
    about = _list_of_systems()
    parts = []
    for size, of_size in about["sizes"].items():
        found = {
            name: held
            for name in about["systems"]
            if (held := ledger.read("results", edition, "full", f"{name}, {size}"))
        }
        if not found:
            continue
        parts.append(f"## {of_size['title']}\n\n{of_size['about']}")
        for metric in about["metrics"]:
            rows = [
                [
                    about["systems"][name]["title"],
                    *_result_cells(held["reports"][f"random split: {metric}"])[:2],
                    *_result_cells(held["reports"][f"unseen lesions: {metric}"])[:2],
                ]
                for name, held in found.items()
            ]
            head = ["System", "Random split", "95 % interval", "Unseen lesions", "95 % interval"]
            parts.append(f"**{metric[0].upper()}{metric[1:]}**:\n\n{_table(head, rows)}")
        for cause, sentence in (
            (
                "other photographs of a lesion flatter",
                "What other photographs of the test lesions are worth, on the same photographs",
            ),
            ("dx_type flatters", "What `dx_type` is worth, on the same unseen lesions"),
        ):
            gains = [
                (name, metric, held["claims"].get(f"{cause} the system ({metric})"))
                for name, held in found.items()
                for metric in about["metrics"]
            ]
            rows = [
                [
                    about["systems"][name]["title"],
                    metric,
                    _alike(gain, "value"),
                    _result_cells(gain)[1],
                    ledger.verdict_over_seeds(gain),
                    ", ".join(_alike({**gain, "value": one["value"]}, "value") for one in gain["seeds"].values()),
                ]
                for name, metric, gain in gains
                if gain
            ]
            if rows:
                head = ["System", "Score", "Gain", "95 % interval", "It flatters", "With each seed"]
                parts.append(f"**{sentence}**:\n\n{_table(head, rows)}")
        for name, held in found.items():
            line = ledger.provenance_line(held["provenance"], edition, size)
            parts.append(f"{about['systems'][name]['title']}: {line}")
    return "\n\n".join(parts) or "Nothing is recorded yet."


def _list_of_systems() -> dict[str, Any]:
    return tomllib.loads(book_data("systems.toml").read_text(encoding="utf-8"))


def published(file: Path) -> str:
    """What others have published, as Markdown, from `data/published.toml`."""
    numbers = tomllib.loads(file.read_text(encoding="utf-8"))["number"]
    rows = [[n["what"], n["protocol"], n["metric"], n["value"], n["source"]] for n in numbers]
    return _table(["What", "Protocol", "Metric", "Published", "Source"], rows)


def audits() -> str:
    """What `skinbook audit` says of two splits of the lab's table, as Markdown: the widely copied one, and the book's."""
    import tempfile

    from skinbook.audit_given import audit_given, markdown
    from skinbook.data import lab
    from skinbook.splits import lesion_split, random_split

    table = lab.recipe()
    parts = []
    with tempfile.TemporaryDirectory() as folder:
        metadata, file = Path(folder) / "metadata.csv", Path(folder) / "split.csv"
        table.to_csv(metadata, index=False)
        for title, split in (
            ("Photographs shuffled", random_split(table)),
            ("Split by lesion", lesion_split(table, seed=0)),
        ):
            split.parts.rename("part").reset_index().to_csv(file, index=False)
            said = markdown(audit_given([file], metadata)).replace("\n## ", "\n#### ")
            parts.append(f"### {title}\n\n{said.strip()}")
    return "\n\n".join(parts)


def devices() -> str:
    """How far two processes are from one, as Markdown, and two seeds from each other."""
    measured = json.loads((book_data() / "devices.json").read_text(encoding="utf-8"))["networks"]
    rows = [
        [name, *(f"{float(f'{n:.2g}'):.7f}".rstrip("0") for n in (found["farthest"], ALLOWED[name], found["seeds"]))]
        for name, found in measured.items()
    ]
    return _table(["Network", "Farthest from one process", "What the tests allow", "Two seeds, one process"], rows)


def at_scale(bench: Path, images: int = ARCHIVE) -> str:
    """What to expect of so many photographs, as Markdown: sizes from arithmetic, times from the rates in `bench`.

    Parameters
    ----------
    bench : a folder of JSON files that `skinbook bench --to` wrote; each becomes a table. It may be missing.

    Raises
    ------
    SkinbookError
        If a file there is not one that the bench wrote.
    """
    sizes = [[f"{side} × {side}", _size(images * side * side * 3)] for side in SIDES]
    parts = [f"The pixel stores of {images:,} photographs, at three bytes a pixel:"]
    parts.append(_table(["Photograph", "Store on disk"], sizes))
    for file in sorted(bench.glob("*.json")):
        try:
            parts += _expected(json.loads(file.read_text(encoding="utf-8")), images)
        except (ValueError, KeyError, TypeError) as error:
            raise SkinbookError(
                f"{file.name} in {bench.name} is not what `skinbook bench` saves ({error!r}): measure again."
            ) from None
    if len(parts) == 2:
        parts.append("How many hours that takes is not measured yet: `make bench` measures it, on your machine too.")
    return "\n\n".join(parts)


def speed(bench: Path) -> str:
    """How fast training is on each machine that was measured, beside the other ways, as Markdown; `bench` as above."""
    parts = []
    for file in sorted(bench.glob("*.json")):
        found = json.loads(file.read_text(encoding="utf-8"))
        try:
            parts.append(f"**{_machine(found['machine'])}**:")
            parts.append(_ways(found["training"]))
            rest = [part for part in found if part not in ("machine", "training", "company", "chapters")]
            parts += [f"- {line}" for part in rest for line in told(part, found[part])]
            if "chapters" in found:
                parts.append(f"- {_seconds(found['chapters'])}")
            if "company" in found:
                parts.append(_company(found["company"]))
        except (ValueError, KeyError, TypeError) as error:
            raise SkinbookError(
                f"{file.name} in {bench.name} is not what `skinbook bench` saves ({error!r}): measure again."
            ) from None
    text = "\n\n".join(parts) or "Nothing is measured yet: `make bench` measures it, on your machine too."
    return text.replace("\n\n- ", "\n- ").replace("|\n- ", "|\n\n- ")


def _seconds(chapters: Mapping[str, float]) -> str:
    """How long each chapter's test takes, and all together."""
    each = ", ".join(f"{name[:2]}{' (failed)' * ('failed' in name)} {took:.0f}" for name, took in chapters.items())
    return f"seconds that the test of a chapter takes: {each}; together {sum(chapters.values()):.0f}"


def _company(found: Mapping[str, float]) -> str:
    """Photographs a second of a small network, by how long its threads spin, alone and beside busy programs."""
    beside, spins = ([*dict.fromkeys(name.split(", ")[place] for name in found)] for place in (0, 1))
    rows = [
        [place[0].upper() + place[1:], *(_two_digits(found[f"{place}, {spin}"]) for spin in spins)] for place in beside
    ]
    return _table([f"{IN_COMPANY.network}, {IN_COMPANY.side} px, photographs a second", *spins], rows)


def ways() -> str:
    """How far the reports of each chapter move with one seed over threads and instructions, as Markdown."""
    rows = []
    for name in ledger.held("tolerances", "lab", "quick"):
        held = ledger.read("tolerances", "lab", "quick", name)
        of_first = [place for place, run in enumerate(held["runs"]) if run["seed"] == 0]
        first = [held["runs"][place] for place in of_first]
        tried = [
            "as stored" if "stored" in run else f"{run['threads']}{' (AVX2)' * ('instructions' in run)}"
            for run in first
        ]
        moves = []
        for found in held["reports"].values():
            values = [found["values"][place] for place in of_first]
            # Of scores and shares; counts and sizes have no place beside them.
            if all(isinstance(value, float) and abs(value) <= 1 for value in values):
                moves.append(max(values) - min(values))
        changed = sum(len({c["verdicts"][place] for place in of_first}) > 1 for c in held["claims"].values())
        if len(of_first) > 1 and moves:
            numbers = [f"{statistics.median(moves):.4f}", f"{max(moves):.3f}"]
            rows.append(
                [
                    f"[{name[:2]}]({name}.ipynb)",
                    ", ".join(tried),
                    str(len(moves)),
                    *numbers,
                    f"{changed} of {len(held['claims'])}",
                ]
            )
    head = ["Chapter", "Threads", "Shares and scores", "Half move less than", "Farthest move", "Verdicts that change"]
    return _table(head, rows)


def held(file: Path, steady: Path | None = None) -> str:
    """What was tried to break the book and what held, a table for each area, from `make held` and `make steady`.

    file : what the marked tests found. steady : what came of the tests again and again; it may be missing.
    """
    told = json.loads(file.read_text(encoding="utf-8"))
    lines = [
        f"Measured {told['date']} on {told['machine']} with Python {told['python']}, {told['kills']} kills for each "
        f"thing that can be killed: {sum(row['tests'] for row in told['rows'])} tests, {len(told['rows'])} faults."
    ]
    rows = told["rows"]
    if steady is not None and steady.is_file():
        again = json.loads(steady.read_text(encoding="utf-8"))
        rows = rows + again["rows"]
        if any(row["tests"] for row in again["rows"]):
            days = sorted({row.get("date", again["date"]) for row in again["rows"] if row["tests"]})
            lines.append(f"Rounds of tests: {' and '.join(days)} on {again['machine']} with Python {again['python']}.")
    areas: dict[str, list[list[str]]] = {}
    for row in rows:
        measured = "; ".join(row["measured"])
        result = {"held": "held", "failed": "**did not hold**", "skipped": "not tried"}[row["outcome"]]
        areas.setdefault(row["area"], []).append(
            [row["fault"], row["expectation"], f"{result}: {measured}" if measured else result, str(row["tests"])]
        )
    for area, found in areas.items():
        lines += [f"## {area[0].upper()}{area[1:]}", _table(["Fault", "Expected", "Result", "Tests"], found)]
    if (counted := file.with_name("mutants.json")).is_file():
        lines += ["## Mutants", _mutants(json.loads(counted.read_text(encoding="utf-8"))["files"])]
    return "\n\n".join(lines)


def _mutants(files: Mapping[str, Any]) -> str:
    """How many mutants of each module its tests notice, from `make mutants`."""
    ways = ("mutants", "killed", "timed out", "survived")
    rows = [
        [f"`{name}`", *(f"{one[way]:,}" for way in ways), f"{one['share']:.1%}", _counted(name, one)]
        for name, one in files.items()
    ]
    head = ["Module", "Mutants", "Killed", "Timed out", "Survived", "Dead", "Counted"]
    return (
        "Each of these modules was made wrong in one place after another (by cosmic-ray: an operator, a number, a condition, "
        "a decorator, an exception), and its tests were run. A mutant is dead where a test failed, or never ended.\n\n"
        + _table(head, rows)
    )


def _counted(name: str, one: Mapping[str, Any]) -> str:
    """The day, and whether the module is another by now."""
    source = Path(__file__).parent.parent / name
    now = hashlib.blake2b(source.read_bytes(), digest_size=6).hexdigest() if source.is_file() else one["source"]
    return one["date"] if now == one["source"] else f"{one['date']}, before its last change"


def scaling(text: str, bench: Path) -> str:
    """The page on many machines with all that is generated in it."""
    for block, name in (
        (speed(bench), "speed"),
        (ways(), "ways"),
        (devices(), "devices"),
        (at_scale(bench), "scaling"),
    ):
        text = filled(text, block, name)
    return text


def _ways(cases: Sequence[Mapping[str, Any]]) -> str:
    """Photographs a second of every case, the book's rate over those of the other ways, and how far runs lie apart."""
    head = ["Network", "Photographs", "Each second", "÷ limit", "÷ copied", "÷ timm", "Runs differ by"]
    rows = []
    for case in sorted(cases, key=_kind):
        ratio = ratios(case["rates"])
        # Ways with workers were once timed with the start of a short epoch, which flattered the book's.
        cells = [
            f"{ratio[arm]:.2f}" if arm == "limit" or case.get("middle") else "" for arm in ("limit", "copied", "timm")
        ]
        photographs = f"{case['source']}, {case['side']} px, {case['precision']}"
        apart = max(max(case["rates"][arm]) / min(case["rates"][arm]) - 1 for arm in ("limit", "skinbook"))
        rows.append([case["network"], photographs, _two_digits(case["rate"]["skinbook"]), *cells, f"{apart:.0%}"])
    return _table(head, rows)


def _kind(case: Mapping[str, Any]) -> tuple[Any, ...]:
    """By which cases are put in order: precision, source, side, and the networks from small to large."""
    network = NETWORKS.index(case["network"]) if case["network"] in NETWORKS else len(NETWORKS)
    return case["precision"] != "fp32", case["source"] != "lab", case["side"], network


def _machine(about: Mapping[str, Any]) -> str:
    name = about["accelerator"] or f"{about['cores']} cores of {about['processor']}"
    if not about["accelerator"] and "instructions" in about:
        name += f" ({about['instructions']})"
    return f"{name}, torch {about['torch'].split('+')[0]}, measured {about['date']}"


def _expected(found: Mapping[str, Any], images: int) -> list[str]:
    """One machine's rates, and what they make of so many photographs."""
    about, rows, seen = found["machine"], [], set()
    for case in sorted(found["training"], key=_kind):
        kind = (case["network"], case["side"], case["precision"])
        if kind in seen:  # the same from other JPEGs: training reads the store
            continue
        seen.add(kind)
        rate, on_device = case["rate"]["skinbook"], case["device_memory"]["skinbook"]
        memory = _size(case["memory"]["skinbook"] * 2**20) + (f", GPU {_size(on_device * 2**20)}" if on_device else "")
        reads = f"{_size(rate * case['side'] ** 2 * 3)}/s"
        what = [case["network"], f"{case['side']} × {case['side']}", case["precision"]]
        rows.append([*what, f"{_two_digits(rate)}/s", _duration(images / rate), reads, memory])
    parts = [f"**{_machine(about)}**; one epoch is {images:,} photographs:"]
    head = ["Network", "Photograph", "Precision", "Images", "One epoch", "Reads", "Memory"]
    parts.append(_table(head, rows))
    if store := found.get("store"):
        hours = _duration(images / store["images"] * store["store_seconds"])
        parts.append(
            f"Building the store from JPEGs like those measured ({store['images']:,} of HAM10000, to {store['side']} pixels) "
            f"would take {hours} there, once; larger JPEGs take longer."
        )
    return parts


def _two_digits(number: float) -> str:
    return f"{float(f'{number:.2g}'):,.10g}"


def _size(count: float) -> str:
    """Bytes for a reader: 20 GB, 310 MB."""
    unit, name = (1e9, "GB") if count >= 1e9 else (1e6, "MB")
    return f"{_two_digits(count / unit)} {name}"


def _duration(seconds: float) -> str:
    """Seconds for a reader, in minutes up to two hours, then in hours."""
    return f"{_two_digits(seconds / 60)} minutes" if seconds < 7200 else f"{_two_digits(seconds / 3600)} hours"


def _claims(claims: Mapping[str, Any]) -> str:
    """A chapter's claims as a forest plot in a table: every row has its interval drawn on one axis.

    The mark in the middle is what the claim says the value lies above: zero, unless the sentence is followed by another.
    """
    ends = [abs(c[end] - c["above"]) for c in claims.values() for end in ("low", "high") if c[end] is not None]
    reach = max([end for end in ends if end <= WIDEST], default=WIDEST)
    rows = []
    for sentence, found in claims.items():
        limit = f" (above {shown(found['above'])})" if found["above"] else ""
        rows.append([sentence + limit, _interval(found, reach), *_result_cells(found)])
    return _table(["Claim", f"from {-reach:.2g} to {reach:.2g}", "Verdict", "95 % interval", "Seeds"], rows)


def _interval(found: Mapping[str, Any], reach: float) -> str:
    """A value and its interval as a small drawing, on an axis that reaches so far to both sides of the claim's mark."""
    low, value, high, mark = found["low"], found["value"], found["high"], found["above"]
    if low is None or high is None or max(abs(low - mark), abs(high - mark)) > reach:
        return ""
    x = [round(80 + 76 * (at - mark) / reach, 1) for at in (low, value, high)]
    words = f"{_alike(found, 'value')}, between {_alike(found, 'low')} and {_alike(found, 'high')}"
    return (
        f'<svg class="forest" width="160" height="16" viewBox="0 0 160 16" role="img" aria-label="{words}">'
        '<line x1="80" y1="0" x2="80" y2="16" class="zero"/>'
        f'<line x1="{x[0]}" y1="8" x2="{x[2]}" y2="8"/><circle cx="{x[1]}" cy="8" r="4"/></svg>'
    )


def _result_cells(found: Mapping[str, Any]) -> list[str]:
    """Value, interval and number of seeds of a result; a claim's verdict goes before its value."""
    value, low, high = (_alike(found, part) for part in ("value", "low", "high"))
    moves = found["low"] is not None and not found["low"] == found["value"] == found["high"]  # always "mole" does not
    interval = f"{low} to {high}" if moves else ""
    verdict = ledger.verdict_over_seeds(found) if "verdict" in found else ""
    return [" ".join(filter(None, [verdict, value])), interval, str(len(found["seeds"]))]


def _alike(found: Mapping[str, Any], part: str) -> str:
    """One of a result's three numbers, with the decimals that all three need; a count, such as 405.0, as a count."""
    number = found[part]
    if found["low"] is None and isinstance(number, float) and number.is_integer() and abs(number) > 1:
        return shown(int(number))
    return shown(found[part], digits=decimals(found["value"], found["low"], found["high"]))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# One lesson-book lesion of each diagnosis: its key among the lab's examples, and a skin type.
PORTRAITS = {
    "nv": (2, 2),
    "mel": (0, 3),
    "bkl": (8, 1),
    "bcc": (4, 4),
    "ak": (1, 2),
    "scc": (2, 1),
    "vasc": (6, 5),
    "df": (2, 4),
}


def picture(file: Path, side: int = 256) -> Path:
    """Draw the front page's picture, the lab's eight diagnoses, and write it as JPEG; returns `file`."""
    import matplotlib.pyplot as plt

    from skinbook import plots
    from skinbook.data.lab import render_example
    from skinbook.diagnoses import CLASSES, DIAGNOSES

    plots.use_style()
    drawn = [render_example(dx, PORTRAITS[dx][0], side, PORTRAITS[dx][1]).image for dx in CLASSES["lab"]]
    figure = plots.gallery(drawn, [DIAGNOSES[dx].name for dx in CLASSES["lab"]], columns=4)
    figure.set_size_inches(8, 4.5)
    with replaced(file) as partial:
        figure.savefig(partial, format="jpeg", dpi=140, pil_kwargs={"quality": 88})
    plt.close(figure)
    return file
