"""Free-form shapes pasted on an image, each one an object: more kinds of things than data have.

A shape is star-convex, round or with corners, its outline a few random waves; its surface is two
colours in stripes, checks or clouds, printed with patches of others, as packages are; light comes
from one side, or falls on three faces, as on a box's; it may throw a shadow.
"""

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8
from PIL import Image, ImageFilter

from talora_jax.tasks import TARGETS

Sample = dict[str, Shaped[np.ndarray, "H W ..."]]

# Half of a shape's extent, in parts of the image's shorter side.
_RADII = (0.04, 0.35)


def paste_shapes(sample: Sample, rng: np.random.Generator, most: int) -> Sample:
    """Pastes up to `most` shapes, the later ones before the earlier ones.

    Each is a number of its own in the targets that number things, and has no label in others.
    """
    sample = {name: values.copy() for name, values in sample.items()}
    image = sample["image"]
    height, width = image.shape[:2]
    for _ in range(rng.integers(most + 1)):
        radius = min(height, width) * np.exp(rng.uniform(*np.log(_RADII)))
        centre = rng.uniform(0, 1, 2) * (height, width)
        top, left = np.maximum(np.floor(centre - 1.6 * radius), 0).astype(int)
        bottom, right = np.minimum(np.ceil(centre + 1.6 * radius), (height, width)).astype(int)
        y, x = np.mgrid[top:bottom, left:right].astype(np.float32)
        shape = _outline(rng, (y - centre[0]) / radius, (x - centre[1]) / radius)
        if not shape.any():
            continue
        window = np.s_[top:bottom, left:right]
        if rng.random() < 0.5:
            image[window] = _shaded(image[window], shape, rng, radius)
        surface = _surface(rng, (y - centre[0]) / radius, (x - centre[1]) / radius)
        image[window][shape] = surface[shape]
        for name, values in sample.items():
            if name != "image":
                target = TARGETS[name]
                value = values.max() + 1 if target.numbers_things else target.unlabelled
                values[window][shape] = value
    return sample


def _outline(
    rng: np.random.Generator, y: Float[np.ndarray, "h w"], x: Float[np.ndarray, "h w"]
) -> Bool[np.ndarray, "h w"]:
    """Which points, in units of the radius, lie in a random shape."""
    turn, stretch = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 1.0)
    u, v = _turned(turn, y, x)
    v = v / stretch
    angle, distance = np.arctan2(v, u), np.hypot(u, v)
    if rng.random() < 0.4:
        # A regular polygon, its corners cut more or less.
        step = 2 * np.pi / rng.integers(3, 8)
        edge = np.cos(step / 2) / np.cos(angle % step - step / 2)
        edge = np.minimum(edge, rng.uniform(0.85, 1.0))
    else:
        edge = np.ones_like(angle)
    for waves in range(2, 6):
        size = rng.normal(0, 0.5 / waves**1.5) * (rng.random() < 0.5)
        edge = edge + size * np.cos(waves * angle + rng.uniform(0, 2 * np.pi))
    ring = distance > rng.uniform(0.3, 0.6) if rng.random() < 0.08 else True
    return (distance < np.clip(edge, 0.15, 1.5)) & ring


def _surface(
    rng: np.random.Generator, y: Float[np.ndarray, "h w"], x: Float[np.ndarray, "h w"]
) -> UInt8[np.ndarray, "h w 3"]:
    """What a shape looks like, as bytes."""
    colour = _texture(rng, y, x)
    if rng.random() < 0.5:
        for _ in range(rng.integers(1, 6)):
            _print_patch(rng, colour, y, x)
    return np.clip(colour * _light(rng, y, x)[..., None], 0, 255).astype(np.uint8)


def _texture(
    rng: np.random.Generator, y: Float[np.ndarray, "h w"], x: Float[np.ndarray, "h w"]
) -> Float[np.ndarray, "h w 3"]:
    """Two colours, in a pattern or alone."""
    one = rng.uniform(10, 245, 3)
    other = np.clip(one + rng.normal(0, rng.choice((8, 60)), 3), 0, 255)
    turn, scale = rng.uniform(0, 2 * np.pi), np.exp(rng.uniform(np.log(2), np.log(25)))
    u, v = _turned(turn, y, x)
    match rng.choice(5, p=(0.4, 0.15, 0.15, 0.15, 0.15)):
        case 0:
            weight = np.zeros_like(x)
        case 1:
            weight = np.sin(scale * u) > 0
        case 2:
            weight = (np.sin(scale * u) > 0) ^ (np.sin(scale * v) > 0)
        case 3:
            weight = 0.5 + 0.5 * np.sin(scale * u + 2 * np.sin(0.7 * scale * v))
        case _:
            weight = _clouds(rng, x.shape)
    return one + (other - one) * np.asarray(weight, np.float32)[..., None]


def _print_patch(
    rng: np.random.Generator,
    colour: Float[np.ndarray, "h w 3"],
    y: Float[np.ndarray, "h w"],
    x: Float[np.ndarray, "h w"],
) -> None:
    """Prints a turned rectangle or ellipse of another texture; it is no object of its own."""
    down, right = rng.normal(0, 0.45, 2)
    u, v = _turned(rng.uniform(0, 2 * np.pi), y - down, x - right)
    u, v = u / np.exp(rng.uniform(-2.5, -0.4)), v / np.exp(rng.uniform(-2.5, -0.4))
    extent = np.hypot(u, v) if rng.random() < 0.4 else np.maximum(abs(u), abs(v))
    inside = extent < 1
    if inside.any():
        colour[inside] = _texture(rng, y, x)[inside]


def _light(
    rng: np.random.Generator, y: Float[np.ndarray, "h w"], x: Float[np.ndarray, "h w"]
) -> Float[np.ndarray, "h w"]:
    """How bright: falling off to one side, or one value on each of three faces about a corner."""
    if rng.random() < 0.7:
        return 1 + rng.uniform(0, 0.45) * _turned(rng.uniform(0, 2 * np.pi), y, x)[0]
    down, right = rng.uniform(-0.5, 0.5, 2)
    edges = np.sort(rng.uniform(-np.pi, np.pi, 3))
    face = np.searchsorted(edges, np.arctan2(y - down, x - right)) % 3
    return rng.uniform(0.45, 1.15, 3)[face]


def _turned(turn: float, y: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates along axes turned by an angle."""
    return np.cos(turn) * x + np.sin(turn) * y, np.cos(turn) * y - np.sin(turn) * x


def _clouds(rng: np.random.Generator, size: tuple[int, int]) -> Float[np.ndarray, "h w"]:
    """Smooth noise in [0, 1]."""
    coarse = Image.fromarray(rng.integers(0, 256, rng.integers(3, 12, 2), np.uint8))
    fine = coarse.resize(size[::-1], Image.Resampling.BICUBIC)
    return np.asarray(fine, np.float32) / 255


def _shaded(image: np.ndarray, shape: np.ndarray, rng: np.random.Generator, radius: float):
    """The image under the shape's soft shadow, a little aside."""
    shift = tuple(np.rint(rng.normal(0, 0.15, 2) * radius).astype(int))
    shadow = Image.fromarray(np.roll(shape, shift, (0, 1)).astype(np.uint8) * 255)
    blurred = shadow.filter(ImageFilter.GaussianBlur(float(0.1 * radius + 0.5)))
    dark = rng.uniform(0.2, 0.6) * np.asarray(blurred, np.float32)[..., None] / 255
    return (image * (1 - dark)).astype(np.uint8)
