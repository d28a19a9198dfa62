"""`skinbook data verify` lists all faults of a set at once."""

import re

import pytest
from layouts import HAM_HEADER, bcn20000_kaggle, dermamnist, ham10000, ham_rows, isic2019, photograph, write_csv
from typer.testing import CliRunner

from skinbook.cli_data import app
from skinbook.config import SkinbookError
from skinbook.data.verify import verify

SETS = {"ham10000": ham10000, "bcn20000": bcn20000_kaggle, "dermamnist": dermamnist}


@pytest.mark.parametrize("edition", SETS)
def test_a_sound_set_has_no_faults(tmp_path, edition):
    report = verify(edition, root=SETS[edition](tmp_path))
    assert report.faults == []
    assert (
        report.counts["images"] == report.counts["rows"] == {"ham10000": 28, "bcn20000": 22, "dermamnist": 28}[edition]
    )


def test_all_faults_at_once(tmp_path):
    top = ham10000(tmp_path)
    rows = ham_rows()
    for row, column, value in [
        (0, "dx", "wart"), (1, "dx", "wart"), (2, "age", "old"), (3, "age", "130"), (4, "sex", "w"), (5, "dx", "scc"),
        (7, "image_id", "ISIC_0000006"), (9, "lesion_id", ""),
    ]:  # fmt: skip
        rows[row][HAM_HEADER.index(column)] = value
    write_csv(top / "HAM10000_metadata.csv", HAM_HEADER, rows)
    images = top / "HAM10000_images_part_1"
    (images / "ISIC_0000001.jpg").unlink()
    (images / "ISIC_0000002.jpg").write_bytes(b"")
    (images / "ISIC_0000003.jpg").write_bytes((images / "ISIC_0000003.jpg").read_bytes()[:-200])
    photograph("grey").convert("L").save(images / "ISIC_0000004.jpg")
    photograph("cmyk").convert("CMYK").save(images / "ISIC_0000005.jpg")
    masks = top / "HAM10000_segmentations_lesion_tschandl"
    (masks / "ISIC_0000008_segmentation.png").unlink()
    (masks / "ISIC_0000009_segmentation.png").write_bytes(b"no png")
    report = verify("ham10000", root=top)
    expected = [
        r"row 2, column dx: found 'wart'.*\(2 such rows\)",
        r"row 4, column age: found 'old'",
        r"row 5, column age: found .*130",
        r"row 6, column sex: found 'w'",
        r"row 7, column dx: 'scc' is no diagnosis of this data set",
        r"image_id 'ISIC_0000006' stands in rows 8, 9",
        r"row 11, column lesion_id",
        r"ISIC_0000001 is in .* and has no file among the images",
        r"ISIC_0000002.jpg is empty",
        r"ISIC_0000003.jpg is cut off",
        r"ISIC_0000008 is in .* and has no file among the masks",
        r"ISIC_0000009_segmentation.png is not an image",
    ]
    unexplained = [fault for fault in report.faults if not any(re.search(pattern, fault) for pattern in expected)]
    missed = [pattern for pattern in expected if not any(re.search(pattern, fault) for fault in report.faults)]
    assert (unexplained, missed) == ([], [])
    assert len(report.faults) == len(expected)
    assert sorted(re.findall(r"images are (\w+)", " ".join(report.notes))) == ["CMYK", "greyscale"]


def test_thousands_of_unknown_diagnoses_are_listed_once_each(tmp_path):
    top = ham10000(tmp_path, masks=False)
    rows = [[*row[:2], f"unheard-of-{i % 3}", *row[3:]] for i, row in enumerate(ham_rows())]
    write_csv(top / "HAM10000_metadata.csv", HAM_HEADER, rows)
    assert len(verify("ham10000", root=top).faults) == 3


def test_a_table_that_cannot_be_read_is_the_one_fault(tmp_path):
    top = ham10000(tmp_path)
    write_csv(top / "HAM10000_metadata.csv", HAM_HEADER[1:], [row[1:] for row in ham_rows()])
    assert [f for f in verify("ham10000", root=top).faults if "lacks the column lesion_id" in f]


def test_bcn20000s_rows_keep_their_numbers(tmp_path):
    top = bcn20000_kaggle(tmp_path)
    table = top / "bcn_20k_train.csv"
    table.write_text(
        table.read_text(encoding="utf-8")
        .replace("BCN_0000000004.jpg,20.0", "BCN_0000000004.jpg,-1")
        .replace("NV", "", 1),
        encoding="utf-8",
    )
    report = verify("bcn20000", root=top)
    assert [re.search(r"row (\d+), column (\w+)", fault).groups() for fault in report.faults] == [("6", "age")]
    assert any("3 rows without a diagnosis are left out" in note for note in report.notes)


def test_the_isic_pair_needs_no_images(tmp_path):
    report = verify("bcn20000", root=isic2019(tmp_path))
    assert report.faults == []
    assert report.counts == {"rows": 9, "images": 0}


def test_a_download_that_changed_later(tmp_path):
    top = ham10000(tmp_path)
    (top / "hashes.json").write_text('{"HAM10000_metadata.csv": "0123"}', encoding="utf-8")
    assert ["its SHA-256 has changed" in fault for fault in verify("ham10000", root=top).faults] == [True]
    (top / "hashes.json").write_text("nonsense", encoding="utf-8")
    assert ["hashes.json cannot be read" in fault for fault in verify("ham10000", root=top).faults] == [True]


def test_a_damaged_archive(tmp_path):
    file = dermamnist(tmp_path) / "dermamnist.npz"
    file.write_bytes(file.read_bytes()[:-500])
    assert ["is not an .npz archive" in fault for fault in verify("dermamnist", root=tmp_path).faults] == [True]


def test_nothing_to_verify(tmp_path):
    with pytest.raises(SkinbookError, match="The lab edition is generated"):
        verify("lab")
    with pytest.raises(SkinbookError, match="HAM10000 was not found"):
        verify("ham10000", root=tmp_path)


@pytest.fixture
def run(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("SKINBOOK_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("SKINBOOK_CACHE", str(tmp_path / "cache"))
    return lambda *arguments: CliRunner().invoke(app, list(arguments))


def test_the_commands(run, tmp_path):
    ham10000(tmp_path / "data")
    shown = run("status")
    assert shown.exit_code == 0
    assert re.search(r"ham10000 .*28 rows, 28 images, with masks", shown.output)
    assert re.search(r"bcn20000 .*was not found", shown.output)
    checked = run("verify", "ham10000")
    assert (checked.exit_code, "28 rows, 28 images, 28 masks checked, 0 faults" in checked.output) == (0, True)
    (tmp_path / "data" / "HAM10000_images_part_1" / "ISIC_0000001.jpg").write_bytes(b"")
    checked = run("verify", "ham10000")
    assert (checked.exit_code, "fault: " in checked.output, "1 faults" in checked.output) == (1, True, True)


@pytest.mark.parametrize(
    "command", [("verify", "isic"), ("get", "lab"), ("verify", "dermamnist"), ("get", "dermamnist", "--size", "1")]
)
def test_a_wrong_command_gives_one_sentence(run, command):
    answer = run(*command)
    assert answer.exit_code == 2
    assert "Traceback" not in answer.output
    assert isinstance(answer.exception, SystemExit)
