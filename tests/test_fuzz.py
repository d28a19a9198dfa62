"""Damaged copies of every kind of file that skinbook reads: each is refused in a sentence that names it, or read right.

Where a format has checksums (PNG, ZIP, NPZ) or we give it one (bundles, checkpoints, pixel stores), "right" means the
same to the bit. A JPEG, a table or somebody's weights have none: there what is read must at least be what it claims.
"""

from __future__ import annotations

import io
import json
import shutil
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import damaged
import numpy as np
import pandas as pd
import pytest
import torch
from layouts import HAM_HEADER, dermamnist, ham_rows, photograph, write_csv
from PIL import Image
from torch import nn

from skinbook import audit_given, config, evaluate_given, ledger, predict_files
from skinbook.batches import Batches
from skinbook.bundle import Bundle
from skinbook.config import SkinbookError
from skinbook.data import dermamnist as dermamnist_reader
from skinbook.data import download, ham10000, images, pixels, tables
from skinbook.data.schema import COLUMNS, Dataset
from skinbook.networks import Backbone
from skinbook.training import fit

# What several tests have in common: their row on the maintainers' page.
damaged_copies = pytest.mark.holds(
    "bad input",
    "damaged copies of files, drawn from fixed keys",
    "refused in a sentence that names the file, or read right",
)


@pytest.fixture(autouse=True)
def no_clock(monkeypatch):
    """ZIP and NPZ files are dated, and a damaged copy is the same at every run only if the date is."""
    dated = SimpleNamespace(time=lambda: 0.0, localtime=lambda *_: (2026, 1, 1, 0, 0, 0))
    monkeypatch.setattr(zipfile, "time", dated)


def fuzzed(name: str, file: Path, count: int, read: Callable[[], object], record_property, names: str = "") -> None:
    """`read` damaged copies of a file, which return, or raise one sentence that names it; the file is put back."""
    whole = file.read_bytes()
    refused = 0
    for data in damaged.mutants(name, whole, count):
        file.write_bytes(data)
        said = None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Pillow's, on damage that it can live with
                read()
        except SkinbookError as error:
            said = str(error)
        if said is not None:
            refused += 1
            assert (names or file.name) in said
            assert "\n" not in said
            assert said.endswith(".")
    file.write_bytes(whole)
    read()
    assert refused  # or nothing was damaged
    record_property("measured", f"{count * damaged.INPUTS} of {name}")


SMALL = photograph("fuzz", 48, 36)
PICTURES = {
    "JPEG": damaged.saved(SMALL, "JPEG", quality=90, exif=damaged.marked(6)),
    "progressive JPEG": damaged.saved(SMALL, "JPEG", progressive=True, icc_profile=damaged.profile("Adobe RGB")),
    "CMYK JPEG": damaged.saved(SMALL.convert("CMYK"), "JPEG"),
    "PNG": damaged.saved(SMALL, "PNG", exif=damaged.marked(8), icc_profile=damaged.profile("Display P3")),
    "palette PNG": damaged.saved(SMALL.quantize(16), "PNG", transparency=3),
    "16-bit PNG": damaged.saved(Image.fromarray(np.asarray(SMALL.convert("L")).astype(np.uint16) * 257), "PNG"),
    "TIFF": damaged.saved(SMALL, "TIFF", compression="tiff_lzw"),
    "BMP": damaged.saved(SMALL, "BMP"),
    "WebP": damaged.saved(SMALL, "WEBP", exif=damaged.marked(3)),
}


@damaged_copies
@pytest.mark.parametrize("kind", PICTURES)
def test_pictures(tmp_path, kind, record_property):
    file = tmp_path / "picture.bin"
    file.write_bytes(PICTURES[kind])
    right = np.asarray(images.decode(file)[0])

    def read():
        found, _ = images.decode(file, at_least=8)
        assert found.mode == "RGB"
        assert found.width * found.height <= images.LARGEST
        if kind.endswith("PNG"):
            np.testing.assert_array_equal(np.asarray(found), right)

    fuzzed(kind, file, 60, read, record_property)


@damaged_copies
@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays(tmp_path, save, record_property):
    file = dermamnist(tmp_path, counts=(3, 2, 2)) / "dermamnist.npz"
    with np.load(file) as archive:
        save(file, **{name: archive[name] for name in archive.files})

    def read():
        found = dermamnist_reader.load(tmp_path)
        return found.table, [found.images.read(name) for name in found.table["image_id"]]

    table, photographs = read()

    def same():
        found = read()
        pd.testing.assert_frame_equal(found[0], table)
        np.testing.assert_array_equal(found[1], photographs)

    fuzzed(f"NPZ by {save.__name__}", file, 60, same, record_property)


@damaged_copies
@pytest.mark.parametrize("packed", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_archives(tmp_path, packed, record_property):
    inside = tmp_path / "inside"
    inside.mkdir()
    entries = {"part/a.jpg": PICTURES["JPEG"], "b.png": PICTURES["PNG"], "t.csv": b"image,dx\nI1,nv\n" * 20}
    with zipfile.ZipFile(inside / "z.zip", "w", packed) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)

    def read():
        try:
            folder = download.unpack(inside / "z.zip", inside / "z")
            found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
            assert found == entries
        finally:
            shutil.rmtree(inside / "z", ignore_errors=True)
            assert [p.name for p in inside.iterdir()] == ["z.zip"]
            assert [p.name for p in tmp_path.iterdir()] == ["inside"]

    fuzzed(f"ZIP, {packed}", inside / "z.zip", 100, read, record_property)


@damaged_copies
def test_an_archive_in_whose_list_a_name_is_damaged(tmp_path):
    """Its ending is gone, too, and what is no photograph and no table is passed over."""
    file = tmp_path / "z.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.png", PICTURES["PNG"])
        archive.writestr("b.png", PICTURES["PNG"])
        archive.writestr("read.me", b"not wanted")
    assert sorted(p.name for p in download.unpack(file, tmp_path / "whole").iterdir()) == ["a.png", "b.png"]
    data = file.read_bytes()
    at = data.rindex(b"b.png")
    file.write_bytes(data[:at] + b"b.\xff\xff\xff" + data[at + 5 :])
    with pytest.raises(SkinbookError, match=r"z\.zip is a damaged ZIP"):
        download.unpack(file, tmp_path / "z")
    assert not (tmp_path / "z").exists()


@damaged_copies
@pytest.mark.parametrize(("delimiter", "encoding"), [(",", "utf-8"), (";", "cp1252"), ("\t", "utf-16")])
def test_tables(tmp_path, delimiter, encoding, record_property):
    rows = [[*row, 'said: "naevus; ü"'] for row in ham_rows(14)]
    file = write_csv(tmp_path / "t.csv", [*HAM_HEADER, "note"], rows, delimiter, encoding)
    split = write_csv(
        tmp_path / "s.csv", ["image", "part"], [[r[1], ("train", "test")[k % 2]] for k, r in enumerate(rows)]
    )
    for row in rows[:3]:
        SMALL.save(tmp_path / f"{row[1]}.jpg")
    turn = iter(range(10**9))

    def read():
        which = next(turn) % 4
        if which == 0:
            found = ham10000.read_table(file)
            assert tuple(found.columns) == COLUMNS
            assert found["image_id"].is_unique
        elif which == 1:
            assert len(tables.read(file, [])) <= 14 * 5  # some changes repeat 64 bytes
        elif which == 2:
            audit_given.audit_given([split], file).judge()
        else:
            assert set(evaluate_given.read_labelled(file, tmp_path).files) <= {row[1] for row in rows[:3]}

    fuzzed(f"CSV in {encoding}", file, 30, read, record_property)


@damaged_copies
def test_splits_and_lists(tmp_path, record_property):
    rows = [[f"I{k}", ("train", "test", "val")[k % 3]] for k in range(20)]
    file = write_csv(tmp_path / "s.csv", ["image", "part"], rows)
    fuzzed("CSV of a split", file, 40, lambda: audit_given.audit_given([file]), record_property)
    lists = tmp_path / "train.txt"
    lists.write_text("\n".join(row[0] for row in rows), encoding="utf-8")

    def read():
        return audit_given.audit_given([f"train={lists}", f"test={lists}"])

    fuzzed("list of files", lists, 40, read, record_property)


def copied(source: Path, target: Path, without: tuple[str, ...] = ()) -> Path:
    """A copy that can be written, wherever it comes from: copying keeps a read-only checkout's permissions."""
    if source.is_file():
        shutil.copyfile(source, target)
        return target
    shutil.copytree(source, target, ignore=shutil.ignore_patterns(*without))
    for one in (target, *target.rglob("*")):
        one.chmod(one.stat().st_mode | 0o200)
    return target


@pytest.fixture
def bundle(tmp_path):
    """A copy of the book's own small model, and what it says of a photograph."""
    return copied(config.book_data("lab_bundle"), tmp_path / "bundle")


def answered(folder: Path) -> np.ndarray:
    return predict_files.open_model(folder).answers(np.array(SMALL.resize((64, 64)))[None]).probabilities


@damaged_copies
@pytest.mark.parametrize(("name", "count"), [("bundle.json", 30), ("weights-*.safetensors", 8)])
def test_bundles(bundle, name, count, record_property):
    """Each has a hash of the other and of itself: nothing but the same is taken."""
    right = answered(bundle)
    (file,) = bundle.glob(name)
    same = file.read_bytes()

    def read():
        found = answered(bundle)
        assert name == "bundle.json" or file.read_bytes() == same
        np.testing.assert_array_equal(found, right)

    fuzzed(name, file, count, read, record_property)


@damaged_copies
def test_weights_of_others(tmp_path, monkeypatch, record_property):
    """They have no checksum; what is taken fits the network, and is three numbers where colours are meant."""
    file = copied(config.book_data("lab_backbone.safetensors"), tmp_path / "test_resnet.safetensors")
    monkeypatch.setenv("SKINBOOK_WEIGHTS", str(file))

    def read():
        found = Backbone("test_resnet", "pretrained")
        assert len(found.mean) == len(found.std) == 3
        assert np.isfinite([*found.mean, *found.std]).all()

    fuzzed("safetensors", file, 25, read, record_property)


@damaged_copies
def test_checkpoints(tmp_path, record_property):
    """A bit that turned over in a weight is noticed, and never trained on."""

    def trained(file):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(48), nn.Linear(48, 2))
        batches = Batches(np.arange(8 * 48, dtype=np.uint8).reshape(8, 4, 4, 3), np.arange(8) % 2, np.arange(8), 4)
        fit(network, batches, epochs=1, learning_rate=1e-2, checkpoint=file, log=None, average=0.5)
        return torch.cat([value.flatten().float() for value in network.state_dict().values()])

    file = tmp_path / "run.safetensors"
    right = trained(file)

    def read():
        assert torch.equal(trained(file), right)

    fuzzed("checkpoint", file, 40, read, record_property)
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    with pytest.raises(
        SkinbookError, match=r"cannot be read \(it has changed since it was written\). Delete it to begin"
    ):
        trained(file)


@damaged_copies
@pytest.mark.parametrize("suffix", [".json", ".npy", ".chunks"])
def test_pixel_stores(tmp_path, suffix, record_property):
    """A damaged one is built anew, and a damaged list of what was finished takes over nothing that is wrong."""
    names = [f"I{k}" for k in range(70)]
    for name in names:
        photograph(name, 12, 9).save(tmp_path / f"{name}.png")
    source = images.Files({name: tmp_path / f"{name}.png" for name in names})
    dataset = Dataset("ham10000", pd.DataFrame({"image_id": names}), ("nv",), source)
    store = pixels.build(dataset, 8, tmp_path, progress=False)
    right = np.array(store.pixels)
    whole = {file.suffix: file.read_bytes() for file in (store.path, store.path.with_suffix(".json"))}
    listed = "".join(f"{k} {digest}\n" for k, digest in enumerate(json.loads(whole[".json"])["digests"]))
    file = store.path.with_suffix(suffix)
    for data in damaged.mutants(f"store{suffix}", whole.get(suffix, listed.encode()), 8):
        for kind, content in whole.items():
            store.path.with_suffix(kind).write_bytes(content)
        if suffix == ".chunks":  # as a kill leaves it
            store.path.rename(store.path.with_suffix(".npy.partial"))
        file.write_bytes(data)
        np.testing.assert_array_equal(pixels.build(dataset, 8, tmp_path, progress=False).pixels, right)
    record_property("measured", f"{8 * damaged.INPUTS} of a store's {suffix}")


@damaged_copies
@pytest.mark.parametrize("kind", ["results", "tolerances"])
def test_ledgers(tmp_path, monkeypatch, kind, record_property):
    copied(config.book_data(), tmp_path / "data", without=("*_bundle", "bench"))
    monkeypatch.setattr(ledger, "book_data", lambda *parts: tmp_path.joinpath("data", *parts))
    dials = "ham10000", "quick"
    chapter = ledger.held(kind, *dials)[0]
    file = ledger.file_of(kind, *dials)
    whole = json.loads(file.read_text(encoding="utf-8"))
    whole["chapters"] = {chapter: whole["chapters"][chapter]}
    file.write_text(json.dumps(whole), encoding="utf-8")
    names = list(ledger.read(kind, *dials, chapter)["reports"])

    def read():
        if kind == "results":
            ledger.page(chapter, *dials)
        for name in names[:2]:
            assert ledger.tolerance(*dials, chapter, name) >= ledger.EXACT
            ledger.value(name, chapter, *dials)

    fuzzed(f"ledger of {kind}", file, 60, read, record_property, names=f"data/{kind}/ham10000-quick.json")


@damaged_copies
@pytest.mark.parametrize("name", ["onnx.json", "model-*.onnx"])
def test_onnx(tmp_path, name, record_property):
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    from skinbook.networks import Classifier

    Bundle(Classifier(Backbone("test_resnet", "none"), 2), ("benign", "malignant"), 32).export_onnx(tmp_path)
    (file,) = tmp_path.glob(name)
    right = answered_at(tmp_path, 32)

    def read():
        np.testing.assert_array_equal(answered_at(tmp_path, 32), right)

    fuzzed(name, file, 15, read, record_property)


def answered_at(folder: Path, side: int) -> np.ndarray:
    return predict_files.open_model(folder).answers(np.array(SMALL.resize((side, side)))[None]).probabilities


def test_the_damage_is_the_same_at_every_run_and_of_every_kind():
    data = bytes(range(256)) * 4
    first = list(damaged.mutants("x", data, 50))
    assert first == list(damaged.mutants("x", data, 50))
    assert first != list(damaged.mutants("y", data, 50))
    assert len(set(first[:50])) == 50  # of more, two may be alike by chance
    assert {len(one) < len(data) for one in first} == {len(one) > len(data) for one in first} == {True, False}
    assert io.BytesIO(first[0]).read() != data
