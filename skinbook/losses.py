"""Losses and their weights."""

from __future__ import annotations

import numpy as np
import torch

from skinbook.config import SkinbookError


def class_weights(labels: np.ndarray, classes: int) -> torch.Tensor:
    """Weights inversely proportional to each class's count, with mean 1 over the photographs: float32 (classes,).

    The "balanced" rule of scikit-learn: n / (classes · count of the class).
    """
    counts = np.bincount(np.asarray(labels, dtype=np.int64), minlength=classes)
    if (counts == 0).any():
        raise SkinbookError(f"Class {int(np.argmin(counts))} has no photographs in training, so it has no weight.")
    return torch.tensor(len(labels) / (classes * counts), dtype=torch.float32)
