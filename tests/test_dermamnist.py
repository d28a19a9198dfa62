"""DermaMNIST's archive, and archives that are something else."""

import zipfile

import numpy as np
import pytest
from layouts import dermamnist, photograph

from skinbook.config import SkinbookError
from skinbook.data import dermamnist as reader


@pytest.mark.parametrize("size", [28, 64])
def test_the_table_and_the_pixels(tmp_path, size):
    dataset = reader.load(dermamnist(tmp_path / "medmnist", size).parent)
    table = dataset.table
    assert table["image_id"].tolist()[12:16] == ["train_00012", "train_00013", "val_00000", "val_00001"]
    assert table["dx"].tolist()[:7] == ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"]
    assert (table["lesion_id"] == table["image_id"]).all()
    assert table[["dx_type", "age", "sex", "site"]].isna().all(axis=None)
    assert dataset.provides == frozenset()
    pixels = dataset.images.read("val_00001")
    assert (pixels.shape, pixels.dtype) == ((size, size, 3), np.uint8)
    np.testing.assert_array_equal(pixels, np.asarray(photograph("val1", size, size)))
    assert dataset.images.path("val_00001") is None
    with pytest.raises(SkinbookError, match="Image val_00099 is not one of the 28 images"):
        dataset.images.read("val_00099")


def test_the_largest_size_counts(tmp_path):
    dermamnist(tmp_path, 28)
    dermamnist(tmp_path, 64)
    assert reader.find(tmp_path).name == "dermamnist_64.npz"


def test_the_fingerprint_follows_the_pixels(tmp_path):
    def fingerprint(folder, *arguments):
        dataset = reader.load(dermamnist(tmp_path / folder, *arguments))
        return dataset.images.fingerprint(dataset.table["image_id"].tolist())

    assert fingerprint("a") == fingerprint("b")
    assert len({fingerprint("a"), fingerprint("c", 64), fingerprint("d", 28, (14, 7, 8))}) == 3


def save(top, **arrays):
    whole = dict(np.load(dermamnist(top) / "dermamnist.npz")) | arrays
    np.savez(top / "dermamnist.npz", **{k: v for k, v in whole.items() if v is not None})
    return top


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"val_labels": None}, r"lacks val_labels; it has test_images"),
        (
            {"val_images": np.zeros((7, 28, 28), np.uint8)},
            r"val_images is uint8 of shape \(7, 28, 28\); expected uint8",
        ),
        ({"val_images": np.zeros((7, 28, 28, 3), np.float32)}, r"val_images is float32"),
        (
            {"val_labels": np.zeros((6, 1), np.uint8)},
            r"val_labels is uint8 of shape \(6, 1\); expected 7 whole numbers",
        ),
        ({"val_labels": np.full((7, 1), 7, np.uint8)}, r"val_labels has 7 in row 0; expected 0 to 6"),
        ({"val_labels": np.full((7, 1), -1)}, r"val_labels has -1 in row 0; expected 0 to 6"),
        ({"val_labels": np.array([[None]] * 7, dtype=object)}, r"val_labels.npy is not as long as its header says"),
    ],
)
def test_other_arrays_are_refused(tmp_path, arrays, sentence):
    with pytest.raises(SkinbookError, match=sentence) as caught:
        reader.load(save(tmp_path, **arrays))
    assert "dermamnist.npz" in str(caught.value)


def test_a_damaged_archive(tmp_path):
    file = dermamnist(tmp_path) / "dermamnist.npz"
    whole = file.read_bytes()
    for damaged in (b"", b"not a zip", whole[: len(whole) // 2]):
        file.write_bytes(damaged)
        with pytest.raises(
            SkinbookError, match=r"dermamnist.npz is not an .npz archive that can be read .*Download it again"
        ):
            reader.load(tmp_path)


def test_an_array_that_lies_about_its_length(tmp_path):
    with zipfile.ZipFile(tmp_path / "dermamnist.npz", "w") as archive:
        archive.writestr(
            "train_images.npy",
            b"\x93NUMPY\x01\x00v\x00"
            + b"{'descr': '|u1', 'fortran_order': False, 'shape': (999999, 9999, 9999, 3)}".ljust(117)
            + b"\n",
        )
    with pytest.raises(SkinbookError, match="is not as long as its header says"):
        reader.load(tmp_path)
