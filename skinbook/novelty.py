"""How far a photograph lies from those that a model learned from, so that a landscape gets no diagnosis.

The measure is the Mahalanobis distance of the network's features (Lee et al. 2018, arXiv 1807.03888), here of its early
maps (see `bundle.logits_and_features`) and from one centre for all diagnoses: how many standard deviations a photograph
lies from the training photographs, along the directions in which those vary. Beyond the limit, which validation
photographs choose, a model should keep silent. Where there are many features, the directions of most variance count one
by one and all others share one variance.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from skinbook.config import SkinbookError

REFUSED = 0.01  # the share of validation photographs that lie beyond the limit
DIRECTIONS = 128  # as many are kept; of ResNet-50's 1,868 features they take 1 MB
SHRINKAGE = (
    0.01  # towards independent features, so that a direction in which training never varied weighs no more than that
)
ARRAYS = ("centre", "scale", "whitening", "variances", "rest")


@dataclass(frozen=True)
class Novelty:
    """The training photographs' features in short, and the limit.

    Parameters
    ----------
    centre, scale : float32 (d,), mean and standard deviation of each feature in training.
    whitening : float32 (d, k), from scaled features to k independent ones of variance 1.
    variances : float32 (k,), what each of those k had before. rest : float32 (1,), the variance of all other directions.
    limit : the distance beyond which a photograph counts as unlike.
    refused : the share of validation photographs that the limit was set to leave out.
    """

    centre: np.ndarray
    scale: np.ndarray
    whitening: np.ndarray
    variances: np.ndarray
    rest: np.ndarray
    limit: float = np.inf
    refused: float = REFUSED

    def __post_init__(self) -> None:
        d, k = self.whitening.shape if self.whitening.ndim == 2 else (-1, -1)
        shapes = [array.shape for array in (self.centre, self.scale, self.variances, self.rest)]
        if shapes != [(d,), (d,), (k,), (1,)] or not 0 < k <= d:
            raise SkinbookError(f"What tells strange photographs apart has arrays of shapes {shapes} that don't fit.")
        if not (self.limit > 0 and 0 < self.refused < 1):
            raise SkinbookError(f"The limit is {self.limit} at a share of {self.refused}; expected a limit above 0.")

    def distances(self, features: np.ndarray) -> np.ndarray:
        """Distance of each photograph, float64 (n,), from features (n, d).

        Raises
        ------
        SkinbookError
            If there are more or fewer features than this was made from.
        """
        if features.ndim != 2 or features.shape[1] != len(self.centre):
            raise SkinbookError(
                f"What tells strange photographs apart was made from {len(self.centre)} features, and these are of shape "
                f"{features.shape}: it belongs to another network."
            )
        arrays = (torch.from_numpy(getattr(self, name)).double() for name in ARRAYS)
        # By torch, not NumPy, whose own threads get in the way of those that decode and compute beside it.
        return mahalanobis(torch.from_numpy(np.asarray(features, dtype=np.float64)), *arrays).numpy()

    @classmethod
    def fit(cls, train: np.ndarray, validation: np.ndarray, refused: float = REFUSED) -> Novelty:
        """From features of training photographs (n, d); those of validation photographs (m, d) set the limit.

        Raises
        ------
        SkinbookError
            If there are too few photographs, or a feature is not a finite number.
        """
        train, validation = np.asarray(train, dtype=np.float64), np.asarray(validation, dtype=np.float64)
        if len(train) < 2 or not len(validation) or not (np.isfinite(train).all() and np.isfinite(validation).all()):
            raise SkinbookError(
                f"{len(train)} training and {len(validation)} validation photographs cannot say what is strange: "
                "expected several, with finite features."
            )
        if not 0 < refused < 1:
            raise SkinbookError(f"The share to refuse is {refused}; expected one between 0 and 1, such as {REFUSED}.")
        centre, spread = train.mean(axis=0), train.std(axis=0)
        # A feature that never varied in training would otherwise be divided by nothing.
        scale = np.maximum(spread, 1e-3 * max(spread.mean(), 1e-6))
        scaled = (train - centre) / scale
        covariance = (1 - SHRINKAGE) * (scaled.T @ scaled) / len(train) + SHRINKAGE * np.eye(train.shape[1])
        variances, directions = np.linalg.eigh(covariance)
        variances, directions = variances[::-1], directions[:, ::-1]
        k = min(DIRECTIONS, len(variances))
        rest = variances[k:].mean() if k < len(variances) else variances[-1]
        arrays = (centre, scale, directions[:, :k] / np.sqrt(variances[:k]), variances[:k], np.array([rest]))
        kept = [np.ascontiguousarray(array, dtype=np.float32) for array in arrays]
        found = cls(kept[0], kept[1], kept[2], kept[3], kept[4], refused=float(refused))
        distances = np.sort(found.distances(validation))
        return replace(found, limit=float(distances[int(np.ceil((1 - refused) * len(distances))) - 1]))


def mahalanobis(
    features: torch.Tensor,
    centre: torch.Tensor,
    scale: torch.Tensor,
    whitening: torch.Tensor,
    variances: torch.Tensor,
    rest: torch.Tensor,
) -> torch.Tensor:
    """The distance (n,) of features (n, d); the other tensors are as in `Novelty`."""
    scaled = (features - centre) / scale
    independent = scaled @ whitening
    squares = (independent**2).sum(dim=1)
    if whitening.shape[0] > whitening.shape[1]:
        beside = scaled - independent @ (whitening * variances).T
        squares = squares + (beside**2).sum(dim=1) / rest
    return squares.sqrt()
