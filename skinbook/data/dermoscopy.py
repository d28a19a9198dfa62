"""Procedural dermoscopy: one generated lesion, photographed.

A lesion is built from the criteria by which dermatologists tell diagnoses apart (Kittler et al., "Standardization of
terminology in dermoscopy", J Am Acad Dermatol 2016). Its diagnosis decides only the *chances*: how large, how
asymmetric, how pigmented it is likely to be (`BUILD`), and which structures it is likely to have (`CHANCES`). The
drawing itself does not know the diagnosis, so diagnoses overlap as real ones do, and no two photographs of a lesion
differ in anything but camera, light and gel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from skinbook import keyed
from skinbook.data.drawing import MELANIN, Layers, View, cloud, ellipse, honeycomb, ring, soft, stroke

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
    #                 nv    mel   bkl   bcc   ak    scc   vasc  df
    "network":       (0.72, 0.55, 0.10, 0.02, 0.02, 0.00, 0.00, 0.62),
    "globules":      (0.42, 0.42, 0.08, 0.08, 0.02, 0.01, 0.01, 0.04),
    "streaks":       (0.03, 0.45, 0.02, 0.02, 0.00, 0.00, 0.00, 0.01),
    "veil":          (0.02, 0.48, 0.03, 0.06, 0.00, 0.02, 0.08, 0.01),
    "regression":    (0.04, 0.40, 0.08, 0.04, 0.02, 0.02, 0.00, 0.02),
    "arborising":    (0.01, 0.05, 0.03, 0.82, 0.04, 0.10, 0.03, 0.03),
    "nests":         (0.01, 0.07, 0.03, 0.66, 0.01, 0.02, 0.03, 0.01),
    "leaves":        (0.01, 0.06, 0.04, 0.45, 0.01, 0.01, 0.00, 0.00),
    "milia":         (0.03, 0.03, 0.72, 0.06, 0.02, 0.02, 0.00, 0.01),
    "comedones":     (0.02, 0.02, 0.68, 0.03, 0.01, 0.01, 0.00, 0.00),
    "pseudonetwork": (0.01, 0.04, 0.08, 0.04, 0.84, 0.12, 0.00, 0.01),
    "scale":         (0.01, 0.02, 0.14, 0.08, 0.55, 0.45, 0.02, 0.05),
    "keratin":       (0.00, 0.01, 0.05, 0.03, 0.07, 0.72, 0.00, 0.01),
    "glomerular":    (0.01, 0.03, 0.03, 0.05, 0.10, 0.68, 0.01, 0.02),
    "white_patch":   (0.02, 0.04, 0.02, 0.04, 0.01, 0.04, 0.02, 0.82),
    "lacunae":       (0.01, 0.01, 0.02, 0.02, 0.00, 0.01, 0.90, 0.00),
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
    typical = float(keyed.uniform((*key, "typical"), 1, 0.45, 1.0)[0])
    structures = {}
    for name, chance in chances.items():
        present, strength = keyed.uniform((*key, "structure", name), 2)
        if present < chance:
            structures[name] = float(typical * (0.6 + 0.4 * strength))
    if skin_type is None:
        skin_type = 1 + int(np.searchsorted((0.12, 0.44, 0.74, 0.88, 0.95), keyed.uniform((*key, "skin"), 1)[0]))
    hairs = max(0, int(keyed.uniform((*key, "hairs"), 1, -8, 9)[0]))
    return Lesion(key, build, structures, skin_type, hairs)


def render(subject: Lesion, photograph: Photograph, height: int = 128, width: int = 128) -> Rendering:
    """Photograph a lesion.

    The result is the same on every machine to within one grey level, and shows the same at any size.
    """
    key = (*subject.key, "photograph", photograph.number)
    zoom, turn, shift_x, shift_y = keyed.uniform((*key, "camera"), 4)
    if photograph.number:
        turn = (turn - 0.5) * 0.8 * math.pi
    view = View(
        height,
        width,
        1.0 + 0.35 * float(zoom),
        float(turn),
        (0.2 * float(shift_x) - 0.1, 0.2 * float(shift_y) - 0.1),
    )
    view.warp(subject.key)
    layers = Layers(view)
    depth = _outline(subject, view)
    inside = soft(depth, max(subject.build["border"], 1.5 * view.pixel))
    _skin(subject, view, layers)
    _body(subject, view, layers, depth, inside)
    masks = {}
    for name, strength in subject.structures.items():
        cover = DRAW[name](subject, view, layers, depth, inside, strength)
        masks[name] = cover > 0.5
    red_brown = subject.draw("hue", -0.11, 0.07)
    melanin = (MELANIN[0] - 0.5 * red_brown, MELANIN[1] + red_brown, MELANIN[2] + 0.4 * red_brown)
    colour = layers.colour(SKIN[subject.skin_type - 1], melanin)
    colour = _artefacts(subject, photograph, view, colour)
    colour = _camera(key, photograph, view, colour)
    image = np.clip(np.rint(colour * 255), 0, 255).astype(np.uint8)
    return Rendering(image, inside > 0.5, masks)


# The skin and the lesion's body --------------------------------------------------------------------------------------


def _outline(subject: Lesion, view: View) -> np.ndarray:
    """How deep inside the lesion each pixel lies (negative outside), in lesion coordinates."""
    size, asymmetry = subject.build["size"], subject.build["asymmetry"]
    rho = np.hypot(view.u, view.v)
    phi = np.arctan2(view.v, view.u)
    radius = sum(
        (height * np.cos(order * phi + phase) for order, height, phase in _lobes(subject)), start=np.float32(1)
    )
    ragged = 0.25 * asymmetry * cloud((*subject.key, "rim"), view.u, view.v, 7, 2)
    return size * (radius + ragged) - rho


def _lobes(subject: Lesion) -> list[tuple[int, float, float]]:
    """The waves that make the outline: order (how many lobes), height, and angle."""
    weights, phases = subject.draws("lobes", 5, 0.4, 1.0), subject.draws("lobe angles", 5, 0, 2 * math.pi)
    # Order 2 is a plain oval, which every lesion may be; the other orders break the symmetry.
    asymmetry = subject.build["asymmetry"]
    heights = (asymmetry, 0.12, 0.75 * asymmetry, 0.5 * asymmetry, 0.35 * asymmetry)
    return [(order, heights[order - 1] * weights[order - 1], phases[order - 1]) for order in range(1, 6)]


def _rim(subject: Lesion, angle: float) -> float:
    """The lesion's radius in a direction (without the ragged rim)."""
    waves = (height * math.cos(order * angle + phase) for order, height, phase in _lobes(subject))
    return subject.build["size"] * (1 + sum(waves))


def _skin(subject: Lesion, view: View, layers: Layers) -> None:
    """Uneven colour, fine creases and a few freckles around the lesion."""
    key = subject.key
    layers.blood += subject.draw("flush", 0.0, 0.18) + 0.05 * cloud((*key, "flush"), view.u, view.v, 2.5, 3)
    layers.melanin += subject.draw("tan", -0.05, 0.15) + 0.05 * cloud((*key, "mottle"), view.u, view.v, 5, 2)
    angle = subject.draw("creases", 0, math.pi)
    along = view.u * math.cos(angle) + view.v * math.sin(angle)
    across = view.v * math.cos(angle) - view.u * math.sin(angle)
    layers.melanin += 0.06 * np.abs(cloud((*key, "creases"), along * 0.3, across, 11, 2))
    for u, v, size in zip(
        subject.draws("freckle u", 7, -1.4, 1.4),
        subject.draws("freckle v", 7, -1.4, 1.4),
        subject.draws("freckle size", 7, -0.03, 0.06),
        strict=True,
    ):
        if size > 0.015:
            spot = view.blank()
            ellipse(view, spot, u, v, size, size * 0.8, edge=size)
            layers.melanin += 0.3 * spot


def _body(subject: Lesion, view: View, layers: Layers, depth: np.ndarray, inside: np.ndarray) -> None:
    """The lesion's own pigment: patchy, darker to one side if asymmetric, and usually darkest in the middle."""
    key, build = subject.key, subject.build
    patchy = build["variegation"]
    tilt = subject.draw("tilt", 0, 2 * math.pi)
    lean = 1.4 * build["asymmetry"] * (view.u * math.cos(tilt) + view.v * math.sin(tilt)) / build["size"]
    patches = cloud((*key, "patches"), view.u, view.v, 3.2, 3)
    middle = np.clip(depth / build["size"], 0, 1)
    profile = 0.75 + subject.draw("profile", -0.15, 0.7) * middle
    layers.melanin += inside * build["melanin"] * profile * np.exp(1.3 * patchy * patches + lean)
    reds = cloud((*key, "reds"), view.u, view.v, 2.8, 2)
    layers.blood += (
        inside * build["blood"] * (1 + 1.6 * patchy * reds + 0.3 * cloud((*key, "grain"), view.u, view.v, 9, 2))
    )
    layers.deep += (
        inside * build["deep"] * np.clip(0.6 + 2.5 * patchy * cloud((*key, "deep"), view.u, view.v, 2.6), 0, 3)
    )


def _places(
    subject: Lesion, name: str, count: int, reach: float = 0.8, least: float = 0.0
) -> list[tuple[float, float]]:
    """Points spread over the lesion, between the fractions `least` and `reach` of its radius."""
    size = subject.build["size"]
    places = []
    angles, radii = subject.draws(f"{name} angle", count, 0, 2 * math.pi), subject.draws(f"{name} radius", count)
    for angle, fraction in zip(angles, radii, strict=True):
        radius = size * math.sqrt(least**2 + (reach**2 - least**2) * fraction)
        places.append((radius * math.cos(angle), radius * math.sin(angle)))
    return places


def _patch(subject: Lesion, view: View, name: str, share: float, ragged: float = 0.35, off: float = 0.45) -> np.ndarray:
    """A soft cloud-edged patch that covers about `share` of the lesion's radius, off its centre."""
    size = subject.build["size"]
    ((u, v),) = _places(subject, name, 1, off)
    distance = np.hypot(view.u - u, view.v - v)
    rim = size * (share + ragged * share * cloud((*subject.key, name), view.u, view.v, 4.5, 2))
    return soft(rim - distance, 0.6 * size * share)


# Structures. Each draws into the layers and returns how far it covers each pixel, 0 to 1 -----------------------------

Drawer = Callable[[Lesion, View, Layers, np.ndarray, np.ndarray, float], np.ndarray]
DRAW: dict[str, Drawer] = {}


def structure(draw: Drawer) -> Drawer:
    """Register a drawing function under its own name."""
    DRAW[draw.__name__.lstrip("_")] = draw
    return draw


@structure
def _network(
    subject: Lesion, view: View, layers: Layers, depth: np.ndarray, inside: np.ndarray, strength: float
) -> np.ndarray:
    """A pigment network: brown lines around paler holes. The more asymmetric the lesion, the less regular its mesh."""
    key, irregular = subject.key, subject.build["asymmetry"] + 0.4 * subject.build["variegation"]
    cell = subject.draw("cell", 0.062, 0.1)
    # Every wall is pushed about a little, as no real mesh is a honeycomb; an irregular one is drawn out widely.
    jitter, drift = 0.26 * cell, 0.12 * irregular
    u = view.u + jitter * cloud((*key, "jitter u"), view.u, view.v, 0.62 / cell)
    v = view.v + jitter * cloud((*key, "jitter v"), view.u, view.v, 0.62 / cell)
    u += drift * cloud((*key, "drift u"), view.u, view.v, 4)
    v += drift * cloud((*key, "drift v"), view.u, view.v, 4)
    thickness = cell * (0.1 + 0.3 * irregular * np.maximum(cloud((*key, "lines"), view.u, view.v, 5), 0))
    lines = soft(thickness - honeycomb(u, v, cell), max(0.24 * cell, 1.2 * view.pixel))
    size = subject.build["size"]
    centre = 1 - 0.65 * soft(depth - 0.5 * size, 0.5 * size)
    patchy = soft(cloud((*key, "gaps"), view.u, view.v, 2.5) + 1.15 - 1.8 * irregular, 0.7)
    extent = soft(depth + 0.02, 0.14) * centre * patchy
    amount = 0.4 + 0.55 * subject.build["melanin"]
    layers.melanin += strength * amount * extent * (1.5 * lines - 0.45)
    return extent


@structure
def _globules(
    subject: Lesion, view: View, layers: Layers, depth: np.ndarray, inside: np.ndarray, strength: float
) -> np.ndarray:
    """Round brown globules: of one size and spread evenly in a symmetric lesion, uneven and to one side in another."""
    uneven = min(1.0, 2.2 * subject.build["asymmetry"])
    cover = view.blank()
    count = int(subject.draw("globules", 22, 60))
    side = subject.draw("globule side", 0, 2 * math.pi)
    base = subject.draw("globule size", 0.018, 0.032)
    places = _places(subject, "globules", count, 0.95, subject.draw("globule rim", -0.6, 0.75) if uneven < 0.5 else 0)
    for (u, v), vary in zip(places, subject.draws("globule sizes", count, -1, 1), strict=True):
        if (u * math.cos(side) + v * math.sin(side)) / subject.build["size"] < 1.3 * uneven - 1.3:
            continue
        radius = base * (1 + 0.2 * vary + uneven * 0.7 * max(vary, -0.6))
        ellipse(view, cover, u, v, radius, radius * (1 - 0.25 * abs(vary)), side * 5 * vary, 0.4 * radius)
    layers.melanin += (0.3 + 0.9 * strength) * cover
    layers.deep += 0.25 * uneven * strength * cover
    return cover


@structure
def _streaks(
    subject: Lesion, view: View, layers: Layers, depth: np.ndarray, inside: np.ndarray, strength: float
) -> np.ndarray:
    """Finger-like projections across part of the rim, some with a bulb at their end (pseudopods)."""
    cover = view.blank()
    size = subject.build["size"]
    start, sweep = subject.draw("streak start", 0, 2 * math.pi), subject.draw("streak sweep", 0.8, 3.2)
    count = int(5 + 9 * sweep)
    for step, length, bend in zip(
        subject.draws("streak steps", count),
        subject.draws("streak lengths", count, 0.1, 0.28),
        subject.draws("streak bends", count, -0.2, 0.2),
        strict=True,
    ):
        angle = start + sweep * step
        inner, outer = _rim(subject, angle) - 0.5 * length * size, _rim(subject, angle) + length * size
        root = (inner * math.cos(angle), inner * math.sin(angle))
        tip = (outer * math.cos(angle + bend * 0.5), outer * math.sin(angle + bend * 0.5))
        bulb = length > 0.24
        stroke(view, cover, [root, tip], 0.024, 0.012 if bulb else 0.003)
        if bulb:
            ellipse(view, cover, *tip, 0.026, 0.02, angle, 0.02)
    layers.melanin += (0.5 + 1.0 * strength) * cover
    return cover


@structure
def _veil(
    subject: Lesion, view: View, layers: Layers, depth: np.ndarray, inside: np.ndarray, strength: float
) -> np.ndarray:
    """A blue-white veil: a structureless blue patch under a ground-glass haze."""
    cover = _patch(subject, view, "veil", subject.draw("veil", 0.4, 0.65)) * inside
    mottled = 1 + 0.5 * cloud((*subject.key, "mottled"), view.u, view.v, 7, 3)
    layers.deep += (0.25 + 0.75 * strength) * cover * mottled
    layers.melanin -= 0.5 * strength * cover * layers.melanin
    layers.white += 0.22 * strength * cover
    return cover


@structure
def _regression(
    subject: Lesion, view: View, layers: Layers, depth: np.ndarray, inside: np.ndarray, strength: float
) -> np.ndarray:
    """Scar-like white where the lesion has gone, peppered with blue-grey dots."""
    cover = _patch(subject, view, "regression", subject.draw("regression", 0.35, 0.6), 0.6, 0.6) * inside
    keep = 1 - (0.35 + 0.6 * strength) * cover
    layers.melanin *= keep
    layers.deep *= keep
    layers.white += 0.3 * strength * cover
    pepper = view.blank()
    for u, v in _places(subject, "pepper", 40, 0.9):
        ellipse(view, pepper, u, v, 0.011, 0.011)
    layers.deep += 0.7 * pepper * cover
    return cover


@structure
def _arborising(
    subject: Lesion, view: View, layers: Layers, depth: np.ndarray, inside: np.ndarray, strength: float
) -> np.ndarray:
    """Arborising vessels: sharp bright red trunks that branch like trees."""
    cover = view.blank()
    size = subject.build["size"]
    trees = int(subject.draw("trees", 2, 5))
    for tree in range(trees):
        turns = subject.draws(f"tree {tree}", 40, -1, 1)
        angle = subject.draw(f"tree {tree} angle", 0, 2 * math.pi)
        root = (0.95 * size * math.cos(angle), 0.95 * size * math.sin(angle))
        heading = angle + math.pi + 0.5 * turns[0]
        _branch(view, cover, root, heading, subject.draw(f"tree {tree} length", 0.7, 1.2) * size, 0.014, turns, 1)
    layers.blood += (0.5 + 1.1 * strength) * cover
    return cover


def _branch(
    view: View,
    cover: np.ndarray,
    point: tuple[float, float],
    heading: float,
    length: float,
    width: float,
    turns: list[float],
    index: int,
) -> None:
    """One vessel that winds in five steps and sends off two thinner ones, down to the third generation."""
    points = [point]
    forks = []
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
def _nests(
    subject: Lesion, view: View, layers: Layers, depth: np.ndarray, inside: np.ndarray, strength: float
) -> np.ndarray:
    """Large blue-grey ovoid nests and smaller globules, well defined."""
    cover = view.blank()
    count = int(subject.draw("nests", 3, 11))
    for (u, v), long, ratio, angle in zip(
        _places(subject, "nests", count, 0.85),
        subject.draws("nest sizes", count, 0.03, 0.12),
        subject.draws("nest shapes", count, 0.5, 0.95),
        subject.draws("nest angles", count, 0, math.pi),
        strict=True,
    ):
        ellipse(view, cover, u, v, long, long * ratio, angle, 0.03)
    layers.deep += (0.3 + 0.75 * strength) * cover
    layers.melanin += 0.25 * strength * cover
    return cover


@structure
def _leaves(
    subject: Lesion, view: View, layers: Layers, depth: np.ndarray, inside: np.ndarray, strength: float
) -> np.ndarray:
    """Leaf-like areas: brown to grey-blue lobes that fan out from a point near the rim."""
    cover = view.blank()
    count = int(subject.draw("leaves", 2, 5))
    for leaf, (u, v) in enumerate(_places(subject, "leaves", count, 0.95, 0.65)):
        outwards = math.atan2(v, u)
        for lobe in range(5):
            angle = outwards + (lobe - 2) * 0.5
            length = subject.draw(f"leaf {leaf} {lobe}", 0.05, 0.1)
            middle = (u + length * math.cos(angle), v + length * math.sin(angle))
            ellipse(view, cover, *middle, length, 0.36 * length, angle, 0.015)
    layers.melanin += (0.3 + 0.6 * strength) * cover
    layers.deep += 0.4 * strength * cover
    return cover


@structure
def _milia(
    subject: Lesion, view: View, layers: Layers, depth: np.ndarray, inside: np.ndarray, strength: float
) -> np.ndarray:
    """Milia-like cysts: small round white or yellowish specks."""
    cover = view.blank()
    count = int(subject.draw("milia", 8, 26))
    for (u, v), radius in zip(
        _places(subject, "milia", count, 0.85), subject.draws("milia sizes", count, 0.018, 0.04), strict=True
    ):
        ellipse(view, cover, u, v, radius, radius, 0, radius)
    layers.white += (0.3 + 0.5 * strength) * cover
    return cover


@structure
def _comedones(
    subject: Lesion, view: View, layers: Layers, depth: np.ndarray, inside: np.ndarray, strength: float
) -> np.ndarray:
    """Comedo-like openings: dark, sharply cut plugs of keratin, round or slit-like."""
    cover = view.blank()
    count = int(subject.draw("comedones", 6, 18))
    for (u, v), radius, ratio, angle in zip(
        _places(subject, "comedones", count, 0.85),
        subject.draws("comedo sizes", count, 0.024, 0.056),
        subject.draws("comedo shapes", count, 0.4, 1),
        subject.draws("comedo angles", count, 0, math.pi),
        strict=True,
    ):
        ellipse(view, cover, u, v, radius, radius * ratio, angle, 0.012)
    layers.melanin += (0.5 + 1.0 * strength) * cover
    layers.keratin += 0.15 * strength * cover
    return cover


@structure
def _pseudonetwork(
    subject: Lesion, view: View, layers: Layers, depth: np.ndarray, inside: np.ndarray, strength: float
) -> np.ndarray:
    """A pink to brown pseudo-network: colour broken by pale follicle openings with yellow plugs, as a strawberry's."""
    key = subject.key
    cell = subject.draw("follicles", 0.12, 0.19)
    u = view.u + 0.05 * cloud((*key, "follicle u"), view.u, view.v, 4)
    v = view.v + 0.05 * cloud((*key, "follicle v"), view.u, view.v, 4)
    wall = honeycomb(u, v, cell)
    vary = 0.09 * cell * cloud((*key, "follicle size"), view.u, view.v, 0.9 / cell)
    openings = soft(wall - 0.28 * cell + vary, 0.16 * cell)
    plugs = soft(wall - 0.39 * cell + vary, 0.1 * cell)
    extent = inside * soft(cloud((*key, "follicle gaps"), view.u, view.v, 2.2) + 0.65, 0.5)
    layers.blood += strength * extent * (0.45 - 0.75 * openings)
    layers.melanin += strength * extent * (1 - openings) * subject.draw("brown", -0.2, 0.35)
    layers.white += 0.3 * strength * extent * (openings - plugs)
    layers.keratin += 0.45 * strength * extent * plugs
    return extent


@structure
def _scale(
    subject: Lesion, view: View, layers: Layers, depth: np.ndarray, inside: np.ndarray, strength: float
) -> np.ndarray:
    """Surface scale: dry white to yellow flakes, drawn out in one direction."""
    angle = subject.draw("scale angle", 0, math.pi)
    along = view.u * math.cos(angle) + view.v * math.sin(angle)
    across = view.v * math.cos(angle) - view.u * math.sin(angle)
    flakes = cloud((*subject.key, "flakes"), along * 0.6, across, 9, 3)
    where = cloud((*subject.key, "scaly"), view.u, view.v, 2.2)
    grain = 0.65 + 0.5 * cloud((*subject.key, "flake grain"), along * 0.5, across, 22, 2)
    cover = soft(flakes + 0.7 * where - 0.3, 0.55) * inside
    layers.white += (0.15 + 0.5 * strength) * cover * grain
    layers.keratin += 0.3 * strength * cover * grain
    return cover


@structure
def _keratin(
    subject: Lesion, view: View, layers: Layers, depth: np.ndarray, inside: np.ndarray, strength: float
) -> np.ndarray:
    """A central mass of amber keratin, cracked, with spots of blood."""
    cover = _patch(subject, view, "keratin", subject.draw("keratin", 0.3, 0.6), 0.5, 0.3) * inside
    cracks = np.abs(cloud((*subject.key, "cracks"), view.u, view.v, 7, 3))
    layers.keratin += (0.35 + 0.5 * strength) * cover * (0.45 + 0.55 * soft(cracks, 0.35))
    layers.melanin += 0.5 * strength * cover * (1 - soft(cracks, 0.5))
    spots = view.blank()
    for (u, v), radius in zip(
        _places(subject, "blood spots", 6, 0.5), subject.draws("blood spot sizes", 6, 0.012, 0.04), strict=True
    ):
        ellipse(view, spots, u, v, radius, 0.7 * radius, 0, 0.02)
    layers.blood += 1.2 * strength * spots
    layers.keratin *= 1 - 0.8 * spots
    return cover


@structure
def _glomerular(
    subject: Lesion, view: View, layers: Layers, depth: np.ndarray, inside: np.ndarray, strength: float
) -> np.ndarray:
    """Glomerular vessels: small red coils, in clusters towards the rim."""
    cover = view.blank()
    clusters = _places(subject, "coil clusters", 4, 0.85, 0.4)
    for number, (u, v) in enumerate(clusters):
        across, down, gaps = (subject.draws(f"coils {number} {axis}", 9) for axis in ("u", "v", "gap"))
        for a, b, gap in zip(across, down, gaps, strict=True):
            du, dv = 0.3 * (a - 0.5), 0.3 * (b - 0.5)
            ring(view, cover, u + du, v + dv, 0.02 + 0.01 * gap, 0.009, gap * 2 * math.pi)
    cover *= soft(depth + 0.05, 0.1)
    layers.blood += (0.5 + 1.0 * strength) * cover
    return cover


@structure
def _white_patch(
    subject: Lesion, view: View, layers: Layers, depth: np.ndarray, inside: np.ndarray, strength: float
) -> np.ndarray:
    """A central scar-like white patch, sometimes with shiny white lines."""
    cover = _patch(subject, view, "white patch", subject.draw("white patch", 0.35, 0.58), 0.25, 0.12) * inside
    layers.white += (0.25 + 0.45 * strength) * cover
    layers.melanin *= 1 - 0.75 * strength * cover
    lines = view.blank()
    count = int(subject.draw("shiny lines", -4, 8))
    for (u, v), angle in zip(
        _places(subject, "shiny", max(count, 0), 0.4), subject.draws("shiny angles", max(count, 0), 0, 3), strict=True
    ):
        du, dv = 0.06 * math.cos(angle), 0.06 * math.sin(angle)
        stroke(view, lines, [(u - du, v - dv), (u + du, v + dv)], 0.008, 0.008)
    layers.white += 0.4 * strength * lines
    return cover


@structure
def _lacunae(
    subject: Lesion, view: View, layers: Layers, depth: np.ndarray, inside: np.ndarray, strength: float
) -> np.ndarray:
    """Lacunae: well-defined red, purple or almost black lakes of blood, between whitish septa."""
    cover = view.blank()
    count = int(subject.draw("lacunae", 7, 22))
    dark = subject.draw("lacuna dark", -0.3, 0.9)
    for (u, v), long, ratio, angle in zip(
        _places(subject, "lacunae", count, 0.85),
        subject.draws("lacuna sizes", count, 0.05, 0.14),
        subject.draws("lacuna shapes", count, 0.6, 1),
        subject.draws("lacuna angles", count, 0, math.pi),
        strict=True,
    ):
        lake = view.blank()
        ellipse(view, lake, u, v, long, long * ratio, angle, 0.03)
        # Where lakes meet, the rim between them stays paler.
        cover = np.maximum(cover, lake) - 0.35 * np.minimum(cover, lake) * (1 - lake)
    layers.blood += (0.5 + 1.0 * strength) * cover
    layers.deep += max(dark, 0) * strength * cover
    layers.melanin += 0.5 * max(dark, 0) * strength * cover
    layers.white += 0.1 * inside * (1 - cover)
    return cover


# Hair, artefacts, camera ---------------------------------------------------------------------------------------------


def _artefacts(subject: Lesion, photograph: Photograph, view: View, colour: np.ndarray) -> np.ndarray:
    """Hair on the lesion; ink and a ruler if the photograph has them; gel bubbles under a contact plate."""
    key = (*subject.key, "photograph", photograph.number)
    if photograph.ink:
        colour = _blend(colour, 0.8 * _ink(subject, view), (0.30, 0.16, 0.50))
    dark_hair = 0.10 + 0.35 * subject.draw("hair colour") ** 3
    hair = _hair(subject, view)
    colour = _blend(colour, 0.85 * hair, (1.3 * dark_hair, dark_hair, 0.75 * dark_hair))
    if photograph.source == "contact":
        colour = colour + _bubbles(key, view)[..., None]
    if photograph.ruler:
        plate, ticks = _ruler(key, view)
        colour = _blend(colour, 0.5 * plate, (0.92, 0.93, 0.92))
        colour = _blend(colour, 0.85 * ticks, (0.08, 0.08, 0.10))
    return colour


def _blend(colour: np.ndarray, cover: np.ndarray, paint: tuple[float, float, float]) -> np.ndarray:
    return colour + cover[..., None] * (np.asarray(paint, np.float32) - colour)


def _hair(subject: Lesion, view: View) -> np.ndarray:
    """Hairs are parabolas that lie across the skin in roughly one direction."""
    cover = view.blank()
    count = subject.hairs
    heading = subject.draw("hair heading", 0, math.pi)
    for u, v, turn, bow, width, length in zip(
        subject.draws("hair u", count, -1.1, 1.1),
        subject.draws("hair v", count, -1.1, 1.1),
        subject.draws("hair turn", count, -0.5, 0.5),
        subject.draws("hair bow", count, -0.35, 0.35),
        subject.draws("hair width", count, 0.005, 0.013),
        subject.draws("hair length", count, 0.5, 1.3),
        strict=True,
    ):
        cosine, sine = math.cos(heading + turn), math.sin(heading + turn)
        du, dv = view.straight_u - u, view.straight_v - v
        along, across = du * cosine + dv * sine, dv * cosine - du * sine
        distance = np.abs(across - bow * along * along) / np.sqrt(1 + (2 * bow * along) ** 2)
        thick = max(width, 0.5 * view.pixel)
        faint = min(1.0, width / (0.5 * view.pixel))
        line = soft(thick - distance, 1.2 * view.pixel) * soft(length - np.abs(along), 0.2) * faint
        cover = np.maximum(cover, line)
    return cover


def _ink(subject: Lesion, view: View) -> np.ndarray:
    """Violet surgical ink: two uneven arcs of a felt pen beside the lesion."""
    cover = view.blank()
    for arc, start in enumerate(subject.draws("ink", 2, 0, 2 * math.pi)):
        reach = 1.25 * _rim(subject, start) + 0.08
        steps = [start + 0.16 * step for step in range(7)]
        points = [(reach * math.cos(angle), reach * math.sin(angle)) for angle in steps]
        stroke(view, cover, points, 0.045, 0.03 + 0.01 * arc)
    return cover * (0.75 + 0.25 * cloud((*subject.key, "ink"), view.u, view.v, 12, 2))


def _ruler(key: tuple[int | str, ...], view: View) -> tuple[np.ndarray, np.ndarray]:
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


def _bubbles(key: tuple[int | str, ...], view: View) -> np.ndarray:
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


def _camera(key: tuple[int | str, ...], photograph: Photograph, view: View, colour: np.ndarray) -> np.ndarray:
    """Exposure, white balance, uneven light, vignette, and the sensor's grain."""
    exposure, warm, tint, side, fall, dark, grain = (float(value) for value in keyed.uniform((*key, "light"), 7))
    angle = 2 * math.pi * side
    light = (0.94 + 0.12 * exposure) * (1 + 0.12 * fall * (view.x * math.cos(angle) + view.y * math.sin(angle)))
    radius = np.hypot(view.x, view.y)
    light *= 1 - (0.05 + 0.3 * dark) * np.clip(radius - 0.5, 0, 1) ** 2
    if photograph.source == "contact":
        # The contact plate's own rim: a black surround, in some photographs only.
        rim = 1.16 + 0.5 * float(keyed.uniform((*key, "rim"), 1)[0])
        light *= 0.06 + 0.94 * soft(rim - radius, 0.08)
    balance = np.asarray([1 + 0.06 * (warm - 0.5), 1 + 0.05 * (tint - 0.5), 1 - 0.14 * (warm - 0.5)], np.float32)
    height, width = view.shape
    noise = keyed.uniform((*key, "grain"), height * width, -1, 1).reshape(height, width, 1).astype(np.float32)
    return colour * light[..., None] * balance + (0.008 + 0.016 * grain) * noise
