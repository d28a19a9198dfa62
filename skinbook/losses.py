"""Losses and their weights."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from skinbook.config import SkinbookError


def class_weights(labels: np.ndarray, classes: int) -> torch.Tensor:
    """Weights inversely proportional to each class's count, with mean 1 over the photographs: float32 (classes,).

    The "balanced" rule of scikit-learn: n / (classes · count of the class).
    """
    counts = np.bincount(np.asarray(labels, dtype=np.int64), minlength=classes)
    if (counts == 0).any():
        raise SkinbookError(f"Class {int(np.argmin(counts))} has no photographs in training, so it has no weight.")
    return torch.tensor(len(labels) / (classes * counts), dtype=torch.float32)


def log_prior(labels: np.ndarray, classes: int) -> torch.Tensor:
    """Logarithm of each class's share of the photographs: float32 (classes,)."""
    counts = np.bincount(np.asarray(labels, dtype=np.int64), minlength=classes)
    if (counts == 0).any():
        raise SkinbookError(f"Class {int(np.argmin(counts))} has no photographs in training, so it has no share.")
    return torch.tensor(np.log(counts / counts.sum()), dtype=torch.float32)


class LogitAdjusted(nn.Module):
    """Cross-entropy of logits (n, classes) raised by the log-share of every class (Menon et al. 2021, arXiv 2007.07314).

    What the network learns are then scores for equally frequent classes. Chapter 02 explains it, line for line the same.

    log_prior : float (classes,). strength : 1 aims at balanced accuracy, 0 is the plain cross-entropy.
    """

    def __init__(self, log_prior, strength=1.0):
        super().__init__()
        self.register_buffer("offset", strength * log_prior)

    def forward(self, logits, labels):
        return nn.functional.cross_entropy(logits + self.offset.to(logits), labels)


def dice_loss(logits, masks, smooth=1.0):
    """One less the Dice of probabilities, the mean over photographs (n, 1, h, w); taught in chapter 08."""
    p = logits.sigmoid()
    shared = (p * masks).sum(dim=(1, 2, 3))
    both = p.sum(dim=(1, 2, 3)) + masks.sum(dim=(1, 2, 3))
    return (1 - (2 * shared + smooth) / (both + smooth)).mean()
