"""How fast is the way from image files to a trained network? `skinbook bench` measures it, and never asserts it.

Four ways do the same work, one after another and again (`--repeats`), in one process, so that little time passes between
them: on a machine that others use too, its speed changes within minutes, and only neighbours can be compared.

    limit      forward, backward and step on one batch that lies on the device already
    skinbook   `fit()` as the chapters use it, with augmentation, from the pixel store
    copied     what nearly every notebook does: PIL opens the JPEG, torchvision transforms, DataLoader workers
    timm       timm's own loader and augmentation

All of them train the same network on the same photographs with the same batch size, precision and optimiser. Of a way
with workers the middle of an epoch is timed, when they have started and still have photographs to open: a turn is short,
and an epoch of a real data set is long, so that its ends count for little. Peak memory is taken of each way in a process
of its own. What else is worth measuring stands in `bench_parts`.
"""

from __future__ import annotations

import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from skinbook.config import SkinbookError, cores, settings
from skinbook.files import replaced
from skinbook.memory import keep_freed_memory

ARMS = ("limit", "skinbook", "copied", "timm")
WORKERS = ("copied", "timm")  # the ways that open files in processes beside the training
SOURCES = ("lab", "ham10000")
NETWORKS = ("test_resnet", "mobilenetv3_small_050", "resnet18", "resnet50")
PRECISIONS = ("fp32", "bf16")
SIDES = (64, 128, 224)
CLASSES = 7
PHOTOGRAPHS = 128  # different ones; an epoch goes round
CHANGES: dict[str, Any] = {"flip": True, "rotate": 20.0, "brightness": 0.2, "contrast": 0.2, "saturation": 0.2}
LONGEST = 240  # seconds that one turn may take before all is given up
LEAD = 2  # batches of an epoch before the clock starts, for ways with workers
PREFETCH = 2  # batches that each worker has ready or under way; so many of all must be left when the clock stops
MEMORY = ("memory", "worker_memory", "device_memory")  # peak, in MB
Work = Callable[[int], float]  # trains on so many photographs; the seconds that it took


@dataclass(frozen=True)
class Case:
    """What is trained on what. `source`: "lab" (drawn as 600×450 JPEGs) or "ham10000" (its JPEGs where they are)."""

    source: str
    side: int
    network: str
    precision: str = "fp32"
    device: str = "cpu"
    batch_size: int = 32


def cases(
    sources: Sequence[str] = SOURCES,
    sides: Sequence[int] = SIDES,
    networks: Sequence[str] = NETWORKS,
    precisions: Sequence[str] = ("fp32",),
    device: str = "cpu",
) -> list[Case]:
    """Every combination; SkinbookError names an unknown source, or a precision that not all ways can be measured in."""
    for source in sources:
        if source not in SOURCES:
            raise SkinbookError(
                f"{source!r} is no source of photographs for the bench; choose from {', '.join(SOURCES)}."
            )
    for precision in precisions:
        if precision not in PRECISIONS:
            raise SkinbookError(f"The bench measures in {' or '.join(PRECISIONS)}, not in {precision!r}.")
    every = itertools.product(sources, sides, networks, precisions)
    return [Case(*combination, device=device) for combination in every]


def training(
    wanted: Sequence[Case], seconds: float = 4.0, repeats: int = 7, tell: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """Measure every case in all four ways; a dictionary a case, ready for JSON.

    Parameters
    ----------
    wanted : the cases. seconds : about how long one turn of a way lasts at the limit's rate.
    repeats : how many turns each way takes; the median counts.
    tell : is handed each line of the table as soon as it is known.
    """
    if repeats < 1:
        raise SkinbookError(f"repeats is {repeats}; expected at least 1.")
    tell(f"{'':46}{'':>9}" + "".join(f"{arm:>11}" for arm in ARMS) + f"{'÷ limit':>9}{'÷ copied':>10}{'÷ timm':>9}")
    results = []
    for case in wanted:
        turns = _apart(case, ARMS, repeats * len(ARMS), seconds=seconds, repeats=repeats)
        peaks = {arm: _apart(case, (arm,), 1, count=2 * case.batch_size) for arm in ARMS}
        memory = {kind: {arm: peak[kind] for arm, peak in peaks.items()} for kind in MEMORY}
        rate = {arm: statistics.median(rates) for arm, rates in turns["rates"].items()}
        results.append({**asdict(case), **turns, "middle": True, "rate": rate, **memory})
        tell(_line(results[-1]))
    return results


def ratios(rates: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """skinbook's rate over that of each other way: the median over the rounds, in each of which every way had a turn."""
    return {
        arm: statistics.median(own / other for own, other in zip(rates["skinbook"], rates[arm], strict=True))
        for arm in rates
        if arm != "skinbook"
    }


def _line(found: dict[str, Any]) -> str:
    name = f"{found['source']}, {found['network']}, {found['side']} px, {found['precision']}"
    rates = "".join(f"{found['rate'][arm]:>11.0f}" for arm in ARMS)
    ratio = ratios(found["rates"])
    return f"{name:46}{'images/s':>9}{rates}{ratio['limit']:>9.2f}{ratio['copied']:>10.2f}{ratio['timm']:>9.2f}"


def _apart(
    case: Case, arms: Sequence[str], turns: int, environment: Mapping[str, str] | None = None, **options: float
) -> dict[str, Any]:
    """What `take_turns` finds, or for one way `measure`, in a process of its own, which may take so many turns' time."""
    order = json.dumps({"case": asdict(case), "arms": arms, "options": options})
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "skinbook.bench", order],
            capture_output=True,
            text=True,
            timeout=LONGEST * turns + 60,
            # Else a SKINBOOK_PRECISION of the reader's would go over the case's, in one of the ways alone.
            env={**os.environ, **(environment or {}), "SKINBOOK_PRECISION": case.precision},
        )
    except subprocess.TimeoutExpired:
        raise SkinbookError(
            f"{case.network} at {case.side} pixels, {', '.join(arms)}: {turns} turns took longer than "
            f"{LONGEST} seconds each."
        ) from None
    if ended.returncode:
        last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        raise SkinbookError(f"{case.network} at {case.side} pixels, {', '.join(arms)}: {last}")
    return json.loads(ended.stdout.splitlines()[-1])


def take_turns(case: Case, seconds: float, repeats: int) -> dict[str, Any]:
    """Train in all four ways, one after another, `repeats` times: photographs of a turn, and each way's rates."""
    ready = {arm: _ready(case, arm) for arm in ARMS}
    count = 4 * case.batch_size
    count = max(2, round(seconds * count / ready["limit"](count) / case.batch_size)) * case.batch_size
    rates: dict[str, list[float]] = {arm: [] for arm in ARMS}
    for turn in range(repeats):
        for arm in ARMS if turn % 2 == 0 else ARMS[::-1]:  # none is always the one after the workers
            rates[arm].append(count / ready[arm](count))
    return {"photographs": count, "rates": rates}


def measure(case: Case, arm: str, count: int) -> dict[str, float]:
    """Train once on `count` photographs: rate (photographs a second) and peak memory (MB), here and in a worker."""
    import resource  # not on Windows

    import torch

    work = _ready(case, arm)
    if case.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    took = work(count)
    unit = 2**20 if platform.system() == "Darwin" else 2**10  # macOS counts bytes, Linux kilobytes
    own, worker = (resource.getrusage(who).ru_maxrss / unit for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    on_device = torch.cuda.max_memory_allocated() / 2**20 if case.device == "cuda" else 0.0
    return {"rate": count / took, "memory": own, "worker_memory": worker * (arm in WORKERS), "device_memory": on_device}


def _ready(case: Case, arm: str) -> Work:
    """A way with a network of its own, warmed up: threads, memory, the choice of algorithms."""
    import torch

    from skinbook.networks import Backbone, Classifier

    keep_freed_memory()
    torch.manual_seed(0)
    if case.device == "cuda":
        torch.backends.cudnn.benchmark = True
    network = Classifier(Backbone(case.network), CLASSES).to(case.device)
    work = {"limit": _limit, "skinbook": _skinbook, "copied": _copied, "timm": _timm}[arm](case, network)
    work(2 * case.batch_size)
    return work


def _now(case: Case) -> float:
    """The clock, once the device has done what it was given to do."""
    import torch

    if case.device in ("cuda", "mps"):
        getattr(torch, case.device).synchronize()
    return time.perf_counter()


def photographs(source: str, count: int = PHOTOGRAPHS) -> list[Path]:
    """JPEGs of a source: HAM10000's where they lie, or the lab's lesions drawn at 600×450 into the cache."""
    if source == "ham10000":
        from skinbook.data import catalog

        paths = getattr(catalog.load("ham10000").images, "paths", None)
        if not paths:
            raise SkinbookError("This copy of HAM10000 holds no JPEG files; the bench needs some.")
        return [paths[name] for name in sorted(paths)[:count]]
    from PIL import Image

    from skinbook.data import dermoscopy
    from skinbook.diagnoses import CLASSES as DIAGNOSES_OF

    folder = settings().cache / "bench" / "lab-600x450"
    folder.mkdir(parents=True, exist_ok=True)
    kinds = DIAGNOSES_OF["lab"]
    files = [folder / f"{number:05d}.jpg" for number in range(count)]
    for number, file in enumerate(files):
        if not file.exists():
            lesion = dermoscopy.lesion(kinds[number % len(kinds)], ("bench", number))
            drawn = dermoscopy.render(lesion, dermoscopy.Photograph(), 450, 600).image
            with replaced(file) as partial:
                Image.fromarray(drawn).save(partial, format="jpeg", quality=92)
    return files


def _steps(network: Any, case: Case, batches: Iterator[tuple[Any, Any]], count: int, lead: int = 0) -> float:
    """The plain loop that everybody writes; the seconds of `count` batches, behind `lead` others."""
    import torch

    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    network.train()
    started = _now(case)
    for number, (images, labels) in enumerate(itertools.islice(batches, lead + count), 1):
        images = images.to(case.device, non_blocking=True)
        labels = labels.to(case.device, non_blocking=True)
        with torch.autocast(case.device, torch.bfloat16, enabled=case.precision == "bf16"):
            loss = torch.nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if number == lead:  # so that the wait for each batch that counts is counted
            started = _now(case)
    return _now(case) - started


def _limit(case: Case, network: Any) -> Work:
    import torch

    network.to(memory_format=torch.channels_last)
    images = torch.rand(case.batch_size, 3, case.side, case.side, device=case.device)
    images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.arange(case.batch_size, device=case.device) % CLASSES
    return lambda n: _steps(network, case, itertools.repeat((images, labels)), n // case.batch_size)


def _skinbook(case: Case, network: Any) -> Work:
    import numpy as np
    import pandas as pd

    from skinbook.augment import Augment
    from skinbook.batches import Batches
    from skinbook.data import pixels
    from skinbook.data.images import Files
    from skinbook.data.schema import Dataset
    from skinbook.training import fit

    paths = {path.stem: path for path in photographs(case.source)}
    dataset = Dataset(f"bench-{case.source}", pd.DataFrame({"image_id": list(paths)}), (), Files(paths))
    store = pixels.build(dataset, case.side, settings().cache, progress=False)
    labels = np.arange(len(paths)) % CLASSES

    def work(n: int) -> float:
        rows = np.arange(n) % len(paths)
        batches = Batches(
            store.pixels, labels, rows, case.batch_size, augment=Augment(**CHANGES), shuffle=True, device=case.device
        )
        started = _now(case)
        fit(network, batches, epochs=1, precision=case.precision, log=None)
        return _now(case) - started

    return work


def _longer(case: Case, count: int) -> int:
    """Photographs of an epoch in the middle of which so many are timed."""
    return count + (LEAD + PREFETCH * cores()) * case.batch_size


class _Opened:
    """A `Dataset` as nearly every notebook has it: a path, PIL, and the transform."""

    def __init__(self, paths: Sequence[Path], count: int, transform: Any = None) -> None:
        self.paths, self.count, self.transform = paths, count, transform

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Any, int]:
        from PIL import Image

        place = index % len(self.paths)
        return self.transform(Image.open(self.paths[place]).convert("RGB")), place % CLASSES


def _copied(case: Case, network: Any) -> Work:
    from torch.utils.data import DataLoader
    from torchvision import transforms

    change = transforms.Compose(
        [
            transforms.Resize((case.side, case.side)),
            transforms.RandomHorizontalFlip(),
            transforms.RandomVerticalFlip(),
            transforms.RandomRotation(CHANGES["rotate"]),
            transforms.ColorJitter(*(CHANGES[name] for name in ("brightness", "contrast", "saturation"))),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    paths = photographs(case.source)

    def work(n: int) -> float:
        loader: Any = DataLoader(
            _Opened(paths, _longer(case, n), change),  # type: ignore[arg-type]
            case.batch_size,
            shuffle=True,
            num_workers=cores(),
            prefetch_factor=PREFETCH,
            pin_memory=case.device == "cuda",
        )
        return _steps(network, case, iter(loader), n // case.batch_size, LEAD)

    return work


def _timm(case: Case, network: Any) -> Work:
    import torch
    from timm.data import create_loader

    paths = photographs(case.source)

    def work(n: int) -> float:
        loader = create_loader(
            _Opened(paths, _longer(case, n)),  # type: ignore[arg-type]
            (3, case.side, case.side),
            case.batch_size,
            is_training=True,
            scale=(0.8, 1.0),
            hflip=0.5,
            vflip=0.5,
            color_jitter=CHANGES["brightness"],
            interpolation="bilinear",
            num_workers=cores(),
            use_prefetcher=case.device == "cuda",
            device=torch.device(case.device),
            persistent_workers=False,
        )
        return _steps(network, case, iter(loader), n // case.batch_size, LEAD)

    return work


def machine() -> dict[str, Any]:
    """What it was measured on: processor, its widest instructions (AVX512, AVX2), cores, versions, the accelerator."""
    import timm
    import torch
    import torchvision

    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    processor = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return {
        "processor": processor or platform.processor() or platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cores": cores(),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        **{m.__name__: m.__version__ for m in (torch, torchvision, timm)},
        "date": time.strftime("%Y-%m-%d"),
    }


def save(found: dict[str, Any], file: Path) -> None:
    """Write what was measured as JSON, beside what an earlier run on the same machine and versions measured."""
    try:
        earlier = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        earlier = {}
    if not isinstance(earlier, dict) or _undated(earlier) != _undated(found):
        earlier = {}
    whole = earlier | found
    if "training" in found:
        cases = {_case(one): one for one in (*earlier.get("training", ()), *found["training"])}
        whole["training"] = list(cases.values())
    with replaced(Path(file)) as partial:
        partial.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def _undated(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.get("machine", {}).items() if key != "date"}


def _case(one: dict[str, Any]) -> tuple:
    return tuple(one[field] for field in Case.__dataclass_fields__)


def done(order: Mapping[str, Any]) -> dict[str, Any]:
    """What `_apart` asks for: of several ways their turns, of one its rate and its memory."""
    case, arms = Case(**order["case"]), order["arms"]
    return take_turns(case, **order["options"]) if len(arms) > 1 else measure(case, *arms, **order["options"])


if __name__ == "__main__":
    print(json.dumps(done(json.loads(sys.argv[1]))))
