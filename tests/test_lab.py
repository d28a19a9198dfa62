"""The lab: its table, its pixels, its cache, its shortcut, and what was measured of it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time

import numpy as np
import pandas as pd
import pytest

from skinbook import lab_backbone, lab_calibration
from skinbook.config import SkinbookError, book_data, settings
from skinbook.data import dermoscopy, lab, pixels
from skinbook.data.schema import COLUMNS
from skinbook.diagnoses import CLASSES, malignant

# One process draws or loads what these share (with `--dist loadgroup`, as `make unit` has it).
pytestmark = pytest.mark.xdist_group("lab")


def make_few(patch):
    """A lab of sixteen lesions: one chunk or two, drawn in this process."""
    patch.setattr(lab, "LESIONS", dict.fromkeys(CLASSES["lab"], 2))
    patch.setattr(lab, "cores", lambda: 1)


@pytest.fixture
def few(monkeypatch):
    make_few(monkeypatch)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The cache of a small lab, drawn once."""
    folder = tmp_path_factory.mktemp("lab")
    with pytest.MonkeyPatch.context() as patch:
        make_few(patch)
        lab.load(folder, progress=False)
    return folder


@pytest.fixture
def small_lab(few, drawn, tmp_path):
    shutil.copytree(drawn, tmp_path, dirs_exist_ok=True)
    return lab.load(tmp_path, progress=False)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_table_is_as_promised(seed):
    table = lab.recipe(seed)
    lesions = table.groupby("lesion_id")
    photographs = lesions.size()
    assert 2350 <= len(table) <= 2450
    assert 2.45 <= photographs.mean() <= 2.55
    assert set(photographs) == {1, 2, 3, 4, 5, 6}
    assert table["dx"].value_counts(normalize=True)["nv"] == pytest.approx(0.40, abs=0.015)
    assert table["dx"].value_counts().min() >= 120
    assert lesions["dx"].first().value_counts().min() >= 45
    assert set(table["dx"]) == set(CLASSES["lab"])
    assert set(table["skin_type"]) == {1, 2, 3, 4, 5, 6}
    for column in ("dx", "dx_type", "age", "sex", "site", "source", "skin_type"):
        assert lesions[column].nunique(dropna=False).max() == 1, f"{column} differs between photographs of a lesion"
    cancer = table["dx"].map(malignant)
    assert (table.loc[cancer, "dx_type"] == "histo").all()
    assert (table.loc[table["dx_type"] == "follow_up", "dx"] == "nv").all()
    assert table["age"].isna().any()
    assert table["sex"].isna().any()
    assert table["site"].isna().any()


def test_the_table_is_the_same_everywhere():
    text = lab.recipe(0).to_csv(index=False, lineterminator="\n")
    assert hashlib.blake2b(text.encode(), digest_size=8).hexdigest() == "aff8eaa769a28808"
    assert lab.recipe(1)["age"].tolist() != lab.recipe(0)["age"].tolist()


def test_the_pixels_are_the_same_everywhere_within_one_grey_level():
    grid = [
        lab.render_example(dx, "reference").image[8::16, 8::16].astype(int).sum(axis=2).ravel() for dx in CLASSES["lab"]
    ]
    reference = np.array(json.loads(REFERENCE))
    assert np.abs(np.stack(grid)[:, ::7] - reference).max() <= 3  # three channels, one grey level each


# The sum of red, green and blue at every seventh point of an 8 by 8 grid, one row a diagnosis.
REFERENCE = """[
 [480, 421, 452, 251, 325, 320, 309, 480, 555, 518],
 [480, 421, 452, 220, 259, 275, 278, 275, 555, 518],
 [480, 421, 452, 297, 325, 324, 343, 395, 555, 518],
 [480, 421, 452, 363, 384, 396, 415, 473, 555, 518],
 [480, 421, 452, 341, 395, 451, 410, 426, 555, 518],
 [480, 421, 452, 360, 400, 464, 418, 484, 555, 518],
 [480, 421, 452, 400, 266, 438, 457, 537, 555, 518],
 [480, 421, 452, 348, 506, 525, 420, 534, 555, 518]
]"""


def test_a_lesion_looks_the_same_at_any_size():
    for dx in CLASSES["lab"]:
        small, large = (lab.render_example(dx, "size", size=size) for size in (128, 512))
        reduced = large.image.reshape(128, 4, 128, 4, 3).mean(axis=(1, 3))
        assert np.abs(reduced - small.image).mean() < 2.5
        assert abs(large.lesion.mean() - small.lesion.mean()) < 0.01


def test_every_structure_has_a_drawing_and_a_mask():
    assert set(dermoscopy.DRAW) == set(dermoscopy.STRUCTURES)
    plain = dermoscopy.lesion("nv", ("structures", 1))
    for name in dermoscopy.STRUCTURES:
        without = dermoscopy.Lesion(plain.key, plain.build, {}, 2, 0)
        alone = dermoscopy.Lesion(plain.key, plain.build, {name: 0.9}, 2, 0)
        drawn, bare = (dermoscopy.render(subject, dermoscopy.Photograph()) for subject in (alone, without))
        assert drawn.structures[name].any(), name
        changed = np.abs(drawn.image.astype(int) - bare.image).sum(axis=2)
        assert changed[drawn.structures[name]].mean() > 15, f"{name} can hardly be seen where its mask is"


def test_photographs_of_a_lesion_differ_and_the_same_one_repeats():
    subject = dermoscopy.lesion("bcc", ("repeat", 3))
    first, again, second = (dermoscopy.render(subject, dermoscopy.Photograph(n)).image for n in (0, 0, 1))
    assert (first == again).all()
    assert np.abs(first.astype(int) - second).mean() > 2


def test_load_gives_a_data_set(small_lab):
    assert small_lab.edition == "lab"
    assert small_lab.classes == CLASSES["lab"]
    assert small_lab.provides == {"lesion_id", "metadata", "dx_type", "masks"}
    assert tuple(small_lab.table.columns) == COLUMNS
    for image_id in small_lab.table["image_id"]:
        image, mask = small_lab.images.read(image_id), small_lab.masks.read(image_id)
        assert (image.shape, image.dtype, mask.shape, mask.dtype) == ((128, 128, 3), np.uint8, (128, 128), np.bool_)
        assert 0.01 < mask.mean() < 0.95
        rendered = lab.render(small_lab, image_id, (128, 128))
        assert (rendered.image == image).all()
        assert (rendered.lesion == mask).all()
        kept = lab.structures(small_lab, image_id)
        assert {name for name, drawn in rendered.structures.items() if drawn.any()} == set(kept)
        assert all((kept[name] == rendered.structures[name]).all() for name in kept)
    assert lab.render(small_lab, small_lab.table["image_id"][0]).image.shape == (450, 600, 3)
    assert {"skin_type", "ruler", "ink", "lesion", "photograph"} <= set(lab.truth(small_lab).columns)


def test_several_processes_draw_what_one_does(small_lab, tmp_path, monkeypatch):
    monkeypatch.setattr(lab, "cores", lambda: 2)
    again = lab.load(tmp_path / "other", progress=False)
    for image_id in small_lab.table["image_id"]:
        assert (again.images.read(image_id) == small_lab.images.read(image_id)).all()


def test_a_second_load_reads_the_cache(small_lab, tmp_path, monkeypatch):
    monkeypatch.setattr(lab, "_draw_chunk", lambda tasks: pytest.fail("drawn a second time"))
    again = lab.load(tmp_path, progress=False)
    ids = again.table["image_id"].tolist()
    assert again.images.fingerprint(ids) == small_lab.images.fingerprint(ids)
    assert again.images.fingerprint(ids) != again.masks.fingerprint(ids)
    assert again.images.fingerprint(ids) != again.images.fingerprint(ids[1:])


def test_a_full_disk_is_one_sentence_and_leaves_nothing(few, tmp_path, monkeypatch):
    def full(tasks):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(lab, "_draw_chunk", full)
    with pytest.raises(SkinbookError, match="no space is left"):
        lab.load(tmp_path, progress=False)
    assert list((tmp_path / "lab").iterdir()) == []


def test_a_faster_process_is_no_fault(few, tmp_path, monkeypatch):
    draw = lab._draw_chunk

    def overtaken(tasks):
        monkeypatch.setattr(lab, "_draw_chunk", draw)
        lab.load(tmp_path / "elsewhere", progress=False)
        (tmp_path / "lab").mkdir(exist_ok=True)
        for folder in (tmp_path / "elsewhere" / "lab").iterdir():
            folder.rename(tmp_path / "lab" / folder.name)
        return draw(tasks)

    monkeypatch.setattr(lab, "_draw_chunk", overtaken)
    assert len(lab.load(tmp_path, progress=False).table)
    assert len(list((tmp_path / "lab").iterdir())) == 1


def test_what_a_killed_drawing_left_is_in_nobodys_way_and_goes_in_time(few, tmp_path, monkeypatch):
    """In a container every process may have the same number, and a cache may be shared by several."""
    folder = tmp_path / "lab" / lab._fingerprint(0, 0.0)
    left = [folder.with_name(f"{folder.name}.partial-{what}") for what in (os.getpid(), "old", "young")]
    for one in left:
        one.mkdir(parents=True)
        (one / "photographs.npy").touch()
    long_ago = time.time() - 25 * 60 * 60
    os.utime(left[1], (long_ago, long_ago))
    assert len(lab.load(tmp_path, progress=False).table)
    assert {path.name for path in folder.parent.iterdir()} == {folder.name, left[0].name, left[2].name}
    assert lab._fingerprint(0, 1) == lab._fingerprint(0, 1.0)


def test_a_damaged_cache_is_named(small_lab, tmp_path):
    (small_lab.where / "lesions.npy").write_bytes(b"broken")
    with pytest.raises(SkinbookError, match=r"lesions\.npy is missing or damaged"):
        lab.load(tmp_path, progress=False)


def test_bad_questions_get_one_sentence(small_lab):
    with pytest.raises(SkinbookError, match="no photograph 'ISIC_1'"):
        small_lab.images.read("ISIC_1")
    with pytest.raises(SkinbookError, match=r"from 0 \(none\) to 1"):
        lab.recipe(shortcut=1.5)
    with pytest.raises(SkinbookError, match="choose ruler, ink or None"):
        lab.with_shortcut(small_lab, ["LAB_0000000"], "sticker")
    with pytest.raises(SkinbookError, match="not a diagnosis of the lab"):
        lab.render_example("akiec", 0)


def test_the_shortcut_lever():
    none, half, whole = (lab.recipe(0, shortcut) for shortcut in (0.0, 0.5, 1.0))
    cancer = none["dx"].map(malignant)
    for artefact, share in (("ruler", lab.RULER), ("ink", lab.INK)):
        assert none.loc[cancer, artefact].mean() == pytest.approx(share, abs=0.03)
        assert none.loc[~cancer, artefact].mean() == pytest.approx(share, abs=0.03)
        assert half.loc[cancer, artefact].mean() > 0.4 > 10 * half.loc[~cancer, artefact].mean()
        assert (whole[artefact] == cancer).all()
    plain = ["ruler", "ink"]
    pd.testing.assert_frame_equal(none.drop(columns=plain), whole.drop(columns=plain))


def test_a_shortcut_is_all_that_changes(small_lab):
    ids = small_lab.table["image_id"].tolist()[:6]
    clean, ruler, ink = (lab.with_shortcut(small_lab, ids, kind).astype(int) for kind in (None, "ruler", "ink"))
    for planted, least, most in ((ruler, 0.04, 0.4), (ink, 0.002, 0.25)):
        share = (np.abs(planted - clean).max(axis=3) > 1).mean(axis=(1, 2))
        assert (share > least).all()
        assert (share < most).all()


def test_the_recorded_calibration_meets_its_aims():
    recorded = json.loads(book_data("lab_calibration.json").read_text(encoding="utf-8"))["measurements"]
    for name, (low, high) in lab_calibration.AIMS.items():
        assert len(recorded[name]["seeds"]) == 5
        assert all(low <= value <= high for value in recorded[name]["seeds"]), name
    heads = [recorded[f"balanced accuracy of a linear head on the {b} backbone"]["mean"] for b in ("lab's", "random")]
    assert heads[0] > heads[1] + 0.08


@pytest.mark.parametrize("dx_type", [False, True])
def test_metadata_alone_score_what_was_recorded(dx_type):
    name = "malignant ROC AUC of metadata" + " and dx_type" * dx_type
    recorded = json.loads(book_data("lab_calibration.json").read_text(encoding="utf-8"))["measurements"][name]
    area = lab_calibration.metadata_auc(lab.recipe(0), dx_type)
    assert area == pytest.approx(recorded["seeds"][0], abs=0.005)
    assert recorded["range"][0] - 0.005 <= area <= recorded["range"][1] + 0.005


@pytest.mark.slow
def test_one_seed_of_the_whole_lab_lies_within_the_recorded_spread():
    # Draws the lab that the chapters use (about a minute, unless it is cached). Training the small network from scratch
    # takes a minute a seed and is left to `skinbook lab calibrate`; heads on frozen features take seconds.
    dataset = lab.load(settings().cache, progress=False)
    scores = lab_calibration.backbone_scores(dataset, pixels.build(dataset, lab_calibration.SIZE, settings().cache), 0)
    recorded = json.loads(book_data("lab_calibration.json").read_text(encoding="utf-8"))["measurements"]
    for name, score in scores.items():
        assert score == pytest.approx(recorded[name]["seeds"][0], abs=0.02), name
        assert recorded[name]["range"][0] - 0.02 <= score <= recorded[name]["range"][1] + 0.02, name


@pytest.mark.slow
def test_the_backbone_sees_structures_on_lesions_it_never_saw():
    import torch
    from safetensors import safe_open

    from skinbook.networks import Backbone

    file = book_data("lab_backbone.safetensors")
    assert file.stat().st_size < 1_500_000
    with safe_open(file, "pt") as held:
        about = held.metadata()
    assert about["arch"] == lab_backbone.ARCH
    assert not set(about["predicts"].split(", ")) & set(CLASSES["lab"])
    numbers = list(range(10**6, 10**6 + 160))
    images, shown = lab_backbone.examples(numbers)
    means = {}
    for weights in ("lab", "none"):
        torch.manual_seed(0)
        backbone = Backbone(lab_backbone.ARCH, weights).eval()
        inputs = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
        inputs = (inputs - torch.tensor(backbone.mean)[:, None, None]) / torch.tensor(backbone.std)[:, None, None]
        with torch.inference_mode():
            features = backbone(inputs).mean(dim=(2, 3)).numpy()
        means[weights] = np.mean([_linear_auc(features, shown[:, k]) for k in range(len(lab_backbone.LABELS))])
    assert means["lab"] > means["none"] + 0.1


def _linear_auc(features: np.ndarray, shown: np.ndarray) -> float:
    """ROC AUC on the second half of a ridge regression on the first."""
    from sklearn.linear_model import Ridge
    from sklearn.metrics import roc_auc_score
    from sklearn.preprocessing import StandardScaler

    half = len(shown) // 2
    scaled = StandardScaler().fit(features[:half])
    model = Ridge(alpha=30).fit(scaled.transform(features[:half]), shown[:half])
    return float(roc_auc_score(shown[half:], model.predict(scaled.transform(features[half:]))))


def test_the_number_of_hairs_is_that_of_the_picture(small_lab):
    from dataclasses import replace

    dataset = small_lab
    counts, source = lab.hairs(dataset), dataset.images
    assert counts.shape == (len(dataset.table),)
    assert {0} < set(counts.tolist())
    places = [int(np.flatnonzero(counts == 0)[0]), int(np.argmax(counts))]
    for place, image_id in zip(places, dataset.table["image_id"].iloc[places], strict=True):
        dx, seed, number, skin_type, photograph = source.task(image_id)
        lesion = dermoscopy.lesion(dx, ("lab", seed, number), skin_type)
        shaved = dermoscopy.render(replace(lesion, hairs=0), photograph, lab.SIZE, lab.SIZE).image
        assert (shaved == source.read(image_id)).all() == (counts[place] == 0)
