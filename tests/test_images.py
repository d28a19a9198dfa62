"""Whatever an image file holds, a reader gets upright 8-bit sRGB, or a sentence that names the file."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from layouts import mask, photograph
from PIL import Image, ImageCms

from skinbook.config import SkinbookError
from skinbook.data.images import Files, decode

PLAIN = photograph("plain", 64, 48)


def source(path):
    return Files({"x": path})


def read(path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return source(path).read("x")


def test_an_rgb_photograph_is_read_as_it_is(tmp_path):
    PLAIN.save(tmp_path / "x.png")
    np.testing.assert_array_equal(read(tmp_path / "x.png"), np.asarray(PLAIN))


@pytest.mark.parametrize("orientation", range(2, 9))
def test_exif_rotation_is_honoured(tmp_path, orientation):
    # How a camera stores an upright picture for each mark (the inverse of what a viewer has to do).
    turn = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    PLAIN.transpose(turn).save(tmp_path / "x.png", exif=exif)
    np.testing.assert_array_equal(read(tmp_path / "x.png"), np.asarray(PLAIN))


def kinds():
    ramp16 = Image.fromarray(np.linspace(0, 65535, 48 * 64).reshape(48, 64).astype(np.uint16))
    alpha = PLAIN.convert("RGBA")
    alpha.putalpha(mask(64, 48))
    over_white = Image.alpha_composite(Image.new("RGBA", (64, 48), "white"), alpha).convert("RGB")
    ramp8 = np.round(np.asarray(ramp16) / 257).astype(np.uint8)
    yield "greyscale", "png", PLAIN.convert("L"), np.stack([np.asarray(PLAIN.convert("L"))] * 3, -1), 0
    yield "CMYK", "jpg", PLAIN.convert("CMYK"), np.asarray(PLAIN), 12
    yield "16-bit greyscale", "png", ramp16, np.stack([ramp8] * 3, -1), 0
    yield "16-bit greyscale", "tif", ramp16, np.stack([ramp8] * 3, -1), 0
    yield "transparent", "png", alpha, np.asarray(over_white), 0
    yield "palette", "png", PLAIN.quantize(64), np.asarray(PLAIN.quantize(64).convert("RGB")), 0
    yield "black and white", "png", mask(64, 48).convert("1"), np.stack([np.asarray(mask(64, 48))] * 3, -1), 0


@pytest.mark.parametrize(
    ("kind", "suffix", "image", "expected", "within"), list(kinds()), ids=lambda v: v if isinstance(v, str) else ""
)
def test_other_kinds_are_converted_with_one_warning(tmp_path, kind, suffix, image, expected, within):
    path = tmp_path / f"x.{suffix}"
    image.save(path, **({"quality": 100, "subsampling": 0} if suffix == "jpg" else {}))
    files = source(path)
    with pytest.warns(UserWarning, match=rf"x.{suffix} is a {kind} image; it was converted to 8-bit RGB") as told:
        pixels = files.read("x")
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # and none for the next image of this kind
        files.read("x")
    assert (pixels.dtype, pixels.shape) == (np.uint8, (48, 64, 3))
    assert np.abs(pixels.astype(int) - expected).max() <= within


def test_a_colour_profile_is_honoured(tmp_path):
    swapped = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    PLAIN.save(tmp_path / "s.png", icc_profile=swapped.tobytes())
    np.testing.assert_array_equal(read(tmp_path / "s.png"), np.asarray(PLAIN))
    # An sRGB profile whose gamma curve was replaced by a straight line: the same numbers mean brighter colours.
    linear = swapped.tobytes().replace("sRGB".encode("utf-16-be"), "line".encode("utf-16-be"))
    at = linear.index(b"rTRC") + 4
    offset = int.from_bytes(linear[at : at + 4], "big")
    curve = b"curv" + bytes(4) + (0).to_bytes(4, "big")
    PLAIN.save(tmp_path / "l.png", icc_profile=linear[:offset] + curve + linear[offset + len(curve) :])
    assert read(tmp_path / "l.png").mean() > np.asarray(PLAIN).mean() + 10
    PLAIN.save(tmp_path / "b.png", icc_profile=b"nonsense")
    np.testing.assert_array_equal(read(tmp_path / "b.png"), np.asarray(PLAIN))


def jpeg(image=PLAIN):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    return file.getvalue()


def png_claiming(width, height):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", r"x.jpg is empty \(0 bytes\). Download or copy it again"),
        (jpeg()[:-300], r"x.jpg is cut off or damaged \(.*truncated.*\). Download or copy it again"),
        (jpeg()[:30], r"x.jpg is (cut off|not an image)"),
        (b"<html>not found</html>", r"x.jpg is not an image in one of the formats JPEG, PNG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", r"x.jpg is not an image in one of the formats"),
        (png_claiming(20_000, 20_000), r"x.jpg claims more than 80 million pixels; .* Remove it"),
        (png_claiming(9_000, 9_000), r"x.jpg claims more than 80 million pixels; .* Remove it"),
        (png_claiming(400, 400), r"x.jpg is cut off or damaged"),
    ],
)
def test_what_is_no_photograph_is_refused(tmp_path, content, sentence):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(SkinbookError, match=sentence):
        source(tmp_path / "x.jpg").read("x")


def test_what_is_not_there(tmp_path):
    with pytest.raises(SkinbookError, match=r"x.jpg is not there any more. Download or copy"):
        source(tmp_path / "x.jpg").read("x")
    with pytest.raises(SkinbookError, match=r"is a folder, not an image"):
        source(tmp_path).read("x")
    with pytest.raises(SkinbookError, match=r"Image y: No file of it was found"):
        source(tmp_path).read("y")


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (500, 1)])
def test_tiny_images_are_read(tmp_path, size):
    photograph("tiny", *size).save(tmp_path / "x.png")
    assert read(tmp_path / "x.png").shape == (size[1], size[0], 3)


def test_reading_at_a_part_of_the_size_is_not_visible(tmp_path):
    smooth = photograph("large", 40, 30).resize((1200, 900), Image.Resampling.BICUBIC)
    smooth.save(tmp_path / "x.jpg", quality=95)
    whole, part = decode(tmp_path / "x.jpg")[0], decode(tmp_path / "x.jpg", at_least=64)[0]
    assert (whole.size, part.size) == ((1200, 900), (300, 225))
    small = [np.asarray(image.resize((64, 48), Image.Resampling.BICUBIC)).astype(int) for image in (whole, part)]
    assert np.abs(small[0] - small[1]).mean() < 1
    assert decode(tmp_path / "x.jpg", at_least=300)[0].size == (1200, 900)


@pytest.mark.parametrize("high", [1, 255])
def test_masks_are_true_inside_the_lesion(tmp_path, high):
    inside = np.asarray(mask()) > 0
    Image.fromarray((inside * high).astype(np.uint8)).save(tmp_path / "m.png")
    np.testing.assert_array_equal(Files({"x": tmp_path / "m.png"}, masks=True).read("x"), inside)


def test_a_fingerprint_follows_names_and_lengths(tmp_path):
    PLAIN.save(tmp_path / "a.png")
    PLAIN.save(tmp_path / "b.png")
    first = Files({"a": tmp_path / "a.png", "b": tmp_path / "b.png"})
    assert first.fingerprint(["a", "b"]) == first.fingerprint(["a", "b"])
    assert first.fingerprint(["a", "b"]) != first.fingerprint(["b", "a"])
    before = first.fingerprint(["a", "b"])
    with open(tmp_path / "b.png", "ab") as file:
        file.write(b"\0")
    assert first.fingerprint(["a", "b"]) != before
    (tmp_path / "b.png").unlink()
    with pytest.raises(SkinbookError, match=r"b.png cannot be read"):
        first.fingerprint(["a", "b"])
