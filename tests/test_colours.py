"""Colours: known values, and that chapter 01 shows the same code as the package runs."""

import ast
import inspect
from pathlib import Path

import jupytext
import numpy as np
import pytest

from skinbook import colours

CHAPTER = Path(__file__).parent.parent / "chapters" / "01_eda.md"


def defined(source):
    """The conversion and its two constants in a piece of code, each as its syntax tree, without the docstring."""
    found = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name == "cielab":
            found[node.name] = ast.dump(ast.Module(node.body[1:], []))
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in ("TO_XYZ", "WHITE"):
            found[node.targets[0].id] = ast.dump(node)
    return found


def test_the_chapter_shows_the_conversion_that_the_package_runs():
    cells = [c.source for c in jupytext.read(CHAPTER).cells if c.cell_type == "code" and "def cielab" in c.source]
    assert len(cells) == 1
    package = inspect.getsource(colours)
    assert defined(cells[0]) == defined(package)
    assert len(defined(package)) == 3
    assert defined(package.replace("500 *", "501 *")) != defined(package)


@pytest.mark.parametrize(
    ("rgb", "expected"),
    [
        ((0, 0, 0), (0.0, 0.0, 0.0)),
        ((255, 255, 255), (100.0, 0.0, 0.0)),
        ((255, 0, 0), (53.24, 80.09, 67.20)),  # red, green and blue of sRGB, as tabulated for D65
        ((0, 255, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
    ],
)
def test_known_colours(rgb, expected):
    image = np.array(rgb, dtype=np.uint8)
    assert colours.cielab(image) == pytest.approx(expected, abs=0.05)
    assert colours.cielab(np.broadcast_to(image, (2, 4, 3))).shape == (2, 4, 3)
