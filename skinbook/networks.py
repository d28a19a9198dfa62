"""Networks by name, and where their pretrained weights come from.

A backbone turns photographs into a feature map. Its name is timm's (`resnet18`, `densenet121`, `test_resnet`) or
torchvision's `mobilenet_v2`. Pretrained weights come from a local file, from the book itself (the lab's backbone) or
from timm's hub; which of them it was is kept in `Backbone.weights` and goes into the ledger.
"""

from __future__ import annotations

import copy
import functools
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import nn

from skinbook.batches import Batches
from skinbook.config import SkinbookError, book_data, settings

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCRATCH = "none (from scratch)"
WITHOUT_HUB = ("mobilenet_v2",)  # torchvision's, whose weights online are pickles
N = TypeVar("N", bound=nn.Module)
P = ParamSpec("P")
R = TypeVar("R")


class Backbone(nn.Module):
    """Photographs (n, 3, height, width) in, a feature map (n, channels, height / stride, width / stride) out.

    Raises
    ------
    SkinbookError
        If nobody knows the network or its weights, it has no map of this stride, or it gives no such maps at all (a
        transformer's tokens, channels behind the places, one size of photographs only).
    """

    def __init__(self, name: str, weights: str = "none", stride: int | None = None) -> None:
        super().__init__()
        self.name, self.asked_stride = name, stride
        self.model: Any
        self.model, self.weights, self.mean, self.std = _load(name, weights)
        self.model.requires_grad_(True)
        self._stage: int | None = None
        training, self.training = self.training, False
        self.model.eval()
        with torch.no_grad():
            self.channels, self.stride = self._probed(torch.zeros(1, 3, 64, 64))
        self.train(training)

    def _probed(self, probe: torch.Tensor) -> tuple[int, int]:
        """Channels and stride of the feature map of a square photograph; SkinbookError if the network gives none."""
        shape: tuple[int, ...] = ()
        why = ""
        try:
            if self.asked_stride is not None:
                self._stage = self._stage_of(self.asked_stride, probe)
            shape = tuple(getattr(self(probe), "shape", ()))
        except (AssertionError, RuntimeError) as error:
            if probe.is_meta:  # without memory other networks fail as well: see `bundle._must_fit`
                raise
            why = str(error).split("\n")[0]
        # The maps of stages have their channels first. The last map of a few networks (Swin, MambaOut) has them last, and
        # the mean over its places would be one over channels.
        known = self._stage is None and not isinstance(self.model, nn.Sequential)
        if len(shape) != 4 or (known and shape[1] != self.model.num_features):
            raise _without_map(self.name, why)
        return shape[1], probe.shape[2] // shape[2]

    def _stages(self, x: torch.Tensor, last: int | None = None) -> list[torch.Tensor]:
        """Feature maps of the stages, up to the stage `last`."""
        if isinstance(self.model, nn.Sequential):  # torchvision's mobilenet_v2: a plain row of layers
            maps = []
            for layer in self.model[: None if last is None else last + 1]:
                x = layer(x)
                maps.append(x)
            return maps
        indices = None if last is None else [last]
        return self.model.forward_intermediates(
            x, indices=indices, intermediates_only=True, stop_early=last is not None
        )

    def _stage_of(self, stride: int, probe: torch.Tensor) -> int:
        """The deepest stage whose map is `stride` times smaller than the photograph."""
        sides = [64 // m.shape[-1] for m in self._stages(probe)]
        if stride not in sides:
            raise SkinbookError(f"{self.name} has no feature map of stride {stride}; it has {sorted(set(sides))}.")
        stage = max(k for k, side in enumerate(sides) if side == stride)
        if isinstance(self.model, nn.Sequential):
            self.model = self.model[: stage + 1]
        else:
            self.model.prune_intermediate_layers([stage])  # deeper layers would only be dead weight
        return stage

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self._stage is not None:
            return self._stages(x, self._stage)[-1]
        return self.model(x) if isinstance(self.model, nn.Sequential) else self.model.forward_features(x)

    def with_early_maps(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The feature map, and the maps before it: the deepest of each larger size, the largest first."""
        if self._stage is None and hasattr(self.model, "forward_intermediates"):
            last, maps = self.model.forward_intermediates(x)
        elif self._stage is None and not isinstance(self.model, nn.Sequential):
            return self(x), []
        else:
            maps = self._stages(x)
            last = maps[-1 if self._stage is None else self._stage]
        # A later map of the same size takes the place of an earlier one. (To the exporter of ONNX a size is a tensor.)
        deepest = {int(m.shape[-1]): m for m in maps}
        return last, [deepest[side] for side in sorted(deepest, reverse=True) if side > int(last.shape[-1])]


class Classifier(nn.Module):
    """A backbone, the mean of its feature map, and one linear layer: logits (n, outputs)."""

    def __init__(self, backbone: Backbone, outputs: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(backbone.channels, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.backbone(x).mean(dim=(2, 3)))


def parameters(network: nn.Module) -> int:
    """Count of trainable numbers."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def short_of_memory(size: int, device: str) -> SkinbookError:
    """What to say where memory does not suffice for a batch of so many photographs."""
    remedy = f"Try batch_size={size // 2}" if size > 1 else "Try a smaller network or smaller photographs"
    return SkinbookError(f"The memory of {device} does not suffice for a batch of {size} photographs. {remedy}.")


def is_short_of_memory(error: Exception) -> bool:
    """Whether an error says that memory does not suffice, on whatever device."""
    from accelerate.utils.memory import should_reduce_batch_size

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or should_reduce_batch_size(error)


def in_batches_that_fit(look: Callable[[int], R], size: int, device: str) -> R:
    """What `look` returns, a function of the batch size: `size`, or half of it and so on while memory is short.

    It is for what does not depend on the batch, but for rounding: predictions and features, not training.

    Raises
    ------
    SkinbookError
        If memory does not suffice for a single photograph; or, where several processes share the batches, for one of them.
    """
    while True:
        try:
            return look(size)
        except (RuntimeError, MemoryError) as error:
            if not is_short_of_memory(error):
                raise
        # Out here nothing holds on to the tensors of the failed attempt any more.
        if size == 1 or (torch.distributed.is_available() and torch.distributed.is_initialized()):
            raise short_of_memory(size, device)
        size //= 2


def fits_its_batches(
    function: Callable[Concatenate[N, Batches, P], R],
) -> Callable[Concatenate[N, Batches, P], R]:
    """`function`, of a network and batches, goes through smaller ones while memory is short: see `in_batches_that_fit`."""

    @functools.wraps(function)
    def tried(network: N, batches: Batches, *given: P.args, **named: P.kwargs) -> R:
        def look(size: int) -> R:
            smaller = copy.copy(batches)  # not `replace`, which would move its photographs to the device once more
            smaller.batch_size = size
            return function(network, smaller, *given, **named)

        return in_batches_that_fit(look, batches.batch_size, batches.device)

    return tried


@fits_its_batches
def frozen_features(backbone: Backbone, batches: Batches, pool: bool = True) -> torch.Tensor:
    """A backbone's features of every row of some batches, float32, in the batches' order, computed once.

    Returns (n, channels) where `pool` takes the mean over places, else (n, places, channels): the map as tokens.

    Raises
    ------
    SkinbookError
        If the batches are shuffled or augmented, or memory does not suffice for a single photograph.
    """
    batches.must_be_plain()
    backbone.eval().to(batches.device)
    collected = []
    with torch.inference_mode():
        for batch in batches.epoch():
            features = backbone(batch.inputs).flatten(2)
            collected.append((features.mean(2) if pool else features.transpose(1, 2)).float().cpu())
    return torch.cat(collected)


def _load(name: str, weights: str) -> tuple[nn.Module, str, tuple[float, ...], tuple[float, ...]]:
    """(model without its classifier, where its weights come from, mean, std)."""
    if weights not in ("none", "pretrained", "lab"):
        raise SkinbookError(f"weights is {weights!r}; expected none, pretrained or lab.")
    file = book_data("lab_backbone.safetensors") if weights == "lab" else local_weights(name)
    if weights == "pretrained" and file is None:
        if _hub_reachable(name):
            return _of_hub(_create(name, pretrained=True))
        if fetched := _fetched_before(name):
            return _of_hub(_from_file(name, fetched)[0])
        _tell_of_scratch(name)
    if weights == "none" or file is None:
        return _create(name, pretrained=False), SCRATCH, IMAGENET_MEAN, IMAGENET_STD
    return _from_file(name, file)


def _of_hub(model: Any) -> tuple[nn.Module, str, tuple[float, ...], tuple[float, ...]]:
    known = model.pretrained_cfg
    return model, f"timm hub: {known['architecture']}.{known['tag']}", tuple(known["mean"]), tuple(known["std"])


@functools.cache  # once for each network
def _tell_of_scratch(name: str) -> None:
    """Say on stderr that pretrained weights are not at hand, and what to do. (A Python warning would name a path.)"""
    online = ", or go online and set HF_HUB_OFFLINE=0" if _on_hub(name) else ""
    print(
        f"No pretrained weights of {name} are at hand, so it learns from scratch: set SKINBOOK_WEIGHTS to a folder that "
        f"holds {name}.safetensors{online}, and run this again.",
        file=sys.stderr,
    )


def _from_file(name: str, file: Path) -> tuple[nn.Module, str, tuple[float, ...], tuple[float, ...]]:
    from safetensors import safe_open

    try:
        with safe_open(file, "pt") as held:
            about = held.metadata() or {}
            state = {key: held.get_tensor(key).float() for key in held.keys()}  # noqa: SIM118 - not a dict
            told = [_three_numbers(about[key]) if key in about else None for key in ("mean", "std")]
    except Exception as error:  # a damaged file can raise nearly anything
        raise SkinbookError(f"The weights file {file} cannot be read ({error}). Fetch it again.") from error
    if about.get("arch", name).split(".")[-1] != name:
        raise SkinbookError(f"{file.name} holds weights of {about['arch']}, and {name} was asked for.")
    model = _create(name, pretrained=False)
    wanted = model.state_dict()
    # torchvision's file names its layers features.0, features.1, …; the row of layers is what is kept here.
    state = {key.removeprefix("features."): value for key, value in state.items()}
    lacking = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    if lacking or any(state[key].shape != wanted[key].shape for key in wanted if key in state):
        raise SkinbookError(
            f"{file.name} does not fit {name}: {lacking[0] if lacking else 'a layer'} is missing or of another shape."
        )
    model.load_state_dict({key: state[key] for key in wanted if key in state}, strict=False)
    mean, std = told[0] or IMAGENET_MEAN, told[1] or IMAGENET_STD
    return model, "lab backbone" if file.name == "lab_backbone.safetensors" else file.name, mean, std


def _three_numbers(text: str) -> tuple[float, ...]:
    numbers = tuple(float(part) for part in text.strip("[]() ").split(","))
    if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
        raise ValueError(f"{text!r:.60} is not a number for each colour")
    return numbers


def local_weights(name: str) -> Path | None:
    """The file in `SKINBOOK_WEIGHTS` (a folder, or the file itself) that holds weights of this network."""
    place = settings().weights
    if place is None:
        return None
    if not place.exists():
        raise SkinbookError(
            f"SKINBOOK_WEIGHTS is {place}, which does not exist. Set it to a folder of .safetensors files."
        )
    files = [place] if place.is_file() else sorted(place.glob("*.safetensors"))
    files = [f for f in files if f.name.startswith((f"{name}.", f"{name}_"))]
    files = [f for f in files if _arch(f) == name or not _is_of_another(f, name)]
    # One that says it is another network's comes last: `_from_file` refuses it where there is no better one.
    return min(files, key=lambda f: _arch(f) not in (None, name), default=None)


def _is_of_another(file: Path, name: str) -> bool:
    """Whether the file's name begins with a longer name that timm knows: resnet50_gn.safetensors is no resnet50."""
    import timm

    words = file.name.split(".")[0].split("_")
    longer = ("_".join(words[:count]) for count in range(len(words), name.count("_") + 1, -1))
    return any(timm.is_model(one) for one in longer)


def _arch(file: Path) -> str | None:
    """The network that a weights file says it is of; None where it says nothing, or cannot be read."""
    from safetensors import safe_open

    try:
        with safe_open(file, "pt") as held:
            told = (held.metadata() or {}).get("arch")
    except Exception:  # `_from_file` says what is wrong with it
        return None
    return told and told.split(".")[-1]


def _create(name: str, pretrained: bool) -> Any:
    if name == "mobilenet_v2":
        import torchvision

        return torchvision.models.mobilenet_v2(weights=None).features
    import timm

    if not timm.is_model(name):
        raise SkinbookError(f"{name!r} is not a network that timm knows; see timm.list_models().")
    architecture, _, tag = name.partition(".")
    if tag and name not in (tags := timm.models.get_arch_pretrained_cfgs(architecture)):
        raise SkinbookError(f"timm knows no weights {name!r}; of {architecture} it knows {', '.join(tags) or 'none'}.")
    try:
        return timm.create_model(name, pretrained=pretrained, num_classes=0, global_pool="")
    except AssertionError as error:  # a few cannot be made without their classifier
        raise _without_map(name, str(error)) from None
    except Exception as error:  # a hub and its client can raise nearly anything
        if not pretrained:
            raise
        reason = str(error).split("\n")[0].removesuffix(".")
        raise SkinbookError(
            f"timm's hub gave no weights of {name} ({reason}). Try again, set SKINBOOK_WEIGHTS to a folder that holds "
            f"{name}.safetensors, or set HF_HUB_OFFLINE=1 to do without them."
        ) from error


def _without_map(name: str, why: str) -> SkinbookError:
    return SkinbookError(
        f"{name} does not give a feature map of any size{f' ({why})' if why else ''}; choose a convolutional network, such "
        "as resnet18."
    )


def _on_hub(name: str) -> bool:
    """Whether timm's hub has weights of a network: of a few (seresnet18) it knows the layers only."""
    if name in WITHOUT_HUB:
        return False
    import timm

    try:
        known = timm.models.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError:  # nobody knows the network: `_create` says so
        return False
    return known is not None and bool(known.has_weights)


def _fetched_before(name: str) -> Path | None:
    """The weights that timm's hub gave for a network at an earlier time; None where the hub's cache has none, or pickles."""
    if not _on_hub(name):
        return None
    import huggingface_hub
    import timm

    known = timm.models.get_pretrained_cfg(name)
    if known is None or not known.hf_hub_id:
        return None
    file = huggingface_hub.try_to_load_from_cache(known.hf_hub_id, "model.safetensors")
    return Path(file) if isinstance(file, str) else None


def _hub_reachable(name: str) -> bool:
    """Whether to ask timm's hub: not when told to stay offline, not for a network it lacks, not when one short try fails.

    The hub's own client keeps trying for about half a minute; a reader without a network should not wait that long.
    """
    offline = os.environ.get("HF_HUB_OFFLINE", "").strip().lower() in ("1", "true", "yes", "on")
    if offline or not _on_hub(name):
        return False
    import socket

    try:
        socket.create_connection(("huggingface.co", 443), timeout=3).close()
    except OSError:
        return False
    return True
