"""The pixel store: right pixels, once, resumed after a kill, never half-written."""

import dataclasses
import errno
import faulthandler
import os
import signal
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from faults import FORK, KILLS, moments
from layouts import dermamnist, ham10000, photograph
from PIL import Image

from skinbook.config import SkinbookError
from skinbook.data import dermamnist as dermamnist_reader
from skinbook.data import ham10000 as ham10000_reader
from skinbook.data import pixels
from skinbook.data.images import Files
from skinbook.data.schema import Dataset

killed_while_built = pytest.mark.holds(
    "faults while working",
    "SIGKILL while the pixel store is built",
    "the next build takes over what was finished; the store is the same, byte for byte",
)
full_disk = pytest.mark.holds(
    "faults while working",
    "a disk that is full",
    "one sentence; what was there is whole, and with room the work ends as if nothing had been",
)


class Drawn:
    """Images made on the spot, counted; `at` is called with the number of images drawn so far."""

    def __init__(self, at=lambda count: None):
        self.count, self.at = 0, at

    def read(self, image_id):
        self.count += 1
        self.at(self.count)
        return np.full((9, 12, 3), int(image_id) % 251, dtype=np.uint8)

    def path(self, image_id):
        return None

    def fingerprint(self, image_ids):
        return f"{len(image_ids)} drawn"


def drawn(count=600, at=lambda count: None):
    table = pd.DataFrame({"image_id": [str(i) for i in range(count)]})
    return Dataset("lab", table, ("nv",), Drawn(at), provides=frozenset())


def leftovers(cache):
    return sorted(p.suffix for p in (Path(cache) / "pixels").glob("*") if p.suffix not in (".npy", ".json", ".lock"))


def test_rows_follow_the_table_and_masks_follow_the_images(tmp_path):
    dataset = ham10000_reader.load(ham10000(tmp_path / "data", size=(80, 60)))
    store = pixels.build(dataset, 32, tmp_path / "cache")
    masks = pixels.build(dataset, 32, tmp_path / "cache", what="masks")
    assert (store.pixels.shape, store.pixels.dtype) == ((28, 32, 32, 3), np.uint8)
    assert (masks.pixels.shape, masks.pixels.dtype) == ((28, 32, 32), np.uint8)
    assert store.image_ids == masks.image_ids == dataset.table["image_id"].tolist()
    assert store.fingerprint != masks.fingerprint
    assert store.rows(["ISIC_0000005", "ISIC_0000000"]).tolist() == [5, 0]
    with pytest.raises(SkinbookError, match=r"no image 'ISIC_9'"):
        store.rows(["ISIC_9"])
    # The dark patch is where the mask is 1, in the middle of a square cut from the centre.
    assert set(np.unique(masks.pixels)) == {0, 1}
    dark = store.pixels[..., 0] < 175
    assert (dark == masks.pixels.astype(bool)).mean() > 0.97
    assert not store.pixels.flags.writeable


def test_reduction_is_centred_and_antialiased():
    wide = Image.fromarray(np.tile(np.repeat(np.array([[0, 100, 200]], np.uint8), 30, axis=1)[..., None], (30, 1, 3)))
    cut = np.asarray(pixels.reduce(wide, (10, 10))).astype(int)  # the middle third alone, but for its very edge
    assert set(np.unique(cut[:, 1:-1])) <= {99, 100, 101}
    assert np.abs(cut - 100).max() <= 8
    assert pixels.reduce(wide, (10, 20)).size == (20, 10)
    stripes = Image.fromarray(np.tile(np.array([0, 255], np.uint8), (64, 32))[..., None].repeat(3, axis=2))
    assert np.abs(np.asarray(pixels.reduce(stripes, (16, 16))).astype(int) - 127).max() <= 12
    assert pixels.reduce(photograph("one", 1, 1), (8, 8)).size == (8, 8)


def test_rounding_never_puts_the_cut_outside_the_image():
    for width, height in ((600, 450), (450, 600), (200, 150), (1024, 767)):
        image = Image.new("L", (width, height))
        for size in range(1, 257):
            assert pixels.reduce(image, (size, size), Image.Resampling.BOX).size == (size, size)
            assert pixels.reduce(image, (size, 2 * size), Image.Resampling.BOX).size == (2 * size, size)


def test_a_mask_is_one_where_at_least_half_is_covered(tmp_path):
    class Quarters(Drawn):
        def read(self, image_id):
            mask = np.zeros((8, 8), dtype=bool)  # of the four quarters: none, 1/4, 2/4 and 3/4 covered
            mask[0:2, 4:6] = mask[4:6, 0:4] = mask[4:6, 4:8] = mask[6:8, 4:6] = True
            return mask

    dataset = drawn(1)
    store = pixels.build(dataclasses.replace(dataset, masks=Quarters()), 2, tmp_path, what="masks")
    assert store.pixels[0].tolist() == [[0, 0], [1, 1]]


def test_a_shape_of_its_own_and_arrays(tmp_path):
    dataset = dermamnist_reader.load(dermamnist(tmp_path / "data"))
    same = pixels.build(dataset, 28, tmp_path / "cache")
    np.testing.assert_array_equal(same.pixels[3], dataset.images.read("train_00003"))
    assert pixels.build(dataset, (14, 28), tmp_path / "cache").pixels.shape == (28, 14, 28, 3)


def test_a_second_build_reads_no_image(tmp_path):
    first = pixels.build(drawn(), 8, tmp_path)
    again = drawn()
    second = pixels.build(again, 8, tmp_path)
    assert again.images.count == 0
    assert first.fingerprint == second.fingerprint
    np.testing.assert_array_equal(second.pixels[:, 0, 0, 0], np.arange(600) % 251)


def test_other_pictures_of_the_same_names_and_lengths_have_a_store_of_their_own(tmp_path):
    stores = []
    for colour in ((200, 30, 30), (30, 200, 30)):
        file = tmp_path / str(colour) / "1.bmp"
        file.parent.mkdir()
        Image.new("RGB", (64, 48), colour).save(file)
        dataset = Dataset("given", pd.DataFrame({"image_id": ["1"]}), ("nv",), Files({"1": file}))
        stores.append(pixels.build(dataset, 8, tmp_path / "cache"))
        assert stores[-1].pixels[0, 0, 0].tolist() == list(colour)
    assert stores[0].path != stores[1].path


def test_a_damaged_store_is_built_anew(tmp_path):
    path = pixels.build(drawn(), 8, tmp_path).path
    whole = path.read_bytes()
    for damaged in (whole[:-5], whole[:-5] + b"12345", b""):
        path.write_bytes(damaged)
        again = drawn()
        assert pixels.build(again, 8, tmp_path).path.read_bytes() == whole
        assert again.images.count == 600
    path.with_suffix(".json").write_text("{}", encoding="utf-8")
    assert pixels.build(drawn(), 8, tmp_path).path.read_bytes() == whole


def test_large_stores_are_sampled(tmp_path, monkeypatch):
    monkeypatch.setattr(pixels, "VERIFY_ALL", 1)
    path = pixels.build(drawn(), 8, tmp_path).path
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    again = drawn()
    pixels.build(again, 8, tmp_path)
    assert again.images.count == 600


def build_and_die(what, number, cache, in_all, count):
    """In a process of its own: build, and be killed at the number-th image drawn, sync or rename."""
    faulthandler.dump_traceback_later(50, exit=True)  # where it hangs, if it does
    calls = [0]

    def die(*_):
        calls[0] += 1
        if calls[0] == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def dying(module, name):
        real = getattr(module, name)
        setattr(module, name, lambda *a: (real(*a), die())[0])

    def draw(_):
        in_all.value += 1
        if what == "image":
            die()

    if what != "image":
        dying(*{"sync": (pixels, "_to_disk"), "rename": (os, "replace")}[what])
    pixels.build(drawn(count, draw), 8, cache, workers=1 if what == "image" else 2)


def killed(what, number, cache, in_all=None, count=600):
    process = FORK.Process(target=build_and_die, args=(what, number, cache, in_all or FORK.Value("i", 0), count))
    process.start()
    process.join(60)
    return process.exitcode == -signal.SIGKILL


@killed_while_built
def test_after_kills_the_store_is_the_same_and_little_is_done_twice(tmp_path):
    undisturbed = pixels.build(drawn(), 8, tmp_path / "a").path.read_bytes()
    every = -(-600 // pixels.CHUNK)
    # In the first chunk, near the end, on syncing, and at both renames: every chunk that was finished is listed, but
    # for the three that may have been under way.
    for what, number, least, most in [
        ("image", 20, 0, 0),
        ("image", 550, 550 // pixels.CHUNK - 3, 550 // pixels.CHUNK),
        ("sync", 1, every, every),
        ("rename", 1, None, None),  # of the list that was taken over
        ("rename", 2, None, None),  # of the record
        ("rename", 3, None, None),  # of the store
    ]:
        assert killed(what, number, tmp_path / "b")
        lists = [p.read_text(encoding="utf-8").splitlines() for p in (tmp_path / "b" / "pixels").glob("*.chunks")]
        assert least is None or least <= len(lists[0]) <= most
    last = drawn()
    store = pixels.build(last, 8, tmp_path / "b")
    assert last.images.count == 0  # everything had been listed before the renames
    assert store.path.read_bytes() == undisturbed
    assert leftovers(tmp_path / "b") == []


@contextmanager
def held_elsewhere(lock):
    """A block in which another thread has a lock."""
    has, enough = threading.Event(), threading.Event()

    def hold():
        with lock:
            has.set()
            enough.wait(120)

    thread = threading.Thread(target=hold)
    thread.start()
    has.wait(60)
    try:
        yield
    finally:
        enough.set()
        thread.join()


def waits_for_tqdm():
    from tqdm import tqdm

    process = FORK.Process(target=lambda: tqdm(total=1, disable=True).close())
    process.start()
    process.join(1)
    waits = process.is_alive()
    process.kill()
    process.join()
    return waits


def test_a_process_forked_while_a_bar_holds_its_lock_builds_all_the_same(tmp_path):
    """Once in many hundred forks the thread that watches over tqdm's bars had their lock, and the child hung."""
    from tqdm import tqdm

    with held_elsewhere(tqdm.get_lock()):
        assert killed("image", 550, tmp_path)
        assert waits_for_tqdm(), "a bar of tqdm's own does wait, so this test can fail"


@killed_while_built
def test_a_kill_after_a_kill_costs_no_more_than_a_hundred_images_each(tmp_path, record_property):
    """Also one that comes before the next chunk is finished, when all that there is was taken over."""
    count, in_all, most = 200 * KILLS, FORK.Value("i", 0), 0
    for number in [*moments("images", 200), 1]:
        before = in_all.value
        listed = sum(len(p.read_text(encoding="utf-8").splitlines()) for p in (tmp_path / "pixels").glob("*.chunks"))
        assert killed("image", number, tmp_path, in_all, count)
        assert in_all.value - before == number
        (chunks,) = (tmp_path / "pixels").glob("*.chunks")
        kept = pixels.CHUNK * (len(chunks.read_text(encoding="utf-8").splitlines()) - listed)
        most = max(most, number - kept)
    rest = drawn(count)
    pixels.build(rest, 8, tmp_path)
    assert in_all.value + rest.images.count - count <= 3 * pixels.CHUNK * (KILLS + 1)
    assert most <= 3 * pixels.CHUNK == 96
    record_property("measured", f"{KILLS + 1} kills one after another, at most {most} images done twice each")


def test_a_chunk_is_written_while_the_next_is_decoded(tmp_path, monkeypatch):
    """The digest of the first chunk waits for an image of the third, which it could not if the two took turns."""
    begun, waited = threading.Event(), []
    digest = pixels._digest
    monkeypatch.setattr(pixels, "_digest", lambda rows: (waited.append(begun.wait(30)), digest(rows))[1])
    pixels.build(drawn(600, lambda count: count > 2 * pixels.CHUNK and begun.set()), 8, tmp_path)
    assert waited[0]


@pytest.mark.holds(
    "faults while working",
    "two processes that do the same work in one place at once",
    "they wait for each other or do it twice; the result is the same, byte for byte",
)
def test_two_processes_share_one_build(tmp_path):
    in_all = [FORK.Value("i", 0) for _ in range(2)]
    both = [FORK.Process(target=build_and_die, args=("image", 10_000, tmp_path, one, 600)) for one in in_all]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert sorted(one.value for one in in_all) == [0, 600]


def test_a_torn_or_false_list_of_chunks_is_not_trusted(tmp_path):
    stop = drawn(600, lambda count: count == 590 and os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        pixels.build(stop, 8, tmp_path, workers=1)
    listed = next((tmp_path / "pixels").glob("*.chunks"))
    listed.write_text("0 " + "0" * 32 + "\n77 " + "0" * 32 + "\n1 12", encoding="utf-8")
    rest = drawn()
    store = pixels.build(rest, 8, tmp_path)
    assert rest.images.count == 600
    np.testing.assert_array_equal(store.pixels[:, 0, 0, 0], np.arange(600) % 251)


@full_disk
def test_no_space_is_seen_before(tmp_path, monkeypatch):
    monkeypatch.setattr(pixels.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 64_000_000}))
    with pytest.raises(
        SkinbookError, match=r"No space left in .* for a pixel store of 0 MB. Free some, or set SKINBOOK_CACHE"
    ):
        pixels.build(drawn(), 8, tmp_path)
    assert leftovers(tmp_path) == []


@full_disk
def test_no_space_while_writing(tmp_path, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pixels, "_to_disk", full)
    with pytest.raises(SkinbookError, match=r"No space left in"):
        pixels.build(drawn(), 8, tmp_path)
    assert leftovers(tmp_path) == []
    assert not list((tmp_path / "pixels").glob("*.npy"))


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(
        SkinbookError, match=r"cannot be written in .*Set SKINBOOK_CACHE to a folder that you may write to"
    ):
        pixels.build(drawn(), 8, tmp_path / "file")


def test_a_broken_image_leaves_nothing(tmp_path):
    dataset = ham10000_reader.load(ham10000(tmp_path / "data"))
    path = dataset.images.path("ISIC_0000020")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(SkinbookError, match=r"ISIC_0000020.jpg is cut off or damaged"):
        pixels.build(dataset, 16, tmp_path / "cache")
    assert leftovers(tmp_path / "cache") == []
    assert not list((tmp_path / "cache" / "pixels").glob("*.npy"))


@pytest.mark.parametrize("size", [0, (8, -1)])
def test_impossible_sizes(tmp_path, size):
    with pytest.raises(SkinbookError, match="at least 1 pixel"):
        pixels.build(drawn(), size, tmp_path)


def test_masks_that_are_not_there(tmp_path):
    with pytest.raises(SkinbookError, match="The edition lab has no masks here"):
        pixels.build(drawn(), 8, tmp_path, what="masks")
