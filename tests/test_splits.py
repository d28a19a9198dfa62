from dataclasses import FrozenInstanceError

import numpy as np
import pandas as pd
import pytest

from skinbook import keyed
from skinbook.config import SkinbookError
from skinbook.splits import PARTS, Split, leakage_pair, lesion_split, random_split


def a_table(lesions=600, seed=0):
    """Lesions of three diagnoses with one to four photographs each."""
    photographs = 1 + keyed.integers(("photographs", seed), lesions, 4) * (
        keyed.uniform(("several", seed), lesions) < 0.4
    )
    dx = np.array(["nv", "mel", "df"])[np.digitize(keyed.uniform(("dx", seed), lesions), [0.7, 0.93])]
    rows = [(f"I{k}_{p}", f"L{k}", dx[k]) for k in range(lesions) for p in range(photographs[k])]
    return pd.DataFrame(rows, columns=["image_id", "lesion_id", "dx"])


def test_no_lesion_stands_on_two_sides():
    table = a_table()
    parts = lesion_split(table).parts.to_numpy()
    assert (table.assign(part=parts).groupby("lesion_id")["part"].nunique() == 1).all()
    # The same check sees a random split fail.
    assert (table.assign(part=random_split(table).parts.to_numpy()).groupby("lesion_id")["part"].nunique() > 1).any()


def test_every_part_has_its_share_of_every_diagnosis_and_of_lesions_with_several_photographs():
    table = a_table(3000)
    several = table["lesion_id"].duplicated(keep=False)
    split = lesion_split(table)
    for name in ("nv", "mel", "df"):
        inside = (table["dx"] == name).to_numpy()
        shares = [np.mean(split.parts.to_numpy()[inside] == part) for part in PARTS]
        assert shares == pytest.approx([0.65, 0.15, 0.20], abs=0.01)
    shares = [several.to_numpy()[split.rows(part)].mean() for part in PARTS]
    assert max(shares) - min(shares) < 0.03


def test_a_split_does_not_depend_on_the_order_of_the_rows_or_on_a_random_stream():
    table = a_table()
    shuffled = table.iloc[keyed.permutation("shuffle", len(table))].reset_index(drop=True)
    np.random.seed(1)  # noqa: NPY002 - the point is that it does not matter
    first, second = lesion_split(table), lesion_split(shuffled)
    assert first.fingerprint == second.fingerprint
    assert first.parts.sort_index().equals(second.parts.sort_index())
    assert lesion_split(table, seed=1).fingerprint != first.fingerprint
    assert random_split(table).fingerprint == random_split(shuffled).fingerprint


def test_the_fingerprints_are_pinned():
    """A change here means that every recorded result belongs to another split."""
    table = a_table()
    assert lesion_split(table).fingerprint == "eddc6c9ae4ab"
    assert random_split(table).fingerprint == "2ab16c5b5e4e"


def test_identical_photographs_stay_together_even_in_a_chain():
    table = a_table()
    firsts = table.drop_duplicates("lesion_id")["image_id"].tolist()
    loose = lesion_split(table).parts
    apart = next(i for i in range(1, len(firsts)) if loose[firsts[0]] != loose[firsts[i]])
    chain = [(firsts[apart], firsts[0]), (firsts[apart + 1], firsts[apart]), ("not in the table", firsts[0])]
    parts = lesion_split(table, identical=chain).parts
    assert parts[firsts[0]] == parts[firsts[apart]] == parts[firsts[apart + 1]]


def test_the_leakage_pair_differs_in_the_lesions_alone():
    table = a_table(2000)
    split = lesion_split(table)
    pair = leakage_pair(table, split)
    lesion, dx = table["lesion_id"].to_numpy(), table["dx"]
    assert len(pair.seen) == len(pair.unseen) == len(set(pair.seen)) == len(set(pair.unseen))
    assert dx.iloc[pair.seen].value_counts().to_dict() == dx.iloc[pair.unseen].value_counts().to_dict()
    # As many lesions too, of every diagnosis: only a lesion of which too few photographs are given up may remain.
    for name in ("nv", "mel", "df"):
        a, b = (len(set(lesion[rows][(dx.iloc[rows] == name).to_numpy()])) for rows in (pair.seen, pair.unseen))
        assert 0 <= a - b <= 2
    assert set(lesion[pair.test]) <= set(lesion[pair.seen])
    assert not set(lesion[pair.test]) & set(lesion[pair.unseen])
    assert not set(pair.test) & set(pair.seen)
    assert len(set(lesion[pair.test])) == len(pair.test)
    validation = set(lesion[split.rows("validation")])
    assert not validation & set(lesion[pair.seen])
    assert not validation & set(lesion[pair.unseen])


def test_leakage_cannot_be_measured_without_second_photographs():
    table = a_table().drop_duplicates("lesion_id").reset_index(drop=True)
    with pytest.raises(SkinbookError, match="second photograph"):
        leakage_pair(table, lesion_split(table))


def test_leakage_is_not_measured_on_a_split_that_leaks():
    with pytest.raises(SkinbookError, match="on a split by lesion"):
        leakage_pair(a_table(), random_split(a_table()))


def test_a_copy_of_the_test_photograph_is_no_other_photograph():
    table = a_table(2000)
    split = lesion_split(table)
    rows = next(
        rows
        for rows in table.groupby("lesion_id").indices.values()
        if len(rows) == 2 and rows[0] in set(leakage_pair(table, split).test)
    )
    copy = [tuple(table["image_id"].iloc[rows])]
    pair = leakage_pair(table, lesion_split(table, identical=copy), identical=copy)
    assert not set(rows) & set(pair.test)


def made_of(*lesions, parts=None):
    """A table, and a split by lesion, of lesions given as (part, dx, photographs)."""
    rows = [
        (f"I{k}_{p}", f"L{k}", dx, part)
        for k, (part, dx, photographs) in enumerate(lesions)
        for p in range(photographs)
    ]
    table = pd.DataFrame(rows, columns=["image_id", "lesion_id", "dx", "part"])
    return table, Split(table.set_index("image_id")["part"], "by lesion")


def test_a_split_names_the_rows_and_the_images_of_each_part_and_cannot_be_changed():
    _, split = made_of(("test", "nv", 1), ("train", "nv", 2), ("validation", "nv", 1), ("train", "mel", 1))
    expected = {"train": [1, 2, 4], "validation": [3], "test": [0]}
    assert {part: split.rows(part).tolist() for part in PARTS} == expected
    images = ["I0_0", "I1_0", "I1_1", "I2_0", "I3_0"]
    assert {part: split.images(part) for part in PARTS} == {
        p: [images[r] for r in rows] for p, rows in expected.items()
    }
    with pytest.raises(FrozenInstanceError):
        split.kind = "random"
    assert len(split.fingerprint) == 12


def test_a_lesion_whose_photographs_disagree_counts_with_the_diagnosis_of_most_or_the_first():
    table = a_table()
    several = table.index[table["lesion_id"].duplicated()]
    table.loc[several[::3], "dx"] = "bkl"
    assert lesion_split(table).fingerprint == "5f82704d58ea"
    parts = lesion_split(table).parts.to_numpy()
    assert (table.assign(part=parts).groupby("lesion_id")["part"].nunique() == 1).all()


def test_the_leakage_pair_takes_every_other_photograph_of_every_test_lesion():
    table = a_table(2000)
    split = lesion_split(table)
    pair = leakage_pair(table, split)
    in_test = table.iloc[split.rows("test")]
    several = in_test[in_test["lesion_id"].duplicated(keep=False)]
    assert set(table["lesion_id"].iloc[pair.test]) == set(several["lesion_id"])
    assert set(pair.test) | set(pair.seen) >= set(several.index)
    assert (pair.unseen == split.rows("train")).all()
    again, other = leakage_pair(table, split, seed=0), leakage_pair(table, split, seed=1)
    assert (again.test == pair.test).all()
    assert (again.seen == pair.seen).all()
    assert len(other.test) == len(pair.test)
    assert set(other.test) != set(pair.test)
    with pytest.raises(FrozenInstanceError):
        pair.test = pair.seen


def test_the_lesion_given_up_has_just_as_many_photographs_where_there_is_one():
    table, split = made_of(
        ("test", "nv", 2),
        ("test", "nv", 3),
        ("train", "nv", 3),
        ("train", "nv", 2),
        ("train", "mel", 2),
        ("test", "mel", 1),
    )
    pair = leakage_pair(table, split)
    kept = table["lesion_id"].iloc[pair.seen].value_counts()
    # Two photographs for the two of L1: lesion L3 goes. One for the one of L0: none has just one, and L2 keeps two.
    assert kept.to_dict() == {"L0": 1, "L1": 2, "L2": 2, "L4": 2}


def test_training_must_have_enough_of_a_diagnosis_to_exchange():
    table, split = made_of(("test", "mel", 3), ("train", "mel", 1), ("train", "nv", 3))
    with pytest.raises(SkinbookError, match="too few photographs of mel to exchange"):
        leakage_pair(table, split)
    table, split = made_of(("test", "mel", 2), ("train", "nv", 3))
    with pytest.raises(SkinbookError, match="too few photographs of mel to exchange"):
        leakage_pair(table, split)


def test_identical_photographs_of_one_lesion_join_nothing():
    table = a_table()
    images = table[table["lesion_id"].duplicated(keep=False)]["image_id"].tolist()[:2]
    pair = "".join(images[0]), "".join(images[1])
    assert lesion_split(table, identical=[pair]).fingerprint == lesion_split(table).fingerprint


@pytest.mark.parametrize(
    "fractions",
    [(0.5, 0.5, 0.5), (0.5, 0.5), (0.25,) * 4, (1.2, -0.4, 0.2), (0.5, 0.25, 0.2), (), "all", ({}, {}, {})],
    ids=str,
)
def test_fractions_are_checked(fractions):
    for split in (lesion_split, random_split):
        with pytest.raises(SkinbookError, match="sum to 1"):
            split(a_table(), fractions=fractions)


def test_a_part_may_be_empty():
    for split in (lesion_split, random_split):
        found = split(a_table(), fractions=(0.75, 0.0, 0.25))
        assert len(found.rows("validation")) == 0
        assert len(found.rows("test")) > 0
