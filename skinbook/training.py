"""One readable training loop for the whole book.

Accelerate supplies the device, mixed precision and the processes of a bigger machine; everything else is here to be
read. The order of the photographs and their augmentation are keyed by (seed, epoch, photograph) and torch is reseeded
every epoch, so a run that was killed goes on exactly where it was.
"""

from __future__ import annotations

import atexit
import copy
import functools
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import nn

from skinbook.batches import Batch, Batches
from skinbook.config import SkinbookError, settings
from skinbook.evaluation import accuracy, balanced_accuracy, softmax
from skinbook.files import replaced
from skinbook.keyed import key_bits
from skinbook.networks import fits_its_batches, is_short_of_memory, short_of_memory

PRECISION = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}
MOST_NAMED = 128  # photographs in one sentence
P = ParamSpec("P")
R = TypeVar("R")
BETTER_WHEN_HIGHER = {"accuracy": True, "balanced accuracy": True, "loss": False}


@dataclass
class Fit:
    """What training leaves: the curves, one row an epoch; the epoch whose weights the network now has; the precision."""

    history: pd.DataFrame
    best_epoch: int
    precision: str = "fp32"


def _says_when_memory_is_short(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, which is given batches, names a smaller size of them where the memory does not suffice."""

    @functools.wraps(function)
    def tried(*given: P.args, **named: P.kwargs) -> R:
        try:
            return function(*given, **named)
        except (RuntimeError, MemoryError) as error:
            if not is_short_of_memory(error):
                raise
        # Out here nothing holds on to the tensors of the failed attempt any more.
        batches = next(one for one in (*given, *named.values()) if isinstance(one, Batches))
        raise short_of_memory(batches.batch_size, batches.device)

    return tried


@_says_when_memory_is_short
def fit(
    network: nn.Module,
    train: Batches,
    validation: Batches | None = None,
    *,
    epochs: int,
    learning_rate: float = 1e-3,
    weight_decay: float = 0.0,
    optimizer: str = "adamw",
    schedule: str = "cosine",
    warmup: float = 0.1,
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    monitor: str = "balanced accuracy",
    patience: int | None = None,
    average: float | None = None,
    precision: str | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    log: Callable[[str], None] | None = print,
    origin: str = "",
) -> Fit:
    """Train a network in place; it ends with the weights of its best epoch on validation (the last one without).

    Parameters
    ----------
    network : takes `Batch.inputs`, gives logits (n, classes).
    train, validation : batches; validation chooses the epoch and moves the plateau schedule.
    optimizer : "adam", "adamw" or "sgd" (momentum 0.9).
    schedule : "constant", "cosine" (after a linear warm-up over the share `warmup` of the steps) or "plateau" (a
        tenth of the rate once three epochs in a row brought no better validation loss).
    loss : of (logits, labels); cross-entropy where None.
    monitor : "loss", "accuracy" or "balanced accuracy" on validation, by which an epoch is the best.
    patience : stop after so many epochs without a better one.
    average : decay of an exponential moving average of the weights, from 0 to below 1, used on validation and kept at
        the end.
    precision : "fp32", "bf16", "fp16" or "auto" (the faster of fp32 and bf16, by trying). `SKINBOOK_PRECISION` goes over
        it; fp32 where neither says anything, and in place of fp16 on a CPU, which has none.
    seed : of what torch draws, such as dropout. The order and the augmentation of the photographs are those of `seed` of
        the batches.
    checkpoint : a file that is written after every epoch and resumed from where it exists.
    log : is handed one line an epoch; None for silence.
    origin : what the network began as, such as the name of its weights: a checkpoint of another origin is refused.

    Started by `torchrun` or an Accelerate launcher, every process calls it with the same arguments and trains on its
    part of every batch: `batch_size` is that of all together. The main one logs and writes the checkpoint.

    Raises
    ------
    SkinbookError
        If the loss, a weight, a running mean or a score on validation is not a finite number (naming epoch, batch and
        images; the checkpoint stays that of the last sound epoch), memory is short (naming a batch size to try), an option
        is unknown or out of range, the checkpoint belongs to another run or cannot be written, or a batch is too small for
        so many processes.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, broadcast_object_list

    if epochs < 1 or not 0 <= warmup < 1 or not 0 <= (average or 0) < 1:
        raise SkinbookError(
            f"fit() got epochs={epochs}, warmup={warmup} and average={average}; expected at least 1 epoch, a warm-up "
            "from 0 to below 1 (0.1 is a tenth of the steps), and an average of None or from 0 to below 1, such as 0.99."
        )
    precision = settings().precision or precision or "fp32"
    if (
        schedule not in ("constant", "cosine", "plateau")
        or monitor not in BETTER_WHEN_HIGHER
        or precision not in (*PRECISION, "auto")
    ):
        raise SkinbookError(
            f"fit() does not know schedule={schedule!r}, monitor={monitor!r} or precision={precision!r}."
        )
    _join_processes(train.device)
    without_half = precision == "fp16" and train.device == "cpu"
    if without_half:  # accelerate would switch it off in silence
        precision = "fp32"
    loss = loss or nn.CrossEntropyLoss()
    network.to(train.device).to(memory_format=torch.channels_last)  # faster convolutions
    if precision == "auto":
        faster = _precision_of(checkpoint) or faster_precision(network, next(train.epoch()), loss)
        (precision,) = broadcast_object_list([faster])
    accelerator = Accelerator(
        cpu=train.device == "cpu",
        mixed_precision=PRECISION[precision],
        # A network may have parameters that it does not use; processes would wait for their gradients.
        kwargs_handlers=[DistributedDataParallelKwargs(static_graph=True)],
    )
    if without_half and accelerator.is_main_process and log is not None:
        log("fp16 does not run on a CPU, so this trains in fp32; bf16 does.")
    share = (accelerator.process_index, accelerator.num_processes)
    optim = _optimizer(network, optimizer, learning_rate, weight_decay)
    run = _Run(network, optim, learning_rate, monitor, average, precision)
    learning = [name for name, weight in network.named_parameters() if weight.requires_grad]
    rates = (epochs, learning_rate, weight_decay, optimizer, schedule, warmup, patience)
    about = (*rates, precision, seed, _named(loss), origin, learning)
    start = run.resume(checkpoint, train, validation, about)
    _check_processes(train, start, checkpoint, share)
    wrapped, optim = accelerator.prepare(network, optim)
    run.scaler = accelerator.scaler
    if run.scaler is not None and run.scale:
        run.scaler.load_state_dict(run.scale)
    steps = epochs * len(train)

    try:
        for epoch in range(start, epochs):
            if run.finished:
                break
            torch.manual_seed(key_bits(("torch", seed, epoch)) % 2**63 + share[0])  # dropout
            _train_mode(wrapped)
            total = 0.0
            for number, batch in enumerate(train.epoch(epoch, share)):
                if schedule == "cosine":
                    run.set_rate(learning_rate * cosine((epoch * len(train) + number) / steps, warmup))
                with accelerator.autocast():
                    logits, labels = _whole_batch(wrapped(batch.inputs), batch, share)
                    value = loss(logits, labels)
                if not torch.isfinite(value):
                    raise _no_number(
                        f"The loss is {value.item()} in epoch {epoch + 1}, batch {number + 1}", batch, train
                    )
                optim.zero_grad(set_to_none=True)
                accelerator.backward(value * share[1])  # of whose gradients the mean is taken, where the sum is due
                optim.step()
                if not accelerator.optimizer_step_was_skipped:  # as fp16 does when its gradients overflow
                    run.average_weights()
                total += value.item() * len(labels)
            if not run.is_sound():
                what = f"A weight or running mean is not a finite number after epoch {epoch + 1}, batch {number + 1}"
                raise _no_number(what, batch, train)
            run.follow_main_process(share)  # batch normalisation saw other photographs in every process
            row = {"epoch": epoch + 1, "learning rate": run.rate, "train loss": total / len(train.rows)}
            if validation is not None:
                with run.averaged_weights():
                    row |= _score(network, validation, loss, accelerator, epoch)
            (row,) = broadcast_object_list([row])  # all processes go by the main one's numbers
            improved = run.record(row)
            if schedule == "plateau":
                run.lower_rate_on_plateau()
            run.finished = patience is not None and epoch + 1 - run.best_epoch >= patience
            if accelerator.is_main_process:
                run.save(checkpoint)
                if log is not None:
                    log("  ".join(f"{k} {v:.4g}" for k, v in row.items()) + ("  *" if improved else ""))
        accelerator.wait_for_everyone()  # until the last checkpoint is written
    finally:
        accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)  # else the network would stay in mixed precision
    run.restore_best()
    return Fit(pd.DataFrame(run.history), run.best_epoch, precision)


def faster_precision(network: nn.Module, batch, loss: Callable, steps: int = 3) -> str:
    """Whichever of fp32 and bf16 takes less time for a few steps forward and back, tried on a copy of the network."""
    tried = copy.deepcopy(network).train()
    device, seconds = batch.labels.device.type, {}
    for precision in ("fp32", "bf16", "fp32", "bf16"):  # the first of each only warms up
        start = time.perf_counter()
        for _ in range(steps):
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
                value = loss(tried(batch.inputs), batch.labels)
            value.backward()
            value.item()  # waits for the device
        seconds[precision] = time.perf_counter() - start
    return min(seconds, key=lambda precision: seconds[precision])


def _join_processes(device: str) -> None:
    """Let the processes that a launcher has started, if it was one, hear of each other."""
    from accelerate import PartialState
    from accelerate.state import AcceleratorState

    # So that two fits of one session may differ in precision and, where there is one process, in device.
    AcceleratorState._reset_state(reset_partial_state="WORLD_SIZE" not in os.environ)
    PartialState(cpu=device == "cpu")
    if torch.distributed.is_initialized():
        atexit.unregister(_part)
        atexit.register(_part)


def _part() -> None:
    """Take leave of the other processes: torch may abort a program that ends without. After an error, they are gone."""
    if torch.distributed.is_initialized() and not hasattr(sys, "last_value"):
        torch.distributed.destroy_process_group()


def _check_processes(train: Batches, start: int, checkpoint: Path | None, share: tuple[int, int]) -> None:
    """Each of several processes needs a photograph of every batch, and must go on from the same epoch."""
    from accelerate.utils import gather_object

    smallest = len(train.rows) // len(train)
    if smallest < share[1]:
        raise SkinbookError(
            f"A batch of {smallest} cannot be shared by {share[1]} processes: raise batch_size, which is that of all "
            "processes together, or start fewer."
        )
    if len(set(gather_object([start]))) > 1:
        raise SkinbookError(
            f"The processes do not find the same checkpoint {checkpoint}: it must lie on a disk that all machines share."
        )


def _whole_batch(own: torch.Tensor, batch: Batch, share: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of the whole batch, of which each process made a part; gradients flow through its own part.

    The loss is then that of one process whatever the loss is, be it a mean weighted by class, and however the parts lie.
    """
    if batch.all_labels is None:
        return own, batch.labels
    count, (which, of) = len(batch.all_labels), share
    mine = torch.from_numpy(np.array_split(np.arange(count), of)[which]).to(own.device)
    logits = own.new_zeros(count, *own.shape[1:])
    logits[mine] = own.detach()
    torch.distributed.all_reduce(logits)  # the sum of one part and zeros
    logits[mine] = own
    return logits, batch.all_labels


def _no_number(what: str, batch: Batch, train: Batches) -> SkinbookError:
    """What to say of a loss or weight that is no number. Images whose own inputs are none are named, else the batch's."""
    inputs = batch.inputs if isinstance(batch.inputs, tuple) else (batch.inputs,)
    sound = torch.stack([part.reshape(len(part), -1).isfinite().all(1) for part in inputs]).all(0).cpu().numpy()
    return _at_fault(what, batch.rows if sound.all() else batch.rows[~sound], train)


def _at_fault(what: str, rows: np.ndarray, batches: Batches) -> SkinbookError:
    """`what`, with the photographs that may be the cause: their names, or rows where they have none."""
    named = ", ".join(str(row if batches.names is None else batches.names[row]) for row in rows[:MOST_NAMED])
    more = f" and {len(rows) - MOST_NAMED} more" if len(rows) > MOST_NAMED else ""
    those = f"rows {named}{more} of the photographs" if batches.names is None else named + more
    return SkinbookError(
        f"{what} ({those}). Lower the learning rate, or look at those images; the last checkpoint is untouched."
    )


def _train_mode(network: nn.Module) -> None:
    """Training mode, but for normalisation layers whose parameters are all frozen: their statistics stay as they are."""
    network.train()
    for module in network.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and own and not any(p.requires_grad for p in own):
            module.eval()


def _named(loss: Callable) -> list:
    """What tells one loss from another in a checkpoint: its name, and what it holds, such as class weights.

    What a function has closed over is not told apart.
    """
    held = loss.buffers() if isinstance(loss, nn.Module) else ()
    options = {name: getattr(loss, name) for name in getattr(loss, "__constants__", ())}  # such as label smoothing
    return [getattr(loss, "__qualname__", type(loss).__qualname__), options, *(value.tolist() for value in held)]


def _precision_of(checkpoint: Path | None) -> str | None:
    """The precision that an earlier part of the run took, where there is one: the rest must not take another."""
    from safetensors import SafetensorError, safe_open

    if checkpoint is None or not checkpoint.exists():
        return None
    try:
        with safe_open(checkpoint, "pt") as held:
            return json.loads(held.metadata()["run"])["precision"]
    except (OSError, SafetensorError, KeyError, TypeError, ValueError):
        return None  # `resume` says what is wrong with the file


def cosine(progress: float, warmup: float) -> float:
    """Share of the full rate: rises in a line over `warmup`, then falls to nothing along half a cosine."""
    if progress < warmup:
        return progress / warmup if progress > 0 else 0.1 / max(1.0, 1 / warmup)
    return 0.5 * (1 + np.cos(np.pi * (progress - warmup) / (1 - warmup)))


@fits_its_batches  # so that `fit` can only lack memory for a batch of training, whose size it names
def predict(network: nn.Module, batches: Batches, flips: bool = False, share: tuple[int, int] = (0, 1)) -> np.ndarray:
    """Logits, float32 (rows, classes), in the order of `batches.rows`.

    flips : the mean over a photograph and its three mirror images (test-time augmentation); a second input stays.
    share : (which, of how many) processes. Each predicts every so-manyth batch; all must call it, and get everything.

    Raises
    ------
    SkinbookError
        If the batches are shuffled or augmented, or memory does not suffice for a single photograph.
    """
    batches.must_be_plain()
    network.eval().to(batches.device)
    views: list[list[int]] = [[], [2], [3], [2, 3]] if flips else [[]]
    collected = []
    with torch.inference_mode():
        for batch in batches.epoch(share=share, whole=True):
            logits = [network(_mirrored(batch.inputs, view)) for view in views]
            collected.append(torch.stack(logits).mean(0).float().cpu())
    if share[1] > 1:
        from accelerate.utils import gather_object

        numbered = gather_object(list(zip(range(share[0], len(batches), share[1]), collected, strict=True)))
        collected = [logits for _, logits in sorted(numbered, key=lambda pair: pair[0])]
    return torch.cat(collected).numpy()


def _mirrored(inputs: Any, dimensions: list[int]) -> Any:
    """The inputs of a batch with their photographs mirrored; of a pair the second is no photograph."""
    if isinstance(inputs, tuple):
        return _mirrored(inputs[0], dimensions), *inputs[1:]
    return inputs.flip(dimensions) if dimensions else inputs


def _score(network: nn.Module, validation: Batches, loss: Callable, accelerator, epoch: int) -> dict[str, float]:
    """Loss and the two accuracies on validation, whose batches the processes share."""
    share = (accelerator.process_index, accelerator.num_processes)
    # The network itself computes in mixed precision; the photographs are normalised in float32, as in training.
    logits = torch.from_numpy(predict(network, validation, share=share))
    odd = ~torch.isfinite(logits).flatten(1).all(1).numpy()
    if odd.any():
        what = f"A score on validation is not a finite number after epoch {epoch + 1}"
        raise _at_fault(what, validation.rows[odd], validation)
    labels = validation.labels[validation.rows]
    ones = np.ones((1, len(labels)))
    device_logits, device_labels = logits.to(validation.device), torch.from_numpy(labels).to(validation.device)
    return {
        "validation loss": float(loss(device_logits, device_labels)),
        "validation accuracy": float(accuracy(labels, softmax(logits.numpy()), ones)[0]),
        "validation balanced accuracy": float(balanced_accuracy(labels, softmax(logits.numpy()), ones)[0]),
    }


def _optimizer(network: nn.Module, name: str, rate: float, decay: float) -> torch.optim.Optimizer:
    trainable = [p for p in network.parameters() if p.requires_grad]
    if name == "adam":
        return torch.optim.Adam(trainable, lr=rate, weight_decay=decay)
    if name == "adamw":
        return torch.optim.AdamW(trainable, lr=rate, weight_decay=decay)
    if name == "sgd":
        return torch.optim.SGD(trainable, lr=rate, momentum=0.9, weight_decay=decay)
    raise SkinbookError(f"optimizer is {name!r}; expected adam, adamw or sgd.")


class _Run:
    """What a run must remember from one epoch to the next, in memory and in its checkpoint."""

    def __init__(self, network, optimizer, rate: float, monitor: str, average: float | None, precision: str) -> None:
        self.precision = precision
        self.network, self.optimizer, self.rate, self.average = network, optimizer, rate, average
        self.monitor = f"validation {monitor}"
        self.sign = 1.0 if BETTER_WHEN_HIGHER[monitor] else -1.0
        self.history: list[dict[str, float]] = []
        self.best_epoch, self.best = 0, -np.inf
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=2)
        self.finished = False
        self.identity = ""
        self.scaler: torch.amp.GradScaler | None = None
        self.scale: dict[str, float] = {}
        self.mean = _copied(network) if average else None
        self.best_state: dict[str, torch.Tensor] = {}

    def set_rate(self, rate: float) -> None:
        self.rate = rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def lower_rate_on_plateau(self) -> None:
        self.plateau.step(self.history[-1].get("validation loss", self.history[-1]["train loss"]))
        self.rate = self.optimizer.param_groups[0]["lr"]

    def average_weights(self) -> None:
        if self.mean is not None and self.average is not None:
            for key, value in self.network.state_dict().items():
                if value.is_floating_point():
                    self.mean[key].lerp_(value, 1 - self.average)
                else:
                    self.mean[key].copy_(value)

    def averaged_weights(self):
        """A block in which the network wears the moving average of its weights."""
        from contextlib import contextmanager

        @contextmanager
        def worn():
            if self.mean is None:
                yield
                return
            own = _copied(self.network)
            self.network.load_state_dict(self.mean)
            try:
                yield
            finally:
                self.network.load_state_dict(own)

        return worn()

    def follow_main_process(self, share: tuple[int, int]) -> None:
        """Take the main process's weights and statistics, and their moving average, in every process."""
        for tensor in (*self.network.state_dict().values(), *(self.mean or {}).values()) if share[1] > 1 else ():
            torch.distributed.broadcast(tensor, 0)

    def is_sound(self) -> bool:
        """Whether all weights and running means are finite: the last step may spoil them, and no loss would tell."""
        return bool(torch.stack([value.isfinite().all() for value in self.network.state_dict().values()]).all())

    def record(self, row: dict[str, float]) -> bool:
        """Keep an epoch's row, and its weights where it is the best so far (without validation the last one is)."""
        self.history.append(row)
        score = self.sign * row[self.monitor] if self.monitor in row else float(row["epoch"])
        if score <= self.best:
            return False
        self.best, self.best_epoch = score, int(row["epoch"])
        self.best_state = _copied(self.network) if self.mean is None else {k: v.clone() for k, v in self.mean.items()}
        return True

    def restore_best(self) -> None:
        if self.best_state:
            self.network.load_state_dict(self.best_state)

    def save(self, file: Path | None) -> None:
        """One safetensors file holds all of it: tensors as tensors, the rest as JSON in its header."""
        if file is None:
            return
        from safetensors.torch import save

        tensors = {f"network/{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"best/{k}": v for k, v in self.best_state.items()}
        tensors |= {f"mean/{k}": v for k, v in (self.mean or {}).items()}
        for number, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{number}/{k}": v for k, v in state.items() if torch.is_tensor(v)}
        kept = {
            k: getattr(self, k) for k in ("history", "best_epoch", "best", "rate", "finished", "identity", "precision")
        }
        kept["scale"] = self.scaler.state_dict() if self.scaler is not None else {}
        kept["plateau"] = {k: v for k, v in self.plateau.state_dict().items() if isinstance(v, int | float)}
        # Its own copies: networks may share tensors, and safetensors refuses those.
        copies = {k: v.detach().cpu().clone().contiguous() for k, v in tensors.items()}
        text = json.dumps(kept)
        data = save(copies, {"run": text, "sha256": _digest(text, copies)})
        with replaced(file) as partial:
            partial.write_bytes(data)

    def resume(self, file: Path | None, train: Batches, validation: Batches | None, about: tuple) -> int:
        """Take up a checkpoint where there is one; returns the epoch to go on with."""
        if file is None:
            return 0
        shapes = [[k, list(v.shape)] for k, v in self.network.state_dict().items()]
        sets = [batches and batches.identity() for batches in (train, validation)]
        self.identity = f"{key_bits(json.dumps([sets, about, self.monitor, self.average, shapes])):016x}"
        if not file.exists():
            return 0
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(file, "pt") as held:
                told = held.metadata() or {}
                tensors = {key: held.get_tensor(key) for key in held.keys()}  # noqa: SIM118 - not a dict
            if told["sha256"] != _digest(told["run"], tensors):
                raise ValueError("it has changed since it was written")
            kept = json.loads(told["run"])
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise SkinbookError(f"The checkpoint {file} cannot be read ({error}). Delete it to begin again.") from error
        if kept["identity"] != self.identity:
            raise SkinbookError(f"The checkpoint {file} belongs to another run. Delete it, or name another file.")
        self.plateau.load_state_dict(kept.pop("plateau"))
        for key, value in kept.items():
            setattr(self, key, value)
        self.network.load_state_dict(_under("network/", tensors))
        self.best_state = _under("best/", tensors)
        if self.mean is not None:
            self.mean = {k: v.to(self.mean[k].device) for k, v in _under("mean/", tensors).items()}
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in _under("optimizer/", tensors).items():
            number, name = key.split("/", 1)
            state.setdefault(int(number), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.set_rate(self.rate)
        return len(self.history)


def _digest(text: str, tensors: dict[str, torch.Tensor]) -> str:
    """The SHA-256 of a checkpoint: a bit that turned over in a weight would otherwise be trained on."""
    seal = hashlib.sha256(text.encode())
    for key, value in sorted(tensors.items()):
        seal.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        seal.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return seal.hexdigest()


def _copied(network: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in network.state_dict().items()}


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
