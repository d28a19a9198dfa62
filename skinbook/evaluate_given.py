"""A model judged on anybody's labelled photographs: `skinbook evaluate --bundle B --table T --images D`.

Diagnoses are matched by their names, never by the position of a column. Known layouts are HAM10000's tables, BCN20000's,
and the ground truth of the ISIC challenges with a column of zeros and ones for each diagnosis (ISIC 2018 Task 3, its
test set among them, and ISIC 2019). Lesions come from the table, or from one of their own; without any, each photograph
counts as a lesion of its own, and the report says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from skinbook.audit_given import IMAGE_COLUMNS, columns, read_about
from skinbook.card import BINARY, DISCLAIMER, Model, plain
from skinbook.config import SkinbookError
from skinbook.data import locate, tables
from skinbook.data.images import Files
from skinbook.data.schema import Dataset, tidy
from skinbook.diagnoses import DIAGNOSES, malignant
from skinbook.evaluation import METRICS, Evaluation, Interval, interval, roc_auc
from skinbook.predict_files import Answer, answers
from skinbook.progress import bar

NAMED = 5  # so many examples stand in a sentence
# Other names of the diagnoses, as data sets spell them.
SPELLINGS = {
    **{d.name.lower(): code for code, d in DIAGNOSES.items()},
    **{"nevus": "nv", "naevus": "nv", "melanocytic nevi": "nv", "melanocytic nevus": "nv", "dermatofibroma": "df"},
    **{"seborrheic keratosis": "bkl", "benign keratosis-like lesions": "bkl", "pigmented benign keratosis": "bkl"},
    **{"vascular lesions": "vasc", "seborrhoeic keratosis": "bkl"},
}


@dataclass(frozen=True)
class Labelled:
    """Photographs with their diagnoses.

    table : image_id, lesion_id and dx (a code), for the photographs that can be judged. files : image_id to file.
    grouped : whether the lesion_ids are known; else each is its photograph's image_id.
    notes : sentences on what was left out. absent : how many have no file.
    """

    table: pd.DataFrame
    files: Mapping[str, Path]
    grouped: bool
    notes: tuple[str, ...] = ()
    absent: int = 0


def read_labelled(table: Path, folder: Path, lesions: Path | None = None) -> Labelled:
    """Read a table in one of the known layouts, and find its photographs in or below a folder.

    lesions : a table with image and lesion_id, such as ISIC's lesion groupings, where `table` does not have them.

    Raises
    ------
    SkinbookError
        If a table cannot be read, has no diagnosis, lists an image twice, none of its photographs is found, or one may
        be either of two files that differ.
    """
    about = _about(Path(table))
    if "dx" not in about:
        raise SkinbookError(
            f"{table} has no diagnosis: neither a column such as dx or diagnosis, nor one column of 0 and 1 for each. "
            "Give the ground truth as --table; a table that has lesion_id only goes with --lesions."
        )
    notes: list[str] = []
    if lesions is not None:
        grouping = _about(Path(lesions))
        if "lesion_id" not in grouping:
            raise SkinbookError(f"{lesions} has no column lesion_id. Give the table that groups images by lesion.")
        of: dict[str, Any] = {}
        for column in ("image_id", "given"):  # by its folder, where both tables write it alike
            of |= dict(zip(grouping[column].str.lower(), grouping["lesion_id"], strict=True))
        names = zip(about["given"].str.lower(), about["image_id"].str.lower(), strict=True)
        about["lesion_id"] = [of.get(place, of.get(name)) for place, name in names]
    grouped = "lesion_id" in about and about["lesion_id"].notna().any()
    if not grouped:
        about["lesion_id"] = about["image_id"]
        notes.append(
            "No lesion_id is known: each photograph counts as a lesion of its own. Where several show one lesion, the "
            "intervals are too narrow."
        )
    elif alone := int(about["lesion_id"].isna().sum()):
        notes.append(f"{alone:,} photographs without a lesion_id count as lesions of their own.")
        about["lesion_id"] = about["lesion_id"].fillna(about["image_id"])
    given = about["dx"]
    about["dx"] = given.map(lambda text: text if text in DIAGNOSES else SPELLINGS.get(text, text), na_action="ignore")
    about["dx"] = about["dx"].mask(about["dx"] == "unk")
    without = about["dx"].isna()
    strange = ~without & ~about["dx"].isin(DIAGNOSES)
    if without.any():
        notes.append(f"{int(without.sum()):,} photographs without a diagnosis (or with several) are left out.")
    if strange.any():
        counted = given[strange].value_counts()
        shown = ", ".join(f"{name} ({count:,})" for name, count in counted.head(NAMED).items())
        notes.append(
            f"{int(strange.sum()):,} photographs whose diagnosis skinbook does not know are left out: {shown}."
        )
    about = about[~without & ~strange]
    if about.empty:
        raise SkinbookError(f"{table} has no photograph with a diagnosis that skinbook knows ({', '.join(DIAGNOSES)}).")
    if not Path(folder).is_dir():
        raise SkinbookError(f"{folder} is not a folder. Correct the path of the images.")
    found = locate.find_listed(Path(folder), about["file"])
    files = {name: found[file] for name, file in zip(about["image_id"], about["file"], strict=True) if file in found}
    _once_each(files, Path(table))
    lacking = about["image_id"][~about["image_id"].isin(list(files))]
    if len(lacking) == len(about):
        raise SkinbookError(
            f"None of the {len(about):,} photographs of {table} lies in {folder} or below it; looked for files such as "
            f"{about['image_id'].iloc[0]}.jpg. Correct the path of the images."
        )
    if len(lacking):
        notes.append(f"{len(lacking):,} photographs have no file and are left out, such as {lacking.iloc[0]}.")
    if away := [file for file, path in found.items() if not locate.in_its_folder(file, path)]:
        notes.append(
            f"{len(away):,} photographs were found by their names alone, not in the folder that the table names, such "
            f"as {away[0]}: {found[away[0]]} is taken for it."
        )
    about = about.loc[~about.index.isin(lacking.index), ["image_id", "lesion_id", "dx"]].reset_index(drop=True)
    return Labelled(about, files, bool(grouped), tuple(notes), len(lacking))


def _about(path: Path) -> pd.DataFrame:
    """The table in one of the known layouts; SkinbookError if it lists an image more than once."""
    about = read_about(path)
    raw = tables.read(path, [])
    if len(about) != len(raw):
        columns = {str(name).lower(): name for name in raw.columns}
        names = raw[next(columns[name] for name in IMAGE_COLUMNS if name in columns)]
        doubled = names[names.duplicated()]
        named = f", such as {doubled.iloc[0]}" if len(doubled) else ""
        raise SkinbookError(
            f"{path} lists {len(raw) - len(about):,} images more than once{named}. Every photograph may count once: "
            "remove repeated rows."
        )
    return about


def _once_each(files: Mapping[str, Path], table: Path) -> None:
    """SkinbookError if two names of a table lead to one file, or to copies that have one name."""
    of_name: dict[str, list[str]] = {}
    for image_id, path in files.items():
        of_name.setdefault(path.stem.lower(), []).append(image_id)
    for names in of_name.values():
        for image_id, first in zip(names, locate.copies([files[name] for name in names]), strict=True):
            if image_id != names[first]:
                raise SkinbookError(
                    f"{table} lists {names[first]} and {image_id}, which are one photograph ({files[image_id]}). Every "
                    "photograph may count once: remove one of the rows."
                )


def dataset(labelled: Labelled, origin: str) -> Dataset:
    """Labelled photographs as a data set, which can be trained on."""
    present = set(labelled.table["dx"])
    blank = {name: pd.Series(np.nan, index=labelled.table.index) for name in ("dx_type", "age", "sex", "site")}
    table = tidy(labelled.table.assign(**blank, source="given"), origin)
    return Dataset(
        edition="given",
        table=table.sort_values("image_id", ignore_index=True),
        classes=tuple(code for code in DIAGNOSES if code in present),
        images=Files(labelled.files),
        provides=frozenset({"lesion_id"} if labelled.grouped else ()),
    )


@dataclass
class Report:
    """A model on labelled photographs, ready for JSON (`told()`), Markdown or a terminal.

    photographs, lesions : how many were judged. per_class : for each class its recall and photographs.
    metrics : over the photographs whose diagnosis the model knows. malignant : over all of them.
    not_in_model, not_in_set : diagnoses (with their photographs) and classes that the other side lacks.
    seen : photographs that the model was trained or chosen on, or other ones of their lesions; None where not known.
    refused : how many it would refuse as unlike those of training (all count in the metrics); None where it cannot tell.
    unread : files that could not be read. sound : whether the numbers are about photographs that are all there, and new
    to the model.
    """

    model: str
    photographs: int
    lesions: int
    metrics: dict[str, Interval] = field(default_factory=dict)
    malignant: dict[str, Interval] = field(default_factory=dict)
    per_class: dict[str, dict[str, Any]] = field(default_factory=dict)
    confusion: dict[str, dict[str, int]] = field(default_factory=dict)
    threshold: float | None = None
    not_in_model: dict[str, int] = field(default_factory=dict)
    not_in_set: list[str] = field(default_factory=list)
    seen: int | None = None
    refused: int | None = None
    unread: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sound: bool = True

    def told(self) -> dict[str, Any]:
        """All of it for JSON: an interval is [value, low, high], with null for what cannot be known."""
        found = dict(vars(self))
        for name in ("metrics", "malignant"):
            found[name] = {key: _triple(value) for key, value in found[name].items()}
        found["per_class"] = {dx: {**about, "recall": _triple(about["recall"])} for dx, about in self.per_class.items()}
        return plain({"note": DISCLAIMER, **found})

    def measured(self) -> dict[str, Any]:
        """The numbers for a bundle's `metrics`: name to [value, low, high]."""
        found = {name: _triple(value) for name, value in {**self.metrics, **self.malignant}.items()}
        return {**found, **{f"recall of {dx}": _triple(about["recall"]) for dx, about in self.per_class.items()}}


def _triple(one: Interval) -> list[float | None]:
    return plain([one.value, one.low, one.high])


def evaluate(
    model: Model,
    labelled: Labelled,
    same: Mapping[str, str] | None = None,
    unseen: bool = False,
    device: str = "cpu",
    progress: bool = True,
) -> Report:
    """Judge a model on labelled photographs.

    same : a diagnosis of the set to the class of the model that it is to count as, such as {"ak": "akiec"}.
    unseen : leave out what the model has seen.

    Raises
    ------
    SkinbookError
        If nothing is left to judge, or `same` names what is not there.
    """
    table, notes = labelled.table, list(labelled.notes)
    seen = _seen(model, table)
    left_out = 0
    if unseen:
        if seen is None:
            raise SkinbookError("This model does not know what it has seen, so --unseen cannot leave it out.")
        left_out = int(seen.sum())
        table, seen = table[~seen].reset_index(drop=True), seen[~seen]
        if left_out:
            notes.append(f"{left_out:,} photographs that the model was trained or chosen on are left out.")
        if table.empty:
            raise SkinbookError("The model was trained or chosen on every one of these photographs or their lesions.")
    files = [labelled.files[image_id] for image_id in table["image_id"]]
    found: list[Answer] = []
    with bar(len(files), "looking at the photographs", shown=progress) as shown:
        for answer in answers(model, files, device):
            found.append(answer)
            shown.update(1)
    read = np.array([answer.probabilities is not None for answer in found])
    unread = [answer.fault for answer in found if answer.probabilities is None]
    if not read.any():
        raise SkinbookError(f"None of the photographs could be read. The first: {unread[0]}")
    if unread:
        notes.append(f"{len(unread):,} photographs could not be read and are left out. The first: {unread[0]}")
    table = table[read].reset_index(drop=True)
    report = judge(
        model,
        table["dx"].to_numpy(dtype=object),
        table["lesion_id"].to_numpy(dtype=object),
        np.stack([answer.probabilities for answer in found if answer.probabilities is not None]),
        same,
    )
    report.notes = notes + report.notes
    report.unread = unread
    if model.limit is not None:
        report.refused = sum(answer.unlike for answer in found)
    if seen is not None:
        report.seen = int(seen[read].sum())
        if report.seen:
            report.notes.insert(
                0,
                f"{report.seen:,} of these photographs show lesions that the model was trained or chosen on, which "
                "flatters it. --unseen leaves them out.",
            )
    report.sound = not (unread or labelled.absent or report.seen)
    return report


def _seen(model: Model, table: pd.DataFrame) -> np.ndarray | None:
    seen = getattr(model, "seen", None)
    return None if seen is None else seen.knows(table["image_id"], table["lesion_id"])


def judge(
    model: Model,
    dx: np.ndarray,
    lesions: np.ndarray,
    probabilities: np.ndarray,
    same: Mapping[str, str] | None = None,
) -> Report:
    """The report on probabilities that are there already: dx and lesions (n,), probabilities (n, classes)."""
    report = Report(model.about, len(dx), len(set(lesions.tolist())), threshold=model.threshold)
    for name, stands_for in (same or {}).items():
        if name not in DIAGNOSES or stands_for not in model.classes:
            raise SkinbookError(
                f"{name}={stands_for}: expected a diagnosis of the set and a class of the model "
                f"({', '.join(model.classes)}), such as ak=akiec."
            )
    ill = np.array([malignant(str(one), model.definition) for one in dx])
    if model.classes == BINARY:
        named = np.where(ill, BINARY[1], BINARY[0]).astype(object)
    else:
        named = np.array([(same or {}).get(one, one) for one in dx], dtype=object)
    known = np.isin(named, model.classes)
    absent, counts = np.unique(named[~known].astype(str), return_counts=True)
    report.not_in_model = {str(name): int(count) for name, count in zip(absent, counts, strict=True)}
    report.not_in_set = [name for name in model.classes if name not in set(named[known])]
    if report.not_in_model:
        shown = ", ".join(f"{name} ({count:,})" for name, count in report.not_in_model.items())
        report.notes.append(
            f"The model has no class for {shown}: these photographs count only as malignant or benign. "
            "(--same ak=akiec lets one diagnosis count as another.)"
        )
    if report.not_in_set:
        report.notes.append(
            f"The set has no photograph of {', '.join(report.not_in_set)}, which the model may still answer."
        )
    if known.any():
        labels = np.array([model.classes.index(name) for name in named[known]])
        judged = Evaluation(labels, probabilities[known], lesions[known], model.classes)
        report.metrics = {name: judged.metric(name) for name in METRICS}
        each = judged.per_class()
        for dx_name, row in each.iterrows():
            report.per_class[str(dx_name)] = {
                "recall": Interval(row["recall"], row["recall low"], row["recall high"]),
                "precision": float(row["precision"]),
                "photographs": int(row["support"]),
            }
        report.confusion = {
            str(name): {str(k): int(v) for k, v in row.items()} for name, row in judged.confusion().iterrows()
        }
    report.malignant = _malignant(model, ill, probabilities[:, model.malignant].sum(axis=1), lesions)
    return report


def _malignant(model: Model, ill: np.ndarray, score: np.ndarray, lesions: np.ndarray) -> dict[str, Interval]:
    """The area under the ROC curve, and what the operating point gives, over all photographs."""
    judged = Evaluation(ill.astype(int), np.stack([1 - score, score], axis=1), lesions, BINARY)
    # From the scores themselves: 1 - score is 1 for every score below 1e-16, and makes ties.
    ones = np.ones((1, len(ill)))
    auc = interval(float(roc_auc(ill, score, ones)[0]), roc_auc(ill, score, judged.weights))
    found = {"malignant ROC AUC": auc}
    if model.threshold is not None:
        called = score >= model.threshold
        found["sensitivity"] = share(called, ill, judged.weights)
        found["specificity"] = share(~called, ~ill, judged.weights)
    return found


def share(hits: np.ndarray, among: np.ndarray, weights: np.ndarray) -> Interval:
    """The share of `among` that are `hits` too, both bool (n,), with its interval over resamples (resamples, n)."""
    with np.errstate(invalid="ignore"):  # none of them, here or in a resample: not a number
        draws = weights @ (hits & among) / (weights @ among)
        return interval(float(np.float64((hits & among).sum()) / among.sum()), draws)


# The report as text -------------------------------------------------------------------------------------------------


def _number(one: Interval) -> str:
    if np.isnan(one.value):
        return "–"
    ends = "" if np.isnan(one.low) else f" [{one.low:.3f}, {one.high:.3f}]"
    return f"{one.value:.3f}{ends}"


def markdown(report: Report) -> str:
    """The report as Markdown."""
    lines = [f"# {report.model or 'A model'}", ""]
    lines += [f"{report.photographs:,} photographs of {report.lesions:,} lesions. 95 % intervals over lesions.", ""]
    lines += [f"- {note}" for note in report.notes] + ([""] if report.notes else [])
    if report.metrics:
        lines += ["| Diagnoses | |", "|---|---|"]
        lines += [f"| {name} | {_number(value)} |" for name, value in report.metrics.items()] + [""]
    lines += ["| Malignant or benign | |", "|---|---|"]
    for name, value in report.malignant.items():
        at = f" at {report.threshold:.3f}" if name in ("sensitivity", "specificity") else ""
        lines += [f"| {name}{at} | {_number(value)} |"]
    lines += [""]
    if report.per_class:
        lines += ["| Class | Recall | Precision | Photographs |", "|---|---|---|---|"]
        for name, about in report.per_class.items():
            precision = "–" if np.isnan(about["precision"]) else f"{about['precision']:.3f}"
            lines += [f"| {name} | {_number(about['recall'])} | {precision} | {about['photographs']:,} |"]
        lines += [""]
    if report.confusion:
        names = list(report.confusion)
        lines += [f"| True \\ answered | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
        for name, row in report.confusion.items():
            lines += [f"| {name} | {' | '.join(str(row[other]) for other in names)} |"]
        lines += [""]
    if report.refused is not None:
        lines += [
            f"`skinbook predict` would refuse {report.refused:,} of them ({report.refused / report.photographs:.1%}) as "
            "unlike the photographs of training; they count above.",
            "",
        ]
    return "\n".join([*lines, DISCLAIMER, ""])


def shown(report: Report, style: str = "text") -> str:
    """The report as Markdown, or without its marks and with its tables in columns, for a terminal."""
    text = markdown(report)
    return text if style == "markdown" else columns(text)


def pairs(given: Sequence[str]) -> dict[str, str]:
    """`ak=akiec` and the like as a dictionary."""
    found = {}
    for one in given:
        name, equals, stands_for = one.lower().partition("=")
        if not (equals and name and stands_for):
            raise SkinbookError(f"--same is {one!r}; expected a diagnosis and a class, such as ak=akiec.")
        found[name] = stands_for
    return found
