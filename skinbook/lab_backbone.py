"""The lab's own pretrained backbone: what `python -m skinbook.lab_backbone` makes.

It learns to see structures (a network, globules, vessels, ...) and a few traits of a lesion's build, on generated
lesions that have no diagnosis and are not the lab's. Transfer learning on the lab is then real transfer: the backbone
knows what dermoscopy looks like, and nothing of diagnoses.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from skinbook.config import book_data
from skinbook.data import dermoscopy, lab
from skinbook.data.dermoscopy import SOURCES, STRUCTURES, Photograph
from skinbook.progress import bar

ARCH = "test_resnet"  # timm's: 0.37 million parameters, 96 features
SIZE = 64  # pixels; the lab's photographs halved
LESIONS, EPOCHS = 4000, 12
# Above these values a trait of the build counts as present: about half of the lesions have it.
TRAITS = {
    "size": 0.49,
    "asymmetry": 0.18,
    "border": 0.10,
    "melanin": 0.4,
    "blood": 0.24,
    "deep": 0.06,
    "variegation": 0.27,
}
LABELS = (*STRUCTURES, *TRAITS)


def examples(numbers: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Photographs, uint8 (n, 64, 64, 3), and what they show, int64 (n, len(LABELS)) of 0 and 1."""
    images, labels = [], []
    for number in numbers:
        subject = dermoscopy.mixed_lesion(("lab backbone", number))
        image = dermoscopy.render(subject, Photograph(1, SOURCES[number % 2])).image
        halved = image.reshape(SIZE, 2, SIZE, 2, 3).mean(axis=(1, 3))
        images.append(np.rint(halved).astype(np.uint8))
        present = [name in subject.structures for name in STRUCTURES]
        labels.append([*present, *(subject.build[name] > TRAITS[name] for name in TRAITS)])
    return np.stack(images), np.asarray(labels, np.int64)


def pretrain(file: Path, lesions: int = LESIONS, epochs: int = EPOCHS, log=print) -> dict[str, float]:
    """Draw lesions, train the backbone on their structures, and write its weights (float16 safetensors, 0.8 MB).

    Returns
    -------
    The ROC AUC of each structure and trait on a tenth of the lesions that were kept aside.
    """
    import torch

    from skinbook.augment import Augment
    from skinbook.batches import Batches
    from skinbook.evaluation import roc_auc
    from skinbook.networks import Backbone, Classifier
    from skinbook.training import fit, predict

    with bar(lesions, "drawing lesions", unit="lesion") as progress:
        parts = []
        for part in lab.in_parallel(examples, list(range(lesions))):
            parts.append(part)
            progress.update(len(part[0]))
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    torch.manual_seed(0)
    network = Classifier(Backbone(ARCH), len(LABELS))
    mean, std = network.backbone.mean, network.backbone.std
    held = np.arange(lesions) >= 0.9 * lesions
    change = Augment(
        flip=True, rotate=180, zoom=(0.9, 1.2), shift=0.05, brightness=0.15, contrast=0.15, saturation=0.15, hue=0.02
    )
    train = Batches(images, labels, np.flatnonzero(~held), 32, augment=change, shuffle=True, mean=mean, std=std)

    def loss(logits, targets):
        return torch.nn.functional.binary_cross_entropy_with_logits(logits, targets.float())

    fit(network, train, epochs=epochs, learning_rate=3e-3, weight_decay=0.05, loss=loss, log=log)
    logits = predict(network, Batches(images, labels, np.flatnonzero(held), 128, mean=mean, std=std))
    ones = np.ones((1, int(held.sum())))
    areas = {
        name: round(float(roc_auc(labels[held, k] == 1, logits[:, k], ones)[0]), 3) for k, name in enumerate(LABELS)
    }
    save(network.backbone, file, lesions, epochs)
    return areas


def save(backbone, file: Path, lesions: int, epochs: int) -> None:
    """Write the weights as float16, with how they came to be in the file's header."""
    from safetensors.torch import save_file

    from skinbook.files import replaced

    weights = {
        name: value.detach().cpu().half().contiguous()
        for name, value in backbone.model.state_dict().items()
        if value.is_floating_point()
    }
    about = {
        "arch": ARCH,
        "mean": ", ".join(map(str, backbone.mean)),
        "std": ", ".join(map(str, backbone.std)),
        "trained": f"from scratch by skinbook.lab_backbone on the structures of {lesions} generated lesions without "
        f"diagnoses, none of them the lab's; {SIZE} pixels, {epochs} epochs",
        "predicts": ", ".join(LABELS),
        "licence": "MIT",
    }
    with replaced(file) as partial:
        save_file(weights, partial, about)


if __name__ == "__main__":
    for label, area in pretrain(book_data("lab_backbone.safetensors")).items():
        print(f"{label:15s} ROC AUC {area:.3f}")
