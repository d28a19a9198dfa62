import numpy as np
import pandas as pd
import pytest

from skinbook import keyed
from skinbook.config import SkinbookError
from skinbook.splits import PARTS, leakage_pair, lesion_split, random_split


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


def test_fractions_are_checked():
    with pytest.raises(SkinbookError, match="sum to 1"):
        lesion_split(a_table(), fractions=(0.5, 0.5, 0.5))
