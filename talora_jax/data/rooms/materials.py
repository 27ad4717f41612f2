"""What surfaces are made of: a texture, its colours, its gloss and its glow.

`textures` draws them; here they are only described, and drawn at random.
"""

import colorsys
import dataclasses

import numpy as np

(
    PLAIN,
    WOOD,
    PLANKS,
    TILES,
    CARPET,
    STRIPES,
    PATTERN,
    SPINES,
    PAINTING,
    PANES,
    SCREEN,
    FRONTS,
    FABRIC,
    FOLDS,
) = range(14)

Number = int | float
Colour = tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class Material:
    """What a surface looks like.

    `a` and `b` are linear RGB albedos; `scale` is the size of the texture's feature in metres (a
    count for FRONTS and PANES); `emission` is added to the reflected light, times the albedo.
    """

    texture: int
    a: Colour
    b: Colour
    scale: Number = 0.1
    emission: float = 0.0
    gloss: float = 0.0


def hsv(h: float, s: float, v: float) -> Colour:
    """Linear RGB of a colour picked in display HSV."""
    return tuple(c**2.2 for c in colorsys.hsv_to_rgb(h % 1.0, min(s, 1.0), min(v, 1.0)))


def wood(rng: np.random.Generator) -> Material:
    """Light, dark or painted wood."""
    kind = rng.choice(4, p=(0.35, 0.3, 0.2, 0.15))
    if kind == 0:
        h, s, v = rng.uniform(0.06, 0.11), rng.uniform(0.35, 0.6), rng.uniform(0.6, 0.85)
    elif kind == 1:
        h, s, v = rng.uniform(0.03, 0.08), rng.uniform(0.5, 0.75), rng.uniform(0.25, 0.5)
    elif kind == 2:
        h, s, v = rng.uniform(0.08, 0.14), rng.uniform(0.0, 0.08), rng.uniform(0.8, 0.95)
    else:
        h, s, v = rng.uniform(0.0, 1.0), rng.uniform(0.0, 0.25), rng.uniform(0.12, 0.5)
    contrast = 0.95 if kind >= 2 else 0.78
    return Material(WOOD, hsv(h, s, v), hsv(h, s * 1.1, v * contrast), 0.05, gloss=0.15)


def fabric(rng: np.random.Generator) -> Material:
    """Upholstery, plain to checked."""
    h, s, v = rng.uniform(), rng.uniform(0.05, 0.65), rng.uniform(0.25, 0.85)
    b = hsv(h + rng.normal(0, 0.03), s, v * rng.uniform(0.7, 0.95))
    return Material(FABRIC, hsv(h, s, v), b, rng.uniform(0.03, 0.15))


def plain(rng: np.random.Generator, saturation: float = 0.8, gloss: float = 0.2) -> Material:
    """Any plain colour."""
    colour = hsv(rng.uniform(), rng.uniform(0, saturation), rng.uniform(0.2, 0.95))
    return Material(PLAIN, colour, colour, gloss=gloss)


METAL = Material(PLAIN, (0.25, 0.25, 0.26), (0.25, 0.25, 0.26), gloss=0.5)
BLACK = Material(PLAIN, (0.015, 0.015, 0.017), (0.015, 0.015, 0.017), gloss=0.4)
WHITE = Material(PLAIN, (0.75, 0.74, 0.7), (0.75, 0.74, 0.7), gloss=0.1)


def fronts(material: Material, columns: int, rows: int) -> Material:
    """The material with doors or drawers on its upright sides."""
    return dataclasses.replace(material, texture=FRONTS, scale=columns + 16 * rows)
