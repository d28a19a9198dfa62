"""The command line. Each command imports what it needs, so that `skinbook --help` is there at once."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from skinbook.config import SkinbookError
from skinbook.files import reason
from skinbook.reading import one_line

STORY = """A book on skin lesions that measures its own claims.

\b
What data is there?       skinbook data status
Run a chapter:            skinbook run 03
  on real lesions:        skinbook run 03 --edition ham10000 --resume
  and keep the results:   add --record, then  skinbook ledger status
Train a model:            skinbook train --to my-model
  judge it elsewhere:     skinbook evaluate -b my-model --table T --images D
  ask it:                 skinbook predict photo.jpg more/ -b my-model
  in a browser:           skinbook app
How far does it go?       skinbook strongest --edition ham10000
The five, side by side:   skinbook copied --edition ham10000
Audit anybody's split:    skinbook audit split.csv --table T --images D
How fast is it here?      skinbook bench
Build the pages:          skinbook book build      (or make book, make test)

Nothing but the package is needed: the lab's lesions are generated.

This is a teaching tool, not a medical device.
"""

# What a reader does first stands first.
ORDER = (
    "data",
    "run",
    "train",
    "evaluate",
    "predict",
    "app",
    "strongest",
    "copied",
    "bundle",
    "audit",
    "bench",
    "book",
)


class Ordered(typer.core.TyperGroup):
    """The commands in the order of the story, then all others."""

    def list_commands(self, ctx: Any) -> list[str]:
        names = super().list_commands(ctx)
        return sorted(names, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


app = typer.Typer(
    cls=Ordered,
    help=STORY,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
ledger_app = typer.Typer(
    help="The ledger: results of real lesions, and the pages that show them.", no_args_is_help=True
)
lab_app = typer.Typer(help="The lab: generated lesions.", no_args_is_help=True)


def _mounted() -> typer.Typer:
    """The whole command line, with the parts that live in modules of their own."""
    from skinbook import book, cli_data, cli_models

    if not app.registered_groups:
        for command in (cli_models.train, cli_models.evaluate, cli_models.predict, cli_models.app):
            app.command()(command)
        app.add_typer(cli_data.app, name="data")
        app.add_typer(cli_models.bundle_app, name="bundle")
        app.add_typer(ledger_app, name="ledger")
        app.add_typer(lab_app, name="lab")
        app.add_typer(book.app, name="book")
    return app


Chapters = Annotated[
    list[str] | None, typer.Argument(metavar="[CHAPTERS]...", help="Numbers, names or paths; all when left out.")
]
Edition = Annotated[str, typer.Option(help="Which lesions: lab, ham10000, bcn20000 or dermamnist.")]
Scale = Annotated[str, typer.Option(help="How much computing: quick or full.")]


@app.command("run")
def run_command(
    chapters: Chapters = None,
    edition: Edition = "",
    scale: Scale = "",
    seeds: Annotated[int, typer.Option(help="How many seeds: 0, 1, ...")] = 1,
    record: Annotated[
        bool, typer.Option("--record", help="Write the ledger (and, of three or more seeds, tolerances).")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Keep the runs that are finished already.")] = False,
    jobs: Annotated[int, typer.Option(help="How many seeds at a time, each with its share of the cores.")] = 1,
) -> None:
    """Execute chapters, once a seed, each in a fresh kernel, and show what they report.

    All of them on HAM10000 at full scale begin with the models of `skinbook strongest` and `skinbook copied`, which
    are kept one by one.
    """
    from skinbook import runs

    dials = _dials(edition, scale)
    if not chapters and dials == ("ham10000", "full"):
        strongest_command("ham10000", seeds, record, jobs)
        copied_command(None, "ham10000", None, seeds, record, jobs, None)
    runs.run(chapters or (), *dials, seeds, record, resume, tell=_tell, jobs=jobs)


@app.command("strongest")
def strongest_command(
    edition: Edition = "",
    seeds: Annotated[int, typer.Option(help="How many of each model: 0, 1, ...")] = 3,
    record: Annotated[bool, typer.Option("--record", help="Open the test, and write the ledger.")] = False,
    jobs: Annotated[int, typer.Option(help="How many trainings at a time, each with its share of the cores.")] = 1,
    bundle: Annotated[Path | None, typer.Option(help="Where the strongest of the book's own weights is saved.")] = None,
    models: Annotated[Path | None, typer.Option(help="Another list of models than data/models.toml.")] = None,
    outlines: Annotated[bool, typer.Option(help="Train the U-Net of chapter 08 on all masks, too.")] = True,
) -> None:
    """Train the models of data/models.toml, choose the strongest on validation, and judge it on the test."""
    from skinbook import chapter, runs, strongest, strongest_masks

    edition, _ = _dials(edition, "full")
    if record:  # before hours of training, not after them
        runs.recordable()
    outlined = outlines and not chapter.lacking(("masks",), edition)
    if outlined:
        strongest_masks.precision_of(strongest_masks.Outliner())
    device = chapter.device()
    strongest.run(edition, seeds, record, jobs, bundle=bundle, file=models, device=device, tell=_tell)
    if outlined:
        strongest_masks.run(edition, seeds, record, device=device, tell=_tell)


@app.command("copied")
def copied_command(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[SYSTEMS]...", help="Names of data/systems.toml; all when left out.")
    ] = None,
    edition: Edition = "",
    size: Annotated[
        list[str] | None,
        typer.Option(
            help="full (wants a GPU), small or scratch; several times for several. By the device when left out."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(help="How many of each: 0, 1, ...")] = 3,
    record: Annotated[bool, typer.Option("--record", help="Open the test, and write the ledger.")] = False,
    jobs: Annotated[int, typer.Option(help="How many trainings at a time, each with its share of the cores.")] = 1,
    systems: Annotated[Path | None, typer.Option(help="Another list of systems than data/systems.toml.")] = None,
) -> None:
    """Train the five systems as copied, on a shuffled split and by lesion, and measure what the leak is worth to each."""
    from skinbook import chapter, copied, runs

    edition, _ = _dials(edition, "full")
    if record:  # before hours of training, not after them
        runs.recordable()
    device = chapter.device()
    sizes = size or (["small", "scratch"] if device == "cpu" else ["full"])
    copied.run(edition, sizes, seeds, record, jobs, names or (), file=systems, device=device, tell=_tell)


@app.command("spread")
def spread_command(
    chapters: Chapters = None,
    edition: Edition = "",
    scale: Scale = "",
    seeds: Annotated[int, typer.Option(help="How many seeds: 0, 1, ...")] = 5,
    threads: Annotated[str, typer.Option(help="Numbers of CPU threads; seed 0 runs with each.")] = "1,2,4",
    instructions: Annotated[
        str, typer.Option(help="native, or native,avx2: once more without AVX-512.")
    ] = "native,avx2",
    resume: Annotated[bool, typer.Option(help="Keep the runs that are finished already.")] = True,
) -> None:
    """Measure how far reports move over seeds, threads and instructions, and write the tolerances of the checks."""
    from skinbook import runs

    if not all(count.strip().isdecimal() for count in threads.split(",")):
        raise SkinbookError(f"--threads is {threads!r}; expected whole numbers separated by commas, such as 1,2.")
    counts = [int(count) for count in threads.split(",")]
    kinds = [kind.strip() for kind in instructions.split(",")]
    runs.spread(chapters or (), *_dials(edition, scale), seeds, counts, kinds, resume, tell=_tell)


@app.command("audit")
def audit_command(
    split: Annotated[
        list[str],
        typer.Argument(help="A CSV (image, part); a folder with train/ and test/; or part=list.txt, several."),
    ],
    table: Annotated[
        Path | None, typer.Option(help="Metadata (CSV): lesion_id, diagnosis, and more where it has it.")
    ] = None,
    images: Annotated[Path | None, typer.Option(help="The folder in or below which the images lie.")] = None,
    style: Annotated[str, typer.Option("--format", help="text, markdown or json.")] = "text",
    strict: Annotated[
        bool, typer.Option("--strict", help="Another mix, or a column that gives the label away, counts too.")
    ] = False,
    snippet: Annotated[
        bool, typer.Option("--snippet", help="Print a workflow that audits a project at every push, and stop.")
    ] = False,
) -> None:
    """Audit anybody's split: what stands on both of its sides. The exit code is 1 when it leaks."""
    import json

    from skinbook import audit_given as given

    if style not in ("text", "markdown", "json"):
        raise SkinbookError(f"--format is {style!r}; expected text, markdown or json.")
    if snippet:
        _tell(given.snippet(split, str(table or ""), str(images or "")))
        return
    found = given.audit_given(split, table, images)
    _tell(json.dumps(vars(found), indent=1) if style == "json" else given.shown(found, style))
    if found.leaks or (strict and (found.drift or found.giveaways)):
        raise typer.Exit(1)


@app.command("bench")
def bench_command(
    sources: Annotated[str, typer.Option(help="Photographs: lab, ham10000, separated by commas.")] = "lab",
    sides: Annotated[str, typer.Option(help="Sides in pixels, separated by commas.")] = "64,128,224",
    networks: Annotated[str, typer.Option(help="Networks by timm's names, separated by commas.")] = (
        "test_resnet,mobilenetv3_small_050,resnet18,resnet50"
    ),
    precisions: Annotated[str, typer.Option(help="fp32, bf16, separated by commas.")] = "fp32",
    device: Annotated[str, typer.Option(help="cpu or cuda; the accelerator where there is one.")] = "",
    seconds: Annotated[float, typer.Option(help="About how long one turn of a way lasts.")] = 4.0,
    repeats: Annotated[int, typer.Option(help="Turns that each way takes; the median counts.")] = 7,
    parts: Annotated[
        str,
        typer.Option(
            help="training, augmentation, store, large, grad-cam, waits, company, chapters; separated by commas."
        ),
    ] = "training,augmentation,large,grad-cam,waits",
    to: Annotated[
        Path, typer.Option(help="Where the results are saved, as JSON; parts that are not measured now stay in it.")
    ] = Path("_build/bench.json"),
) -> None:
    """Measure how fast training is, beside the usual loader, timm's loader, and the limit that the network sets."""
    from skinbook import bench, bench_parts, chapter

    asked = [part.strip() for part in parts.split(",")]
    if odd := set(asked) - {"training", *bench_parts.PARTS}:
        known = ", ".join(("training", *bench_parts.PARTS))
        raise SkinbookError(f"{odd.pop()!r} is no part of the bench; choose from {known}.")
    numbers = [side.strip() for side in sides.split(",")]
    if not all(side.isdecimal() and int(side) >= 16 for side in numbers):
        raise SkinbookError(
            f"--sides is {sides!r}; expected whole numbers from 16, separated by commas, such as 64,128."
        )
    listed = [[part.strip() for part in text.split(",")] for text in (sources, networks, precisions)]
    wanted = bench.cases(listed[0], [int(side) for side in numbers], listed[1], listed[2], device or chapter.device())
    measured: dict[str, Any] = {"machine": bench.machine()}
    for part in asked:
        if part == "training":
            measured[part] = bench.training(wanted, seconds, repeats, _tell)
        else:
            measured[part] = bench_parts.PARTS[part]()
            for line in bench_parts.told(part, measured[part]):
                _tell(line)
        bench.save(measured, to)
    _tell(f"Saved as {to}.")


@ledger_app.command("status")
def ledger_status() -> None:
    """List entries whose chapter has changed since they were recorded; the exit code is then 1."""
    from skinbook import runs

    faults = runs.status()
    for fault in faults:
        _tell(fault)
    if faults:
        raise typer.Exit(1)
    _tell("Every entry comes from its chapter's code as it is now.")


@ledger_app.command("refresh")
def ledger_refresh(chapters: Chapters = None) -> None:
    """Re-execute the cells that show the ledger, and store their outputs alone."""
    from skinbook import runs

    if not runs.refresh_ledger(chapters or (), tell=_tell):
        _tell("Every stored cell shows the ledger as it is.")


@lab_app.command("calibrate")
def lab_calibrate(seeds: Annotated[int, typer.Option(help="How many labs: seeds 0, 1, ...")] = 5) -> None:
    """Measure that the lab behaves like the real thing, and record it (takes long)."""
    from skinbook import lab_calibration

    for name, found in lab_calibration.calibrate(seeds)["measurements"].items():
        aim = f"  aim {found['aim'][0]} to {found['aim'][1]}" if "aim" in found else ""
        _tell(f"{name}: {found['mean']:.3f} ± {found['sd']:.3f}{aim}")


@lab_app.command("write")
def lab_write(
    folder: Annotated[Path, typer.Argument(help="Where the files go.")],
    part: Annotated[str, typer.Option(help="Of the book's split: train, validation or test.")] = "test",
    count: Annotated[int, typer.Option(help="So many photographs; 0 for all of the part.")] = 0,
) -> None:
    """Write photographs of the lab as JPEG files with a table in HAM10000's layout, to try a model on."""
    from skinbook import lab_files
    from skinbook.config import settings

    table = lab_files.write(folder, settings().cache, part, count)
    _tell(
        f"{len(table):,} photographs of {table['lesion_id'].nunique():,} lesions, and {lab_files.TABLE}, in {folder}."
    )


def _dials(edition: str, scale: str) -> tuple[str, str]:
    """The edition and scale asked for, or else those of the environment."""
    from skinbook.config import settings

    now = settings()
    return edition or now.edition, scale or now.scale


def _tell(line: str) -> None:
    typer.echo(line)
    sys.stdout.flush()  # a run in the background is followed through its log


def main() -> None:
    """Run a command. What a reader can put right is one sentence and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # A name that is no text, or that a terminal has no letters for, is shown with a backslash and a number.
            stream.reconfigure(errors="backslashreplace")
    try:
        _mounted()()
    except SkinbookError as error:
        typer.echo(f"skinbook: {one_line(str(error))}", err=True)
        sys.exit(2)
    except OSError as error:
        what = f"{error.filename} cannot be read or written" if error.filename else "Reading or writing failed"
        typer.echo(
            f"skinbook: {what} ({reason(error)}). Correct the path, change its permissions, or free some space.",
            err=True,
        )
        if error.filename is None:  # or Python would try to write the rest once more when it ends, and say so
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(2)


if __name__ == "__main__":
    main()
