import numpy as np
import pytest
import torch

from skinbook import keyed
from skinbook.augment import Augment
from skinbook.batches import Batches
from skinbook.config import SkinbookError


def batches(count=103, **options):
    pixels = (keyed.uniform("pixels", count * 8 * 8 * 3) * 256).astype(np.uint8).reshape(count, 8, 8, 3)
    return Batches(pixels, np.arange(count) % 5, np.arange(3, count), batch_size=16, **options)


def rows(some, epoch=0, share=(0, 1)):
    return np.concatenate([batch.rows for batch in some.epoch(epoch, share)])


def test_an_epoch_is_every_row_once_with_its_label():
    some = batches(shuffle=True)
    assert sorted(rows(some)) == list(range(3, 103))
    assert not np.array_equal(rows(some, 0), rows(some, 1))
    assert np.array_equal(rows(some, 1), rows(batches(shuffle=True), 1))
    for batch in some.epoch(0):
        assert batch.labels.tolist() == (batch.rows % 5).tolist()
        assert batch.inputs.shape == (len(batch.rows), 3, 8, 8)
        assert abs(len(batch.rows) - 100 / len(some)) <= 1


def test_two_processes_share_every_batch_without_loss_or_repetition():
    some = batches(shuffle=True, augment=Augment(flip=True, brightness=0.2))
    shares = [list(some.epoch(0, (k, 2))) for k in range(2)]
    for whole, first, second in zip(some.epoch(0), *shares, strict=True):
        assert np.array_equal(whole.rows, np.concatenate([first.rows, second.rows]))
        assert torch.allclose(whole.inputs, torch.cat([first.inputs, second.inputs]), atol=1e-6)


def test_features_pass_through_as_they_are():
    features = keyed.uniform("features", 40).astype(np.float32).reshape(10, 4)
    (batch,) = Batches(features, np.zeros(10), np.arange(10)).epoch()
    assert torch.equal(batch.inputs, torch.from_numpy(features))


@pytest.mark.parametrize("options", [{"augment": Augment(flip=True)}, {"masks": np.zeros((10, 4), np.uint8)}])
def test_features_are_neither_augmented_nor_masked_in_silence(options):
    with pytest.raises(SkinbookError, match=r"Features \(float32\) can be neither augmented nor masked"):
        Batches(np.zeros((10, 4), np.float32), np.zeros(10), np.arange(10), **options)


def test_a_memory_mapped_store_serves(tmp_path):
    pixels = np.lib.format.open_memmap(tmp_path / "store.npy", "w+", np.uint8, (6, 8, 8, 3))
    pixels[:] = 255
    (batch,) = Batches(pixels, np.zeros(6), np.arange(6)).epoch()
    assert torch.allclose(batch.inputs, torch.ones(6, 3, 8, 8))


def test_nothing_to_do_is_said():
    with pytest.raises(SkinbookError, match="empty"):
        Batches(np.zeros((2, 8, 8, 3), np.uint8), np.zeros(2), np.array([]))
    with pytest.raises(SkinbookError, match="as many labels"):
        Batches(np.zeros((2, 8, 8, 3), np.uint8), np.zeros(3), np.arange(2))


def test_copies_of_a_row_are_augmented_each_in_its_own_way():
    pixels = (keyed.uniform("pixels", 4 * 8 * 8 * 3) * 256).astype(np.uint8).reshape(4, 8, 8, 3)
    change = Augment(flip=True, brightness=0.3)
    (copied,) = Batches(pixels, np.zeros(4), [1, 1, 1], augment=change).epoch()
    assert not torch.equal(copied.inputs[0], copied.inputs[1])
    assert not torch.equal(copied.inputs[1], copied.inputs[2])
    (single,) = Batches(pixels, np.zeros(4), [1], augment=change).epoch()
    assert torch.equal(single.inputs[0], copied.inputs[0])


def test_a_second_input_goes_with_its_row():
    beside = np.arange(103, dtype=np.float32)[:, None] * [1, 10]
    for batch in batches(shuffle=True, augment=Augment(flip=True), beside=beside).epoch():
        photographs, second = batch.inputs
        assert photographs.shape == (len(batch.rows), 3, 8, 8)
        assert second.dtype == torch.float32
        assert second[:, 1].tolist() == (batch.rows * 10).tolist()
    features = Batches(np.ones((103, 4), np.float32), np.zeros(103), np.arange(3), beside=beside)
    assert next(features.epoch()).inputs[1][:, 0].tolist() == [0, 1, 2]


def test_a_second_input_counts_in_a_checkpoint_and_must_have_every_row():
    beside = np.zeros((103, 2), np.float32)
    assert batches(beside=beside).identity() != batches(beside=beside + 1).identity()
    assert batches(beside=beside).identity() != batches().identity()
    with pytest.raises(SkinbookError, match="103 photographs need as many second inputs; got 100"):
        batches(beside=beside[3:])
    with pytest.raises(SkinbookError, match="103 photographs need as many names; got 2"):
        batches(names=["one", "two"])


@pytest.mark.parametrize(
    ("rows", "size", "shuffle", "sizes"),
    [(5, 2, True, [3, 2]), (3, 2, True, [3]), (1, 2, True, [1]), (4, 1, True, [1] * 4), (5, 2, False, [2, 2, 1])],
)
def test_no_batch_of_training_is_a_single_photograph(rows, size, shuffle, sizes):
    some = Batches(np.zeros((8, 4, 4, 3), np.uint8), np.zeros(8), np.arange(rows), batch_size=size, shuffle=shuffle)
    assert len(some) == len(sizes)
    assert [len(batch.labels) for batch in some.epoch()] == sizes
