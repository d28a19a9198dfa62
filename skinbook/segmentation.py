"""A U-Net whose encoder is a backbone of the book, and what it answers.

The U-Net (Ronneberger, Fischer and Brox 2015, arXiv 1505.04597) is that of segmentation-models-pytorch; its encoder's
weights are found as those of every other network of the book are, by `skinbook.networks`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from skinbook.batches import Batches
from skinbook.config import SkinbookError
from skinbook.networks import Backbone
from skinbook.training import predict


class UNet(nn.Module):
    """Photographs (n, 3, size, size) in, logits of being lesion (n, 1, size, size) out.

    Parameters
    ----------
    name, weights : of the encoder, as for `Backbone`.
    decoder : channels of the decoder's five steps, from the deepest to that of the photograph's own size.

    `weights`, `mean` and `std` are the backbone's: where the encoder's weights come from, and what they were learned on.

    Raises
    ------
    SkinbookError
        If the photographs' side is no multiple of 32, or the decoder has not five steps.
    """

    def __init__(self, name: str, weights: str = "none", decoder: Sequence[int] = (256, 128, 64, 32, 16)) -> None:
        super().__init__()
        import segmentation_models_pytorch as smp

        if len(decoder) != 5:
            raise SkinbookError(f"The U-Net's decoder has five steps; got {len(decoder)} counts of channels.")
        backbone = Backbone(name, weights)
        self.name, self.weights, self.mean, self.std = name, backbone.weights, backbone.mean, backbone.std
        # The library has torchvision's mobilenet_v2 itself, and timm's networks under "tu-" and their name.
        torchvisions = isinstance(backbone.model, nn.Sequential)
        self.model = smp.Unet(
            name if torchvisions else f"tu-{name}", encoder_weights=None, decoder_channels=tuple(decoder)
        )
        prefix = "features." if torchvisions else "model."
        held = {prefix + key: value for key, value in backbone.model.state_dict().items()}
        wanted = self.model.encoder.state_dict()
        if lacking := [key for key in wanted if key not in held]:
            raise SkinbookError(f"The weights of {name} do not fit the U-Net's encoder: {lacking[0]} is missing.")
        self.model.encoder.load_state_dict({key: held[key] for key in wanted})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[-1] % 32 or x.shape[-2] % 32:
            raise SkinbookError(f"The U-Net needs photographs whose sides are multiples of 32; got {tuple(x.shape)}.")
        return self.model(x)


def predict_masks(network: nn.Module, batches: Batches) -> np.ndarray:
    """The probability of being lesion at every pixel, float32 (rows, size, size), in the order of `batches.rows`.

    Raises
    ------
    SkinbookError
        If the batches are shuffled or augmented.
    """
    return torch.from_numpy(predict(network, batches)[:, 0]).sigmoid().numpy()


def iou(predicted, truth):
    """Jaccard index of each photograph, float (n,), from bool (n, height, width); 1 where both are empty."""
    shared = (predicted & truth).sum(axis=(1, 2))
    either = (predicted | truth).sum(axis=(1, 2))
    return np.where(either > 0, shared / np.maximum(either, 1), 1.0)
