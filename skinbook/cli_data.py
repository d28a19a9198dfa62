"""`skinbook data status | get | verify`: what is found where, downloads, and every fault of a set at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Optional

import typer

from skinbook import config
from skinbook.config import SkinbookError
from skinbook.reading import one_line

app = typer.Typer(help="Data: what is found where, downloads, and checks.", no_args_is_help=True)

TERMS = {
    "ham10000": "HAM10000 (Tschandl and others 2018) is CC BY-NC 4.0: cite it, and use it for nothing commercial.",
    "bcn20000": "BCN20000 (Hospital Clínic de Barcelona) is CC BY-NC: cite it, and use it for nothing commercial.",
    "dermamnist": "DermaMNIST (Yang and others 2023) is CC BY-NC 4.0: cite it, and use it for nothing commercial.",
}
Root = Annotated[Optional[Path], typer.Option("--root", help="Look in this folder and in no other.")]  # noqa: UP045


@contextmanager
def _one_sentence() -> Iterator[None]:
    try:
        yield
    except SkinbookError as error:
        typer.echo(one_line(str(error)), err=True)
        raise typer.Exit(2) from None


@app.command()
def status(root: Root = None) -> None:
    """Show which editions are at hand, and where."""
    from skinbook.data import catalog

    with _one_sentence():
        for found in catalog.status(config.settings(), root):
            typer.echo(f"{found.edition:<11} {found.summary}")


@app.command()
def get(
    edition: Annotated[str, typer.Argument(help="ham10000, bcn20000 or dermamnist")],
    size: Annotated[int, typer.Option(help="DermaMNIST's images: 28, 64, 128 or 224 px.")] = 64,
    tables_only: Annotated[bool, typer.Option("--tables-only", help="Leave photographs and masks out.")] = False,
    kaggle: Annotated[bool, typer.Option("--kaggle", help="Let Kaggle's own client download its copy.")] = False,
) -> None:
    """Download an edition into the cache; interrupted, the same command goes on where it stopped."""
    from skinbook.data import download

    with _one_sentence():
        settings = config.settings()
        if edition in TERMS:
            typer.echo(TERMS[edition])
        folder = download.get(edition, settings.cache, size=size, tables_only=tables_only, kaggle=kaggle)
        typer.echo(f"{edition} lies in {folder}. `skinbook data verify {edition}` checks every file.")


@app.command()
def verify(edition: Annotated[str, typer.Argument(help="ham10000, bcn20000 or dermamnist")], root: Root = None) -> None:
    """Check the table and decode every image; list all faults, and leave with 1 if there is any."""
    from skinbook.data.verify import verify as check

    with _one_sentence():
        report = check(edition, config.settings(), root)
        for note in report.notes:
            typer.echo(f"note: {note}")
        for fault in report.faults:
            typer.echo(f"fault: {fault}")
        counted = ", ".join(f"{number} {what}" for what, number in report.counts.items())
        typer.echo(f"{edition} in {report.where}: {counted or 'nothing'} checked, {len(report.faults)} faults.")
        if report.faults:
            raise typer.Exit(1)
