"""`skinbook evaluate`: the whole report on labelled photographs in the known layouts, classes matched by name."""

from __future__ import annotations

import json
import shutil

import models
import numpy as np
import pytest
from layouts import BCN_CLASSES, HAM_HEADER, real, write_csv
from PIL import Image

from skinbook import evaluate_given as given
from skinbook import predict_files
from skinbook.bundle import Seen
from skinbook.card import Answers, Model
from skinbook.config import SkinbookError
from skinbook.data import ham10000
from skinbook.evaluation import Evaluation

HAM = ("nv", "mel", "bkl", "bcc", "akiec", "vasc", "df")
ISIC_2018 = ("MEL", "NV", "BCC", "AKIEC", "BKL", "DF", "VASC")


class Reader(Model):
    """A model that reads its answer from a photograph's colour: the red says which class, the green how sure."""

    temperature, image, definition, about = 1.0, 8, "mel+bcc+akiec", "A model that reads colours."
    limit = refused = None

    def __init__(self, classes=HAM, threshold=0.5, seen=None):
        self.classes, self.threshold, self.seen = tuple(classes), threshold, seen

    def answers(self, pixels, batch_size=64, device="cpu"):
        red, green = pixels[:, 0, 0, 0] // 20, pixels[:, 0, 0, 1] / 255
        others = (1 - green) / (len(self.classes) - 1)
        probabilities = np.repeat(others[:, None], len(self.classes), axis=1)
        for row, name in enumerate(red):
            if name < len(HAM) and HAM[name] in self.classes:
                probabilities[row, self.classes.index(HAM[name])] = green[row]
        return Answers(probabilities / probabilities.sum(axis=1, keepdims=True), None)


def photograph(file, answered, green=200):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (20 * HAM.index(answered) + 10, green, 0)).save(file)


def a_set(folder, count=42):
    """(image, lesion, diagnosis) of photographs, two a lesion; every fifth is answered wrongly."""
    rows = []
    for number in range(count):
        dx = HAM[number // 2 % 7]
        answered = HAM[(number // 2 + 1) % 7] if number % 5 == 0 else dx
        name = f"ISIC_{34_000 + number:07d}"
        photograph(folder / f"{name}.png", answered, 140 + number)
        rows.append((name, f"LESION_{number // 2}", dx))
    return rows


def one_hot(path, rows, columns, unknown=False):
    marks = [[name, *(float(column.lower() == dx) for column in columns)] for name, _, dx in rows]
    return write_csv(path, ["image", *columns, *(["UNK"] if unknown else [])], [m + [0.0] * unknown for m in marks])


def by_hand(folder, rows):
    """The evaluation without any table in between."""
    files = [folder / f"{name}.png" for name, _, _ in rows]
    found = list(predict_files.answers(Reader(), files))
    labels = [HAM.index(dx) for _, _, dx in rows]
    return Evaluation(labels, np.stack([one.probabilities for one in found]), [lesion for _, lesion, _ in rows], HAM)


def test_layouts_agree_and_classes_go_by_name(tmp_path):
    images = tmp_path / "images"
    rows = a_set(images)
    expected = by_hand(images, rows)
    ham = write_csv(
        tmp_path / "HAM10000_metadata.csv",
        HAM_HEADER,
        [[lesion, name, dx, "histo", "50.0", "male", "back"] for name, lesion, dx in rows],
    )
    plain = write_csv(tmp_path / "plain.csv", ["diagnosis", "filename", "lesion"], [
        [{"nv": "Nevus", "mel": "Melanoma"}.get(dx, dx.upper()), f"{name}.png", lesion] for name, lesion, dx in rows
    ])  # fmt: skip
    truth = one_hot(tmp_path / "ISIC2018_Task3_Test_GroundTruth.csv", rows, ISIC_2018)
    turned = one_hot(tmp_path / "turned.csv", rows[::-1], ISIC_2018[::-1])
    grouping = write_csv(
        tmp_path / "groups.csv", ["image", "lesion_id", "diagnosis_confirm_type"], [[n, le, "x"] for n, le, _ in rows]
    )
    read = [
        given.read_labelled(ham, images),
        given.read_labelled(plain, images),
        given.read_labelled(truth, images, grouping),
        given.read_labelled(turned, images, grouping),
    ]
    for labelled in read:
        assert labelled.grouped
        assert not labelled.notes
        report = given.evaluate(Reader(), labelled, progress=False)
        assert (report.photographs, report.lesions) == (42, 21)
        for name, found in report.metrics.items():
            value = expected.metric(name)
            np.testing.assert_allclose((found.value, found.low, found.high), (value.value, value.low, value.high))
        assert report.malignant["malignant ROC AUC"].value == pytest.approx(expected.value("malignant ROC AUC"))
        assert report.sound
        assert report.seen is None
        assert report.refused is None
    other = given.evaluate(Reader(HAM[::-1]), read[0], progress=False)
    assert other.metrics["macro F1"].value == pytest.approx(report.metrics["macro F1"].value)
    assert other.per_class["mel"] == report.per_class["mel"]


def test_the_operating_point(tmp_path):
    rows = a_set(tmp_path)
    labelled = given.read_labelled(one_hot(tmp_path / "t.csv", rows, ISIC_2018), tmp_path)
    report = given.evaluate(Reader(threshold=0.5), labelled, progress=False)
    expected = by_hand(tmp_path, rows)
    ill = np.isin([dx for _, _, dx in rows], ("mel", "bcc", "akiec"))
    called = expected.probabilities[:, [1, 3, 4]].sum(axis=1) >= 0.5
    assert report.malignant["sensitivity"].value == pytest.approx(called[ill].mean())
    assert report.malignant["specificity"].value == pytest.approx((~called[~ill]).mean())
    assert report.malignant["sensitivity"].low < report.malignant["sensitivity"].high
    assert "sensitivity" not in given.evaluate(Reader(threshold=None), labelled, progress=False).malignant


def test_without_lesions_each_photograph_is_its_own_and_the_report_says_so(tmp_path):
    truth = one_hot(tmp_path / "ISIC2018_Task3_Test_GroundTruth.csv", a_set(tmp_path), ISIC_2018)
    labelled = given.read_labelled(truth, tmp_path)
    report = given.evaluate(Reader(), labelled, progress=False)
    assert report.lesions == report.photographs == 42
    assert "each photograph counts as a lesion of its own" in report.notes[0]
    assert report.sound
    assert "lesion of its own" in given.shown(report)


def test_isic_2019_with_its_metadata_for_lesions(tmp_path):
    rows = [*a_set(tmp_path), ("ISIC_9", "L9", "scc"), ("ISIC_10", "", "nv")]
    for name in ("ISIC_9", "ISIC_10"):
        photograph(tmp_path / f"{name}.png", "mel")
    rows = [(name, lesion, "ak" if dx == "akiec" else dx) for name, lesion, dx in rows]
    truth = one_hot(tmp_path / "ISIC_2019_Training_GroundTruth.csv", rows, BCN_CLASSES, unknown=True)
    lesions = write_csv(
        tmp_path / "ISIC_2019_Training_Metadata.csv",
        ["image", "age_approx", "anatom_site_general", "lesion_id", "sex"],
        [[name, 50, "", lesion, "male"] for name, lesion, _ in rows],
    )
    labelled = given.read_labelled(truth, tmp_path, lesions)
    assert "1 photographs without a lesion_id" in labelled.notes[0]
    report = given.evaluate(Reader(), labelled, progress=False)
    assert report.not_in_model == {"ak": 6, "scc": 1}
    assert report.not_in_set == ["akiec"]
    assert sum(about["photographs"] for about in report.per_class.values()) == 44 - 7
    assert any("no class for ak (6), scc (1)" in note for note in report.notes)
    same = given.evaluate(Reader(), labelled, {"ak": "akiec"}, progress=False)
    assert same.not_in_model == {"scc": 1}
    assert same.not_in_set == []
    assert same.per_class["akiec"]["photographs"] == 6
    assert same.malignant == report.malignant  # which counted ak and scc already
    for wrong in ({"ak": "scc"}, {"wart": "nv"}):
        with pytest.raises(SkinbookError, match="such as ak=akiec"):
            given.evaluate(Reader(), labelled, wrong, progress=False)
    with pytest.raises(SkinbookError, match="Give the ground truth as --table"):
        given.read_labelled(lesions, tmp_path)
    with pytest.raises(SkinbookError, match="has no column lesion_id"):
        given.read_labelled(truth, tmp_path, truth)


def test_a_model_of_benign_and_malignant(tmp_path):
    class Two(Reader):
        def answers(self, pixels, batch_size=64, device="cpu"):
            seven = Reader().answers(pixels).probabilities
            ill = seven[:, [1, 3, 4]].sum(axis=1)
            return Answers(np.stack([1 - ill, ill], axis=1), None)

    labelled = given.read_labelled(one_hot(tmp_path / "t.csv", a_set(tmp_path), ISIC_2018), tmp_path)
    two = given.evaluate(Two(("benign", "malignant")), labelled, progress=False)
    seven = given.evaluate(Reader(), labelled, progress=False)
    assert two.malignant == seven.malignant
    assert two.metrics["macro ROC AUC"] == two.malignant["malignant ROC AUC"]
    assert two.per_class["malignant"]["photographs"] == 18
    assert not two.not_in_model
    assert not two.not_in_set


def test_what_the_model_has_seen_is_said_and_can_be_left_out(tmp_path):
    rows = a_set(tmp_path)
    labelled = given.read_labelled(
        write_csv(tmp_path / "t.csv", ["image", "lesion_id", "dx"], [list(row) for row in rows]), tmp_path
    )
    seen = Seen.of([rows[0][0]], [rows[4][1], "LESION_99"])  # one photograph, and one lesion of two
    report = given.evaluate(Reader(seen=seen), labelled, progress=False)
    assert report.seen == 3
    assert not report.sound
    assert "3 of these photographs show lesions that the model was trained or chosen on" in report.notes[0]
    fresh = given.evaluate(Reader(seen=seen), labelled, unseen=True, progress=False)
    assert (fresh.photographs, fresh.seen, fresh.sound) == (39, 0, True)
    small = labelled.table.assign(image_id=labelled.table["image_id"].str.lower())
    assert seen.knows(small["image_id"], small["lesion_id"].str.lower()).sum() == 3  # however they are spelled
    everything = Seen.of([], [lesion for _, lesion, _ in rows])
    with pytest.raises(SkinbookError, match="every one of these photographs"):
        given.evaluate(Reader(seen=everything), labelled, unseen=True, progress=False)
    with pytest.raises(SkinbookError, match="does not know what it has seen"):
        given.evaluate(Reader(), labelled, unseen=True, progress=False)


def test_what_cannot_be_judged_is_left_out_by_name(tmp_path):
    rows = a_set(tmp_path)
    (tmp_path / f"{rows[3][0]}.png").write_bytes(b"broken")
    (tmp_path / f"{rows[4][0]}.png").unlink()
    listed = [list(row) for row in rows]
    listed[5][2], listed[6][2], listed[7][2] = "", "unknown", "Wart"
    labelled = given.read_labelled(write_csv(tmp_path / "t.csv", ["image", "lesion_id", "dx"], listed), tmp_path)
    report = given.evaluate(Reader(), labelled, progress=False)
    assert report.photographs == 42 - 5
    assert not report.sound
    text = given.shown(report)
    assert "2 photographs without a diagnosis" in text
    assert "does not know are left out: wart (1)" in text
    assert f"1 photographs have no file and are left out, such as {rows[4][0]}" in text
    assert "1 photographs could not be read" in text
    assert rows[3][0] in report.unread[0]


@pytest.mark.parametrize(
    ("header", "changed", "sentence"),
    [
        (["image", "lesion_id", "dx"], lambda rows: rows + rows[:1], "lists 1 images more than once, such as ISIC_"),
        (["image", "lesion_id", "dx"], lambda rows: [[r[0], r[1], "wart"] for r in rows], "no photograph with a diagnosis"),
        (["image", "lesion_id", "dx"], lambda rows: [["X" + r[0], *r[1:]] for r in rows], "None of the 42 photographs"),
        (["photo", "lesion_id", "dx"], lambda rows: rows, "no column for the image"),
        (["image", "lesion_id", "age"], lambda rows: rows, "has no diagnosis"),
    ],
)  # fmt: skip
def test_tables_that_are_refused(tmp_path, header, changed, sentence):
    rows = [list(row) for row in a_set(tmp_path)]
    table = write_csv(tmp_path / "t.csv", header, changed(rows))
    with pytest.raises(SkinbookError, match=sentence):
        given.read_labelled(table, tmp_path)
    with pytest.raises(SkinbookError, match="is not a folder"):
        given.read_labelled(write_csv(tmp_path / "u.csv", ["image", "lesion_id", "dx"], rows), tmp_path / "nowhere")


def test_of_one_kind_nothing_that_needs_two_is_claimed(tmp_path):
    rows = [row for row in a_set(tmp_path) if row[2] == "nv"]
    labelled = given.read_labelled(
        write_csv(tmp_path / "t.csv", ["image", "lesion_id", "dx"], [list(row) for row in rows]), tmp_path
    )
    report = given.evaluate(Reader(), labelled, progress=False)
    told = json.loads(json.dumps(report.told(), allow_nan=False))
    assert told["malignant"]["malignant ROC AUC"] == [None, None, None]
    assert told["malignant"]["sensitivity"] == [None, None, None]
    assert report.not_in_set == [name for name in HAM if name != "nv"]
    assert "–" in given.shown(report)


def test_the_command(tmp_path, monkeypatch, capsys):
    """The book's own model on drawn lesions: text, Markdown, JSON, and exit codes."""
    table = models.lesions(tmp_path / "drawn", ("nv", "mel", "bcc", "vasc"), each=8)
    arguments = ["evaluate", "--bundle", "lab", "--table", table, "--images", tmp_path / "drawn"]
    assert models.call(monkeypatch, *arguments) == 0
    text = capsys.readouterr().out
    assert "32 photographs of 32 lesions" in text
    assert "|" not in text
    assert "teaching tool" in text
    assert models.call(monkeypatch, *arguments, "--format", "markdown") == 0
    assert "| balanced accuracy | 0." in capsys.readouterr().out
    assert models.call(monkeypatch, *arguments, "--json") == 0
    told = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    value, low, high = told["metrics"]["accuracy"]
    assert 0.6 < value <= 1
    assert low <= value <= high
    assert told["not_in_set"] == ["bkl", "ak", "scc", "df"]
    assert told["seen"] == 0
    assert told["sound"]
    assert told["refused"] <= 3
    (tmp_path / "drawn" / "DRAWN_nv_000_0.png").unlink()
    assert models.call(monkeypatch, *arguments) == 1
    assert "1 photographs have no file" in capsys.readouterr().out
    for more in (["--format", "csv"], ["--same", "ak"], ["--same", "ak=wart"]):
        assert models.call(monkeypatch, *arguments, *more) == 2
        assert capsys.readouterr().err.startswith("skinbook: ")


@pytest.mark.slow
def test_real_lesions_in_the_layout_of_the_isic_challenge(tmp_path, monkeypatch, capsys):
    """A hundred photographs of HAM10000 under a ground truth as ISIC 2018 Task 3 has it, its classes in another order."""
    table = real("ham10000")
    if table is None:
        pytest.skip("HAM10000 was not found: SKINBOOK_DATA leads to none")
    known = ham10000.read_table(table).iloc[::100]
    truth = one_hot(tmp_path / "t.csv", known[["image_id", "lesion_id", "dx"]].to_numpy().tolist(), ISIC_2018)
    arguments = ["evaluate", "-b", "lab", "--table", truth, "--images", table.parent, "--json"]
    assert models.call(monkeypatch, *arguments, "--lesions", table) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["photographs"] == len(known) == 101
    assert told["lesions"] == known["lesion_id"].nunique()
    assert told["not_in_model"] == {"akiec": int((known["dx"] == "akiec").sum())}
    assert told["refused"] > 10  # drawn lesions are not real ones, and the model notices
    counts = {dx: about["photographs"] for dx, about in told["per_class"].items()}
    assert counts == {dx: int((known["dx"] == dx).sum()) for dx in counts}


def test_lesions_are_joined_however_the_images_are_spelled(tmp_path):
    rows = a_set(tmp_path, 6)
    table = write_csv(tmp_path / "t.csv", ["image", "dx"], [[name.lower(), dx] for name, _, dx in rows])
    grouping = write_csv(tmp_path / "l.csv", ["image_id", "lesion_id"], [[name, lesion] for name, lesion, _ in rows])
    labelled = given.read_labelled(table, tmp_path, grouping)
    assert labelled.grouped
    assert labelled.table["lesion_id"].tolist() == [lesion for _, lesion, _ in rows]


def test_scores_near_zero_are_no_ties():
    ill = np.repeat([False, True], 30)
    score = np.concatenate([np.linspace(1e-30, 1e-29, 30), np.linspace(1e-28, 1e-27, 30)])
    model = Reader(("benign", "malignant"), threshold=None)
    found = given._malignant(model, ill, score, np.arange(60).astype(str))["malignant ROC AUC"]
    assert (found.value, found.low, found.high) == (1, 1, 1)
    alone = given._malignant(model, ill[:30], score[:30], np.arange(30).astype(str))["malignant ROC AUC"]
    assert np.isnan([alone.value, alone.low, alone.high]).all()


def test_masks_and_other_parts_are_not_taken_for_the_photographs(tmp_path):
    for folder, colour in (("annotations", "white"), ("images", "red")):
        (tmp_path / "data" / folder).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (40, 40), colour).save(tmp_path / "data" / folder / f"{number}.png")
    bare = write_csv(tmp_path / "t.csv", ["image", "dx"], [[f"{n}.png", dx] for n, dx in enumerate(HAM[:3])])
    with pytest.raises(SkinbookError, match=r"annotations.0\.png and .*images.0\.png differ, and 0\.png may be either"):
        given.read_labelled(bare, tmp_path / "data")
    named = write_csv(tmp_path / "u.csv", ["image", "dx"], [[f"images/{n}.png", dx] for n, dx in enumerate(HAM[:3])])
    for table, folder in ((bare, "data/images"), (named, "data"), (named, "data/images")):
        labelled = given.read_labelled(table, tmp_path / folder)
        assert labelled.files == {str(n): tmp_path / "data" / "images" / f"{n}.png" for n in range(3)}
        assert len(labelled.notes) == 1  # on lesions
    # A copy of the folder is the same photographs.
    shutil.copytree(tmp_path / "data" / "images", tmp_path / "data" / "images" / "images")
    assert given.read_labelled(bare, tmp_path / "data" / "images").files == labelled.files


def test_names_that_begin_anew_in_each_part_keep_their_folders(tmp_path):
    for number, part in enumerate(("test", "val")):
        photograph(tmp_path / "data" / part / "0.png", HAM[number])
    header = ["image", "dx"]
    one = given.read_labelled(write_csv(tmp_path / "t.csv", header, [["val/0.png", "nv"]]), tmp_path / "data")
    assert one.files == {"0": tmp_path / "data" / "val" / "0.png"}
    rows = [["test/0.png", "nv"], ["val\\0.PNG", "nv"], ["train/0.png", "nv"]]
    grouping = write_csv(tmp_path / "l.csv", ["image", "lesion_id"], [["TEST/0", "L1"], ["val/0", "L2"], ["0", "L3"]])
    table = write_csv(tmp_path / "t.csv", header, rows)
    labelled = given.read_labelled(table, tmp_path / "data", grouping)
    assert labelled.files == {f"{part}/0": tmp_path / "data" / part / "0.png" for part in ("test", "val")}
    assert labelled.table["lesion_id"].tolist() == ["L1", "L2"]
    assert labelled.notes[1:] == ("1 photographs have no file and are left out, such as train/0.",)
    assert given.dataset(labelled, "t.csv").table["image_id"].tolist() == ["test/0", "val/0"]
    some = given.read_labelled(write_csv(tmp_path / "u.csv", header, [["val/0.png", "nv"]]), tmp_path, grouping)
    assert some.table["lesion_id"].tolist() == ["L2"]  # of several of the name, the one with the folder
    grouping = write_csv(tmp_path / "l.csv", ["image", "lesion_id"], [["val/0", "L2"]])
    some = given.read_labelled(table, tmp_path / "data", grouping)
    assert some.table["lesion_id"].tolist() == ["test/0", "L2"]
    # Lesions by the bare name, where only that is common to both tables.
    for told in (["elsewhere/0.jpg", "L4"], ["0", "L4"]):
        grouping = write_csv(tmp_path / "l.csv", ["image", "lesion_id"], [told])
        some = given.read_labelled(write_csv(tmp_path / "u.csv", header, [["val/0.png", "nv"]]), tmp_path, grouping)
        assert some.table["lesion_id"].tolist() == ["L4"]


def test_two_rows_of_one_photograph_are_refused_however_they_are_written(tmp_path):
    photograph(tmp_path / "data" / "a" / "0.png", "nv")
    table = write_csv(tmp_path / "t.csv", ["image", "dx"], [["a/0.png", "nv"], ["0.png", "nv"]])
    with pytest.raises(SkinbookError) as refused:
        given.read_labelled(table, tmp_path / "data")
    file = tmp_path / "data" / "a" / "0.png"
    assert str(refused.value) == (
        f"{table} lists a/0 and 0, which are one photograph ({file}). Every photograph may count once: "
        "remove one of the rows."
    )
    table = write_csv(tmp_path / "t.csv", ["image", "dx"], [["b/0.png", "nv"], ["c/0.png", "nv"], ["a/0.png", "mel"]])
    photograph(tmp_path / "data" / "b" / "0.png", "mel")
    photograph(tmp_path / "data" / "c" / "0.png", "nv")
    with pytest.raises(SkinbookError, match=r"lists c/0 and a/0, which are one photograph \(.*a.0\.png\)"):
        given.read_labelled(table, tmp_path / "data")
    photograph(tmp_path / "data" / "c" / "0.png", "bcc")
    assert len(given.read_labelled(table, tmp_path / "data").files) == 3


def test_a_photograph_that_is_not_in_the_folder_of_the_table_is_told(tmp_path):
    for number in range(3):
        photograph(tmp_path / "data" / "here" / f"{number}.png", "nv", 100 + number)
    rows = [["/home/me/pictures/0.png", "nv"], ["1.png", "nv"], ["old/here/2.png", "nv"]]
    labelled = given.read_labelled(write_csv(tmp_path / "t.csv", ["image", "dx"], rows), tmp_path / "data")
    assert len(labelled.files) == 3
    file = tmp_path / "data" / "here" / "0.png"
    assert labelled.notes[1:] == (
        "1 photographs were found by their names alone, not in the folder that the table names, such as "
        f"/home/me/pictures/0.png: {file} is taken for it.",
    )
