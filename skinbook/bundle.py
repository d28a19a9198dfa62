"""A trained model to hand on: weights, classes, preprocessing, temperature, threshold, and what they were measured on.

A bundle is a folder of two files. `bundle.json` can be read by a person; it names the weights file, a safetensors file,
and holds its hash, so that weights which don't belong to it are refused. Nothing in a bundle is a pickle. The weights
file also holds what tells photographs apart that are unlike those of training (see `skinbook.novelty`), and a number of
64 bits for each photograph and lesion that the model has seen, so that nobody is praised for recognising them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from skinbook.augment import augmented
from skinbook.card import BINARY, Answers, Kinds, Model, must_be_photographs, naming, read, sealed_file, write
from skinbook.config import SkinbookError
from skinbook.diagnoses import DEFAULT_DEFINITION
from skinbook.evaluation import softmax
from skinbook.files import alone_in, replaced
from skinbook.keyed import key_bits
from skinbook.networks import Backbone, Classifier, in_batches_that_fit
from skinbook.novelty import ARRAYS, Novelty, mahalanobis

__all__ = ["BINARY", "Bundle", "Seen"]

FORMAT = 2
CARD = "bundle.json"
# What `bundle.json` must hold beside what every card holds.
KEYS: Kinds = {
    "network": str,
    "stride": (int, type(None)),
    "split": str,
    "metrics": dict,
    "weights": str,
}


@dataclass(frozen=True)
class Seen:
    """Which photographs and lesions trained or chose a model, as sorted uint64 hashes of their names.

    Eight bytes each (52 kB for the 6,500 training photographs of HAM10000) are enough that no stranger is taken for one
    of them, and neither names nor pixels are handed on.
    """

    images: np.ndarray
    lesions: np.ndarray

    @classmethod
    def of(cls, images: Iterable[str], lesions: Iterable[str]) -> Seen:
        """From image_ids and lesion_ids."""
        return cls(np.unique(_hashed("image", images)), np.unique(_hashed("lesion", lesions)))

    def knows(self, images: Iterable[str], lesions: Iterable[str]) -> np.ndarray:
        """bool (n,): which of these photographs it has seen, or another one of their lesion."""
        images, lesions = [str(name) for name in images], [str(name) for name in lesions]
        found = np.zeros(len(images), dtype=bool)
        for spelled in (str, str.upper, str.lower):  # a table may spell them otherwise than its collection does
            found |= np.isin(_hashed("image", map(spelled, images)), self.images)
            found |= np.isin(_hashed("lesion", map(spelled, lesions)), self.lesions)
        return found


def _hashed(kind: str, names: Iterable[str]) -> np.ndarray:
    return np.array([key_bits((kind, str(name))) for name in names], dtype=np.uint64)


@dataclass
class Bundle(Model):
    """A classifier with all that it takes to use it.

    Parameters
    ----------
    network : a `Classifier`; its logits have a column for each of `classes`.
    classes : codes of diagnoses, or ("benign", "malignant").
    image : side in pixels of the square photographs that the network sees.
    temperature : logits are divided by it before they become probabilities.
    threshold : malignant probability from which on a lesion is called malignant; None where none was chosen.
    definition : which diagnoses count as malignant (a key of `diagnoses.MALIGNANT`).
    split : fingerprint of the split it was trained on. metrics : name to value, or to [value, low, high].
    about : a sentence on what it was trained on.
    novelty : what tells photographs apart that are unlike those of training; None where nothing does.
    seen : the photographs and lesions that trained or chose it; None where that is not known.
    """

    network: Classifier
    classes: tuple[str, ...]
    image: int
    temperature: float = 1.0
    threshold: float | None = None
    definition: str = DEFAULT_DEFINITION
    split: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    about: str = ""
    novelty: Novelty | None = None
    seen: Seen | None = None

    def __post_init__(self) -> None:
        self.classes = tuple(self.classes)
        self.check()
        if self.network.head.out_features != len(self.classes):
            raise SkinbookError(
                f"The network gives {self.network.head.out_features} logits, and there are {len(self.classes)} classes."
            )

    @property
    def limit(self) -> float | None:
        return None if self.novelty is None else self.novelty.limit

    @property
    def refused(self) -> float | None:
        return None if self.novelty is None else self.novelty.refused

    def outputs(
        self, pixels: np.ndarray, batch_size: int = 64, device: str = "cpu", rows: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Logits, float32 (n, classes), and features, float32 (n, d), of square photographs, uint8 (n, side, side, 3).

        rows : which of the photographs, int (n,); all where None. They are read a batch at a time, so that those of a
        store on the disk need not fit into memory.

        Raises
        ------
        SkinbookError
            If there are no photographs, they are of another shape or type, or memory does not suffice for one of them (if
            not for a batch, there are fewer in it).
        """
        must_be_photographs(pixels)
        if not len(pixels if rows is None else rows):
            raise SkinbookError("There are no photographs to look at.")
        return in_batches_that_fit(lambda size: self._outputs(pixels, size, device, rows), batch_size, device)

    def _outputs(
        self, pixels: np.ndarray, batch_size: int, device: str, rows: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray]:
        backbone = self.network.backbone
        mean, std = (torch.tensor(values, device=device) for values in (backbone.mean, backbone.std))
        self.network.eval().to(device).to(memory_format=torch.channels_last)  # half the time on a CPU
        logits: list[np.ndarray] = []
        features: list[np.ndarray] = []
        with torch.inference_mode():
            for start in range(0, len(pixels if rows is None else rows), batch_size):
                part = slice(start, start + batch_size)
                taken = pixels[part if rows is None else rows[part]]
                some = torch.from_numpy(np.ascontiguousarray(taken)).to(device)
                inputs, _ = augmented(some, None, None, self.image, mean, std)
                inputs = inputs.contiguous(memory_format=torch.channels_last)
                for kept, values in zip((logits, features), logits_and_features(self.network, inputs), strict=True):
                    kept.append(values.float().cpu().numpy())
        return np.concatenate(logits), np.concatenate(features)

    def answers(
        self, pixels: np.ndarray, batch_size: int = 64, device: str = "cpu", rows: np.ndarray | None = None
    ) -> Answers:
        """Calibrated probabilities, and distances from the training photographs, of uint8 (n, side, side, 3).

        rows : which of the photographs, as for `outputs`.
        """
        must_be_photographs(pixels)
        if not len(pixels if rows is None else rows):
            return Answers(np.zeros((0, len(self.classes))), None if self.novelty is None else np.zeros(0))
        logits, features = self.outputs(pixels, batch_size, device, rows)
        distances = None if self.novelty is None else self.novelty.distances(features)
        return Answers(softmax(logits / self.temperature), distances)

    def probabilities(self, pixels: np.ndarray, batch_size: int = 64, device: str = "cpu") -> np.ndarray:
        """Calibrated probabilities, float64 (n, classes), of square photographs, uint8 (n, side, side, 3)."""
        return self.answers(pixels, batch_size, device).probabilities

    def save(self, folder: Path) -> Path:
        """Write the bundle into `folder`, in place of the one there if any; returns `folder`.

        Raises
        ------
        SkinbookError
            If the folder cannot be written, the disk is full, or something was set that no bundle can have; a bundle
            that was there is as it was.
        """
        from safetensors.torch import save

        self.check()  # or nobody could open what is written
        folder = Path(folder)
        backbone = self.network.backbone
        tensors = {f"network/{key}": value for key, value in self.network.state_dict().items()}
        if self.novelty is not None:
            tensors |= {f"novelty/{name}": torch.from_numpy(getattr(self.novelty, name)) for name in ARRAYS}
        if self.seen is not None:
            for name in ("images", "lesions"):
                tensors[f"seen/{name}"] = torch.from_numpy(getattr(self.seen, name).view(np.int64))
        data = save({key: value.detach().cpu().clone().contiguous() for key, value in tensors.items()})
        sha256 = hashlib.sha256(data).hexdigest()
        weights = folder / f"weights-{sha256[:12]}.safetensors"
        with alone_in(folder):  # or one process would remove the weights that another one's card names
            with replaced(weights) as partial:
                partial.write_bytes(data)
            # The weights are there before anything names them: a bundle cut off here is the old one, whole.
            write(
                folder / CARD,
                {
                    "format": FORMAT,
                    "about": self.about,
                    "network": backbone.name,
                    "stride": backbone.asked_stride,
                    "mean": list(backbone.mean),
                    "std": list(backbone.std),
                    **self.told(),
                    "weights": weights.name,
                    "sha256": sha256,
                },
            )
            for old in folder.glob("weights-*.safetensors"):
                if old != weights:
                    old.unlink(missing_ok=True)
        return folder

    def told(self) -> dict[str, Any]:
        """What a card says of any model, whichever way it goes out."""
        return {
            "classes": list(self.classes),
            "image": self.image,
            "temperature": float(self.temperature),
            "threshold": None if self.threshold is None else float(self.threshold),
            "definition": self.definition,
            "novelty": self.novelty and {"limit": self.novelty.limit, "refused": self.novelty.refused},
            "split": self.split,
            "metrics": dict(self.metrics),
        }

    def export_onnx(self, folder: Path) -> Path:
        """Write the model as ONNX, its card beside it (see `skinbook.onnx_model`); returns the ONNX file."""
        from skinbook.onnx_model import export

        return export(self, Path(folder))

    @classmethod
    def load(cls, folder: Path) -> Bundle:
        """The bundle in a folder.

        Raises
        ------
        SkinbookError
            If a file is missing, damaged, or not of this bundle.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        folder = Path(folder)
        file = folder / CARD
        card = read(file, KEYS, FORMAT)
        data = sealed_file(folder, card["weights"], card["sha256"], file)
        try:
            tensors = load(data)
            weights = {k[8:]: v for k, v in tensors.items() if k.startswith("network/")}
            _must_fit(card["network"], card["stride"], len(card["classes"]), weights)
            backbone = Backbone(card["network"], "none", card["stride"])
            network = Classifier(backbone, len(card["classes"]))
            network.load_state_dict(weights)
            novelty, seen = _novelty(card["novelty"], tensors), _seen(tensors)
        except (SafetensorError, SkinbookError, RuntimeError, KeyError, ValueError, AssertionError) as error:
            reason = str(error).split("\n")[0].removesuffix(".")
            raise SkinbookError(
                f"{folder / card['weights']} does not hold a {card['network']} ({reason}). Use another bundle."
            ) from None
        backbone.mean, backbone.std = tuple(card["mean"]), tuple(card["std"])
        backbone.weights = f"bundle: {card['sha256'][:12]}"
        kept = ("image", "temperature", "threshold", "definition", "split", "metrics", "about")
        rest = {key: card[key] for key in kept}
        with naming(file):
            return cls(network.eval(), tuple(card["classes"]), **rest, novelty=novelty, seen=seen)


def _must_fit(name: str, stride: int | None, classes: int, weights: Mapping[str, torch.Tensor]) -> None:
    """ValueError if weights are not those of a network. It is not made for that: a card may name one of gigabytes."""
    import timm  # noqa: F401 - imported within the context below, it and what it imports would make tensors without memory

    try:
        with torch.device("meta"):
            wanted = Classifier(Backbone(name, "none", stride), classes).state_dict()
    except (NotImplementedError, RuntimeError):  # a few networks cannot be made without memory
        return
    odd = [key for key in {**wanted, **weights} if key not in wanted or key not in weights]
    odd += [key for key in wanted if key in weights and wanted[key].shape != weights[key].shape]
    if odd:
        raise ValueError(f"{odd[0]} is missing, of another shape, or too much")


def logits_and_features(network: Classifier, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (n, classes), and the features that tell strange photographs apart (n, d).

    Those are the means of the early feature maps, and of the photograph itself the mean and spread of each colour and
    how much neighbouring pixels differ. A network's last map knows little but what tells diagnoses apart, and many an
    ordinary photograph looks like a lesion to it; the early ones still know what the whole picture is made of.
    """
    last, early = network.backbone.with_early_maps(inputs)
    pooled = last.mean(dim=(2, 3))
    means = [m.mean(dim=(2, 3)) for m in early] or [pooled]
    steps = (inputs[:, :, 1:] - inputs[:, :, :-1], inputs[:, :, :, 1:] - inputs[:, :, :, :-1])
    colours = [inputs.mean(dim=(2, 3)), inputs.std(dim=(2, 3), correction=0)]
    sharpness = [(step.abs().mean(dim=(2, 3)) + 0.01).log() for step in steps]
    return network.head(pooled), torch.cat([*means, *colours, *sharpness], dim=1)


class FromPixels(nn.Module):
    """The whole way from pixels to answers as one module, which is what an ONNX file holds.

    It takes photographs, uint8 (n, image, image, 3), and gives probabilities, float32 (n, classes), and, where the bundle
    can tell, distances, float32 (n,).
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        self.network, self.temperature = bundle.network, float(bundle.temperature)
        for name in ("mean", "std"):
            values = 255 * torch.tensor(getattr(bundle.network.backbone, name))
            self.register_buffer(name, values[:, None, None])
        self.tells = bundle.novelty is not None
        if bundle.novelty is not None:
            for name in ARRAYS:
                self.register_buffer(name, torch.from_numpy(getattr(bundle.novelty, name)))

    def forward(self, photographs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        inputs = (photographs.permute(0, 3, 1, 2).float() - self.mean) / self.std
        logits, features = logits_and_features(self.network, inputs)
        probabilities = torch.softmax(logits / self.temperature, dim=1)
        if not self.tells:
            return (probabilities,)
        arrays = (getattr(self, name) for name in ARRAYS)
        return probabilities, mahalanobis(features, *arrays)


def _novelty(told: Mapping[str, Any] | None, tensors: Mapping[str, torch.Tensor]) -> Novelty | None:
    if told is None:
        return None
    arrays = {name: tensors[f"novelty/{name}"].float().numpy() for name in ARRAYS}
    return Novelty(**arrays, limit=float(told["limit"]), refused=float(told["refused"]))


def _seen(tensors: Mapping[str, torch.Tensor]) -> Seen | None:
    if "seen/images" not in tensors:
        return None
    return Seen(*(tensors[f"seen/{name}"].long().numpy().view(np.uint64) for name in ("images", "lesions")))
