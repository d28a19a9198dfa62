"""Bad input: the right answer or one sentence that names the file; never a hang, never more than so much memory."""

from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import damaged
import models
import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from layouts import HAM_CLASSES, HAM_HEADER, ham_rows, photograph, real, write_csv
from PIL import Image

from skinbook import app, audit, audit_given, card, config, evaluate_given, ledger, predict_files, train_bundle
from skinbook.bundle import Bundle
from skinbook.config import SkinbookError
from skinbook.data import ham10000, images, locate, pixels, tables
from skinbook.data.schema import COLUMNS, Dataset, tidy
from skinbook.diagnoses import DIAGNOSES
from skinbook.evaluation import METRICS, Evaluation
from skinbook.splits import PARTS, lesion_split, random_split

# What several tests have in common: their row on the maintainers' page.
huge_files = pytest.mark.holds(
    "bad input", "files that claim to be huge, or would take hours", "a sentence or the picture, in bounded memory"
)
colour_profiles = pytest.mark.holds(
    "bad input",
    "photographs with a colour profile: Adobe RGB, Display P3, linear light",
    "converted to sRGB by the pixel store, predict, audit and app alike",
)
odd_names = pytest.mark.holds(
    "bad input",
    "pipes, devices, links to themselves and impossible names among the files",
    "a sentence for each; the others are answered, and the exit code is 1",
)
drawn_at_random = pytest.mark.holds(
    "bad input", "tables, splits, reports and ledgers drawn at random", "an answer by the rules, or one sentence"
)
cut_off = pytest.mark.holds("bad input", "a table cut off at any byte", "a sentence, or whole rows that are all true")
by_the_thousand = pytest.mark.holds(
    "bad input", "thousands of unknown diagnoses, and copies of one photograph", "counted, in bounded time and memory"
)

TESTS = Path(__file__).parent


def drawn(examples: int):
    """Settings under which Hypothesis draws the same inputs at every run, and no clock decides."""
    return settings(
        max_examples=examples * damaged.INPUTS,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def refused(function, *arguments, names: str | Path = ""):
    """What a call gives; where it refuses, None, and the sentence is one line that names the file."""
    try:
        return function(*arguments)
    except SkinbookError as error:
        said = str(error)
    assert str(names) in said
    assert "\n" not in said
    assert said.endswith(".")
    return None


class Taken:
    """How many of the drawn inputs were answered, and how many refused: a test of neither kind alone says little."""

    def __init__(self, least: float):
        self.least, self.answered, self.refused = least, 0, 0

    def __call__(self, answered: bool) -> bool:
        self.answered += answered
        self.refused += not answered
        return answered

    def enough(self) -> None:
        tried = self.answered + self.refused
        assert self.answered >= self.least * tried > 0, f"{self.answered} of {tried} were answered"

    def both(self) -> None:
        self.enough()
        assert self.refused, f"none of {self.answered} was refused"


# Photographs ----------------------------------------------------------------------------------------------------------


CHILD = r"""
import json, re, sys
from pathlib import Path
import damaged
from skinbook.config import SkinbookError
from skinbook.data import images

found = {}
for name, make in {**damaged.BOMBS, "a BMP": lambda: damaged.runs(500_000), **damaged.HONEST}.items():
    file = Path(sys.argv[1]) / "bomb.jpg"
    file.write_bytes(make())
    try:
        found[name] = list(images.decode(file)[0].size)
    except SkinbookError as error:
        found[name] = str(error)
    # Not by getrusage, which begins with the memory of the process that started this one.
    found[name] = found[name], int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) // 1024
print(json.dumps(found))
"""


@huge_files
def test_bombs_end_in_bounded_memory(tmp_path, record_property):
    """In a process of its own, whose highest memory is read after each; the honest pictures come last."""
    if not Path("/proc/self/status").exists():
        pytest.skip("this system does not tell a process of its highest memory")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout)
    assert found.keys() == {*damaged.BOMBS, "a BMP", *damaged.HONEST}
    honest = {name: found.pop(name) for name in damaged.HONEST}
    for name, (size, megabytes) in honest.items():
        assert size == [8900, 8900]
        assert megabytes < 800, name
    for name, (said, megabytes) in found.items():
        assert said == [16, 16] if "one strip" in name else "bomb.jpg" in said, name
        assert megabytes < 150, name
    assert found["a BMP"][0].endswith("Save it as PNG.")
    most = {name: megabytes for name, (_, megabytes) in honest.items()}
    record_property(
        "measured",
        f"{len(found)} bombs in at most {max(m for _, m in found.values())} MB, 79 million pixels in "
        + ", ".join(f"{m} MB ({name})" for name, m in most.items()),
    )


@huge_files
def test_large_photographs_are_decoded_one_at_a_time(tmp_path, monkeypatch):
    file = tmp_path / "x.png"
    photograph("x", 30, 20).save(file)
    held = []
    monkeypatch.setattr(images, "_upright_rgb", lambda image: held.append(images._alone.locked()) or (image, None))
    images.decode(file)
    monkeypatch.setattr(images, "ALONE", 599)
    images.decode(file)
    assert held == [False, True]


@huge_files
def test_arrays_and_files_that_claim_too_much(tmp_path, monkeypatch):
    bomb = damaged.npz_bomb(tmp_path / "dermamnist.npz")
    with pytest.raises(
        SkinbookError, match=r"dermamnist\.npz .*has a header of 10000 bytes or more.*Download it again"
    ):
        images.npz_headers(bomb)
    np.savez_compressed(bomb, train_images=np.zeros((50, 28, 28, 3), np.uint8))
    assert images.npz_headers(bomb)["train_images"][0] == (50, 28, 28, 3)
    monkeypatch.setattr(images, "LARGEST_ARRAY", 100_000)
    with pytest.raises(SkinbookError, match=r"claims 0\.0 GB"):  # of a few kilobytes
        images.npz_headers(bomb)
    file = tmp_path / "x.png"
    photograph("x").save(file)
    monkeypatch.setattr(images, "LARGEST_FILE", 100)
    with pytest.raises(SkinbookError, match=r"x\.png cannot be read \(it has more than 0 MB\)"):
        images.decode(file)
    for limit, value, sentence in (("LARGEST", 100, "more than 0 MB"), ("MOST_CELLS", 20, "20 cells")):
        with monkeypatch.context() as once:
            once.setattr(tables, limit, value)
            with pytest.raises(SkinbookError, match=sentence):
                tables.read(write_csv(tmp_path / "t.csv", HAM_HEADER, ham_rows()), [])
    with pytest.raises(SkinbookError, match="over 2,000 columns"):
        tables.read(write_csv(tmp_path / "t.csv", ["a"] * 3000, [["1"] * 3000]), [])


def test_photographs_with_many_things_at_its_end_are_no_bombs(tmp_path, monkeypatch):
    """A phone may append a film, in whose bytes the mark of a scan stands by chance."""
    jpeg = damaged.saved(photograph("x", 64, 48), "JPEG", exif=damaged.marked(1))
    (tmp_path / "x.jpg").write_bytes(jpeg + b"\xff\xda" * 1000)
    monkeypatch.setattr(images, "MANY_SCANS_MATTER", 0)
    assert images.decode(tmp_path / "x.jpg")[0].size == (64, 48)
    assert images._scans(jpeg) == 1
    assert 5 < images._scans(damaged.saved(photograph("x", 64, 48), "JPEG", progressive=True)) < 15


@dataclasses.dataclass
class Picture:
    """The bytes of a file, the upright RGB that a viewer shows, and how far a decoder may be off."""

    kind: str
    within: int
    data: bytes = dataclasses.field(repr=False)
    expected: np.ndarray = dataclasses.field(repr=False)


@st.composite
def pictures(draw):
    width, height = draw(st.sampled_from([(1, 1), (1, 300), (300, 1), (40, 30), (33, 57)]))
    upright = photograph("bad input", width, height)
    rgb = np.asarray(upright).astype(int)
    kinds = ["PNG", "TIFF", "WEBP", "JPEG"]
    mode = draw(st.sampled_from(["RGB", "L", "RGBA", "LA", "P", "1", "I;16", "CMYK", "P+", "L+"]))
    if mode in ("RGBA", "LA"):
        kinds = ["PNG", "TIFF", "WEBP"] if mode == "RGBA" else ["PNG", "TIFF"]
        alpha = np.where(np.arange(width * height).reshape(height, width) % 3, 255, 0).astype(np.uint8)
        image = upright.convert(mode)
        image.putalpha(Image.fromarray(alpha))
        expected = np.asarray(image.convert("RGB")).astype(int)
        expected = np.where(alpha[..., None] > 0, expected, 255)
    elif mode == "I;16":
        kinds = ["PNG", "TIFF"]
        wide = (np.asarray(upright.convert("L")).astype(np.uint16) * 257) + np.uint16(100)
        image, expected = Image.fromarray(np.minimum(wide, 65535).astype(np.uint16)), None
        expected = np.repeat(np.round(np.minimum(wide, 65535) / 257)[..., None], 3, axis=2)
    elif mode == "P":
        image = upright.quantize(32)
        kinds, expected = ["PNG", "TIFF"], np.asarray(image.convert("RGB")).astype(int)
    elif mode == "P+":  # a colour of the palette is see-through
        image = upright.quantize(32)
        kinds, expected = ["PNG"], np.asarray(image.convert("RGB")).astype(int)
        expected = np.where(np.asarray(image)[..., None] == 3, 255, expected)
    elif mode == "L+":
        image = upright.convert("L")
        kinds, grey = ["PNG"], np.asarray(image)
        expected = np.repeat(np.where(grey == grey[0, 0], 255, grey)[..., None], 3, axis=2)
    elif mode == "CMYK":
        image, kinds, expected = upright.convert("CMYK"), ["TIFF", "JPEG"], rgb
    else:
        image = upright.convert(mode)
        kinds = {"1": ["PNG", "TIFF"], "L": ["PNG", "TIFF", "JPEG"]}.get(mode, kinds)
        expected = np.asarray(image.convert("RGB")).astype(int)
    kind, orientation = draw(st.sampled_from(kinds)), draw(st.integers(0, 9))
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {"lossless": True} if kind == "WEBP" else {}
    if mode == "P+":
        options["transparency"] = 3
    if mode == "L+":
        options["transparency"] = int(np.asarray(image)[0, 0])
    stored = damaged.STORED.get(orientation, damaged.STORED[1])(image)
    data = damaged.saved(stored, kind, exif=damaged.marked(orientation), **options)
    return Picture(f"{mode} {kind} {orientation}", 12 if kind == "JPEG" else 0, data, expected)


@pytest.mark.holds(
    "bad input",
    "photographs turned by EXIF, with alpha, palette, 16 bits or CMYK, down to one pixel",
    "the upright sRGB pixels that a viewer shows",
)
@drawn(100)
@given(pictures())
def test_every_kind_of_picture_is_upright_and_rgb(tmp_path_factory, picture):
    data, expected, within, kind = picture.data, picture.expected, picture.within, picture.kind
    file = tmp_path_factory.getbasetemp() / "picture.bin"
    file.write_bytes(data)
    found = np.asarray(images.decode(file)[0])
    assert found.shape == expected.shape, kind
    assert np.abs(found - expected).max() <= within, kind


def test_pixels_without_a_range_are_refused(tmp_path):
    for values in (np.full((4, 4), 70_000, np.int32), np.full((4, 4), -1, np.int32), np.full((4, 4), 0.5, np.float32)):
        Image.fromarray(values).save(tmp_path / "x.tif")
        with pytest.raises(SkinbookError, match=r"x\.tif .*no agreed range.*Download or copy it again"):
            images.decode(tmp_path / "x.tif")


def test_a_damaged_mark_is_no_reason_to_refuse(tmp_path):
    exif = damaged.marked(6)
    exif[0x829A] = (1, 0)  # an exposure time that is no fraction
    raw = bytearray(exif.tobytes())
    plain = photograph("x")
    for place in range(6, len(raw)):
        damage = bytes(raw[:place]) + b"\xff" + bytes(raw[place + 1 :])
        plain.save(tmp_path / "x.jpg", exif=damage, quality=95)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, on the mark
            assert images.decode(tmp_path / "x.jpg")[0].size in ((40, 30), (30, 40))


@pytest.fixture(scope="module")
def model():
    return predict_files.open_model("lab")


def wide(name: str, side: int = 64) -> tuple[Image.Image, bytes, np.ndarray]:
    """A photograph under a colour profile, the profile, and what it is in sRGB."""
    numbers = np.asarray(photograph("wide", side, side).resize((side, side)))
    return Image.fromarray(numbers), damaged.profile(name), damaged.through(name, numbers)


@colour_profiles
@pytest.mark.parametrize("name", damaged.WIDE)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "palette"])
def test_colour_profiles_are_honoured(tmp_path, name, kind):
    image, about, expected = wide(name)
    image.save(tmp_path / "plain.png")
    if kind == "palette":
        image = image.quantize(64)
        expected = damaged.through(name, np.asarray(image.convert("RGB")))
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    file = tmp_path / f"x.{kind}"
    image.save(file, "JPEG" if kind == "JPEG" else "PNG", icc_profile=about, **options)
    found = np.asarray(images.decode(file)[0]).astype(float)
    assert np.abs(found - expected).mean() < 1
    assert np.abs(found - expected).max() <= (12 if kind == "JPEG" else 3)
    assert np.abs(found - np.asarray(image.convert("RGB"))).mean() > 3  # which the profile changes
    grey = image.convert("L")
    grey.save(file, "JPEG" if kind == "JPEG" else "PNG", icc_profile=about, **options)
    expected = damaged.through(name, np.repeat(np.asarray(grey)[..., None], 3, axis=2))
    assert np.abs(np.asarray(images.decode(file)[0]) - expected).mean() < 1.5


@colour_profiles
def test_turns_and_profiles_are_honoured_wherever_photographs_are_read(tmp_path, model, monkeypatch):
    side = model.image
    image, about, _ = wide("Adobe RGB", side)
    stored = image.transpose(Image.Transpose.ROTATE_90)
    stored.save(tmp_path / "x.png", exif=damaged.marked(6), icc_profile=about)
    whole = np.asarray(images.decode(tmp_path / "x.png")[0])
    Image.fromarray(whole).save(tmp_path / "y.png")
    monkeypatch.setattr(audit_given, "HASHED", side)
    places = {
        "audit": lambda name: audit_given._look(tmp_path / name)[1],
        "app": lambda name: app.look(model, (tmp_path / name).read_bytes(), "x").photograph,
        "predict": lambda name: next(predict_files._decoded([tmp_path / name], side, 1)),
        "pixel store": lambda name: pixels.build(_one(tmp_path / name), side, tmp_path, progress=False).pixels[0],
    }
    for place, read in places.items():
        np.testing.assert_array_equal(read("x.png"), read("y.png"), err_msg=place)
    np.testing.assert_array_equal(places["predict"]("x.png"), whole)


def _one(file: Path) -> Dataset:
    table = pd.DataFrame({"image_id": ["x"]})
    return Dataset("ham10000", table, ("nv",), images.Files({"x": file}))


def test_what_calls_itself_srgb_and_is_is_left_as_it_is(tmp_path):
    """To the bit: converting would round."""
    from PIL import ImageCms

    image = photograph("x")
    image.save(tmp_path / "x.png", icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    np.testing.assert_array_equal(np.asarray(images.decode(tmp_path / "x.png")[0]), np.asarray(image))


def test_photographs_of_real_lesions_are_as_pillow_decodes_them():
    """They carry neither a mark nor a profile: nothing is to be done to them."""
    table = real("ham10000")
    if table is None:
        pytest.skip("HAM10000 was not found: SKINBOOK_DATA leads to none")
    paths = ham10000.load(table.parent).images.paths
    some = [paths[name] for name in sorted(paths)[::500]]
    for path in some:
        with Image.open(path) as image:
            assert not {"icc_profile", "exif"} & set(image.info)
            np.testing.assert_array_equal(np.asarray(images.decode(path)[0]), np.asarray(image))


def test_a_changed_pixel_of_a_png_is_noticed(tmp_path):
    """Pillow itself does not look at the checksum."""
    data = bytearray(damaged.saved(photograph("x"), "PNG", compress_level=0))
    data[len(data) // 2] ^= 1
    (tmp_path / "x.png").write_bytes(data)
    with pytest.raises(SkinbookError, match=r"x\.png is cut off or damaged .*checksum"):
        images.decode(tmp_path / "x.png")


# Files that are none --------------------------------------------------------------------------------------------------


@pytest.fixture
def odd(tmp_path):
    """What stands in a folder instead of files: (a name, a part of the sentence about it)."""
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "text.jpg").write_text("words")
    (tmp_path / "empty.jpg").touch()
    return {
        "pipe.jpg": "a pipe or a device",
        "loop.jpg": "cannot be read",
        "folder.jpg": "is a folder",
        "gone.jpg": "is not there",
        "text.jpg": "is not an image",
        "empty.jpg": "is empty",
        "text.jpg/below.jpg": "cannot be read",
        "x" * 300 + ".jpg": "cannot be read",
        "zero\0.jpg": "no file can have this name",
    }


@odd_names
def test_one_bad_file_among_several_does_not_stop_the_others(tmp_path, odd, monkeypatch, capsys, record_property):
    models.lesions(tmp_path / "good", ("nv", "mel"), each=1)
    good = sorted(map(str, (tmp_path / "good").glob("*.png")))
    mixed = [good[0], *(f"{tmp_path}/{name}" for name in odd), "/dev/zero", good[1]]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(mixed)))
    assert models.call(monkeypatch, "predict", "-", "-b", "lab", "--json") == 1
    said = json.loads(capsys.readouterr().out)["photographs"]
    assert [one["file"] for one in said] == mixed
    status = {one["file"]: one for one in said}
    assert [status[name]["status"] for name in good] == ["answered"] * 2
    for name, sentence in odd.items():
        one = status[f"{tmp_path}/{name}"]
        assert one["status"] == "failed"
        assert f"{tmp_path}/{name}" in one["reason"]
        assert sentence in one["reason"], one
    assert "a pipe or a device" in status["/dev/zero"]["reason"]
    record_property("measured", f"{len(mixed) - 2} bad files")


@odd_names
def test_pipes_and_impossible_names_in_the_place_of_tables_and_bundles(tmp_path, odd):
    pipe = tmp_path / "HAM10000_metadata.csv"
    os.mkfifo(pipe)
    for name in (pipe, Path("/dev/zero"), tmp_path / ("x" * 300), tmp_path / "zero\0.csv"):
        for read in (lambda name: tables.read(name, []), audit_given.read_about, ham10000.read_table):
            with pytest.raises(SkinbookError, match=r"cannot be read \(.*\)\. Check the path"):
                read(name)
        with pytest.raises(SkinbookError, match=r"does not exist|cannot be read"):
            audit_given.audit_given([name])
        with pytest.raises(SkinbookError, match="cannot be read as a list"):
            audit_given.audit_given([f"train={name}", f"test={name}"])
        with pytest.raises(SkinbookError, match=r"cannot be read.*Name the folder of a bundle"):
            predict_files.open_model(name)
    with pytest.raises(SkinbookError, match=r"is not an \.npz archive that can be read \(it is a pipe or a device"):
        images.npz_headers(pipe)
    os.mkfifo(tmp_path / "bundle.json")
    with pytest.raises(SkinbookError, match=r"bundle\.json cannot be read \(it is a pipe"):
        Bundle.load(tmp_path)


@odd_names
def test_links_that_lead_back_are_followed_once(tmp_path):
    (tmp_path / "a").mkdir()
    photograph("x").save(tmp_path / "a" / "x.jpg")
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "here").symlink_to(tmp_path / "a")
    (tmp_path / "itself").symlink_to(tmp_path / "itself")
    assert predict_files.listed([str(tmp_path)]) == [str(tmp_path / "a" / "x.jpg")]
    assert locate.find_images([tmp_path], ["x"]) == {"x": tmp_path / "a" / "x.jpg"}


def test_settings_that_are_no_numbers_or_no_folders(monkeypatch):
    for text in ("²", "-1", "1.5", "9" * 5000, "٣x"):
        # As a shell hands it over, also where the locale has no such letter.
        monkeypatch.setenv("SKINBOOK_SEED", os.fsdecode(text.encode()))
        with pytest.raises(SkinbookError, match="expected a whole number of at least 0"):
            config.settings()
    monkeypatch.delenv("SKINBOOK_SEED")
    monkeypatch.setenv("SKINBOOK_DATA", "~nobody-has-this-name/data")
    with pytest.raises(SkinbookError, match="which is not a folder"):
        locate.places(config.settings())


NUMBERS = st.one_of(st.integers(-(10**12), 10**12), st.integers(-3, 40))
SHARES = st.one_of(st.floats(), st.floats(-1, 2), st.sampled_from([0.0, 1.0, 0.5]))


@drawn_at_random
@drawn(200)
@given(NUMBERS, NUMBERS, NUMBERS, SHARES, SHARES, SHARES)
def test_any_options_of_a_training_make_sense_or_are_refused(image, epochs, batch_size, rate, sensitivity, share):
    found = refused(
        lambda: train_bundle.Recipe(
            image=image,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=rate,
            sensitivity=sensitivity,
            refused=share,
        )
    )
    sound = 16 <= image <= card.LARGEST_SIDE and epochs >= 1 and batch_size >= 2 and 0 < rate < np.inf
    assert (found is not None) == (sound and 0 < sensitivity <= 1 and 0 < share < 1)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["spread", "--threads", "²"], "--threads is '²'; expected whole numbers"),
        (["spread", "--threads", "1,,2"], "expected whole numbers"),
        (["bench", "--sides", "٣²"], "--sides is '٣²'; expected whole numbers from 16"),
        (["bench", "--parts", "../x"], "'../x' is no part of the bench"),
        (["audit", "train=", "=x"], "is not a part and its list"),
        (["evaluate", "-b", "nowhere", "--table", "x", "--images", "y"], "nowhere/bundle.json cannot be read"),
        (["run", "../../etc/passwd"], "etc/passwd"),
        (["predict", "x.jpg", "-b", "lab", "--format", "\x1b[2J"], "expected text, json or csv"),
    ],
)
@drawn_at_random
def test_options_that_are_none_end_with_two(monkeypatch, capsys, arguments, sentence):
    assert models.call(monkeypatch, *arguments) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.startswith("skinbook: ")
    assert said.count("\n") == 1
    assert "\x1b" not in said


# Tables ---------------------------------------------------------------------------------------------------------------

NOTES = st.text("aü ,;\t\"'\n", max_size=6)


@st.composite
def layouts(draw):
    """The bytes of HAM10000's table as some other program writes it: with a column of notes, in another order."""
    rows = [[*row, draw(NOTES)] for row in ham_rows(14)]
    header = [*HAM_HEADER, "note"]
    order = draw(st.permutations(range(len(header))))
    spell = draw(st.sampled_from([str, str.upper, str.title, str.lower]))
    blank = draw(st.sampled_from(["", " ", "  "]))
    delimiter, end, held = draw(st.sampled_from(",;\t")), draw(st.sampled_from(["\n", "\r\n", "\r"])), io.StringIO()
    writer = csv.writer(
        held,
        delimiter=delimiter,
        quoting=csv.QUOTE_ALL if end == "\r" else draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])),
        lineterminator=end,
    )
    writer.writerow([blank + spell(header[k]) + blank for k in order])
    for row in rows:
        said = [*row[:2], *(blank + spell(cell) + blank for cell in row[2:-1]), row[-1]]
        writer.writerow([said[k] for k in order])
    text = held.getvalue() + draw(st.sampled_from(["", "\n", 3 * delimiter + "\n"]))
    encoding = draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "cp1252"]))
    return (b"\xfe\xff" if encoding == "utf-16-be" else b"") + text.encode(encoding)


@pytest.mark.holds(
    "bad input",
    "tables in other encodings, separators, line ends, cases, with quoted line breaks and blanks",
    "the same table",
)
@drawn(40)
@given(layouts())
def test_the_table_is_the_same_whoever_wrote_it(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp()
    expected = tables.read(write_csv(folder / "plain.csv", HAM_HEADER, ham_rows(14)), HAM_HEADER)
    (folder / "odd.csv").write_bytes(data)
    found = tables.read(folder / "odd.csv", HAM_HEADER)[HAM_HEADER]
    for name in HAM_HEADER[2:]:
        found[name] = found[name].str.lower()
    pd.testing.assert_frame_equal(found, expected)


@cut_off
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_table_cut_off_anywhere(tmp_path, encoding, record_property):
    """Where only the last cell is shorter nobody can tell; everything before it is as it was."""
    rows = ham_rows()[:4]
    whole = write_csv(tmp_path / "t.csv", HAM_HEADER, rows, encoding=encoding).read_bytes()
    file, taken = tmp_path / "cut.csv", 0
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        found = refused(tables.read, file, HAM_HEADER, names=file)
        if found is None:
            continue
        taken += 1
        for given_, true in zip(found.to_numpy().tolist(), rows, strict=False):
            assert given_[:-1] == true[:-1]
            assert true[-1].startswith(given_[-1])
    assert 0 < taken < len(whole) // 3
    record_property("measured", f"{len(whole)} lengths")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a,b,dx,dx\n1,2,nv,mel\n", "has the column dx more than once"),
        ("a,b,DX , dx\n1,2,nv,mel\n", "has the column dx more than once"),
        (
            "a,b,dx\n1,2,nv,\n1,2,mel,\n",
            "Expected 3 fields in line 2, saw 4",
        ),  # every row has one more: a decimal comma?
        ('a,b,dx\n1,"2,nv\n3,4,mel\n5,6",nv\n', "row 2: a cell holds whole rows.*quotation mark is missing"),
        ("a,b,dx\n1,2,nv\n3,", "is cut off: its last row has not all of its cells"),
        ("a,b,dx\n,,\n,,\n", "has a header and no rows"),
        ("a,b\n1,2\n", "lacks the column dx"),
        ("{\\rtf1 a}", "lacks the column dx|no rows"),
    ],
)
@cut_off
def test_tables_that_say_something_else_than_they_seem_to(tmp_path, text, sentence):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(SkinbookError, match=rf"t\.csv.*(?:{sentence})"):
        tables.read(tmp_path / "t.csv", ["dx"])


cells = st.one_of(
    st.none(), st.text(max_size=5), st.integers(), st.floats(), st.booleans(), st.just(pd.NaT), st.lists(st.integers())
)


@st.composite
def frames(draw):
    """A table of the eight columns, sound but for a few cells, rows or columns."""
    count = draw(st.integers(1, 6))
    table = pd.DataFrame(
        {
            "image_id": [f"I{k}" for k in range(count)],
            "lesion_id": [f"L{k // 2}" for k in range(count)],
            "dx": [HAM_CLASSES[k % 7] for k in range(count)],
            "dx_type": ["histo"] * count,
            "age": [50.0] * count,
            "sex": ["male"] * count,
            "site": ["back"] * count,
            "source": ["here"] * count,
        }
    ).astype(object)
    for _ in range(draw(st.integers(0, 3))):
        table.iat[draw(st.integers(0, count - 1)), draw(st.integers(0, 7))] = draw(cells)
    if draw(st.booleans()):
        table = table.iloc[draw(st.lists(st.integers(0, count - 1), max_size=6))]
    if draw(st.integers(0, 9)) == 0:
        table = table.drop(columns=draw(st.sampled_from(COLUMNS)))
    if draw(st.integers(0, 9)) == 0:
        table.insert(0, draw(st.sampled_from(COLUMNS)), "x", allow_duplicates=True)
    return table


@drawn_at_random
def test_any_table_is_tidy_or_refused():
    taken = Taken(0.3)

    @drawn(25)
    @given(frames())
    def all_of_them(table):
        found = refused(tidy, table, "t.csv", names="t.csv")
        if taken(found is not None):
            is_tidy(found)

    all_of_them()
    taken.both()


def is_tidy(found):
    assert tuple(found.columns) == COLUMNS
    assert found["image_id"].is_unique
    assert found["dx"].isin(list(DIAGNOSES)).all()
    assert found["age"].dropna().between(0, 120).all()
    for split in (lesion_split(found), random_split(found)):
        assert set(split.parts) <= set(PARTS)
        assert split.parts.index.tolist() == found["image_id"].tolist()
    sides = found.assign(part=lesion_split(found).parts.to_numpy()).groupby("lesion_id")["part"].nunique()
    assert (sides <= 1).all()


@pytest.mark.parametrize(
    "fractions", [(1, 0), "abc", (0.5, 0.5, 0.5), (np.nan, 0.5, 0.5), (-1, 1, 1), None, ("a",) * 3]
)
def test_shares_that_are_none_are_refused(fractions):
    table = pd.DataFrame({"image_id": ["a"], "lesion_id": ["b"], "dx": ["nv"]})
    for split in (lesion_split, random_split):
        with pytest.raises(SkinbookError, match="three shares that sum to 1"):
            split(table, fractions=fractions)


NAMES = st.sampled_from(["I0", "I1", "i1", "I2.jpg", "d/I3.PNG", "..\\I4", "", " I0 ", "I|5", "I\x1b[2J"])
PART = st.sampled_from(["train", "Train", "TEST", "test", "val", "fold|1", "", "none", "x\x07y", "\u202ez"])
DX = st.sampled_from(["nv", "mel", "NV", "", "unknown", "wart|s", "unk", "MEL "])


@st.composite
def splits_and_tables(draw):
    """Rows of a split, and of a table about its photographs: sound but for some cells, or drawn without any care."""
    names = draw(st.lists(NAMES, min_size=2, max_size=6, unique=True))
    rows = [(name, draw(PART)) for name in names] + draw(st.lists(st.tuples(NAMES, PART), max_size=4))
    if draw(st.booleans()):
        return rows, draw(st.lists(st.tuples(NAMES, st.sampled_from(["L0", "L1", ""]), DX), max_size=8))
    rows = [("I0", "train"), ("I3", "test"), *rows]
    known = dict.fromkeys(audit_given._image_id(name.strip()).lower() for name, _ in rows)
    known.pop("", None)
    return rows, [
        (name, draw(st.sampled_from(["L0", "L1", "L2"])), draw(st.sampled_from(["nv", "mel"]))) for name in known
    ]


def parts_by_hand(rows):
    """The parts in which each photograph of a split stands, by its name in lower case."""
    parts: dict[str, set[str]] = {}
    for name, part in rows:
        known = audit_given.PART_OF.get(part.strip().lower(), part.strip().lower())
        if known not in audit_given.UNUSED:
            parts.setdefault(audit_given._image_id(name.strip()).lower(), set()).add(known)
    return parts


@drawn_at_random
def test_any_split_is_audited_or_refused(tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    with_table, without = Taken(0.2), Taken(0.3)

    @drawn(40)
    @given(splits_and_tables())
    def all_of_them(drawn):
        rows, about = drawn
        split = write_csv(folder / "split.csv", ["image", "part"], list(rows))
        table = write_csv(folder / "about.csv", ["image", "lesion_id", "dx"], list(about))
        parts = parts_by_hand(rows)
        report = refused(audit_given.audit_given, [split], table, names=folder)
        if with_table(report is not None):
            says_what_stands_on_both_sides(report, parts)
            lesions: dict[str, set[str]] = {}
            for name, lesion, _ in about:
                lesions.setdefault(lesion, set()).update(parts.get(audit_given._image_id(name.strip()).lower(), ()))
            both = [tuple(sorted(stands)) for stands in lesions.values() if len(stands) > 1]
            told = {tuple(one["parts"]): one["lesions"] for one in report.lesions["across"]}
            pairs = [pair for stands in both for pair in itertools.combinations(stands, 2)]
            assert told == {pair: pairs.count(pair) for pair in pairs}
        report = refused(audit_given.audit_given, [split], names="")
        if without(report is not None):
            says_what_stands_on_both_sides(report, parts)

    all_of_them()
    with_table.both()
    without.enough()


def says_what_stands_on_both_sides(report, parts):
    across = [name for name, stands in parts.items() if len(stands) > 1]
    assert sorted(one["image"].lower() for one in report.repeated["across"]) == sorted(across)
    assert report.leaks or not across
    for style in ("text", "markdown"):
        shown = audit_given.shown(report, style)
        assert "\x1b" not in shown
        assert "\x07" not in shown
    assert json.loads(json.dumps(vars(report), allow_nan=False))["leaks"] == report.leaks


def test_upper_and_lower_case_are_one_image_and_one_part(tmp_path):
    rows = [["I1", "train"], ["i1.JPG", "TEST"], ["I2", "Test"], ["I3", "inside"], ["I4", "Inside"]]
    about = write_csv(tmp_path / "t.csv", ["image", "lesion_id"], [["i2", "L1"], ["I3", "L1"], ["I4", "L4"]])
    report = audit_given.audit_given([write_csv(tmp_path / "s.csv", ["image", "part"], rows)], about)
    assert report.photographs == {"inside": 2, "test": 2, "train": 1}
    assert report.repeated["across"] == [{"image": "I1", "parts": ["test", "train"]}]
    assert report.lesions["across"] == [{"parts": ["inside", "test"], "lesions": 1, "photographs": 2}]


class Reader(card.Model):
    """A model that gives every photograph the same answer."""

    temperature, image, definition, about, threshold = 1.0, 8, "mel+bcc+akiec", "The same of all.", 0.5
    classes, limit, refused = HAM_CLASSES, None, None

    def answers(self, pixels, batch_size=64, device="cpu"):
        return card.Answers(np.full((len(pixels), 7), 1 / 7), None)


@st.composite
def labels(draw):
    """Rows of a table of diagnoses: four photographs that are there, each once, or whatever comes."""
    if draw(st.booleans()):
        return draw(st.lists(st.tuples(NAMES, st.sampled_from(["L0", "L1", ""]), DX), max_size=8))
    names = draw(st.lists(st.sampled_from(["I0", "I1", "I2", "I3"]), min_size=1, unique=True))
    return [(name, draw(st.sampled_from(["L0", "L1"])), draw(DX)) for name in names]


@drawn_at_random
def test_any_labels_are_judged_or_refused(tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "labelled"
    folder.mkdir(exist_ok=True)
    for name in ("I0", "I1", "I2", "I3"):
        if not (folder / f"{name}.png").exists():
            photograph(name).save(folder / f"{name}.png")
    taken = Taken(0.25)

    @drawn(24)
    @given(labels())
    def all_of_them(rows):
        table = write_csv(folder / "truth.csv", ["image", "lesion_id", "dx"], list(rows))
        labelled = refused(evaluate_given.read_labelled, table, folder, names=table)
        if not taken(labelled is not None):
            return
        known = {audit_given._image_id(name.strip()) for name, _, dx in rows if dx.strip().lower() in HAM_CLASSES}
        assert set(labelled.table["image_id"]) <= known
        report = evaluate_given.evaluate(Reader(), labelled, progress=False)
        assert report.photographs == len(labelled.table)
        assert json.loads(json.dumps(report.told(), allow_nan=False))["photographs"] == report.photographs
        assert str(report.photographs) in evaluate_given.shown(report)

    all_of_them()
    taken.both()


@st.composite
def judged(draw):
    """(labels, probabilities, lesions) of a few photographs, sometimes not what they should be."""
    count, classes = draw(st.integers(0, 6)), 3
    labels = draw(st.lists(st.sampled_from([0, 1, 2, 3, -1, 1.5, float("nan")]) if draw(st.booleans())
                           else st.integers(0, 2), min_size=count, max_size=count))  # fmt: skip
    odds = draw(
        st.lists(st.lists(st.floats(0.01, 1), min_size=classes, max_size=classes), min_size=count, max_size=count)
    )
    p = np.array(odds).reshape(count, classes)
    p = p / p.sum(axis=1, keepdims=True)
    if count and draw(st.booleans()):
        p[0, draw(st.integers(0, 2))] = draw(st.sampled_from([np.nan, np.inf, -1.0, 7.0, 0.5]))
    lesions = draw(st.lists(st.sampled_from(["a", "b", "c", None] if draw(st.booleans()) else ["a", "b"]),
                            min_size=count, max_size=count))  # fmt: skip
    return labels, p, lesions


@drawn_at_random
@drawn(60)
@given(judged())
def test_metrics_of_anything_are_numbers_or_refused(case):
    labels, p, lesions = case
    found = refused(lambda: Evaluation(labels, p, np.array(lesions, dtype=object), ("nv", "mel", "df"), resamples=20))
    sound = bool(labels) and all(label in (0, 1, 2) for label in labels) and None not in lesions
    sound = sound and bool(np.isfinite(p).all()) and bool(((p >= 0) & (p <= 1)).all())
    assert (found is not None) == sound
    if found is None:
        return
    for metric in (*METRICS, "malignant ROC AUC"):
        value = found.value(metric)
        assert np.isnan(value) or -1e-9 <= value <= 1 + 1e-9
    right = [int(row.argmax()) == label for row, label in zip(p, labels, strict=True)]
    assert found.value("accuracy") == pytest.approx(np.mean(right))


leaves = st.one_of(st.none(), st.booleans(), st.floats(allow_nan=False), st.text(max_size=4), st.integers())


@pytest.mark.parametrize("p", [[[-1.0, 2.0]], [[-0.001, 1.001]], [[1.5, 0.0]], [[np.inf, 0.0]]])
def test_odds_that_are_no_probabilities_are_refused(p):
    with pytest.raises(SkinbookError, match=r"finite number|outside 0 to 1"):
        Evaluation([0], p, ["a"], ("nv", "mel"))


json_values = st.one_of(
    leaves, st.lists(leaves, max_size=2), st.dictionaries(st.text(max_size=4), leaves, max_size=2), st.just([[{}]])
)


def places(value, path=()):
    """The paths of all parts of a JSON value."""
    yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in inside:
        yield from places(part, (*path, key))


def changed(value, path, new):
    """A copy of a JSON value with another part in one place."""
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(copy[path[0]], path[1:], new)
    return copy


MEASURED = {"value": 0.8, "low": 0.7, "high": 0.9}
RESULTS = {
    "chapters": {
        "03_x": {
            "provenance": {
                "date": "2026-01-31",
                "hardware": {"cores": 2},
                "versions": {"skinbook": "0.1.0"},
                "minutes": {"0": 1.0},
            },
            "reports": {"AUC": {**MEASURED, "seeds": {"0": MEASURED}}},
            "claims": {"it flatters": {**MEASURED, "verdict": "holds", "above": 0.0, "seeds": {"0": MEASURED}}},
        }
    }
}
TOLERANCES = {
    "chapters": {
        "03_x": {
            "runs": [{"seed": 0}],
            "reports": {"AUC": {"tolerance": 0.1}},
            "claims": {"it flatters": {"verdicts": ["holds"]}},
        }
    }
}


@drawn_at_random
@drawn(100)
@given(st.data())
def test_any_ledger_is_read_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "ledger"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger, "book_data", lambda *parts: folder.joinpath(*parts))
        for kind, whole in (("results", RESULTS), ("tolerances", TOLERANCES)):
            text = json.dumps(changed(whole, data.draw(st.sampled_from(list(places(whole)))), data.draw(json_values)))
            file = ledger.file_of(kind, "lab", "quick")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)
        results, measured = "data/results/lab-quick.json", "data/tolerances/lab-quick.json"
        page = refused(ledger.page, "03_x", "lab", "quick", names=results)
        assert page is None or all(isinstance(text, str) for text in page)
        refused(ledger.value, "AUC", "03_x", "lab", "quick", names=results)
        tolerance = refused(ledger.tolerance, "lab", "quick", "03_x", "AUC", names=measured)
        assert tolerance is None or tolerance >= ledger.EXACT
        verdicts = refused(ledger.verdicts, "lab", "quick", "03_x", "it flatters", names=measured)
        assert verdicts is None or isinstance(verdicts, set)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"chapters": [1]}', '{"chapters": {"a": 3}}', "[" * 100_000])
@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_json_that_is_none(tmp_path, monkeypatch, text, number):
    monkeypatch.setattr(ledger, "book_data", lambda *parts: tmp_path.joinpath(*parts))
    file = ledger.file_of("tolerances", "lab", "quick")
    file.parent.mkdir(parents=True)
    limitless = '{"chapters": {"a": {"reports": {"AUC": {"tolerance": ' + number + "}}}}}"
    for said in (text, limitless):
        file.write_text(said)
        with pytest.raises(
            SkinbookError, match=r"data/tolerances/lab-quick\.json cannot be read .*Restore it from git"
        ):
            ledger.tolerance("lab", "quick", "a", "AUC")
    (tmp_path / "bundle.json").write_text(text or number)
    with pytest.raises(SkinbookError, match=r"bundle\.json (is not JSON|has no usable)"):
        Bundle.load(tmp_path)


@drawn_at_random
@drawn(150)
@given(st.sampled_from(list(ledger.CARRIES)), json_values, st.data())
def test_any_bundle_of_a_notebook_is_read_or_refused(mime, value, data):
    sound = {"name": "AUC", "sentence": "it flatters", "verdict": "holds", "text": "so", "edition": "lab",
             "scale": "quick", "chapter": "03_x", "digest": "0", "names": None, **MEASURED}  # fmt: skip
    payload = data.draw(st.sampled_from([value, changed(sound, (data.draw(st.sampled_from(list(sound))),), value)]))
    found = refused(ledger.payloads, [{"data": {mime: payload}}], mime, names=mime)
    assert found in (None, [payload])
    for key, kind in ledger.CARRIES[mime].items():
        assert found is None or isinstance(payload[key], kind)


# Models ---------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """The book's own small model, in a folder to be changed."""
    folder = tmp_path_factory.mktemp("bundle")
    for file in config.book_data("lab_bundle").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


card_values = st.one_of(
    json_values,
    st.sampled_from(
        [0, -1, 10**400, 1e300, 5e-324, "..", "../x", "a\0b", "/etc/passwd", "nv", ["nv", "nv"], [], 10**9]
    ),
    st.sampled_from([[0.0] * 3, [10**400] * 3, {"limit": "3"}, {"limit": []}, {"limit": -1, "refused": 2}, "test_vit"]),
)


@pytest.mark.holds(
    "bad input", "a card of a bundle that says anything, sealed anew", "refused, or a model that answers in numbers"
)
def test_any_card_is_refused_or_answers(bundle):
    file = bundle / "bundle.json"
    before = file.read_bytes()
    whole = {key: value for key, value in json.loads(before).items() if key != "seal"}
    near = {  # what may stand there as well, or nearly so
        "temperature": st.floats(0.2, 5),
        "threshold": st.floats(0, 1),
        "classes": st.permutations(whole["classes"]),
        "about": st.text(max_size=20),
    }
    taken = Taken(0.2)

    @drawn(30)
    @given(st.data())
    def all_of_them(data):
        if data.draw(st.booleans()):
            key = data.draw(st.sampled_from(sorted(near)))
            value = data.draw(near[key])
        else:
            key = data.draw(st.sampled_from([key for key in whole if key not in ("metrics", "about", "split")]))
            value = data.draw(card_values)
        try:
            card.write(file, {**whole, key: value})
        except ValueError:  # an integer that Python does not write
            return
        model = refused(predict_files.open_model, bundle, names=bundle)
        if taken(model is not None):
            picture = bundle / "x.png"
            photograph("x").save(picture)
            (answer,) = predict_files.answers(model, [picture])
            picture.unlink()
            assert answer.fault or np.isfinite(answer.probabilities).all()
            assert answer.fault or answer.probabilities.sum() == pytest.approx(1)

    try:
        all_of_them()
        taken.both()
    finally:
        file.write_bytes(before)


def test_a_network_too_large_for_its_weights_is_never_made(bundle, tmp_path, monkeypatch):
    """A card of a kilobyte may name a network of gigabytes."""
    for file in bundle.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    whole = {key: value for key, value in json.loads((tmp_path / "bundle.json").read_text()).items() if key != "seal"}
    card.write(tmp_path / "bundle.json", {**whole, "network": "vit_giant_patch14_dinov2"})
    with pytest.raises(SkinbookError, match=r"does not hold a vit_giant_patch14_dinov2 .*Use another bundle"):
        Bundle.load(tmp_path)


def test_answers_that_are_no_numbers_are_faults(tmp_path, model):
    models.lesions(tmp_path, ("nv",), each=2)
    spoilt = dataclasses.replace(model, novelty=None)
    real = spoilt.answers

    def half(pixels, batch_size=64, device="cpu"):
        found = real(pixels, batch_size, device)
        found.probabilities[0] = np.nan
        return found

    spoilt.answers = half
    files = sorted(tmp_path.glob("*.png"))
    found = [predict_files.prediction(spoilt, one) for one in predict_files.answers(spoilt, files)]
    assert [one.status for one in found] == ["failed", "answered"]
    assert str(files[0]) in found[0].reason
    assert "Fetch the bundle again" in found[0].reason


# Very many ------------------------------------------------------------------------------------------------------------


@by_the_thousand
def test_thousands_of_unknown_diagnoses(tmp_path):
    rows = [[f"HAM_{k}", f"I{k}", f"wart {k}", "histo", "50", "male", f"site {k}"] for k in range(2000)]
    table = write_csv(tmp_path / "t.csv", HAM_HEADER, rows)
    with pytest.raises(SkinbookError, match=r"row 2, column dx: found 'wart 0', expected one of .*\(2000 such rows\)"):
        ham10000.read_table(table)
    with pytest.raises(SkinbookError, match="no photograph with a diagnosis that skinbook knows"):
        evaluate_given.read_labelled(table, tmp_path)
    split = write_csv(tmp_path / "s.csv", ["image", "part"], [[row[1], PARTS[k % 3]] for k, row in enumerate(rows)])
    report = audit_given.audit_given([split], table)
    assert not report.leaks
    text = audit_given.shown(report)
    assert "1,900 more diagnoses are left out here" in text
    assert len(text.splitlines()) < 150
    with pytest.raises(SkinbookError, match=r"found 'x{199},"):
        ham10000.read_table(write_csv(tmp_path / "u.csv", HAM_HEADER, [[*rows[0][:2], "x" * 100_000, *rows[0][3:]]]))


@by_the_thousand
def test_copies_of_one_photograph_by_the_thousand(tmp_path, monkeypatch):
    monkeypatch.setattr(audit, "MOST_PAIRS", 50)
    with pytest.raises(SkinbookError, match="More than 50 pairs of photographs are nearly one and the same"):
        audit.near_pairs(np.zeros((12, 4), np.uint64))
    assert len(audit.near_pairs(np.zeros((8, 4), np.uint64))) == 28
    for number in range(12):
        part = tmp_path / "train" if number % 2 else tmp_path / "test"
        part.mkdir(exist_ok=True)
        photograph("same").save(part / f"{number}.png")
    with pytest.raises(SkinbookError, match=r"\.png and 11 others are one and the same, too many to pair"):
        audit_given.audit_given([tmp_path], progress=False)


def test_a_table_that_contradicts_itself(tmp_path):
    table = write_csv(tmp_path / "t.csv", ["image", "lesion_id", "dx"], [["A", "L1", "nv"], ["A.jpg", "L2", "nv"]])
    with pytest.raises(SkinbookError, match=r"t\.csv gives A two lesions or two diagnoses"):
        audit_given.read_about(table)
    split = write_csv(tmp_path / "s.csv", ["image", "part", "Image"], [["A", "train", "B"]])
    with pytest.raises(SkinbookError, match=r"s\.csv has the column image more than once"):
        audit_given.audit_given([split])


@pytest.mark.parametrize("name", ["a|b", "||", "a\\|", "-", ""])
def test_bars_stay_in_their_cell(name):
    table = f"| Part | Photographs |\n|---|---|\n| {audit_given.cell(name)} | 3 |"
    header, last = audit_given.columns(table).splitlines()
    assert header == "Part  Photographs"
    assert last.split() == [name, "3"] if name else ["3"]
