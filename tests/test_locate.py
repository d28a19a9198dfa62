"""Where data are looked for, in which order, and what is said when they are not there."""

import shutil
from pathlib import Path

import pytest
from layouts import bcn20000_kaggle, dermamnist, ham10000, isic2019

from skinbook import config
from skinbook.config import SkinbookError
from skinbook.data import catalog, locate


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """The four places, all empty; the settings name them."""
    for name in ("argument", "first", "second", "kaggle", "cache"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("SKINBOOK_DATA", f"{tmp_path / 'first'}:{tmp_path / 'second'}")
    monkeypatch.setenv("SKINBOOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("SKINBOOK_EDITION", raising=False)
    monkeypatch.setattr(config, "KAGGLE_INPUT", tmp_path / "kaggle")
    return tmp_path


def test_the_order_of_places(folders):
    ham10000(folders / "cache" / "ham10000", count=14)
    assert catalog.load("ham10000").where == folders / "cache" / "ham10000"
    for name in ("kaggle", "second", "first"):
        ham10000(folders / name / "skin-cancer-mnist-ham10000", count=14)
        assert catalog.load("ham10000").where == folders / name / "skin-cancer-mnist-ham10000"
    ham10000(folders / "argument", count=14)
    assert catalog.load("ham10000", root=folders / "argument").where == folders / "argument"


def test_a_root_is_the_only_place(folders):
    ham10000(folders / "first", count=14)
    with pytest.raises(
        SkinbookError, match=r"HAM10000 was not found: looked for HAM10000_metadata .*argument\. Set SKINBOOK_DATA"
    ):
        catalog.load("ham10000", root=folders / "argument")


def test_kaggles_longest_way(folders):
    ham10000(folders / "kaggle" / "datasets" / "kmader" / "skin-cancer-mnist-ham10000", count=14)
    assert len(catalog.load("ham10000").table) == 14


@pytest.mark.parametrize("edition", ["ham10000", "bcn20000", "dermamnist"])
def test_nothing_found(folders, edition):
    with pytest.raises(
        SkinbookError,
        match=rf"was not found: looked for .* in .*first.*second.*kaggle.*cache.*skinbook data get {edition}",
    ):
        catalog.load(edition)


def test_a_place_that_is_no_folder(folders, monkeypatch):
    monkeypatch.setenv("SKINBOOK_DATA", str(folders / "nowhere"))
    with pytest.raises(SkinbookError, match=r"SKINBOOK_DATA is .*nowhere, which is not a folder"):
        catalog.load("ham10000")
    with pytest.raises(SkinbookError, match=r"The folder given is .*nowhere, which is not a folder"):
        catalog.load("ham10000", root=folders / "nowhere")


def test_a_folder_that_may_not_be_read(folders, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(locate.os, "scandir", refuse)
    with pytest.raises(SkinbookError, match=r"first cannot be read \(Permission denied\). Change its permissions"):
        catalog.load("ham10000")


def test_an_unknown_edition(folders):
    with pytest.raises(
        SkinbookError, match=r"'isic' is not an edition; choose from lab, ham10000, bcn20000, dermamnist"
    ):
        catalog.load("isic")


def test_too_many_folders(folders, monkeypatch):
    monkeypatch.setattr(locate, "MOST_FOLDERS", 3)
    for name in "abcd":
        (folders / "first" / name).mkdir()
    with pytest.raises(SkinbookError, match=r"first holds more than 3 folders. Name the data set's own folder"):
        catalog.load("ham10000")


def test_the_nearest_image_counts_and_any_suffix_and_case(tmp_path):
    for name in ("b/x.JPG", "a/x.jpeg", "a/deep/y.png", ".hidden/z.jpg", "a/x_segmentation.png", "z.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = locate.find_images([tmp_path], ["x", "y", "z"])
    assert {k: str(Path(v).relative_to(tmp_path)) for k, v in found.items()} == {"x": "a/x.jpeg", "y": "a/deep/y.png"}
    assert set(locate.find_images([tmp_path], ["x", "y"], ending="_segmentation")) == {"x"}


def lay(top, **files):
    """Small files with these bytes; `__` in a name is a folder, and the last `_` is the dot."""
    for name, data in files.items():
        folder, _, file = name.replace("__", "/").rpartition("_")
        path = top / f"{folder}.{file}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return top


def listed(top, *names):
    return {name: file.relative_to(top).as_posix() for name, file in locate.find_listed(top, names).items()}


def test_files_lie_where_the_table_says(tmp_path):
    lay(tmp_path, val__0_png=b"v", test__0_png=b"t", test__1_png=b"t1", old__test__1_png=b"o1", masks__0_png=b"mm")
    (tmp_path / "0.png").write_bytes(b"here")
    assert listed(tmp_path, "val/0.png", "TEST\\0.PNG", "./masks//0") == {
        "val/0.png": "val/0.png",
        "TEST\\0.PNG": "test/0.png",
        "./masks//0": "masks/0.png",
    }
    assert list(listed(tmp_path, "0.png", "./masks//0", "test/0.png")) == ["0.png", "./masks//0", "test/0.png"]
    (tmp_path / "0.png").unlink()
    assert listed(tmp_path, ".//masks//0") == {".//masks//0": "masks/0.png"}
    # The longest end of the way that is here; the same path from the folder given goes before a longer one.
    assert listed(tmp_path, "C:\\my\\old\\test\\1.png") == {"C:\\my\\old\\test\\1.png": "old/test/1.png"}
    assert listed(tmp_path, "test/1.png") == {"test/1.png": "test/1.png"}
    # A folder that is there is meant, also when the file is not in it.
    assert listed(tmp_path, "val/1.png", "masks/2.png", "") == {}
    # The folder that is searched has a name, too.
    assert locate.find_listed(tmp_path / "val", ["val/0.png"]) == {"val/0.png": tmp_path / "val" / "0.png"}


def test_a_folder_from_another_machine_does_not_matter_unless_the_file_is_another_row_s(tmp_path):
    lay(tmp_path, test__0_png=b"t", test__deep__1_jpg=b"t1")
    assert listed(tmp_path, "/home/me/pictures/0.png", "1.png") == {
        "/home/me/pictures/0.png": "test/0.png",
        "1.png": "test/deep/1.jpg",
    }
    assert listed(tmp_path, "train/0.png") == {"train/0.png": "test/0.png"}
    for names in (("train/0.png", "test/0.png"), ("/x/test/0.png", "/x/train/0.png")):
        assert set(listed(tmp_path, *names)) == {name for name in names if "test" in name}
    lay(tmp_path, val__0_png=b"v")
    assert listed(tmp_path, "train/0.png", "val/0.png", "test/0.png") == {n: n for n in ("val/0.png", "test/0.png")}
    with pytest.raises(SkinbookError, match=r"and train/0\.png may be either"):
        listed(tmp_path, "train/0.png")
    (tmp_path / "val" / "0.png").unlink()
    both = ("0.png", "test/0.png", "train/0.png")  # what names no folder may be that file
    assert listed(tmp_path, *both) == dict.fromkeys(both[:2], "test/0.png")
    both = ("train/0.png", "val/0.png", "0.png")  # neither is nearer
    assert listed(tmp_path, *both) == dict.fromkeys(both, "test/0.png")
    # `test` holds an image itself, so it is a folder of images; what holds only folders is on the way to them.
    lay(tmp_path, all__nv__7_png=b"7")
    assert listed(tmp_path, "all/7.png", "test/1.jpg") == {"all/7.png": "all/nv/7.png"}


def test_files_of_one_name_that_differ_are_refused_and_copies_are_not(tmp_path):
    lay(
        tmp_path,
        annotations__0_png=b"mask",
        images__0_png=b"face",
        b__1_png=b"same",
        a__1_png=b"same",
        c__1_png=b"same",
    )
    assert listed(tmp_path, "1.png") == {"1.png": "a/1.png"}
    assert listed(tmp_path, "images/0.png") == {"images/0.png": "images/0.png"}
    for name in ("0.png", "0", "elsewhere/0.jpg"):
        with pytest.raises(SkinbookError) as refused:
            locate.find_listed(tmp_path, [name])
        assert str(refused.value) == (
            f"{tmp_path / 'annotations' / '0.png'} and {tmp_path / 'images' / '0.png'} differ, and {name} may be "
            "either. Write its folder and its ending where it is listed, such as images/0.png, or let --images lead to "
            "a folder that holds one of them only."
        )
    (tmp_path / "c" / "1.png").write_bytes(b"diff")
    with pytest.raises(SkinbookError, match=r"a.1\.png and .*c.1\.png differ"):
        locate.find_listed(tmp_path, ["1"])
    # What lies at the very path, or has the ending, is meant.
    lay(tmp_path, ax__0_png=b"x", ax__0_jpg=b"y")
    (tmp_path / "0.png").write_bytes(b"here")
    assert listed(tmp_path, "0.png", "ax/0.jpg", "ax/0.png") == {n: n for n in ("0.png", "ax/0.jpg", "ax/0.png")}
    assert listed(tmp_path, "0", "0.jpg") == {"0": "0.png", "0.jpg": "ax/0.jpg"}
    with pytest.raises(SkinbookError, match=r"such as ax/0\.png"):
        locate.find_listed(tmp_path, ["ax/0"])


def test_copies_are_found_by_their_bytes_and_only_files_of_one_size_are_read(tmp_path, monkeypatch):
    lay(tmp_path, a_png=b"one", b_png=b"two", c_png=b"one", d_png=b"other", e_png=b"two")
    files = [tmp_path / f"{name}.png" for name in "abcde"]
    read = []
    monkeypatch.setattr(locate, "_digest", lambda file, digest=locate._digest: read.append(file.stem) or digest(file))
    assert locate.copies(files) == [0, 1, 0, 3, 1]
    assert read == ["a", "b", "c", "e"]
    assert (locate.copies([]), locate.copies([tmp_path / "no"])) == ([], [0])
    assert locate.copies([files[0], tmp_path / "no", files[0], tmp_path / "nor", tmp_path / "no"]) == [0, 1, 0, 3, 1]

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    assert locate.copies([files[0], files[2], files[0]]) == [0, 1, 0]
    assert len(read) == 9


def test_kaggles_second_copy_of_ham10000_is_one_set(tmp_path):
    top = ham10000(tmp_path, count=14)
    for folder in sorted(top.glob("HAM10000_images_part_*")):
        shutil.copytree(folder, top / "skin" / folder.name.lower())
    names = [f"ISIC_{number:07d}" for number in range(14)]
    files = locate.find_listed(top, names)
    assert [file.parent.parent for file in files.values()] == [top] * 14
    assert list(files) == names


def test_a_file_is_in_its_folder_or_not(tmp_path):
    file = tmp_path / "Val" / "0.png"
    for name, there in (
        ("0.png", True),
        ("x/VAL/0.jpg", True),
        ("val\\0", True),
        ("test/0.png", False),
        ("../0.png", False),
    ):
        assert locate.in_its_folder(name, file) == there


def test_status_names_every_edition(folders):
    before = catalog.status()
    assert [found.where is None for found in before] == [False, True, True, True]
    ham10000(folders / "first" / "ham", count=14)
    bcn20000_kaggle(folders / "second" / "bcn")
    dermamnist(folders / "cache" / "dermamnist")
    found = {f.edition: f for f in catalog.status()}
    assert "14 rows, 14 images, with masks" in found["ham10000"].summary
    assert "22 rows, 22 images" in found["bcn20000"].summary
    assert "28 rows, 28 images" in found["dermamnist"].summary
    isic2019(folders / "first" / "isic")
    (folders / "first" / "ham" / "HAM10000_metadata.csv").write_text("", encoding="utf-8")
    found = {f.edition: f for f in catalog.status()}
    assert "0 images" in found["bcn20000"].summary
    assert "is empty" in found["ham10000"].summary
