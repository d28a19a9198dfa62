"""The strongest outline: the U-Net of chapter 08 on every training photograph, over several seeds, judged on the test once.

Nothing is chosen here but the recipe below: the last epoch is kept, and the threshold is one half.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits

from skinbook import ledger
from skinbook.augment import Augment
from skinbook.batches import Batches
from skinbook.config import SkinbookError, settings
from skinbook.data import pixels
from skinbook.evaluation import Evaluation, Interval, interval
from skinbook.files import replaced
from skinbook.keyed import key_bits
from skinbook.losses import dice_loss
from skinbook.memory import keep_freed_memory
from skinbook.networks import is_short_of_memory, short_of_memory
from skinbook.segmentation import UNet, iou, predict_masks
from skinbook.strongest import Lesions, ledger_run
from skinbook.training import faster_precision

NAME = "strongest_outline"
LIMIT = 0.65  # an overlap below it counts as none: ISIC 2018, Task 1 (Codella et al. 2019, arXiv 1902.03368)
CHANGES = Augment(flip=True, rotate=45, brightness=0.2, contrast=0.2, saturation=0.2, hue=0.02)


@dataclass(frozen=True)
class Outliner:
    """A U-Net and its training. image : side in pixels, a multiple of 32. decoder : channels of its five steps."""

    network: str = "test_resnet"
    weights: str = "lab"
    image: int = 128
    decoder: tuple[int, ...] = (64, 48, 32, 24, 16)
    epochs: int = 8
    learning_rate: float = 2e-3
    batch_size: int = 16
    precision: str = "bf16"


def train(
    recipe: Outliner,
    seed: int,
    lesions: Lesions,
    folder: Path,
    cache: Path,
    device: str = "cpu",
    log: Callable[[str], None] = print,
) -> Path:
    """Train once and keep the overlap of each test photograph; returns the file, which is not made again if it is there.

    SkinbookError if the loss stops being a number (nothing is kept then), or the precision is fp16.
    """
    precision = precision_of(recipe)
    fields = asdict(recipe) | {"precision": precision}
    of = [fields, seed, lesions.split.fingerprint, *lesions.seen(recipe.weights, "masks")]
    known_by = key_bits(json.dumps(of, sort_keys=True))
    kept = folder / f"outline-{seed}-{known_by:016x}.json"
    if kept.exists():
        return kept
    folder.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    photographs = pixels.build(lesions.dataset, recipe.image, cache).pixels
    masks = pixels.build(lesions.dataset, recipe.image, cache, what="masks").pixels
    torch.manual_seed(seed)
    network = UNet(recipe.network, recipe.weights, recipe.decoder).to(device).to(memory_format=torch.channels_last)

    def batches(part: str, **options: Any) -> Batches:
        about: dict[str, Any] = {"mean": network.mean, "std": network.std, "device": device, "masks": masks}
        rows = lesions.rows[part]
        return Batches(photographs, lesions.labels, rows, recipe.batch_size, **about, **options)

    names = lesions.dataset.table["image_id"].tolist()
    learn = batches("train", shuffle=True, augment=CHANGES, seed=seed)
    if precision == "auto":
        first: Any = next(learn.epoch(0))
        precision = faster_precision(network, replace(first, labels=first.masks), loss_of)
    optimizer = torch.optim.AdamW(network.parameters(), lr=recipe.learning_rate)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, recipe.epochs * len(learn))
    for epoch in range(recipe.epochs):
        network.train()
        losses = []
        for number, batch in enumerate(learn.epoch(epoch)):
            wanted: Any = batch.masks
            with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
                logits = network(batch.inputs)
            loss = loss_of(logits, wanted)
            if not torch.isfinite(loss):
                where = f"seed {seed}, epoch {epoch + 1}, batch {number + 1}"
                those = ", ".join(names[row] for row in batch.rows)
                raise SkinbookError(
                    f"The loss is {loss.item()} in {where} ({those}). Lower the learning rate, or look there."
                )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
            losses.append(loss.item())
        # The last step may have spoiled weights that no loss has seen; their answers would count as a miss.
        if not all(torch.isfinite(tensor).all() for tensor in network.state_dict().values()):
            raise SkinbookError(f"Seed {seed}, epoch {epoch + 1}: the weights are no numbers. Lower the learning rate.")
        overlap = iou(predict_masks(network, batches("validation")) >= 0.5, masks[lesions.rows["validation"]] > 0)
        log(f"seed {seed}, epoch {epoch + 1}: loss {np.mean(losses):.3f}, validation IoU {overlap.mean():.3f}")
    overlap = iou(predict_masks(network, batches("test")) >= 0.5, masks[lesions.rows["test"]] > 0)
    found = {
        "recipe": asdict(recipe),
        "precision": precision,
        "seed": seed,
        "split": lesions.split.fingerprint,
        "weights": network.weights,
        "minutes": (time.monotonic() - started) / 60,
        "package": ledger.package_hash(),
        "code": f"{key_bits(json.dumps(asdict(recipe), sort_keys=True)):016x}"[:12],
        **ledger.surroundings(device),
        "test overlap": [round(float(one), 5) for one in overlap],
    }
    with replaced(kept) as partial:
        partial.write_text(json.dumps(found) + "\n", encoding="utf-8")
    return kept


def precision_of(recipe: Outliner) -> str:
    """The precision that a recipe or `SKINBOOK_PRECISION` asks for; SkinbookError if it is fp16."""
    precision = settings().precision or recipe.precision
    if precision == "fp16":  # whose gradients would have to be scaled
        raise SkinbookError(
            "The outline is not trained in fp16: set SKINBOOK_PRECISION to fp32, bf16 or auto, or unset it."
        )
    return precision


def loss_of(logits: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """What a training lowers, in fp32 whatever the precision."""
    return binary_cross_entropy_with_logits(logits.float(), wanted) + dice_loss(logits.float(), wanted)


def reports(overlap: np.ndarray, lesions: Lesions) -> dict[str, Interval]:
    """Means over the test photographs, with intervals over lesions: overlap is the IoU of each, float (n,).

    A Dice is 2 IoU / (1 + IoU) of the same photograph.
    """
    rows = lesions.rows["test"]
    names = lesions.dataset.table["lesion_id"].to_numpy(dtype=object)[rows]
    weights = Evaluation(np.zeros(len(rows), int), np.ones((len(rows), 1)), names, ("lesion",)).weights
    values = {
        "Dice": 2 * overlap / (1 + overlap),
        "IoU": overlap,
        "thresholded Jaccard": np.where(overlap >= LIMIT, overlap, 0.0),
        "share of failures": (overlap < LIMIT).astype(float),
    }
    return {
        name: interval(float(value.mean()), weights @ value / weights.sum(axis=1)) for name, value in values.items()
    }


def run(
    edition: str,
    seeds: int = 3,
    recorded: bool = False,
    recipe: Outliner | None = None,
    folder: Path | None = None,
    device: str = "cpu",
    tell: Callable[[str], None] = print,
) -> list[Path]:
    """Train every seed that is not trained yet; with `recorded`, write what the test lesions gave into the ledger."""
    from skinbook.chapter import repeatable_sums
    from skinbook.data import catalog

    about, recipe = settings(), recipe or Outliner()
    torch.set_num_threads(about.threads)
    keep_freed_memory()
    repeatable_sums()
    lesions = Lesions.of(catalog.load(edition, about))
    folder = folder or about.cache / "strongest" / edition
    try:
        files = [train(recipe, seed, lesions, folder, about.cache, device, tell) for seed in range(seeds)]
    except Exception as error:
        if not is_short_of_memory(error):
            raise
        raise short_of_memory(recipe.batch_size, device) from None
    if recorded:
        # Files of before hold no precision: then it was always the recipe's.
        held = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        kept = [{"precision": one["recipe"]["precision"]} | one for one in held]
        model = f"U-Net with {recipe.network}, {recipe.image} px, {recipe.epochs} epochs"
        runs = {one["seed"]: ledger_run(reports(np.array(one["test overlap"]), lesions), model, one) for one in kept}
        entry = ledger.entry(runs, datetime.now(UTC).strftime("%Y-%m-%d"))
        tell(f"Recorded in data/results/{ledger.write('results', edition, 'full', NAME, entry).name}")
    return files
