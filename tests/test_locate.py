"""Where data are looked for, in which order, and what is said when they are not there."""

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
