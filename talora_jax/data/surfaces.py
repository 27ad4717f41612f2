"""What pasted shapes look like: textures, prints on them, light.

Points are given in units of a shape's radius, colours in units of a byte.
"""

import numpy as np
from jaxtyping import Bool, Float
from PIL import Image


def surface(
    rng: np.random.Generator, y: Float[np.ndarray, "h w"], x: Float[np.ndarray, "h w"]
) -> Float[np.ndarray, "h w 3"]:
    """A lit texture, in half of the cases with prints; in units of a byte, maybe beyond 255."""
    colour = texture(rng, y, x)
    if rng.random() < 0.5:
        for _ in range(rng.integers(1, 6)):
            print_patch(rng, colour, y, x)
    return colour * light(rng, y, x)[..., None]


def texture(
    rng: np.random.Generator, y: Float[np.ndarray, "h w"], x: Float[np.ndarray, "h w"]
) -> Float[np.ndarray, "h w 3"]:
    """Two colours, alone or in stripes, checks, waves, clouds or lines of marks."""
    one = rng.uniform(10, 245, 3)
    other = np.clip(one + rng.normal(0, rng.choice((8, 60)), 3), 0, 255)
    turn, scale = rng.uniform(0, 2 * np.pi), np.exp(rng.uniform(np.log(2), np.log(25)))
    u, v = turned(turn, y, x)
    match rng.choice(6, p=(0.35, 0.15, 0.1, 0.15, 0.15, 0.1)):
        case 0:
            weight = np.zeros_like(x)
        case 1:
            weight = np.sin(scale * u) > 0
        case 2:
            weight = (np.sin(scale * u) > 0) ^ (np.sin(scale * v) > 0)
        case 3:
            weight = 0.5 + 0.5 * np.sin(scale * u + 2 * np.sin(0.7 * scale * v))
        case 4:
            weight = _clouds(rng, x.shape)
        case _:
            weight = _marks(rng, scale * u, scale * v)
    return one + (other - one) * np.asarray(weight, np.float32)[..., None]


def print_patch(
    rng: np.random.Generator,
    colour: Float[np.ndarray, "h w 3"],
    y: Float[np.ndarray, "h w"],
    x: Float[np.ndarray, "h w"],
) -> None:
    """Prints a turned rectangle or ellipse of another texture; it is no object of its own."""
    down, right = rng.normal(0, 0.45, 2)
    u, v = turned(rng.uniform(0, 2 * np.pi), y - down, x - right)
    u, v = u / np.exp(rng.uniform(-2.5, -0.4)), v / np.exp(rng.uniform(-2.5, -0.4))
    extent = np.hypot(u, v) if rng.random() < 0.4 else np.maximum(abs(u), abs(v))
    inside = extent < 1
    if inside.any():
        colour[inside] = texture(rng, y, x)[inside]


def light(
    rng: np.random.Generator, y: Float[np.ndarray, "h w"], x: Float[np.ndarray, "h w"]
) -> Float[np.ndarray, "h w"]:
    """How bright: falling off to one side, or one value on each of three faces about a corner."""
    if rng.random() < 0.7:
        return 1 + rng.uniform(0, 0.45) * turned(rng.uniform(0, 2 * np.pi), y, x)[0]
    down, right = rng.uniform(-0.5, 0.5, 2)
    edges = np.sort(rng.uniform(-np.pi, np.pi, 3))
    face = np.searchsorted(edges, np.arctan2(y - down, x - right)) % 3
    return rng.uniform(0.45, 1.15, 3)[face]


def turned(turn: float, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates along axes turned by an angle."""
    return np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x


def _marks(
    rng: np.random.Generator, u: Float[np.ndarray, "h w"], v: Float[np.ndarray, "h w"]
) -> Bool[np.ndarray, "h w"]:
    """Lines of marks with gaps between them, as print has; 1 in u or v is a mark's width."""
    marks = rng.random((64, 64)) < 0.6
    marks[::2] = False
    row, column = np.floor(v).astype(int) % 64, np.floor(u).astype(int) % 64
    return marks[row, column]


def _clouds(rng: np.random.Generator, size: tuple[int, int]) -> Float[np.ndarray, "h w"]:
    """Smooth noise in [0, 1]."""
    coarse = Image.fromarray(rng.integers(0, 256, rng.integers(3, 12, 2), np.uint8))
    fine = coarse.resize(size[::-1], Image.Resampling.BICUBIC)
    return np.asarray(fine, np.float32) / 255
