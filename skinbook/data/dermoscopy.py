"""Procedural dermoscopy: one generated lesion, photographed.

A lesion is built from the criteria by which dermatologists tell diagnoses apart (Kittler et al., "Standardization of
terminology in dermoscopy", J Am Acad Dermatol 2016). Its diagnosis decides only the *chances*: how large, how
asymmetric, how pigmented it is likely to be (`BUILD`), and which structures it is likely to have (`CHANCES`). The
drawing itself does not know the diagnosis, so diagnoses overlap as real ones do, and no two photographs of a lesion
differ in anything but camera, light and gel.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from skinbook import keyed
from skinbook.data.drawing import MELANIN, Colour, Layers, View, cloud, ellipse, honeycomb, ring, soft, stroke

DIAGNOSES = ("nv", "mel", "bkl", "bcc", "ak", "scc", "vasc", "df")

# Mean and standard deviation of a lesion's build, by diagnosis. `size` is its radius (1 is half the photograph's
# shorter side at zoom 1); `border` is how softly it ends; amounts of pigment are in the units of drawing.Layers;
# `variegation` is how patchy the pigment is.
BUILD = {
    #               nv          mel         bkl         bcc         ak          scc         vasc        df
    "size":        ((.47, .09), (.56, .10), (.50, .10), (.48, .10), (.50, .10), (.47, .10), (.42, .09), (.43, .09)),
    "asymmetry":   ((.12, .08), (.26, .12), (.17, .09), (.19, .09), (.20, .09), (.19, .09), (.13, .07), (.11, .07)),
    "border":      ((.12, .05), (.09, .05), (.05, .03), (.11, .05), (.17, .06), (.11, .05), (.06, .03), (.17, .06)),
    "melanin":     ((.72, .30), (.92, .38), (.68, .32), (.22, .18), (.20, .14), (.12, .10), (.06, .06), (.42, .18)),
    "blood":       ((.08, .08), (.14, .12), (.09, .09), (.30, .13), (.38, .14), (.42, .16), (.42, .20), (.14, .09)),
    "deep":        ((.05, .05), (.14, .12), (.05, .06), (.06, .06), (.02, .02), (.02, .02), (.10, .10), (.02, .03)),
    "variegation": ((.20, .12), (.48, .20), (.28, .14), (.26, .12), (.24, .12), (.28, .14), (.22, .12), (.16, .09)),
}  # fmt: skip

# The chance that a lesion has a structure, by diagnosis.
CHANCES = {
    #                 nv   mel  bkl  bcc  ak   scc  vasc df
    "network":       (.72, .55, .10, .02, .02, .00, .00, .62),
    "globules":      (.42, .42, .08, .08, .02, .01, .01, .04),
    "streaks":       (.03, .45, .02, .02, .00, .00, .00, .01),
    "veil":          (.02, .48, .03, .06, .00, .02, .08, .01),
    "regression":    (.04, .40, .08, .04, .02, .02, .00, .02),
    "arborising":    (.01, .05, .03, .82, .04, .10, .03, .03),
    "nests":         (.01, .07, .03, .66, .01, .02, .03, .01),
    "leaves":        (.01, .06, .04, .45, .01, .01, .00, .00),
    "milia":         (.03, .03, .72, .06, .02, .02, .00, .01),
    "comedones":     (.02, .02, .68, .03, .01, .01, .00, .00),
    "pseudonetwork": (.01, .04, .08, .04, .84, .12, .00, .01),
    "scale":         (.01, .02, .14, .08, .55, .45, .02, .05),
    "keratin":       (.00, .01, .05, .03, .07, .72, .00, .01),
    "glomerular":    (.01, .03, .03, .05, .10, .68, .01, .02),
    "white_patch":   (.02, .04, .02, .04, .01, .04, .02, .82),
    "lacunae":       (.01, .01, .02, .02, .00, .01, .90, .00),
}  # fmt: skip
STRUCTURES = tuple(CHANCES)

# Skin as a dermatoscope shows it, Fitzpatrick I to VI: red, green, blue in [0, 1].
SKIN = (
    (0.94, 0.79, 0.74),
    (0.90, 0.73, 0.65),
    (0.85, 0.66, 0.56),
    (0.74, 0.54, 0.42),
    (0.57, 0.39, 0.29),
    (0.40, 0.27, 0.20),
)
SOURCES = ("polarised", "contact")


@dataclass(frozen=True)
class Lesion:
    """What a lesion is, whoever photographs it. `structures` maps a name to its strength, 0 to 1."""

    key: tuple[int | str, ...]
    build: dict[str, float]
    structures: dict[str, float]
    skin_type: int
    hairs: int

    def draw(self, name: str, low: float = 0.0, high: float = 1.0) -> float:
        """This lesion's own number of that name."""
        return float(keyed.uniform((*self.key, name), 1, low, high)[0])

    def draws(self, name: str, count: int, low: float = 0.0, high: float = 1.0) -> list[float]:
        """Several of them."""
        return [float(value) for value in keyed.uniform((*self.key, name), count, low, high)]


@dataclass(frozen=True)
class Photograph:
    """How a lesion is photographed: the number of the photograph (its camera and light), device, and artefacts."""

    number: int = 0
    source: str = "polarised"
    ruler: bool = False
    ink: bool = False


@dataclass(frozen=True)
class Rendering:
    """A photograph, uint8 (height, width, 3), and the truth: bool (height, width) masks of lesion and structures."""

    image: np.ndarray
    lesion: np.ndarray
    structures: dict[str, np.ndarray]


def lesion(dx: str, key: tuple[int | str, ...], skin_type: int | None = None) -> Lesion:
    """Draw a lesion of a diagnosis. The same key gives the same lesion on every machine.

    Parameters
    ----------
    dx : one of `DIAGNOSES`.
    key : what the draws depend on.
    skin_type : Fitzpatrick type, 1 to 6; drawn if not given.
    """
    column = DIAGNOSES.index(dx)
    build = {
        name: row[column][0] + row[column][1] * float(np.clip(keyed.normal((*key, name), 1)[0], -2, 2))
        for name, row in BUILD.items()
    }
    chances = {name: row[column] for name, row in CHANCES.items()}
    return _assemble(key, build, chances, skin_type)


def mixed_lesion(key: tuple[int | str, ...]) -> Lesion:
    """A lesion of no diagnosis: every trait is drawn from a diagnosis of its own, every structure has the same chance.

    The lab's backbone learns structures on these, so it can have learned no diagnosis.
    """
    build = {}
    for name, row in BUILD.items():
        mean, deviation = row[int(keyed.integers((*key, name, "whose"), 1, len(DIAGNOSES))[0])]
        build[name] = mean + deviation * float(np.clip(keyed.normal((*key, name), 1)[0], -2, 2))
    return _assemble(key, build, dict.fromkeys(STRUCTURES, 0.2), None)


def _assemble(
    key: tuple[int | str, ...], build: dict[str, float], chances: dict[str, float], skin_type: int | None
) -> Lesion:
    build = {name: max(value, 0.02) for name, value in build.items()}
    build["size"] = float(np.clip(build["size"], 0.26, 0.72))
    # How textbook this lesion looks: many real ones show their criteria only faintly.
    typical = float(keyed.uniform((*key, "typical"), 1, 0.42, 1.0)[0])
    structures = {}
    for name, chance in chances.items():
        present, strength = keyed.uniform((*key, "structure", name), 2)
        if present < chance:
            structures[name] = float(typical * (0.6 + 0.4 * strength))
    if skin_type is None:
        skin_type = 1 + int(np.searchsorted((0.12, 0.44, 0.74, 0.88, 0.95), keyed.uniform((*key, "skin"), 1)[0]))
    hairs = max(0, int(keyed.uniform((*key, "hairs"), 1, -8, 9)[0]))
    return Lesion(key, build, structures, skin_type, hairs)


class Canvas:
    """A photograph while it is being drawn: the lesion, the view, what lies in the skin, and where the lesion is.

    `depth` says how deep inside the lesion each pixel lies, in lesion coordinates (negative outside); `inside` is 1 in
    the lesion, 0 outside, and between on its border.
    """

    def __init__(self, lesion: Lesion, view: View):
        self.lesion, self.view, self.layers = lesion, view, Layers(view)
        self.draw, self.draws, self.build, self.size = lesion.draw, lesion.draws, lesion.build, lesion.build["size"]
        phi = np.arctan2(view.v, view.u)
        waves = (height * np.cos(order * phi + phase) for order, height, phase in self._lobes())
        ragged = 0.25 * self.build["asymmetry"] * self.cloud("rim", 7, 2)
        self.depth = self.size * (sum(waves, start=np.float32(1)) + ragged) - np.hypot(view.u, view.v)
        self.inside = soft(self.depth, max(self.build["border"], 1.5 * view.pixel))

    def _lobes(self) -> list[tuple[int, float, float]]:
        """The waves that make the outline: order (how many lobes), height, and angle."""
        weights, phases = self.draws("lobes", 5, 0.4, 1.0), self.draws("lobe angles", 5, 0, 2 * math.pi)
        # Order 2 is a plain oval, which every lesion may be; the other orders break the symmetry.
        asymmetry = self.build["asymmetry"]
        heights = (asymmetry, 0.12, 0.75 * asymmetry, 0.5 * asymmetry, 0.35 * asymmetry)
        return [(order, heights[order - 1] * weights[order - 1], phases[order - 1]) for order in range(1, 6)]

    def rim(self, angle: float) -> float:
        """The lesion's radius in a direction (without the ragged rim)."""
        return self.size * (1 + sum(height * math.cos(order * angle + phase) for order, height, phase in self._lobes()))

    def cloud(self, name: str, frequency: float, octaves: int = 1) -> np.ndarray:
        """Smooth noise of this lesion's own (see `drawing.cloud`)."""
        return cloud((*self.lesion.key, name), self.view.u, self.view.v, frequency, octaves)

    def streaky(self, name: str, angle: float, stretch: float, frequency: float, octaves: int) -> np.ndarray:
        """Smooth noise that is drawn out along an angle."""
        along = self.view.u * math.cos(angle) + self.view.v * math.sin(angle)
        across = self.view.v * math.cos(angle) - self.view.u * math.sin(angle)
        return cloud((*self.lesion.key, name), along * stretch, across, frequency, octaves)

    def scatter(
        self, name: str, count: int, reach: float, *also: tuple[str, float, float], least: float = 0.0
    ) -> Iterator[tuple[float, ...]]:
        """Points (u, v) between the fractions `least` and `reach` of the lesion's radius, evenly by area.

        `also` names further numbers to draw for each point, and their ranges.
        """
        angles, fractions = self.draws(f"{name} angle", count, 0, 2 * math.pi), self.draws(f"{name} radius", count)
        others = [self.draws(other, count, low, high) for other, low, high in also]
        for angle, fraction, *numbers in zip(angles, fractions, *others, strict=True):
            radius = self.size * math.sqrt(least**2 + (reach**2 - least**2) * fraction)
            yield radius * math.cos(angle), radius * math.sin(angle), *numbers

    def patch(self, name: str, share: float, ragged: float = 0.35, off: float = 0.45) -> np.ndarray:
        """A soft cloud-edged patch within the lesion, of about `share` of its radius, off its centre."""
        ((u, v),) = self.scatter(name, 1, off)
        edge = self.size * (share + ragged * share * self.cloud(name, 4.5, 2))
        return soft(edge - np.hypot(self.view.u - u, self.view.v - v), 0.6 * self.size * share) * self.inside


def render(subject: Lesion, photograph: Photograph, height: int = 128, width: int = 128) -> Rendering:
    """Photograph a lesion.

    The result is the same on every machine to within one grey level, and shows the same at any size.
    """
    zoom, turn, shift_x, shift_y = keyed.uniform((*subject.key, "photograph", photograph.number, "camera"), 4).tolist()
    shift = (0.2 * shift_x - 0.1, 0.2 * shift_y - 0.1)
    view = View(height, width, 1.02 + 0.3 * zoom, 0.8 * math.pi * (turn - 0.5), shift)
    view.warp(subject.key)
    on = Canvas(subject, view)
    skin(on)
    body(on)
    masks = {name: DRAW[name](on, strength) > 0.5 for name, strength in subject.structures.items()}
    hue = subject.draw("hue", -0.11, 0.07)  # every lesion has a brown of its own
    brown = (MELANIN[0] - 0.5 * hue, MELANIN[1] + hue, MELANIN[2] + 0.4 * hue)
    colour = on.layers.colour(SKIN[subject.skin_type - 1], brown)
    colour = artefacts(on, photograph, colour)
    colour = camera(on, photograph, colour)
    image = np.clip(np.rint(colour * 255), 0, 255).astype(np.uint8)
    return Rendering(image, on.inside > 0.5, masks)


def skin(on: Canvas) -> None:
    """Uneven colour, fine creases and a few freckles around the lesion."""
    layers = on.layers
    layers.blood += on.draw("flush", 0.0, 0.18) + 0.05 * on.cloud("flush", 2.5, 3)
    layers.melanin += on.draw("tan", -0.05, 0.15) + 0.05 * on.cloud("mottle", 5, 2)
    layers.melanin += 0.06 * np.abs(on.streaky("creases", on.draw("creases", 0, math.pi), 0.3, 11, 2))
    places = on.draws("freckle u", 7, -1.4, 1.4), on.draws("freckle v", 7, -1.4, 1.4)
    for u, v, size in zip(*places, on.draws("freckle size", 7, -0.03, 0.06), strict=True):
        if size > 0.015:
            spot = on.view.blank()
            ellipse(on.view, spot, u, v, size, size * 0.8, edge=size)
            layers.melanin += 0.3 * spot


def body(on: Canvas) -> None:
    """The lesion's own pigment: patchy, darker to one side if asymmetric, and usually darkest in the middle."""
    layers, build, patchy = on.layers, on.build, on.build["variegation"]
    tilt = on.draw("tilt", 0, 2 * math.pi)
    lean = 1.4 * build["asymmetry"] * (on.view.u * math.cos(tilt) + on.view.v * math.sin(tilt)) / on.size
    profile = 0.75 + on.draw("profile", -0.15, 0.7) * np.clip(on.depth / on.size, 0, 1)
    layers.melanin += on.inside * build["melanin"] * profile * np.exp(1.3 * patchy * on.cloud("patches", 3.2, 3) + lean)
    reds = 1 + 1.6 * patchy * on.cloud("reds", 2.8, 2) + 0.3 * on.cloud("grain", 9, 2)
    layers.blood += on.inside * build["blood"] * reds
    layers.deep += on.inside * build["deep"] * np.clip(0.6 + 2.5 * patchy * on.cloud("deep", 2.6), 0, 3)


# Structures: each draws into the layers and returns how far it covers each pixel, 0 to 1 -----------------------------

DRAW: dict[str, Callable[[Canvas, float], np.ndarray]] = {}


def structure(draw: Callable[[Canvas, float], np.ndarray]) -> Callable[[Canvas, float], np.ndarray]:
    """Register a drawing function under its own name."""
    DRAW[draw.__name__] = draw
    return draw


@structure
def network(on: Canvas, strength: float) -> np.ndarray:
    """A pigment network: brown lines around paler holes. The more asymmetric the lesion, the less regular its mesh."""
    view, irregular = on.view, on.build["asymmetry"] + 0.4 * on.build["variegation"]
    cell = on.draw("cell", 0.062, 0.1)
    # Every wall is pushed about a little, as no real mesh is a honeycomb; an irregular one is drawn out widely.
    jitter, drift = 0.26 * cell, 0.12 * irregular
    u = view.u + jitter * on.cloud("jitter u", 0.62 / cell) + drift * on.cloud("drift u", 4)
    v = view.v + jitter * on.cloud("jitter v", 0.62 / cell) + drift * on.cloud("drift v", 4)
    thickness = cell * (0.1 + 0.3 * irregular * np.maximum(on.cloud("lines", 5), 0))
    lines = soft(thickness - honeycomb(u, v, cell), max(0.24 * cell, 1.2 * view.pixel))
    centre = 1 - 0.65 * soft(on.depth - 0.5 * on.size, 0.5 * on.size)
    patchy = soft(on.cloud("gaps", 2.5) + 1.15 - 1.8 * irregular, 0.7)
    extent = soft(on.depth + 0.02, 0.14) * centre * patchy
    on.layers.melanin += strength * (0.4 + 0.55 * on.build["melanin"]) * extent * (1.5 * lines - 0.45)
    return extent


@structure
def globules(on: Canvas, strength: float) -> np.ndarray:
    """Round brown globules: of one size and spread evenly in a symmetric lesion, uneven and to one side in another."""
    uneven = min(1.0, 2.2 * on.build["asymmetry"])
    count, side = int(on.draw("globules", 22, 60)), on.draw("globule side", 0, 2 * math.pi)
    base = on.draw("globule size", 0.018, 0.032)
    least = on.draw("globule rim", -0.6, 0.75) if uneven < 0.5 else 0
    cover = on.view.blank()
    for u, v, vary in on.scatter("globules", count, 0.95, ("globule sizes", -1, 1), least=least):
        if (u * math.cos(side) + v * math.sin(side)) / on.size > 1.3 * uneven - 1.3:
            radius = base * (1 + 0.2 * vary + uneven * 0.7 * max(vary, -0.6))
            ellipse(on.view, cover, u, v, radius, radius * (1 - 0.25 * abs(vary)), side * 5 * vary, 0.4 * radius)
    on.layers.melanin += (0.3 + 0.9 * strength) * cover
    on.layers.deep += 0.25 * uneven * strength * cover
    return cover


@structure
def streaks(on: Canvas, strength: float) -> np.ndarray:
    """Finger-like projections across part of the rim, some with a bulb at their end (pseudopods)."""
    start, sweep = on.draw("streak start", 0, 2 * math.pi), on.draw("streak sweep", 0.8, 3.2)
    count = int(5 + 9 * sweep)
    steps, lengths = on.draws("streak steps", count), on.draws("streak lengths", count, 0.1, 0.28)
    cover = on.view.blank()
    for step, length, bend in zip(steps, lengths, on.draws("streak bends", count, -0.2, 0.2), strict=True):
        angle = start + sweep * step
        inner, outer = on.rim(angle) - 0.5 * length * on.size, on.rim(angle) + length * on.size
        root = (inner * math.cos(angle), inner * math.sin(angle))
        tip = (outer * math.cos(angle + bend * 0.5), outer * math.sin(angle + bend * 0.5))
        bulb = length > 0.24
        stroke(on.view, cover, [root, tip], 0.024, 0.012 if bulb else 0.003)
        if bulb:
            ellipse(on.view, cover, *tip, 0.026, 0.02, angle, 0.02)
    on.layers.melanin += (0.5 + 1.0 * strength) * cover
    return cover


@structure
def veil(on: Canvas, strength: float) -> np.ndarray:
    """A blue-white veil: a structureless blue patch under a ground-glass haze."""
    cover = on.patch("veil", on.draw("veil", 0.4, 0.65))
    on.layers.deep += (0.25 + 0.75 * strength) * cover * (1 + 0.5 * on.cloud("mottled", 7, 3))
    on.layers.melanin -= 0.5 * strength * cover * on.layers.melanin
    on.layers.white += 0.22 * strength * cover
    return cover


@structure
def regression(on: Canvas, strength: float) -> np.ndarray:
    """Scar-like white where the lesion has gone, peppered with blue-grey dots."""
    cover = on.patch("regression", on.draw("regression", 0.35, 0.6), 0.6, 0.6)
    keep = 1 - (0.35 + 0.6 * strength) * cover
    on.layers.melanin *= keep
    on.layers.deep *= keep
    on.layers.white += 0.3 * strength * cover
    pepper = on.view.blank()
    for u, v in on.scatter("pepper", 40, 0.9):
        ellipse(on.view, pepper, u, v, 0.011, 0.011)
    on.layers.deep += 0.7 * pepper * cover
    return cover


@structure
def arborising(on: Canvas, strength: float) -> np.ndarray:
    """Arborising vessels: sharp bright red trunks that branch like trees."""
    cover = on.view.blank()
    for tree in range(int(on.draw("trees", 2, 5))):
        turns = on.draws(f"tree {tree}", 40, -1, 1)
        angle = on.draw(f"tree {tree} angle", 0, 2 * math.pi)
        root = (0.95 * on.size * math.cos(angle), 0.95 * on.size * math.sin(angle))
        length = on.draw(f"tree {tree} length", 0.7, 1.2) * on.size
        _branch(on.view, cover, root, angle + math.pi + 0.5 * turns[0], length, 0.0125, turns)
    on.layers.blood += (0.5 + 1.1 * strength) * cover
    return cover


def _branch(
    view: View, cover: np.ndarray, point: tuple[float, float], heading: float, length: float, width: float,
    turns: list[float], index: int = 1,
) -> None:  # fmt: skip
    """One vessel that winds in five steps and sends off two thinner ones, down to the third generation."""
    points, forks = [point], []
    for step in range(5):
        heading += 0.45 * turns[(index * 7 + step) % len(turns)]
        point = (point[0] + length / 5 * math.cos(heading), point[1] + length / 5 * math.sin(heading))
        points.append(point)
        if step in (1, 3):
            forks.append((point, heading + (0.8 if turns[(index * 3 + step) % len(turns)] > 0 else -0.8)))
    stroke(view, cover, points, width, 0.55 * width)
    if index < 4:
        for number, (start, direction) in enumerate(forks):
            _branch(view, cover, start, direction, 0.55 * length, 0.6 * width, turns, 2 * index + number)


@structure
def nests(on: Canvas, strength: float) -> np.ndarray:
    """Large blue-grey ovoid nests and smaller globules, well defined."""
    cover, count = on.view.blank(), int(on.draw("nests", 3, 11))
    numbers = ("nest sizes", 0.03, 0.12), ("nest shapes", 0.5, 0.95), ("nest angles", 0, math.pi)
    for u, v, long, ratio, angle in on.scatter("nests", count, 0.85, *numbers):
        ellipse(on.view, cover, u, v, long, long * ratio, angle, 0.03)
    on.layers.deep += (0.3 + 0.75 * strength) * cover
    on.layers.melanin += 0.25 * strength * cover
    return cover


@structure
def leaves(on: Canvas, strength: float) -> np.ndarray:
    """Leaf-like areas: brown to grey-blue lobes that fan out from a point near the rim."""
    cover = on.view.blank()
    for leaf, (u, v) in enumerate(on.scatter("leaves", int(on.draw("leaves", 2, 5)), 0.95, least=0.65)):
        for lobe in range(5):
            angle, length = math.atan2(v, u) + (lobe - 2) * 0.5, on.draw(f"leaf {leaf} {lobe}", 0.05, 0.1)
            middle = (u + length * math.cos(angle), v + length * math.sin(angle))
            ellipse(on.view, cover, *middle, length, 0.36 * length, angle, 0.015)
    on.layers.melanin += (0.3 + 0.6 * strength) * cover
    on.layers.deep += 0.4 * strength * cover
    return cover


@structure
def milia(on: Canvas, strength: float) -> np.ndarray:
    """Milia-like cysts: small round white or yellowish specks."""
    cover = on.view.blank()
    for u, v, radius in on.scatter("milia", int(on.draw("milia", 8, 26)), 0.85, ("milia sizes", 0.018, 0.04)):
        ellipse(on.view, cover, u, v, radius, radius, 0, radius)
    on.layers.white += (0.3 + 0.5 * strength) * cover
    return cover


@structure
def comedones(on: Canvas, strength: float) -> np.ndarray:
    """Comedo-like openings: dark, sharply cut plugs of keratin, round or slit-like."""
    cover, count = on.view.blank(), int(on.draw("comedones", 6, 18))
    numbers = ("comedo sizes", 0.024, 0.056), ("comedo shapes", 0.4, 1), ("comedo angles", 0, math.pi)
    for u, v, radius, ratio, angle in on.scatter("comedones", count, 0.85, *numbers):
        ellipse(on.view, cover, u, v, radius, radius * ratio, angle, 0.012)
    on.layers.melanin += (0.5 + 1.0 * strength) * cover
    on.layers.keratin += 0.15 * strength * cover
    return cover


@structure
def pseudonetwork(on: Canvas, strength: float) -> np.ndarray:
    """A pink to brown pseudo-network: colour broken by pale follicle openings with yellow plugs, as a strawberry's."""
    cell = on.draw("follicles", 0.12, 0.19)
    wall = honeycomb(on.view.u + 0.05 * on.cloud("follicle u", 4), on.view.v + 0.05 * on.cloud("follicle v", 4), cell)
    vary = 0.09 * cell * on.cloud("follicle size", 0.9 / cell)
    openings, plugs = soft(wall - 0.28 * cell + vary, 0.16 * cell), soft(wall - 0.39 * cell + vary, 0.1 * cell)
    extent = on.inside * soft(on.cloud("follicle gaps", 2.2) + 0.65, 0.5)
    on.layers.blood += strength * extent * (0.45 - 0.75 * openings)
    on.layers.melanin += strength * extent * (1 - openings) * on.draw("brown", -0.2, 0.35)
    on.layers.white += 0.3 * strength * extent * (openings - plugs)
    on.layers.keratin += 0.45 * strength * extent * plugs
    return extent


@structure
def scale(on: Canvas, strength: float) -> np.ndarray:
    """Surface scale: dry white to yellow flakes, drawn out in one direction."""
    angle = on.draw("scale angle", 0, math.pi)
    flakes = on.streaky("flakes", angle, 0.6, 9, 3) + 0.7 * on.cloud("scaly", 2.2)
    grain = 0.65 + 0.5 * on.streaky("flake grain", angle, 0.5, 22, 2)
    cover = soft(flakes - 0.3, 0.55) * on.inside
    on.layers.white += (0.15 + 0.5 * strength) * cover * grain
    on.layers.keratin += 0.3 * strength * cover * grain
    return cover


@structure
def keratin(on: Canvas, strength: float) -> np.ndarray:
    """A central mass of amber keratin, cracked, with spots of blood."""
    cover = on.patch("keratin", on.draw("keratin", 0.3, 0.6), 0.5, 0.3)
    cracks = np.abs(on.cloud("cracks", 7, 3))
    on.layers.keratin += (0.35 + 0.5 * strength) * cover * (0.45 + 0.55 * soft(cracks, 0.35))
    on.layers.melanin += 0.5 * strength * cover * (1 - soft(cracks, 0.5))
    spots = on.view.blank()
    for u, v, radius in on.scatter("blood spots", 6, 0.5, ("blood spot sizes", 0.012, 0.04)):
        ellipse(on.view, spots, u, v, radius, 0.7 * radius, 0, 0.02)
    on.layers.blood += 1.2 * strength * spots
    on.layers.keratin *= 1 - 0.8 * spots
    return cover


@structure
def glomerular(on: Canvas, strength: float) -> np.ndarray:
    """Glomerular vessels: small red coils, in clusters towards the rim."""
    cover = on.view.blank()
    for number, (u, v) in enumerate(on.scatter("coil clusters", 4, 0.85, least=0.4)):
        for a, b, gap in zip(*(on.draws(f"coils {number} {axis}", 9) for axis in ("u", "v", "gap")), strict=True):
            place = (u + 0.3 * (a - 0.5), v + 0.3 * (b - 0.5))
            ring(on.view, cover, *place, 0.02 + 0.01 * gap, 0.009, gap * 2 * math.pi)
    cover *= soft(on.depth + 0.05, 0.1)
    on.layers.blood += (0.5 + 1.0 * strength) * cover
    return cover


@structure
def white_patch(on: Canvas, strength: float) -> np.ndarray:
    """A central scar-like white patch, sometimes with shiny white lines."""
    cover = on.patch("white patch", on.draw("white patch", 0.35, 0.58), 0.25, 0.12)
    on.layers.white += (0.25 + 0.45 * strength) * cover
    on.layers.melanin *= 1 - 0.75 * strength * cover
    lines = on.view.blank()
    for u, v, angle in on.scatter("shiny", max(int(on.draw("shiny lines", -4, 8)), 0), 0.4, ("shiny angles", 0, 3)):
        du, dv = 0.06 * math.cos(angle), 0.06 * math.sin(angle)
        stroke(on.view, lines, [(u - du, v - dv), (u + du, v + dv)], 0.008, 0.008)
    on.layers.white += 0.4 * strength * lines
    return cover


@structure
def lacunae(on: Canvas, strength: float) -> np.ndarray:
    """Lacunae: well-defined red, purple or almost black lakes of blood, between whitish septa."""
    cover, count, dark = on.view.blank(), int(on.draw("lacunae", 7, 22)), max(on.draw("lacuna dark", -0.3, 0.9), 0)
    numbers = ("lacuna sizes", 0.05, 0.14), ("lacuna shapes", 0.6, 1), ("lacuna angles", 0, math.pi)
    for u, v, long, ratio, angle in on.scatter("lacunae", count, 0.85, *numbers):
        lake = on.view.blank()
        ellipse(on.view, lake, u, v, long, long * ratio, angle, 0.03)
        # Where lakes meet, the rim between them stays paler.
        cover = np.maximum(cover, lake) - 0.35 * np.minimum(cover, lake) * (1 - lake)
    on.layers.blood += (0.5 + 1.0 * strength) * cover
    on.layers.deep += dark * strength * cover
    on.layers.melanin += 0.5 * dark * strength * cover
    on.layers.white += 0.1 * on.inside * (1 - cover)
    return cover


# Hair, artefacts, camera ---------------------------------------------------------------------------------------------


def artefacts(on: Canvas, photograph: Photograph, colour: np.ndarray) -> np.ndarray:
    """Hair on the lesion; ink and a ruler if the photograph has them; gel bubbles under a contact plate."""
    key = (*on.lesion.key, "photograph", photograph.number)
    if photograph.ink:
        colour = _paint(colour, 0.8 * ink(on), (0.30, 0.16, 0.50))
    dark = 0.10 + 0.35 * on.draw("hair colour") ** 3
    colour = _paint(colour, 0.85 * hair(on), (1.3 * dark, dark, 0.75 * dark))
    if photograph.source == "contact":
        colour = colour + bubbles(key, on.view)[..., None]
    if photograph.ruler:
        plate, ticks = ruler(key, on.view)
        colour = _paint(colour, 0.5 * plate, (0.92, 0.93, 0.92))
        colour = _paint(colour, 0.85 * ticks, (0.08, 0.08, 0.10))
    return colour


def _paint(colour: np.ndarray, cover: np.ndarray, paint: Colour) -> np.ndarray:
    return colour + cover[..., None] * (np.asarray(paint, np.float32) - colour)


def hair(on: Canvas) -> np.ndarray:
    """Hairs are parabolas that lie across the skin in roughly one direction."""
    view, cover, count = on.view, on.view.blank(), on.lesion.hairs
    heading = on.draw("hair heading", 0, math.pi)
    ranges = {"u": (-1.1, 1.1), "v": (-1.1, 1.1), "turn": (-0.5, 0.5), "bow": (-0.35, 0.35), "width": (0.005, 0.013)}
    ranges["length"] = (0.5, 1.3)
    numbers = (on.draws(f"hair {name}", count, *between) for name, between in ranges.items())
    for u, v, turn, bow, width, length in zip(*numbers, strict=True):
        cosine, sine = math.cos(heading + turn), math.sin(heading + turn)
        du, dv = view.straight_u - u, view.straight_v - v
        along, across = du * cosine + dv * sine, dv * cosine - du * sine
        distance = np.abs(across - bow * along * along) / np.sqrt(1 + (2 * bow * along) ** 2)
        thick, faint = max(width, 0.5 * view.pixel), min(1.0, width / (0.5 * view.pixel))
        line = soft(thick - distance, 1.2 * view.pixel) * soft(length - np.abs(along), 0.2) * faint
        cover = np.maximum(cover, line)
    return cover


def ink(on: Canvas) -> np.ndarray:
    """Violet surgical ink: two uneven arcs of a felt pen beside the lesion."""
    cover = on.view.blank()
    for arc, start in enumerate(on.draws("ink", 2, 0, 2 * math.pi)):
        reach = 1.25 * on.rim(start) + 0.08
        angles = [start + 0.16 * step for step in range(7)]
        points = [(reach * math.cos(angle), reach * math.sin(angle)) for angle in angles]
        stroke(on.view, cover, points, 0.045, 0.03 + 0.01 * arc)
    return cover * (0.75 + 0.25 * on.cloud("ink", 12, 2))


def ruler(key: tuple[int | str, ...], view: View) -> tuple[np.ndarray, np.ndarray]:
    """A transparent ruler along one edge: its plate, and its ticks, every fifth one longer."""
    side, place, spacing = (float(value) for value in keyed.uniform((*key, "ruler"), 3))
    along, across = (view.x, view.y) if int(side * 4) % 2 else (view.y, view.x)
    inwards = across if side < 0.5 else -across
    edge = 0.72 + 0.1 * place
    spacing = 0.09 + 0.04 * spacing
    nearest = np.round(along / spacing)
    fifth = np.abs(nearest - 5 * np.round(nearest / 5)) < 0.5
    length = np.where(fifth, 0.17, 0.1)
    pixel = 1 / view.half
    tick = soft(0.009 - np.abs(along - nearest * spacing), 1.2 * pixel) * min(1.0, 0.018 / pixel)
    return soft(inwards - edge, 2 * pixel), tick * soft(inwards - edge, pixel) * soft(
        edge + length - inwards, 1.2 * pixel
    )


def bubbles(key: tuple[int | str, ...], view: View) -> np.ndarray:
    """Air bubbles in the gel: faint bright rims with a spark of light."""
    light = view.blank()
    count = max(0, int(keyed.uniform((*key, "bubbles"), 1, -6, 7)[0]))
    for x, y, size in zip(*(keyed.uniform((*key, "bubble", axis), count) for axis in "xys"), strict=True):
        radius = 0.03 + 0.11 * float(size) ** 2
        dx, dy = view.x - float(2 * x - 1), view.y - float(2 * y - 1)
        distance = np.sqrt(dx * dx + dy * dy)
        edge = max(0.02, 1.2 / view.half)
        light += 0.16 * soft(0.012 - np.abs(distance - radius), edge) - 0.04 * soft(radius - distance, edge)
        spark = np.sqrt((dx + 0.4 * radius) ** 2 + (dy + 0.4 * radius) ** 2)
        light += 0.3 * soft(0.018 - spark, edge)
    return light


def camera(on: Canvas, photograph: Photograph, colour: np.ndarray) -> np.ndarray:
    """Exposure, white balance, uneven light, vignette, and the sensor's grain."""
    view, key = on.view, (*on.lesion.key, "photograph", photograph.number)
    exposure, warm, tint, side, fall, dark, grain = (float(value) for value in keyed.uniform((*key, "light"), 7))
    # All photographs of a lesion are taken by one clinic: most of a photograph's tint is the clinic's own.
    warm, tint = 0.25 * warm + 0.75 * on.draw("clinic warm"), 0.25 * tint + 0.75 * on.draw("clinic tint")
    angle = 2 * math.pi * side
    light = (0.94 + 0.12 * exposure) * (1 + 0.12 * fall * (view.x * math.cos(angle) + view.y * math.sin(angle)))
    radius = np.hypot(view.x, view.y)
    light *= 1 - (0.05 + 0.3 * dark) * np.clip(radius - 0.5, 0, 1) ** 2
    if photograph.source == "contact":
        # The contact plate's own rim: a black surround, in some photographs only.
        rim = 1.16 + 0.5 * float(keyed.uniform((*key, "rim"), 1)[0])
        light *= 0.06 + 0.94 * soft(rim - radius, 0.08)
    balance = np.asarray([1 + 0.08 * (warm - 0.5), 1 + 0.07 * (tint - 0.5), 1 - 0.18 * (warm - 0.5)], np.float32)
    height, width = view.shape
    noise = keyed.uniform((*key, "grain"), height * width, -1, 1).reshape(height, width, 1).astype(np.float32)
    return colour * light[..., None] * balance + (0.008 + 0.016 * grain) * noise
