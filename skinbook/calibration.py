"""What is chosen on validation once a network is trained: the temperature, and the threshold of the operating point.

Chapter 05 teaches both; a test holds these copies to the chapter's cells.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn


def temperature_of(logits, labels):
    """The temperature at which these labels are most probable (Guo et al. 2017, arXiv 1706.04599).

    logits : float (n, classes). labels : int (n,).
    """
    logits, labels = torch.as_tensor(logits).double(), torch.as_tensor(labels)
    log_t = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([log_t], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(logits / log_t.exp(), labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    return log_t.exp().item()


def threshold_for(sensitivity, ill, scores):
    """The highest threshold at which at least this share of the ill is called.

    sensitivity : share from 0 to 1. ill : bool (n,), some of them True. scores : float (n,).
    """
    ranked = np.sort(scores[ill])[::-1]
    return ranked[int(np.ceil(sensitivity * len(ranked) - 1e-9)) - 1]
