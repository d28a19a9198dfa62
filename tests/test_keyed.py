import numpy as np
import pytest

from skinbook import keyed


def test_draws_are_pinned():
    """These numbers are in every split, table and order: a change here changes them all."""
    assert keyed.bits(("a", 1), 2).tolist() == [617855182387000702, 14200754873791201636]
    assert keyed.permutation("order", 8).tolist() == [7, 3, 4, 6, 0, 1, 2, 5]


def test_a_draw_depends_on_its_key_and_counter_alone():
    whole = keyed.uniform("key", 100)
    assert keyed.uniform("key", np.array([3, 50])).tolist() == whole[[3, 50]].tolist()
    assert not np.array_equal(keyed.uniform("key", 100), keyed.uniform("other", 100))
    assert keyed.key_bits(("a", 1)) != keyed.key_bits(("a", "1"))
    assert keyed.key_bits(("ab", "c")) != keyed.key_bits(("a", "bc"))


def test_numpy_s_whole_numbers_are_whole_numbers():
    assert keyed.key_bits(("a", np.int64(3))) == keyed.key_bits(("a", 3))
    assert len(keyed.bits("key", np.int64(5))) == 5
    with pytest.raises(TypeError):
        keyed.key_bits(("a", 1.5))


def test_the_distributions():
    u, z = keyed.uniform("u", 100_000), keyed.normal("z", 100_000)
    assert 0 <= u.min() < u.max() < 1
    assert u.mean() == pytest.approx(0.5, abs=0.005)
    assert (z.mean(), z.std()) == pytest.approx((0, 1), abs=0.01)
    assert np.corrcoef(u[:-1], u[1:])[0, 1] == pytest.approx(0, abs=0.01)
    counts = np.bincount(keyed.integers("i", 70_000, 7), minlength=7)
    assert counts.max() - counts.min() < 700
    assert sorted(keyed.permutation("p", 1000)) == list(range(1000))
