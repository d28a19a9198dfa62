"""Anybody's split, audited: `skinbook audit split.csv --table metadata.csv --images photographs/`.

A split comes as a CSV (an image and its part, or fold), as a list of files for each part, or as `train/val/test`
folders of images. With nothing else, rows that stand in two parts are found; with the images, the same photograph under
two names; with a table, lesions on both sides, a test set of another mix, and columns that give the label away.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
import shlex
from collections.abc import Iterable, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import combinations, groupby
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from skinbook.audit import NEAR, giveaways, near_pairs, pairs_within, perceptual_hashes
from skinbook.config import SkinbookError, cores
from skinbook.data import images, locate, tables
from skinbook.diagnoses import DIAGNOSES
from skinbook.progress import bar
from skinbook.reading import contents, one_line, size

IMAGE_COLUMNS = (
    *("image_id", "image", "isic_id", "bcn_filename", "image_name", "img_id", "img", "filename", "file_name"),
    *("file", "path", "filepath", "file_path", "image_path", "img_path", "name", "id"),
)
PART_COLUMNS = ("split", "part", "set", "subset", "partition", "phase", "fold", "kfold", "fold_id")
LESION_COLUMNS = ("lesion_id", "lesion")
LABEL_COLUMNS = ("dx", "diagnosis", "label", "class", "class_name", "target", "category")
OTHERS = {
    "dx_type": ("dx_type", "diagnosis_confirm_type"),
    "age": ("age", "age_approx"),
    "sex": ("sex", "gender"),
    "site": ("site", "localization", "anatom_site_general"),
    "source": ("dataset", "source"),
}
# What people call the parts. Whatever else stands in a column of parts keeps its name.
NAMES = {
    "train": ("train", "training", "trn", "tr"),
    "validation": ("validation", "valid", "val", "dev", "development"),
    "test": ("test", "testing", "tst", "holdout", "hold-out", "eval", "evaluation"),
}
SPELLED = ("image_id", "given", "part")
PART_OF = {name: part for part, names in NAMES.items() for name in names}
UNUSED = ("", "none", "unused", "excluded", "ignore", "drop", "nan", "na")
HASHED = 64  # pixels a side; the hash itself looks at 32
CHUNK = 1024
EXAMPLES = 20
MOST_DIAGNOSES = 100  # so many are shown
# A mix that differs by so many hundredths for one diagnosis, and by more than chance, is another question than the
# one the data set asks.
DRIFT, DRIFT_CHANCE = 0.05, 1e-6


@dataclass
class Report:
    """What was found in a split, ready for JSON (`vars(report)`), Markdown or a terminal.

    photographs : rows of the split, by part. repeated : image_ids that stand in several parts (`across`), or several
    times in one (`within`, by part).
    lesions : for each pair of parts that share some, how many, and their photographs; `judged`: for each part but
        training, its photographs, and those whose lesion stands elsewhere too. None without lesion_ids.
    identical, near : pairs of photographs in two parts: how many, and the first of them. None without images.
    mix : the share of each diagnosis in each part; `drift`: the diagnosis and part that differ most from the rest.
    giveaways : values of a column that decide the label. not_checked : what could not be, and why.
    """

    photographs: dict[str, int]
    repeated: dict[str, Any]
    lesions: dict[str, Any] | None = None
    identical: dict[str, Any] | None = None
    near: dict[str, Any] | None = None
    mix: dict[str, dict[str, float]] = field(default_factory=dict)
    drift: dict[str, Any] | None = None
    giveaways: list[dict[str, Any]] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)
    leaks: bool = False
    verdict: str = ""

    def judge(self) -> Report:
        """Set `leaks` and `verdict` from what was found; returns itself."""
        found = []
        if self.lesions and self.lesions["across"]:
            shown = [f"{j['known']:,} of {j['photographs']:,} in {part}" for part, j in self.lesions["judged"].items()]
            found.append(f"photographs of lesions that stand in another part too ({', '.join(shown)})")
        if self.repeated["across"]:
            found.append(f"{len(self.repeated['across'])} images are listed in more than one part")
        if self.identical and self.identical["pairs"]:
            found.append(f"{self.identical['pairs']} pairs of identical files are divided between parts")
        if self.near and self.near["unlike_lesion"]:
            found.append(f"{self.near['unlike_lesion']} more pairs are, nearly, one photograph under two names")
        self.leaks = bool(found)
        unchecked = f" Not checked: {'; '.join(self.not_checked)}." if self.not_checked else ""
        self.verdict = (f"LEAKS: {'; '.join(found)}." if found else "Clean: nothing stands in two parts.") + unchecked
        return self


def audit_given(
    split: Sequence[str | Path], table: Path | None = None, folder: Path | None = None, progress: bool = True
) -> Report:
    """Audit a split that somebody gives.

    Parameters
    ----------
    split : one CSV or one folder; or `part=list.txt`, one for each part.
    table : metadata, a CSV in any of the known layouts: an image, and lesion, diagnosis, and so on where it has them.
    folder : where the images lie, if the split does not say so. progress : show a bar to a person who is looking.

    Raises
    ------
    SkinbookError
        If the split cannot be read, or names only one part; if the table knows none of its images, or the folder holds
        none of them; or if an image may be either of two files that differ.
    """
    rows = read_split(split)
    paths = _paths(rows, Path(folder) if folder is not None else None, ", ".join(map(str, split)))
    rows["path"] = pd.Series(paths, dtype=object)
    notes: list[str] = []
    rows, about = _described(rows, Path(table) if table is not None else None, notes)
    parts = rows["part"].value_counts().sort_index()
    report = Report({str(part): int(count) for part, count in parts.items()}, _repeated(rows))
    one = rows.drop_duplicates(["image_id", "part"], ignore_index=True)
    report.lesions = _lesions(one) if one["lesion_id"].notna().any() else None
    known = {row: path for row, path in enumerate(one["path"]) if isinstance(path, Path)}
    if known and len(known) < len(one):
        notes.append(f"{len(one) - len(known)} images whose file was not found")
    if known:
        report.identical, report.near = _pictures(one, known, notes, progress)
    else:
        notes.append("whether a photograph stands there under two names (no images were given)")
    if one["dx"].notna().any():
        report.mix, report.drift = _mix(one)
    if about is not None and {"dx", "lesion_id"} <= set(about.columns):
        labelled = about.dropna(subset=["dx"]).reset_index(drop=True)
        labelled["lesion_id"] = labelled["lesion_id"].fillna(labelled["image_id"])
        report.giveaways = [
            {str(column): value for column, value in row.items()} for row in giveaways(labelled).to_dict("records")
        ]
    report.not_checked = notes
    return report.judge()


def read_split(given: Sequence[str | Path]) -> pd.DataFrame:
    """The rows of a split: `image_id` (a file's name without folder and ending), `part`, and `path` and `dx` if known.

    `given` is the name with its folder, `file` as it is written.
    """
    if len(given) == 1 and "=" not in str(given[0]):
        path = Path(given[0])
        if not os.path.exists(path):
            raise SkinbookError(
                f"{path} does not exist. Give a CSV, a folder with train and test in it, or part=list.txt."
            )
        rows = _from_folders(path) if path.is_dir() else _spelled_alike(_from_csv(path), SPELLED)
    else:
        rows = _spelled_alike(_from_lists([str(one) for one in given]), SPELLED)
    rows = rows[~rows["part"].str.lower().isin(UNUSED)].reset_index(drop=True)
    if rows["part"].nunique() < 2:
        parts = ", ".join(sorted(set(rows["part"]))) or "none"
        named = ", ".join(map(str, given))
        raise SkinbookError(
            f"{named}: a split has at least two parts; this one has {parts}. See `skinbook audit --help`."
        )
    return rows


def _image_id(name: str) -> str:
    """A file's name without its folder and its ending, whatever the system it was written on."""
    return locate.stem(re.split(r"[\\/]", name.strip())[-1])


def _given(name: str) -> str:
    """A file's name with its folder, without its ending, in the one spelling of slashes."""
    folder, slash, _ = name.strip().replace("\\", "/").removeprefix("./").rpartition("/")
    return folder + slash + _image_id(name)


def _told_apart(rows: pd.DataFrame, known: Set[str], unlike: Set[str], notes: list[str]) -> pd.DataFrame:
    """Rows by name, but by `given` where several photographs have the name.

    They are several where one part has them (nv/1.jpg, mel/1.jpg), or where their files differ (train/1.jpg,
    test/1.jpg).

    known : names, in small letters, that are a photograph's wherever they stand, since the table has them.
    unlike : names that are several photographs', since the table says so.
    """
    small = rows["image_id"].str.lower()
    free = rows[~small.isin(known | unlike)]
    files = free.drop_duplicates(["part", "image_id", "given"])
    torn = set(files["image_id"][files.duplicated(["part", "image_id"])])
    if torn:
        notes.append(f"by name, {len(torn):,} names that several files of one part have, such as {min(torn)}")
    places = free[~free["image_id"].isin(torn)].drop_duplicates(["image_id", "given"])
    differ: set[str] = set()
    unsure: set[str] = set()
    for name, same in places[places.duplicated("image_id", keep=False)].groupby("image_id"):
        there = [path for path in same["path"] if isinstance(path, Path)]
        if any(locate.copies(there)):
            differ.add(str(name))
        elif len(there) < len(same):
            unsure.add(str(name))
    if differ:
        notes.append(f"by name, {len(differ):,} names of files that differ from part to part, such as {min(differ)}")
    if unsure:
        notes.append(
            f"whether {len(unsure):,} names that stand with several folders, such as {min(unsure)}, are one photograph "
            "each (not all of their files are known)"
        )
    apart = small.isin(unlike) | rows["image_id"].isin(torn | differ)
    return rows.assign(image_id=rows["image_id"].where(~apart, rows["given"]))


def _spelled_alike(rows: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """The rows with each image and each part in its first spelling: in a table, upper and lower case mean the same."""
    for column in columns:
        first: dict[str, str] = {}
        # Texts where there is no row, too: of an empty list pandas would make numbers.
        rows[column] = rows[column].astype(object).map(lambda text, first=first: first.setdefault(text.lower(), text))
    return rows


def _named_column(table: pd.DataFrame, names: Iterable[str], path: Path) -> str | None:
    """The column that has one of these names, the first named; SkinbookError if several have it."""
    columns = [str(column).lower() for column in table.columns]
    name = next((name for name in names if name in columns), None)
    if name is None:
        return None
    if columns.count(name) > 1:
        raise SkinbookError(f"{path} has the column {name} more than once. Remove one of them.")
    return table.columns[columns.index(name)]


def _from_csv(path: Path) -> pd.DataFrame:
    raw = tables.read(path, [])
    image, part = (_named_column(raw, names, path) for names in (IMAGE_COLUMNS, PART_COLUMNS))
    if image is None or part is None:
        lacking = f"the image ({', '.join(IMAGE_COLUMNS[:4])}, ...)" if image is None else (
            f"the part ({', '.join(PART_COLUMNS)})"
        )  # fmt: skip
        raise SkinbookError(f"{path} has no column for {lacking}; it has {', '.join(map(str, raw.columns))[:200]}.")
    is_fold = "fold" in str(part).lower()
    parts = raw[part].map(lambda text: f"fold {text}" if is_fold and text else PART_OF.get(text.lower(), text))
    beside = [path.parent / name for name in raw[image]]
    return pd.DataFrame(
        {
            "image_id": raw[image].map(_image_id),
            "given": raw[image].map(_given),
            "file": raw[image],
            "part": parts.astype(str),
            "path": [file if _is_image(file) else None for file in beside],
            "dx": None,
        }
    )


def _is_image(file: Path) -> bool:
    return file.suffix.lower() in images.SUFFIXES and os.path.isfile(file)  # which knows no name that is an error


def _from_lists(given: Sequence[str]) -> pd.DataFrame:
    rows = []
    for one in given:
        part, equals, name = one.partition("=")
        if not equals or not part or not name:
            raise SkinbookError(f"{one!r} is not a part and its list; expected such as train=train.txt test=test.txt.")
        try:
            lines = contents(Path(name), tables.LARGEST).decode("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SkinbookError(f"{name} cannot be read as a list of files ({error}).") from None
        if lines and {cell.strip(' "').lower() for cell in re.split(r"[,;\t]", lines[0])} & set(IMAGE_COLUMNS):
            raw = tables.read(Path(name), [])  # a table: its first line names the columns
            lines = raw[_named_column(raw, IMAGE_COLUMNS, Path(name))].tolist()
        for line in lines:
            if entry := re.split(r"[,;\t]", line.strip())[0].strip().strip('"'):
                file = Path(name).parent / entry
                known = file if _is_image(file) else None
                rows.append((_image_id(entry), _given(entry), entry, PART_OF.get(part.lower(), part), known, None))
    return pd.DataFrame(rows, columns=["image_id", "given", "file", "part", "path", "dx"])


def _from_folders(top: Path) -> pd.DataFrame:
    """`top/train/nv/ISIC_1.jpg`, with or without the folder that names the diagnosis; the parts may lie one level lower."""
    for level in (top, *_folders_in(top)):
        parts = [path for path in _folders_in(level) if path.name.lower() in PART_OF]
        if len(parts) > 1:
            break
    else:
        raise SkinbookError(f"{top} holds no folders named such as train and test, neither itself nor one level below.")
    rows = []
    for part in parts:
        for folder, files in locate.folders_below(part):
            below = folder.relative_to(part).parts
            rows += [
                (
                    _image_id(name),
                    _given((folder / name).relative_to(level).as_posix()),
                    name,
                    PART_OF[part.name.lower()],
                    folder / name,
                    below[0] if below else None,
                )
                for name in files
                if Path(name).suffix.lower() in images.SUFFIXES
            ]
    if not rows:
        raise SkinbookError(f"The folders {', '.join(p.name for p in parts)} in {level} hold no images.")
    return pd.DataFrame(rows, columns=["image_id", "given", "file", "part", "path", "dx"])


def _folders_in(top: Path) -> list[Path]:
    try:
        return sorted(path for path in top.iterdir() if os.path.isdir(path))
    except OSError as error:
        raise SkinbookError(f"{top} cannot be read ({error.strerror}). Change its permissions.") from None


def read_about(path: Path) -> pd.DataFrame:
    """Metadata of any of the known layouts: `image_id`, and lesion_id, dx, dx_type, age, sex, site, source where it has them.

    The diagnosis may stand in a column, or in one column of zeros and ones for each, as ISIC has it. `given` is the
    image's name with its folder and without its ending, `file` as it is written; `image_id` is the bare name, or
    `given` where the table has the name in several folders.
    """
    raw = tables.read(path, [])
    image = _named_column(raw, IMAGE_COLUMNS, path)
    if image is None:
        raise SkinbookError(
            f"{path} has no column for the image ({', '.join(IMAGE_COLUMNS[:4])}, ...); "
            f"it has {', '.join(map(str, raw.columns))[:200]}."
        )
    about = pd.DataFrame({"image_id": raw[image].map(_image_id), "given": raw[image].map(_given), "file": raw[image]})
    about = _spelled_alike(about, ["image_id", "given"])
    places = about[["image_id", "given"]].drop_duplicates()["image_id"]
    several = about["image_id"].isin(places[places.duplicated()])
    about["image_id"] = about["image_id"].where(~several, about["given"])
    wanted = {"lesion_id": LESION_COLUMNS, "dx": LABEL_COLUMNS, **OTHERS}
    for name, spellings in wanted.items():
        if (column := _named_column(raw, spellings, path)) is not None:
            text = raw[column]
            if name == "lesion_id":  # as it is spelled
                about[name] = text.mask(text.str.lower().isin(tables.MISSING), np.nan)
            else:
                about[name] = tables.known(text)
    marks = {c: str(c).lower() for c in raw.columns if str(c).lower() in DIAGNOSES or str(c).lower() == "unk"}
    if "dx" not in about and len(marks) > 1:
        if len(set(marks.values())) < len(marks) or not raw.columns.is_unique:
            raise SkinbookError(f"{path} has a column of a diagnosis more than once. Remove one of them.")
        values = raw[list(marks)].apply(pd.to_numeric, errors="coerce").rename(columns=marks)
        about["dx"] = values.fillna(0).idxmax(axis=1).where(values.eq(1).sum(axis=1) == 1)
    if about["image_id"].duplicated().any():
        told = about[["image_id", *(name for name in ("lesion_id", "dx") if name in about)]].drop_duplicates()
        if (torn := told["image_id"].duplicated()).any():
            raise SkinbookError(
                f"{path} gives {told['image_id'][torn].iloc[0]} two lesions or two diagnoses. Remove the wrong row."
            )
        about = about.drop_duplicates("image_id", ignore_index=True)
    return about


def _described(rows: pd.DataFrame, table: Path | None, notes: list[str]) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """The rows with `lesion_id` and `dx` from the table, and what the table says of the images in the split."""
    if table is None:
        notes.append("lesions on both sides (no table was given)")
        return _told_apart(rows, set(), set(), notes).assign(lesion_id=None), None
    about = read_about(table)
    places = [place.lower() for place in about["given"]]
    names = [name.rpartition("/")[2].lower() for name in about["image_id"]]
    told = about[[column for column in ("lesion_id", "dx") if column in about]].assign(name=names).drop_duplicates()
    unlike = set(told["name"][told["name"].duplicated()])
    # A name that the table writes with the split's own folder is what lies there, and not known elsewhere.
    split = {place.lower() for place in rows["given"]}
    there = {name for name, place in zip(names, places, strict=True) if "/" in place and place in split}
    rows = _told_apart(rows, {*names} - there, unlike, notes)
    row_of = {name: row for row, name in enumerate(names) if name not in unlike}
    row_of |= {place: row for row, place in enumerate(places)}
    at = [row_of.get(name.lower(), -1) for name in rows["image_id"]]
    absent = at.count(-1)
    if absent == len(rows):
        raise SkinbookError(
            f"{table} knows none of the split's images, such as {rows['image_id'].iloc[0]}. Give the table of this data set."
        )
    if absent:
        notes.append(f"{absent} rows whose image is not in the table")
    found = about.reindex(at)
    lesion = found["lesion_id"].to_numpy() if "lesion_id" in about else None
    if lesion is None:
        notes.append("lesions on both sides (the table has no lesion_id)")
    elif (unnamed := int(pd.isna(lesion).sum()) - absent) > 0:
        notes.append(f"{unnamed} rows without a lesion_id")
    dx = found["dx"].to_numpy() if "dx" in about else rows["dx"].to_numpy()
    return rows.assign(lesion_id=lesion, dx=dx), about[about.index.isin(at)].reset_index(drop=True)


def _repeated(rows: pd.DataFrame) -> dict[str, Any]:
    parts = rows.groupby("image_id")["part"].agg(lambda p: sorted(set(p)))
    across = parts[parts.map(len) > 1]
    doubled = rows[rows.duplicated(["image_id", "part"])]
    return {
        "across": [{"image": image, "parts": in_parts} for image, in_parts in across.items()],
        "within": doubled["part"].value_counts().to_dict(),
    }


def _lesions(rows: pd.DataFrame) -> dict[str, Any]:
    known = rows.dropna(subset=["lesion_id"])
    in_part = {str(part): set(same["lesion_id"]) for part, same in known.groupby("part")}
    across = []
    for one, other in combinations(sorted(map(str, in_part)), 2):
        if shared := in_part[one] & in_part[other]:
            both = known["part"].isin([one, other]) & known["lesion_id"].isin(shared)
            across.append({"parts": [one, other], "lesions": len(shared), "photographs": int(both.sum())})
    judged = {}
    for part in (p for p in in_part if p != "train"):
        here = known.loc[known["part"] == part, "lesion_id"]
        elsewhere: set = set().union(*(lesions for name, lesions in in_part.items() if name != part))
        of_known = int(here.isin(elsewhere).sum())
        judged[part] = {"photographs": len(here), "known": of_known, "share": of_known / len(here)}
    return {"across": across, "judged": judged}


def _paths(rows: pd.DataFrame, folder: Path | None, split: str) -> list[Path | None]:
    """The file of each row, where one is known; SkinbookError if a folder is given and none is."""
    paths = [path if isinstance(path, Path) else None for path in rows["path"]]
    if folder is None:
        return paths
    if not folder.is_dir():
        raise SkinbookError(f"{folder} is not a folder. Correct the path of the images.")
    lacking = [file for file, path in zip(rows["file"], paths, strict=True) if path is None]
    found = locate.find_listed(folder, lacking) if lacking else {}
    paths = [path or found.get(file) for file, path in zip(rows["file"], paths, strict=True)]
    if not any(paths):
        raise SkinbookError(
            f"None of the {rows['image_id'].nunique():,} images of {split} lies in {folder} or below it; looked for "
            f"files such as {rows['image_id'].iloc[0]}.jpg. Correct the path of the images."
        )
    return paths


def _pictures(
    rows: pd.DataFrame, paths: dict[int, Path], notes: list[str], progress: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Pairs in two parts that are one file, or nearly one photograph. Each file is read once."""
    order = sorted(paths)
    digests: dict[int, bytes] = {}
    hashes: list[np.ndarray] = []
    seen: list[int] = []
    unread = 0
    with (
        ThreadPoolExecutor(cores()) as pool,
        bar(len(order), "looking at the images", shown=progress) as shown,
    ):
        for start in range(0, len(order), CHUNK):
            some = order[start : start + CHUNK]
            looked = list(pool.map(_look, [paths[row] for row in some]))
            digests |= {row: digest for row, (digest, _) in zip(some, looked, strict=True) if digest}
            small = [(row, pixels) for row, (_, pixels) in zip(some, looked, strict=True) if pixels is not None]
            unread += len(some) - len(small)
            if small:
                seen += [row for row, _ in small]
                hashes.append(perceptual_hashes(np.stack([pixels for _, pixels in small])))
            shown.update(len(some))
    if unread:
        notes.append(f"{unread} images that cannot be read")
    same: dict[bytes, list[int]] = {}
    for row, digest in digests.items():
        same.setdefault(digest, []).append(row)
    identical = pairs_within(same.values(), paths)
    near = [(seen[a], seen[b], bits) for a, b, bits in near_pairs(np.concatenate(hashes), NEAR)] if hashes else []
    near = [pair for pair in near if digests[pair[0]] != digests[pair[1]]]
    return _across(rows, identical), _across(rows, near)


def _look(path: Path) -> tuple[bytes | None, np.ndarray | None]:
    """The digest of a file, and its picture in small, uint8 (HASHED, HASHED, 3); None for what cannot be read."""
    from skinbook.data.pixels import reduce

    try:
        size(path, images.LARGEST_FILE)
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest()
    except OSError:
        return None, None
    try:
        image, _ = images.decode(path, HASHED)
    except SkinbookError:
        return digest, None
    return digest, np.asarray(reduce(image, (HASHED, HASHED)))


def _across(rows: pd.DataFrame, pairs: list[tuple[int, int, int]]) -> dict[str, Any]:
    """Pairs of rows that stand in two parts; a row listed in both under one name is another finding."""
    name, part, lesion = (rows[column].to_numpy() for column in ("image_id", "part", "lesion_id"))
    divided = [(a, b, bits) for a, b, bits in pairs if part[a] != part[b] and name[a] != name[b]]
    unlike = [pair for pair in divided if pd.isna(lesion[pair[0]]) or lesion[pair[0]] != lesion[pair[1]]]
    examples = [
        {"images": [str(name[a]), str(name[b])], "parts": [str(part[a]), str(part[b])], "bits": bits}
        for a, b, bits in sorted(unlike or divided, key=lambda pair: pair[2])[:EXAMPLES]
    ]
    return {"pairs": len(divided), "unlike_lesion": len(unlike), "examples": examples}


def _mix(rows: pd.DataFrame) -> tuple[dict[str, dict[str, float]], dict[str, Any] | None]:
    """The share of each diagnosis in each part, and where it differs most from the other parts, if by more than chance."""
    from scipy.stats import chi2_contingency

    counts = pd.crosstab(rows["dx"], rows["part"])
    share = counts / counts.sum()
    mix = {str(part): {str(dx): float(value) for dx, value in share[part].items()} for part in share}
    worst: dict[str, Any] | None = None
    for part in (p for p in counts.columns if p != "train"):
        rest = counts.drop(columns=part).sum(axis=1)
        if not rest.sum():
            continue  # no other part has a diagnosis
        gap = share[part] - rest / rest.sum()
        chance = float(chi2_contingency(pd.concat([counts[part], rest], axis=1))[1]) if len(counts) > 1 else 1.0
        dx = str(max(gap.index, key=lambda dx: (round(abs(gap[dx]), 9), gap[dx])))
        if abs(gap[dx]) >= DRIFT and chance < DRIFT_CHANCE and (worst is None or abs(gap[dx]) > abs(worst["gap"])):
            here, there = float(share[part][dx]), float(rest[dx] / rest.sum())
            worst = {"part": str(part), "diagnosis": str(dx), "share": here, "elsewhere": there, "gap": float(gap[dx])}
    return mix, worst


def markdown(report: Report) -> str:
    """The report as Markdown, which reads well in a terminal too."""
    lines = [f"**{report.verdict}**", "", "| Part | Photographs |", "|---|---|"]
    lines += [f"| {cell(part)} | {count:,} |" for part, count in report.photographs.items()]
    if report.lesions is not None:
        lines += ["", "## Lesions on both sides", ""]
        lines += (
            ["| Parts | Lesions in both | Their photographs |", "|---|---|---|"] if report.lesions["across"] else []
        )
        lines += [
            f"| {cell(' and '.join(a['parts']))} | {a['lesions']:,} | {a['photographs']:,} |"
            for a in report.lesions["across"]
        ] or ["None."]
        for part, found in report.lesions["judged"].items():
            lines += ["", f"{part}: {found['known']:,} of {found['photographs']:,} photographs ({found['share']:.0%}) "
                          "show a lesion that stands in another part too."]  # fmt: skip
    across, within = report.repeated["across"], report.repeated["within"]
    if across or within:
        lines += ["", "## Images that are listed more than once", ""]
        lines += [f"- in {' and '.join(one['parts'])}: `{one['image']}`" for one in across[:EXAMPLES]]
        lines += [f"- and {len(across) - EXAMPLES:,} more"] if len(across) > EXAMPLES else []
        lines += [
            f"- {count:,} rows of {part} repeat another one of it (oversampled copies?)"
            for part, count in within.items()
        ]
    for found, title in ((report.identical, "Identical files"), (report.near, "Nearly the same photograph")):
        if found is not None and found["pairs"]:
            lines += ["", f"## {title}", "", f"{found['pairs']:,} pairs are divided between parts; "
                      f"{found['unlike_lesion']:,} of them are not known to be one lesion.", ""]  # fmt: skip
            lines += [
                f"- `{e['images'][0]}` ({e['parts'][0]}) and `{e['images'][1]}` ({e['parts'][1]}), "
                f"{e['bits']} of 255 bits apart" for e in found["examples"]
            ]  # fmt: skip
    if report.mix:
        diagnoses = sorted({dx for shares in report.mix.values() for dx in shares})
        lines += ["", "## The mix of diagnoses", "", f"| Diagnosis | {' | '.join(map(cell, report.mix))} |"]
        lines += ["|---" * (len(report.mix) + 1) + "|"]
        lines += [
            f"| {cell(dx)} | {' | '.join(f'{shares.get(dx, 0.0):.1%}' for shares in report.mix.values())} |"
            for dx in diagnoses[:MOST_DIAGNOSES]
        ]
        if len(diagnoses) > MOST_DIAGNOSES:
            lines += [
                "",
                f"{len(diagnoses) - MOST_DIAGNOSES:,} more diagnoses are left out here; --format json has them.",
            ]
    if report.drift:
        d = report.drift
        lines += ["", f"**Another mix:** {d['share']:.0%} of {d['part']} are {d['diagnosis']}, and {d['elsewhere']:.0%} "
                      "of the rest. A score on it answers another question than the data set asks."]  # fmt: skip
    if report.giveaways:
        lines += ["", "## Columns that give the label away", ""]
        lines += [
            f"- `{g['column']}` = {g['value']}: always {g['always']} ({g['photographs']:,} photographs)"
            for g in report.giveaways
        ]
    return "\n".join(map(one_line, lines)) + "\n"  # whatever an image or a part is called


def shown(report: Report, style: str = "text") -> str:
    """The report as Markdown, or without its marks and with its tables in columns, for a terminal."""
    text = markdown(report)
    return text if style == "markdown" else columns(text).removesuffix("\n")


def cell(text: str) -> str:
    """A text as a cell of a Markdown table: no bar in it ends the cell."""
    return text.replace("|", "\\|")


def columns(text: str) -> str:
    """Markdown without its marks, its tables in columns."""
    lines: list[str] = []
    for is_table, group in groupby(text.splitlines(), key=lambda line: line.startswith("|")):
        if not is_table:
            lines += [re.sub(r"\*\*|`|^#+ ", "", line) for line in group]
            continue
        cells = [[one.strip().replace("\\|", "|") for one in re.split(r"(?<!\\)\|", line)[1:-1]] for line in group]
        cells = [row for row in cells if set("".join(row)) != {"-"}]
        wide = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines += ["  ".join(one.ljust(w) for one, w in zip(row, wide, strict=True)).rstrip() for row in cells]
    return "\n".join(lines) + "\n"


def snippet(split: Sequence[str], table: str = "", folder: str = "") -> str:
    """A GitHub Actions workflow that audits a project's split at every push."""
    urls = importlib.metadata.metadata("skinbook").get_all("Project-URL") or []
    address = next((url.split(", ", 1)[1] for url in urls if url.startswith("Repository")), "")
    command = shlex.join(["skinbook", "audit", *map(str, split)])
    command += f" --table {shlex.quote(table)}" if table else ""
    command += f" --images {shlex.quote(folder)}" if folder else ""
    if not re.fullmatch(r"[\w ./=-]+", command):
        command = json.dumps(command)  # a quoted text of YAML
    return f"""\
name: audit the split
on: [push, pull_request]
jobs:
  audit:
    runs-on: ubuntu-latest
    steps:
      - uses: actions/checkout@v4
      - uses: actions/setup-python@v5
        with: {{python-version: "3.11"}}
      - run: pip install "skinbook @ git+{address}"
      - run: {command}
"""
