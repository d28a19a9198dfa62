"""The parts of the bench beside training: augmentation, the pixel store, large stores, Grad-CAM, and small waits."""

from __future__ import annotations

import itertools
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from skinbook.bench import CHANGES, CLASSES, SIDES, Case, _apart
from skinbook.config import cores

LARGE, SMALL = 100_000, 1_000  # images of the two stores that are compared


def large_store(large: int = LARGE, small: int = SMALL, side: int = 64, repeats: int = 3) -> dict[str, float]:
    """What training costs from a store of many images, beside one of few: the way to the network, and its memory.

    The network is as small as one can be, so that the time is that of reading and augmenting. Memory (MB) is what the
    process holds beyond the mapped pages of the store, at its peak while it trains, less what it held before.
    """
    import numpy as np
    import torch

    from skinbook.augment import Augment
    from skinbook.batches import Batches
    from skinbook.training import fit

    folder = Path(tempfile.mkdtemp())
    try:
        pixels = np.lib.format.open_memmap(folder / "store.npy", "w+", np.uint8, (large, side, side, 3))
        draw = np.random.default_rng(0)
        for start in range(0, large, SMALL):
            pixels[start : start + SMALL] = draw.integers(0, 256, pixels[start : start + SMALL].shape, dtype=np.uint8)
        pixels.flush()
        pixels = np.load(folder / "store.npy", mmap_mode="r", allow_pickle=False)

        def seconds(count: int, epochs: int) -> float:
            torch.manual_seed(0)
            network = torch.nn.Sequential(
                torch.nn.Conv2d(3, 8, 8, stride=8), torch.nn.Flatten(), torch.nn.Linear(8 * (side // 8) ** 2, CLASSES)
            )
            labels = np.arange(large) % CLASSES
            batches = Batches(pixels, labels, np.arange(count), 32, augment=Augment(**CHANGES), shuffle=True)
            started = time.perf_counter()
            fit(network, batches, epochs=epochs, log=None)
            return (time.perf_counter() - started) / (count * epochs)

        seconds(small, 1)  # warm up
        before = _own_memory()
        few, many = [], []
        with _Peak() as peak:
            for _ in range(repeats):
                few.append(seconds(small, max(1, large // (10 * small))))
                many.append(seconds(large, 1))
    finally:
        shutil.rmtree(folder)
    one, other = statistics.median(few), statistics.median(many)
    return {
        "images": large,
        "side": side,
        "ms an image": 1000 * other,
        "ms an image, small store": 1000 * one,
        "ratio": other / one,
        "memory": peak.most - before,
    }


def _own_memory() -> float:
    """Resident memory of this process without pages that are mapped from files, MB; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssShmem"))) / 1024


class _Peak:
    """The most memory that the process had while the block ran, looked at every so often."""

    def __enter__(self) -> _Peak:
        self.most, self._over = _own_memory(), threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()
        return self

    def look(self) -> None:
        self.most = max(self.most, _own_memory())

    def _look(self) -> None:
        while not self._over.wait(0.02):
            self.look()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._watch.join()


def grad_cam(network: str = "resnet18", side: int = 64, count: int = 256, repeats: int = 3) -> dict[str, Any]:
    """Photographs a second: Grad-CAM in batches, beside plain forward and backward of the same network."""
    import numpy as np
    import torch

    from skinbook import explain
    from skinbook.batches import Batches
    from skinbook.networks import Backbone, Classifier

    torch.manual_seed(0)
    model = Classifier(Backbone(network), CLASSES).to(memory_format=torch.channels_last)
    pixels = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    batches = Batches(pixels, np.arange(count) % CLASSES, np.arange(count), 32)

    def plain() -> None:
        model.train()
        for batch in batches.epoch():
            torch.nn.functional.cross_entropy(model(batch.inputs), batch.labels).backward()
            model.zero_grad(set_to_none=True)

    ways: dict[str, Callable[[], Any]] = {
        "forward and backward": plain,
        "Grad-CAM": lambda: explain.maps(model, batches),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if turn:  # the first warms up
                times[name].append(time.perf_counter() - started)
    rate = {name: count / statistics.median(found) for name, found in times.items()}
    ratio = rate["Grad-CAM"] / rate["forward and backward"]
    return {"network": network, "side": side, "rate": rate, "ratio": ratio}


# How often torch's threads look before they sleep: as GNU OpenMP does by itself, as the package asks, and not at all.
SPINNING = {"long": {"GOMP_SPINCOUNT": "300000"}, "short": {"GOMP_SPINCOUNT": "1000"}, "none": {"GOMP_SPINCOUNT": "0"}}
BUSY = (0, 1, 4)  # programs beside it that keep a core busy
IN_COMPANY = Case("lab", 64, "test_resnet")


def company(seconds: float = 2.0, repeats: int = 3) -> dict[str, float]:
    """Photographs a second of a small network by how long its threads spin, alone and beside busy programs."""
    case = IN_COMPANY
    rates: dict[str, list[float]] = {}
    for _, busy, (name, environment) in itertools.product(range(repeats), BUSY, SPINNING.items()):
        programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy)]
        try:  # a first look says how many photographs fill the time
            rate = _apart(case, ("limit",), 1, environment, count=2 * case.batch_size)["rate"]
            count = max(2, round(seconds * rate / case.batch_size)) * case.batch_size
            rate = _apart(case, ("limit",), 1, environment, count=count)["rate"]
        finally:
            for program in programs:
                program.kill()
                program.wait()
        beside = f"beside {busy} busy program{'s' if busy > 1 else ''}" if busy else "alone"
        rates.setdefault(f"{beside}, spinning {name}", []).append(rate)
    return {name: statistics.median(found) for name, found in rates.items()}


def chapters() -> dict[str, float]:
    """Seconds that `pytest --nbval` takes for each chapter on the lab at quick scale, its kernel's start included."""
    from skinbook import runs

    found = {}
    for notebook in runs.notebooks((), runs.HOME):
        started = time.perf_counter()
        command = [sys.executable, "-m", "pytest", "--nbval", "-q", "-p", "no:cacheprovider", str(notebook)]
        done = subprocess.run(command, cwd=runs.HOME, env=runs.lab_environment(), capture_output=True, text=True)
        seconds = time.perf_counter() - started
        found[notebook.stem if not done.returncode else f"{notebook.stem} (failed)"] = seconds
    return found


def augmentation(sides: Sequence[int] = SIDES, batch: int = 32, repeats: int = 20) -> list[dict[str, Any]]:
    """Milliseconds a photograph: the book's one grid and one matrix, torchvision v2, and kornia where it is installed."""
    import torch

    results = []
    for side in sides:
        pixels = torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8)
        ways = {"skinbook": _own_augmentation(side), "torchvision v2": _torchvision_v2(), "kornia": _kornia()}
        found: dict[str, Any] = {"side": side}
        for name, way in ways.items():
            if way is None:
                continue
            way(pixels)
            times = []
            for _ in range(repeats):
                started = time.perf_counter()
                way(pixels)
                times.append((time.perf_counter() - started) / batch * 1000)
            found[name] = statistics.median(times)
        results.append(found)
    return results


def _own_augmentation(side: int) -> Callable:
    import numpy as np
    import torch

    from skinbook.augment import Augment, augmented, draws

    change, half = Augment(**CHANGES), torch.full((3,), 0.5)
    return lambda pixels: augmented(pixels, change, draws(0, 0, np.arange(len(pixels))), side, half, half)


def _torchvision_v2() -> Callable:
    """A photograph at a time, since v2 draws one set of parameters for a whole batch."""
    import torch
    from torchvision.transforms import v2

    change = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            v2.RandomRotation(CHANGES["rotate"], interpolation=v2.InterpolationMode.BILINEAR),
            v2.ColorJitter(*(CHANGES[name] for name in ("brightness", "contrast", "saturation"))),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        ]
    )
    return lambda pixels: torch.stack([change(photograph) for photograph in pixels.permute(0, 3, 1, 2)])


def _kornia() -> Callable | None:
    try:
        import kornia.augmentation as K
    except ImportError:
        return None
    jitter = {name: CHANGES[name] for name in ("brightness", "contrast", "saturation")}
    change = K.AugmentationSequential(
        K.RandomHorizontalFlip(),
        K.RandomVerticalFlip(),
        K.RandomRotation(CHANGES["rotate"], p=1.0),
        K.ColorJiggle(**jitter, p=1.0),
        data_keys=["input"],
    )
    return lambda pixels: change(pixels.permute(0, 3, 1, 2).float() / 255)


def store(side: int = 128, repeats: int = 5) -> dict[str, float]:
    """Seconds to build HAM10000's pixel store, beside a bare parallel decode and resize of the same files.

    They take turns, and `ratio` is the median of the turns' ratios: a machine that others use too is not equally fast.
    """
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    from skinbook.data import catalog, pixels

    dataset = catalog.load("ham10000")
    source: Any = dataset.images
    names = dataset.table["image_id"].tolist()
    built, bare = [], []

    def decode(name: str) -> np.ndarray:
        return np.asarray(pixels.reduce(source.image(name, side), (side, side)))

    for _ in range(repeats):
        folder = Path(tempfile.mkdtemp())
        try:
            started = time.perf_counter()
            pixels.build(dataset, side, folder, progress=False)
            built.append(time.perf_counter() - started)
        finally:
            shutil.rmtree(folder)
        started = time.perf_counter()
        with ThreadPoolExecutor(cores()) as pool:
            for _decoded in pool.map(decode, names, chunksize=32):
                pass
        bare.append(time.perf_counter() - started)
    return {
        "images": len(names),
        "side": side,
        "store_seconds": statistics.median(built),
        "bare_seconds": statistics.median(bare),
        "ratio": statistics.median(own / other for own, other in zip(built, bare, strict=True)),
    }


def waits() -> dict[str, float]:
    """Seconds: importing the package, opening a chapter, and all metrics with a thousand resamples of 2,000 lesions."""
    import numpy as np

    from skinbook.evaluation import METRICS, Evaluation

    def seconds(code: str) -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
        return time.perf_counter() - started

    bare = statistics.median(seconds("pass") for _ in range(3))
    found = {"import skinbook": statistics.median(seconds("import skinbook") for _ in range(3)) - bare}
    opened = 'import skinbook.chapter as c; b = c.setup("03_cnn_lstm"); b.table; b.split'
    found["a chapter's first cell"] = statistics.median(seconds(opened) for _ in range(3)) - bare
    draw = np.random.default_rng(0)
    probabilities = draw.dirichlet(np.ones(CLASSES), 2000)
    labels = draw.integers(0, CLASSES, 2000)
    names = [f"class {k}" for k in range(CLASSES)]
    started = time.perf_counter()
    result = Evaluation(labels, probabilities, np.arange(2000), names)
    for metric in METRICS:
        result.metric(metric)
    result.per_class()
    found["metrics of 2,000 lesions, 1,000 resamples"] = time.perf_counter() - started
    return found


PARTS: dict[str, Callable[[], Any]] = {
    "augmentation": augmentation,
    "store": store,
    "large": large_store,
    "grad-cam": grad_cam,
    "waits": waits,
    "company": company,
    "chapters": chapters,
}


def told(part: str, found: Any) -> list[str]:
    """What a part measured, as lines for a terminal."""
    if part == "augmentation":
        ways = [", ".join(f"{name} {ms:.3f}" for name, ms in one.items() if name != "side") for one in found]
        return [f"augmentation at {one['side']} px, ms an image: {way}" for one, way in zip(found, ways, strict=True)]
    if part == "store":
        return [f"pixel store of {found['images']:,} images: {found['ratio']:.2f} times a bare parallel decode"]
    if part == "large":
        return [
            f"an image from a store of {found['images']:,}: {found['ratio']:.2f} times one from a small store; "
            f"{found['memory']:.0f} MB of memory beside the store's pages"
        ]
    if part == "grad-cam":
        return [f"Grad-CAM: {found['ratio']:.2f} of the rate of forward and backward ({found['network']})"]
    if part == "company":
        return [f"{name}: {rate:.0f} images/s" for name, rate in found.items()]
    return [f"{name}: {seconds:.2f} s" for name, seconds in found.items()]
