import numpy as np
import pytest
import torch
from torch import nn

from skinbook import keyed
from skinbook.augment import Augment
from skinbook.batches import Batches
from skinbook.config import SkinbookError
from skinbook.losses import LogitAdjusted, class_weights
from skinbook.networks import frozen_features
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


@pytest.mark.holds(
    "faults while working",
    "SIGKILL during fit()",
    "it goes on from the last epoch; the final weights are the same, bit for bit",
)
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


def spoilt(loss, at, steps):
    """Cross-entropy that `loss` changes at the at-th call; `steps` keeps count."""

    def spoilt_loss(logits, labels):
        steps.append(len(labels))
        value = nn.functional.cross_entropy(logits, labels)
        return loss(value, logits) if len(steps) == at else value

    return spoilt_loss


no_number = pytest.mark.holds(
    "faults while working",
    "a loss that becomes NaN",
    "it stops with epoch, batch and photographs named; from the last sound checkpoint all ends as if nothing had been",
)


@no_number
@pytest.mark.parametrize(
    ("loss", "at", "sentence"),
    [
        (lambda value, logits: value * float("nan"), 12, "The loss is nan in epoch 3, batch 2 "),
        # A finite loss with a gradient that is none, in the last step of an epoch.
        (lambda value, logits: value + 0 * (0 * logits.sum()).sqrt(), 15, "A weight or running mean is .* epoch 3, batch 5 "),
    ],
)  # fmt: skip
def test_the_last_sound_checkpoint_stays(tmp_path, loss, at, sentence):
    whole, broken, resumed = a_network(), a_network(), a_network(7)
    file = tmp_path / "run.safetensors"
    fit(whole, TRAIN, epochs=4, loss=spoilt(loss, 0, []), **QUIET)
    rows = [batch.rows.tolist() for batch in TRAIN.epoch(2)][(at - 1) % 5]
    with pytest.raises(SkinbookError, match=sentence) as told:
        fit(broken, TRAIN, epochs=4, loss=spoilt(loss, at, []), checkpoint=file, **QUIET)
    assert f"(rows {', '.join(map(str, rows))} of the photographs)" in str(told.value)
    steps = []
    fit(resumed, TRAIN, epochs=4, loss=spoilt(loss, 0, steps), checkpoint=file, **QUIET)
    assert sum(steps) == 2 * 160  # the third epoch and the fourth
    assert torch.equal(weights_of(whole), weights_of(resumed))


@no_number
def test_photographs_that_are_no_numbers_are_named_alone():
    features = np.ones((20, 4), np.float32)
    features[[3, 17], 1] = np.nan
    network, batches = nn.Linear(4, 2), Batches(features, np.arange(20) % 2, np.arange(20), batch_size=10)
    with pytest.raises(SkinbookError, match=r"epoch 1, batch 1 \(rows 3 of the photographs\)"):
        fit(network, batches, epochs=1, log=None)
    batches.names = [f"ISIC_{row:07d}" for row in range(20)]
    with pytest.raises(SkinbookError, match=r"epoch 1, batch 1 \(ISIC_0000003\)\. Lower"):
        fit(network, batches, epochs=1, log=None)


class Hungry(nn.Module):
    """A network for which memory does not suffice for more than so many photographs."""

    def __init__(self, error, enough=8):
        super().__init__()
        self.inner, self.error, self.enough = a_network(), error, enough

    def forward(self, x):
        if len(x) > self.enough:
            self.error()
        return self.inner(x)


def on_a_gpu():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def on_a_cpu():
    torch.empty(2**48)  # a petabyte: no system has room for the addresses


def in_numpy():
    raise MemoryError


@pytest.mark.holds(
    "faults while working",
    "the memory of the device does not suffice",
    "one sentence with the batch size to try, which in the end suffices",
)
@pytest.mark.parametrize("error", [on_a_gpu, on_a_cpu, in_numpy])
@pytest.mark.parametrize("validation", [None, VALIDATION], ids=["alone", "with validation"])
def test_short_memory_names_a_batch_size_to_try(error, validation):
    def work(network, batches):
        fit(network, batches, validation, epochs=1, **QUIET)

    def sized(size):
        return Batches(TRAIN.pixels, TRAIN.labels, TRAIN.rows, batch_size=size)

    for size in (32, 16):
        sentence = (
            rf"The memory of cpu does not suffice for a batch of {size} photographs\. Try batch_size={size // 2}\."
        )
        with pytest.raises(SkinbookError, match=sentence) as told:
            work(Hungry(error), sized(size))
        assert told.value.__context__ is None, "it would hold on to the tensors of the attempt"
    work(Hungry(error), sized(8))
    with pytest.raises(SkinbookError, match="Try a smaller network or smaller photographs"):
        work(Hungry(error, 0), sized(1))


def features(network, batches):
    return frozen_features(network, batches).numpy()


@pytest.mark.parametrize("error", [on_a_gpu, on_a_cpu, in_numpy])
@pytest.mark.parametrize("look", [predict, features])
def test_what_only_looks_makes_do_with_the_memory_there_is(error, look):
    """Predictions and features don't depend on the batch, whose size a reader of the command line may be unable to set."""
    hungry = Hungry(error)
    hungry.inner = hungry.inner[:3] if look is features else hungry.inner
    given = some_batches(range(160, 190))
    found = look(hungry, given)
    assert given.batch_size == 32, "what was given is as it was"
    assert found == pytest.approx(look(hungry.inner, given), abs=1e-5)
    hungry.enough = 0
    with pytest.raises(SkinbookError, match=r"a batch of 1 photographs\. Try a smaller network or smaller photographs"):
        look(hungry, given)


def test_processes_that_share_the_batches_keep_to_their_size(monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    with pytest.raises(SkinbookError, match=r"a batch of 32 photographs\. Try batch_size=16\."):
        predict(Hungry(on_a_gpu), VALIDATION)


def test_other_errors_are_not_taken_for_short_memory():
    def wrong():
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        fit(Hungry(wrong), TRAIN, epochs=1, **QUIET)


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


def test_flips_leave_a_second_input_as_it_is():
    plain = some_batches(range(160, 190))
    beside = np.arange(240 * 3, dtype=np.float32).reshape(240, 3)
    pairs = Batches(plain.pixels, plain.labels, plain.rows, beside=beside)

    class OfBoth(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = a_network()

        def forward(self, inputs):
            return self.inner(inputs[0]) + inputs[1]

    expected = predict(a_network(), plain, flips=True) + beside[160:190]
    assert predict(OfBoth(), pairs, flips=True) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "option",
    [{"epochs": 0}, {"warmup": 1.0}, {"warmup": -0.1}, {"average": 1.0}, {"average": -0.5}, {"average": np.nan}],
)
def test_what_would_train_nothing_is_refused(option):
    with pytest.raises(SkinbookError, match="expected at least 1 epoch, a warm-up from 0 to below 1"):
        fit(a_network(), TRAIN, **{"epochs": 1, **option}, **QUIET)


def test_half_precision_on_a_cpu_is_full_and_said_to_be(monkeypatch):
    monkeypatch.setenv("SKINBOOK_PRECISION", "fp16")  # of a whole book, part of which may compute on a CPU
    lines = []
    half, full = a_network(), a_network()
    assert fit(half, TRAIN, epochs=1, learning_rate=1e-2, log=lines.append).precision == "fp32"
    assert lines[0] == "fp16 does not run on a CPU, so this trains in fp32; bf16 does."
    monkeypatch.delenv("SKINBOOK_PRECISION")
    fit(full, TRAIN, epochs=1, **QUIET)
    assert torch.equal(weights_of(half), weights_of(full))


def test_class_weights_make_every_class_weigh_the_same():
    labels = np.array([0] * 6 + [1] * 3 + [2])
    weights = class_weights(labels, 3).numpy()
    assert weights * np.bincount(labels) == pytest.approx([10 / 3] * 3)
    with pytest.raises(SkinbookError, match="no photographs"):
        class_weights(np.array([0, 2]), 3)


@pytest.mark.parametrize(
    "other",
    [{"learning_rate": 1e-3}, {"optimizer": "sgd"}, {"weight_decay": 0.1}, {"patience": 3}, {"precision": "bf16"}],
)
def test_every_option_belongs_to_a_checkpoint(tmp_path, other):
    file = tmp_path / "run.safetensors"
    fit(a_network(), TRAIN, epochs=1, checkpoint=file, **QUIET)
    with pytest.raises(SkinbookError, match="another run"):
        fit(a_network(), TRAIN, epochs=1, checkpoint=file, **(QUIET | other))


def test_other_labels_or_another_loss_are_another_run(tmp_path):
    file = tmp_path / "run.safetensors"
    fit(a_network(), TRAIN, epochs=1, checkpoint=file, **QUIET)
    relabelled = some_batches(range(160), shuffle=True, augment=Augment(flip=True, brightness=0.1))
    relabelled.labels = (relabelled.labels + 1) % 3
    with pytest.raises(SkinbookError, match="another run"):
        fit(a_network(), relabelled, epochs=1, checkpoint=file, **QUIET)
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
    with pytest.raises(SkinbookError, match="another run"):
        fit(a_network(), TRAIN, epochs=1, checkpoint=file, loss=weighted, **QUIET)


def test_another_adjustment_is_another_run(tmp_path):
    file, prior = tmp_path / "run.safetensors", torch.tensor([0.8, 0.1, 0.1]).log()
    fit(a_network(), TRAIN, epochs=1, checkpoint=file, loss=LogitAdjusted(prior), **QUIET)
    with pytest.raises(SkinbookError, match="another run"):
        fit(a_network(), TRAIN, epochs=1, checkpoint=file, loss=LogitAdjusted(prior, 0.5), **QUIET)


def test_a_network_trained_in_mixed_precision_predicts_in_full():
    network = a_network()
    fit(network, TRAIN, epochs=1, precision="bf16", **QUIET)
    plain = a_network()
    plain.load_state_dict(network.state_dict())
    assert np.array_equal(
        predict(network, VALIDATION), predict(plain.to(memory_format=torch.channels_last), VALIDATION)
    )


def test_the_setting_goes_over_the_recipe_s_precision(monkeypatch):
    monkeypatch.setenv("SKINBOOK_PRECISION", "bf16")
    assert fit(a_network(), TRAIN, epochs=1, precision="fp32", **QUIET).precision == "bf16"
    monkeypatch.setenv("SKINBOOK_PRECISION", "auto")
    for faster in ("fp32", "bf16"):
        monkeypatch.setattr("skinbook.training.faster_precision", lambda *_, faster=faster: faster)
        assert fit(a_network(), TRAIN, epochs=1, precision="fp32", **QUIET).precision == faster


def test_frozen_normalisation_keeps_its_statistics():
    network = a_network()
    network[1].requires_grad_(False)
    before = network[1].running_mean.clone()
    fit(network, TRAIN, epochs=1, **QUIET)
    assert torch.equal(network[1].running_mean, before)


def test_scores_that_are_not_numbers_stop_the_run():
    class Broken(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = a_network()

        def forward(self, x):
            return self.inner(x) if self.training else self.inner(x) * float("nan")

    every = ", ".join(map(str, range(160, 240)))
    sentence = (
        rf"A score on validation is not a finite number after epoch 1 \(rows {every} of the photographs\)\. Lower"
    )
    with pytest.raises(SkinbookError, match=sentence):
        fit(Broken(), TRAIN, VALIDATION, epochs=1, **QUIET)


def test_photographs_whose_scores_are_not_numbers_are_named_alone():
    features = np.ones((400, 4), np.float32)
    features[[203, 217], 1] = np.nan
    names = [f"ISIC_{row:07d}" for row in range(400)]
    given = {"pixels": features, "labels": np.arange(400) % 2, "batch_size": 10, "names": names}
    train, validation = (Batches(rows=np.arange(start, start + 200), **given) for start in (0, 200))
    with pytest.raises(SkinbookError, match=r"validation .* after epoch 1 \(ISIC_0000203, ISIC_0000217\)\. Lower"):
        fit(nn.Linear(4, 2), train, validation, epochs=1, log=None)
    features[200:] = np.nan
    with pytest.raises(SkinbookError, match=r"\(ISIC_0000200, .*, ISIC_0000327 and 72 more\)\. Lower"):
        fit(nn.Linear(4, 2), train, validation, epochs=1, log=None)


def test_running_means_that_are_not_numbers_stop_the_run(tmp_path):
    class Spoilt(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = a_network()
            self.register_buffer("running_mean", torch.zeros(1))

        def forward(self, x):
            self.running_mean.fill_(float("inf"))
            return self.inner(x)

    with pytest.raises(SkinbookError, match=r"running mean is not a finite number after epoch 1, batch 5 \(rows"):
        fit(Spoilt(), TRAIN, epochs=1, checkpoint=tmp_path / "run.safetensors", **QUIET)
    assert list(tmp_path.iterdir()) == []


def test_predictions_need_photographs_in_order():
    with pytest.raises(SkinbookError, match="in order"):
        predict(a_network(), TRAIN)


class Watching(nn.Module):
    """Notes the type of what it is shown."""

    def __init__(self):
        super().__init__()
        self.inner, self.seen = a_network(), set()

    def forward(self, inputs):
        self.seen.add((self.training, inputs.dtype))
        return self.inner(inputs)


def test_photographs_are_normalised_in_full_precision_in_training_and_on_validation():
    network = Watching()
    fit(network, TRAIN, VALIDATION, epochs=1, precision="bf16", **QUIET)
    assert network.seen == {(True, torch.float32), (False, torch.float32)}


def test_a_network_whose_training_was_broken_off_predicts_in_full_precision():
    network, twin = a_network(), a_network().to(memory_format=torch.channels_last)

    def broken(line):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(network, TRAIN, VALIDATION, epochs=1, precision="bf16", learning_rate=1e-2, log=broken)
    twin.load_state_dict(network.state_dict())
    assert np.array_equal(predict(network, VALIDATION), predict(twin, VALIDATION))


def frozen_network():
    network = a_network()
    network[0].requires_grad_(False)
    return network


@pytest.mark.parametrize(
    ("network", "change"),
    [
        (a_network, {"loss": nn.CrossEntropyLoss(label_smoothing=0.3)}),
        (a_network, {"origin": "other weights"}),
        (frozen_network, {}),
    ],
)
def test_what_a_network_began_as_and_how_it_is_judged_belong_to_a_checkpoint(tmp_path, network, change):
    given = {"epochs": 1, "checkpoint": tmp_path / "c", "loss": nn.CrossEntropyLoss(), **QUIET}
    fit(a_network(), TRAIN, VALIDATION, **given)
    with pytest.raises(SkinbookError, match="belongs to another run"):
        fit(network(), TRAIN, VALIDATION, **{**given, **change})


def test_one_other_photograph_is_another_run(tmp_path):
    fit(a_network(), TRAIN, VALIDATION, epochs=1, checkpoint=tmp_path / "c", **QUIET)
    changed = some_batches(range(160), shuffle=True, augment=TRAIN.augment)
    changed.pixels[101] = 255 - changed.pixels[101]
    with pytest.raises(SkinbookError, match="belongs to another run"):
        fit(a_network(), changed, VALIDATION, epochs=1, checkpoint=tmp_path / "c", **QUIET)


def test_a_resumed_run_takes_the_precision_that_it_began_with(tmp_path, monkeypatch):
    given = {"epochs": 2, "checkpoint": tmp_path / "c", "precision": "auto", **QUIET}
    monkeypatch.setattr("skinbook.training.faster_precision", lambda *_: "bf16")
    assert fit(a_network(), TRAIN, VALIDATION, **given).precision == "bf16"
    monkeypatch.setattr("skinbook.training.faster_precision", lambda *_: "fp32")  # another program took the cores
    assert fit(a_network(), TRAIN, VALIDATION, **given).precision == "bf16"
    (tmp_path / "c").write_bytes(b"broken")
    with pytest.raises(SkinbookError, match="cannot be read"):
        fit(a_network(), TRAIN, VALIDATION, **given)


class Counting(nn.CrossEntropyLoss):
    """A loss that keeps something of its own between calls."""

    calls = 0

    def forward(self, logits, labels):
        self.calls += 1
        return super().forward(logits, labels)


def test_what_a_loss_counts_is_no_option_of_it(tmp_path):
    given = {"epochs": 2, "checkpoint": tmp_path / "c", "loss": Counting(), **QUIET}
    fit(a_network(), TRAIN, VALIDATION, **given)
    assert given["loss"].calls > 0
    fit(a_network(), TRAIN, VALIDATION, **given)
