"""What the tests of models share: drawn lesions, ordinary photographs, and calls of the command line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from layouts import HAM_HEADER, write_csv
from PIL import Image, ImageDraw, ImageFilter

from skinbook import cli, keyed
from skinbook.data import lab
from skinbook.data.dermoscopy import SOURCES, Photograph


def call(monkeypatch, *arguments) -> int:
    """The exit code of a command."""
    monkeypatch.setattr(sys, "argv", ["skinbook", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


def lesions(folder: Path, classes: tuple[str, ...], each: int, photographs: int = 1, side: int = 128) -> Path:
    """Drawn lesions that are not the lab's, as PNG files, and `metadata.csv` in HAM10000's layout; returns the table."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for dx in classes:
        for number in range(each):
            for again in range(photographs):
                name = f"DRAWN_{dx}_{number:03d}_{again}"
                key, skin = ("models", number), 1 + number % 4
                photograph = Photograph(again, SOURCES[number % len(SOURCES)])
                drawn = lab.render_example(dx, key, side, skin, photograph)
                Image.fromarray(drawn.image).save(folder / f"{name}.png")
                rows.append([f"LESION_{dx}_{number:03d}", name, dx, "histo", "50.0", "female", "back"])
    return write_csv(folder / "metadata.csv", HAM_HEADER, rows)


def ordinary(side: int = 96, each: int = 8) -> Iterator[tuple[str, Image.Image]]:
    """(kind, photograph) of what is not dermoscopy, drawn."""
    y, x = np.mgrid[0:side, 0:side] / side
    for number in range(each):

        def whole(name: str, count: int, below: int, number: int = number) -> np.ndarray:
            return keyed.integers(("ordinary", name, number), count, below)

        one, other = whole("colours", 6, 256).reshape(2, 3)
        turn = whole("turn", 1, 360)[0]
        slope = np.cos(np.deg2rad(turn)) * x + np.sin(np.deg2rad(turn)) * y
        slope = (slope - slope.min()) / np.ptp(slope)
        yield "gradient", Image.fromarray((one + (other - one) * slope[..., None]).astype(np.uint8))
        squares = ((x * (number + 2)).astype(int) + (y * (number + 2)).astype(int)) % 2
        yield "checkerboard", Image.fromarray(np.where(squares[..., None], one, other).astype(np.uint8))
        noise = whole("noise", side * side * 3, 256).reshape(side, side, 3).astype(np.uint8)
        yield "noise", Image.fromarray(noise)
        yield "clouds", Image.fromarray(noise[:4, : number + 3]).resize((side, side), Image.Resampling.BICUBIC)
        yield "plain colour", Image.new("RGB", (side, side), tuple(one.tolist()))
        yield "text", _text(side, whole("letters", 400, 26))
        yield "landscape", _landscape(side, whole("land", 8, 100))
        yield "face", _face(side, whole("face", 8, 100))


def _text(side: int, letters: np.ndarray) -> Image.Image:
    page = Image.new("RGB", (side, side), "white")
    draw = ImageDraw.Draw(page)
    for line in range(side // 10):
        words = "".join(" " if k % 6 == 5 else chr(97 + k) for k in letters[line * 20 : line * 20 + 20])
        draw.text((4, 10 * line), words, fill=(20, 20, 20))
    return page


def _landscape(side: int, u: np.ndarray) -> Image.Image:
    y = np.mgrid[0:side, 0:side][0] / side
    horizon = 0.35 + u[0] / 300
    sky, grass = np.array([120, 170, 225]) + u[1] % 30, np.array([60, 120, 50]) + u[2] // 3
    picture = Image.fromarray(np.where((y < horizon)[..., None], sky, grass).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    left, line = int(u[3] * side / 130), int(horizon * side)
    draw.ellipse([left, 5, left + side // 7, 5 + side // 7], fill=(255, 240, 150))
    for peak in u[4:7]:
        middle, high = int(peak * side / 100), int(side * (0.1 + peak / 500))
        draw.polygon(
            [(middle - side // 3, line), (middle, line - high), (middle + side // 3, line)], fill=(110, 105, 115)
        )
    return picture


def _face(side: int, u: np.ndarray) -> Image.Image:
    s = side / 160
    skin = tuple(int(c - u[0]) for c in (234, 190, 160))
    picture = Image.new("RGB", (side, side), tuple(int(60 + 1.6 * c) for c in u[1:4]))
    draw = ImageDraw.Draw(picture)
    draw.ellipse([35 * s, 20 * s, 125 * s, 145 * s], fill=skin)
    draw.pieslice([30 * s, 10 * s, 130 * s, 100 * s], 180, 360, fill=tuple(int(c) // 2 for c in u[4:7]))
    for left in (58, 90):
        draw.ellipse([left * s, 68 * s, (left + 14) * s, 78 * s], fill="white")
        draw.ellipse([(left + 4) * s, 69 * s, (left + 11) * s, 77 * s], fill=(40, 30, 20))
    draw.arc([60 * s, 95 * s, 102 * s, 125 * s], 20, 160, fill=(150, 50, 50), width=3)
    return picture.filter(ImageFilter.GaussianBlur(0.6))


def packaged() -> list[Path]:
    """Ordinary photographs that come with scikit-learn and matplotlib."""
    import matplotlib
    import sklearn

    ours = Path(sklearn.__file__).parent / "datasets" / "images"
    theirs = Path(matplotlib.get_data_path()) / "sample_data"
    return [path for path in (ours / "china.jpg", ours / "flower.jpg", theirs / "grace_hopper.jpg") if path.is_file()]
