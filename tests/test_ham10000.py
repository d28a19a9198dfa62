"""HAM10000 in every layout that people have, and the known facts on the real tables."""

import hashlib

import numpy as np
import pandas as pd
import pytest
from layouts import HAM_HEADER, ham10000, ham_rows, real, write_csv

from skinbook.config import SkinbookError
from skinbook.data import ham10000 as reader

REAL = real("ham10000")
needs_real = pytest.mark.skipif(REAL is None, reason="SKINBOOK_DATA leads to no HAM10000")


@pytest.mark.parametrize("layout", ["kaggle", "kaggle-lower", "dataverse", "one folder", "flat"])
@pytest.mark.parametrize("below", ["", "skin-cancer-mnist-ham10000"])
def test_every_layout_gives_the_same_table(tmp_path, layout, below):
    dataset = reader.load(
        ham10000(tmp_path / "data" / below, layout=layout).parent if below else ham10000(tmp_path, layout=layout)
    )
    table = dataset.table
    assert len(table) == 28
    assert table["image_id"].is_monotonic_increasing
    assert table["lesion_id"].nunique() == 14
    assert set(table["dx"]) == set(dataset.classes)
    assert (table["age"].isna().sum(), (table["age"] == 0).sum()) == (1, 2)
    assert table[["sex", "site"]].isna().sum().tolist() == [1, 1]
    expected = {"rosendahl", "vidir_modern", "vidir_molemax", "vienna_dias"} if layout == "dataverse" else {"ham10000"}
    assert set(table["source"]) == expected
    assert dataset.images.read("ISIC_0000003").shape == (30, 40, 3)
    assert dataset.masks.read("ISIC_0000003").dtype == bool
    assert dataset.provides == {"lesion_id", "metadata", "dx_type", "masks"}


def test_masks_are_optional_and_all_or_nothing(tmp_path):
    assert reader.load(ham10000(tmp_path / "a", masks=False)).provides == {"lesion_id", "metadata", "dx_type"}
    top = ham10000(tmp_path / "b")
    (top / "HAM10000_segmentations_lesion_tschandl" / "ISIC_0000004_segmentation.png").unlink()
    assert reader.load(top).masks is None


def test_dataverse_table_is_preferred(tmp_path):
    ham10000(tmp_path, layout="kaggle")
    ham10000(tmp_path, layout="dataverse")
    assert reader.find(tmp_path).name == "HAM10000_metadata"


def test_an_image_in_the_table_but_not_on_disk(tmp_path):
    top = ham10000(tmp_path)
    (top / "HAM10000_images_part_1" / "ISIC_0000002.jpg").unlink()
    with pytest.raises(
        SkinbookError, match=r"lists 28 images, and 1 of them .*the first is ISIC_0000002.*Copy the missing"
    ):
        reader.load(top)


def test_no_table(tmp_path):
    with pytest.raises(
        SkinbookError, match=r"HAM10000 was not found: looked for HAM10000_metadata or .*skinbook data get ham10000"
    ):
        reader.load(tmp_path)


def change(row: int, column: str, value: str) -> list[list]:
    rows = ham_rows()
    rows[row][HAM_HEADER.index(column)] = value
    return rows


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (change(6, "dx", "melanoma"), r"row 8, column dx: found 'melanoma', expected one of nv"),
        (change(6, "dx", "scc"), r"row 8, column dx: found 'scc', which this data set does not have"),
        (change(6, "dx", ""), r"row 8, column dx"),
        (change(6, "image_id", "ISIC_0000001"), r"image_id 'ISIC_0000001' stands in rows 3, 8"),
        (change(6, "age", "old"), r"row 8, column age: found 'old', expected a number of years"),
        (change(6, "age", "-5"), r"row 8, column age: found .*-5.0"),
        (change(6, "sex", "w"), r"row 8, column sex: found 'w', expected female, male, or empty"),
        (change(6, "dx_type", "guess"), r"row 8, column dx_type: found 'guess'"),
        (change(6, "lesion_id", ""), r"row 8, column lesion_id"),
        (change(6, "lesion_id", "NaN"), r"row 8, column lesion_id"),
        (change(6, "lesion_id", "unknown"), r"row 8, column lesion_id"),
        ([], r"has a header and no rows"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, rows, sentence):
    with pytest.raises(SkinbookError, match=sentence) as caught:
        reader.read_table(write_csv(tmp_path / "HAM10000_metadata.csv", HAM_HEADER, rows))
    assert "HAM10000_metadata.csv" in str(caught.value)


def test_a_table_without_a_column(tmp_path):
    path = write_csv(tmp_path / "HAM10000_metadata.csv", HAM_HEADER[:-1], [r[:-1] for r in ham_rows()])
    with pytest.raises(SkinbookError, match=r"lacks the column localization; it has lesion_id, image_id"):
        reader.read_table(path)


@pytest.mark.parametrize(
    ("delimiter", "encoding"), [(";", "utf-8"), ("\t", "utf-16"), (",", "utf-8-sig"), (",", "cp1252")]
)
def test_other_separators_encodings_case_and_blanks(tmp_path, delimiter, encoding):
    plain = reader.read_table(write_csv(tmp_path / "HAM10000_metadata.csv", HAM_HEADER, ham_rows()))
    rows = [[c if i < 2 else f" {c.upper()} " for i, c in enumerate(row)] for row in reversed(ham_rows())]
    odd = write_csv(
        tmp_path / "odd" / "HAM10000_metadata.csv", [f" {h.title()}" for h in HAM_HEADER], rows, delimiter, encoding
    )
    pd.testing.assert_frame_equal(plain, reader.read_table(odd))


def test_quoted_cells_may_hold_separators_and_line_ends(tmp_path):
    table = 'image_id,lesion_id,dx,dx_type,age,sex,localization\r\nI1, L1,nv,,"50", male, "back, \nupper"\r\n'
    (tmp_path / "HAM10000_metadata.csv").write_bytes(table.encode())
    row = reader.read_table(tmp_path / "HAM10000_metadata.csv").iloc[0]
    assert (row["lesion_id"], row["age"], row["site"]) == ("L1", 50.0, "back, \nupper")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty"),
        (b"   \n", "is empty"),
        (b"a\0b,c\n1,2\n", "holds zero bytes"),
        (b'lesion_id,image_id\n"never closed,1\n', "lacks the columns|not a table"),
    ],
)
def test_not_a_table(tmp_path, content, sentence):
    (tmp_path / "HAM10000_metadata.csv").write_bytes(content)
    with pytest.raises(SkinbookError, match=sentence):
        reader.read_table(tmp_path / "HAM10000_metadata.csv")


@pytest.mark.slow
@needs_real
def test_known_facts_of_the_real_tables():
    folder = REAL.parent
    names = [n for n in ("HAM10000_metadata.csv", "HAM10000_metadata") if (folder / n).is_file()]
    first, *others = (reader.read_table(folder / name) for name in names)
    assert len(first) == 10_015
    assert first["dx"].value_counts().to_dict() == {
        "nv": 6705,
        "mel": 1113,
        "bkl": 1099,
        "bcc": 514,
        "akiec": 327,
        "vasc": 142,
        "df": 115,
    }
    per_lesion = first.groupby("lesion_id").size()
    assert (len(per_lesion), int((per_lesion > 1).sum()), int(per_lesion.max())) == (7470, 1956, 6)
    assert (int(first["age"].isna().sum()), int((first["age"] == 0).sum())) == (57, 39)
    assert first[["sex", "site"]].isna().sum().tolist() == [57, 234]
    assert set(first["dx_type"][first["dx"].isin(["mel", "bcc", "akiec"])]) == {"histo"}
    follow_up = first["dx"][first["dx_type"] == "follow_up"]
    assert (len(follow_up), set(follow_up)) == (3704, {"nv"})
    for other in others:
        pd.testing.assert_frame_equal(first.drop(columns="source"), other.drop(columns="source"))
        assert set(other["source"]) == {"rosendahl", "vidir_modern", "vidir_molemax", "vienna_dias"}


@pytest.mark.slow
@needs_real
def test_the_two_identical_pairs_and_no_other():
    dataset = reader.load(REAL.parent)
    by_digest: dict[str, list[str]] = {}
    for image_id in dataset.table["image_id"]:
        digest = hashlib.blake2b(dataset.images.path(image_id).read_bytes()).hexdigest()
        by_digest.setdefault(digest, []).append(image_id)
    assert tuple(tuple(ids) for ids in by_digest.values() if len(ids) > 1) == dataset.identical == reader.IDENTICAL
    lesion = dataset.table.set_index("image_id")["lesion_id"]
    assert all(lesion[a] == lesion[b] for a, b in dataset.identical)
    if dataset.masks is not None:
        np.testing.assert_array_equal(dataset.masks.read("ISIC_0029819"), dataset.masks.read("ISIC_0026042"))
