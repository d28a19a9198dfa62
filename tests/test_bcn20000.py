"""BCN20000 from Kaggle and from the ISIC 2019 pair."""

import pytest
from layouts import BCN_HEADER, bcn20000_kaggle, isic2019, real, write_csv

from skinbook.config import SkinbookError
from skinbook.data import bcn20000 as reader
from skinbook.data import locate

REAL = real("bcn20000")


def test_kaggles_layout(tmp_path):
    dataset = reader.load(bcn20000_kaggle(tmp_path / "bcn20000").parent)
    assert len(dataset.table) == 22
    assert dataset.table.attrs["left_out"] == 2
    assert set(dataset.table["dx"]) == set(dataset.classes) == {"nv", "mel", "bkl", "bcc", "ak", "scc", "vasc", "df"}
    assert dataset.table["dx_type"].isna().all()
    assert dataset.provides == {"lesion_id", "metadata"}
    # A photograph without a lesion_id is the only one of its lesion.
    row = dataset.table.set_index("image_id").loc["BCN_0000000002"]
    assert row["lesion_id"] == "BCN_0000000002"
    assert dataset.images.read("BCN_0000000002").shape == (30, 40, 3)


@pytest.mark.parametrize("unknown", ["NA", "unknown", "nan"])
def test_what_means_unknown_is_no_lesion(tmp_path, unknown):
    top = bcn20000_kaggle(tmp_path)
    file = top / "bcn_20k_train.csv"
    file.write_text(file.read_text(encoding="utf-8").replace("BCN_0000001,", f"{unknown},"), encoding="utf-8")
    lesions = reader.load(top).table.set_index("image_id")["lesion_id"]
    assert [lesions[f"BCN_{number:010d}"] for number in (3, 4, 5)] == [f"BCN_{number:010d}" for number in (3, 4, 5)]


def test_kaggles_images_must_be_there(tmp_path):
    top = bcn20000_kaggle(tmp_path)
    (top / "BCN_20k_train" / "bcn_20k_train" / "BCN_0000000005.jpg").unlink()
    with pytest.raises(SkinbookError, match=r"22 images, and 1 of them .* first is BCN_0000000005"):
        reader.load(top)


def test_the_isic_pair_without_images(tmp_path):
    dataset = reader.load(isic2019(tmp_path))
    assert len(dataset.table) == 9
    assert dataset.table.attrs["left_out"] == 1
    assert dataset.table["lesion_id"].str.startswith("BCN_").all()
    assert dataset.table["sex"].isna().sum() == 1
    by_id = dataset.table.set_index("image_id")["dx"]
    assert (by_id["ISIC_0050001"], by_id["ISIC_0050004"]) == ("nv", "bkl")
    with pytest.raises(SkinbookError, match=r"came without images. Put ISIC 2019's training images beside it"):
        dataset.images.read("ISIC_0050001")
    with pytest.raises(SkinbookError, match=r"came without images"):
        dataset.images.fingerprint(["ISIC_0050001"])


def test_the_isic_pair_with_images(tmp_path):
    dataset = reader.load(isic2019(tmp_path, images=True))
    assert dataset.images.read("ISIC_0050001").shape == (30, 40, 3)


def test_the_isic_pair_is_a_pair(tmp_path):
    (isic2019(tmp_path) / "ISIC_2019_Training_GroundTruth.csv").unlink()
    with pytest.raises(SkinbookError, match=r"has no ISIC_2019_Training_GroundTruth.csv beside it"):
        reader.load(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("ISIC_0050004,0.0,0.0", "ISIC_0050004,1.0,0.0", r"row 6: expected 0 in every class but one"),
        ("ISIC_0050004,0.0,0.0", "ISIC_0050004,x,0.0", r"row 6: expected 0 in every class but one"),
        ("ISIC_0050004,", "ISIC_0050003,", r"has ISIC_0050003 more than once"),
        (
            "ISIC_0050004,",
            "ISIC_0990004,",
            r"lacks 1 images of ISIC_2019_Training_Metadata.csv, the first ISIC_0050004",
        ),
    ],
)
def test_a_wrong_ground_truth(tmp_path, old, new, sentence):
    truth = isic2019(tmp_path) / "ISIC_2019_Training_GroundTruth.csv"
    truth.write_text(truth.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    with pytest.raises(SkinbookError, match=sentence):
        reader.load(tmp_path)


def test_the_row_named_is_the_files_row(tmp_path):
    row = ["BCN_1.jpg", "50", "back", "MEL", "BCN_1", "", "male", "train"]
    rows = [
        ["BCN_0.jpg", "50", "back", "", "BCN_0", "", "male", "train"],
        row,
        ["BCN_2.jpg", "50", "back", "WART", *row[4:]],
    ]
    with pytest.raises(SkinbookError, match=r"row 4, column dx: found 'wart'"):
        reader.read_table(write_csv(tmp_path / "bcn_20k_train.csv", BCN_HEADER, rows))
    rows[2][3] = "AKIEC"
    with pytest.raises(SkinbookError, match=r"row 4, column dx: found 'akiec', which this data set does not have"):
        reader.read_table(write_csv(tmp_path / "bcn_20k_train.csv", BCN_HEADER, rows))
    with pytest.raises(SkinbookError, match="holds no photograph of BCN20000 with a diagnosis"):
        reader.read_table(write_csv(tmp_path / "bcn_20k_train.csv", BCN_HEADER, rows[:1]))


@pytest.mark.slow
@pytest.mark.skipif(REAL is None, reason="SKINBOOK_DATA leads to no table of BCN20000")
def test_known_facts_of_the_real_isic_pair():
    isic = locate.find_file(REAL.parent, [reader.ISIC])
    if isic is None:
        pytest.skip("SKINBOOK_DATA leads to BCN20000, but not to the ISIC 2019 pair")
    table = reader.read_table(isic)
    assert (len(table), table["lesion_id"].nunique(), table.attrs["left_out"]) == (12_413, 3576, 0)
    counts = {"nv": 4206, "mel": 2857, "bcc": 2809, "bkl": 1138, "ak": 737, "scc": 431, "df": 124, "vasc": 111}
    assert table["dx"].value_counts().to_dict() == counts
    assert table[["age", "sex", "site"]].isna().sum().tolist() == [74, 74, 173]
