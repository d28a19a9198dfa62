"""What the bench measures with; how fast anything is, no test asserts."""

import gc
import json
import mmap
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from skinbook import bench, bench_parts
from skinbook.config import SkinbookError
from skinbook.data import pixels
from skinbook.data.images import Files
from skinbook.data.schema import Dataset

CASE = bench.Case("lab", 32, "test_resnet", batch_size=4)


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Six small JPEGs in place of the drawn ones, and a cache of their own."""
    monkeypatch.setenv("SKINBOOK_CACHE", str(tmp_path / "cache"))
    paths = []
    for number in range(6):
        paths.append(tmp_path / f"{number}.jpg")
        pixels = np.random.default_rng(number).integers(0, 256, (45, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(paths[-1])
    monkeypatch.setattr(bench, "photographs", lambda source: paths)
    monkeypatch.setattr(bench, "cores", lambda: 1)
    return paths


@pytest.mark.parametrize("arm", bench.ARMS)
def test_each_way_trains_the_network_on_as_many_photographs_as_asked(arm, drawn, monkeypatch):
    import torch

    seen, first = [], []
    forward = torch.nn.functional.cross_entropy
    monkeypatch.setattr(
        torch.nn.functional,
        "cross_entropy",
        lambda out, to, **rest: (seen.append(len(to)), forward(out, to, **rest))[1],
    )
    stepped = torch.optim.AdamW.step
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self, *a, **k: (first.append(1), stepped(self, *a, **k))[1])
    found = bench.measure(CASE, arm, 12)
    before = 2 * bench.LEAD * (arm in bench.WORKERS)  # batches that are not timed: until the workers are under way
    assert sum(seen) == (2 + 3 + before) * 4  # the warm-up, and the epoch
    assert len(first) == 5 + before
    assert found["rate"] > 0
    assert found["memory"] > 10
    assert (found["worker_memory"] > 0) == (arm in bench.WORKERS)


def test_neighbours_are_compared(monkeypatch):
    rates = {"limit": [100, 90, 400], "skinbook": [80, 81, 79], "copied": [40, 10, 50], "timm": [20, 20, 20]}
    asked = []

    def apart(case, arms, turns, environment=None, **options):
        asked.append((arms, turns, options))
        if len(arms) > 1:
            return {"photographs": 48, "rates": rates}
        return {"rate": 1.0, "memory": len(arms[0]), "worker_memory": 0, "device_memory": 0}

    monkeypatch.setattr(bench, "_apart", apart)
    lines = []
    (found,) = bench.training([CASE], seconds=3.0, repeats=3, tell=lines.append)
    assert asked[0] == (bench.ARMS, 12, {"seconds": 3.0, "repeats": 3})
    assert asked[1:] == [((arm,), 1, {"count": 8}) for arm in bench.ARMS]
    assert found["photographs"] == 48
    assert found["rate"] == {"limit": 100, "skinbook": 80, "copied": 40, "timm": 20}
    assert bench.ratios(found["rates"]) == {"limit": 0.8, "copied": 2.0, "timm": 4.0}
    assert found["memory"] == {"limit": 5, "skinbook": 8, "copied": 6, "timm": 4}
    assert "0.80" in lines[-1]
    assert "2.00" in lines[-1]


def test_a_ratio_is_that_of_the_middle_round():
    # The machine was twice as fast in two rounds, and in a third for the limit alone: its median is 200, skinbook's 90.
    rates = {"limit": [100, 200, 200, 200, 100], "skinbook": [90, 180, 90, 180, 90]}
    assert bench.ratios(rates) == {"limit": 0.9}


def test_the_ways_take_turns_forwards_and_backwards(monkeypatch):
    turns = []

    def ready(case, arm):
        return lambda count: (turns.append((arm, count)), 1.0)[1]  # a turn takes a second

    monkeypatch.setattr(bench, "_ready", ready)
    found = bench.take_turns(CASE, seconds=3.0, repeats=3)
    assert found == {"photographs": 48, "rates": dict.fromkeys(bench.ARMS, [48.0] * 3)}
    assert turns == [("limit", 16), *((arm, 48) for arm in (*bench.ARMS, *bench.ARMS[::-1], *bench.ARMS))]


def test_the_middle_of_an_epoch_is_timed():
    """The clock starts behind the first batches, and stops while the workers still have some to open."""
    import torch

    taken = []

    def batches():
        for number in range(100):
            taken.append(number)
            yield torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)

    clock, network, when = iter([10.0, 13.0, 20.0]), torch.nn.Linear(3, 2), []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(bench, "_now", lambda case: (when.append(len(taken)), next(clock))[1])
        assert bench._steps(network, CASE, batches(), 5, lead=2) == 7.0
    assert taken == list(range(7))
    assert when == [0, 2, 7]  # five steps, and the wait for each of their batches
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(bench, "cores", lambda: 3)
        assert bench._longer(CASE, 20) == 20 + (2 + 2 * 3) * 4


@pytest.mark.slow
def test_several_ways_take_turns_and_one_is_measured_alone(drawn):
    order = {"case": asdict(CASE), "arms": bench.ARMS, "options": {"seconds": 0.01, "repeats": 2}}
    together = bench.done(order)
    assert together["photographs"] == 2 * CASE.batch_size
    assert {arm: len(rates) for arm, rates in together["rates"].items()} == dict.fromkeys(bench.ARMS, 2)
    alone = bench._apart(CASE, ("limit",), 1, count=8)  # needs no photographs
    assert set(alone) == {"rate", *bench.MEMORY}
    assert alone["rate"] > 0


def test_a_way_that_fails_says_which_and_why(monkeypatch):
    failed = subprocess.CompletedProcess([], 1, "", "Traceback\nRuntimeError: no memory")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(SkinbookError, match="test_resnet at 32 pixels, timm: RuntimeError: no memory"):
        bench._apart(CASE, ("timm",), 1, count=8)


def test_a_way_that_takes_too_long_is_given_up(monkeypatch):
    def late(command, timeout, **rest):
        assert timeout == 2 * bench.LONGEST + 60
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(subprocess, "run", late)
    with pytest.raises(SkinbookError, match="test_resnet at 32 pixels, limit, timm: 2 turns took longer than 240 sec"):
        bench._apart(CASE, ("limit", "timm"), 2, seconds=1.0, repeats=1)


def test_an_unknown_source_is_refused():
    with pytest.raises(SkinbookError, match=r"'moles' is no source of photographs .* lab, ham10000"):
        bench.cases(["moles"])


def test_what_the_ways_cannot_be_compared_in_is_refused():
    with pytest.raises(SkinbookError, match=r"measures in fp32 or bf16, not in 'fp16'"):
        bench.cases(precisions=["fp32", "fp16"])
    with pytest.raises(SkinbookError, match="repeats is 0; expected at least 1"):
        bench.training([CASE], repeats=0)


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_the_clock_waits_for_the_device(device, monkeypatch):
    import torch

    waited = []
    monkeypatch.setattr(getattr(torch, device), "synchronize", lambda: waited.append(device))
    bench._now(replace(CASE, device=device))
    assert waited == [device]
    bench._now(CASE)
    assert waited == [device]


def test_a_file_of_something_else_is_no_earlier_run(tmp_path):
    file = tmp_path / "bench.json"
    file.write_text("[1]", encoding="utf-8")
    bench.save({"machine": {"cores": 2}}, file)
    assert json.loads(file.read_text(encoding="utf-8")) == {"machine": {"cores": 2}}


def test_the_lab_is_drawn_once_as_jpegs_of_a_camera(tmp_path, monkeypatch):
    monkeypatch.setenv("SKINBOOK_CACHE", str(tmp_path))
    (file,) = bench.photographs("lab", 1)
    assert Image.open(file).size == (600, 450)
    before = file.stat().st_mtime_ns
    assert bench.photographs("lab", 1)[0].stat().st_mtime_ns == before


def test_augmentation_is_measured_beside_that_of_others():
    (found,) = bench_parts.augmentation([32], batch=2, repeats=1)
    assert found["side"] == 32
    assert min(found["skinbook"], found["torchvision v2"]) > 0


def test_what_was_measured_is_saved_with_the_machine(tmp_path):
    bench.save({"machine": bench.machine()}, tmp_path / "a" / "bench.json")
    about = json.loads((tmp_path / "a" / "bench.json").read_text(encoding="utf-8"))["machine"]
    assert about["cores"] >= 1
    assert about["torch"]


def test_parts_of_an_earlier_run_on_the_same_machine_stay(tmp_path):
    file = tmp_path / "bench.json"
    here = {"processor": "one", "date": "2026-01-01"}
    bench.save({"machine": here, "waits": {"a": 1.0}, "store": {"ratio": 1.0}}, file)
    bench.save({"machine": here | {"date": "2026-02-02"}, "waits": {"a": 2.0}}, file)
    assert json.loads(file.read_text(encoding="utf-8")) == {
        "machine": here | {"date": "2026-02-02"},
        "waits": {"a": 2.0},
        "store": {"ratio": 1.0},
    }
    bench.save({"machine": here | {"processor": "another"}, "waits": {"a": 3.0}}, file)
    assert "store" not in json.loads(file.read_text(encoding="utf-8"))


def test_cases_of_an_earlier_run_stay_beside_those_of_this_one(tmp_path):
    file = tmp_path / "bench.json"
    one, other = (asdict(bench.Case("lab", side, "resnet18")) for side in (64, 128))
    bench.save({"machine": {"cores": 2}, "training": [one | {"rate": 1}, other | {"rate": 2}]}, file)
    bench.save({"machine": {"cores": 2}, "training": [one | {"rate": 3}]}, file)
    assert [case["rate"] for case in json.loads(file.read_text(encoding="utf-8"))["training"]] == [3, 2]


def test_the_pixel_store_is_built_anew_in_every_turn_beside_a_bare_decode(drawn, monkeypatch):
    table = pd.DataFrame({"image_id": [path.stem for path in drawn]})
    dataset = Dataset("made up", table, (), Files({path.stem: path for path in drawn}))
    monkeypatch.setattr("skinbook.data.catalog.load", lambda edition: dataset)
    asked, times = [], iter([0, 3, 3, 5, 10, 16, 20, 22, 30, 34, 40, 48])  # built in 3, 6 and 4 s, bare in 2, 2 and 8
    built = pixels.build
    monkeypatch.setattr(pixels, "build", lambda *a, **k: (asked.append(a[2]), built(*a, **k))[1])
    monkeypatch.setattr(bench_parts, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    found = bench_parts.store(side=16, repeats=3)
    assert found == {"images": 6, "side": 16, "store_seconds": 4, "bare_seconds": 2, "ratio": 1.5}
    assert len(set(asked)) == 3
    assert not any(folder.exists() for folder in asked)


def test_a_large_store_is_compared_with_a_small_one():
    found = bench_parts.large_store(large=2000, small=1000, side=16, repeats=1)
    assert found["images"] == 2000
    assert min(found["ratio"], found["ms an image"], found["ms an image, small store"]) > 0
    assert found["memory"] >= 0
    assert "2,000" in bench_parts.told("large", found)[0]


def test_memory_that_a_block_takes_and_gives_back_is_seen():
    if not Path("/proc/self/status").exists():
        pytest.skip("this system does not say how much memory a process has of its own")
    assert bench_parts._own_memory() > 10
    gc.collect()  # what an earlier test left would go meanwhile
    before = bench_parts._own_memory()
    # Not malloc's memory, of which an earlier test may have left as much.
    with bench_parts._Peak() as peak, mmap.mmap(-1, 200_000_000) as held:
        for _ in range(200):
            held.write(b"1" * 1_000_000)
        peak.look()
    assert peak.most > before + 100
    assert bench_parts._own_memory() < peak.most - 100


def test_grad_cam_is_compared_with_forward_and_backward():
    found = bench_parts.grad_cam("test_resnet", side=32, count=8, repeats=1)
    assert found["ratio"] == pytest.approx(found["rate"]["Grad-CAM"] / found["rate"]["forward and backward"])


def test_every_part_has_words_for_a_terminal():
    made_up = {
        "augmentation": [{"side": 64, "skinbook": 0.06}],
        "store": {"images": 10, "ratio": 1.0},
        "large": {"images": 10, "ratio": 1.0, "memory": 1.0},
        "grad-cam": {"ratio": 0.5, "network": "resnet18"},
        "waits": {"a first cell": 1.0},
        "company": {"alone, spinning short": 700.0},
        "chapters": {"01_eda": 20.0},
    }
    assert set(made_up) == set(bench_parts.PARTS)
    assert all(bench_parts.told(part, found) for part, found in made_up.items())


def test_threads_that_spin_and_sleep_are_measured_beside_a_busy_program(monkeypatch):
    asked = []
    monkeypatch.setattr(
        bench_parts,
        "_apart",
        lambda case, arms, turns, environment, count=None: (asked.append(environment), {"rate": float(len(asked))})[1],
    )
    monkeypatch.setattr(bench_parts, "BUSY", (0, 2))
    found = bench_parts.company(repeats=1)
    assert list(found) == [
        f"{beside}, spinning {how}"
        for beside in ("alone", "beside 2 busy programs")
        for how in ("long", "short", "none")
    ]
    assert asked == [environment for environment in bench_parts.SPINNING.values() for _ in range(2)] * 2
