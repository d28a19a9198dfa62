"""Drawing in a lesion's own coordinates: a view, soft shapes, cloudy noise, and pigments that absorb light.

Everything is a smooth function of position, so the same lesion can be drawn at any size, and a difference in the last
bit of a sine on another machine moves a pixel by at most one grey level. NumPy only: render workers start quickly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from skinbook import keyed

Colour = tuple[float, float, float]


class View:
    """Where each pixel of a photograph lies.

    `x`, `y` are the photograph's coordinates: (0, 0) is its middle, and its shorter side runs from -1 to 1. `u`, `v`
    are the lesion's, which the photograph shows enlarged by `zoom`, turned by `turn` (radians) and moved by `shift`.
    All four are float32 (height, width); `pixel` is the size of one pixel in lesion coordinates.
    """

    def __init__(self, height: int, width: int, zoom: float, turn: float, shift: tuple[float, float]):
        self.half = min(height, width) / 2
        self.shape = (height, width)
        self.zoom, self.turn, self.shift = zoom, turn, shift
        self.pixel = 1 / (self.half * zoom)
        columns = (np.arange(width) + 0.5 - width / 2) / self.half
        rows = (np.arange(height) + 0.5 - height / 2) / self.half
        x, y = np.meshgrid(columns, rows)
        cosine, sine = math.cos(turn) / zoom, math.sin(turn) / zoom
        self.u = (cosine * (x - shift[0]) + sine * (y - shift[1])).astype(np.float32)
        self.v = (cosine * (y - shift[1]) - sine * (x - shift[0])).astype(np.float32)
        self.x, self.y = x.astype(np.float32), y.astype(np.float32)
        self.straight_u, self.straight_v, self.slack = self.u, self.v, 0.0

    def warp(self, key: tuple[int | str, ...], amount: float = 0.022) -> None:
        """Push `u` and `v` about a little, so that what is drawn as a circle grows like a thing that lives."""
        u, v = self.straight_u, self.straight_v
        self.u = u + amount * cloud((*key, "warp u"), u, v, 6, 2)
        self.v = v + amount * cloud((*key, "warp v"), u, v, 6, 2)
        self.slack = 1.5 * amount

    def blank(self) -> np.ndarray:
        """A layer of zeros, float32 (height, width)."""
        return np.zeros(self.shape, np.float32)

    def window(self, u: float, v: float, radius: float) -> tuple[slice, slice]:
        """The rows and columns within which a disc in lesion coordinates lies (possibly none)."""
        cosine, sine = math.cos(self.turn) * self.zoom, math.sin(self.turn) * self.zoom
        column = (cosine * u - sine * v + self.shift[0]) * self.half + self.shape[1] / 2
        row = (sine * u + cosine * v + self.shift[1]) * self.half + self.shape[0] / 2
        reach = (radius + self.slack) / self.pixel + 2
        return (
            slice(max(0, int(row - reach)), max(0, int(row + reach) + 1)),
            slice(max(0, int(column - reach)), max(0, int(column + reach) + 1)),
        )


def soft(distance: np.ndarray, width: float) -> np.ndarray:
    """1 well inside (distance > 0), 0 well outside, a smooth step of the given width between."""
    t = np.clip(distance / width + 0.5, 0, 1)
    return t * t * (3 - 2 * t)


def ellipse(
    view: View, layer: np.ndarray, u: float, v: float, long: float, short: float, angle: float = 0, edge: float = 0
) -> None:
    """Draw a filled ellipse into `layer` (where it is not yet covered more). `edge` is how soft its rim is."""
    edge = max(edge, 1.2 * view.pixel)
    where = view.window(u, v, max(long, short) + edge)
    du, dv = view.u[where] - u, view.v[where] - v
    cosine, sine = math.cos(angle), math.sin(angle)
    along, across = (cosine * du + sine * dv) / long, (cosine * dv - sine * du) / short
    inside = soft((1 - np.sqrt(along * along + across * across)) * min(long, short), edge)
    layer[where] = np.maximum(layer[where], inside)


def ring(view: View, layer: np.ndarray, u: float, v: float, radius: float, thickness: float, gap: float) -> None:
    """Draw a ring that is open towards the angle `gap`: a coiled (glomerular) vessel seen from above."""
    where = view.window(u, v, radius + thickness)
    du, dv = view.u[where] - u, view.v[where] - v
    distance = np.sqrt(du * du + dv * dv)
    open_side = soft((du * math.cos(gap) + dv * math.sin(gap)) - 0.6 * radius, radius)
    edge = max(thickness, 1.2 * view.pixel)
    inside = soft(thickness - np.abs(distance - radius), edge) * (1 - open_side)
    layer[where] = np.maximum(layer[where], inside)


def stroke(view: View, layer: np.ndarray, points: Sequence[tuple[float, float]], start: float, end: float) -> None:
    """Draw a line through `points` whose half-width runs from `start` to `end`, in lesion coordinates.

    A line thinner than a pixel is drawn a pixel wide and fainter, as a camera would see it.
    """
    pieces = len(points) - 1
    for i, ((u0, v0), (u1, v1)) in enumerate(pairwise(points)):
        width = start + (end - start) * (i + 0.5) / pieces
        faint = min(1.0, width / (0.5 * view.pixel))
        width = max(width, 0.5 * view.pixel)
        length = max(math.hypot(u1 - u0, v1 - v0), 1e-6)
        where = view.window((u0 + u1) / 2, (v0 + v1) / 2, length / 2 + 2 * width)
        du, dv = view.u[where] - u0, view.v[where] - v0
        cosine, sine = (u1 - u0) / length, (v1 - v0) / length
        along = np.clip(du * cosine + dv * sine, 0, length)
        distance = np.hypot(du - along * cosine, dv - along * sine)
        inside = soft(width - distance, 1.2 * view.pixel) * faint
        layer[where] = np.maximum(layer[where], inside)


def cloud(key: keyed.Key, u: np.ndarray, v: np.ndarray, frequency: float, octaves: int = 1) -> np.ndarray:
    """Smooth noise with a mean near 0 and a range of about [-1, 1]; `frequency` features a unit of u and v.

    Value noise (Perlin's smooth step between random values on a grid of 32 by 32 that repeats); each further octave
    doubles the frequency and halves the amplitude.
    """
    total, amplitude = np.zeros_like(u), 1.0
    for octave in range(octaves):
        table = keyed.uniform((*_parts(key), octave), 1024, -1.0, 1.0).astype(np.float32)
        scale = frequency * 2**octave
        # The shift keeps positions positive, where truncation is the floor.
        a, b = u * scale + 1024, v * scale + 1024
        i, j = a.astype(np.int32), b.astype(np.int32)
        s, t = a - i, b - j
        s, t = s * s * (3 - 2 * s), t * t * (3 - 2 * t)
        i0, i1, j0, j1 = (i & 31) << 5, ((i + 1) & 31) << 5, j & 31, (j + 1) & 31
        low, high = table[i0 | j0], table[i0 | j1]
        first = low + t * (high - low)
        low, high = table[i1 | j0], table[i1 | j1]
        total += amplitude * (first + s * (low + t * (high - low) - first))
        amplitude /= 2
    return total


def honeycomb(u: np.ndarray, v: np.ndarray, cell: float) -> np.ndarray:
    """Distance to the nearest wall of a honeycomb whose cells are `cell` across, in the units of u and v."""
    root = math.sqrt(3)
    p, q = u / cell, v / cell
    p1, q1 = p - np.round(p), q - root * np.round(q / root)
    p2, q2 = p - 0.5, q - root / 2
    p2, q2 = p2 - np.round(p2), q2 - root * np.round(q2 / root)
    nearer = p1 * p1 + q1 * q1 < p2 * p2 + q2 * q2
    p, q = np.abs(np.where(nearer, p1, p2)), np.abs(np.where(nearer, q1, q2))
    return (0.5 - np.maximum(p, p / 2 + q * root / 2)) * cell


# How strongly one unit of each pigment absorbs red, green and blue light. Melanin near the surface looks brown; the
# same melanin deep in the skin looks blue-grey, because the skin above it scatters blue light back (Tyndall).
MELANIN: Colour = (0.58, 0.88, 1.12)
BLOOD: Colour = (0.16, 0.98, 0.84)
DEEP: Colour = (0.98, 0.66, 0.34)
WHITE: Colour = (0.96, 0.87, 0.82)
KERATIN: Colour = (0.90, 0.77, 0.52)


class Layers:
    """What lies in the skin at each pixel: amounts of three pigments, and how far white and keratin cover them."""

    def __init__(self, view: View):
        self.melanin, self.blood, self.deep = view.blank(), view.blank(), view.blank()
        self.white, self.keratin = view.blank(), view.blank()

    def colour(self, skin: Colour, melanin: Colour = MELANIN) -> np.ndarray:
        """The colour that results on skin of a colour, in [0, 1], float32 (height, width, 3) (Beer and Lambert)."""
        planes = []
        for channel in range(3):
            density = np.maximum(self.melanin, 0) * melanin[channel]
            density += np.maximum(self.blood, 0) * BLOOD[channel]
            density += np.maximum(self.deep, 0) * DEEP[channel]
            plane = skin[channel] * np.exp(-density)
            # White and keratin reflect what falls on them; a little of the skin's own shade remains.
            for cover, bright in ((self.white, WHITE[channel]), (self.keratin, KERATIN[channel])):
                shade = bright * (0.55 + 0.45 * skin[0])
                plane += np.clip(cover, 0, 1) * (shade - plane)
            planes.append(plane)
        return np.stack(planes, axis=-1)


def _parts(key: keyed.Key) -> tuple[int | str, ...]:
    return (key,) if isinstance(key, int | str) else tuple(key)
