"""What stands in a room: every piece of furniture as boxes, cylinders and ellipsoids.

A piece is built in its own frame: x to its right, y to its front, z up, metres; the origin lies on
the floor under its middle, so that its back is at y = -depth / 2. `scene.py` places it.

Classes follow NYUv2's mapping to 13 classes: desks are tables, shelves, wardrobes and bedside
tables are furniture, curtains belong to the window, a door to the wall, a rug to the floor, and
pillows and lamps are objects.
"""

import dataclasses

import numpy as np

from talora_jax.data.rooms import materials
from talora_jax.data.rooms.materials import (
    BLACK,
    METAL,
    WHITE,
    Material,
    Number,
    fabric,
    fronts,
    hsv,
    plain,
    wood,
)

BOX, CYLINDER, ELLIPSOID = range(3)


@dataclasses.dataclass(frozen=True)
class Part:
    """One solid. Parts of a piece with the same `thing` are one instance."""

    shape: int
    centre: tuple[Number, Number, Number]
    half: tuple[Number, Number, Number]
    material: Material
    label: str
    thing: int = 0
    yaw: float = 0.0


@dataclasses.dataclass(frozen=True)
class Piece:
    """Parts, the extent (width, depth, height), and flat tops (x, y, z, width, depth)."""

    parts: tuple[Part, ...]
    size: tuple[Number, Number, Number]
    tops: tuple[tuple[Number, Number, Number, Number, Number], ...] = ()


def box(x, y, z, material, label, thing=0, yaw=0.0) -> Part:
    """A box from three (low, high) ranges."""
    centre = ((x[0] + x[1]) / 2, (y[0] + y[1]) / 2, (z[0] + z[1]) / 2)
    half = ((x[1] - x[0]) / 2, (y[1] - y[0]) / 2, (z[1] - z[0]) / 2)
    return Part(BOX, centre, half, material, label, thing, yaw)


def cylinder(x, y, z, radius, material, label, thing=0) -> Part:
    """An upright cylinder around (x, y) over the range z."""
    centre, half = (x, y, (z[0] + z[1]) / 2), (radius, radius, (z[1] - z[0]) / 2)
    return Part(CYLINDER, centre, half, material, label, thing)


def _legs(w, d, top, size, material, label, inset=0.0, round_legs=False) -> list[Part]:
    parts = []
    for sx in (-1, 1):
        for sy in (-1, 1):
            x, y = sx * (w / 2 - size - inset), sy * (d / 2 - size - inset)
            if round_legs:
                parts.append(cylinder(x, y, (0, top), size, material, label))
            else:
                parts.append(
                    box((x - size, x + size), (y - size, y + size), (0, top), material, label)
                )
    return parts


def bed(rng: np.random.Generator) -> Piece:
    """A bed with its head at the back, pillows (objects) and a blanket."""
    w, d = rng.choice((0.95, 1.25, 1.6, 1.8)), rng.uniform(1.98, 2.1)
    frame, sheet, cover = wood(rng), fabric(rng), fabric(rng)
    if rng.random() < 0.6:
        sheet = dataclasses.replace(WHITE, texture=materials.FABRIC)
    z_frame, z_top = rng.uniform(0.22, 0.34), rng.uniform(0.46, 0.6)
    head = rng.uniform(0.75, 1.2)
    blanket = rng.uniform(0.45, 0.72) * d
    x, y = w / 2, d / 2
    parts = [
        box((-x, x), (-y, y), (0.0, z_frame), frame, "bed"),
        box((-x + 0.03, x - 0.03), (-y + 0.06, y - 0.03), (z_frame, z_top), sheet, "bed"),
        box((-x, x), (-y, -y + 0.06), (z_frame, head), frame, "bed"),
        box((-x + 0.01, x - 0.01), (y - blanket, y - 0.01), (z_frame, z_top + 0.03), cover, "bed"),
    ]
    if rng.random() < 0.5:
        parts.append(box((-x, x), (y - 0.01, y + 0.04), (0, z_top + 0.1), frame, "bed"))
    pillow = sheet if rng.random() < 0.5 else fabric(rng)
    count = 2 if w > 1.2 else 1
    for i in range(count):
        px = (i - (count - 1) / 2) * w / 2
        parts.append(
            Part(
                ELLIPSOID,
                (px, -y + 0.32, z_top + 0.06),
                (min(0.34, 0.23 * w), 0.2, 0.1),
                pillow,
                "objects",
                1 + i,
            )
        )
    return Piece(tuple(parts), (w, d + 0.08, head))


def chair(rng: np.random.Generator) -> Piece:
    """A chair, with or without arms; sometimes an office chair or an armchair's bulk."""
    frame, seat = wood(rng), fabric(rng)
    if rng.random() < 0.4:
        frame = METAL
    if rng.random() < 0.3:
        seat = frame
    w, d = rng.uniform(0.42, 0.52), rng.uniform(0.44, 0.54)
    z, h = rng.uniform(0.42, 0.48), rng.uniform(0.82, 1.05)
    x, y = w / 2, d / 2
    parts = [box((-x, x), (-y, y), (z - 0.05, z + rng.uniform(0.0, 0.05)), seat, "chair")]
    style = rng.choice(3, p=(0.5, 0.25, 0.25))
    if style == 0:
        parts += _legs(w, d, z - 0.05, 0.02, frame, "chair", round_legs=rng.random() < 0.4)
        for sx in (-1, 1):
            px = sx * (x - 0.02)
            parts.append(box((px - 0.02, px + 0.02), (-y, -y + 0.04), (z, h), frame, "chair"))
        low = z + rng.uniform(0.05, 0.25)
        parts.append(box((-x + 0.04, x - 0.04), (-y, -y + 0.035), (low, h - 0.02), seat, "chair"))
    elif style == 1:
        parts += _legs(w, d, z - 0.05, 0.025, frame, "chair")
        parts.append(box((-x, x), (-y, -y + 0.05), (z, h), seat, "chair"))
    else:
        parts.append(cylinder(0, 0, (0.06, z - 0.05), 0.03, METAL, "chair"))
        parts.append(cylinder(0, 0, (0.0, 0.06), min(x, y) - 0.01, BLACK, "chair"))
        parts.append(box((-x + 0.03, x - 0.03), (-y, -y + 0.06), (z + 0.12, h), seat, "chair"))
        parts.append(box((-0.03, 0.03), (-y + 0.06, -y + 0.09), (z, z + 0.3), METAL, "chair"))
    if rng.random() < 0.3:
        for sx in (-1, 1):
            px = sx * (x - 0.025)
            arm = (z + 0.18, z + 0.22)
            parts.append(box((px - 0.025, px + 0.025), (-y + 0.06, y - 0.05), arm, frame, "chair"))
            post = (y - 0.1, y - 0.05)
            parts.append(box((px - 0.02, px + 0.02), post, (z, z + 0.18), frame, "chair"))
    return Piece(tuple(parts), (w, d, h))


def armchair(rng: np.random.Generator) -> Piece:
    """An upholstered chair for one."""
    return _upholstered(rng, rng.uniform(0.75, 0.9), 1, "chair")


def sofa(rng: np.random.Generator) -> Piece:
    """A sofa with two or three seats and cushions (objects)."""
    seats = int(rng.integers(2, 4))
    return _upholstered(rng, seats * rng.uniform(0.62, 0.75) + 0.36, seats, "sofa")


def _upholstered(rng, w, seats, label) -> Piece:
    cloth = fabric(rng)
    cushion = cloth if rng.random() < 0.7 else fabric(rng)
    d, z, h = rng.uniform(0.8, 0.95), rng.uniform(0.38, 0.46), rng.uniform(0.75, 0.95)
    arm, back, arm_h = rng.uniform(0.12, 0.2), rng.uniform(0.18, 0.25), rng.uniform(0.52, 0.66)
    x, y = w / 2, d / 2
    foot = rng.choice((0.0, 0.08))
    inner = (-x + arm, x - arm)
    parts = [
        box(inner, (-y + back, y - 0.02), (foot, z - 0.14), cloth, label),
        box((-x, x), (-y, -y + back), (foot, h), cloth, label),
        box((-x, -x + arm), (-y + back, y), (foot, arm_h), cloth, label),
        box((x - arm, x), (-y + back, y), (foot, arm_h), cloth, label),
    ]
    if foot:
        parts += _legs(w, d, foot, 0.03, wood(rng), label, inset=0.02)
    step = (inner[1] - inner[0]) / seats
    for i in range(seats):
        seat = (inner[0] + i * step + 0.006, inner[0] + (i + 1) * step - 0.006)
        parts.append(box(seat, (-y + back, y), (z - 0.14, z), cushion, label))
        rest = (-y + back, -y + back + 0.14)
        parts.append(box(seat, rest, (z, h - 0.04), cushion, label))
    for i in range(int(rng.integers(0, 3)) if seats > 1 else 0):
        px = (inner[0] + 0.22, inner[1] - 0.22)[i]
        centre = (px, -y + back + 0.24, z + 0.19)
        parts.append(Part(ELLIPSOID, centre, (0.2, 0.09, 0.19), fabric(rng), "objects", 1 + i))
    return Piece(tuple(parts), (w, d, h))


def table(rng: np.random.Generator, kind: str) -> Piece:
    """A table: 'dining', 'coffee' or 'desk'."""
    material = wood(rng)
    if kind == "dining":
        w, d, h = rng.uniform(1.0, 1.8), rng.uniform(0.75, 0.95), rng.uniform(0.72, 0.77)
    elif kind == "coffee":
        w, d, h = rng.uniform(0.7, 1.2), rng.uniform(0.45, 0.65), rng.uniform(0.35, 0.48)
    else:
        w, d, h = rng.uniform(1.0, 1.6), rng.uniform(0.55, 0.75), rng.uniform(0.7, 0.76)
    if kind != "desk" and rng.random() < 0.3:
        r = d / 2 if kind == "coffee" else rng.uniform(0.45, 0.6)
        parts = [
            cylinder(0, 0, (h - 0.04, h), r, material, "table"),
            cylinder(0, 0, (0.03, h - 0.04), 0.05, material, "table"),
            cylinder(0, 0, (0, 0.03), 0.55 * r, material, "table"),
        ]
        side = 1.2 * r
        return Piece(tuple(parts), (2 * r, 2 * r, h), ((0, 0, h, side, side),))
    thick = rng.uniform(0.025, 0.06)
    x, y = w / 2, d / 2
    parts = [box((-x, x), (-y, y), (h - thick, h), material, "table")]
    legs = METAL if rng.random() < 0.25 else material
    parts += _legs(w, d, h - thick, rng.uniform(0.02, 0.04), legs, "table", inset=0.02)
    if kind == "desk" and rng.random() < 0.6:
        block = fronts(material, 1, 3)
        parts.append(
            box((x - 0.42, x - 0.1), (-y + 0.05, y - 0.05), (0.1, h - thick), block, "table")
        )
    if kind == "coffee" and rng.random() < 0.5:
        parts.append(box((-x + 0.06, x - 0.06), (-y + 0.06, y - 0.06), (0.12, 0.15), legs, "table"))
    return Piece(tuple(parts), (w, d, h), ((0, 0, h, w - 0.1, d - 0.1),))


def books(rng, x, y, z, depth, height, thing) -> Part:
    """A row of books: one solid whose texture draws the spines."""
    h, s = rng.uniform(), rng.uniform(0.3, 0.9)
    material = Material(
        materials.SPINES,
        hsv(h, s, rng.uniform(0.3, 0.8)),
        hsv(h + 0.4, s, 0.6),
        rng.uniform(0.022, 0.045),
    )
    return box(x, (y, y + depth), (z, z + height), material, "books", thing)


def bookshelf(rng: np.random.Generator) -> Piece:
    """Shelves with rows of books and a few objects."""
    material = wood(rng)
    w, d, h = rng.uniform(0.7, 1.4), rng.uniform(0.28, 0.36), rng.uniform(1.2, 2.1)
    side = rng.uniform(0.018, 0.035)
    x, y = w / 2, d / 2
    parts = [
        box((-x, -x + side), (-y, y), (0, h), material, "furniture"),
        box((x - side, x), (-y, y), (0, h), material, "furniture"),
        box((-x + side, x - side), (-y, -y + 0.015), (0, h), material, "furniture"),
    ]
    levels = int(round(h / rng.uniform(0.33, 0.42)))
    step = (h - side) / levels
    thing = 1
    for i in range(levels + 1):
        z = i * step
        inside = (-x + side, x - side)
        parts.append(box(inside, (-y + 0.015, y), (z, z + side), material, "furniture"))
        if i == levels:
            break
        z, room = z + side, step - side
        width = inside[1] - inside[0]
        at = inside[0] + 0.005 + (rng.uniform(0, 0.15) * width if rng.random() < 0.3 else 0.0)
        for _ in range(2):
            end = min(at + rng.uniform(0.3, 0.75) * width, inside[1] - 0.005)
            if end - at > 0.08 and rng.random() < 0.93:
                high = room * rng.uniform(0.68, 0.94)
                deep = min(rng.uniform(0.19, 0.24), d - 0.05)
                parts.append(books(rng, (at, end), -y + 0.02, z, deep, high, thing))
                thing += 1
            at = end + (rng.uniform(0.02, 0.12) if rng.random() < 0.4 else 0.003)
        if inside[1] - at > 0.16 and rng.random() < 0.6:
            small = ornament(rng, min(0.07, room / 3))
            parts += _moved(small, (at + inside[1]) / 2, 0.0, z, thing)
            thing += len(small)
    return Piece(tuple(parts), (w, d, h), ((0, 0, h, w - 0.1, d - 0.06),))


def cabinet(rng: np.random.Generator, kind: str) -> Piece:
    """Closed furniture: 'wardrobe', 'dresser', 'bedside' or 'low' (which carries a TV)."""
    material = wood(rng)
    if kind == "wardrobe":
        w, d, h = rng.uniform(0.9, 1.9), rng.uniform(0.52, 0.62), rng.uniform(1.8, 2.2)
        grid = (int(round(w / 0.48)), 1)
    elif kind == "dresser":
        w, d, h = rng.uniform(0.8, 1.4), rng.uniform(0.4, 0.5), rng.uniform(0.75, 1.2)
        grid = (int(rng.integers(1, 3)), int(rng.integers(3, 5)))
    elif kind == "bedside":
        w, d, h = rng.uniform(0.4, 0.52), rng.uniform(0.36, 0.45), rng.uniform(0.45, 0.6)
        grid = (1, 2)
    else:
        w, d, h = rng.uniform(1.2, 1.9), rng.uniform(0.4, 0.5), rng.uniform(0.4, 0.6)
        grid = (int(rng.integers(2, 4)), int(rng.integers(1, 3)))
    x, y = w / 2, d / 2
    plinth = 0.06
    front = fronts(material, *grid)
    parts = [
        box((-x + 0.02, x - 0.02), (-y, y - 0.04), (0, plinth), BLACK, "furniture"),
        box((-x, x), (-y, y - 0.015), (plinth, h - 0.03), front, "furniture"),
        box((-x - 0.01, x + 0.01), (-y, y), (h - 0.03, h), material, "furniture"),
    ]
    return Piece(tuple(parts), (w + 0.02, d, h), ((0, 0, h, w - 0.08, d - 0.08),))


def _screen(rng: np.random.Generator) -> Material:
    on = rng.random() < 0.35
    h = rng.uniform()
    a, b = hsv(h, 0.7, 0.9), hsv(h + rng.uniform(0.2, 0.6), 0.7, 0.7)
    return Material(
        materials.SCREEN, a, b, 1.0 if on else 0.0, emission=0.6 if on else 0.0, gloss=0.8
    )


def television(rng: np.random.Generator, w: float) -> Piece:
    """A TV on a foot, w metres wide."""
    h = w * 9 / 16
    parts = (
        box((-0.2 * w, 0.2 * w), (-0.1, 0.1), (0, 0.02), BLACK, "tv"),
        box((-0.03, 0.03), (-0.03, 0.0), (0.02, 0.1), BLACK, "tv"),
        box((-w / 2, w / 2), (-0.025, 0.025), (0.07, 0.07 + h), _screen(rng), "tv"),
    )
    return Piece(parts, (w, 0.2, h + 0.07))


def wall_television(rng: np.random.Generator) -> Piece:
    """A TV to hang on a wall; its lower edge is at z = 0."""
    w = rng.uniform(0.95, 1.5)
    part = box((-w / 2, w / 2), (-0.03, 0.03), (0, w * 9 / 16), _screen(rng), "tv")
    return Piece((part,), (w, 0.06, w * 9 / 16))


def picture(rng: np.random.Generator) -> Piece:
    """A framed picture; its lower edge is at z = 0."""
    w, h = rng.uniform(0.4, 1.3), rng.uniform(0.4, 0.9)
    hue = rng.uniform()
    a = hsv(hue, rng.uniform(0.2, 0.9), rng.uniform(0.4, 0.95))
    b = hsv(hue + rng.uniform(0.1, 0.6), rng.uniform(0.2, 0.9), rng.uniform(0.2, 0.9))
    part = box(
        (-w / 2, w / 2), (-0.015, 0.015), (0, h), Material(materials.PAINTING, a, b, 0.3), "picture"
    )
    return Piece((part,), (w, 0.03, h))


def window(rng: np.random.Generator, daylight: float) -> Piece:
    """A window, half of the time with curtains; its lower edge is at z = 0."""
    w, h = rng.uniform(0.9, 2.0), rng.uniform(1.0, 1.4)
    panes = float(rng.integers(1, 4) + 16 * rng.integers(1, 3))
    sky = hsv(rng.uniform(0.52, 0.62), rng.uniform(0.1, 0.45), 0.95)
    land = hsv(rng.uniform(0.2, 0.4), rng.uniform(0.2, 0.5), rng.uniform(0.3, 0.7))
    glass = Material(materials.PANES, sky, land, panes, emission=daylight, gloss=0.3)
    parts = [box((-w / 2, w / 2), (-0.02, 0.02), (0, h), glass, "window")]
    extra = 0.05
    parts.append(box((-w / 2 - 0.05, w / 2 + 0.05), (-0.02, 0.1), (-0.04, 0), WHITE, "window"))
    if rng.random() < 0.5:
        cloth = fabric(rng)
        cloth = dataclasses.replace(cloth, texture=materials.FOLDS, scale=rng.uniform(0.07, 0.12))
        extra = rng.uniform(0.2, 0.4)
        drop = rng.uniform(0.12, 0.6)
        for sx in (-1, 1):
            inner, outer = sx * (w / 2 - 0.08), sx * (w / 2 + extra)
            x = (min(inner, outer), max(inner, outer))
            parts.append(box(x, (0.03, 0.1), (-drop, h + 0.08), cloth, "window"))
        rod = (-w / 2 - extra, w / 2 + extra)
        parts.append(box(rod, (0.05, 0.08), (h + 0.08, h + 0.11), METAL, "window"))
    return Piece(tuple(parts), (w + 2 * extra, 0.2, h + 0.12))


def door(rng: np.random.Generator) -> Piece:
    """A closed door in its frame; part of the wall."""
    w, h = rng.uniform(0.8, 0.95), rng.uniform(1.98, 2.08)
    leaf, frame = wood(rng), wood(rng)
    leaf = fronts(leaf, 1, int(rng.integers(1, 4)))
    x = w / 2
    side = 1 if rng.random() < 0.5 else -1
    parts = (
        box((-x, x), (-0.02, 0.02), (0, h), leaf, "wall"),
        box((-x - 0.07, -x), (-0.02, 0.04), (0, h), frame, "wall"),
        box((x, x + 0.07), (-0.02, 0.04), (0, h), frame, "wall"),
        box((-x - 0.07, x + 0.07), (-0.02, 0.04), (h, h + 0.07), frame, "wall"),
        Part(ELLIPSOID, (side * (x - 0.07), 0.05, 1.0), (0.03, 0.03, 0.03), METAL, "wall"),
    )
    return Piece(parts, (w + 0.14, 0.1, h + 0.07))


def rug(rng: np.random.Generator) -> Piece:
    """A rug; part of the floor."""
    w, d = rng.uniform(1.2, 2.4), rng.uniform(0.9, 1.6)
    a = hsv(rng.uniform(), rng.uniform(0.2, 0.8), rng.uniform(0.3, 0.8))
    b = hsv(rng.uniform(), rng.uniform(0.2, 0.8), rng.uniform(0.3, 0.8))
    material = Material(
        int(rng.choice((materials.PATTERN, materials.STRIPES, materials.CARPET))),
        a,
        b,
        rng.uniform(0.1, 0.3),
    )
    part = box((-w / 2, w / 2), (-d / 2, d / 2), (0, 0.012), material, "floor")
    return Piece((part,), (w, d, 0.012))


def ornament(rng: np.random.Generator, size: float) -> list[Part]:
    """A small object of about 2 x size, standing at the origin."""
    kind, material = rng.integers(4), plain(rng)
    if kind == 0:
        return [cylinder(0, 0, (0, 1.6 * size), 0.7 * size, material, "objects")]
    if kind == 1:
        half = (size, size, size)
        return [Part(ELLIPSOID, (0, 0, size), half, material, "objects")]
    if kind == 2:
        height, yaw = rng.uniform(0.8, 2.0) * size, rng.uniform(0, np.pi)
        return [
            Part(
                BOX,
                (0, 0, height / 2),
                (size, 0.7 * size, height / 2),
                material,
                "objects",
                yaw=yaw,
            )
        ]
    neck = cylinder(0, 0, (1.4 * size, 2.4 * size), 0.35 * size, material, "objects")
    return [
        Part(
            ELLIPSOID, (0, 0, 0.9 * size), (0.8 * size, 0.8 * size, 0.9 * size), material, "objects"
        ),
        neck,
    ]


def table_lamp(rng: np.random.Generator) -> list[Part]:
    """A small lamp with a glowing shade."""
    base = plain(rng)
    shade = Material(
        materials.PLAIN, (0.9, 0.75, 0.5), (0.9, 0.75, 0.5), emission=rng.choice((0.1, 1.0))
    )
    return [
        cylinder(0, 0, (0, 0.03), 0.07, base, "objects"),
        cylinder(0, 0, (0.03, 0.25), 0.02, base, "objects"),
        cylinder(0, 0, (0.25, 0.42), 0.12, shade, "objects"),
    ]


def book_stack(rng: np.random.Generator) -> list[Part]:
    """Books lying on each other."""
    parts, z = [], 0.0
    for _ in range(int(rng.integers(1, 5))):
        thick = rng.uniform(0.02, 0.05)
        material = plain(rng)
        half = (rng.uniform(0.11, 0.16), rng.uniform(0.08, 0.11), thick / 2)
        yaw = rng.normal(0, 0.25)
        parts.append(Part(BOX, (0, 0, z + thick / 2), half, material, "books", yaw=yaw))
        z += thick
    return parts


def floor_object(rng: np.random.Generator) -> Piece:
    """A box, ball, bin, plant or standing lamp."""
    kind = rng.integers(5)
    if kind == 0:
        w, d, h = rng.uniform(0.25, 0.55, 3)
        material = plain(rng, 0.6, 0.0)
        if rng.random() < 0.5:
            material = Material(materials.PLAIN, hsv(0.08, 0.45, 0.7), hsv(0.08, 0.45, 0.7))
        return Piece(
            (box((-w / 2, w / 2), (-d / 2, d / 2), (0, h), material, "objects"),),
            (w, d, h),
            ((0, 0, h, w - 0.1, d - 0.1),),
        )
    if kind == 1:
        r = rng.uniform(0.1, 0.28)
        part = Part(ELLIPSOID, (0, 0, r), (r, r, r), plain(rng, 1.0, 0.4), "objects")
        return Piece((part,), (2 * r, 2 * r, 2 * r))
    if kind == 2:
        r, h = rng.uniform(0.12, 0.2), rng.uniform(0.25, 0.6)
        return Piece((cylinder(0, 0, (0, h), r, plain(rng), "objects"),), (2 * r, 2 * r, h))
    if kind == 3:
        r, h = rng.uniform(0.12, 0.18), rng.uniform(0.22, 0.35)
        leaf = Material(
            materials.CARPET, hsv(rng.uniform(0.25, 0.4), 0.7, 0.5), hsv(0.33, 0.8, 0.2), 0.06
        )
        parts = [cylinder(0, 0, (0, h), r, plain(rng, 0.5), "objects")]
        top = h
        for _ in range(3):
            half = (rng.uniform(0.12, 0.24), rng.uniform(0.12, 0.24), rng.uniform(0.14, 0.26))
            x, y = rng.uniform(-0.08, 0.08, 2)
            parts.append(Part(ELLIPSOID, (x, y, top + 0.6 * half[2]), half, leaf, "objects"))
            top += 0.8 * half[2]
        return Piece(tuple(parts), (0.6, 0.6, top + 0.3))
    h = rng.uniform(1.4, 1.7)
    shade = Material(
        materials.PLAIN, (0.9, 0.75, 0.5), (0.9, 0.75, 0.5), emission=rng.choice((0.1, 1.0))
    )
    parts = (
        cylinder(0, 0, (0, 0.03), 0.15, BLACK, "objects"),
        cylinder(0, 0, (0.03, h - 0.25), 0.02, METAL, "objects"),
        cylinder(0, 0, (h - 0.25, h), 0.18, shade, "objects"),
    )
    return Piece(parts, (0.36, 0.36, h))


def _moved(parts: list[Part], x: float, y: float, z: float, thing: int) -> list[Part]:
    """The parts, as one new instance, at (x, y, z)."""
    moved = []
    for part in parts:
        centre = (part.centre[0] + x, part.centre[1] + y, part.centre[2] + z)
        moved.append(dataclasses.replace(part, centre=centre, thing=thing))
    return moved


def with_clutter(rng: np.random.Generator, piece: Piece, amount: float) -> Piece:
    """The piece with small things on its tops, about `amount` per half metre."""
    parts = list(piece.parts)
    thing = 1 + max(part.thing for part in parts)
    for x, y, z, w, d in piece.tops:
        slots = max(int(w / 0.34), 1)
        for i in range(slots):
            if rng.random() > amount or min(w, d) < 0.12:
                continue
            spare = max(w / slots - 0.32, 0.0) / 2
            px = x + (i + 0.5 - slots / 2) * w / slots + rng.uniform(-spare, spare)
            deep = max(d / 2 - 0.16, 0.0)
            py = y + rng.uniform(-deep, deep)
            kind = rng.choice(3, p=(0.5, 0.4, 0.1))
            if kind == 0 or min(w, d) < 0.3:
                small = ornament(rng, rng.uniform(0.04, min(0.1, d / 2.2)))
            elif kind == 1:
                small = book_stack(rng)
            else:
                small = table_lamp(rng)
            parts += _moved(small, px, py, z, thing)
            thing += 1
    return dataclasses.replace(piece, parts=tuple(parts))
