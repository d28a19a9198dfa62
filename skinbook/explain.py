"""Where a network looked: Grad-CAM for whole batches, and the controls that say whether its maps mean anything.

pytorch-grad-cam computes the maps. What it would waste is spared: parameters are frozen meanwhile, so that the walk back
ends at the target layer. Every map is float32 (side, side) in 0..1, as large as the photograph that the network sees.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator
from copy import deepcopy

import numpy as np
import torch
from torch import nn

from skinbook.batches import Batches
from skinbook.config import SkinbookError
from skinbook.keyed import uniform
from skinbook.networks import fits_its_batches

METHODS = {
    "grad-cam": "GradCAM",  # Selvaraju et al. 2017
    "grad-cam++": "GradCAMPlusPlus",  # Chattopadhay et al. 2018
    "layer-cam": "LayerCAM",  # Jiang et al. 2021
    "eigen-cam": "EigenCAM",  # Muhammad and Yeasin 2020; knows neither gradients nor classes
    "score-cam": "ScoreCAM",  # Wang et al. 2020; no gradients, but one look for every channel
}


@fits_its_batches
def maps(
    network: nn.Module,
    batches: Batches,
    targets: np.ndarray | None = None,
    layer: nn.Module | None = None,
    method: str = "grad-cam",
    reshape: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> np.ndarray:
    """Maps of the photographs, float32 (rows, side, side) in 0..1, in the order of `batches.rows`.

    Parameters
    ----------
    network : gives logits (n, classes).
    batches : photographs, in order and as they are.
    targets : int (rows,), the class that each map is about; the predicted one where None.
    layer : a layer of the network, whose output (n, channels, height, width) is weighed; `network.backbone` where None.
    method : one of `METHODS`.
    reshape : from the layer's output to (n, channels, height, width), where it is something else (a transformer's tokens).

    Raises
    ------
    SkinbookError
        If the batches are shuffled or augmented, the method is unknown, the layer is not the network's, the targets do
        not fit the rows, or memory does not suffice for a single photograph.
    """
    batches.must_be_plain()
    layer = getattr(network, "backbone", None) if layer is None else layer
    if method not in METHODS:
        raise SkinbookError(f"{method!r} is not a method that skinbook knows; it knows {', '.join(METHODS)}.")
    if layer is None or all(layer is not module for module in network.modules()):
        raise SkinbookError("The target layer is not a layer of this network: name one, such as network.backbone.")
    network.eval().to(batches.device)
    if targets is not None:
        targets = _fitting(targets, network, batches)
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    collected, start = [], 0
    # Score-CAM draws a progress bar for every photograph, on stderr.
    quiet = contextlib.redirect_stderr(io.StringIO()) if method == "score-cam" else contextlib.nullcontext()
    kind = getattr(pytorch_grad_cam, METHODS[method])
    with (
        _walk_back_ends_at(layer, network),  # first, so that the library sees what it hands on
        quiet,
        contextlib.ExitStack() as after,
    ):
        cam = kind(network, [layer], reshape_transform=reshape)
        # Not `with cam`, which takes an IndexError, and with it all maps that were still to come, for a good end.
        after.callback(cam.activations_and_grads.release)
        for batch in batches.epoch():
            wanted = None if targets is None else targets[start : (start := start + len(batch.rows))]
            asked = None if wanted is None else [ClassifierOutputTarget(int(target)) for target in wanted]
            collected.append(cam(input_tensor=batch.inputs, targets=asked))
    return np.concatenate(collected)


def _fitting(targets: np.ndarray, network: nn.Module, batches: Batches) -> np.ndarray:
    """The targets as an array of int, one for each row; SkinbookError if they are other, or no classes of the network's."""
    targets = np.asarray(targets)
    if len(targets) != len(batches.rows):
        raise SkinbookError(f"{len(batches.rows)} photographs need as many targets; got {len(targets)}.")
    with torch.no_grad():
        classes = network(next(batches.epoch()).inputs[:1]).shape[1]
    if not np.issubdtype(targets.dtype, np.integer) or ((targets < 0) | (targets >= classes)).any():
        raise SkinbookError(f"The targets are not whole numbers from 0 to {classes - 1}, the classes of this network.")
    return targets


@contextlib.contextmanager
def _walk_back_ends_at(layer: nn.Module, network: nn.Module) -> Iterator[None]:
    """A block in which nothing but the layer's output, and what follows from it, has a gradient."""
    frozen = [p for p in network.parameters() if p.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(False)
    # The copy is no leaf, so that a ReLU in place may follow.
    hook = layer.register_forward_hook(lambda module, given, output: output.detach().requires_grad_().clone())
    try:
        yield
    finally:
        hook.remove()
        for parameter in frozen:
            parameter.requires_grad_(True)


# Scores ---------------------------------------------------------------------------------------------------------------


def pointing(maps, masks):
    """The pointing game (Zhang et al. 2018, doi 10.1007/s11263-017-1059-x), without tolerance: bool (n,).

    Whether the highest place of each map lies in the mask. maps : float (n, side, side); masks : (n, side, side) of 0, 1.
    """
    highest = maps.reshape(len(maps), -1).argmax(axis=1)
    return masks.reshape(len(masks), -1)[np.arange(len(maps)), highest] > 0


def energy(maps, masks):
    """The energy-based pointing game (Wang et al. 2020, Score-CAM, arXiv 1910.01279): float (n,).

    The share of each map that lies in the mask; a blank map counts as spread evenly. Shapes as in `pointing`.
    """
    spread = maps.astype(np.float64) + 1e-9
    return (spread * masks).sum(axis=(1, 2)) / spread.sum(axis=(1, 2))


# Controls -------------------------------------------------------------------------------------------------------------


def centred(maps):
    """The same values in another order, the highest nearest the middle of the image: (n, side, side).

    So the control covers, at every height, exactly the area that the map does.
    """
    count, side, _ = maps.shape
    from_middle = np.abs(np.arange(side) - (side - 1) / 2)
    away = np.hypot(*np.meshgrid(from_middle, from_middle)).ravel()
    order = away.argsort(kind="stable")  # ties in one order on every processor
    moved = np.empty((count, side * side), maps.dtype)
    moved[:, order] = np.sort(maps.reshape(count, -1))[:, ::-1]
    return moved.reshape(maps.shape)


def displaced(maps: np.ndarray, seed: int = 0) -> np.ndarray:
    """Each map moved to a random place, and what leaves the frame comes in at the other side: (n, side, side)."""
    count, side, _ = maps.shape
    down, right = np.floor(side * uniform(("displaced", seed), 2 * count)).astype(int).reshape(2, count)
    return np.stack([np.roll(one, (d, r), (0, 1)) for one, d, r in zip(maps, down, right, strict=True)])


def cascade(network, inputs, stages=4, seed=0):
    """Cascading weight randomisation (Adebayo et al. 2018, arXiv 1810.03292): a generator of networks, from the last layer on.

    The first has random weights in its last layer, the next also in the last of `stages` parts of the others, and so on.
    inputs : photographs as the network sees them, from which normalisation layers learn their statistics anew.
    """
    network = deepcopy(network).eval()
    layers = [m for m in network.modules() if hasattr(m, "reset_parameters")][::-1]
    torch.manual_seed(seed)
    parts = np.array_split(np.arange(1, len(layers)), stages)
    for some in [np.arange(1), *parts]:
        for k in some:
            layers[k].reset_parameters()
        for layer in layers[: some[-1] + 1]:
            if isinstance(layer, nn.BatchNorm2d):
                layer.reset_running_stats()
                layer.momentum = None  # a plain mean over what it sees
                layer.train()
        with torch.no_grad():
            network(inputs)
        yield network.eval()


def similarity(maps, others):
    """Rank correlation of each map with another over their places: float (n,); 0 where either is blank."""
    from scipy.stats import rankdata

    a, b = (rankdata(m.reshape(len(m), -1), axis=1) for m in (maps, others))
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    scale = np.sqrt((a * a).sum(axis=1) * (b * b).sum(axis=1))
    return (a * b).sum(axis=1) / np.maximum(scale, 1e-9)


@fits_its_batches
def erased(
    network: nn.Module,
    batches: Batches,
    order: np.ndarray,
    targets: np.ndarray,
    steps: int = 8,
    insert: bool = False,
    blur: float = 0.15,
) -> np.ndarray:
    """Deletion and insertion (Petsiuk et al. 2018, arXiv 1806.07421): probabilities, float (rows, steps + 1).

    Parameters
    ----------
    order : float (rows, side, side), a map: its highest places go first.
    targets : int (rows,), the class whose probability is followed.
    insert : False to blur more and more of the photograph, True to start blurred and sharpen more and more of it.
    blur : standard deviation, as a share of the photograph's side, at most 0.6.

    Raises
    ------
    SkinbookError
        If the batches are shuffled or augmented, `order` or `targets` do not fit the rows, or the blur is out of range.
    """
    from torchvision.transforms.functional import gaussian_blur

    batches.must_be_plain()
    network.eval().to(batches.device)
    targets = _fitting(targets, network, batches)
    if len(order) != len(batches.rows):
        raise SkinbookError(f"{len(batches.rows)} photographs need as many maps; got {len(order)}.")
    if not 0 < blur <= 0.6:  # beyond, a photograph is too small to be mirrored at its edges
        raise SkinbookError(f"blur is {blur}; expected more than 0 and at most 0.6.")
    rows, start = [], 0
    with torch.inference_mode():
        for batch in batches.epoch():
            n, _, side, _ = batch.inputs.shape
            here, start = slice(start, start + n), start + n
            highest_first = (-order[here].reshape(n, -1)).argsort(axis=1, kind="stable")
            place = torch.from_numpy(highest_first.argsort(axis=1).reshape(n, 1, side, side)).to(batch.inputs.device)
            odd = 2 * int(1.5 * blur * side) + 1
            smooth = gaussian_blur(batch.inputs, [odd, odd], [blur * side, blur * side])
            old, new = (smooth, batch.inputs) if insert else (batch.inputs, smooth)
            wanted = torch.as_tensor(targets[here]).to(batch.inputs.device)[:, None]
            columns = []
            for step in range(steps + 1):
                seen = torch.where(place < step / steps * side * side, new, old)
                columns.append(network(seen).softmax(1).gather(1, wanted)[:, 0].float().cpu())
            rows.append(torch.stack(columns, 1))
    return torch.cat(rows).numpy()
