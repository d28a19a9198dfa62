import numpy as np
import pytest
import torch
from torch import nn

from skinbook import keyed
from skinbook.augment import Augment
from skinbook.batches import Batches
from skinbook.config import SkinbookError
from skinbook.losses import class_weights
from skinbook.training import cosine, fit, predict


def a_network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.1),
        nn.Linear(8, 3),
    )


def some_batches(rows, shuffle=False, augment=None):
    """Squares of three colours with noise: easy, but not without training."""
    labels = keyed.integers("labels", 240, 3)
    pixels = keyed.uniform("noise", 240 * 16 * 16 * 3).reshape(240, 16, 16, 3) * 180
    pixels[np.arange(240), :, :, labels] += 40
    return Batches(pixels.astype(np.uint8), labels, np.asarray(rows), batch_size=32, shuffle=shuffle, augment=augment)


TRAIN = some_batches(range(160), shuffle=True, augment=Augment(flip=True, brightness=0.1))
VALIDATION = some_batches(range(160, 240))
QUIET = {"log": None, "learning_rate": 1e-2}


def weights_of(network):
    return torch.cat([v.float().flatten() for v in network.state_dict().values()])


def test_it_learns_and_keeps_the_best_epoch():
    network = a_network()
    result = fit(network, TRAIN, VALIDATION, epochs=8, **QUIET)
    history = result.history
    assert history["train loss"].iloc[-1] < history["train loss"].iloc[0]
    best = history["validation balanced accuracy"]
    assert best.max() > 0.8
    assert result.best_epoch == int(history["epoch"][best.idxmax()])
    logits = predict(network, VALIDATION)
    right = (logits.argmax(1) == VALIDATION.labels[VALIDATION.rows]).mean()
    assert right == pytest.approx(history["validation accuracy"][best.idxmax()])


def test_two_runs_are_identical_to_the_bit_and_another_seed_is_not():
    first, second, other = a_network(), a_network(), a_network()
    for network, seed in ((first, 0), (second, 0), (other, 1)):
        fit(network, TRAIN, VALIDATION, epochs=2, seed=seed, **QUIET)
    assert torch.equal(weights_of(first), weights_of(second))
    assert not torch.equal(weights_of(first), weights_of(other))


@pytest.mark.parametrize(
    "options", [{}, {"schedule": "plateau", "optimizer": "adam"}, {"average": 0.9}, {"optimizer": "sgd"}]
)
def test_a_run_that_was_killed_ends_where_an_undisturbed_one_does(tmp_path, options):
    class Killed(BaseException):
        pass

    def killer(line):
        if line.startswith("epoch 3 "):
            raise Killed

    whole, broken, resumed = a_network(), a_network(), a_network(7)
    reference = fit(whole, TRAIN, VALIDATION, epochs=5, **QUIET, **options)
    file = tmp_path / "run.safetensors"
    with pytest.raises(Killed):
        fit(broken, TRAIN, VALIDATION, epochs=5, checkpoint=file, learning_rate=1e-2, log=killer, **options)
    result = fit(resumed, TRAIN, VALIDATION, epochs=5, checkpoint=file, **QUIET, **options)
    assert torch.equal(weights_of(whole), weights_of(resumed))
    assert result.history.equals(reference.history)


def test_a_checkpoint_of_another_run_or_a_broken_one_is_refused(tmp_path):
    file = tmp_path / "run.safetensors"
    fit(a_network(), TRAIN, epochs=1, checkpoint=file, **QUIET)
    with pytest.raises(SkinbookError, match="another run"):
        fit(a_network(), TRAIN, epochs=1, seed=1, checkpoint=file, **QUIET)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(SkinbookError, match="cannot be read"):
        fit(a_network(), TRAIN, epochs=1, checkpoint=file, **QUIET)
    assert [f.name for f in tmp_path.iterdir()] == ["run.safetensors"]


def test_early_stopping():
    result = fit(a_network(), TRAIN, VALIDATION, epochs=50, patience=2, log=None, learning_rate=0.0, monitor="loss")
    assert len(result.history) < 50
    assert len(result.history) == result.best_epoch + 2


def test_the_plateau_lowers_the_rate():
    """Three epochs no better than the first, and the rate is a tenth."""
    stuck = {"loss": lambda logits, labels: 0 * logits.sum() + 1, "schedule": "plateau"}
    result = fit(a_network(), TRAIN, VALIDATION, epochs=6, **QUIET, **stuck)
    assert result.history["learning rate"].tolist() == pytest.approx([1e-2] * 4 + [1e-3] * 2)


def test_cosine():
    assert cosine(0.05, 0.1) == 0.5
    assert cosine(0.1, 0.1) == 1.0
    assert cosine(1.0, 0.1) == pytest.approx(0.0)
    assert cosine(0.0, 0.1) > 0


def test_a_loss_that_is_not_a_number_stops_the_run():
    with pytest.raises(SkinbookError, match=r"epoch 1, batch 1 \(rows"):
        fit(a_network(), TRAIN, epochs=1, loss=lambda logits, labels: logits.sum() * float("nan"), log=None)


def test_mixed_precision_runs_and_stays_close():
    full, half = a_network(), a_network()
    a = fit(full, TRAIN, VALIDATION, epochs=2, **QUIET)
    b = fit(half, TRAIN, VALIDATION, epochs=2, precision="bf16", **QUIET)
    assert b.history["train loss"].to_numpy() == pytest.approx(a.history["train loss"].to_numpy(), rel=0.05)
    assert not torch.equal(weights_of(full), weights_of(half))


def test_flips_average_a_photograph_and_its_mirror_images():
    network = a_network().eval()
    (batch,) = some_batches(range(160, 190)).epoch()
    with torch.no_grad():
        expected = sum(network(batch.inputs.flip(view)) for view in ([], [2], [3], [2, 3])) / 4
    assert predict(network, some_batches(range(160, 190)), flips=True) == pytest.approx(expected.numpy(), abs=1e-5)


def test_class_weights_make_every_class_weigh_the_same():
    labels = np.array([0] * 6 + [1] * 3 + [2])
    weights = class_weights(labels, 3).numpy()
    assert weights * np.bincount(labels) == pytest.approx([10 / 3] * 3)
    with pytest.raises(SkinbookError, match="no photographs"):
        class_weights(np.array([0, 2]), 3)
