"""Free-form shapes pasted on an image, each one an object: more kinds of things than data have.

Half are star-convex, round or with corners, their outlines a few random waves, of the surfaces in
`talora_jax.data.surfaces`; half are boxes and cans, `talora_jax.data.packages`. Each may throw a
shadow.
"""

import numpy as np
from jaxtyping import Bool, Float, Shaped
from PIL import Image, ImageFilter

from talora_jax.data import surfaces
from talora_jax.data.packages import draw_package
from talora_jax.tasks import target_of

Sample = dict[str, Shaped[np.ndarray, "H W ..."]]

# Half of a shape's extent, in parts of the image's shorter side.
_RADII = (0.04, 0.35)
# How many of the shapes are boxes and cans.
_PACKAGES = 0.5


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
        y, x = (y - centre[0]) / radius, (x - centre[1]) / radius
        if rng.random() < _PACKAGES:
            shape, colour = draw_package(rng, y, x)
        else:
            shape = _outline(rng, y, x)
            colour = surfaces.surface(rng, y, x)
        if not shape.any():
            continue
        window = np.s_[top:bottom, left:right]
        if rng.random() < 0.5:
            image[window] = _shaded(image[window], shape, rng, radius)
        image[window][shape] = np.clip(colour[shape], 0, 255).astype(np.uint8)
        for name, values in sample.items():
            if name != "image":
                target = target_of(name)
                value = values.max() + 1 if target.numbers_things else target.unlabelled
                values[window][shape] = value
    return sample


def _outline(
    rng: np.random.Generator, y: Float[np.ndarray, "h w"], x: Float[np.ndarray, "h w"]
) -> Bool[np.ndarray, "h w"]:
    """Which points, in units of the radius, lie in a random shape."""
    turn, stretch = rng.uniform(0, 2 * np.pi), rng.uniform(0.35, 1.0)
    u, v = surfaces.turned(turn, y, x)
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


def _shaded(image: np.ndarray, shape: np.ndarray, rng: np.random.Generator, radius: float):
    """The image under the shape's soft shadow, a little aside."""
    shift = tuple(np.rint(rng.normal(0, 0.15, 2) * radius).astype(int))
    shadow = Image.fromarray(np.roll(shape, shift, (0, 1)).astype(np.uint8) * 255)
    blurred = shadow.filter(ImageFilter.GaussianBlur(float(0.1 * radius + 0.5)))
    dark = rng.uniform(0.2, 0.6) * np.asarray(blurred, np.float32)[..., None] / 255
    return (image * (1 - dark)).astype(np.uint8)
