from dataclasses import FrozenInstanceError

import numpy as np
import pandas as pd
import pytest

from skinbook import keyed
from skinbook.audit import (
    NEAR,
    audit,
    bits_set,
    giveaways,
    identical_files,
    means,
    near_duplicates,
    near_pairs,
    pairs_within,
    perceptual_hashes,
)
from skinbook.config import SkinbookError
from skinbook.data.schema import Dataset
from skinbook.diagnoses import CLASSES
from skinbook.splits import Split, lesion_split, random_split


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
    assert found[0, 2] == bin(int.from_bytes((hashes[0] ^ hashes[2]).tobytes())).count("1")


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


# By hand


def split_of(*rows):
    """A table and its split, of photographs given as (part, lesion, dx)."""
    table = pd.DataFrame(rows, columns=["part", "lesion_id", "dx"])
    table["image_id"] = [f"I{k}" for k in range(len(table))]
    return table, Split(table.set_index("image_id")["part"], "by hand")


class Files(Arrays):
    """Photographs that lie in files."""

    def path(self, image_id):
        return self.images[image_id]


def test_one_photograph_of_a_known_lesion_is_enough_to_leak():
    rows = [
        ("train", "A", "nv"),
        ("validation", "B", "mel"),
        ("test", "C", "nv"),
        ("test", "D", "nv"),
        ("test", "E", "mel"),
    ]
    clean = audit(*split_of(*rows))
    assert not clean.leaks
    assert clean.verdict == "Clean: no lesion of the test set is anywhere else (the images were not looked at)."
    assert len(clean.identical) == len(clean.near) == 0
    with pytest.raises(FrozenInstanceError):
        clean.looked_at_images = True
    for known in "AB":
        leaking = audit(*split_of(*rows[:4], ("test", known, "mel")))
        assert leaking.leaks
        assert leaking.verdict == (
            "LEAKS: 1 of 3 test photographs (33%) show a lesion that is also in training or validation "
            "(the images were not looked at)."
        )
        assert leaking.lesions.to_dict("index") == {
            "nv": {"in test": 2, "shared": 0, "share": 0.0},
            "mel": {"in test": 1, "shared": 1, "share": 1.0},
            "all": {"in test": 3, "shared": 1, "share": pytest.approx(1 / 3)},
        }
        assert leaking.lesions.index.tolist() == ["nv", "mel", "all"]  # the most first, and all last
    assert leaking.mix.columns.tolist() == ["train", "validation", "test"]
    assert leaking.mix["test"].to_dict() == {"nv": pytest.approx(2 / 3), "mel": pytest.approx(1 / 3)}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_a_pair_of_the_same_file_leaks_if_one_side_is_in_the_test(tmp_path, order):
    parts = ["train", "test"]
    rows = [(parts[k], "AB"[k], "nv") for k in order]
    table, split = split_of(*rows, ("validation", "C", "nv"), ("test", "D", "nv"))
    files = {name: tmp_path / f"{name}.jpg" for name in table["image_id"]}
    for number, (name, file) in enumerate(files.items()):
        file.write_bytes(b"the same" if number < 2 else name.encode())
    found = audit(table, split, Dataset("lab", table, CLASSES["lab"], Files(files)))
    assert found.identical.to_numpy().tolist() == [["I0", "I1", parts[order[0]], parts[order[1]], 0, False]]
    assert found.leaks
    assert found.verdict == "LEAKS: 1 byte-identical pairs have one side in it."
    assert [tuple(pair) for pair in identical_files(table, Dataset("lab", table, (), Files(files)))] == [(0, 1, 0)]
    files["I1"].write_bytes(b"another")
    clean = audit(table, split, Dataset("lab", table, CLASSES["lab"], Files(files)))
    assert clean.verdict == "Clean: no lesion and no file of the test set is anywhere else."
    # Two copies that are both known are no leak.
    files["I2"].write_bytes(files["I0" if order[0] == 0 else "I1"].read_bytes())
    known = audit(table, split, Dataset("lab", table, CLASSES["lab"], Files(files)))
    assert len(known.identical) == 1
    assert not known.leaks


@pytest.mark.parametrize("count", [1, 20, 32, 33, 64, 100, 450])
def test_means_over_parts_are_torch_s(count):
    import torch
    from torch.nn.functional import adaptive_avg_pool1d

    values = torch.from_numpy(np.random.default_rng(0).random((1, 1, count)))
    np.testing.assert_allclose(
        means(count, 32) @ values.numpy()[0, 0], adaptive_avg_pool1d(values, 32)[0, 0], rtol=1e-12
    )


def test_near_pairs_say_whether_they_show_one_lesion():
    table, split = split_of(("test", "A", "nv"), ("train", "A", "nv"), ("train", "B", "nv"), ("train", "Z", "nv"))
    pixels = blobs(4)
    pixels[1] = pixels[0]
    pixels[3] = pixels[0]
    found = audit(table, split, pixels=pixels).near
    assert found.to_numpy().tolist() == [
        ["I0", "I1", "test", "train", 0, True],
        ["I0", "I3", "test", "train", 0, False],
    ]
    table.loc[0, "lesion_id"] = "M"
    assert audit(table, split, pixels=pixels).near["same lesion"].tolist() == [False, False]


def test_the_photograph_that_a_split_leaves_out_is_named():
    table, split = split_of(("test", "A", "nv"), ("train", "B", "nv"), ("train", "C", "nv"), ("train", "D", "nv"))
    with pytest.raises(SkinbookError, match="says nothing of 2 photographs, such as I1"):
        audit(table, Split(split.parts.drop(["I1", "I2"]), "by hand"))


def test_a_hash_is_the_signs_of_the_lowest_frequencies():
    """Against SciPy's cosine transform."""
    from scipy.fft import dctn

    pixels = blobs(5, size=64)
    hashes = perceptual_hashes(pixels)
    assert (hashes.shape, hashes.dtype) == ((5, 4), np.uint64)
    grey = (pixels * [0.299, 0.587, 0.114]).sum(axis=-1)
    small = grey.reshape(5, 32, 2, 32, 2).mean(axis=(2, 4))
    waves = dctn(small, axes=(1, 2))[:, :16, :16].reshape(5, -1)
    # Of 256 the constant one is set apart, above all; half of them lie above the median.
    waves[:, 0] = np.inf
    bits = np.unpackbits(hashes.view(np.uint8), axis=1)
    assert (bits != (waves > np.median(waves, axis=1, keepdims=True))).sum(axis=1).max() <= 1
    assert (bits.sum(axis=1) == 128).all()
    for chunk in (1, 2, 4):
        assert (perceptual_hashes(pixels, chunk) == hashes).all()


def test_near_pairs_are_all_pairs_within_so_many_bits_wherever_they_lie():
    hashes = np.stack([keyed.integers(("hash", word), 600, 2**62) for word in range(4)], axis=1).astype(np.uint64)
    wanted = {}
    for a, b, bits in (
        (0, 599, 0),
        (3, 4, 1),
        (10, 254, 7),
        (20, 256, 27),
        (255, 300, 28),
        (257, 511, 5),
        (400, 590, 29),
    ):
        hashes[b] = hashes[a]
        for bit in range(bits):
            hashes[b, bit % 4] ^= np.uint64(1 << (bit * 2))
        wanted[a, b] = bits
    found = near_pairs(hashes)
    assert found == sorted(found)
    assert {(a, b): bits for a, b, bits in found} == {pair: bits for pair, bits in wanted.items() if bits <= NEAR}
    assert {(a, b): bits for a, b, bits in near_pairs(hashes, 29)} == wanted
    assert {(a, b): bits for a, b, bits in near_pairs(hashes, 0)} == {(0, 599): 0}
    assert NEAR == 28


def told_by(photographs, lesions, share, column="site", other="mel"):
    """A thousand photographs, of which those of one site are all nv, as `share` of all are."""
    rows = 1000
    dx = np.where(np.arange(rows) < share * rows, "nv", other)
    table = pd.DataFrame({"dx": dx, column: np.where(np.arange(rows) < photographs, "sole", "elsewhere")})
    table["lesion_id"] = [f"L{k % lesions}" if k < photographs else f"M{k}" for k in range(rows)]
    return table


@pytest.mark.parametrize(
    ("photographs", "lesions", "share", "found"),
    [
        (50, 50, 0.5, [("site", "sole", "nv", 50, -15)]),
        (49, 49, 0.5, []),  # too few photographs
        (60, 20, 0.5, [("site", "sole", "nv", 60, -6)]),
        (60, 19, 0.5, []),  # so few lesions agree by chance
        (70, 63, 0.8, [("site", "sole", "nv", 70, -6)]),
        (70, 61, 0.8, []),
        (600, 600, 0.5, [("site", "elsewhere", "mel", 400, -120)]),  # not all of the 600 are nv
    ],
)
def test_a_value_gives_the_label_away_beyond_chance(photographs, lesions, share, found):
    told = giveaways(told_by(photographs, lesions, share))
    assert told.columns.tolist() == ["column", "value", "always", "photographs", "chance (log10)"]
    assert [tuple(row) for row in told.to_numpy()] == found


def test_a_value_is_told_once_and_whether_it_is_cancer_only_of_known_diagnoses():
    # All of one site are nv or df: never cancer, and of no one diagnosis.
    table = told_by(100, 100, 0.5)
    table.loc[:49, "dx"] = "df"
    assert giveaways(table)[["value", "always"]].to_numpy().tolist() == [["sole", "benign"]]
    table.loc[999, "dx"] = "a diagnosis of their own"
    assert len(giveaways(table)) == 0
    # Every column is looked at, whatever the first of them gave away.
    both = told_by(100, 100, 0.5)
    assert giveaways(both.assign(dx_type=both["site"]))["column"].tolist() == ["dx_type", "site"]


def test_more_near_pairs_than_memory_should_hold_are_refused_and_the_photograph_with_most_is_named(monkeypatch):
    hashes = np.stack([keyed.integers(("hash", word), 300, 2**62) for word in range(4)], axis=1).astype(np.uint64)
    for a, b in ((0, 1), (260, 270), (260, 280), (260, 290)):
        hashes[b] = hashes[a]
    monkeypatch.setattr("skinbook.audit.MOST_PAIRS", 7)  # of 1 and, among the four alike, 6
    assert len(near_pairs(hashes)) == 7
    monkeypatch.setattr("skinbook.audit.MOST_PAIRS", 6)
    with pytest.raises(SkinbookError, match=r"More than 6 pairs .* number 260 "):
        near_pairs(hashes)


def test_a_split_without_a_test_is_no_split_to_audit():
    table = a_table(20)
    split = random_split(table)
    for parts, sentence in (
        (
            split.parts.str.title(),
            "names a part 'Test': there is nothing to audit. The parts are train, validation, test",
        ),
        (split.parts.where(split.parts == "train", "train"), "has no photograph in test"),
        (pd.concat([split.parts, split.parts.head(2)]), f"names {table['image_id'][0]} twice"),
    ):
        with pytest.raises(SkinbookError, match=sentence):
            audit(table, Split(parts, "made up"))


def test_copies_by_the_thousand_are_too_many_to_pair(monkeypatch):
    names, groups = np.array(list("abcdefgh")), [(0,), (5, 6), (1, 2, 4), (7,)]
    monkeypatch.setattr("skinbook.audit.MOST_PAIRS", 4)  # three of one group and one of another
    assert pairs_within(groups, names) == [(5, 6, 0), (1, 2, 0), (1, 4, 0), (2, 4, 0)]
    monkeypatch.setattr("skinbook.audit.MOST_PAIRS", 3)
    with pytest.raises(SkinbookError, match="b and 2 others are one and the same, too many to pair"):
        pairs_within(groups, names)
    table = a_table(20).head(4)
    images = {name: np.zeros((4, 4, 3), np.uint8) for name in table["image_id"]}
    with pytest.raises(SkinbookError, match=f"{table['image_id'][0]} and 3 others are one and the same"):
        identical_files(table, Dataset("made up", table, (), Arrays(images)))


def test_a_verdict_counts_the_pairs_that_have_one_side_in_the_test():
    table, split = split_of(
        ("test", "A", "nv"), ("train", "B", "nv"), ("test", "C", "nv"), ("validation", "D", "nv"), ("train", "E", "nv")
    )
    alike = dict(zip(table["image_id"], blobs(5), strict=True))
    for copy, of in (("I1", "I0"), ("I3", "I0"), ("I4", "I2")):
        alike[copy] = alike[of]
    found = audit(table, split, Dataset("made up", table, (), Arrays(alike)))
    assert len(found.identical) == 4  # one of them between training and validation
    assert found.verdict == "LEAKS: 3 byte-identical pairs have one side in it."


def test_what_lies_left_and_what_lies_right_is_in_the_hash():
    slope = np.broadcast_to(np.linspace(0, 255, 64), (64, 64))
    pixels = np.stack([slope, slope[:, ::-1], slope.T, slope.T[::-1]])[..., None].repeat(3, axis=-1).astype(np.uint8)
    bits = np.unpackbits(perceptual_hashes(pixels).view(np.uint8), axis=1)
    assert bits[:, 0].all()  # the constant one
    assert bits[:, 1].tolist()[:2] == [0, 1]  # brighter on the right, and on the left
    assert bits[:, 16].tolist()[2:] == [0, 1]  # the same of below and above


def test_a_rare_value_does_not_end_the_search():
    table = told_by(100, 100, 0.5)
    table.loc[999, "site"] = "a rare one"  # first in the order of the alphabet
    assert "sole" in giveaways(table)["value"].tolist()
