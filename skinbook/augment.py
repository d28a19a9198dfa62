"""Augmentation: every photograph its own turn, zoom, flip and light, a whole batch at a time, on the device.

One affine grid and one colour matrix a batch do nearly all of it. The draws are keyed by (seed, epoch, photograph), so a
resumed run sees what an undisturbed one would have seen. Masks take the same grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from skinbook.keyed import uniform

PLACE_AND_COLOUR = 10  # draws a photograph for its turn, zoom, flips, shift and colours
DRAWS = PLACE_AND_COLOUR + 2  # and for the place of the cutout
GREY = torch.tensor([0.299, 0.587, 0.114])  # luma of ITU-R BT.601
TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
FROM_YIQ = torch.linalg.inv(TO_YIQ.double()).float()


@dataclass(frozen=True)
class Augment:
    """How far a photograph may be changed; the defaults change nothing.

    flip : mirror left-right and up-down, each with probability one half.
    rotate : degrees either way. zoom : (least, most) magnification. shift : share of the width either way.
    brightness, contrast, saturation : relative change either way. hue : share of the colour circle either way.
    cutout : side, as a share of the width, of one square that is painted with the mean colour, its centre anywhere in
        the photograph (DeVries and Taylor 2017, arXiv 1708.04552); masks stay whole.
    What comes from outside the frame is the photograph mirrored at its edge.
    """

    flip: bool = False
    rotate: float = 0.0
    zoom: tuple[float, float] = (1.0, 1.0)
    shift: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    cutout: float = 0.0


def draws(seed: int, epoch: int, images: np.ndarray) -> torch.Tensor:
    """Uniform draws in [0, 1), float32 (n, DRAWS), one row for each image number."""
    images = np.asarray(images, dtype=np.int64)[:, None]
    kinds = (("augment", PLACE_AND_COLOUR), ("cutout", DRAWS - PLACE_AND_COLOUR))  # keyed apart, so as not to interfere
    found = [uniform((kind, seed, epoch), images * count + np.arange(count)) for kind, count in kinds]
    return torch.from_numpy(np.concatenate(found, axis=1).astype(np.float32))


def affine(augment: Augment, u: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Maps (n, 2, 3) from the square that comes out to the photograph that goes in, both in [-1, 1]."""
    n = len(u)
    angle = (2 * u[:, 0] - 1) * np.deg2rad(augment.rotate)
    zoom = augment.zoom[0] * (augment.zoom[1] / augment.zoom[0]) ** u[:, 1]
    mirror = torch.where(u[:, 2:4] < 0.5, -1.0, 1.0) if augment.flip else u.new_ones(n, 2)
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    turn = torch.stack([torch.stack([cos, -sin], -1), torch.stack([sin, cos], -1)], -2) * mirror[:, None, :]
    shift = (2 * u[:, 4:6] - 1) * 2 * augment.shift
    # The square is as wide as the photograph's shorter side.
    inside = u.new_tensor([min(height, width) / width, min(height, width) / height])
    return torch.cat([turn, shift[:, :, None]], dim=2) * inside[None, :, None]


def grid(maps: torch.Tensor, size: int) -> torch.Tensor:
    """Where each pixel of a square comes from, (n, size, size, 2) as across and down, from maps (n, 2, 3).

    A map is linear, so a place is the sum of what its column and what its row give: that is several times as fast as
    `affine_grid`, which multiplies a matrix for every pixel.
    """
    middles = (2 * torch.arange(size, device=maps.device, dtype=maps.dtype) + 1) / size - 1
    across = middles[:, None] * maps[:, None, None, :, 0]
    down = middles[:, None, None] * maps[:, None, None, :, 1] + maps[:, None, None, :, 2]
    return across + down


def colour(augment: Augment, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Colour matrices (n, 3, 3) and offsets (n, 3, 1) for RGB in [0, 1]."""
    brightness, contrast, saturation = (
        1 + (2 * u[:, 6 + k] - 1) * strength
        for k, strength in enumerate((augment.brightness, augment.contrast, augment.saturation))
    )
    angle = (2 * u[:, 9] - 1) * 2 * np.pi * augment.hue
    cos, sin, one, zero = torch.cos(angle), torch.sin(angle), torch.ones_like(angle), torch.zeros_like(angle)
    turn = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], -1).view(-1, 3, 3)
    hue = FROM_YIQ.to(u) @ turn @ TO_YIQ.to(u)
    grey = GREY.to(u).expand(3, 3)
    s = saturation[:, None, None]
    matrix = (brightness * contrast)[:, None, None] * (hue @ (s * torch.eye(3, device=u.device) + (1 - s) * grey))
    return matrix, (0.5 * (1 - contrast))[:, None, None].expand(-1, 3, 1)


def inside_cutout(augment: Augment, u: torch.Tensor, size: int) -> torch.Tensor:
    """Which pixels of each photograph its square covers, bool (n, 1, size, size)."""
    middles = (torch.arange(size, device=u.device) + 0.5) / size
    near = (middles - u[:, PLACE_AND_COLOUR:, None]).abs() < augment.cutout / 2  # (n, 2, size): across, down
    return (near[:, 1, :, None] & near[:, 0, None, :])[:, None]


def augmented(
    pixels: torch.Tensor,
    augment: Augment | None,
    u: torch.Tensor | None,
    size: int,
    mean: torch.Tensor,
    std: torch.Tensor,
    masks: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Photographs as a network wants them, and their masks.

    Parameters
    ----------
    pixels : uint8 (n, height, width, 3). masks : uint8 (n, height, width) of 0 and 1, or None.
    augment, u : what may change, and the draws (n, DRAWS); None for the centre square as it is.
    size : side of the square that comes out. mean, std : (3,) the network's normalisation of RGB in [0, 1].

    Returns
    -------
    float32 (n, 3, size, size), and float32 (n, 1, size, size) of 0 and 1, or None.
    """
    n, height, width = pixels.shape[:3]
    images = pixels.permute(0, 3, 1, 2).float()
    held = None if masks is None else masks[:, None].float()
    change = augment or Augment()
    u = torch.full((n, DRAWS), 0.5, device=pixels.device) if u is None else u
    if augment is not None or (height, width) != (size, size):
        places = grid(affine(change, u, height, width), size)
        images = F.grid_sample(images, places, padding_mode="reflection", align_corners=False)
        if held is not None:
            held = F.grid_sample(held, places, mode="nearest", padding_mode="reflection", align_corners=False)
    matrix, offset = colour(change, u)
    scale = 1 / std[:, None]
    images = torch.baddbmm((offset - mean[:, None]) * scale, matrix * (scale / 255), images.flatten(2))
    images = images.view(n, 3, size, size)
    if change.cutout:
        images = images.masked_fill(inside_cutout(change, u, size), 0.0)  # the mean colour, once normalised
    return images, held
