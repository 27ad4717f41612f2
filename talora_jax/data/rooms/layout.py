"""Furnishing a room: what hangs on the walls, what stands where, and where the camera fits.

World frame: x and y along the floor, z up, metres, with one corner of the room at the origin.
"""

import dataclasses

import numpy as np

from talora_jax.data.rooms import furniture as things
from talora_jax.data.rooms import materials
from talora_jax.data.rooms.furniture import Part, Piece
from talora_jax.data.rooms.materials import Material

# The walls x = 0, x = W, y = 0, y = D: their directions inward, and the turn of what faces inward.
_INWARD = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]], np.float64)
_WALL_YAW = (-np.pi / 2, np.pi / 2, 0.0, np.pi)
# The sides of a room: the walls in this order, then these.
SHELL = ("wall", "wall", "wall", "wall", "floor", "ceiling")


@dataclasses.dataclass
class Placed:
    """A part in the world."""

    part: Part
    centre: np.ndarray
    yaw: float
    instance: int


class Layout:
    """A room being furnished. Every draw comes from one generator, in one order."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        sides = rng.permutation([rng.uniform(3.3, 4.3), rng.uniform(5.5, 7.5)])
        self.room = np.array([*sides, rng.uniform(2.35, 3.0)])
        self.parts: list[Placed] = []
        self.floor: list[tuple[float, float, float, float]] = []  # taken: x0, y0, x1, y1
        self.tall: list[tuple[float, float, float, float]] = []  # taken at eye height
        self.walls: list[list[tuple[float, float, float, float]]] = [[], [], [], []]  # s0 s1 z0 z1
        self.is_furnished = False
        self.instances = len(SHELL)
        self.daylight = float(rng.choice((0.02, 1.0, 2.0), p=(0.15, 0.45, 0.4)))
        self.windows: list[tuple[np.ndarray, np.ndarray]] = []  # middle, inward
        self.lamps: list[np.ndarray] = []
        self.lamp_at = np.full(2, 0.5)  # in parts of the room
        self.hanging = (0.0, 0.0, 0.0, 0.0)  # what is under the lamp, as in `floor`
        self._last = (0.0, 0.0, 0.0)  # x, y, yaw of what was put to a wall last
        self.shell = self._shell()

    def furnish(self) -> None:
        rng = self.rng
        if rng.random() < 0.3:
            self._jut()
        self._on_wall(things.door(rng), 0.0, clear=0.8)
        for _ in range(int(rng.choice((1, 2), p=(0.6, 0.4)))):
            self._window()
        self._ceiling_lamp()
        kind = rng.choice(("bedroom", "living", "study", "dining"), p=(0.34, 0.3, 0.18, 0.18))
        getattr(self, f"_{kind}")()
        self._maybe(0.6, lambda: things.bookshelf(rng))
        self._maybe(0.5, lambda: things.cabinet(rng, "dresser"), 0.6)
        self._maybe(0.5, lambda: things.armchair(rng))
        for _ in range(int(rng.integers(2, 6))):
            height = rng.uniform(1.2, 1.6)
            piece = things.picture(rng)
            self._on_wall(piece, height - piece.size[2] / 3)
        for _ in range(int(rng.integers(0, 4))):
            self._free(things.with_clutter(rng, things.floor_object(rng), 0.2))
        if rng.random() < 0.35:
            self._rug()

    # Kinds of room

    def _bedroom(self):
        rng = self.rng
        wall = self._against_wall(things.bed(rng))
        if wall is not None:
            for _ in range(2):
                piece = things.with_clutter(rng, things.cabinet(rng, "bedside"), 0.7)
                self._against_wall(piece, wall)
        self._maybe(0.6, lambda: things.cabinet(rng, "wardrobe"))
        self._maybe(0.55, lambda: things.bookshelf(rng))
        self._tv(0.7)
        if rng.random() < 0.4:
            self._desk()
        self._maybe(0.5, lambda: things.cabinet(rng, "dresser"), 0.6)
        if rng.random() < 0.4:
            self._free(things.chair(rng))

    def _living(self):
        rng = self.rng
        piece = things.sofa(rng)
        wall = self._against_wall(piece)
        if wall is not None:
            self._before(piece, things.with_clutter(rng, things.table(rng, "coffee"), 0.7))
        self._tv(0.95, None if wall is None else wall ^ 1)
        self._maybe(0.75, lambda: things.bookshelf(rng))
        self._maybe(0.5, lambda: things.sofa(rng))
        self._maybe(0.5, lambda: things.armchair(rng))
        self._maybe(0.35, lambda: things.bookshelf(rng))
        self._maybe(0.4, lambda: things.cabinet(rng, "dresser"), 0.6)

    def _study(self):
        rng = self.rng
        self._desk()
        self._maybe(1.0, lambda: things.bookshelf(rng))
        self._maybe(0.6, lambda: things.bookshelf(rng))
        if rng.random() < 0.5:
            self._desk()
        self._tv(0.6)
        self._maybe(0.5, lambda: things.sofa(rng))
        self._maybe(0.3, lambda: things.bed(rng))
        self._maybe(0.5, lambda: things.cabinet(rng, "dresser"), 0.6)

    def _dining(self):
        rng = self.rng
        table = things.with_clutter(rng, things.table(rng, "dining"), 0.6)
        at = self._free(table, turn=(0.0, np.pi / 2), margin=0.5)
        if at is not None:
            self._chairs(table, *at)
        self._maybe(0.6, lambda: things.bookshelf(rng))
        self._maybe(0.6, lambda: things.cabinet(rng, "dresser"), 0.6)
        self._tv(0.7)
        self._maybe(0.5, lambda: things.sofa(rng))
        self._maybe(0.3, lambda: things.cabinet(rng, "wardrobe"))

    def _maybe(self, chance: float, make, clutter: float = 0.2):
        if self.rng.random() < chance:
            self._against_wall(things.with_clutter(self.rng, make(), clutter))

    def _desk(self):
        rng = self.rng
        desk = things.with_clutter(rng, things.table(rng, "desk"), 0.6)
        if self._against_wall(desk) is not None:
            self._before(desk, things.chair(rng), gap=(0.0, 0.12), turned=True)

    def _tv(self, chance: float, wall: int | None = None):
        rng = self.rng
        if rng.random() > chance:
            return
        if rng.random() < 0.35:
            self._on_wall(things.wall_television(rng), rng.uniform(0.9, 1.2), wall=wall)
            return
        stand = things.cabinet(rng, "low")
        tv = things.television(rng, rng.uniform(0.85, stand.size[0] - 0.12))
        top = stand.size[2]
        raised = [
            dataclasses.replace(
                part, centre=(part.centre[0], part.centre[1], part.centre[2] + top), thing=1
            )
            for part in tv.parts
        ]
        size = (stand.size[0], stand.size[1], top + tv.size[2])
        piece = Piece(stand.parts + tuple(raised), size)
        if self._against_wall(piece, wall) is None:
            self._against_wall(piece)

    # Placing

    def _place(self, piece: Piece, x: float, y: float, yaw: float, z: float = 0.0) -> None:
        c, s = np.cos(yaw), np.sin(yaw)
        for part in piece.parts:
            px, py, pz = part.centre
            centre = np.array([x + c * px - s * py, y + s * px + c * py, z + pz])
            instance = self.instances + part.thing
            self.parts.append(Placed(part, centre, yaw + part.yaw, instance))
        self.instances += 1 + max(part.thing for part in piece.parts)

    def _footprint(self, piece: Piece, x: float, y: float, yaw: float):
        """The upright rectangle around the piece."""
        w, d, _ = piece.size
        c, s = abs(np.cos(yaw)), abs(np.sin(yaw))
        hx, hy = (c * w + s * d) / 2, (s * w + c * d) / 2
        return x - hx, y - hy, x + hx, y + hy

    def _is_free(self, rect, margin: float = 0.04) -> bool:
        x0, y0, x1, y1 = rect
        if x0 < 0 or y0 < 0 or x1 > self.room[0] or y1 > self.room[1]:
            return False
        return not any(_meet(rect, taken, margin) for taken in self.floor)

    def _take(self, rect, height: float) -> None:
        self.floor.append(rect)
        for k, a, b in self._beside(rect):
            self.walls[k].append((a, b, 0.0, height))
        if height > 0.9:
            self.tall.append(rect)

    def _wall_point(self, wall: int, s: float) -> tuple[np.ndarray, float]:
        along = self.room[1] if wall < 2 else self.room[0]
        far = self.room[0] if wall < 2 else self.room[1]
        fixed = far if wall % 2 else 0.0
        return np.array([fixed, s] if wall < 2 else [s, fixed]), along

    def _wall_is_free(self, wall: int, s0, s1, z0, z1, margin: float = 0.06) -> bool:
        return not any(
            _meet((s0, z0, s1, z1), (a, low, b, high), margin)
            for a, b, low, high in self.walls[wall]
        )

    def _against_wall(self, piece: Piece, wall: int | None = None) -> int | None:
        """Puts the piece's back to a wall; returns the wall, or None if it found no place."""
        rng = self.rng
        w, d, h = piece.size
        for _ in range(16):
            k = int(rng.integers(4)) if wall is None else wall
            _, along = self._wall_point(k, 0.0)
            if w > along - 0.1:
                continue
            s = rng.uniform(w / 2 + 0.02, along - w / 2 - 0.02)
            if rng.random() < 0.35:
                # Into a corner, as furniture often stands.
                s = w / 2 + 0.03 if rng.random() < 0.5 else along - w / 2 - 0.03
            point, _ = self._wall_point(k, s)
            x, y = point + _INWARD[k] * (d / 2 + rng.uniform(0.02, 0.06))
            rect = self._footprint(piece, x, y, _WALL_YAW[k])
            if not self._is_free(rect) or not self._walls_are_free(rect, h):
                continue
            self._place(piece, x, y, _WALL_YAW[k])
            self._take(rect, h)
            self.is_furnished = True
            self._last = (x, y, _WALL_YAW[k])
            return k
        return None

    def _beside(self, rect) -> list[tuple[int, float, float]]:
        """The walls that the rectangle is so near to that it may meet what hangs there."""
        x0, y0, x1, y1 = rect
        gaps = (x0, self.room[0] - x1, y0, self.room[1] - y1)
        spans = ((y0, y1), (y0, y1), (x0, x1), (x0, x1))
        return [(k, *spans[k]) for k in range(4) if gaps[k] < 0.22]

    def _walls_are_free(self, rect, height: float) -> bool:
        return all(self._wall_is_free(k, a, b, 0.0, height) for k, a, b in self._beside(rect))

    def _before(self, back: Piece, piece: Piece, gap=(0.3, 0.55), turned: bool = False) -> None:
        """Puts the piece before the one placed last; turned round, it faces it."""
        rng = self.rng
        x, y, yaw = self._last
        for _ in range(6):
            away = back.size[1] / 2 + rng.uniform(*gap) + piece.size[1] / 2 + 0.05
            side = rng.uniform(-0.15, 0.15) * back.size[0]
            turn = yaw + (np.pi + rng.normal(0, 0.2) if turned else 0.0)
            px = x + np.cos(yaw) * side - np.sin(yaw) * away
            py = y + np.sin(yaw) * side + np.cos(yaw) * away
            rect = self._footprint(piece, px, py, turn)
            if self._is_free(rect, 0.0) and self._walls_are_free(rect, piece.size[2]):
                self._place(piece, px, py, turn)
                self._take(rect, piece.size[2])
                self.is_furnished = True
                return

    def _free(self, piece: Piece, turn=None, margin: float = 0.1):
        """Puts the piece anywhere on the floor; returns x, y, yaw, or None."""
        rng = self.rng
        for _ in range(12):
            yaw = rng.uniform(0, 2 * np.pi) if turn is None else rng.choice(turn)
            x, y = rng.uniform(0.2, self.room[0] - 0.2), rng.uniform(0.2, self.room[1] - 0.2)
            rect = self._footprint(piece, x, y, yaw)
            if piece.size[2] > 1.2 and _meet(rect, self.hanging, 0.0):
                continue
            if self._is_free(rect, margin) and self._walls_are_free(rect, piece.size[2]):
                self._place(piece, x, y, yaw)
                self._take(rect, piece.size[2])
                self.is_furnished = True
                return x, y, yaw
        return None

    def _chairs(self, table: Piece, x: float, y: float, yaw: float) -> None:
        """Chairs of one kind around a table, facing it."""
        rng = self.rng
        chair = things.chair(rng)
        w, d, _ = table.size
        spots = [(0.0, -1.0), (0.0, 1.0), (1.0, 0.0), (-1.0, 0.0)]
        if w > 1.3:
            spots = [(-0.25 * w, -1.0), (0.25 * w, -1.0), (-0.25 * w, 1.0), (0.25 * w, 1.0)]
            spots += [(1.0, 0.0), (-1.0, 0.0)]
        for px, py in spots:
            if rng.random() > 0.75:
                continue
            reach = rng.uniform(0.06, 0.2) + chair.size[1] / 2
            if py:
                lx, ly, face = px, py * (d / 2 + reach), 0.0 if py < 0 else np.pi
            else:
                lx, ly, face = px * (w / 2 + reach), 0.0, np.pi / 2 if px > 0 else -np.pi / 2
            turn = yaw + face + rng.normal(0, 0.12)
            cx = x + np.cos(yaw) * lx - np.sin(yaw) * ly
            cy = y + np.sin(yaw) * lx + np.cos(yaw) * ly
            rect = self._footprint(chair, cx, cy, turn)
            if self._is_free(rect, 0.0) and self._walls_are_free(rect, chair.size[2]):
                self._place(chair, cx, cy, turn)
                self._take(rect, chair.size[2])

    def _on_wall(self, piece: Piece, z: float, clear: float = 0.0, wall: int | None = None):
        """Hangs the piece on a wall at height z; returns (wall, middle) or None.

        `clear` metres of floor before it stay empty.
        """
        rng = self.rng
        w, _, h = piece.size
        # Curtains reach below the window.
        low = z + min(part.centre[2] - part.half[2] for part in piece.parts)
        if z + h > self.room[2] - 0.04:
            return None
        for _ in range(12):
            k = int(rng.integers(4)) if wall is None else wall
            _, along = self._wall_point(k, 0.0)
            if w > along - 0.2:
                continue
            s = rng.uniform(w / 2 + 0.1, along - w / 2 - 0.1)
            if not self._wall_is_free(k, s - w / 2, s + w / 2, low, z + h):
                continue
            point, _ = self._wall_point(k, s)
            if clear:
                deep = dataclasses.replace(piece, size=(w, clear, h))
                rect = self._footprint(deep, *(point + _INWARD[k] * clear / 2), _WALL_YAW[k])
                self.floor.append(rect)
            # Sunk a little so that its back never shows nor flickers with the wall.
            x, y = point + _INWARD[k] * 0.012
            self._place(piece, x, y, _WALL_YAW[k], z)
            self.walls[k].append((s - w / 2, s + w / 2, low, z + h))
            return k, np.array([*point, z + h / 2])
        return None

    def _window(self):
        piece = things.window(self.rng, self.daylight)
        placed = self._on_wall(piece, self.rng.uniform(0.75, 0.95))
        if placed is not None:
            wall, middle = placed
            self.windows.append((middle, np.array([*_INWARD[wall], 0.0])))

    def _ceiling_lamp(self):
        rng = self.rng
        x, y = self.room[:2] * (self.lamp_at + rng.uniform(-0.06, 0.06, 2))
        glow = materials.hsv(rng.uniform(0.08, 0.14), rng.uniform(0.05, 0.35), 1.0)
        shade = Material(materials.PLAIN, glow, glow, emission=1.3)
        top = self.room[2]
        kind = rng.integers(3)
        if kind == 0:
            r = rng.uniform(0.15, 0.25)
            parts = [things.cylinder(0, 0, (top - 0.1, top), r, shade, "objects")]
            low = top - 0.1
        elif kind == 1:
            drop, r = rng.uniform(0.3, 0.6), rng.uniform(0.12, 0.2)
            low = top - drop - r
            ball = Part(things.ELLIPSOID, (0, 0, top - drop), (r, r, r), shade, "objects")
            cord = things.cylinder(0, 0, (top - drop + r, top), 0.008, materials.BLACK, "objects")
            parts = [ball, cord]
        else:
            w = rng.uniform(0.25, 0.4)
            z = (top - 0.06, top)
            parts = [things.box((-w, w), (-0.15, 0.15), z, shade, "objects")]
            low = top - 0.06
        self._place(Piece(tuple(parts), (0.5, 0.5, 0.1)), x, y, rng.choice((0.0, np.pi / 2)))
        self.lamps.append(np.array([x, y, low - 0.08]))
        self.hanging = (x - 0.25, y - 0.25, x + 0.25, y + 0.25)

    def _rug(self):
        """A rug, where nothing stands on it."""
        self._free(things.rug(self.rng), turn=(0.0, np.pi / 2), margin=0.02)

    def _jut(self):
        """A block of wall in a corner, which makes the room L-shaped."""
        rng = self.rng
        w, d = rng.uniform(0.5, 0.4 * self.room[0]), rng.uniform(0.5, 0.4 * self.room[1])
        low = rng.random(2) < 0.5
        x0, y0 = np.where(low, 0.0, self.room[:2] - (w, d))
        self.lamp_at = np.where(low, 0.62, 0.38)
        block = things.box(
            (-w / 2, w / 2), (-d / 2, d / 2), (0, self.room[2]), self.shell[0], "wall"
        )
        self._place(Piece((block,), (w, d, self.room[2])), x0 + w / 2, y0 + d / 2, 0.0)
        rect = (x0, y0, x0 + w, y0 + d)
        self._take(rect, self.room[2])

    # Surfaces and camera

    def _shell(self) -> list[Material]:
        rng = self.rng
        h, s, v = rng.uniform(), rng.uniform(0.0, 0.4), rng.uniform(0.55, 0.95)
        paint = materials.hsv(h, s, v)
        other = materials.hsv(h + rng.normal(0, 0.05), s, v * rng.uniform(0.8, 0.95))
        texture = rng.choice(
            (materials.PLAIN, materials.STRIPES, materials.PATTERN), p=(0.6, 0.2, 0.2)
        )
        wall = Material(int(texture), paint, other, rng.uniform(0.12, 0.4))
        accent = wall
        if rng.random() < 0.3:
            hue, deep = rng.uniform(), rng.uniform(0.3, 0.7)
            colour = materials.hsv(hue, deep, rng.uniform(0.35, 0.8))
            accent = Material(materials.PLAIN, colour, colour)
        walls = [wall] * 4
        walls[int(rng.integers(4))] = accent
        kind = rng.choice(3, p=(0.5, 0.2, 0.3))
        if kind == 0:
            base = materials.wood(rng)
            floor = dataclasses.replace(
                base,
                texture=materials.PLANKS,
                scale=rng.uniform(0.09, 0.2),
                gloss=rng.uniform(0.1, 0.4),
            )
        elif kind == 1:
            a = materials.hsv(rng.uniform(0.0, 0.15), rng.uniform(0, 0.3), rng.uniform(0.4, 0.9))
            b = tuple(c * 0.55 for c in a)
            floor = Material(materials.TILES, a, b, rng.uniform(0.2, 0.6), gloss=0.4)
        else:
            h, s, v = rng.uniform(), rng.uniform(0, 0.4), rng.uniform(0.3, 0.75)
            floor = Material(
                materials.CARPET, materials.hsv(h, s, v), materials.hsv(h, s, v * 0.75), 0.02
            )
        white = materials.hsv(rng.uniform(0, 0.2), rng.uniform(0, 0.06), rng.uniform(0.85, 0.97))
        return walls + [floor, Material(materials.PLAIN, white, white)]

    def camera(self):
        """A camera at one end of the room, held by hand and tilted down, that sees far along it:
        position, yaw, pitch, roll; None if none fits."""
        rng = self.rng
        if not self.is_furnished:
            return None
        tall = np.array([*self.tall, self.hanging])
        low = np.array([b for b in self.floor if b not in self.tall]).reshape(-1, 4)
        along = int(np.argmax(self.room[:2]))
        best, best_score = None, -np.inf
        for _ in range(40):
            back, aside = rng.uniform(0.3, 0.8), rng.uniform(0.35, 0.65)
            forward = rng.random() < 0.5
            position = np.empty(3)
            position[along] = back if forward else self.room[along] - back
            position[1 - along] = aside * self.room[1 - along]
            position[2] = rng.uniform(1.4, 1.7)
            if _distance(tall, position) < 0.4 or _distance(low, position) < 0.15:
                continue
            yaw = along * np.pi / 2 + (0 if forward else np.pi) + rng.normal(0, 0.12)
            # How far one can go ahead, left and right of the middle of the view.
            ahead = [self._sight(position, yaw + turn, tall) for turn in (-0.2, 0.0, 0.2)]
            if min(ahead) < 2.0:
                continue
            score = sum(ahead) / 3 + rng.uniform(0, 1)
            if score > best_score:
                best, best_score = (position, yaw), score
        if best is None:
            return None
        return *best, rng.uniform(-0.42, -0.25), rng.normal(0, 0.03)

    def _sight(self, position, yaw: float, rects: np.ndarray) -> float:
        """Distance to the first wall or rectangle on the floor plan."""
        direction = np.array([np.cos(yaw), np.sin(yaw)])
        with np.errstate(divide="ignore", invalid="ignore"):
            walls = np.where(direction > 0, self.room[:2] - position[:2], -position[:2]) / direction
            a = (rects[:, :2] - position[:2]) / direction
            b = (rects[:, 2:] - position[:2]) / direction
        near, far = np.minimum(a, b).max(1), np.maximum(a, b).min(1)
        hits = near[(near < far) & (near > 0)]
        return min(walls.min(), hits.min() if len(hits) else np.inf)


def _meet(a, b, margin: float) -> bool:
    """Whether two rectangles (x0, y0, x1, y1) are nearer than the margin."""
    return bool(
        a[0] < b[2] + margin
        and b[0] < a[2] + margin
        and a[1] < b[3] + margin
        and b[1] < a[3] + margin
    )


def _distance(rects: np.ndarray, position: np.ndarray) -> float:
    """Distance on the floor plan from the position to the nearest of the rectangles [n, 4]."""
    if not len(rects):
        return np.inf
    outside = np.maximum(rects[:, :2] - position[:2], position[:2] - rects[:, 2:])
    return float(np.hypot(*np.maximum(outside, 0.0).T).min())
