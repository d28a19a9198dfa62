"""`skinbook train | evaluate | predict`, and `skinbook bundle`: a model made, judged, used, and handed on."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from skinbook import config
from skinbook.config import SkinbookError
from skinbook.files import make_writable
from skinbook.memory import keep_freed_memory

bundle_app = typer.Typer(help="A bundle: what it says of itself, and the same model as ONNX.", no_args_is_help=True)

FOLDER = (
    "The folder of a bundle or of its ONNX export; or one of the book's own small models: ham10000, which has learned from "
    "HAM10000, or lab, from drawn lesions."
)
BundleFolder = Annotated[Path, typer.Option("--bundle", "-b", help=FOLDER)]
OURS = Path("ham10000")  # `predict_files.REAL`, without importing it
Json = Annotated[bool, typer.Option("--json", help="The same as --format json.")]


def train(
    to: Annotated[Path, typer.Option(help="The folder that the bundle is saved in.")],
    edition: Annotated[str, typer.Option(help="Which lesions: lab, ham10000, bcn20000 or dermamnist.")] = "",
    table: Annotated[Path | None, typer.Option(help="Lesions of your own: a table in a known layout (CSV).")] = None,
    images: Annotated[Path | None, typer.Option(help="The folder in or below which their photographs lie.")] = None,
    lesions: Annotated[Path | None, typer.Option(help="A table of image and lesion_id, if --table has none.")] = None,
    network: Annotated[str, typer.Option(help="By timm's name, or mobilenet_v2.")] = "test_resnet",
    weights: Annotated[str, typer.Option(help="none, pretrained or lab (of test_resnet only).")] = "",
    image: Annotated[int, typer.Option(help="Side of the photographs, in pixels.")] = 64,
    epochs: Annotated[int, typer.Option(help="How often each photograph is seen.")] = 12,
    batch_size: Annotated[int, typer.Option(help="Photographs a step.")] = 32,
    learning_rate: Annotated[float, typer.Option(help="The highest; it rises first and falls later.")] = 1e-3,
    seed: Annotated[int, typer.Option(help="Of the training; the split stays.")] = 0,
    sensitivity: Annotated[float, typer.Option(help="What the operating point is to reach on validation.")] = 0.95,
    refuse: Annotated[float, typer.Option(help="The share of validation photographs to refuse as unlike.")] = 0.01,
    checkpoint: Annotated[Path | None, typer.Option(help="Written every epoch; an interrupted run resumes.")] = None,
) -> None:
    """Train a classifier, choose on validation, judge it once on the test lesions, and save a bundle."""
    import torch

    from skinbook import chapter, evaluate_given, train_bundle
    from skinbook.data import catalog

    settings = config.settings()
    torch.set_num_threads(settings.threads)  # as in the chapters, so that results repeat
    keep_freed_memory()
    chapter.repeatable_sums()
    recipe = train_bundle.Recipe(
        network,
        weights or ("lab" if network == "test_resnet" else "pretrained"),
        image,
        epochs,
        batch_size,
        learning_rate,
        seed=seed,
        sensitivity=sensitivity,
        refused=refuse,
    )
    if (table is None) != (images is None):
        raise SkinbookError(
            "Lesions of your own need both: --table with their diagnoses, --images with the photographs."
        )
    if table is not None and images is not None:
        labelled = evaluate_given.read_labelled(table, images, lesions)
        for note in labelled.notes:
            _err(note)
        dataset = evaluate_given.dataset(labelled, str(table))
    else:
        dataset = catalog.load(edition or settings.edition, settings)
    make_writable(to)  # before an hour of training, not after it
    bundle, report = train_bundle.train(
        dataset, recipe, settings.cache, device=chapter.device(), checkpoint=checkpoint, log=_err
    )
    bundle.save(to)
    report.model = f"On the test lesions, which nothing was chosen on. {bundle.about}"
    typer.echo(evaluate_given.shown(report))
    typer.echo(f"Saved in {to}. Try it: skinbook predict PHOTOGRAPHS --bundle {to}")


def evaluate(
    bundle: BundleFolder,
    table: Annotated[
        Path, typer.Option(help="Diagnoses, in a known layout (CSV): HAM10000's, or ISIC's ground truth.")
    ],
    images: Annotated[Path, typer.Option(help="The folder in or below which the photographs lie.")],
    lesions: Annotated[Path | None, typer.Option(help="A table of image and lesion_id, if --table has none.")] = None,
    same: Annotated[list[str] | None, typer.Option(help="A diagnosis that counts as another: ak=akiec.")] = None,
    unseen: Annotated[
        bool, typer.Option("--unseen", help="Leave out what the model was trained or chosen on.")
    ] = False,
    style: Annotated[str, typer.Option("--format", help="text, markdown or json.")] = "text",
    as_json: Json = False,
) -> None:
    """Judge a bundle on labelled photographs. The exit code is 1 when some are missing, or not new to the model."""
    from skinbook import evaluate_given as given
    from skinbook.predict_files import open_model

    style = _style("json" if as_json else style, ("text", "markdown", "json"))
    model = open_model(bundle)
    labelled = given.read_labelled(table, images, lesions)
    report = given.evaluate(model, labelled, given.pairs(same or []), unseen, _device(model))
    typer.echo(json.dumps(report.told(), indent=1) if style == "json" else given.shown(report, style))
    if not report.sound:
        raise typer.Exit(1)


def predict(
    photographs: Annotated[list[str], typer.Argument(help="Files; folders of them; - for a list on standard input.")],
    bundle: BundleFolder = OURS,
    style: Annotated[str, typer.Option("--format", help="text, json or csv.")] = "text",
    as_json: Json = False,
    anyway: Annotated[bool, typer.Option("--anyway", help="Probabilities for what would be refused, too.")] = False,
) -> None:
    """Say what a bundle makes of photographs. The exit code is 1 when one failed or was refused."""
    from skinbook import predict_files as given
    from skinbook.card import DISCLAIMER
    from skinbook.progress import bar

    style = _style("json" if as_json else style, given.STYLES)
    model = given.open_model(bundle)
    files = given.listed(_names(photographs))
    if not files:
        raise SkinbookError("No photograph was named: standard input is empty.")
    if model.limit is None:
        _err("This bundle cannot tell what is not dermoscopy: whatever it is shown gets a diagnosis.")
    counts = {"answered": 0, "refused": 0, "failed": 0}

    def predictions() -> Iterator[given.Prediction]:
        with bar(len(files), "looking at the photographs", shown=not sys.stdout.isatty()) as shown:
            for answer in given.answers(model, files, _device(model)):
                one = given.prediction(model, answer, anyway)
                counts[one.status] += 1
                shown.update(1)
                yield one

    for piece in given.lines(model, predictions(), style):
        sys.stdout.write(piece)
    sys.stdout.flush()
    _err(f"{len(files):,} photographs: " + ", ".join(f"{count:,} {status}" for status, count in counts.items()) + ".")
    typer.echo(DISCLAIMER, err=style != "text")
    if counts["refused"] or counts["failed"]:
        raise typer.Exit(1)


def app(
    bundle: Annotated[Path, typer.Option("--bundle", "-b", help=FOLDER)] = OURS,
    host: Annotated[str, typer.Option(help="127.0.0.1: the page is for this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 for a free one.")] = 8765,
) -> None:
    """Ask a bundle in the browser: drop a photograph on a page of this machine, which keeps nothing (needs Gradio)."""
    from skinbook import predict_files
    from skinbook.app import DRAWN, Server

    ours = str(bundle) == predict_files.LAB and predict_files.is_ours(bundle)
    model = predict_files.open_model(bundle)
    with _ended_by("SIGTERM", "SIGHUP") as serving, Server(model, host, port, DRAWN if ours else "") as server:
        typer.echo(f"Open {server.address} in a browser on this machine. Ctrl+C ends it.")
        sys.stdout.flush()
        serving.append(server)
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()


@contextlib.contextmanager
def _ended_by(*names: str) -> Iterator[list[Any]]:
    """A block that such a signal ends as an exit does, so that what is temporary is removed. Windows lacks some of them.

    In the list that it hands out stands the server, once it serves: that one is asked to end, since an exception in the
    midst of its work could be lost.
    """
    serving: list[Any] = []
    came: list[int] = []

    def leave(number: int, _: object) -> None:
        came.append(number)
        if not serving:
            raise SystemExit(128 + number)
        serving[0].shutdown()

    numbers = [number for name in names if (number := getattr(signal, name, None))]
    # What is ignored, as `nohup` has it, stays so.
    before = {n: held for n in numbers if (held := signal.getsignal(n)) not in (None, signal.SIG_IGN)}
    for number in before:
        signal.signal(number, leave)
    try:
        yield serving
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        raise SystemExit(128 + came[0])


@bundle_app.command("show")
def bundle_show(bundle: Annotated[Path, typer.Argument(help=FOLDER)]) -> None:
    """Check a bundle, and show what it says of itself."""
    from skinbook.predict_files import open_model, told

    model = open_model(bundle)
    about = {**told(model), "image": model.image, "definition": model.definition}
    about |= {"split": getattr(model, "split", ""), "metrics": dict(getattr(model, "metrics", {}))}
    typer.echo(json.dumps(about, indent=1, ensure_ascii=False))


@bundle_app.command("onnx")
def bundle_onnx(
    bundle: Annotated[Path, typer.Argument(help="The folder of a bundle.")],
    to: Annotated[Path, typer.Option(help="The folder for the ONNX file and its card.")],
) -> None:
    """Export a bundle as ONNX, for any ONNX runtime; `skinbook predict --bundle` reads it as well."""
    from skinbook.bundle import Bundle
    from skinbook.predict_files import open_model

    model = open_model(bundle)
    if not isinstance(model, Bundle):
        raise SkinbookError(f"{bundle} is an ONNX export already.")
    file = model.export_onnx(to)
    typer.echo(f"{file} takes photographs as uint8 (n, side, side, 3); onnx.json beside it says how to use it.")


def _names(given: list[str]) -> Iterator[str]:
    for name in given:
        if name == "-":
            if hasattr(sys.stdin, "reconfigure"):
                sys.stdin.reconfigure(errors="surrogateescape")  # as the system hands over names that are no text
            yield from (line.rstrip("\r\n") for line in sys.stdin if line.strip())
        else:
            yield name


def _style(style: str, allowed: tuple[str, ...]) -> str:
    if style not in allowed:
        raise SkinbookError(f"--format is {style!r}; expected {', '.join(allowed[:-1])} or {allowed[-1]}.")
    return style


def _device(model: object) -> str:
    """The best device for a bundle; ONNX Runtime takes the CPU, and torch need not be loaded to find that out."""
    if type(model).__name__ != "Bundle":
        return "cpu"
    from skinbook import chapter

    return chapter.device()


def _err(line: str) -> None:
    typer.echo(line, err=True)
