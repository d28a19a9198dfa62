"""Whatever an image file holds, a reader gets upright 8-bit sRGB, or a sentence that names the file."""

import io
import struct
import warnings
import zlib

import damaged
import numpy as np
import pytest
from layouts import mask, photograph
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import AppendingTiffWriter

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


# Masks ----------------------------------------------------------------------------------------------------------------

INSIDE = np.asarray(mask(64, 48)) > 0


def levels(outside, inside, dtype=np.uint8):
    return Image.fromarray(np.where(INSIDE, inside, outside).astype(dtype))


def painted(indices, *colours):
    image = Image.new("P", indices.shape[::-1])
    image.putpalette([number for colour in colours for number in colour])
    image.putdata(indices.ravel().tolist())
    return image


def palette(outside, inside, *colours):
    return painted(np.where(INSIDE, inside, outside), *colours)


def with_alpha(colour, alpha):
    image = Image.new("RGB", (64, 48), "white") if colour is None else colour.convert("RGB")
    image.putalpha(alpha)
    return image


BLACK, DARK, RED, WHITE = (0, 0, 0), (1, 1, 1), (128, 0, 0), (255, 255, 255)
MASKS = {
    "0 and 1": levels(0, 1),
    "0 and 2": levels(0, 2),
    "0 and 100": levels(0, 100),
    "0 and 255": levels(0, 255),
    "100 and 200": levels(100, 200),
    "black and white": levels(0, 255).convert("1"),
    "RGB": levels(0, 255).convert("RGB"),
    "16 bits, 0 and 1": levels(0, 1, np.uint16),
    "16 bits, 0 and 65,535": levels(0, 65_535, np.uint16),
    "palette, black and red": palette(0, 1, BLACK, RED),
    "palette, dark": palette(0, 1, BLACK, DARK),
    "palette, all black": palette(0, 1, BLACK, BLACK),
    "palette, red and black": palette(1, 0, RED, BLACK),
    "palette, red and dark": palette(0, 1, RED, DARK),
    "palette, white and black": palette(1, 0, WHITE, BLACK),
    "white on transparent": with_alpha(levels(0, 255), levels(0, 255)),
    "red on transparent": with_alpha(Image.new("RGB", (64, 48), RED), levels(0, 255)),
    "black on transparent": with_alpha(Image.new("RGB", (64, 48)), levels(0, 255)),
    "black on transparent white": with_alpha(levels(255, 0), levels(0, 255)),
    "an alpha that says nothing": with_alpha(levels(0, 255), Image.new("L", (64, 48), 255)),
}


def read_mask(path):
    return Files({"x": path}, masks=True).read("x")


@pytest.mark.parametrize("name", MASKS)
def test_masks_are_true_inside_the_lesion(tmp_path, name):
    MASKS[name].save(tmp_path / "m.png")
    found = read_mask(tmp_path / "m.png")
    assert found.dtype == bool
    np.testing.assert_array_equal(found, INSIDE)


@pytest.mark.parametrize(("level", "inside"), [(0, False), (1, True), (255, True)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_masks_of_one_level(tmp_path, level, inside, dtype):
    Image.fromarray(np.full((4, 6), level, dtype)).save(tmp_path / "m.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), np.full((4, 6), inside))


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_masks_with_blurred_edges_are_cut_at_half(tmp_path, suffix):
    blurred = levels(0, 255).resize((37, 29), Image.Resampling.BICUBIC)
    blurred.save(tmp_path / f"m.{suffix}")
    np.testing.assert_array_equal(
        read_mask(tmp_path / f"m.{suffix}"), np.asarray(Image.open(tmp_path / f"m.{suffix}")) > 127
    )
    wide = np.asarray(blurred).astype(np.uint16) * 257
    Image.fromarray(wide).save(tmp_path / "w.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "w.png"), np.asarray(blurred) > 127)


def test_masks_are_turned_as_photographs_are(tmp_path):
    levels(0, 1).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "m.png", exif=damaged.marked(6))
    np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), INSIDE)


def labels(*values):
    return np.resize(np.array(values, np.uint8), (16, 16))


@pytest.mark.parametrize(
    "image",
    [
        Image.fromarray(labels(0, 1, 2)),
        Image.fromarray(labels(0, 1, 255)),  # which marks the edge that is not to be judged
        Image.fromarray(labels(0, 100, 120)),
        Image.fromarray(labels(0, 1, 255).astype(np.uint16)),
        painted(labels(0, 1, 2), BLACK, RED, (0, 128, 0)),
    ],
)
def test_masks_that_do_not_say_what_is_inside_are_refused(tmp_path, image):
    image.save(tmp_path / "m.png")
    with pytest.raises(
        SkinbookError, match=r"m\.png has 3 levels up to .*Save the mask as PNG, with 0 outside and 255"
    ):
        read_mask(tmp_path / "m.png")


def test_a_dim_jpeg_is_no_mask(tmp_path):
    levels(0, 100).save(tmp_path / "m.jpg")
    with pytest.raises(SkinbookError, match=r"m\.jpg has \d+ levels up to 1\d\d.*Save the mask as PNG"):
        read_mask(tmp_path / "m.jpg")
    Image.new("L", (64, 48)).save(tmp_path / "m.jpg")
    assert not read_mask(tmp_path / "m.jpg").any()
    for values in (np.full((4, 4), 70_000, np.int32), np.full((4, 4), 0.5, np.float32)):
        Image.fromarray(values).save(tmp_path / "m.tif")
        with pytest.raises(SkinbookError, match=r"m\.tif .*no agreed range"):
            read_mask(tmp_path / "m.tif")


# Directories and several pictures -------------------------------------------------------------------------------------


def camera():
    """EXIF as a camera writes it: a mark, places, a maker's note of 40 kB, and more numbers."""
    exif = damaged.marked(6)
    exif[0x010F], exif[0x011A], exif[0x0128] = "Dermatoscope", 300.0, 2
    exif.get_ifd(0x8769).update({0x927C: bytes(40_000), 0x9003: "2026:01:31 12:00:00", 0x829A: 0.01})
    exif.get_ifd(0x8825).update({1: "N", 2: (47.0, 59.0, 30.0)})
    return exif


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("JPEG", {"quality": 95}),
        ("MPO", {"quality": 95, "save_all": True, "append_images": [PLAIN, PLAIN]}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
        ("TIFF", {"big_tiff": True}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("TIFF", {"strip_size": 64 * 3}),
        ("TIFF", {"strip_size": 64 * 3, "compression": "tiff_deflate"}),
    ],
)
def test_what_cameras_write_beside_the_pixels_is_no_bomb(tmp_path, kind, options):
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    stored = PLAIN.transpose(Image.Transpose.ROTATE_90)
    stored.save(tmp_path / "x.jpg", kind, exif=camera(), icc_profile=icc, **options)
    if kind == "JPEG":  # EXIF in two segments, as Pillow joins them
        data = (tmp_path / "x.jpg").read_bytes()
        assert data.count(b"Exif\0\0") == 1
        (tmp_path / "x.jpg").write_bytes(
            data[:2] + data[2:].replace(b"\xff\xe2", b"\xff\xe1\0\x0aExif\0\0__\xff\xe2", 1)
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow 10 writes an index that it calls malformed
        image = source(tmp_path / "x.jpg").read("x")
    assert image.shape == (48, 64, 3)
    assert np.abs(image.astype(int) - np.asarray(PLAIN)).max() <= (30 if kind in ("JPEG", "MPO") else 0)


def test_tiffs_of_many_parts_are_read(tmp_path):
    file = tmp_path / "x.tif"
    separate = ((262, 2), (277, 3), (284, 2))  # red, green and blue in strips of their own
    for more, count in (((), 8), (separate, 24)):
        file.write_bytes(damaged.strips(16, 64, 8, count, *more))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert np.unique(source(file).read("x")).tolist() == [128]
    file.write_bytes(damaged.strips(16, 64, 8, 48))
    with pytest.raises(SkinbookError, match=r"x\.tif .*strips that cover the picture 6 times"):
        source(file).read("x")
    file.write_bytes(damaged.tiff(16, 16, (323, 2**31)).replace(
        struct.pack("<HHII", 323, 4, 1, 2**31), struct.pack("<HHII", 322, 1, 1, 7)
    ))  # fmt: skip
    with pytest.raises(SkinbookError, match=r"x\.tif .*tiles without a size"):
        source(file).read("x")


def test_one_directory_may_name_as_much_as_the_file_has(tmp_path):
    """Nothing that a camera writes is shared; with four times the file's size, and 64 kB, there is room to spare."""
    (tmp_path / "x.tif").write_bytes(damaged.shared(4, 200_000, (34_675, 7, 3_000, 16)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert source(tmp_path / "x.tif").read("x").shape == (4, 4, 3)
    (tmp_path / "x.tif").write_bytes(damaged.shared(5, 200_000))
    with pytest.raises(SkinbookError, match=r"14 entries beside its pixels, which name 1 MB and 9 numbers"):
        source(tmp_path / "x.tif").read("x")
    counted = struct.pack("<Q", 9)
    many = damaged.shared(0, 16, big=True).replace(counted, struct.pack("<Q", 2**40), 1)
    (tmp_path / "x.tif").write_bytes(many)
    with pytest.raises(SkinbookError, match=r"a directory of 1,099,511,627,776 entries"):
        source(tmp_path / "x.tif").read("x")


def pages(*kinds):
    """A TIFF of several pages, each with the number that says what it is to the first."""
    held = io.BytesIO()
    with AppendingTiffWriter(held) as writer:
        for number, kind in enumerate(kinds):
            PLAIN.reduce(1 + number).save(writer, "TIFF", tiffinfo={254: kind})
            writer.newFrame()
    return held.getvalue()


@pytest.mark.parametrize(("kind", "suffix"), [("TIFF", "tif"), ("WEBP", "webp"), ("PNG", "png")])
def test_several_pictures_in_one_file_are_refused(tmp_path, kind, suffix):
    others = [photograph(str(number), 64, 48) for number in range(3)]
    PLAIN.save(tmp_path / f"x.{suffix}", kind, save_all=True, append_images=others)
    with pytest.raises(
        SkinbookError, match=rf"x\.{suffix} .*several pictures, .*Save the right one as a file of its own"
    ):
        source(tmp_path / f"x.{suffix}").read("x")
    PLAIN.save(tmp_path / f"x.{suffix}", kind, save_all=True, **({"lossless": True} if kind == "WEBP" else {}))
    np.testing.assert_array_equal(read(tmp_path / f"x.{suffix}"), np.asarray(PLAIN))


def test_smaller_versions_of_one_picture_are_no_others(tmp_path):
    """As scanners write them into a TIFF, with masks at times."""
    file = tmp_path / "x.tif"
    file.write_bytes(pages(0, 1, 1, 4, 5))
    np.testing.assert_array_equal(read(file), np.asarray(PLAIN))
    for kinds in ((0, 1, 0), (0, 2), [0, *[1] * 33]):
        file.write_bytes(pages(*kinds))
        with pytest.raises(SkinbookError, match=r"x\.tif holds several pictures"):
            read(file)
    data = bytearray(pages(0, 1))
    at = data.index(struct.pack("<HHIHH", 254, 4, 1, 1, 0))  # of the second page: the old way to say the same
    data[at : at + 12] = struct.pack("<HHIHH", 255, 3, 1, 2, 0)
    file.write_bytes(data)
    np.testing.assert_array_equal(read(file), np.asarray(PLAIN))
    first = int.from_bytes(data[4:8], "little")
    end = first + 2 + 12 * int.from_bytes(data[first : first + 2], "little")
    data[end : end + 4] = data[4:8]  # the first page again, and so on without end
    file.write_bytes(data)
    np.testing.assert_array_equal(read(file), np.asarray(PLAIN))


# What tells files apart -----------------------------------------------------------------------------------------------


def test_a_fingerprint_follows_names_lengths_and_contents(tmp_path):
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


@pytest.mark.parametrize("start", [b"\xff\xd8\xff", b"BM", b"II*\0"])
def test_a_fingerprint_follows_other_bytes_of_the_same_length(tmp_path, start):
    """All of a small file and of one whose pixels may not be packed; the beginning, middle and end of others."""
    for length, places in ((40_000, range(3, 40_000, 999)), (200_000, (5, 100_000, 199_999))):
        data = start + bytes(length - len(start))
        found = set()
        for place in (None, *places, *([50_000] if length > 50_000 and start != b"\xff\xd8\xff" else [])):
            changed = bytearray(data)
            if place is not None:
                changed[place] = 1
            (tmp_path / "x").write_bytes(changed)
            found.add(source(tmp_path / "x").fingerprint(["x"]))
        assert len(found) == 1 + len(places) + (length > 50_000 and start != b"\xff\xd8\xff")
