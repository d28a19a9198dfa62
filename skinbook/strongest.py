"""The strongest models that the book can defend: many are trained, validation chooses, and the test is opened once.

Every model of `data/models.toml` is trained once a seed. What a training leaves is one small file: its scores of the
validation and the test photographs as float16, and where they come from. A model that has its file is not trained again,
so the work can be stopped at any moment and go on elsewhere. The choice (`choose`) never looks at a test score.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
import tomllib
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from skinbook import ledger
from skinbook.batches import Batches
from skinbook.bundle import Bundle, Seen
from skinbook.calibration import temperature_of
from skinbook.config import SkinbookError, book_data, settings, threads_of
from skinbook.data import pixels
from skinbook.data.schema import Dataset
from skinbook.evaluate_given import Report
from skinbook.evaluation import Evaluation, Interval, difference, softmax
from skinbook.files import make_writable, replaced
from skinbook.jobs import carried_out
from skinbook.keyed import key_bits
from skinbook.losses import LogitAdjusted, log_prior
from skinbook.networks import SCRATCH, Backbone, Classifier
from skinbook.reading import one_line
from skinbook.splits import Split, lesion_split
from skinbook.train_bundle import CHANGES, LICENCES, ON, Recipe, choose_operating_point, judged, rows_of
from skinbook.training import fit, predict

T = TypeVar("T")
SINGLE, OWN, ENSEMBLE = "strongest_single", "strongest_own", "strongest_ensemble"
OWN_WEIGHTS = (SCRATCH, "lab backbone")
PARTS = ("validation", "test")
VIEWS = {"one view": False, "four views": True}  # the photograph alone, or the mean with its three mirror images


class NotAtHand(SkinbookError):
    """A model that cannot be trained here, for want of weights or of a device."""


@dataclass(frozen=True)
class Entrant:
    """A model of `data/models.toml`; see there for what the fields mean."""

    name: str
    network: str
    weights: str
    image: int
    epochs: int
    learning_rate: float
    batch_size: int = 32
    weight_decay: float = 0.05
    average: float | None = None
    strength: float = 1.0
    precision: str = "fp32"
    device: str = ""


@dataclass(frozen=True)
class Plan:
    """The models, by what validation chooses (`metric`), how many an ensemble may have, and of each choice its title and
    what was aimed at."""

    entrants: tuple[Entrant, ...]
    metric: str = "macro ROC AUC"
    ensemble: int = 5
    choices: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def title(self, name: str) -> str:
        return self.choices.get(name, {}).get("title", name)


def plan(file: Path | None = None) -> Plan:
    """What `data/models.toml` says.

    Raises
    ------
    SkinbookError
        If it cannot be read, or a model in it has an unknown or a missing field.
    """
    file = file or book_data("models.toml")
    try:
        told = tomllib.loads(file.read_text(encoding="utf-8"))
        entrants = tuple(Entrant(name, **about) for name, about in told.pop("models").items())
        return Plan(entrants, **told)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise SkinbookError(f"{file.name} is not a list of models ({error}). Restore it from git.") from None


def seen(dataset: Dataset, weights: str, what: str = "images") -> list[str]:
    """Fingerprints of what a training sees: the photographs, the masks if `what` says so, the lab's backbone if it is one.

    Other photographs may have the same names: HAM10000's in another size, the lab's of other code.
    """
    ids = tuple(dataset.table["image_id"])
    sources = [dataset.images, *([dataset.masks] if what == "masks" else ())]
    found = [source.fingerprint(list(ids)) for source in sources if source is not None]
    if weights == "lab":
        found.append(hashlib.sha256(book_data("lab_backbone.safetensors").read_bytes()).hexdigest()[:16])
    return found


@dataclass(frozen=True)
class Lesions:
    """What every model learns from and is judged on: the photographs' labels, their lesions, and the frozen split."""

    dataset: Dataset
    split: Split
    labels: np.ndarray
    rows: dict[str, np.ndarray]

    @classmethod
    def of(cls, dataset: Dataset) -> Lesions:
        split = lesion_split(dataset.table, identical=dataset.identical)
        number = {dx: k for k, dx in enumerate(dataset.classes)}
        labels = dataset.table["dx"].map(number).to_numpy(dtype=np.int64)
        return cls(dataset, split, labels, rows_of(dataset, split))

    def seen(self, weights: str, what: str = "images") -> list[str]:
        """What is known of the photographs (or `what="masks"` besides) and of the lab's backbone, for names of files."""
        return seen(self.dataset, weights, what)

    @property
    def prior(self) -> torch.Tensor:
        """Logarithm of each diagnosis's share of the training photographs, float32 (classes,)."""
        return log_prior(self.labels[self.rows["train"]], len(self.dataset.classes))

    def judge(self, part: str, probabilities: np.ndarray) -> Evaluation:
        """An evaluation of probabilities (n, classes) of a part's photographs."""
        rows = self.rows[part]
        lesions = self.dataset.table["lesion_id"].to_numpy(dtype=object)[rows]
        return Evaluation(self.labels[rows], probabilities, lesions, self.dataset.classes)


@dataclass(frozen=True)
class Trained:
    """One model with one seed. scores : by part and view, float (n, classes), its network's logits."""

    entrant: Entrant
    seed: int
    scores: Mapping[tuple[str, str], np.ndarray]
    about: Mapping[str, Any]
    weights: Path


def file_of(entrant: Entrant, seed: int, lesions: Lesions, folder: Path) -> Path:
    """Where a training's scores are kept: its name changes with all that they come from.

    That is the model's fields, the seed, the split, the precision, the photographs, and the lab's backbone if it begins
    with that.
    """
    fields = asdict(entrant) | {"precision": settings().precision or entrant.precision}
    known_by = key_bits(
        json.dumps([fields, seed, lesions.split.fingerprint, *lesions.seen(entrant.weights)], sort_keys=True)
    )
    return folder / f"{key_bits(entrant.name):016x}-{seed}-{known_by:016x}.npz"


def train(
    entrant: Entrant,
    seed: int,
    lesions: Lesions,
    folder: Path,
    cache: Path,
    device: str = "cpu",
    log: Callable[[str], None] | None = None,
) -> Path:
    """Train a model and keep its scores in `folder`; returns their file. What is there already is not done again.

    Its weights lie beside the scores as a safetensors file. An interrupted training goes on after its last epoch.
    """
    kept = file_of(entrant, seed, lesions, folder)
    if kept.exists():
        return kept
    tell = log or (lambda line: None)
    folder.mkdir(parents=True, exist_ok=True)
    images = pixels.build(lesions.dataset, entrant.image, cache).pixels
    torch.manual_seed(seed)
    network = Classifier(Backbone(entrant.network, entrant.weights), len(lesions.dataset.classes))
    came_from = network.backbone.weights
    if entrant.weights == "pretrained" and came_from == SCRATCH:
        raise NotAtHand(f"{entrant.name} is left out: it starts from pretrained weights, and none are at hand.")
    tell(f"weights before: {came_from}")
    shown: dict[str, Any] = {
        "size": entrant.image,
        "mean": network.backbone.mean,
        "std": network.backbone.std,
        "device": device,
        "names": lesions.dataset.table["image_id"].tolist(),
    }
    parts = {part: Batches(images, lesions.labels, lesions.rows[part], 128, **shown) for part in PARTS}
    learn = Batches(
        images,
        lesions.labels,
        lesions.rows["train"],
        entrant.batch_size,
        augment=CHANGES,
        shuffle=True,
        seed=seed,
        **shown,
    )
    checkpoint, clock = kept.with_suffix(".checkpoint"), Clock(kept.with_suffix(".minutes"))

    def after_epoch(line: str) -> None:
        clock.keep()
        tell(line)

    trained = fit(
        network,
        learn,
        parts["validation"],
        epochs=entrant.epochs,
        learning_rate=entrant.learning_rate,
        weight_decay=entrant.weight_decay,
        average=entrant.average,
        loss=LogitAdjusted(lesions.prior, entrant.strength).to(device),
        precision=entrant.precision,
        seed=seed,
        checkpoint=checkpoint,
        log=after_epoch,
        origin=came_from,
    )
    arrays: dict[str, Any] = {
        f"{part}, {view}": predict(network, parts[part], flips=flips).astype(np.float16)
        for part in PARTS
        for view, flips in VIEWS.items()
    }
    about = {
        "entrant": asdict(entrant),
        "precision": trained.precision,
        "seed": seed,
        "split": lesions.split.fingerprint,
        "weights": came_from,
        "mean": list(network.backbone.mean),
        "std": list(network.backbone.std),
        "best_epoch": trained.best_epoch,
        "curve": trained.history.to_dict("list"),
        "minutes": clock.keep(),
        "package": ledger.package_hash(),
        "code": f"{key_bits(json.dumps(asdict(entrant), sort_keys=True)):016x}"[:12],
        **ledger.surroundings(device),
    }
    _save(network, kept.with_suffix(".safetensors"))
    keep(kept, about, arrays)
    for done in (checkpoint, clock.file):
        done.unlink(missing_ok=True)
    return kept


class Clock:
    """Minutes of training, those before an interruption included."""

    def __init__(self, file: Path) -> None:
        self.file, self.started = file, time.monotonic()
        try:
            self.before = float(file.read_text(encoding="utf-8"))
        except (OSError, ValueError):  # none yet, or what a copy that broke off has left
            self.before = 0.0

    def keep(self) -> float:
        minutes = self.before + (time.monotonic() - self.started) / 60
        with replaced(self.file) as partial:
            partial.write_text(f"{minutes:.4f}", encoding="utf-8")
        return minutes


def _save(network: Classifier, file: Path) -> None:
    from safetensors.torch import save

    data = save({key: value.detach().cpu().clone().contiguous() for key, value in network.state_dict().items()})
    with replaced(file) as partial:
        partial.write_bytes(data)


@dataclass(frozen=True)
class Order:
    """One training as a process of its own gets it."""

    entrant: Entrant
    seed: int
    edition: str
    folder: Path
    threads: int
    device: str


def carry_out(order: Order) -> tuple[Path | None, str]:
    """Train as ordered; returns the file of the scores, or None and why there is none."""
    from skinbook.chapter import repeatable_sums
    from skinbook.data import catalog
    from skinbook.memory import keep_freed_memory

    torch.set_num_threads(order.threads)
    keep_freed_memory()
    repeatable_sums()
    about = settings()
    lesions = Lesions.of(catalog.load(order.edition, about))

    def say(line: str) -> None:
        print(f"{order.entrant.name}, seed {order.seed}: {line}", file=sys.stderr, flush=True)

    try:
        if order.entrant.device not in ("", order.device):
            raise NotAtHand(f"{order.entrant.name} is left out: it is for a machine with {order.entrant.device}.")
        return train(order.entrant, order.seed, lesions, order.folder, about.cache, order.device, say), ""
    except NotAtHand as why:
        return None, str(why)


def run(
    edition: str,
    seeds: int = 3,
    recorded: bool = False,
    jobs: int = 1,
    folder: Path | None = None,
    bundle: Path | None = None,
    file: Path | None = None,
    device: str = "cpu",
    tell: Callable[[str], None] = print,
) -> dict[str, dict[int, Chosen]]:
    """Train what is not trained yet, model by model, and choose on validation; with `recorded`, open the test.

    Parameters
    ----------
    seeds : how many of each model. jobs : trainings at a time, each with its share of the cores.
    folder : where scores and weights are kept. file : another list of models than `data/models.toml`.
    bundle : where the strongest model of the book's own weights is saved as a bundle.

    Raises
    ------
    SkinbookError
        If there are no seeds or jobs, or not one of the models could be trained.
    """
    from skinbook.data import catalog

    if seeds < 1 or jobs < 1:
        raise SkinbookError(f"{seeds} seeds and {jobs} jobs: expected at least one of each.")
    if bundle is not None:  # before hours of training, not after them
        make_writable(bundle)
    wanted, about = plan(file), settings()
    folder = folder or about.cache / "strongest" / edition
    lesions = Lesions.of(catalog.load(edition, about))
    threads = threads_of(jobs)
    orders = [Order(e, seed, edition, folder, threads, device) for e in wanted.entrants for seed in range(seeds)]
    kept = []
    for found, why in carried_out(carry_out, orders, jobs):
        if found is None:
            tell(why)
        else:
            kept.append(equally_frequent(load(found), lesions))
    if not kept:
        raise SkinbookError("Not one of the models could be trained here, so there is nothing to choose from.")
    chosen = choose(kept, lesions, wanted)
    for name, of_seed in chosen.items():
        for seed, one in of_seed.items():
            who = " + ".join(f"{m.entrant.name} (seed {m.seed})" for m in one.members)
            number = by_validation(one, lesions, wanted.metric)
            tell(f"{wanted.title(name)}, {seed}: {who}; {wanted.metric} on validation {number:.3f}")
    if recorded:
        for written in record(chosen, lesions, edition):
            tell(f"Recorded in data/results/{written.name}")
    if bundle is not None and OWN not in chosen:
        tell("No model that began with the book's own weights was trained, so no bundle is saved.")
    elif bundle is not None:
        best = max(chosen[OWN].values(), key=lambda one: by_validation(one, lesions, wanted.metric))
        model, report = bundle_of(best.members[0], lesions, about.cache, device, tell)
        model.save(bundle)
        tell(f"Saved in {bundle.name}: {report.model}")
    return chosen


def choose(trained: Sequence[Trained], lesions: Lesions, wanted: Plan) -> dict[str, dict[int, Chosen]]:
    """The three choices, by name and seed: the single model, that of the book's own weights, and the ensemble."""
    own = [one for one in trained if one.about["weights"] in OWN_WEIGHTS]
    found = {
        name: {one.seed: Chosen((one,)) for one in strongest(among, lesions, wanted.metric)}
        for name, among in ((SINGLE, trained), (OWN, own))
        if among
    }
    return {**found, ENSEMBLE: {0: ensemble(trained, lesions, wanted.metric, wanted.ensemble)}}


def load(file: Path) -> Trained:
    """What `train` kept; SkinbookError if the file is damaged."""

    def trained(about: dict[str, Any], arrays: dict[str, np.ndarray]) -> Trained:
        scores = {(part, view): arrays[f"{part}, {view}"] for part in PARTS for view in VIEWS}
        return Trained(Entrant(**about["entrant"]), about["seed"], scores, about, file.with_suffix(".safetensors"))

    return kept_in(file, trained)


def equally_frequent(trained: Trained, lesions: Lesions) -> Trained:
    """A training with scores as for equally frequent classes, which is what choices and reports take.

    The loss takes `strength` times the prior off a network's logits; the rest of the prior is still in them.
    """
    left = 1 - trained.entrant.strength
    if left == 0:
        return trained
    prior = lesions.prior.double().numpy()
    return replace(trained, scores={key: scores - left * prior for key, scores in trained.scores.items()})


def keep(file: Path, about: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Write scores, and where they come from, into one file."""
    with replaced(file) as partial, partial.open("wb") as held:
        np.savez_compressed(held, about=np.frombuffer(json.dumps(about).encode(), np.uint8), **dict(arrays))


def kept_in(file: Path, made_of: Callable[[dict[str, Any], dict[str, np.ndarray]], T]) -> T:
    """What `keep` wrote, as `made_of` makes it of where the scores come from and of the scores, float64.

    Raises
    ------
    SkinbookError
        If the file is damaged.
    """
    try:
        with np.load(file, allow_pickle=False) as held:
            about = json.loads(held["about"].tobytes())
            return made_of(about, {name: held[name].astype(np.float64) for name in held.files if name != "about"})
    except (
        *(OSError, EOFError, ValueError, KeyError, TypeError),
        *(RuntimeError, zipfile.BadZipFile, zlib.error),  # the first of a bit that says it is encrypted
    ) as error:
        raise SkinbookError(
            f"The scores {file} cannot be read ({error}). Delete the file; what it holds is trained anew."
        ) from None


# Choosing, by validation alone


@dataclass(frozen=True)
class Chosen:
    """One answer to the question which is strongest: its members' scores, those of `equally_frequent`, are averaged as
    probabilities."""

    members: tuple[Trained, ...]

    def scores(self, part: str, view: str = "four views") -> np.ndarray:
        """Logits (n, classes) as for equally frequent classes: the logarithm of the members' mean probability."""
        return np.log(np.mean([softmax(member.scores[part, view]) for member in self.members], axis=0))


def by_validation(chosen: Chosen, lesions: Lesions, metric: str) -> float:
    """The number that chooses."""
    return lesions.judge("validation", softmax(chosen.scores("validation"))).value(metric)


def strongest(trained: Sequence[Trained], lesions: Lesions, metric: str) -> list[Trained]:
    """The trainings of that model whose mean over its seeds is the highest on validation, by seed."""
    of_model: dict[str, list[Trained]] = {}
    for one in trained:
        of_model.setdefault(one.entrant.name, []).append(one)

    def mean(found: Iterable[Trained]) -> float:
        return float(np.mean([by_validation(Chosen((one,)), lesions, metric) for one in found]))

    return sorted(max(of_model.values(), key=mean), key=lambda one: one.seed)


def ensemble(trained: Sequence[Trained], lesions: Lesions, metric: str, most: int) -> Chosen:
    """Members taken one by one, each the one that helps most on validation, until none helps or there are `most`.

    Caruana et al. 2004, "Ensemble selection from libraries of models", without taking a member twice.
    """
    members: tuple[Trained, ...] = ()
    best = -np.inf
    while len(members) < most:
        rest = [one for one in trained if one not in members]
        if not rest:
            break
        ranked = {k: by_validation(Chosen((*members, one)), lesions, metric) for k, one in enumerate(rest)}
        first = max(ranked, key=lambda k: ranked[k])
        if ranked[first] <= best:
            break
        members, best = (*members, rest[first]), ranked[first]
    return Chosen(members)


# The test, opened once


def reports(chosen: Chosen, lesions: Lesions) -> dict[str, Interval]:
    """What the test lesions say of a choice.

    A network that learned with the logit adjustment answers as if the diagnoses were equally frequent, which is what
    balanced accuracy and the areas under the curve ask for. With each one's share put back, and a temperature chosen on
    validation, the same scores are calibrated probabilities: they give accuracy, calibration and the malignant area.
    """
    prior = lesions.prior.double().numpy()
    validation = lesions.labels[lesions.rows["validation"]]
    temperature = temperature_of(chosen.scores("validation") + prior, validation)
    equal = lesions.judge("test", softmax(chosen.scores("test")))
    alone = lesions.judge("test", softmax(chosen.scores("test", "one view")))
    calibrated = lesions.judge("test", softmax((chosen.scores("test") + prior) / temperature))
    found = {name: equal.metric(name) for name in ("balanced accuracy", "macro ROC AUC")}
    found |= {name: calibrated.metric(name) for name in ("malignant ROC AUC", "accuracy", "calibration error")}
    found["accuracy, diagnoses held equally frequent"] = equal.metric("accuracy")
    found["balanced accuracy, four views less one"] = difference(equal, alone, "balanced accuracy")
    found["temperature"] = Interval(temperature, np.nan, np.nan)
    for name, row in equal.per_class().iterrows():
        found[f"recall of {name}"] = Interval(row["recall"], row["recall low"], row["recall high"])
    return found


def record(found: Mapping[str, Mapping[int, Chosen]], lesions: Lesions, edition: str) -> list[Path]:
    """Judge the choices on the test and write them into the ledger; returns its files."""
    written = []
    for name, of_seed in found.items():
        runs = {seed: _run(chosen, lesions) for seed, chosen in of_seed.items()}
        entry = ledger.entry(runs, datetime.now(UTC).strftime("%Y-%m-%d"))
        written.append(ledger.write("results", edition, "full", name, entry))
    return written


def _run(chosen: Chosen, lesions: Lesions) -> dict[str, Any]:
    """A choice as `ledger.entry` wants a run."""
    first = chosen.members[0].about
    names = [f"{member.entrant.name} (seed {member.seed})" for member in chosen.members]
    single = len(chosen.members) == 1
    about = {
        **first,
        "code": first["code"] if single else f"{key_bits(' + '.join(names)):016x}"[:12],
        "minutes": sum(member.about["minutes"] for member in chosen.members),
        **{key: ledger.one_or_all(member.about[key] for member in chosen.members) for key in ("hardware", "versions")},
        "package": ", ".join(dict.fromkeys(member.about["package"] for member in chosen.members)),
        "weights": ", ".join(dict.fromkeys(member.about["weights"] for member in chosen.members)),
        "precision": ", ".join(
            dict.fromkeys(member.about.get("precision", member.entrant.precision) for member in chosen.members)
        ),
    }
    return ledger_run(reports(chosen, lesions), chosen.members[0].entrant.name if single else " + ".join(names), about)


def ledger_run(found: Mapping[str, Interval], model: str, about: Mapping[str, Any]) -> dict[str, Any]:
    """Results as `ledger.entry` wants those of a run; about : what a training kept of itself."""
    return {
        "reports": {
            name: {part: None if np.isnan(number) else float(number) for part, number in vars(value).items()}
            for name, value in found.items()
        },
        "claims": {},
        "facts": {
            "hardware": about["hardware"],
            "versions": about["versions"],
            "notes": {"model": model, **{key: about[key] for key in ("split", "weights", "precision")}},
        },
        **{key: about[key] for key in ("code", "package", "minutes")},
    }


def bundle_of(
    trained: Trained, lesions: Lesions, cache: Path, device: str = "cpu", log: Callable[[str], None] | None = None
) -> tuple[Bundle, Report]:
    """A training as a bundle, with the report on the test lesions; `log` is handed what its choices have to tell.

    The shares of the diagnoses are put back into the last layer's bias, so that its softmax is a probability; the
    temperature, the threshold and the limit are chosen on validation.
    """
    from safetensors.torch import load_file

    entrant, dataset = trained.entrant, lesions.dataset
    network = Classifier(Backbone(entrant.network, "none"), len(dataset.classes))
    network.backbone.mean, network.backbone.std = (tuple(trained.about[name]) for name in ("mean", "std"))
    try:
        network.load_state_dict(load_file(trained.weights))
    except Exception as error:  # a damaged file can raise nearly anything
        raise SkinbookError(
            f"The weights {trained.weights} cannot be read ({one_line(str(error))}). Bring them from where they were "
            f"trained, or delete {trained.weights.with_suffix('.npz').name} beside them: then they are trained anew."
        ) from None
    with torch.no_grad():
        network.head.bias.add_(entrant.strength * lesions.prior)
    about = (
        f"{entrant.name}, trained on {ON.get(dataset.edition, dataset.edition)} (weights before: "
        f"{trained.about['weights']}; {entrant.epochs} epochs, seed {trained.seed})."
        + LICENCES.get(dataset.edition, "")
    )
    bundle = Bundle(network, dataset.classes, entrant.image, split=lesions.split.fingerprint, about=about)
    images = pixels.build(dataset, entrant.image, cache).pixels
    choose_operating_point(bundle, images, lesions.labels, lesions.rows, Recipe(), device, log)
    known = np.concatenate([lesions.rows["train"], lesions.rows["validation"]])
    table = dataset.table
    bundle.seen = Seen.of(table["image_id"].iloc[known], table["lesion_id"].iloc[known])
    report = judged(bundle, images, table, lesions.rows["test"], device)
    bundle.metrics = report.measured()
    bundle.network.to("cpu")
    return bundle, report
