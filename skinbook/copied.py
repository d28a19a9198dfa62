"""The five systems as copied: `skinbook copied` trains them and measures what their split is worth.

Each system of `data/systems.toml` is trained three times a seed, and judged once:

    shuffled   on a random split of the photographs, the widely copied way: the number that such a notebook reports
    unseen     on the book's split by lesion
    seen       the same, but other photographs of the test lesions are among the training ones (chapter 03's model A)

*unseen* and *seen* have equally many photographs of every diagnosis, and are compared on the same photographs of the same
lesions: the difference is what the leak is worth. A training that has its file is not done again.
"""

from __future__ import annotations

import json
import sys
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import nn

from skinbook import ledger
from skinbook.augment import Augment
from skinbook.batches import Batches
from skinbook.config import SkinbookError, book_data, settings, threads_of
from skinbook.data import pixels
from skinbook.diagnoses import malignant
from skinbook.evaluation import Evaluation, Interval, difference, softmax
from skinbook.jobs import carried_out
from skinbook.keyed import key_bits
from skinbook.losses import class_weights
from skinbook.networks import SCRATCH, Backbone, Classifier, parameters
from skinbook.splits import Split, leakage_pair, lesion_split, random_split
from skinbook.strongest import Clock, NotAtHand, keep, kept_in, ledger_run, seen
from skinbook.training import fit, predict

KINDS = ("shuffled", "unseen", "seen")
SIZES = ("full", "small", "scratch")
METRICS = ("accuracy", "balanced accuracy", "malignant ROC AUC")  # `data/systems.toml` has them for its page
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@dataclass(frozen=True)
class System:
    """One of the five systems at a size; `data/systems.toml` says what the fields mean."""

    name: str
    title: str
    size: str
    chapter: str
    network: str
    weights: str
    image: int
    epochs: int
    learning_rate: float
    optimizer: str
    schedule: str
    monitor: str
    joint: str = ""
    binary: bool = False
    form: tuple[str, ...] = ()
    beside: str = ""
    weight_decay: float = 0.0
    patience: int | None = None
    augment: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 32
    precision: str = "fp32"

    @property
    def key(self) -> str:
        """Its name in the ledger."""
        return f"{self.name}, {self.size}"


def systems(size: str, file: Path | None = None) -> list[System]:
    """The systems of `data/systems.toml` that come in a size.

    Raises
    ------
    SkinbookError
        If the size is unknown, the list cannot be read, or a system in it has an unknown or a missing field.
    """
    if size not in SIZES:
        raise SkinbookError(f"{size!r} is no size of a copied system; choose from {', '.join(SIZES)}.")
    file = file or book_data("systems.toml")
    try:
        told = tomllib.loads(file.read_text(encoding="utf-8"))["systems"]
        found = []
        for name, about in told.items():
            sizes = {"full": {}} | {key: about.pop(key) for key in SIZES if key in about}
            if size in sizes:
                whole = about | sizes[size]
                found.append(System(name, size=size, **whole | {"form": tuple(whole.get("form", ()))}))
        return found
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise SkinbookError(f"{file.name} is not a list of systems ({error}). Restore it from git.") from None


# The chapters' own networks and their form, word for word: a test compares them with the chapters.


class CNNLSTM(nn.Module):
    """A convolutional network, its features as a sequence of length one, an LSTM, and a linear layer."""

    def __init__(self, backbone, classes, hidden=256):
        super().__init__()
        self.backbone = backbone
        self.lstm = nn.LSTM(backbone.channels, hidden, batch_first=True)
        self.classifier = nn.Linear(hidden, classes)

    def forward(self, x):
        features = self.backbone(x).mean(dim=(2, 3))  # (photographs, channels)
        states, _ = self.lstm(features[:, None])  # (photographs, 1, hidden)
        return self.classifier(states[:, -1])


class CustomCNN(nn.Module):
    """Blocks of convolution and pooling, a mean over places, a linear layer."""

    def __init__(self, classes, widths=(32, 64, 128, 256)):
        super().__init__()
        self.blocks = nn.Sequential()
        for narrow, wide in pairwise((3, *widths)):
            convolution = nn.Conv2d(narrow, wide, 3, padding=1, bias=False)
            block = (convolution, nn.MaxPool2d(2), nn.BatchNorm2d(wide), nn.ReLU())
            self.blocks.append(nn.Sequential(*block))
        self.dropout = nn.Dropout(0.3)
        self.classifier = nn.Linear(widths[-1], classes)

    def forward(self, x):
        features = self.blocks(x).mean(dim=(2, 3))  # (photographs, channels)
        return self.classifier(self.dropout(features))


class MetadataMLP(nn.Sequential):
    """A row of the form (n, inputs) to an embedding (n, 64)."""

    def __init__(self, inputs, width=128, dropout=0.3):
        layers = []
        for before, after in ((inputs, width), (width, width)):
            layers += [nn.Linear(before, after), nn.ReLU()]
            layers += [nn.BatchNorm1d(after), nn.Dropout(dropout)]
        super().__init__(*layers, nn.Linear(width, 64))


class FusionHead(nn.Module):
    """Features of a photograph and a row of the form, side by side."""

    def __init__(self, channels, inputs, classes):
        super().__init__()
        self.metadata = MetadataMLP(inputs)
        self.classifier = nn.Linear(channels + 64, classes)

    def forward(self, pair):
        features, form = pair
        joined = torch.cat([features, self.metadata(form)], dim=1)
        return self.classifier(joined)


class Fusion(nn.Module):
    """The whole system: a backbone in front of the fusion head."""

    def __init__(self, backbone, inputs, classes):
        super().__init__()
        self.backbone = backbone
        self.head = FusionHead(backbone.channels, inputs, classes)

    def forward(self, pair):
        photographs, form = pair
        return self.head((self.backbone(photographs).mean(dim=(2, 3)), form))


def encoded(table, train):
    """The form as numbers: a column for the age, and one for each other word."""
    age = table["age"].where(table["age"] > 0)
    known = age.iloc[train]
    columns = {"age": (age.fillna(known.mean()) - known.mean()) / known.std()}
    for name in ("sex", "site", "dx_type"):
        words = table[name].astype(object).fillna("unknown")
        columns |= pd.get_dummies(words, prefix=name, prefix_sep=": ").to_dict("series")  # type: ignore[arg-type]
    return pd.DataFrame(columns).astype(np.float32)


@dataclass(frozen=True)
class Photographs:
    """What the systems learn from: the table, its frozen split, the shuffled one, and the pair that measures leakage."""

    dataset: Any
    split: Split
    rows: Mapping[tuple[str, str], np.ndarray]

    @classmethod
    def of(cls, dataset: Any) -> Photographs:
        split = lesion_split(dataset.table, identical=dataset.identical)
        shuffled = random_split(dataset.table)
        pair = leakage_pair(dataset.table, split, identical=dataset.identical)
        rows = {("shuffled", part): shuffled.rows(part) for part in ("train", "validation", "test")}
        for kind, train, test in (("unseen", pair.unseen, split.rows("test")), ("seen", pair.seen, pair.test)):
            rows |= {(kind, "train"): train, (kind, "validation"): split.rows("validation"), (kind, "test"): test}
        return cls(dataset, split, rows)

    def classes(self, system: System) -> tuple[str, ...]:
        return ("benign", "malignant") if system.binary else tuple(self.dataset.classes)

    def labels(self, system: System) -> np.ndarray:
        """Positions in `classes`, int64 (photographs,)."""
        dx = self.dataset.table["dx"]
        if system.binary:
            return dx.map(malignant).to_numpy(dtype=np.int64)
        return dx.map(list(self.dataset.classes).index).to_numpy(dtype=np.int64)

    def judge(self, system: System, rows: np.ndarray, logits: np.ndarray) -> Evaluation:
        lesions = self.dataset.table["lesion_id"].to_numpy(dtype=object)[rows]
        return Evaluation(self.labels(system)[rows], softmax(logits), lesions, self.classes(system))


def form_of(system: System, table: pd.DataFrame, train: np.ndarray) -> np.ndarray | None:
    """The form as chapter 06 encodes it, float32 (photographs, inputs), without the columns that the system does not read."""
    if not system.form:
        return None
    form = encoded(table, train)
    return form[[name for name in form if name.split(":")[0] in system.form]].to_numpy()


def network_of(system: System, classes: int, inputs: int = 0) -> tuple[nn.Module, dict[str, Any], str]:
    """The system's network, how its photographs are normalised, and where its weights come from.

    Raises
    ------
    NotAtHand
        If it starts from pretrained weights, and there are none.
    """
    if system.joint == "CustomCNN":
        return CustomCNN(classes), dict(IMAGENET), SCRATCH
    backbone = Backbone(system.network, system.weights)
    if system.weights == "pretrained" and backbone.weights == SCRATCH:
        raise NotAtHand(f"{system.key}: left out, since it starts from pretrained weights and none are at hand.")
    network: nn.Module
    if system.joint == "CNNLSTM":
        network = CNNLSTM(backbone, classes)
    elif system.joint == "Fusion":
        network = Fusion(backbone, inputs, classes)
    else:
        network = Classifier(backbone, classes)
    return network, {"mean": backbone.mean, "std": backbone.std}, backbone.weights


@dataclass(frozen=True)
class Trained:
    """One training. logits : float (n, classes) of the photographs of the kind's test part."""

    system: System
    kind: str
    seed: int
    logits: np.ndarray
    about: Mapping[str, Any]


def _own(system: System) -> dict[str, Any]:
    """What a system is made of: its fields but those that only say where it is shown."""
    return {key: value for key, value in asdict(system).items() if key not in ("title", "beside")}


def code_of(system: System) -> str:
    """Twelve hexadecimal digits that change with what the system is made of."""
    return f"{key_bits(json.dumps(_own(system), sort_keys=True)):016x}"[:12]


def file_of(system: System, kind: str, seed: int, photographs: Photographs, folder: Path) -> Path:
    """Where a training's scores are kept: the name changes with the system, the seed, split, precision and photographs."""
    fields = _own(system) | {"precision": settings().precision or system.precision}
    of = [fields, kind, seed, photographs.split.fingerprint, *seen(photographs.dataset, system.weights)]
    known_by = key_bits(json.dumps(of, sort_keys=True))
    return folder / f"{system.name}-{system.size}-{kind}-{seed}-{known_by:016x}.npz"


def train(
    system: System,
    kind: str,
    seed: int,
    photographs: Photographs,
    folder: Path,
    cache: Path,
    device: str = "cpu",
    log: Callable[[str], None] | None = None,
) -> Path:
    """Train a system and keep its scores of the kind's test photographs, in float16; returns their file.

    What is there already is not done again, and an interrupted training goes on after its last epoch.
    """
    kept = file_of(system, kind, seed, photographs, folder)
    if kept.exists():
        return kept
    folder.mkdir(parents=True, exist_ok=True)
    dataset = photographs.dataset
    rows = {part: photographs.rows[kind, part] for part in ("train", "validation", "test")}
    classes, labels = photographs.classes(system), photographs.labels(system)
    form = form_of(system, dataset.table, rows["train"])
    torch.manual_seed(seed)
    network, normal, weights = network_of(system, len(classes), 0 if form is None else form.shape[1])
    images = pixels.build(dataset, system.image, cache).pixels
    names = dataset.table["image_id"].tolist()
    common: dict[str, Any] = {**normal, "device": device, "names": names, "beside": form}
    learn = Batches(
        images,
        labels,
        rows["train"],
        system.batch_size,
        augment=Augment(**system.augment) if system.augment else None,
        shuffle=True,
        seed=seed,
        **common,
    )
    validation, test = (Batches(images, labels, rows[part], 128, **common) for part in ("validation", "test"))
    weight = class_weights(labels[rows["train"]], len(classes)).to(device) if system.binary else None
    checkpoint, clock = kept.with_suffix(".checkpoint"), Clock(kept.with_suffix(".minutes"))

    def after_epoch(line: str) -> None:
        clock.keep()
        if log:
            log(line)

    done = fit(
        network,
        learn,
        validation,
        epochs=system.epochs,
        learning_rate=system.learning_rate,
        weight_decay=system.weight_decay,
        optimizer=system.optimizer,
        schedule=system.schedule,
        monitor=system.monitor,
        patience=system.patience,
        loss=nn.CrossEntropyLoss(weight=weight),
        precision=system.precision,
        seed=seed,
        checkpoint=checkpoint,
        log=after_epoch,
        origin=weights,
    )
    about = {
        "system": asdict(system),
        "kind": kind,
        "seed": seed,
        "split": photographs.split.fingerprint,
        "weights": weights,
        "parameters": parameters(network),
        "photographs": len(rows["train"]),
        "best_epoch": done.best_epoch,
        "precision": done.precision,
        "curve": done.history.to_dict("list"),
        "minutes": clock.keep(),
        "package": ledger.package_hash(),
        **ledger.surroundings(device),
    }
    logits = predict(network, test).astype(np.float16)
    keep(kept, about, {"logits": logits})
    for finished in (checkpoint, clock.file):
        finished.unlink(missing_ok=True)
    return kept


def load(file: Path) -> Trained:
    """What `train` kept; SkinbookError if the file is damaged."""

    def trained(about: dict[str, Any], arrays: dict[str, np.ndarray]) -> Trained:
        system = System(**about["system"] | {"form": tuple(about["system"]["form"])})
        return Trained(system, about["kind"], about["seed"], arrays["logits"], about)

    return kept_in(file, trained)


@dataclass(frozen=True)
class Order:
    """One training as a process of its own gets it."""

    system: System
    kind: str
    seed: int
    edition: str
    folder: Path
    threads: int
    device: str


def carry_out(order: Order) -> tuple[Order, Path | None, str]:
    """Train as ordered; returns the order, and the file of the scores, or None and why there is none."""
    from skinbook.chapter import repeatable_sums
    from skinbook.data import catalog
    from skinbook.memory import keep_freed_memory

    torch.set_num_threads(order.threads)
    keep_freed_memory()
    repeatable_sums()
    about = settings()
    photographs = Photographs.of(catalog.load(order.edition, about))

    def say(line: str) -> None:
        print(f"{order.system.key}, {order.kind}, seed {order.seed}: {line}", file=sys.stderr, flush=True)

    try:
        arguments = (order.system, order.kind, order.seed, photographs, order.folder, about.cache, order.device, say)
        return order, train(*arguments), ""
    except NotAtHand as why:
        return order, None, str(why)


def run(
    edition: str,
    sizes: Sequence[str] = ("full",),
    seeds: int = 3,
    recorded: bool = False,
    jobs: int = 1,
    only: Sequence[str] = (),
    folder: Path | None = None,
    file: Path | None = None,
    device: str = "cpu",
    tell: Callable[[str], None] = print,
) -> list[str]:
    """Train what is not trained yet, system by system; with `recorded`, judge each as soon as all its seeds are there.

    Parameters
    ----------
    sizes : of SIZES. seeds : how many of each. jobs : trainings at a time, each with its share of the cores.
    only : names of systems; all when empty. folder : where scores are kept. file : another list than `data/systems.toml`.

    Returns
    -------
    The keys of those that are trained whole.

    Raises
    ------
    SkinbookError
        If there are no seeds or jobs, or a name or a size is unknown.
    """
    from skinbook.data import catalog

    if seeds < 1 or jobs < 1:
        raise SkinbookError(f"{seeds} seeds and {jobs} jobs: expected at least one of each.")
    listed = [system for size in sizes for system in systems(size, file)]
    if unknown := [name for name in only if name not in {system.name for system in listed}]:
        known = ", ".join(dict.fromkeys(system.name for system in listed))
        raise SkinbookError(f"{unknown[0]!r} is not a copied system of this size; choose from {known}.")
    wanted, why = [], ""
    for system in listed:
        if only and system.name not in only:
            continue
        if why := left_out(system, edition, device):
            tell(why)
        else:
            wanted.append(system)
    about = settings()
    folder = folder or about.cache / "copied" / edition
    threads = threads_of(jobs)
    photographs = Photographs.of(catalog.load(edition, about))
    orders = [
        Order(system, kind, seed, edition, folder, threads, device)
        for system in wanted
        for seed in range(seeds)
        for kind in KINDS
    ]
    for system in wanted if recorded else ():  # before hours of training, not after them
        if not any((one.name, one.size) == (system.beside, system.size) for one in wanted[: wanted.index(system)]):
            _trained_before(system, seeds, listed, photographs, folder)
    kept: dict[str, dict[tuple[str, int], Trained]] = {}
    whole: list[str] = []
    said: set[str] = set()
    for order, found, why in carried_out(carry_out, orders, jobs):
        if found is None:
            if why not in said:
                tell(why)
            said.add(why)
            continue
        system = order.system
        of_system = kept.setdefault(system.key, {})
        of_system[order.kind, order.seed] = load(found)
        if len(of_system) == seeds * len(KINDS):
            whole.append(system.key)
            tell(f"Trained: {system.key}")
            if recorded:
                others = _trained_before(system, seeds, listed, photographs, folder)
                tell(f"Recorded in data/results/{record(system, of_system, others, photographs, edition).name}")
    if not whole:
        raise SkinbookError("Not one of the systems could be trained here, so there is nothing to judge.")
    return whole


def left_out(system: System, edition: str, device: str) -> str:
    """Why a system is not trained on an edition and a device; empty where it is."""
    from skinbook import chapter

    absent = chapter.lacking(chapter.recipe(system.chapter, edition, "full")["needs"], edition)
    if system.form and absent:
        return f"{system.key}: left out, since {edition} has no {', '.join(sorted(absent))}."
    if system.size == "full" and device == "cpu":
        return f"{system.key}: left out, since it wants a GPU."
    return ""


def _trained_before(
    system: System, seeds: int, listed: Sequence[System], photographs: Photographs, folder: Path
) -> dict[int, Trained]:
    """The system beside which one is judged, trained on unseen lesions, by seed.

    Raises
    ------
    SkinbookError
        If it is not trained yet.
    """
    if not system.beside:
        return {}
    others = [one for one in listed if (one.name, one.size) == (system.beside, system.size)]
    files = {seed: file_of(others[0], "unseen", seed, photographs, folder) for seed in range(seeds)} if others else {}
    if not files or not all(file.exists() for file in files.values()):
        raise SkinbookError(
            f"{system.key} is judged beside {system.beside}, {system.size}, which is not trained: train it first."
        )
    return {seed: load(file) for seed, file in files.items()}


# The test, opened once


RANDOM, UNSEEN = "random split", "unseen lesions"
KNOWN, NEVER = "paired test, other photographs seen", "paired test, lesions never seen"


def judged(own: Mapping[str, Trained], photographs: Photographs) -> dict[str, Evaluation]:
    """What a system's three trainings with one seed, by kind, are judged by."""
    system = own["unseen"].system
    rows = {kind: photographs.rows[kind, "test"] for kind in KINDS}
    place = {row: k for k, row in enumerate(rows["unseen"])}
    paired = [place[row] for row in rows["seen"]]  # the paired photographs among the test lesions'
    return {
        RANDOM: photographs.judge(system, rows["shuffled"], own["shuffled"].logits),
        UNSEEN: photographs.judge(system, rows["unseen"], own["unseen"].logits),
        KNOWN: photographs.judge(system, rows["seen"], own["seen"].logits),
        NEVER: photographs.judge(system, rows["seen"], own["unseen"].logits[paired]),
    }


def known_as(metric: str, system: System) -> str:
    """Of two classes, the macro area is that of the malignant."""
    return "macro ROC AUC" if system.binary and metric == "malignant ROC AUC" else metric


def reports(own: Mapping[str, Trained], photographs: Photographs) -> dict[str, Interval]:
    """What the test photographs say of a system with one seed. own : its three trainings, by kind."""
    system, found = own["unseen"].system, judged(own, photographs)
    counts = {
        "parameters": own["unseen"].about["parameters"],
        "photographs that it trains with": own["unseen"].about["photographs"],
        "photographs in the paired test": len(found[NEVER].labels),
    }
    return {
        **{name: Interval(float(number), np.nan, np.nan) for name, number in counts.items()},
        **{f"{name}: {m}": of.metric(known_as(m, system)) for m in METRICS for name, of in found.items()},
        **{f"the leak: {m}": difference(found[KNOWN], found[NEVER], known_as(m, system)) for m in METRICS},
    }


def gains(own: Mapping[str, Trained], other: Trained | None, photographs: Photographs) -> dict[str, Interval]:
    """What the traps are worth to a system, with one seed; intervals over lesions.

    Parameters
    ----------
    own : the three trainings by kind. other : the same system with `dx_type` on its form, trained on unseen lesions
        with the same seed; or None.
    """
    system = own["unseen"].system
    of = judged(own, photographs)
    pairs = {"other photographs of a lesion flatter": (of[KNOWN], of[NEVER])}
    if other:
        rows = photographs.rows["unseen", "test"]
        pairs["dx_type flatters"] = (photographs.judge(other.system, rows, other.logits), of[UNSEEN])
    return {
        f"{cause} the system ({metric})": difference(*pair, known_as(metric, system))
        for metric in METRICS
        for cause, pair in pairs.items()
    }


def record(
    system: System,
    trained: Mapping[tuple[str, int], Trained],
    others: Mapping[int, Trained],
    photographs: Photographs,
    edition: str,
) -> Path:
    """Judge a system on the test and write it into the ledger; returns its file.

    Parameters
    ----------
    trained : by kind and seed. others : by seed, the system with `dx_type` on its form, trained on unseen lesions.

    Raises
    ------
    SkinbookError
        If the trainings did not start from the same weights, or were not split alike.
    """
    for key in ("weights", "split"):
        if len(different := {str(one.about[key]) for one in (*trained.values(), *others.values())}) > 1:
            raise SkinbookError(
                f"{system.key} was trained with different {key}: {', '.join(sorted(different))}. Only trainings that differ "
                "in their photographs alone can be compared: delete the odd ones' files, and train them anew."
            )
    seeds = sorted({seed for _, seed in trained})
    runs = {}
    for seed in seeds:
        of_seed = {kind: trained[kind, seed] for kind in KINDS}
        about = {
            **of_seed["unseen"].about,
            "code": code_of(system),
            "package": ", ".join(sorted({str(one.about["package"]) for one in of_seed.values()})),
            "precision": ", ".join(
                sorted({one.about.get("precision", one.system.precision) for one in of_seed.values()})
            ),
            "minutes": sum(one.about["minutes"] for one in of_seed.values()),
            **{key: ledger.one_or_all(one.about[key] for one in of_seed.values()) for key in ("hardware", "versions")},
        }
        found = gains(of_seed, others[seed] if others else None, photographs)
        claims = {sentence: {"above": 0.0, **_payload(gain)} for sentence, gain in found.items()}
        runs[seed] = ledger_run(reports(of_seed, photographs), system.title, about) | {"claims": claims}
    entry = ledger.entry(runs, datetime.now(UTC).strftime("%Y-%m-%d"))
    return ledger.write("results", edition, "full", system.key, entry)


def _payload(found: Interval) -> dict[str, Any]:
    """A gain as the ledger has it; without an interval nothing is decided."""
    numbers = {part: None if np.isnan(number) else float(number) for part, number in vars(found).items()}
    known = numbers["low"] is not None and numbers["high"] is not None
    return {"verdict": ledger.verdict(found.low, found.high) if known else ledger.UNDECIDED, **numbers}
