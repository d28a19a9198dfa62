"""From a store of pixels to batches on the device, in an order that can be resumed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch

from skinbook.augment import Augment, augmented, draws
from skinbook.config import SkinbookError
from skinbook.keyed import permutation

RESIDENT_BYTES = 2**30  # a set below this moves to an accelerator whole


@dataclass
class Batch:
    """inputs : float32 (n, 3, size, size), or (n, …) for cached features; a pair where there is a second input.
    labels : int64 (n,). rows : int64 (n,). all_labels : int64, of the whole batch that several processes share."""

    inputs: Any
    labels: torch.Tensor
    rows: np.ndarray
    masks: torch.Tensor | None = None
    all_labels: torch.Tensor | None = None


@dataclass
class Batches:
    """Batches of some rows of an array.

    Parameters
    ----------
    pixels : uint8 (n, height, width, 3) photographs, or float32 (n, …) cached features.
    labels : int (n,) for every row of `pixels`. rows : the rows to go through.
    size : side of the square that the network sees; the array's own height where None.
    augment : None leaves the photographs as they are; features have to be left so. shuffle : a new order every epoch.
    mean, std : the network's normalisation of RGB in [0, 1]. masks : uint8 (n, height, width) of 0 and 1.
    beside : float32 (n, …), a second input for every row of `pixels`, such as metadata: `Batch.inputs` is then a pair.
    device : "cpu", "mps" or "cuda", which is this process's own GPU where several processes share a machine.
    names : the image_id of every row of `pixels`, by which `fit` names photographs; their rows where None.
    """

    pixels: np.ndarray
    labels: np.ndarray
    rows: np.ndarray
    batch_size: int = 32
    size: int | None = None
    augment: Augment | None = None
    shuffle: bool = False
    mean: Sequence[float] = (0.5, 0.5, 0.5)
    std: Sequence[float] = (0.5, 0.5, 0.5)
    masks: np.ndarray | None = None
    seed: int = 0
    device: str = "cpu"
    beside: np.ndarray | None = None
    names: Sequence[str] | None = None
    _resident: torch.Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.rows = np.asarray(self.rows, dtype=np.int64)
        self.labels = np.asarray(self.labels, dtype=np.int64)
        self.device = own_device(self.device)
        if len(self.rows) == 0:
            raise SkinbookError("There are no photographs to make batches of: the list of rows is empty.")
        if len(self.labels) != len(self.pixels):
            raise SkinbookError(f"{len(self.pixels)} photographs need as many labels; got {len(self.labels)}.")
        if self.beside is not None and len(self.beside) != len(self.pixels):
            raise SkinbookError(f"{len(self.pixels)} photographs need as many second inputs; got {len(self.beside)}.")
        if self.pixels.dtype != np.uint8 and (self.augment is not None or self.masks is not None):
            raise SkinbookError(
                f"Features ({self.pixels.dtype}) can be neither augmented nor masked: leave augment and masks out, or "
                "give the photographs themselves (uint8)."
            )
        if self.names is not None and len(self.names) != len(self.pixels):
            raise SkinbookError(f"{len(self.pixels)} photographs need as many names; got {len(self.names)}.")
        # A row that comes several times (an oversampled copy) is augmented anew each time.
        self._copies = pd.Series(self.rows).groupby(self.rows).cumcount().to_numpy()
        self._mean = torch.tensor(self.mean, device=self.device)
        self._std = torch.tensor(self.std, device=self.device)
        if self.device != "cpu" and self.pixels[:1].nbytes * len(self.rows) <= RESIDENT_BYTES:
            self._resident = torch.from_numpy(np.ascontiguousarray(self.pixels[self.rows])).to(self.device)

    def __len__(self) -> int:
        """Batches an epoch, which differ in size by one at most.

        Where they are shuffled, for training, none has a single photograph, which is too few for batch normalisation:
        three photographs in batches of two are one batch. (But batches of one are what they are.)
        """
        count = -(-len(self.rows) // self.batch_size)
        return max(1, min(count, len(self.rows) // 2)) if self.shuffle and self.batch_size > 1 else count

    def must_be_plain(self) -> None:
        """Raise SkinbookError unless the photographs come as they are and in the order of `rows`."""
        if self.shuffle or self.augment is not None:
            raise SkinbookError(
                "Predictions need the photographs in order and as they are: shuffle=False, augment=None."
            )

    def identity(self) -> list:
        """What tells these batches from others in a checkpoint, ready for JSON."""
        digest = hashlib.blake2b(self.rows.tobytes() + self.labels[self.rows].tobytes(), digest_size=8)
        for start in range(0, len(self.rows), 1024):
            digest.update(np.ascontiguousarray(self.pixels[self.rows[start : start + 1024]]).tobytes())
        second = [] if self.beside is None else [hashlib.blake2b(self.beside[self.rows].tobytes()).hexdigest()[:16]]
        options = [
            self.batch_size,
            self.size,
            repr(self.augment),
            self.shuffle,
            list(self.mean),
            list(self.std),
            self.seed,
        ]
        return [digest.hexdigest(), *options, *second]

    def epoch(self, epoch: int = 0, share: tuple[int, int] = (0, 1), whole: bool = False) -> Iterator[Batch]:
        """The batches of an epoch.

        share : (which, of how many) processes; each takes its part of every batch or, where `whole`, every so-manyth batch.
        """
        count, (which, of) = len(self.rows), share
        order = permutation(("order", self.seed, epoch), count) if self.shuffle else np.arange(count)
        batches = np.array_split(order, len(self))
        if whole:
            yield from (self._batch(positions, epoch) for positions in batches[which::of])
            return
        for positions in batches:
            batch = self._batch(np.array_split(positions, of)[which], epoch)
            if of > 1:
                batch.all_labels = torch.from_numpy(self.labels[self.rows[positions]]).to(self.device)
            yield batch

    def _batch(self, positions: np.ndarray, epoch: int) -> Batch:
        rows, copies = self.rows[positions], self._copies[positions]
        if self._resident is not None:
            taken = self._resident[torch.from_numpy(positions).to(self.device)]
        else:
            taken = torch.from_numpy(self.pixels[rows]).to(self.device)
        labels = torch.from_numpy(self.labels[rows]).to(self.device)
        if taken.dtype != torch.uint8:
            return Batch(self._with_second(taken.float(), rows), labels, rows)
        masks = None if self.masks is None else torch.from_numpy(self.masks[rows]).to(self.device)
        u = None if self.augment is None else draws(self.seed, epoch, rows + copies * len(self.pixels)).to(self.device)
        size = self.size or taken.shape[1]
        images, masks = augmented(taken, self.augment, u, size, self._mean, self._std, masks)
        return Batch(self._with_second(images, rows), labels, rows, masks)

    def _with_second(self, first: torch.Tensor, rows: np.ndarray) -> Any:
        """The inputs of a batch: the first alone, or the pair."""
        if self.beside is None:
            return first
        return first, torch.from_numpy(self.beside[rows]).to(self.device).float()


def own_device(device: str) -> str:
    """The name of this process's own GPU, where the launcher of several processes numbered them; else as it is."""
    number = os.environ.get("LOCAL_RANK")
    return f"cuda:{number}" if device == "cuda" and number else device
