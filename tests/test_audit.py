import numpy as np
import pandas as pd
import pytest

from skinbook import keyed
from skinbook.audit import NEAR, audit, bits_set, giveaways, near_duplicates, perceptual_hashes
from skinbook.config import SkinbookError
from skinbook.data.schema import Dataset
from skinbook.diagnoses import CLASSES
from skinbook.splits import lesion_split, random_split


class Arrays:
    def __init__(self, images):
        self.images = images

    def read(self, image_id):
        return self.images[image_id]

    def path(self, image_id):
        return None

    def fingerprint(self, image_ids):
        return "arrays"


def a_table(lesions=300):
    photographs = 1 + keyed.integers("photographs", lesions, 3)
    dx = np.array(["nv", "mel", "bkl"])[np.digitize(keyed.uniform("dx", lesions), [0.6, 0.8])]
    rows = [(f"I{k}_{p}", f"L{k}", dx[k]) for k in range(lesions) for p in range(photographs[k])]
    table = pd.DataFrame(rows, columns=["image_id", "lesion_id", "dx"])
    histo = (table["dx"] == "mel") | (keyed.uniform("histo", len(table)) < 0.4)
    table["dx_type"] = np.where(histo, "histo", np.where(table["dx"] == "nv", "follow_up", "consensus"))
    table["age"] = 5.0 * keyed.integers("age", len(table), 18)
    table["sex"] = np.array(["male", "female"])[keyed.integers("sex", len(table), 2)]
    table["site"] = "back"
    return table.assign(source="here")


def blobs(n, size=48):
    """Smooth random photographs."""
    import torch
    from torch.nn.functional import interpolate

    coarse = torch.from_numpy(keyed.uniform("blobs", n * 3 * 24 * 24).reshape(n, 3, 24, 24))
    return (interpolate(coarse, size, mode="bicubic").clamp(0, 1) * 255).permute(0, 2, 3, 1).numpy().astype(np.uint8)


def dataset_of(table, pixels):
    images = dict(zip(table["image_id"], pixels, strict=True))
    return Dataset("lab", table, CLASSES["lab"], Arrays(images))


def test_a_split_by_lesion_is_clean_and_a_random_one_is_not():
    table = a_table()
    clean, leaking = audit(table, lesion_split(table)), audit(table, random_split(table))
    assert not clean.leaks
    assert clean.verdict.startswith("Clean: no lesion of the test set")
    assert leaking.leaks
    part = random_split(table).parts.to_numpy()
    known = set(table["lesion_id"][part != "test"])
    expected = table["lesion_id"][part == "test"].isin(known)
    assert leaking.lesions.loc["all", "shared"] == expected.sum()
    assert f"{expected.sum()} of {len(expected)}" in leaking.verdict
    mel = (table["dx"] == "mel") & (part == "test")
    assert leaking.lesions.loc["mel", "share"] == pytest.approx(table["lesion_id"][mel].isin(known).mean())


def test_one_file_under_two_lesions_is_found_across_the_parts_only():
    table = a_table()
    pixels = blobs(len(table))
    split = lesion_split(table)
    train, test = split.rows("train")[:2], split.rows("test")[0]
    pixels[train[1]] = pixels[split.rows("validation")[0]]
    assert not audit(table, split, dataset_of(table, pixels), pixels).leaks
    pixels[test] = pixels[train[0]]
    pixels[train[1]] = pixels[train[0]]
    report = audit(table, split, dataset_of(table, pixels), pixels)
    assert report.leaks
    assert {frozenset(p) for p in report.identical[["image", "other image"]].to_numpy()} == {
        frozenset((table["image_id"][k], table["image_id"][test])) for k in train
    }
    assert "2 byte-identical pairs" in report.verdict


def test_near_duplicates_survive_light_contrast_and_compression_and_others_do_not():
    table = a_table(40)
    pixels = blobs(len(table))
    brighter = np.clip(pixels[0].astype(float) * 1.15 + 10, 0, 255)
    noisy = np.clip(
        pixels[1].astype(float) + 4 * keyed.normal("noise", pixels[1].size).reshape(pixels[1].shape), 0, 255
    )
    pixels[2], pixels[3] = brighter.astype(np.uint8), noisy.astype(np.uint8)
    found = {(a, b): d for a, b, d in near_duplicates(table, pixels)}
    assert set(found) == {(0, 2), (1, 3)}
    assert max(found.values()) <= NEAR
    hashes = perceptual_hashes(pixels)
    assert found[0, 2] == int(np.bitwise_count(hashes[0] ^ hashes[2]).sum())


def test_columns_that_give_the_label_away():
    found = giveaways(a_table(600)).set_index("value")
    assert found.loc["follow_up", "always"] == "nv"
    assert found.loc["consensus", "always"] == "bkl"
    assert set(found["column"]) == {"dx_type"}


def test_a_value_that_is_never_cancer_gives_the_label_away_too():
    table = a_table(600)
    table.loc[table["dx"].isin(["nv", "bkl"]) & (table["dx_type"] != "histo"), "dx_type"] = "consensus"
    assert giveaways(table).set_index("value").loc["consensus", "always"] == "benign"


def test_a_split_of_other_photographs_is_refused():
    with pytest.raises(SkinbookError, match="says nothing of"):
        audit(a_table(301), lesion_split(a_table(300)))


def test_a_biased_test_set_shows_in_the_mix():
    table = a_table()
    split = random_split(table)
    split.parts[(split.parts == "test") & (table["dx"] != "nv").to_numpy()] = "train"
    assert audit(table, split).mix.loc["nv", "test"] == 1.0
    assert audit(table, random_split(table)).mix.loc["nv", "test"] < 0.7


def test_bits_are_counted_alike_where_numpy_cannot_count_them(monkeypatch):
    words = np.array([[0, 1, 2**64 - 1], [2**63, 0xFF00FF, 12345678901234567]], dtype=np.uint64)
    expected = [[int(word).bit_count() for word in row] for row in words]
    assert bits_set(words).tolist() == expected
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert bits_set(words).tolist() == expected
