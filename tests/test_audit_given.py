"""Anybody's split: as a CSV, as lists, as folders; what is found in it, and what the command says and exits with."""

import json
import tomllib

import numpy as np
import pandas as pd
import pytest
from layouts import write_csv
from PIL import Image
from typer.testing import CliRunner

from skinbook import audit_given as given
from skinbook import book, cli
from skinbook.config import SkinbookError

HOME = book.HOME


def photograph(number, side=96):
    """A picture of blobs that has nothing in common with another number's."""
    coarse = np.random.default_rng(number).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


@pytest.fixture
def project(tmp_path):
    """Two hundred lesions of two photographs each, two diagnoses, and a table with a column that gives one of them away."""
    rows = []
    for lesion in range(200):
        dx = "mel" if lesion % 4 == 0 else "nv"
        for number in range(2):
            kind = "histo" if dx == "mel" else "follow_up"
            rows.append((f"I{lesion:03}{number}", f"L{lesion}", dx, kind, 40, "female", "back"))
    columns = ["image_id", "lesion_id", "dx", "dx_type", "age", "sex", "localization"]
    table = pd.DataFrame(rows, columns=columns)
    table.to_csv(tmp_path / "metadata.csv", index=False)
    return tmp_path, table


def write(folder, table, parts, name="split.csv", columns=("image_id", "part")):
    file = folder / name
    pd.DataFrame({columns[0]: table["image_id"], columns[1]: parts}).to_csv(file, index=False)
    return file


def by_lesion(table):
    return ["test" if int(lesion[1:]) % 10 < 2 else "train" for lesion in table["lesion_id"]]


def by_photograph(table):
    return ["test" if row % 5 == 0 else "train" for row in range(len(table))]


def test_a_split_by_lesion_is_clean(project):
    folder, table = project
    found = given.audit_given([write(folder, table, by_lesion(table))], folder / "metadata.csv")
    assert not found.leaks
    assert found.verdict.startswith("Clean: nothing stands in two parts.")
    assert "under two names (no images were given)" in found.verdict
    assert found.photographs == {"test": 80, "train": 320}
    assert found.lesions["judged"]["test"] == {"photographs": 80, "known": 0, "share": 0.0}


def test_a_split_by_photograph_leaks_and_is_counted(project):
    folder, table = project
    found = given.audit_given([write(folder, table, by_photograph(table))], folder / "metadata.csv")
    assert found.leaks
    assert found.lesions["across"] == [{"parts": ["test", "train"], "lesions": 80, "photographs": 160}]
    assert found.lesions["judged"]["test"]["known"] == 80
    assert "80 of 80 in test" in found.verdict


def test_columns_that_give_the_label_away_are_named(project):
    folder, table = project
    found = given.audit_given([write(folder, table, by_lesion(table))], folder / "metadata.csv")
    assert {g["value"]: g["always"] for g in found.giveaways} == {"histo": "mel", "follow_up": "nv"}


@pytest.mark.parametrize(
    ("columns", "ending", "values"),
    [
        (("Image_ID", "Split"), "", {"train": "Training", "test": "TEST"}),
        (("filename", "subset"), ".jpg", {"train": "train", "test": "holdout"}),
        (("img_path", "set"), ".png", {"train": "trn", "test": "test"}),
    ],
)
def test_columns_and_parts_have_many_names(project, columns, ending, values):
    folder, table = project
    file = folder / "other.csv"
    prefix = "images\\dermoscopy\\" if ending else ""
    names = prefix + table["image_id"] + ending
    pd.DataFrame({columns[0]: names, columns[1]: [values[p] for p in by_lesion(table)]}).to_csv(
        file, index=False, sep=";"
    )
    found = given.audit_given([file], folder / "metadata.csv")
    assert found.photographs == {"test": 80, "train": 320}
    assert not found.leaks


def test_folds_are_parts(project):
    folder, table = project
    clean = [int(lesion[1:]) % 5 for lesion in table["lesion_id"]]
    found = given.audit_given([write(folder, table, clean, columns=("image_id", "fold"))], folder / "metadata.csv")
    assert not found.leaks
    assert list(found.photographs) == [f"fold {k}" for k in range(5)]
    mixed = [row % 5 for row in range(len(table))]
    found = given.audit_given([write(folder, table, mixed, columns=("image_id", "fold"))], folder / "metadata.csv")
    assert found.leaks
    assert len(found.lesions["judged"]) == 5


def test_an_image_in_two_parts_leaks_and_an_oversampled_copy_does_not(project):
    folder, table = project
    parts = pd.DataFrame({"image_id": table["image_id"], "part": by_lesion(table)})
    copies = parts[parts["part"] == "train"].head(7)
    pd.concat([parts, copies]).to_csv(folder / "copies.csv", index=False)
    found = given.audit_given([folder / "copies.csv"], folder / "metadata.csv")
    assert not found.leaks
    assert found.repeated == {"across": [], "within": {"train": 7}}
    pd.concat([parts, copies.assign(part="test").head(1)]).to_csv(folder / "both.csv", index=False)
    found = given.audit_given([folder / "both.csv"])
    assert found.leaks
    assert found.repeated["across"] == [{"image": copies["image_id"].iloc[0], "parts": ["test", "train"]}]


def test_a_test_set_of_another_mix_is_found(project):
    folder, table = project
    only_moles = [
        "test" if dx == "nv" and int(i[1:4]) < 90 else "train"
        for dx, i in zip(table["dx"], table["image_id"], strict=True)
    ]
    found = given.audit_given([write(folder, table, only_moles)], folder / "metadata.csv")
    assert not found.leaks
    assert (found.drift["part"], found.drift["share"]) == ("test", 1.0)
    assert "Another mix" in given.markdown(found)
    found = given.audit_given([write(folder, table, by_lesion(table))], folder / "metadata.csv")
    assert found.drift is None


def test_lists_of_files(tmp_path):
    (tmp_path / "a.txt").write_text("images/one.jpg,nv\nimages/two.jpg\n\n", encoding="utf-8")
    (tmp_path / "b.txt").write_text("three.JPG\none.jpg\n", encoding="utf-8")
    found = given.audit_given([f"train={tmp_path / 'a.txt'}", f"val={tmp_path / 'b.txt'}"])
    assert found.photographs == {"train": 2, "validation": 2}
    assert found.repeated["across"] == [{"image": "one", "parts": ["train", "validation"]}]


def test_lists_may_be_tables(tmp_path):
    (tmp_path / "a.csv").write_text("image_id,dx\nISIC_1,mel\nISIC_2,nv\n", encoding="utf-8")
    (tmp_path / "b.csv").write_text(
        ",image_id,dx\n0,ISIC_3,mel\n1,isic_2.jpg,nv\n", encoding="utf-8"
    )  # as pandas writes
    found = given.audit_given([f"train={tmp_path / 'a.csv'}", f"test={tmp_path / 'b.csv'}"])
    assert found.photographs == {"test": 2, "train": 2}
    assert found.repeated["across"] == [{"image": "ISIC_2", "parts": ["test", "train"]}]


def numbered(top, copied=()):
    """Files that are numbered anew in every folder, as many data sets have them; some are copies of others."""
    for number in range(1, 4):
        for place, (part, dx) in enumerate((p, d) for p in ("train", "test") for d in ("benign", "malignant")):
            file = top / part / dx / f"{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            photograph(10 * number + place).save(file)
    for one, other in copied:
        (top / other).write_bytes((top / one).read_bytes())
    return top


def test_one_name_of_several_files_is_no_photograph(tmp_path):
    found = given.audit_given([numbered(tmp_path / "a")])
    assert not found.leaks
    assert found.photographs == {"test": 6, "train": 6}
    assert found.mix["test"] == {"benign": 0.5, "malignant": 0.5}
    assert "by name, 3 names that several files of one part have, such as 1." in found.verdict
    copied = [("train/malignant/2.png", "test/malignant/3.png")]
    found = given.audit_given([numbered(tmp_path / "b", copied)])
    assert found.verdict.startswith("LEAKS: 1 pairs of identical files")
    assert {*found.identical["examples"][0]["images"]} == {"train/malignant/2", "test/malignant/3"}
    rows = "".join(f"{file.relative_to(tmp_path / 'b')},{file.parts[-3]}\n" for file in (tmp_path / "b").rglob("*.png"))
    (tmp_path / "b" / "split.csv").write_text(f"filepath,part\n{rows}", encoding="utf-8")
    assert given.audit_given([tmp_path / "b" / "split.csv"]).identical["pairs"] == 1


def test_a_name_that_the_table_has_is_its_photograph_wherever_it_stands(tmp_path):
    top = numbered(tmp_path / "a")
    (tmp_path / "table.csv").write_text("image_id,lesion_id\n1,A\n2,B\n3,C\n", encoding="utf-8")
    found = given.audit_given([top], tmp_path / "table.csv")
    assert len(found.repeated["across"]) == 3
    assert found.lesions["judged"]["test"]["known"] == 3


def anew(top, copied=()):
    """Three parts, each numbered anew from 0, some files copied, and the split that lists them all."""
    rows = []
    for place, part in enumerate(("train", "test", "val")):
        for number in range(2):
            file = top / "data" / part / f"{number:04}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            photograph(10 * number + place).save(file)
            rows.append(f"{part}/{number:04}.png,{part}\n")
    for one, other in copied:
        (top / "data" / other).write_bytes((top / "data" / one).read_bytes())
    return parts_of(top, "".join(rows)), top / "data"


NO_TABLE = "lesions on both sides (no table was given)"


def test_parts_that_are_numbered_anew_are_told_apart_by_their_files(tmp_path):
    split, pictures = anew(tmp_path)
    for arguments in (([split], None, pictures), ([pictures],)):
        found = given.audit_given(*arguments)
        assert found.verdict == (
            f"Clean: nothing stands in two parts. Not checked: {NO_TABLE}; by name, 2 names of files that differ from "
            "part to part, such as 0000."
        )
        assert found.photographs == {"test": 2, "train": 2, "validation": 2}
        assert (found.identical["pairs"], found.near["pairs"]) == (0, 0)


def test_one_file_in_two_parts_leaks_under_its_name_or_under_two(tmp_path):
    split, pictures = anew(
        tmp_path, [(f"train/000{n}.png", f"{part}/000{n}.png") for n in (0, 1) for part in ("val", "test")]
    )
    found = given.audit_given([split], None, pictures)
    parts = ["test", "train", "validation"]
    assert found.repeated["across"] == [{"image": "0000", "parts": parts}, {"image": "0001", "parts": parts}]
    assert found.verdict == f"LEAKS: 2 images are listed in more than one part. Not checked: {NO_TABLE}."
    # Of three files two are one: the name is several photographs', and the two are found by their bytes.
    photograph(99).save(pictures / "val" / "0001.png")
    found = given.audit_given([split], None, pictures)
    assert [one["image"] for one in found.repeated["across"]] == ["0000"]
    assert {*found.identical["examples"][0]["images"]} == {"train/0001", "test/0001"}
    assert found.not_checked[1:] == ["by name, 1 names of files that differ from part to part, such as 0001"]


def test_where_files_are_not_known_the_name_decides_and_that_is_said(tmp_path):
    split, pictures = anew(tmp_path)
    unsure = (
        "whether {} names that stand with several folders, such as {}, are one photograph each "
        "(not all of their files are known)"
    )
    found = given.audit_given([split])
    assert found.verdict.startswith("LEAKS: 2 images are listed in more than one part. Not checked: ")
    assert found.not_checked[1] == unsure.format(2, "0000")
    # Of 0000 one file is known: nothing to compare. Of 0001 two are, and they differ.
    for part, name in (("train", "0000"), ("val", "0000"), ("val", "0001")):
        (pictures / part / f"{name}.png").rename(tmp_path / f"{part}-{name}.png")
    (pictures / "train" / "0002.png").write_bytes(b"no image")  # the folder is there
    (pictures / "val" / "0002.png").write_bytes(b"no image")
    found = given.audit_given([split], None, pictures)
    assert [one["image"] for one in found.repeated["across"]] == ["0000"]
    assert found.not_checked[1:4] == [
        "by name, 1 names of files that differ from part to part, such as 0001",
        unsure.format(1, "0000"),
        "3 images whose file was not found",
    ]
    # Two files that are one leave the third in question.
    (pictures / "test" / "0001.png").write_bytes((pictures / "train" / "0001.png").read_bytes())
    found = given.audit_given([split], None, pictures)
    assert found.not_checked[1] == unsure.format(2, "0000")
    assert len(found.repeated["across"]) == 2
    # One spelling of one folder is one place, and nothing is in question.
    found = given.audit_given([parts_of(tmp_path, "a/x.png,train\n./A\\X,test\n")])
    assert found.not_checked[1:] == ["whether a photograph stands there under two names (no images were given)"]


def test_one_part_s_names_are_told_apart_before_those_of_several(tmp_path):
    split = parts_of(tmp_path, "a/1.png,train\nb/1.png,train\na/1.png,test\nc/2.png,train\nd/2.png,test\n")
    found = given.audit_given([split])
    assert found.repeated["across"] == [
        {"image": "2", "parts": ["test", "train"]},
        {"image": "a/1", "parts": ["test", "train"]},
    ]
    assert found.not_checked[1] == "by name, 1 names that several files of one part have, such as 1"
    assert found.not_checked[2].startswith("whether 1 names that stand with several folders, such as 2,")


def test_a_table_with_folders_tells_photographs_apart(tmp_path):
    split, pictures = anew(tmp_path)
    table = tmp_path / "table.csv"
    rows = [("train", 0, "A"), ("test", 0, "B"), ("val", 0, "C"), ("Train", 1, "D"), ("test", 1, "D"), ("val", 1, "D")]
    text = "".join(f"{part}\\{number:04}.PNG,{lesion},40\n" for part, number, lesion in rows)
    table.write_text(f"image_id,lesion_id,age\n{text}", encoding="utf-8")
    about = given.read_about(table)
    assert about["image_id"].tolist() == [f"{part}/{number:04}" for part, number, _ in rows]
    assert about["file"].tolist()[0] == "train\\0000.PNG"
    found = given.audit_given([split], table)
    assert [one["image"] for one in found.repeated["across"]] == ["0001"]  # one lesion, and no file to see if it is one
    assert found.lesions["judged"]["test"] == {"photographs": 2, "known": 1, "share": 0.5}
    assert found.not_checked[0].startswith("whether 1 names that stand with several folders, such as 0001,")
    found = given.audit_given([split], table, pictures)
    assert found.repeated["across"] == []
    assert found.lesions["judged"]["test"] == {"photographs": 2, "known": 1, "share": 0.5}
    assert found.not_checked == ["by name, 1 names of files that differ from part to part, such as 0001"]
    # A split without folders cannot say which of two it means, and means the one that all rows of a name agree on.
    found = given.audit_given([parts_of(tmp_path, "0000,train\n0001,test\n", "bare.csv")], table)
    assert found.not_checked[0] == "1 rows whose image is not in the table"
    assert found.lesions["judged"]["test"]["photographs"] == 1
    # Folders of the table that the split does not have say nothing: the name is known wherever it stands.
    table.write_text("image_id,lesion_id\nphotos/0000.png,A\nphotos/0001.png,B\n", encoding="utf-8")
    found = given.audit_given([split], table, pictures)
    assert len(found.repeated["across"]) == 2
    assert found.lesions["judged"]["test"]["known"] == 2
    assert found.not_checked == []
    # And those that it has are about that file alone.
    table.write_text("image_id,lesion_id\ntrain/0000.png,A\ntest/0001.png,B\n", encoding="utf-8")
    found = given.audit_given([split], table, pictures)
    assert found.repeated["across"] == []
    assert found.not_checked[1] == "4 rows whose image is not in the table"


def test_a_name_without_a_folder_in_the_table_is_known_also_where_the_split_has_it_so(tmp_path):
    for number, name in enumerate(("1.png", "a/1.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        photograph(number).save(tmp_path / name)
    split = parts_of(tmp_path, "1.png,train\na/1.png,test\n")
    assert not given.audit_given([split]).leaks
    (tmp_path / "t.csv").write_text("image,lesion_id\n1,A\n", encoding="utf-8")
    assert given.audit_given([split], tmp_path / "t.csv").repeated["across"] == [
        {"image": "1", "parts": ["test", "train"]}
    ]


def test_of_the_table_what_is_in_the_split_counts(tmp_path):
    text = "image,lesion_id\nx/0.png,A\nTrain/1.png,B\ntrain/1,B\ntest/1.png,C\n2,D\n"
    (tmp_path / "t.csv").write_text(text, encoding="utf-8")
    assert given.read_about(tmp_path / "t.csv")["image_id"].tolist() == ["0", "Train/1", "test/1", "2"]
    rows = given.read_split([parts_of(tmp_path, "train/1.png,train\nimages/2.png,test\n3,test\n")])
    notes = []
    rows, about = given._described(rows, tmp_path / "t.csv", notes)
    assert rows["lesion_id"].fillna("").tolist() == ["B", "D", ""]
    assert (about["lesion_id"].tolist(), about.index.tolist()) == (["B", "D"], [0, 1])
    assert notes == ["1 rows whose image is not in the table"]


def test_two_diagnoses_of_one_name_are_two_photographs_also_without_lesions(tmp_path):
    split = parts_of(tmp_path, "a/1.png,train\nb/1.png,test\na/2.png,train\nb/2.png,test\n")
    (tmp_path / "t.csv").write_text("image,dx\na/1,nv\nb/1,mel\na/2,nv\nb/2,nv\n", encoding="utf-8")
    found = given.audit_given([split], tmp_path / "t.csv")
    assert [one["image"] for one in found.repeated["across"]] == ["2"]
    assert found.mix == {"test": {"mel": 0.5, "nv": 0.5}, "train": {"mel": 0.0, "nv": 1.0}}


def test_a_folder_of_other_images_is_refused_and_one_of_some_is_not(tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    photograph(1).save(other / "z.png")
    split = parts_of(tmp_path, "a.png,train\na.png,train\nb.png,test\n")
    for given_split in ([split], [f"train={split}", f"test={split}"]):
        with pytest.raises(SkinbookError) as refused:
            given.audit_given(given_split, None, other)
        assert str(refused.value) == (
            f"None of the 2 images of {', '.join(map(str, given_split))} lies in {other} or below it; looked for files "
            "such as a.jpg. Correct the path of the images."
        )
    photograph(2).save(other / "b.png")
    assert given.audit_given([split], None, other).not_checked == [NO_TABLE, "1 images whose file was not found"]
    (other / "b.png").rename(tmp_path / "b.png")  # beside the split
    assert given.audit_given([split], None, other).not_checked == [NO_TABLE, "1 images whose file was not found"]
    photograph(3).save(tmp_path / "a.png")
    assert given.audit_given([split], None, other).not_checked == [NO_TABLE]


def test_images_come_from_the_folder_that_the_split_names_or_are_asked_for(tmp_path):
    split, pictures = anew(tmp_path)
    (pictures / "masks").mkdir()
    photograph(50).save(pictures / "masks" / "0000.png")
    rows = given.read_split([split])
    assert given._paths(rows, pictures, "") == [pictures / f"{file}" for file in rows["file"]]
    assert given._paths(rows, None, "") == [None] * 6
    bare = parts_of(tmp_path, "0000.png,train\n0001.png,test\n", "bare.csv")
    # What lies beside a list is not looked for elsewhere, though another list may have the name, too.
    for name in ("train", "test"):
        (tmp_path / "lists" / name).mkdir(parents=True)
        (tmp_path / "lists" / name / "list.txt").write_text("0000.png\n", encoding="utf-8")
    photograph(60).save(tmp_path / "lists" / "train" / "0000.png")
    rows = given.read_split([f"{name}={tmp_path / 'lists' / name / 'list.txt'}" for name in ("train", "test")])
    beside = tmp_path / "lists" / "train" / "0000.png"
    assert given._paths(rows, pictures / "val", "") == [beside, pictures / "val" / "0000.png"]
    assert given._paths(rows.head(1), pictures, "") == [beside]
    with pytest.raises(SkinbookError, match=r"differ, and 0000\.png may be either"):
        given.audit_given([bare], None, pictures)
    assert given.audit_given([bare], None, pictures / "val").not_checked == [NO_TABLE]


@pytest.mark.parametrize("unknown", ["", "NA", "nan", "unknown", "NULL"])
def test_what_means_unknown_is_no_lesion(tmp_path, unknown):
    (tmp_path / "split.csv").write_text("image_id,part\nA,train\nB,train\nC,test\nD,test\n", encoding="utf-8")
    text = f"image_id,lesion_id\nA,L1\nB,{unknown}\nC,{unknown}\nD,L4\n"
    (tmp_path / "table.csv").write_text(text, encoding="utf-8")
    found = given.audit_given([tmp_path / "split.csv"], tmp_path / "table.csv")
    assert not found.leaks
    assert "2 rows without a lesion_id" in found.verdict


def folders(top):
    """train and test with two diagnoses; one file is copied, one is saved again in another light, one is no image."""
    for number in range(12):
        part, dx = ("train", "test")[number % 2], ("nv", "mel")[number % 3 == 0]
        file = top / "data" / part / dx / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        photograph(number).save(file)
    some = top / "data" / "train" / "nv" / "2.png"
    (top / "data" / "test" / "nv" / "copy.png").write_bytes(some.read_bytes())
    brighter = Image.open(some).point(lambda v: min(255, int(v * 1.1) + 5)).resize((80, 80))
    brighter.save(top / "data" / "test" / "nv" / "again.jpg", quality=80)
    (top / "data" / "test" / "nv" / "broken.jpg").write_bytes(b"no image")
    return top


def test_folders_are_looked_into_file_by_file(tmp_path):
    found = given.audit_given([folders(tmp_path)])
    assert found.leaks
    assert found.photographs == {"test": 9, "train": 6}
    assert (found.identical["pairs"], found.near["pairs"]) == (1, 1)
    assert {*found.identical["examples"][0]["images"]} == {"2", "copy"}
    assert {*found.near["examples"][0]["images"]} == {"2", "again"}
    assert set(found.mix["train"]) == {"nv", "mel"}
    assert "1 images that cannot be read" in found.verdict


def test_near_copies_of_one_lesion_are_counted_once(project):
    folder, table = project
    parts = ["train" if image.endswith("0") else "test" for image in table["image_id"]]
    pictures = folder / "pictures"
    pictures.mkdir()
    for image in table["image_id"][:8]:
        photograph(int(image[1:4])).save(pictures / f"{image}.png")  # both photographs of a lesion are alike
    split = write(folder, table.head(8), parts[:8])
    found = given.audit_given([split], folder / "metadata.csv", pictures)
    assert found.identical["pairs"] == 4
    assert found.identical["unlike_lesion"] == 0
    assert "under two names" not in found.verdict
    assert "nearly" not in found.verdict


def test_isic_marks_a_diagnosis_with_a_one(tmp_path):
    (tmp_path / "truth.csv").write_text(
        "image,MEL,NV,UNK\nA,1.0,0.0,0.0\nB,0.0,1.0,0.0\nC,0,0,0\nD,,,\n", encoding="utf-8"
    )
    about = given.read_about(tmp_path / "truth.csv")
    assert about["dx"].tolist()[:2] == ["mel", "nv"]
    assert about["dx"].iloc[2:].isna().all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image_id,part\nA,train\nB,train\n", "at least two parts; this one has train"),
        ("image_id,wing\nA,train\n", r"no column for the part \(split, part"),
        ("picture,part\nA,train\n", r"no column for the image \(image_id"),
    ],
)
def test_what_is_no_split_is_refused(tmp_path, text, message):
    (tmp_path / "split.csv").write_text(text, encoding="utf-8")
    with pytest.raises(SkinbookError, match=message):
        given.audit_given([tmp_path / "split.csv"])


def test_other_refusals(tmp_path, project):
    folder, table = project
    split = write(folder, table, by_lesion(table))
    for arguments, message in (
        (([tmp_path / "nowhere.csv"],), "does not exist"),
        (([tmp_path / "empty"],), "holds no folders named such as train and test"),
        (([f"train={split}", "test"],), "'test' is not a part and its list"),
        (([f"train={split}", f"test={tmp_path / 'no.txt'}"],), "cannot be read as a list"),
        (([split], tmp_path / "strangers.csv"), "knows none of the split's images, such as I0000"),
        (([split], None, tmp_path / "nothing"), "is not a folder"),
    ):
        (tmp_path / "empty").mkdir(exist_ok=True)
        (tmp_path / "strangers.csv").write_text("image_id,lesion_id\nX,1\n", encoding="utf-8")
        with pytest.raises(SkinbookError, match=message):
            given.audit_given(*arguments)


def test_what_could_not_be_checked_is_said(project):
    folder, table = project
    table.head(300).drop(columns="lesion_id").to_csv(folder / "less.csv", index=False)
    found = given.audit_given([write(folder, table, by_lesion(table))], folder / "less.csv")
    assert "100 rows whose image is not in the table" in found.verdict
    assert "the table has no lesion_id" in found.verdict
    assert found.lesions is None


def test_the_command_exits_with_one_when_the_split_leaks(project):
    folder, table = project
    run = CliRunner().invoke
    clean, leaky = write(folder, table, by_lesion(table)), write(folder, table, by_photograph(table), "leaky.csv")
    metadata = str(folder / "metadata.csv")
    app = cli._mounted()
    done = run(app, ["audit", str(clean), "--table", metadata])
    assert (done.exit_code, done.output[:6]) == (0, "Clean:")
    assert "|" not in done.output
    assert run(app, ["audit", str(clean), "--table", metadata, "--strict"]).exit_code == 1  # a column gives it away
    done = run(app, ["audit", str(leaky), "--table", metadata, "--format", "json"])
    assert done.exit_code == 1
    assert json.loads(done.output)["lesions"]["across"][0]["lesions"] == 80
    done = run(app, ["audit", str(leaky), "--table", metadata, "--format", "markdown"])
    assert done.output.startswith("**LEAKS: ")
    assert isinstance(run(app, ["audit", str(clean), "--format", "xml"]).exception, SkinbookError)


def test_the_snippet_installs_from_the_project_s_address_and_audits():
    import yaml

    done = CliRunner().invoke(cli._mounted(), ["audit", "split.csv", "--table", "meta.csv", "--snippet"])
    steps = yaml.safe_load(done.output)["jobs"]["audit"]["steps"]
    address = tomllib.loads((HOME / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
    assert steps[-2]["run"] == f'pip install "skinbook @ git+{address}"'
    assert steps[-1]["run"] == "skinbook audit split.csv --table meta.csv"


def test_the_page_shows_what_the_command_says():
    page = (HOME / "chapters" / "audit.md").read_text(encoding="utf-8")
    assert "**LEAKS: " in page
    assert "**Clean: " in page


def test_lists_without_a_line_are_no_split(tmp_path):
    for part in ("train", "test"):
        (tmp_path / f"{part}.txt").write_text("\n ,\n", encoding="utf-8")
    with pytest.raises(SkinbookError, match=r"train\.txt.*at least two parts; this one has none"):
        given.audit_given([f"{part}={tmp_path / part}.txt" for part in ("train", "test")])


def test_two_spellings_of_an_image_in_a_table_are_one(tmp_path):
    split = write_csv(tmp_path / "s.csv", ["image", "part"], [["a", "train"], ["b", "test"]])
    header = ["image", "lesion_id", "dx"]
    table = write_csv(tmp_path / "t.csv", header, [["A.jpg", "L0", "nv"], ["a", "L0", "nv"], ["b", "L1", "mel"]])
    assert given.audit_given([split], table).photographs == {"train": 1, "test": 1}
    table = write_csv(tmp_path / "t.csv", header, [["A.jpg", "L0", "nv"], ["a", "L1", "nv"], ["b", "L1", "mel"]])
    with pytest.raises(SkinbookError, match=r"t\.csv gives A two lesions or two diagnoses"):
        given.audit_given([split], table)


def parts_of(folder, text, name="split.csv"):
    (folder / name).write_text("image_id,part\n" + text, encoding="utf-8")
    return folder / name


def test_of_three_parts_each_but_training_is_judged_by_all_others(tmp_path):
    split = parts_of(
        tmp_path,
        "a,train\nb,train\nc,test\nd,test\ne,test\nf,test\ng,validation\nh,validation\ni,validation\nj,train\nk,test\n",
    )
    lesions = dict(zip("abcdefghij", "ABAXYZABYJ", strict=True))  # k has none
    rows = "".join(f"{image},{lesion}\n" for image, lesion in lesions.items())
    (tmp_path / "table.csv").write_text(f"image_id,lesion_id\n{rows}k,\n", encoding="utf-8")
    found = given.audit_given([split], tmp_path / "table.csv").lesions
    assert found["judged"] == {
        "test": {"photographs": 4, "known": 2, "share": 0.5},  # c and e; of k nothing is known
        "validation": {"photographs": 3, "known": 3, "share": 1.0},
    }
    assert found["across"] == [
        {"parts": ["test", "train"], "lesions": 1, "photographs": 2},
        {"parts": ["test", "validation"], "lesions": 2, "photographs": 4},
        {"parts": ["train", "validation"], "lesions": 2, "photographs": 4},
    ]


def test_lesions_are_taken_as_they_are_spelled_and_diagnoses_are_not(tmp_path):
    split = parts_of(tmp_path, "a,train\nb,test\nc,test\n")
    (tmp_path / "table.csv").write_text("image_id,lesion_id,dx\na,L1x,NV\nb,l1X,nv\nc,l2,Nv\n", encoding="utf-8")
    about = given.read_about(tmp_path / "table.csv")
    assert about["lesion_id"].tolist() == ["L1x", "l1X", "l2"]
    assert about["dx"].tolist() == ["nv", "nv", "nv"]
    assert not given.audit_given([split], tmp_path / "table.csv").leaks


@pytest.mark.parametrize(
    ("rows", "notes"),
    [
        ("a,A\nb,B\nc,C\nd,D\n", []),
        ("a,A\nb,B\nc,\nd,D\n", ["1 rows without a lesion_id"]),
        ("a,A\nb,\nc,\nd,D\n", ["2 rows without a lesion_id"]),
        ("a,A\nb,B\nd,D\n", ["1 rows whose image is not in the table"]),
        ("a,A\nd,D\n", ["2 rows whose image is not in the table"]),
        ("a,A\nb,\n", ["2 rows whose image is not in the table", "1 rows without a lesion_id"]),
        ("a,A\n", ["3 rows whose image is not in the table"]),
    ],
)
def test_rows_that_are_absent_and_rows_without_a_lesion_are_counted_apart(tmp_path, rows, notes):
    split = parts_of(tmp_path, "a,train\nb,train\nc,test\nd,test\n")
    # A row of another image in front: what is counted is the split's.
    (tmp_path / "table.csv").write_text(f"image_id,lesion_id\nother,\n{rows}", encoding="utf-8")
    found = given.audit_given([split], tmp_path / "table.csv")
    assert found.not_checked == [*notes, "whether a photograph stands there under two names (no images were given)"]


def test_only_one_one_is_a_diagnosis(tmp_path):
    truth = tmp_path / "truth.csv"
    truth.write_text("image,MEL,NV\na,1,1\nb,0,1\nc,0.4,0.6\nd,2,0\ne,,1\nf,-1,\n", encoding="utf-8")
    assert given.read_about(truth)["dx"].fillna("").tolist() == ["", "nv", "", "", "nv", ""]
    truth.write_text("image,MEL\na,1\nb,0\n", encoding="utf-8")  # one column of ones is no choice of diagnoses
    assert "dx" not in given.read_about(truth)
    truth.write_text("image,MEL,mel\na,1,0\nb,0,1\n", encoding="utf-8")
    with pytest.raises(SkinbookError, match=r"truth\.csv has a column of a diagnosis more than once"):
        given.read_about(truth)
    truth.write_text("image,dx,MEL,NV\na,bkl,1,0\n", encoding="utf-8")  # a column that names it goes first
    assert given.read_about(truth)["dx"].tolist() == ["bkl"]
    truth.write_text("image,MEL,ZEBRA,NV\na,0,1,0\nb,1,1,0\n", encoding="utf-8")  # what is no diagnosis is not read
    assert given.read_about(truth)["dx"].fillna("").tolist() == ["", "mel"]


def test_a_repeated_row_counts_once_and_the_first_torn_image_is_named(tmp_path):
    file = tmp_path / "table.csv"
    file.write_text("image,lesion_id,age\na,A,30\nb,B,40\na,A,50\nc,C,60\n", encoding="utf-8")
    about = given.read_about(file)
    assert about["image_id"].tolist() == ["a", "b", "c"]
    assert about.index.tolist() == [0, 1, 2]
    file.write_text("image,lesion_id\na,A\nb,B\na,X\nb,Y\n", encoding="utf-8")
    with pytest.raises(SkinbookError, match="gives a two lesions"):
        given.read_about(file)


def test_a_dot_in_a_name_is_no_ending_and_a_folder_is_no_name(tmp_path):
    split = parts_of(tmp_path, "some/folder/ISIC.12,train\nother\\ISIC.12.JPG,test\n.png,test\n")
    rows = given.read_split([split])
    assert rows["image_id"].tolist() == ["ISIC.12", "ISIC.12", ""]
    assert rows["given"].tolist() == ["some/folder/ISIC.12", "other/ISIC.12", ""]


def test_a_column_that_stands_twice_is_refused_and_long_heads_are_cut(tmp_path):
    for head, message in (
        ("image_id,part,PART", r"has the column part more than once"),
        ("image_id,part,part", r"has the column part more than once"),
    ):
        (tmp_path / "s.csv").write_text(f"{head}\na,train,test\n", encoding="utf-8")
        with pytest.raises(SkinbookError, match=message):
            given.read_split([tmp_path / "s.csv"])
    many = [f"column{number:03}" for number in range(60)]
    (tmp_path / "s.csv").write_text(",".join(many) + "\n" + ",".join("x" * 60) + "\n", encoding="utf-8")
    sentence = f"no column for the image (image_id, image, isic_id, bcn_filename, ...); it has {', '.join(many)[:200]}."
    for read in (lambda file: given.read_split([file]), given.read_about):
        with pytest.raises(SkinbookError) as refused:
            read(tmp_path / "s.csv")
        assert str(refused.value) == f"{tmp_path / 's.csv'} has {sentence}"


def test_parts_that_are_not_used_are_left_out(tmp_path):
    split = parts_of(tmp_path, "a,train\nb,Unused\nc,\nd,test\ne,NaN\nf,wing\n")
    rows = given.read_split([split])
    assert (rows["part"].tolist(), rows.index.tolist()) == (["train", "test", "wing"], [0, 1, 2])
    assert given.audit_given([split]).photographs == {"test": 1, "train": 1, "wing": 1}


def test_a_split_is_one_file_or_a_list_for_each_part(tmp_path):
    for one in ("=b.txt", "train=", "="):
        with pytest.raises(SkinbookError, match=f"'{one}' is not a part and its list"):
            given.read_split([one])
    both = [parts_of(tmp_path, "a,train\nb,test\n", name) for name in ("one.csv", "two.csv")]
    with pytest.raises(SkinbookError, match=r"one\.csv' is not a part and its list"):
        given.read_split(both)
    (tmp_path / "a.txt").write_text("a\n", encoding="utf-8")
    with pytest.raises(SkinbookError, match=r"train=.*a\.txt: a split has at least two parts; this one has train"):
        given.read_split([f"train={tmp_path / 'a.txt'}"])


def test_parts_may_lie_one_folder_lower_though_that_is_called_as_a_part(tmp_path):
    for part in ("train", "val", "elsewhere"):
        folder = tmp_path / "test" / part
        folder.mkdir(parents=True)
        photograph(len(part)).save(folder / f"{part}.png")
    (tmp_path / "test" / "train" / "notes.txt").write_text("no image", encoding="utf-8")
    found = given.read_split([tmp_path])
    assert found["part"].tolist() == ["train", "validation"]
    assert found["dx"].tolist() == [None, None]  # no folder names a diagnosis
    assert found["given"].tolist() == ["train/train", "val/val"]
    for file in tmp_path.rglob("*.png"):
        file.unlink()
    with pytest.raises(SkinbookError, match=r"The folders train, val in .*test hold no images"):
        given.read_split([tmp_path])


def test_the_first_folder_below_a_part_names_the_diagnosis(tmp_path):
    for part in ("train", "test"):
        folder = tmp_path / part / "nv" / "clinic" / "2020"
        folder.mkdir(parents=True)
        photograph(len(part)).save(folder / f"{part}.png")
    assert given.read_split([tmp_path])["dx"].tolist() == ["nv", "nv"]


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    def refused(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(tmp_path), "iterdir", refused)
    with pytest.raises(SkinbookError, match=r"cannot be read \(Permission denied\)\. Change its permissions"):
        given.read_split([tmp_path])


def test_photographs_are_looked_for_beside_the_split_and_then_in_the_folder(tmp_path):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    names = ("a.png", "b.png", "c.png", "d.png")
    for number, name in enumerate(names[:3]):
        photograph(number).save(pictures / name)
    (pictures / "b.png").write_bytes((pictures / "a.png").read_bytes())
    photograph(7).save(tmp_path / "a.png")  # beside the split: this is the one that it names
    csv = parts_of(tmp_path, "a.png,train\nb.png,test\nc.png,test\nd.png,test\n")
    for part, some in (("train", names[:1]), ("test", names[1:])):
        (tmp_path / f"{part}.txt").write_text("\n".join(some), encoding="utf-8")
    lists = [f"{part}={tmp_path / part}.txt" for part in ("train", "test")]
    for split in ([csv], lists):
        found = given.audit_given(split, None, pictures)
        assert found.not_checked == ["lesions on both sides (no table was given)", "1 images whose file was not found"]
        assert found.identical["pairs"] == 0
    (tmp_path / "a.png").unlink()
    for split in ([csv], lists):
        found = given.audit_given(split, None, pictures)
        assert found.not_checked[1:] == ["1 images whose file was not found"]
        assert found.identical["pairs"] == 1
    (pictures / "d.png").write_bytes(b"no image")
    assert given.audit_given([csv], None, pictures).not_checked[1:] == ["1 images that cannot be read"]


def test_one_photograph_is_not_held_against_itself_and_copies_are_not_near(tmp_path):
    """One row a file and part; an image listed in two parts is a repetition, not a pair."""
    photograph(1).save(tmp_path / "a.png")
    photograph(2).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes((tmp_path / "b.png").read_bytes())
    (tmp_path / "e.png").write_bytes((tmp_path / "b.png").read_bytes())
    near = Image.open(tmp_path / "b.png").point(lambda v: min(255, v + 4))
    near.save(tmp_path / "d.png")
    split = parts_of(
        tmp_path, "a.png,train\na.png,train\na.png,test\nb.png,train\nc.png,test\nd.png,test\ne.png,train\n"
    )
    found = given.audit_given([split])
    assert found.identical == {
        "pairs": 2,
        "unlike_lesion": 2,
        "examples": [
            {"images": ["b", "c"], "parts": ["train", "test"], "bits": 0},
            {"images": ["c", "e"], "parts": ["test", "train"], "bits": 0},
        ],
    }
    assert (found.near["pairs"], found.near["unlike_lesion"]) == (2, 2)
    assert found.near["examples"][0]["images"] == ["b", "d"]
    assert found.verdict.startswith(
        "LEAKS: 1 images are listed in more than one part; 2 pairs of identical files are divided between parts; "
        "2 more pairs are, nearly, one photograph under two names. Not checked: "
    )


def test_examples_are_the_nearest_and_first_those_of_other_lesions():
    rows = pd.DataFrame(
        {
            "image_id": list("abcdef"),
            "part": ["train", "test"] * 3,
            "lesion_id": ["A", "A", "B", "C", None, None],
        }
    )
    pairs = [(0, 1, 3), (2, 3, 9), (4, 5, 1), (0, 2, 0)]
    found = given._across(rows, pairs)
    assert (found["pairs"], found["unlike_lesion"]) == (3, 2)
    assert [(e["images"], e["bits"]) for e in found["examples"]] == [(["e", "f"], 1), (["c", "d"], 9)]
    known = given._across(rows, pairs[:1])
    assert (known["pairs"], known["unlike_lesion"]) == (1, 0)
    assert known["examples"] == [{"images": ["a", "b"], "parts": ["train", "test"], "bits": 3}]
    many = pd.DataFrame({"image_id": [f"i{k}" for k in range(50)], "part": ["train", "test"] * 25, "lesion_id": None})
    assert len(given._across(many, [(2 * k, 2 * k + 1, 0) for k in range(25)])["examples"]) == given.EXAMPLES == 20


def mixed(**parts):
    """Rows of a split: so many of each diagnosis in each part."""
    rows = [(part, dx) for part, counts in parts.items() for dx, count in counts.items() for _ in range(count)]
    return pd.DataFrame(rows, columns=["part", "dx"])


def test_the_part_and_the_diagnosis_that_differ_most_are_told():
    found = mixed(
        train={"nv": 600, "mel": 300, "bkl": 100},
        test={"nv": 20, "mel": 200, "bkl": 180},
        validation={"nv": 90, "bkl": 10},
    )
    mix, worst = given._mix(found)
    assert mix["test"] == {"nv": 0.05, "mel": 0.5, "bkl": 0.45}
    assert mix["validation"]["mel"] == 0.0
    assert worst["part"] == "test"
    assert worst["diagnosis"] == "nv"
    assert (worst["share"], worst["elsewhere"]) == (0.05, pytest.approx(690 / 1100))
    assert worst["gap"] == pytest.approx(0.05 - 690 / 1100)
    # Of two that differ as much, the one that there is more of.
    _, worst = given._mix(mixed(train={"nv": 500, "mel": 500}, test={"nv": 100, "mel": 400}))
    assert (worst["diagnosis"], worst["gap"]) == ("mel", pytest.approx(0.3))


@pytest.mark.parametrize(
    ("test", "told"),
    [
        ({"nv": 4600, "mel": 5400}, False),  # by four hundredths
        ({"nv": 4400, "mel": 5600}, True),
        ({"nv": 4, "mel": 16}, False),  # by chance
        ({"nv": 10000}, True),
        ({}, False),
    ],
)
def test_a_mix_differs_by_five_hundredths_and_by_more_than_chance(test, told):
    _, worst = given._mix(mixed(train={"nv": 5000, "mel": 5000}, test=test))
    assert (worst is not None) == told


def test_a_mix_of_one_diagnosis_or_with_no_other_part_does_not_differ():
    assert given._mix(mixed(train={"nv": 9}, test={"nv": 5})) == ({"test": {"nv": 1.0}, "train": {"nv": 1.0}}, None)
    assert given._mix(mixed(test={"nv": 500, "mel": 500}))[1] is None


REPORT = given.Report(
    photographs={"test": 1200, "train|1": 3400},
    repeated={
        "across": [{"image": f"I{number}", "parts": ["test", "train|1"]} for number in range(21)],
        "within": {"test": 1001},
    },
    lesions={
        "across": [{"parts": ["test", "train|1"], "lesions": 1100, "photographs": 2200}],
        "judged": {"test": {"photographs": 1200, "known": 300, "share": 0.25}},
    },
    identical={"pairs": 0, "unlike_lesion": 0, "examples": []},
    near={
        "pairs": 1002,
        "unlike_lesion": 1001,
        "examples": [{"images": ["a", "b"], "parts": ["test", "train|1"], "bits": 4}],
    },
    mix={"test": {"nv": 0.75, "mel": 0.25}, "train|1": {"nv": 1.0}},
    drift={"part": "test", "diagnosis": "mel", "share": 0.25, "elsewhere": 0.0, "gap": 0.25},
    giveaways=[{"column": "dx_type", "value": "histo", "always": "mel", "photographs": 1234}],
    not_checked=["this", "that"],
)


def test_a_report_is_told_whole():
    report = REPORT.judge()
    verdict = (
        "LEAKS: photographs of lesions that stand in another part too (300 of 1,200 in test); 21 images are listed in more "
        "than one part; 1001 more pairs are, nearly, one photograph under two names. Not checked: this; that."
    )
    assert (report.leaks, report.verdict) == (True, verdict)
    listed = "".join(f"- in test and train|1: `I{number}`\n" for number in range(20))
    assert given.markdown(report) == (
        f"**{verdict}**\n\n| Part | Photographs |\n|---|---|\n| test | 1,200 |\n| train\\|1 | 3,400 |\n\n"
        "## Lesions on both sides\n\n| Parts | Lesions in both | Their photographs |\n|---|---|---|\n"
        "| test and train\\|1 | 1,100 | 2,200 |\n\n"
        "test: 300 of 1,200 photographs (25%) show a lesion that stands in another part too.\n\n"
        f"## Images that are listed more than once\n\n{listed}- and 1 more\n"
        "- 1,001 rows of test repeat another one of it (oversampled copies?)\n\n"
        "## Nearly the same photograph\n\n1,002 pairs are divided between parts; 1,001 of them are not known to be one "
        "lesion.\n\n- `a` (test) and `b` (train|1), 4 of 255 bits apart\n\n"
        "## The mix of diagnoses\n\n| Diagnosis | test | train\\|1 |\n|---|---|---|\n| mel | 25.0% | 0.0% |\n"
        "| nv | 75.0% | 100.0% |\n\n"
        "**Another mix:** 25% of test are mel, and 0% of the rest. A score on it answers another question than the data "
        "set asks.\n\n## Columns that give the label away\n\n- `dx_type` = histo: always mel (1,234 photographs)\n"
    )
    shown = given.shown(report)
    assert shown.splitlines()[:7] == [
        verdict,
        "",
        "Part     Photographs",
        "test     1,200",
        "train|1  3,400",
        "",
        "Lesions on both sides",
    ]
    assert given.shown(report, "markdown") == given.markdown(report)


def test_a_clean_report_says_little():
    report = given.Report(
        {"test": 1, "train": 2},
        {"across": [], "within": {}},
        lesions={"across": [], "judged": {}},
        near={"pairs": 3, "unlike_lesion": 0, "examples": []},
    ).judge()
    assert (report.leaks, report.verdict) == (False, "Clean: nothing stands in two parts.")
    assert given.markdown(report) == (
        "**Clean: nothing stands in two parts.**\n\n| Part | Photographs |\n|---|---|\n| test | 1 |\n| train | 2 |\n\n"
        "## Lesions on both sides\n\nNone.\n\n## Nearly the same photograph\n\n3 pairs are divided between parts; 0 of them "
        "are not known to be one lesion.\n\n"
    )
    report.repeated["across"] = [{"image": f"I{number}", "parts": ["a", "b"]} for number in range(20)]
    assert "more\n" not in given.markdown(report)


def test_a_hundred_diagnoses_are_shown():
    report = given.Report({"a": 1, "b": 1}, {"across": [], "within": {}})
    report.mix = {"a": {f"d{number:03}": 0.01 for number in range(102)}, "b": {}}
    text = given.markdown(report)
    assert text.count("| d") == 100
    assert text.endswith("\n2 more diagnoses are left out here; --format json has them.\n")
    report.mix["a"].pop("d101")
    report.mix["a"].pop("d100")
    assert "left out" not in given.markdown(report)


def test_a_command_in_a_workflow_is_quoted_where_it_must_be():
    import yaml

    def command(*arguments):
        return yaml.safe_load(given.snippet(*arguments))["jobs"]["audit"]["steps"][-1]["run"]

    assert command(["train=a.txt", "test=b.txt"]) == "skinbook audit train=a.txt test=b.txt"
    assert command(["s.csv"], "t.csv", "my pictures") == "skinbook audit s.csv --table t.csv --images 'my pictures'"
    assert command(["a: b.csv"], "#.csv") == "skinbook audit 'a: b.csv' --table '#.csv'"
