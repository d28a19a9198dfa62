"""A trained model to hand on: weights, classes, preprocessing, temperature, threshold, and what they were measured on.

A bundle is a folder of two files. `bundle.json` can be read by a person; it names the weights file, a safetensors file,
and holds its hash, so that weights which don't belong to it are refused. Nothing in a bundle is a pickle.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skinbook.batches import Batches
from skinbook.config import SkinbookError
from skinbook.diagnoses import DEFAULT_DEFINITION, DIAGNOSES, malignant
from skinbook.evaluation import softmax
from skinbook.files import replaced
from skinbook.networks import Backbone, Classifier

FORMAT = 1
BINARY = ("benign", "malignant")
# What `bundle.json` must hold, and of which kind.
KEYS: dict[str, type | tuple[type, ...]] = {
    "format": int,
    "network": str,
    "stride": (int, type(None)),
    "classes": list,
    "image": int,
    "mean": list,
    "std": list,
    "temperature": (int, float),
    "threshold": (int, float, type(None)),
    "definition": str,
    "split": str,
    "metrics": dict,
    "about": str,
    "weights": str,
    "sha256": str,
}


@dataclass
class Bundle:
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

    def __post_init__(self) -> None:
        self.classes = tuple(self.classes)
        unknown = [name for name in self.classes if name not in DIAGNOSES]
        if unknown and self.classes != BINARY:
            raise SkinbookError(
                f"{unknown[0]!r} is not a diagnosis that skinbook knows, and the classes are not {BINARY}."
            )
        if self.network.head.out_features != len(self.classes):
            raise SkinbookError(
                f"The network gives {self.network.head.out_features} logits, and there are {len(self.classes)} classes."
            )
        if not self.temperature > 0:
            raise SkinbookError(f"The temperature is {self.temperature}; expected a number above 0.")
        malignant("nv", self.definition)  # raises where nobody knows it
        if self.image < 1:
            raise SkinbookError(f"The image side is {self.image}; expected a number of pixels.")

    @property
    def malignant(self) -> np.ndarray:
        """bool (classes,): which columns count as malignant."""
        if self.classes == BINARY:
            return np.array([False, True])
        return np.array([malignant(dx, self.definition) for dx in self.classes])

    def probabilities(self, pixels: np.ndarray, batch_size: int = 64, device: str = "cpu") -> np.ndarray:
        """Calibrated probabilities, float64 (n, classes), of square photographs, uint8 (n, side, side, 3)."""
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.shape[1] != pixels.shape[2]:
            raise SkinbookError(f"Photographs must be uint8 (n, side, side, 3); got {pixels.dtype} {pixels.shape}.")
        if not len(pixels):
            return np.zeros((0, len(self.classes)))
        backbone, labels = self.network.backbone, np.zeros(len(pixels), dtype=np.int64)
        batches = Batches(
            pixels,
            labels,
            np.arange(len(pixels)),
            batch_size,
            size=self.image,
            mean=backbone.mean,
            std=backbone.std,
            device=device,
        )
        self.network.eval().to(device)
        with torch.inference_mode():
            logits = [self.network(batch.inputs).float().cpu().numpy() for batch in batches.epoch()]
        return softmax(np.concatenate(logits) / self.temperature)

    def called_malignant(self, probabilities: np.ndarray) -> np.ndarray:
        """bool (n,): whose malignant probability reaches the threshold.

        Raises
        ------
        SkinbookError
            If no threshold was chosen for this bundle.
        """
        if self.threshold is None:
            raise SkinbookError("This bundle has no operating point: choose a threshold on validation photographs.")
        return probabilities[:, self.malignant].sum(axis=1) >= self.threshold

    def save(self, folder: Path) -> Path:
        """Write the bundle into `folder`, in place of the one there if any; returns `folder`."""
        from safetensors.torch import save

        folder = Path(folder)
        backbone = self.network.backbone
        data = save(
            {key: value.detach().cpu().clone().contiguous() for key, value in self.network.state_dict().items()}
        )
        sha256 = hashlib.sha256(data).hexdigest()
        weights = folder / f"weights-{sha256[:12]}.safetensors"
        with replaced(weights) as partial:
            partial.write_bytes(data)
        about = {
            "format": FORMAT,
            "about": self.about,
            "network": backbone.name,
            "stride": backbone.asked_stride,
            "classes": list(self.classes),
            "image": self.image,
            "mean": list(backbone.mean),
            "std": list(backbone.std),
            "temperature": float(self.temperature),
            "threshold": None if self.threshold is None else float(self.threshold),
            "definition": self.definition,
            "split": self.split,
            "metrics": dict(self.metrics),
            "weights": weights.name,
            "sha256": sha256,
        }
        # The weights are there before anything names them: a bundle cut off here is the old one, whole.
        with replaced(folder / "bundle.json") as partial:
            partial.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        for old in folder.glob("weights-*.safetensors"):
            if old != weights:
                old.unlink(missing_ok=True)
        return folder

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
        file = folder / "bundle.json"
        about = _read(file)
        weights = folder / about["weights"]
        if weights.parent != folder:
            raise SkinbookError(f"{file} names weights outside its folder ({about['weights']!r}). Use another bundle.")
        try:
            data = weights.read_bytes()
        except OSError as error:
            raise SkinbookError(f"{weights} cannot be read ({error.strerror}). Fetch the bundle again.") from None
        if hashlib.sha256(data).hexdigest() != about["sha256"]:
            raise SkinbookError(f"{weights} is not the file that bundle.json was written with. Fetch the bundle again.")
        backbone = Backbone(about["network"], "none", about["stride"])
        backbone.mean, backbone.std = tuple(about["mean"]), tuple(about["std"])
        backbone.weights = f"bundle: {about['sha256'][:12]}"
        network = Classifier(backbone, len(about["classes"]))
        try:
            network.load_state_dict(load(data))
        except (SafetensorError, RuntimeError) as error:
            reason = str(error).split("\n")[0]
            raise SkinbookError(
                f"{weights} does not hold a {about['network']} ({reason}). Use another bundle."
            ) from None
        kept = ("image", "temperature", "threshold", "definition", "split", "metrics", "about")
        return cls(network.eval(), tuple(about["classes"]), **{key: about[key] for key in kept})


def _read(file: Path) -> dict[str, Any]:
    """What `bundle.json` holds, every key there and of its kind."""
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SkinbookError(
            f"{file} cannot be read ({error.strerror}). Name the folder of a bundle: bundle.json and its weights."
        ) from None
    except ValueError as error:
        raise SkinbookError(f"{file} is not JSON ({error}). Fetch the bundle again.") from None
    for key, kind in KEYS.items():
        if not isinstance(about, dict) or key not in about or not _is(about[key], kind):
            raise SkinbookError(f"{file} has no usable {key!r}. Fetch the bundle again, or save it anew.")
    if about["format"] != FORMAT:
        raise SkinbookError(f"{file} has format {about['format']}, and this skinbook reads {FORMAT}. Update skinbook.")
    for key, length in (("mean", 3), ("std", 3), ("classes", None)):
        kind = str if key == "classes" else (int, float)
        if not all(_is(part, kind) for part in about[key]) or length not in (None, len(about[key])):
            raise SkinbookError(f"{file} has no usable {key!r}. Fetch the bundle again, or save it anew.")
    return about


def _is(value: Any, kind: type | tuple[type, ...]) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)
