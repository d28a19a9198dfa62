"""A bundle as ONNX: one file that any ONNX runtime can use, without torch and without skinbook.

The graph takes square photographs as they are decoded, uint8 (n, side, side, 3) in RGB, n of any size; normalisation,
temperature and softmax are inside. It gives `probabilities`, float32 (n, classes), and `distances`, float32 (n,), where
the bundle can tell how unlike training a photograph is. What must happen before (upright, sRGB, the centre square,
reduced with antialiasing) stands in the file's metadata, with the classes, the threshold and the limit of the distances;
`onnx.json` beside it says the same, sealed, with the file's hash.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from skinbook.card import Answers, Kinds, Model, must_be_photographs, naming, plain, read, sealed_file, write
from skinbook.config import SkinbookError
from skinbook.files import alone_in, replaced

if TYPE_CHECKING:
    from skinbook.bundle import Bundle

FORMAT = 1
CARD = "onnx.json"
OPSET = 18
PREPROCESSING = (
    "Turn the photograph upright by its EXIF mark and bring it to sRGB; cut the largest centred square; reduce it to "
    "`image` × `image` pixels, bicubic with antialiasing; give uint8 RGB, (n, image, image, 3). Nothing else."
)
KEYS: Kinds = {
    "preprocessing": str,
    "bundle": str,
    "model": str,
}


def _needed(name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(name)
    except ImportError:
        raise SkinbookError(
            f"This needs {name}, which is not installed: pip install --upgrade onnx onnxruntime."
        ) from None


def export(bundle: Bundle, folder: Path) -> Path:
    """Write `model-<hash>.onnx` and `onnx.json` into a folder, in place of those there if any; returns the ONNX file.

    Raises
    ------
    SkinbookError
        If onnx is not installed, or the network cannot be exported.
    """
    import warnings

    import torch

    from skinbook.bundle import FromPixels

    onnx = _needed("onnx")
    module = FromPixels(bundle).eval().cpu()
    example = torch.zeros(2, bundle.image, bundle.image, 3, dtype=torch.uint8)
    outputs = ["probabilities", "distances"][: 2 if bundle.novelty is not None else 1]
    try:
        with TemporaryDirectory() as scratch, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's own, on things that a reader cannot change
            torch.onnx.export(
                module,
                (example,),
                Path(scratch) / "model.onnx",
                input_names=["photographs"],
                output_names=outputs,
                dynamic_axes={name: {0: "n"} for name in ("photographs", *outputs)},
                opset_version=OPSET,
                # The exporter that every torch from 2.6 has, and that needs no other package; the newer one failed on
                # torch 2.6 and took 6 s where this takes 0.3.
                dynamo=False,
            )
            graph = onnx.load(Path(scratch) / "model.onnx")
    except Exception as error:  # the exporter can raise nearly anything
        reason = str(error).strip().split("\n")[0]
        raise SkinbookError(f"{bundle.network.backbone.name} could not be exported to ONNX ({reason}).") from error
    backbone = bundle.network.backbone
    told = plain(
        {
            **bundle.told(),
            "about": bundle.about,
            "mean": list(backbone.mean),
            "std": list(backbone.std),
            "preprocessing": PREPROCESSING,
        }
    )
    for key, value in told.items():
        entry = graph.metadata_props.add()
        entry.key, entry.value = key, value if isinstance(value, str) else json.dumps(value)
    onnx.checker.check_model(graph)
    data = graph.SerializeToString(deterministic=True)
    sha256 = hashlib.sha256(data).hexdigest()
    file = folder / f"model-{sha256[:12]}.onnx"
    with alone_in(folder):
        with replaced(file) as partial:
            partial.write_bytes(data)
        named = {"bundle": backbone.weights, "model": file.name, "sha256": sha256}
        write(folder / CARD, {"format": FORMAT, **told, **named})
        for old in folder.glob("model-*.onnx"):
            if old != file:
                old.unlink(missing_ok=True)
    return file


class OnnxModel(Model):
    """An exported model, run by ONNX Runtime on the CPU. It answers as its bundle does, and needs no torch."""

    seen = None

    def __init__(self, card: dict[str, Any], session: Any) -> None:
        self.classes, self.image = tuple(card["classes"]), card["image"]
        self.temperature, self.threshold = card["temperature"], card["threshold"]
        self.definition, self.about = card["definition"], card["about"]
        self.split, self.metrics = card.get("split", ""), card.get("metrics", {})
        self.novelty, self.session = card["novelty"] or {}, session
        self.check()

    @property
    def limit(self) -> float | None:
        return self.novelty.get("limit")

    @property
    def refused(self) -> float | None:
        return self.novelty.get("refused")

    def answers(self, pixels: np.ndarray, batch_size: int = 64, device: str = "cpu") -> Answers:
        """Answers for square photographs, uint8 (n, image, image, 3); always computed on the CPU."""
        must_be_photographs(pixels)
        if pixels.shape[1] != self.image:
            raise SkinbookError(f"This model takes photographs of {self.image} pixels a side; got {pixels.shape[1]}.")
        found: list[list[np.ndarray]] = []
        for start in range(0, len(pixels), batch_size):
            some = np.ascontiguousarray(pixels[start : start + batch_size])
            found.append(self.session.run(None, {"photographs": some}))
        if not found:
            return Answers(np.zeros((0, len(self.classes))), None if self.limit is None else np.zeros(0))
        columns = [np.concatenate(parts).astype(np.float64) for parts in zip(*found, strict=True)]
        return Answers(columns[0], columns[1] if self.limit is not None else None)

    @classmethod
    def load(cls, folder: Path) -> OnnxModel:
        """The exported model in a folder.

        Raises
        ------
        SkinbookError
            If onnxruntime is not installed, or a file is missing, damaged, or not of this model.
        """
        runtime = _needed("onnxruntime")
        folder = Path(folder)
        card = read(folder / CARD, KEYS, FORMAT)
        data = sealed_file(folder, card["model"], card["sha256"], folder / CARD)
        try:
            session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's own kinds of errors
            reason = str(error).strip().split("\n")[0]
            raise SkinbookError(f"{folder / card['model']} is not a model that can be run ({reason}).") from None
        with naming(folder / CARD):
            model = cls(card, session)
        side, classes = model.image, len(model.classes)
        inputs = [(one.name, one.type, one.shape[1:]) for one in session.get_inputs()]
        outputs = [(one.name, one.shape[1:]) for one in session.get_outputs()]
        wanted: list[tuple[str, list[int]]] = [("probabilities", [classes])]
        wanted += [("distances", [])] if model.limit is not None else []
        if inputs != [("photographs", "tensor(uint8)", [side, side, 3])] or outputs != wanted:
            raise SkinbookError(
                f"{folder / card['model']} is not the model that {CARD} describes: it takes {inputs} and gives {outputs}."
            )
        return model
