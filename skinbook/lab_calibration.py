"""Does the lab behave like real lesions? Five measurements, over several seeds, kept in `data/lab_calibration.json`.

`python -m skinbook.lab_calibration` measures them anew, about three minutes a seed on two idle cores. The aims:

| measurement                                                                       | aim           | HAM10000 |
|-----------------------------------------------------------------------------------|---------------|----------|
| balanced accuracy on unseen lesions of a small network from scratch               | 0.70 to 0.90  |          |
| the same of a linear head on the lab's frozen backbone (and of a random backbone) | 0.70 to 0.90  |          |
| how far other photographs of the test lesions flatter the first (paired)          | at least 0.05 |          |
| malignant ROC AUC of age, sex and site alone                                      | 0.75 to 0.82  | 0.78     |
| the same with `dx_type`                                                           | 0.85 to 0.92  | 0.88     |
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd

from skinbook.config import book_data, settings
from skinbook.data import lab, pixels
from skinbook.data.schema import Dataset
from skinbook.diagnoses import malignant
from skinbook.files import replaced

NETWORK, SIZE, EPOCHS = "test_resnet", 64, 20
AIMS = {
    "balanced accuracy of a linear head on the lab's backbone": (0.70, 0.90),
    "balanced accuracy on unseen lesions": (0.70, 0.90),
    "leakage": (0.05, 1.0),
    "malignant ROC AUC of metadata": (0.75, 0.82),
    "malignant ROC AUC of metadata and dx_type": (0.85, 0.92),
}


def metadata_auc(table: pd.DataFrame, dx_type: bool = False) -> float:
    """Malignant ROC AUC of a logistic regression on age (steps of five years), sex and site, all one-hot.

    Five-fold cross-validation, all photographs of a lesion in one fold. `dx_type` adds how the diagnosis was made.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold, cross_val_predict

    columns = {"age": (table["age"] // 5).astype(str), "sex": table["sex"], "site": table["site"]}
    if dx_type:
        columns["dx_type"] = table["dx_type"]
    inputs = pd.get_dummies(pd.DataFrame({name: c.astype(object).fillna("missing") for name, c in columns.items()}))
    cancer = table["dx"].map(malignant).to_numpy()
    scores = cross_val_predict(
        LogisticRegression(max_iter=1000),
        inputs.to_numpy(float),
        cancer,
        groups=table["lesion_id"],
        cv=GroupKFold(5),
        method="predict_proba",
    )
    return float(roc_auc_score(cancer, scores[:, 1]))


def labels(dataset: Dataset) -> np.ndarray:
    """Positions of the diagnoses in the data set's classes, int64 (n,)."""
    return dataset.table["dx"].map({dx: place for place, dx in enumerate(dataset.classes)}).to_numpy(np.int64)


def network_scores(dataset: Dataset, store: pixels.Store, seed: int, epochs: int = EPOCHS) -> dict[str, float]:
    """A small network from scratch: balanced accuracy on unseen lesions, and the paired leakage.

    Model A trains with the other photographs of the test lesions, model B with as many of the same diagnoses from
    other lesions; both are judged on one photograph of each test lesion that has several.
    """
    import torch

    from skinbook.augment import Augment
    from skinbook.batches import Batches
    from skinbook.evaluation import Evaluation, softmax
    from skinbook.networks import Backbone, Classifier
    from skinbook.splits import leakage_pair, lesion_split
    from skinbook.training import fit, predict

    split = lesion_split(dataset.table, seed)
    pair = leakage_pair(dataset.table, split, seed)
    target, lesions = labels(dataset), dataset.table["lesion_id"].to_numpy()
    change = Augment(flip=True, rotate=90, zoom=(0.9, 1.2), shift=0.05, brightness=0.1, contrast=0.1, saturation=0.1)

    def balanced(network, rows: np.ndarray) -> float:
        logits = predict(network, Batches(store.pixels, target, rows, 128))
        evaluation = Evaluation(target[rows], softmax(logits), lesions[rows], dataset.classes)
        return evaluation.value("balanced accuracy")

    trained = {}
    for name, rows in (("seen", pair.seen), ("unseen", pair.unseen)):
        torch.manual_seed(seed)
        trained[name] = Classifier(Backbone(NETWORK), len(dataset.classes))
        train = Batches(store.pixels, target, rows, 32, augment=change, shuffle=True, seed=seed)
        fit(trained[name], train, epochs=epochs, learning_rate=2e-3, weight_decay=0.05, seed=seed, log=None)
    seen, unseen = balanced(trained["seen"], pair.test), balanced(trained["unseen"], pair.test)
    return {
        "balanced accuracy on unseen lesions": balanced(trained["unseen"], split.rows("test")),
        "balanced accuracy, lesions seen in training": seen,
        "balanced accuracy, the same photographs unseen": unseen,
        "leakage": seen - unseen,
    }


def backbone_scores(dataset: Dataset, store: pixels.Store, seed: int) -> dict[str, float]:
    """Balanced accuracy on unseen lesions of a linear head on frozen features: the lab's backbone, and a random one."""
    import torch
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from skinbook.batches import Batches
    from skinbook.networks import Backbone, frozen_features
    from skinbook.splits import lesion_split

    split, target = lesion_split(dataset.table, seed), labels(dataset)
    train, test = split.rows("train"), split.rows("test")
    scores = {}
    for name, weights in (("lab's backbone", "lab"), ("random backbone", "none")):
        torch.manual_seed(seed)
        backbone = Backbone(NETWORK, weights)
        everything = Batches(store.pixels, target, np.arange(len(target)), 128, mean=backbone.mean, std=backbone.std)
        features = frozen_features(backbone, everything).numpy()
        head = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", max_iter=2000))
        head.fit(features[train], target[train])
        score = balanced_accuracy_score(target[test], head.predict(features[test]))
        scores[f"balanced accuracy of a linear head on the {name}"] = float(score)
    return scores


def measure(seed: int, cache: Path) -> dict[str, float]:
    """All measurements on the lab of one seed."""
    dataset = lab.load(cache, seed=seed)
    store = pixels.build(dataset, SIZE, cache)
    return {
        "malignant ROC AUC of metadata": metadata_auc(dataset.table),
        "malignant ROC AUC of metadata and dx_type": metadata_auc(dataset.table, dx_type=True),
        **backbone_scores(dataset, store, seed),
        **network_scores(dataset, store, seed),
    }


def calibrate(seeds: int = 5, cache: Path | None = None, file: Path | None = None) -> dict:
    """Measure the labs of seeds 0, 1, ... and write `data/lab_calibration.json`.

    Returns
    -------
    What is written: for each measurement its value per seed, mean, standard deviation and range, and the aim if any.
    """
    cache = cache or settings().cache
    runs = [measure(seed, cache) for seed in range(seeds)]
    summary = {
        "network": f"{NETWORK} from scratch, {SIZE} pixels, {EPOCHS} epochs",
        "photographs": len(lab.recipe(0)),
        "measurements": {name: _summary([run[name] for run in runs], AIMS.get(name)) for name in runs[0]},
    }
    with replaced(file or book_data("lab_calibration.json")) as partial:
        partial.write_text(json.dumps(summary, indent=1) + "\n")
    return summary


def _summary(values: list[float], aim: tuple[float, float] | None) -> dict:
    numbers = {
        "seeds": [round(value, 4) for value in values],
        "mean": round(float(np.mean(values)), 4),
        "sd": round(float(np.std(values, ddof=1)), 4) if len(values) > 1 else 0.0,
        "range": [round(min(values), 4), round(max(values), 4)],
    }
    return numbers | ({"aim": list(aim)} if aim else {})


if __name__ == "__main__":
    for measurement, numbers in calibrate()["measurements"].items():
        print(f"{measurement:60s} {numbers['mean']:.3f} ± {numbers['sd']:.3f}  {numbers.get('aim', '')}")
