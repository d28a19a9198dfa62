"""Executing chapters: over seeds for the ledger, over seeds and threads for tolerances, and the ledger's cells alone.

Every run of a chapter leaves a fragment (what it said, and where that comes from) and the executed notebook under
`_build`, so that work which was interrupted can go on where it stopped.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from skinbook import chapter, ledger
from skinbook.book import HOME, chapters
from skinbook.config import EDITIONS, SCALES, SkinbookError, book_data, cores, threads_of
from skinbook.files import reason, replaced
from skinbook.progress import bar
from skinbook.rounding import shown

# What keeps torch, oneDNN, MKL and OpenBLAS from using more of a processor than AVX2.
INSTRUCTIONS: dict[str, dict[str, str]] = {
    "native": {},
    "avx2": {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
    },
}
Tell = Callable[[str], None]
Done = TypeVar("Done")
# Runs side by side hash sources; CPython 3.11 fails now and then when two threads parse at once (SystemError, "AST
# constructor recursion depth mismatch").
PARSING = threading.Lock()
UNDER_WAY: set[Any] = set()  # nbclient's clients that execute a notebook now
FACTS_CELL = "from skinbook import chapter as _chapter\n\n_chapter.facts()"


def built(home: Path = HOME) -> Path:
    """Where runs are kept: in the checkout, or (with the package installed from a wheel) in the folder one is in."""
    return (home if (home / "_toc.yml").is_file() else Path.cwd()) / "_build"


def notebooks(names: Sequence[str] = (), home: Path = HOME) -> list[Path]:
    """The notebooks of chapters given by number (03), name (03_cnn_lstm) or path; all chapters when none is given.

    Raises
    ------
    SkinbookError
        If something named is no chapter, or has no notebook.
    """
    paths = [Path(name) for name in names if name.endswith(".ipynb")]
    others = [name for name in names if not name.endswith(".ipynb")]
    if others or not paths:
        paths += [home / "chapters" / f"{name}.ipynb" for name in chapters(home, others)]
    for path in paths:
        if not path.is_file():
            raise SkinbookError(f"There is no notebook {path}. Correct the name, or run `make pair`.")
    if not paths:
        raise SkinbookError(f"There are no chapters in {home / 'chapters'}. Name a notebook by its path.")
    return sorted(set(paths))


def read(notebook: Path) -> Any:
    """A notebook; SkinbookError if the file is none."""
    import nbformat

    try:
        return nbformat.read(notebook, as_version=4)
    except (OSError, ValueError, nbformat.reader.NotJSONError) as error:
        raise SkinbookError(f"{notebook} cannot be read as a notebook ({error}). Restore it.") from None


def code_of(notebook: Path, edition: str, scale: str) -> str:
    """The hash of a chapter's code and of its recipe at these settings."""
    about = chapter.recipe(notebook.stem, edition, scale)
    return ledger.code_hash(read(notebook)["cells"], vars(about["recipe"]))


# One execution


def execute(cells: Any, folder: Path, environment: Mapping[str, str], label: str) -> None:
    """Run every cell of a notebook in a fresh kernel of this Python, in `folder`; outputs are stored in `cells`.

    Raises
    ------
    SkinbookError
        Naming the cell that failed and its error; the outputs so far are kept in `cells`.
    """
    from ipykernel.kernelspec import RESOURCES, get_kernel_dict
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, DeadKernelError

    class ThisPython(KernelSpecManager):
        """Gives the Python that runs this, whatever kernels the user has installed under the same name."""

        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            return KernelSpec(resource_dir=RESOURCES, **get_kernel_dict())

    class Kernel(AsyncKernelManager):
        def _kernel_spec_manager_default(self) -> KernelSpecManager:
            return ThisPython(parent=self)

    now = {"cell": 0}
    with bar(len(cells["cells"]), label, unit="cell") as steps:

        def started(cell: Any, cell_index: int) -> None:
            steps.update(cell_index - now["cell"])
            now["cell"] = cell_index

        client = NotebookClient(
            cells,
            timeout=None,
            kernel_manager_class=Kernel,
            record_timing=False,
            extra_arguments=["--log-level=ERROR"],
            resources={"metadata": {"path": str(folder)}},
            on_cell_start=started,
        )
        UNDER_WAY.add(client)
        try:
            client.execute(env=dict(environment))
        except CellExecutionError as error:
            reason = f"{error.ename}: {error.evalue}"
        except (DeadKernelError, AssertionError):  # nbclient asserts a living kernel while it clears a dead one away
            reason = "the kernel died, perhaps for want of memory"
        else:
            return
        finally:
            UNDER_WAY.discard(client)
    raise SkinbookError(f"{label}: cell {now['cell'] + 1} of {len(cells['cells'])} failed ({reason}).")


def fragment(
    notebook: Path,
    folder: Path,
    environment: Mapping[str, str],
    resume: bool,
    tell: Tell,
    also: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """What one run of a chapter says, from `folder` if it is there and `resume`, else by running it.

    Parameters
    ----------
    environment : the settings of this run: `SKINBOOK_EDITION`, `SKINBOOK_SCALE`, `SKINBOOK_SEED`, `SKINBOOK_THREADS`.
    also : more variables for the kernel, which are no part of what the run is known by.
    """
    import nbformat

    name = notebook.stem
    edition, scale = environment["SKINBOOK_EDITION"], environment["SKINBOOK_SCALE"]
    with PARSING:
        code, package = code_of(notebook, edition, scale), ledger.package_hash()
    settings = {k: v for k, v in environment.items() if k not in ("SKINBOOK_EDITION", "SKINBOOK_SCALE")}
    run = {k.removeprefix("SKINBOOK_").lower(): int(v) if v.isdigit() else v for k, v in settings.items()}
    label = f"{name} on {edition}-{scale}, " + ", ".join(f"{key} {value}" for key, value in run.items())
    stem = "-".join(f"{key}-{value}" for key, value in run.items())
    kept = folder / f"{edition}-{scale}" / name / f"{stem}-{code}.json"
    if resume and kept.is_file():
        try:
            found = json.loads(kept.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise SkinbookError(f"{kept} cannot be read ({error}). Remove it; that run is made anew.") from None
        other = " (made by another version of the package: without --resume it is run anew)"
        tell(f"{label}: already there{other if found['package'] != package else ''}")
        return found
    cells = read(notebook)
    cells.cells.append(nbformat.v4.new_code_cell(FACTS_CELL))
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)  # before an hour of work, not after it
    except OSError as error:
        raise SkinbookError(
            f"{kept.parent} cannot be made a folder ({reason(error)}). Move what stands in its way, or free some space."
        ) from None
    started = time.monotonic()
    tell(f"{label}: running")
    try:
        execute(cells, notebook.parent, {**os.environ, **environment, **(also or {})}, label)
    finally:
        last = cells.cells.pop()
        with replaced(kept.with_suffix(".ipynb")) as partial:
            partial.write_text(nbformat.writes(cells), encoding="utf-8")
    minutes = (time.monotonic() - started) / 60
    found = {
        "chapter": name,
        "edition": edition,
        "scale": scale,
        "run": run,
        "code": code,
        "package": package,
        "minutes": minutes,
        "facts": ledger.payloads(last.outputs, ledger.FACTS)[0],
        **ledger.said(cells.cells),
    }
    with replaced(kept) as partial:
        partial.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    tell(f"{label}: {minutes:.1f} minutes")
    return found


def _side_by_side(work: Callable[[int], Done], seeds: Iterable[int], jobs: int, tell: Tell) -> list[Done]:
    """What `work` returns for each of the seeds, in their order, `jobs` at a time.

    When one of them fails, or Ctrl+C comes, it is over at once: those that wait are not begun, and the kernels under way
    are ended. What is finished has been kept by then.
    """
    with ThreadPoolExecutor(jobs) as pool:
        asked = [pool.submit(work, seed) for seed in seeds]
        try:
            for one in as_completed(asked):
                one.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            broken_off = [one for one in asked if one.cancelled() or not one.done()]
            while left := [one for one in asked if not one.done()]:
                _end_kernels()  # again and again, since one may be about to begin
                wait(left, timeout=0.1)
            if broken_off:
                tell("All other seeds were broken off, too. Those that are finished are kept for --resume.")
            raise
    return [one.result() for one in asked]


def _end_kernels() -> None:
    """Kill the kernels under way: they have sessions of their own, so that Ctrl+C does not reach them."""
    for client in list(UNDER_WAY):
        manager = client.km
        if manager is not None and manager.provisioner is not None:
            with suppress(AttributeError):  # its process may be gone while this is about it
                asyncio.run(manager.provisioner.kill())


def _in_turn(names: Sequence[str], edition: str, scale: str, home: Path, tell: Tell) -> Iterable[Path]:
    """The notebooks of the chapters that an edition has what it takes for; the others are left out by name."""
    if edition not in EDITIONS or scale not in SCALES:
        raise SkinbookError(
            f"{edition}-{scale} is not an edition and a scale: "
            f"choose from {', '.join(EDITIONS)} and from {', '.join(SCALES)}."
        )
    for notebook in notebooks(names, home):
        absent = chapter.lacking(chapter.recipe(notebook.stem, edition, scale)["needs"], edition)
        if absent:
            tell(f"Left out: {chapter.left_out(notebook.stem, edition, absent)}")
        else:
            yield notebook


def _enough(count: int, what: str, least: int = 1) -> int:
    if count < least:
        raise SkinbookError(f"{what} is {count}; expected a whole number of at least {least}.")
    return count


def recordable(home: Path = HOME) -> None:
    """SkinbookError where results would be written into an installed package, not into a checkout."""
    if book_data().resolve() != (home / "data").resolve():
        raise SkinbookError(
            "Results are recorded in a checkout of the book, and this package is installed from a wheel."
        )


# Over seeds, and over threads


def run(
    names: Sequence[str] = (),
    edition: str = "lab",
    scale: str = "quick",
    seeds: int = 1,
    record: bool = False,
    resume: bool = False,
    home: Path = HOME,
    tell: Tell = print,
    jobs: int = 1,
) -> dict[str, dict[str, Any]]:
    """Execute chapters once a seed (0, 1, ...); with `record`, write ledger and (of three or more) tolerances.

    With more than one of `jobs`, that many seeds run at a time, each with its share of the cores: small networks
    leave a second core half idle, so that two seeds side by side are done sooner than one after the other.

    Returns
    -------
    The ledger's entry of each chapter.

    Raises
    ------
    SkinbookError
        If a chapter fails, or its seeds don't say the same things. What was finished is kept for `resume`, as it is after
        Ctrl+C.
    """
    if record:
        recordable(home)
    entries = {}
    environment = {"SKINBOOK_EDITION": edition, "SKINBOOK_SCALE": scale}
    for notebook in _in_turn(names, edition, scale, home, tell):
        also = {}
        if _enough(jobs, "The number of jobs") > 1:
            share = str(threads_of(jobs))
            also = {"SKINBOOK_THREADS": share, "OMP_NUM_THREADS": share}

        def one(seed: int, notebook: Path = notebook, also: Mapping[str, str] = also) -> dict[str, Any]:
            known_by = {**environment, "SKINBOOK_SEED": str(seed)}
            return fragment(notebook, built(home) / "runs", known_by, resume, tell, also)

        of_seed = range(_enough(seeds, "The number of seeds"))
        done = dict(zip(of_seed, _side_by_side(one, of_seed, jobs, tell), strict=True))
        name = notebook.stem
        entries[name] = ledger.entry(done, datetime.now(UTC).strftime("%Y-%m-%d"))
        for line in summary(entries[name]):
            tell(line)
        if record:
            file = ledger.write("results", edition, scale, name, entries[name])
            tell(f"Recorded {name} in data/results/{file.name}")
            if seeds >= ledger.LEAST_SEEDS:
                _write_tolerances(list(done.values()), edition, scale, name, tell)
            else:
                where = f"{name} on {edition}-{scale}"
                then = f"the checks of {where} compare exactly (to {ledger.EXACT})"
                if name in ledger.held("tolerances", edition, scale):
                    then = f"those of {where} stay as they are"
                tell(
                    f"{seeds} seed{'s' if seeds > 1 else ''} cannot measure tolerances, {ledger.LEAST_SEEDS} can: {then}."
                )
    return entries


def spread(
    names: Sequence[str] = (),
    edition: str = "lab",
    scale: str = "quick",
    seeds: int = 5,
    threads: Sequence[int] = (1, 2, 4),
    instructions: Sequence[str] = ("native", "avx2"),
    resume: bool = True,
    home: Path = HOME,
    tell: Tell = print,
) -> None:
    """Execute chapters with every seed, the first also in other ways, and write how far each report moves.

    Seed 0 is that of the stored outputs. It alone is executed with the other numbers of threads, and (for "avx2" among
    the instructions, on x86) once more as a processor without AVX-512 would.

    Raises
    ------
    SkinbookError
        If there are fewer than three seeds, of which no tolerance can be measured, or a chapter fails.
    """
    recordable(home)
    _enough(seeds, "The number of seeds", ledger.LEAST_SEEDS)
    for notebook in _in_turn(names, edition, scale, home, tell):
        done: list[dict[str, Any]] = []
        for place, (count, kind) in enumerate(_ways(threads, instructions)):

            def one(seed: int, count: int = count, kind: str = kind, notebook: Path = notebook) -> dict[str, Any]:
                known_by = {
                    "SKINBOOK_EDITION": edition,
                    "SKINBOOK_SCALE": scale,
                    "SKINBOOK_SEED": str(seed),
                    "SKINBOOK_THREADS": str(count),
                    **({"SKINBOOK_INSTRUCTIONS": kind} if kind != "native" else {}),
                }
                also = {"OMP_NUM_THREADS": str(count), **INSTRUCTIONS[kind]}
                return fragment(notebook, built(home) / "spread", known_by, resume, tell, also)

            # As many at a time as have their cores to themselves.
            jobs = max(1, cores() // _enough(count, "The number of threads"))
            done += _side_by_side(one, range(seeds) if place == 0 else [0], jobs, tell)
        if (edition, scale) == ("lab", "quick") and (stored := _stored(notebook, done[0])):
            done.append(stored)
        _write_tolerances(done, edition, scale, notebook.stem, tell)


def _stored(notebook: Path, other: Mapping[str, Any]) -> dict[str, Any] | None:
    """The outputs that the notebook holds, as one more run of seed 0: they may be of another machine, and count.

    None where they are not of this code, which then says other things.
    """
    found = ledger.said(read(notebook).cells)
    if any(found[kind].keys() != other[kind].keys() for kind in ("reports", "claims")):
        return None
    return {"code": other["code"], "run": {"seed": 0, "stored": 1}, **found}


def _ways(threads: Sequence[int], instructions: Sequence[str]) -> list[tuple[int, str]]:
    """The ways to execute a chapter: every number of threads with the processor's own instructions, the first with fewer.

    A processor that has nothing beyond AVX2 takes every number of threads with that: its own would be the same under
    another name, and what its runs are is said.
    """
    if odd := sorted(set(instructions) - set(INSTRUCTIONS)):
        raise SkinbookError(f"{odd[0]!r} is no set of instructions; choose from {', '.join(INSTRUCTIONS)}.")
    x86 = platform.machine() in ("x86_64", "AMD64")
    if x86 and "avx2" in instructions and _widest() == "AVX2":
        return [(count, "avx2") for count in threads]
    here = [kind for kind in instructions if kind == "native" or x86]
    return [(count, kind) for kind in here for count in (threads if kind == "native" else threads[:1])]


def _widest() -> str:
    """The widest instructions of this processor that torch uses: "AVX512", "AVX2" or "DEFAULT" on x86."""
    import torch

    return torch.backends.cpu.get_cpu_capability()


def _write_tolerances(done: list[dict[str, Any]], edition: str, scale: str, name: str, tell: Tell) -> None:
    measured = ledger.tolerances(done)
    file = ledger.write("tolerances", edition, scale, name, measured)
    tell(f"Tolerances of {name}, from {len(done)} runs, in data/tolerances/{file.name}")
    seeds = len({found["run"]["seed"] for found in done})
    for report, about in measured["reports"].items():
        if about["n"] < seeds:
            then = "Its tolerance means little" if about["n"] >= ledger.LEAST_SEEDS else "It is compared exactly"
            tell(f"  !! {report}: only {about['n']} of {seeds} seeds give a number. {then}.")
    for sentence, about in measured["claims"].items():
        if about["varies"]:
            counts = ", ".join(f"{about['verdicts'].count(v)} × {v}" for v in dict.fromkeys(about["verdicts"]))
            tell(f"  !! THE CLAIM VARIES from run to run: {sentence!r} ({counts}). It may not be written as a finding.")


def summary(entry: Mapping[str, Any]) -> list[str]:
    """An entry's results, a line each, for a terminal."""
    reports = [(n, shown(r["value"], r["low"], r["high"])) for n, r in entry["reports"].items()]
    claims = [(n, f"{c['verdict']} {shown(c['value'], c['low'], c['high'])}") for n, c in entry["claims"].items()]
    return [f"  {name}: {text}" for name, text in reports + claims]


# The ledger's own cells


def status(home: Path = HOME, kinds: Sequence[str] = ("results", "tolerances")) -> list[str]:
    """Sentences on entries of the ledger, and on tolerances, whose chapter has other code or another recipe now."""
    faults = []
    for kind in kinds:
        remedy = "skinbook run" if kind == "results" else "skinbook spread"
        for file in sorted(book_data(kind).glob("*.json")):
            edition, _, scale = file.stem.rpartition("-")
            for name in ledger.held(kind, edition, scale):
                if name.startswith("strongest_"):
                    continue  # of trainings, not of a chapter: see `skinbook.strongest`
                if name.startswith("copied_"):
                    faults += _of_a_system(file, edition, name)
                    continue
                notebook = home / "chapters" / f"{name}.ipynb"
                held = ledger.read(kind, edition, scale, name)
                code = held["provenance"]["code"] if kind == "results" else held["code"]
                options = f"{name} --edition {edition} --scale {scale}" + (" --record" if kind == "results" else "")
                if not notebook.is_file():
                    faults.append(
                        f"data/{kind}/{file.name} holds {name}, and there is no such chapter: remove the entry."
                    )
                elif code_of(notebook, edition, scale) != code:
                    faults.append(
                        f"data/{kind}/{file.name} holds {name} as it was before its code or recipe changed: "
                        f"run `{remedy} {options}`."
                    )
    return faults


def _of_a_system(file: Path, edition: str, key: str) -> list[str]:
    """A sentence, if an entry of `skinbook copied` is not of the system as `data/systems.toml` has it now."""
    from skinbook import copied

    name, _, size = key.partition(", ")
    now = {system.name: copied.code_of(system) for system in copied.systems(size)} if size in copied.SIZES else {}
    held = ledger.read("results", edition, "full", key).get("provenance", {}).get("code")
    if held and now.get(name) == held:
        return []
    return [
        f"data/results/{file.name} holds {key} as it was before data/systems.toml changed: "
        f"run `skinbook copied {name} --edition {edition} --size {size} --record`, or remove the entry."
    ]


def refresh_ledger(names: Sequence[str] = (), home: Path = HOME, tell: Tell = print) -> list[Path]:
    """Re-execute the cells tagged `ledger`, with the setup cell before them, and store their outputs alone.

    Everything else in the notebook's file stays as it is, byte for byte. Returns the notebooks that changed.

    Raises
    ------
    SkinbookError
        If such a cell fails, or the file is not in the form that `make pair` writes.
    """
    import nbformat

    changed = []
    for notebook in notebooks(names, home):
        text = notebook.read_text(encoding="utf-8")
        cells = read(notebook)
        end = text[len(text.rstrip()) :]
        if nbformat.writes(cells).rstrip() + end != text:
            raise SkinbookError(f"{notebook} is not in the form that `make pair` writes: run that first.")
        wanted = [cell for cell in cells.cells if _tagged(cell, "ledger")]
        if not wanted:
            continue
        part = nbformat.from_dict({**cells, "cells": [c for c in cells.cells if _tagged(c, "setup")] + wanted})
        part = nbformat.from_dict(json.loads(json.dumps(part)))
        label = f"{notebook.stem}, cells of the ledger (they may use only what the setup cell defines)"
        execute(part, notebook.parent, lab_environment(), label)
        code = [cell for cell in cells.cells if cell.cell_type == "code"]
        for cell, done in zip(wanted, part.cells[-len(wanted) :], strict=True):
            # Its number in the whole chapter; a cell whose source changed has lost its own.
            cell.execution_count = 1 + next(place for place, other in enumerate(code) if other is cell)
            cell.outputs = done.outputs
            for output in cell.outputs:
                if output.output_type == "execute_result":
                    output.execution_count = cell.execution_count
        fresh = nbformat.writes(cells).rstrip() + end
        if fresh != text:
            with replaced(notebook) as partial:
                partial.write_text(fresh, encoding="utf-8")
            changed.append(notebook)
            tell(f"changed {notebook.name}")
    return changed


def lab_environment() -> dict[str, str]:
    """The environment in which the outputs in git are made: lab, quick, every other setting at its default."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("SKINBOOK_") or k == "SKINBOOK_CACHE"}
    return {**kept, "SKINBOOK_EDITION": "lab", "SKINBOOK_SCALE": "quick", "HF_HUB_OFFLINE": "1"}


def _tagged(cell: Any, tag: str) -> bool:
    return cell.cell_type == "code" and tag in cell.metadata.get("tags", ())
