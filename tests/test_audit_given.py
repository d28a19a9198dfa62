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
