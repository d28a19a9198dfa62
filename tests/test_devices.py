"""The same training in one process and in several; what the page on many devices says and computes.

This file is also the script that a launcher starts several times: each process leaves its findings as JSON. And
`python tests/test_devices.py measure data` measures what the page says of two processes, and writes `data/devices.json`.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import typing
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import nn

from skinbook import (
    bench,
    bench_parts,
    chapter,
    cli,
    cli_models,
    copied,
    keyed,
    pages,
    strongest,
    strongest_masks,
    training,
)
from skinbook.augment import Augment
from skinbook.batches import Batches, own_device
from skinbook.config import SkinbookError, book_data
from skinbook.data import lab
from skinbook.training import fit, predict

PAGE = Path(__file__).resolve().parent.parent / "chapters" / "scaling.md"
EPOCHS = 4
# Absolute, of a loss that falls from 1.1 to 0.3. A weight was at most 9e-8 from that of one process (Adam, batches of 32 and
# of 27 and 28).
SAME, BATCH_NORM = (pages.ALLOWED[f"{word} batch normalisation"] for word in ("without", "with"))
SAME_WEIGHTS = 1e-5


def a_network(norm=False, seed=0, dropout=0.0):
    torch.manual_seed(seed)
    layers = []
    for channels in (3, 8):
        layers += [nn.Conv2d(channels, 8, 3, stride=2), *([nn.BatchNorm2d(8)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(8, 3))


def photographs(rows, batch_size=32, **options):
    """Squares of three colours with noise."""
    labels = keyed.integers("labels", 240, 3)
    pixels = keyed.uniform("noise", 240 * 16 * 16 * 3).reshape(240, 16, 16, 3) * 180
    pixels[np.arange(240), :, :, labels] += 40
    return Batches(pixels.astype(np.uint8), labels, np.asarray(rows), batch_size, **options)


CHANGED = {"shuffle": True, "augment": Augment(flip=True, brightness=0.1)}


class Unused(nn.Module):
    """A network with a layer that it never calls, as timm's MobileNets have behind their features."""

    def __init__(self):
        super().__init__()
        self.used = a_network()
        self.unused = nn.Linear(3, 3)

    def forward(self, images):
        return self.used(images)


class StoppedError(Exception):
    pass


class Loss(nn.CrossEntropyLoss):
    """Cross-entropy that stops the run at one of its calls, in every process alike, and may lie a little."""

    def __init__(self, stop_at=0, lie=0.0, weight=None):
        super().__init__(weight)
        self.left, self.lie = stop_at, lie

    def forward(self, logits, labels):
        self.left -= 1
        if self.left == 0:
            raise StoppedError
        return super().forward(logits, labels) + self.lie


def trained(network, train=range(165), validation=range(165, 240), **options):
    """What a run leaves, ready for JSON: its history, weights, best epoch and precision."""
    given = {"epochs": EPOCHS, "learning_rate": 1e-2, "log": None, "loss": Loss()} | options
    result = fit(network, photographs(train, **CHANGED), photographs(validation), **given)
    weights = torch.cat([value.double().flatten() for value in network.state_dict().values()])
    return {**vars(result), "history": result.history.to_dict("list"), "weights": weights.tolist()}


def stopped(network, **options):
    """A run that is stopped in its third epoch: six batches and one look at validation before it in each."""
    with pytest.raises(StoppedError):
        trained(network, loss=Loss(stop_at=2 * 7 + 3), **options)


def refusal(*arguments, **options):
    with pytest.raises(SkinbookError) as refused:
        fit(*arguments, **options)
    return str(refused.value)


CURVES = {
    "a batch of 32 shared by two": (a_network, {"train": range(160), "validation": range(160, 240)}),
    "batches of 27 and 28": (a_network, {}),
    "SGD": (a_network, {"optimizer": "sgd", "learning_rate": 0.1}),
    "a loss with class weights": (a_network, {"loss": Loss(weight=torch.tensor([1.0, 2.0, 4.0]))}),
    "moving average": (a_network, {"average": 0.8, "schedule": "plateau"}),
    "a layer that is not used": (Unused, {"weight_decay": 0.1}),
}
FORGETFUL = {"average": 0.8, "patience": 3}  # beside batch normalisation and dropout: all that a process has of its own


def findings(folder: Path) -> dict:
    """What one of two processes finds."""
    rank = int(os.environ["RANK"])
    found = {name: trained(network(), **options) for name, (network, options) in CURVES.items()}
    found["batch norm"] = trained(a_network(norm=True))

    network = a_network(norm=True).eval()
    for name, rows in {"75 in three batches": range(165, 240), "one batch": [4, 4, 7]}.items():
        some = photographs(rows)
        found[name] = [predict(network, some, share=(rank, 2)).tolist(), predict(network, some).tolist()]

    written, logged, plain = [], [], training.replaced
    training.replaced = lambda file: (written.append(file.name), plain(file))[1]
    file = folder / "two.safetensors"
    found["undisturbed"] = trained(a_network(True, dropout=0.2), checkpoint=folder / "whole.safetensors", **FORGETFUL)
    stopped(a_network(True, dropout=0.2), checkpoint=file, log=logged.append, **FORGETFUL)
    found["written and logged"] = [len(written), len(logged)]
    found["seed of dropout"] = torch.initial_seed()
    found["resumed"] = trained(a_network(True, 7, 0.2), checkpoint=file, **FORGETFUL)
    found["begun in one process"] = trained(a_network(seed=7), checkpoint=folder / "one.safetensors")

    found["networks that differ"] = trained(a_network(True, rank, 0.2), **FORGETFUL)
    found["losses that differ"] = trained(a_network(), loss=Loss(lie=rank))
    training.faster_precision = lambda *_: ("bf16", "fp32")[rank]
    found["precision"] = trained(a_network(), precision="auto", epochs=1)["precision"]

    found["too small"] = refusal(a_network(), photographs(range(3), batch_size=1), epochs=1)
    private = folder / ("two.safetensors" if rank == 0 else "nowhere.safetensors")
    more = {"checkpoint": private, "learning_rate": 1e-2, "loss": Loss(), **FORGETFUL}
    sets = photographs(range(165), **CHANGED), photographs(range(165, 240))
    found["private disk"] = refusal(a_network(True), *sets, epochs=EPOCHS, **more)
    return found


def launched(*commands: list) -> str:
    """Run commands beside each other, each with one thread a process; what they printed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "SKINBOOK_PRECISION"):
        environment.pop(name, None)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "env": environment}
    running = [subprocess.Popen([sys.executable, *map(str, command)], **pipes) for command in commands]
    try:
        said = [process.communicate(timeout=240)[0] for process in running]
    finally:
        for process in running:
            process.terminate()  # a launcher that still runs then ends its processes
            process.wait(60)
    assert [process.returncode for process in running] == [0] * len(running), "\n".join(said)[-6000:]
    return "".join(said)


def a_free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """The findings of both processes, from one start of torchrun; one checkpoint comes from a single process."""
    folder = tmp_path_factory.mktemp("two")
    stopped(a_network(), checkpoint=folder / "one.safetensors")
    launched(["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__, "two", folder])
    return [json.loads((folder / f"found-{rank}.json").read_text(encoding="utf-8")) for rank in range(2)]


def apart(one, other, column):
    return np.abs(np.array(one["history"][column]) - np.array(other["history"][column])).max()


LOSSES = ("train loss", "validation loss")


@pytest.mark.parametrize("name", CURVES)
@pytest.mark.slow
def test_two_processes_train_as_one(two, name):
    network, options = CURVES[name]
    alone = trained(network(), **options)
    assert alone["history"]["train loss"][-1] < alone["history"]["train loss"][0] - 0.02  # it does learn
    assert max(apart(two[0][name], alone, column) for column in LOSSES) < SAME
    assert two[0][name]["best_epoch"] == alone["best_epoch"]
    assert np.abs(np.subtract(two[0][name]["weights"], alone["weights"])).max() < SAME_WEIGHTS


@pytest.mark.slow
def test_with_batch_normalisation_they_train_nearly_as_one(two):
    alone = trained(a_network(norm=True))
    assert SAME < max(apart(two[0]["batch norm"], alone, column) for column in LOSSES) < BATCH_NORM


@pytest.mark.slow
def test_both_processes_end_with_the_same_history_and_weights(two):
    runs = [name for name, found in two[0].items() if isinstance(found, dict)]
    assert len(runs) == len(CURVES) + 6
    assert [name for name in runs if two[0][name] != two[1][name]] == []


@pytest.mark.parametrize(("name", "count"), [("75 in three batches", 75), ("one batch", 3)])
@pytest.mark.slow
def test_predictions_are_gathered_without_one_too_many_or_too_few(two, name, count):
    (shared, alone), other = two[0][name], two[1][name][0]
    assert len(shared) == count
    assert shared == alone
    assert shared == other


def test_each_process_predicts_its_part():
    some = photographs(range(165, 240))
    parts = [[batch.rows.tolist() for batch in some.epoch(share=(k, 2), whole=True)] for k in range(2)]
    assert [len(part) for part in parts] == [2, 1]
    assert parts[0][0] + parts[1][0] + parts[0][1] == list(range(165, 240))


def test_each_process_knows_the_labels_of_the_whole_batch():
    (first,), (second,) = (list(photographs(range(31)).epoch(share=(k, 2))) for k in range(2))
    assert (len(first.labels), len(second.labels)) == (16, 15)
    for part in (first, second):
        assert torch.equal(part.all_labels, torch.cat([first.labels, second.labels]))
    (whole,) = photographs(range(31)).epoch()
    assert whole.all_labels is None


@pytest.mark.slow
def test_a_run_of_two_goes_on_where_it_was_stopped(two):
    assert two[0]["resumed"] == two[0]["undisturbed"]


@pytest.mark.slow
def test_two_go_on_where_one_was_stopped(two):
    alone = trained(a_network())
    assert len(alone["history"]["epoch"]) == EPOCHS
    assert max(apart(two[0]["begun in one process"], alone, column) for column in LOSSES) < SAME
    assert np.abs(np.subtract(two[0]["begun in one process"]["weights"], alone["weights"])).max() < SAME_WEIGHTS


@pytest.mark.slow
def test_only_the_main_process_writes_and_logs(two):
    assert two[0]["written and logged"] == [EPOCHS + 2, 2]
    assert two[1]["written and logged"] == [0, 0]


@pytest.mark.slow
def test_the_main_process_counts_where_they_differ(two):
    assert two[1]["networks that differ"]["history"] == two[0]["undisturbed"]["history"]
    assert two[1]["networks that differ"]["weights"] == two[0]["undisturbed"]["weights"]
    honest = two[0]["batches of 27 and 28"]["history"]
    assert two[1]["losses that differ"]["history"] == honest
    assert [found["precision"] for found in two] == ["bf16", "bf16"]


@pytest.mark.slow
def test_dropout_is_another_in_each_process(two):
    assert two[0]["seed of dropout"] != two[1]["seed of dropout"]


@pytest.mark.slow
def test_what_several_processes_cannot_do_is_said_in_each(two):
    for found in two:
        assert found["too small"].startswith("A batch of 1 cannot be shared by 2 processes: raise batch_size")
        assert found["private disk"].endswith("it must lie on a disk that all machines share.")


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert own_device("cuda") == "cuda"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert [own_device(device) for device in ("cuda", "cuda:0", "cpu")] == ["cuda:1", "cuda:0", "cpu"]


# What the page shows


def shown(language: str, containing: str) -> str:
    """The first block of code on the page that holds some text."""
    blocks = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return next(block for block in blocks if containing in block)


def as_shown(folder: Path) -> None:
    """The notebook cell of the page, on small photographs in place of a chapter's."""
    from skinbook import chapter

    def setup(name):
        assert name == "03_cnn_lstm"
        (folder / f"process {os.environ.get('RANK')} of {os.environ.get('WORLD_SIZE')}").touch()
        sizes = SimpleNamespace(image=32, network="test_resnet", batch_size=32, epochs=2, learning_rate=1e-3)
        some = photographs(range(240))
        rows = {"train": np.arange(160), "validation": np.arange(160, 240)}
        return SimpleNamespace(
            recipe=SimpleNamespace(**vars(sizes), weights="none"),
            classes=("nv", "mel", "bkl"),
            table={"dx": np.array(["nv", "mel", "bkl"])[some.labels]},
            split=SimpleNamespace(rows=rows.__getitem__),
            pixels=lambda size: SimpleNamespace(pixels=some.pixels),
            device="cpu",
            seed=0,
        )

    chapter.setup = setup
    cell = shown("python", "notebook_launcher").replace(
        "num_processes=2", f'num_processes=2, use_port="{a_free_port()}"'
    )
    assert "use_port" in cell
    os.chdir(folder)
    after: dict = {}
    exec(compile(cell, "cell", "exec"), after)
    with safe_open("run.safetensors", "pt") as held:
        best = {name: held.get_tensor(f"best/{name}") for name in after["network"].state_dict()}
    assert all(torch.equal(value, best[name]) for name, value in after["network"].state_dict().items())


@pytest.mark.slow
def test_the_notebook_cell_of_the_page_trains_in_two_processes(tmp_path):
    said = launched([__file__, "notebook", tmp_path])
    processes = ["process 0 of 2", "process 1 of 2", "process None of None"]  # the last takes the weights
    assert sorted(file.name for file in tmp_path.glob("process*")) == processes
    assert [said.count(f"epoch {number} ") for number in (1, 2, 3)] == [1, 1, 0]
    assert (tmp_path / "run.safetensors").is_file()


@pytest.mark.slow
def test_two_machines_train_as_one_with_the_command_of_the_page(tmp_path):
    command = shown("console", "accelerate launch").replace("\\\n", " ").split("accelerate launch")[1].split()
    changed = {"--num_processes": "2", "--main_process_ip": "127.0.0.1", "--main_process_port": str(a_free_port())}
    agents = []
    for rank in ("0", "1"):
        value = changed | {"--machine_rank": rank}
        flags = [value.get(before, word) for before, word in zip(["", *command], command, strict=False)]
        assert flags.pop() == "train.py"
        agents.append(["-m", "accelerate.commands.launch", *flags, __file__, "machines", tmp_path])
    launched(*agents)
    first, second = (json.loads((tmp_path / f"found-{rank}.json").read_text(encoding="utf-8")) for rank in range(2))
    alone = trained(a_network(), epochs=1)
    assert first == second
    assert max(apart(first["run"], alone, column) for column in LOSSES) < SAME


TRAINS = {
    "a chapter": lambda folder: chapter.setup("03_cnn_lstm"),
    "train": lambda folder: cli_models.train(folder, edition="lab"),
    "strongest": lambda folder: strongest.carry_out(strongest.Order(None, 0, "lab", folder, 1, "cpu")),
    "outline": lambda folder: strongest_masks.run("lab", folder=folder),
    "copied": lambda folder: copied.carry_out(copied.Order(None, "seen", 0, "lab", folder, 1, "cpu")),
}
SUMS: list[tuple[typing.Any, str, bool]] = [
    (torch.backends.cudnn, "deterministic", True),
    (torch.backends.cudnn, "benchmark", False),
]
SUMS += [(kind, "allow_tf32", False) for kind in (torch.backends.cudnn, torch.backends.cuda.matmul)]


@pytest.fixture
def careless():
    """A GPU would sum as it pleases; afterwards, all is as before."""
    before = [getattr(kind, name) for kind, name, _ in SUMS]
    for kind, name, wanted in SUMS:
        setattr(kind, name, not wanted)
    yield
    for (kind, name, _), value in zip(SUMS, before, strict=True):
        setattr(kind, name, value)


@pytest.mark.usefixtures("careless")
@pytest.mark.parametrize("way", TRAINS)
def test_whatever_trains_asks_a_gpu_to_sum_alike_in_every_run(way, tmp_path, monkeypatch):
    def stop(*_):
        raise StoppedError

    for later in ("skinbook.data.catalog.load", "skinbook.chapter.Chapter"):
        monkeypatch.setattr(later, stop)
    with pytest.raises(StoppedError):
        TRAINS[way](tmp_path)
    assert [getattr(kind, name) for kind, name, _ in SUMS] == [wanted for *_, wanted in SUMS]


def test_a_bench_trains_in_its_case_s_precision(monkeypatch):
    given = {}

    def run(command, env, **rest):
        given.update(env)
        return subprocess.CompletedProcess(command, 0, "{}", "")

    monkeypatch.setattr(bench.subprocess, "run", run)
    monkeypatch.setenv("SKINBOOK_PRECISION", "bf16")
    bench._apart(bench.Case("lab", 32, "test_resnet"), ("limit",), 1, {"GOMP_SPINCOUNT": "0"}, count=8)
    assert (given["SKINBOOK_PRECISION"], given["GOMP_SPINCOUNT"]) == ("fp32", "0")


def test_the_bench_names_all_its_parts():
    about = typing.get_type_hints(cli.bench_command, include_extras=True)["parts"].__metadata__[0].help
    assert set(about.split(";")[0].split(", ")) == {"training", *bench_parts.PARTS}


CASE = {"network": "resnet18", "side": 64, "precision": "fp32", "rate": {"skinbook": 80.0}}
MEASURED = {
    "machine": {"processor": "a processor", "cores": 2, "accelerator": None, "torch": "2.0", "date": "2026-01-02"},
    "training": [
        CASE | {"source": "lab", "memory": {"skinbook": 600.0}, "device_memory": {"skinbook": 0.0}},
        CASE | {"source": "ham10000", "memory": {"skinbook": 1.0}, "device_memory": {"skinbook": 0.0}},
        CASE | {"source": "lab", "side": 224, "memory": {"skinbook": 2000.0}, "device_memory": {"skinbook": 5000.0}},
    ],
    "store": {"images": 10_015, "side": 128, "store_seconds": 40.0},
}


def test_what_so_many_photographs_take_follows_from_what_was_measured(tmp_path):
    (tmp_path / "cpu.json").write_text(json.dumps(MEASURED), encoding="utf-8")
    said = pages.at_scale(tmp_path)
    assert "| 64 × 64 | 4.9 GB |" in said  # 400,000 · 64 · 64 · 3
    assert "**2 cores of a processor, torch 2.0, measured 2026-01-02**; one epoch is 400,000 photographs:" in said
    rows = [line for line in said.splitlines() if line.startswith("| resnet18")]
    assert rows == [
        "| resnet18 | 64 × 64 | fp32 | 80/s | 83 minutes | 0.98 MB/s | 630 MB |",
        "| resnet18 | 224 × 224 | fp32 | 80/s | 83 minutes | 12 MB/s | 2.1 GB, GPU 5.2 GB |",
    ]
    assert "(10,015 of HAM10000, to 128 pixels) would take 27 minutes there" in said
    assert "not measured yet" not in said
    slower = MEASURED | {"training": [MEASURED["training"][0] | {"rate": {"skinbook": 1.0}}]}
    (tmp_path / "cpu.json").write_text(json.dumps(slower), encoding="utf-8")
    assert "| 1/s | 110 hours |" in pages.at_scale(tmp_path)


def test_the_page_says_where_nothing_is_measured_and_refuses_another_file(tmp_path):
    assert "is not measured yet" in pages.at_scale(tmp_path / "nowhere")
    (tmp_path / "cpu.json").write_text("{}", encoding="utf-8")
    with pytest.raises(SkinbookError, match=r"cpu\.json in .* is not what `skinbook bench` saves"):
        pages.at_scale(tmp_path)


def test_how_far_one_seed_moves_is_read_off_the_tolerances(monkeypatch):
    runs = [{"seed": 0, "threads": 1}, {"seed": 1, "threads": 1}, {"seed": 0, "threads": 1, "instructions": "avx2"}]
    held = {
        "runs": runs,
        "reports": {
            "accuracy": {"values": [0.5, 0.9, 0.53]},
            "AUC": {"values": [0.75, 0.1, 0.75]},
            "photographs": {"values": [7, 7, 9]},  # a count is no share
            "in years": {"values": [40.5, 40.5, 41.5]},
            "undefined": {"values": [None, 0.5, 0.5]},
        },
        "claims": {"better": {"verdicts": ["holds", "undecided", "holds"]}, "worse": {"verdicts": ["a", "a", "b"]}},
    }
    monkeypatch.setattr(pages.ledger, "held", lambda *_: ["07_x", "01_alone"])
    alone = {"runs": runs[:1], "reports": {"a": {"values": [0.5]}}, "claims": {}}
    monkeypatch.setattr(pages.ledger, "read", lambda *where: held if where[-1] == "07_x" else alone)
    rows = pages.ways().splitlines()[2:]
    assert rows == ["| [07](07_x.ipynb) | 1, 1 (AVX2) | 2 | 0.0150 | 0.030 | 1 of 2 |"]


def test_the_speed_of_each_machine_is_a_table_and_a_list(tmp_path):
    assert "Nothing is measured yet" in pages.speed(tmp_path)
    rates = {"limit": 100.0, "skinbook": 96.0, "copied": 48.0, "timm": 32.0}
    runs = {arm: [rate, (1.25 if arm == "limit" else 1) * rate, rate] for arm, rate in rates.items()}
    case = MEASURED["training"][0] | {"rate": rates, "rates": runs, "middle": True}
    early = {key: value for key, value in case.items() if key != "middle"} | {"network": "test_resnet"}
    company = {"alone, spinning long": 1393.0, "alone, spinning none": 835.0}
    company |= {f"beside 1 busy program, spinning {kind}": 400.0 for kind in ("long", "none")}
    measured = {
        "machine": MEASURED["machine"] | {"instructions": "AVX2"},
        "training": [case | {"precision": "bf16"}, case, early],
        "waits": {"a first cell": 2.0},
        "company": company,
        "chapters": {"01_eda": 10.3, "02_x (failed)": 20.4},
    }
    (tmp_path / "cpu.json").write_text(json.dumps(measured), encoding="utf-8")
    said = pages.speed(tmp_path)
    rows = [f"| resnet18 | lab, 64 px, {kind} | 96 | 0.96 | 2.00 | 3.00 | 25% |" for kind in ("fp32", "bf16")]
    rows = ["| test_resnet | lab, 64 px, fp32 | 96 | 0.96 |  |  | 25% |", *rows]  # the start of its workers was timed
    assert "\n".join(rows) + "\n\n- a first cell: 2.00 s\n- seconds that the test" in said
    assert "takes: 01 10, 02 (failed) 20; together 31\n\n" in said
    assert "| Alone | 1,400 | 840 |\n| Beside 1 busy program | 400 | 400 |" in said
    assert "(AVX2), torch " in said
    (tmp_path / "cpu.json").write_text(json.dumps({"machine": MEASURED["machine"]}), encoding="utf-8")
    with pytest.raises(SkinbookError, match="is not what `skinbook bench` saves"):
        pages.speed(tmp_path)
    torn = measured | {"training": [case | {"rates": runs | {"timm": [1.0]}}]}
    (tmp_path / "cpu.json").write_text(json.dumps(torn), encoding="utf-8")
    with pytest.raises(SkinbookError, match="is not what `skinbook bench` saves"):
        pages.speed(tmp_path)


def test_the_page_is_as_generated():
    page = PAGE.read_text(encoding="utf-8")
    assert page == pages.scaling(page, PAGE.parent.parent / "data" / "bench")


def test_the_table_of_an_archive_takes_under_a_gigabyte():
    table = lab.recipe()
    assert pages.ARCHIVE * table.memory_usage(deep=True).sum() / len(table) < 0.5e9


def test_what_the_tests_allow_is_more_than_was_measured():
    measured = json.loads((book_data() / "devices.json").read_text(encoding="utf-8"))["networks"]
    assert set(measured) == set(pages.ALLOWED)
    assert all(found["farthest"] < pages.ALLOWED[name] < found["seeds"] for name, found in measured.items())


def curves() -> dict[str, list[float]]:
    """Both loss curves of 8 seeds, two sizes, two optimisers, and networks with and without batch normalisation."""
    found = {}
    every = itertools.product((False, True), (160, 165), (("adamw", 1e-2), ("sgd", 1e-1)), range(8))
    for norm, count, (optimizer, rate), seed in every:
        options = {"optimizer": optimizer, "learning_rate": rate, "epochs": 8}
        run = trained(a_network(norm, seed), range(count), range(count, 240), **options)
        word = "with" if norm else "without"
        found[f"{word} batch normalisation/{count}/{optimizer}/{seed}"] = [x for c in LOSSES for x in run["history"][c]]
    return found


def measure(folder: Path) -> None:
    """How far the curves of two processes are from those of one, and of one seed from another, the largest of all."""
    with tempfile.TemporaryDirectory() as place:
        launched([__file__, "curves", place])
        launched(["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__, "curves", place])
        one, two = (json.loads((Path(place) / f"curves-{count}.json").read_text(encoding="utf-8")) for count in (1, 2))
    networks = {}
    for name in pages.ALLOWED:
        keys = [key for key in one if key.startswith(f"{name}/")]
        pairs = itertools.combinations(keys, 2)
        alike = [(a, b) for a, b in pairs if a.rpartition("/")[0] == b.rpartition("/")[0]]
        networks[name] = {
            "farthest": max(np.abs(np.subtract(one[key], two[key])).max() for key in keys),
            "seeds": max(np.abs(np.subtract(one[a], one[b])).max() for a, b in alike),
            "runs": len(keys),
        }
    about = {"torch": torch.__version__.split("+")[0], "cores": os.cpu_count(), "networks": networks}
    (folder / "devices.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    mode, folder = sys.argv[1], Path(sys.argv[2])
    if mode == "notebook":
        as_shown(folder)
    elif mode == "measure":
        measure(folder)
    elif mode == "curves":
        found = curves()
        if os.environ.get("RANK", "0") == "0":
            (folder / f"curves-{os.environ.get('WORLD_SIZE', '1')}.json").write_text(
                json.dumps(found), encoding="utf-8"
            )
    else:
        found = findings(folder) if mode == "two" else {"run": trained(a_network(), epochs=1)}
        (folder / f"found-{os.environ['RANK']}.json").write_text(json.dumps(found), encoding="utf-8")
