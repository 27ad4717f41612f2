"""Augmentation of one sample: an image and its targets moved together, in NumPy.

`scale_crop` is that of the MTAN protocol (Liu et al., CVPR 2019, `RandomScaleCrop` and the flip of
its NYUv2 loader): a window of 1/scale of the frame is blown up to the whole frame, which brings
everything nearer by that scale; a mirror image has normals of the other x. As there, the crop
leaves the directions of normals untouched. Differences:

- Normals are taken from the nearest pixel like the other targets, where MTAN interpolates them:
  nothing invalid bleeds into what is valid, and unit vectors stay unit.
- The image is resized with pixel centres at one half, where MTAN aligns corners, so that the image
  and its targets stay aligned.

`turn_scale` and `fit` are those of the ASTMT protocol (Maninis et al., CVPR 2019, `ScaleNRotate`
and `FixedResize` of facebookresearch/astmt): the frame is turned and scaled about its centre, the
normals turned with it, and then stretched to one size whatever its aspect; evaluation stretches
alone. Differences:

- Both happen in one resampling, bilinear for the image (bicubic, twice, there), nearest for every
  target (normals bicubic there).
- What comes into view from outside the frame is unlabelled. There it is background, no edge and not
  salient, and parts are only ignored where a view has no person left.

Here pixels find their places; what becomes of a target's values is its task's to say
(`Task.nearer`, `turn`, `mirror`, `unlabelled`).

Randomness comes only from the `np.random.Generator` that is passed in.
"""

import dataclasses
from collections.abc import Sequence

import ml_collections
import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from talora_jax.data.shapes import paste_shapes
from talora_jax.errors import UserError
from talora_jax.tasks import target_of

# 'image', and targets by the names of tasks: of one H×W, and of another.
Sample = dict[str, Shaped[np.ndarray, "H W ..."]]
Resized = dict[str, Shaped[np.ndarray, "h w ..."]]

# ITU-R BT.601 luma, as in Pillow's conversion to grey.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def scale_crop(sample: Sample, rng: np.random.Generator, scales: Sequence[float]) -> Sample:
    """Brings the scene nearer by one of `scales`, drawn evenly, looking at a random window of it.

    The window of int(H/scale) × int(W/scale) pixels is resized back to H×W: bilinear for the
    image, as the task says for a target.

    Args:
      sample: image and targets of one H×W (see `talora_jax.data.dataset.Source`).
      rng: draws the scale and the window's place.
      scales: each at least 1.
    """
    height, width = sample["image"].shape[:2]
    scale = scales[rng.integers(len(scales))]
    window_height, window_width = int(height / scale), int(width / scale)
    top = rng.integers(height - window_height + 1)
    left = rng.integers(width - window_width + 1)
    if (window_height, window_width) == (height, width):
        return dict(sample)

    window = np.s_[top : top + window_height, left : left + window_width]

    def move(name: str, values: np.ndarray) -> np.ndarray:
        if name == "image":
            box = (left, top, left + window_width, top + window_height)
            image = Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR, box)
            return np.asarray(image)
        task = target_of(name)
        return task.nearer(task.resize(values[window], (height, width)), scale)

    return {name: move(name, values) for name, values in sample.items()}


def turn_scale(
    sample: Sample,
    rng: np.random.Generator,
    degrees: float,
    scales: tuple[float, float],
    size: tuple[int, int],
) -> Resized:
    """Turns and scales the scene about the frame's centre, and stretches the frame to `size`.

    The angle is drawn evenly from [-degrees, degrees], counter-clockwise as seen, the scale evenly
    from [scales[0], scales[1]]; above 1 is nearer. Stretching leaves values as they are, also those
    of normals, as in ASTMT. What lies outside the frame is black and unlabelled.

    Args:
      sample: image and targets of one H×W.
      size: H, W of the result.
    """
    height, width = sample["image"].shape[:2]
    angle = np.radians(rng.uniform(-degrees, degrees))
    scale = rng.uniform(*scales)
    cos, sin = np.cos(angle), np.sin(angle)

    # From a point of the result to the frame's, both in pixels from the top left corner: un-stretch
    # about the corner, then turn back and scale back about the centre.
    stretch = np.array([width / size[1], height / size[0]])
    back = np.array([[cos, -sin], [sin, cos]]) / scale
    centre = np.array([width / 2, height / 2])
    (a, b), (d, e) = back * stretch
    c, f = centre - back @ centre
    x, y = np.arange(size[1]) + 0.5, np.arange(size[0])[:, None] + 0.5
    columns = np.floor(a * x + b * y + c).astype(np.int32)
    rows = np.floor(d * x + e * y + f).astype(np.int32)
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    at = np.where(inside, rows * width + columns, 0)

    def move(name: str, values: np.ndarray) -> np.ndarray:
        if name == "image":
            affine = Image.Transform.AFFINE
            image = Image.fromarray(values).transform(
                size[::-1], affine, (a, b, c, d, e, f), Image.Resampling.BILINEAR
            )
            return np.asarray(image)
        values = values.reshape(height * width, *values.shape[2:])[at]
        task = target_of(name)
        values[~inside] = task.unlabelled
        return task.turn(task.nearer(values, scale), angle)

    return {name: move(name, values) for name, values in sample.items()}


def fit(sample: Sample, size: tuple[int, int]) -> Resized:
    """Stretches the frame to `size` H, W, see `resized`."""
    return {name: resized(name, values, size) for name, values in sample.items()}


def resized(
    name: str, values: Shaped[np.ndarray, "H W ..."], size: tuple[int, int]
) -> Shaped[np.ndarray, "h w ..."]:
    """The image or a target, by its name, at `size` H, W; itself where it has that.

    The image bilinearly, with antialiasing where it gets smaller; a target as its class says.
    """
    if values.shape[:2] == tuple(size):
        return values
    if name != "image":
        return target_of(name).resize(values, size)
    return np.asarray(Image.fromarray(values).resize(size[::-1], Image.Resampling.BILINEAR))


def mirror(sample: Sample) -> Sample:
    """Exchanges left and right in the image and all targets."""
    return {
        name: values[:, ::-1] if name == "image" else target_of(name).mirror(values)
        for name, values in sample.items()
    }


def flip(sample: Sample, rng: np.random.Generator) -> Sample:
    """`mirror`s every other sample, by the toss of a coin."""
    return mirror(sample) if rng.random() < 0.5 else dict(sample)


def colour_jitter(sample: Sample, rng: np.random.Generator, strength: float) -> Sample:
    """Changes the image's brightness, contrast and saturation, in this order.

    Each factor is drawn evenly from [1 - strength, 1 + strength]: brightness scales the values,
    contrast their distance from the mean grey, saturation that from the pixel's own grey.
    """
    brightness, contrast, saturation = rng.uniform(1 - strength, 1 + strength, 3).astype(np.float32)
    image: UInt8[np.ndarray, "H W 3"] = sample["image"]
    values = image * brightness
    grey = values @ _LUMA
    # Contrast then saturation is affine in (value, grey, mean grey): one pass over the pixels.
    mean = grey.mean()
    values = contrast * (saturation * values + (1 - saturation) * grey[..., None])
    values += (1 - contrast) * mean
    return {**sample, "image": (values.clip(0, 255) + 0.5).astype(np.uint8)}


def noise(sample: Sample, rng: np.random.Generator, most: float) -> Sample:
    """Adds normal noise, whose standard deviation is drawn evenly from [0, most], in parts of the
    whole range."""
    image: UInt8[np.ndarray, "H W 3"] = sample["image"]
    deviation = np.float32(255 * most * rng.random())
    values = image + deviation * rng.standard_normal(image.shape, np.float32)
    return {**sample, "image": (values.clip(0, 255) + 0.5).astype(np.uint8)}


@dataclasses.dataclass(frozen=True)
class Augment:
    """The augmentation of training samples, in this order, and their one size.

    Attributes:
      size: H, W of the result.
      scales: to draw from for `scale_crop`; (1.0,) leaves the frame as it is.
      turn: degrees of `turn_scale`.
      scale_range: lowest and highest scale of `turn_scale`; with (1.0, 1.0) and no turn the frame
        is only `fit`ted.
      flip: whether to `flip`.
      shapes: the most `shapes` to paste, before colours change.
      colour_jitter: strength in [0, 1); 0 leaves colours as they are.
      noise: the highest standard deviation; 0 adds none.
    """

    size: tuple[int, int]
    scales: tuple[float, ...] = (1.0,)
    turn: float = 0.0
    scale_range: tuple[float, float] = (1.0, 1.0)
    flip: bool = False
    shapes: int = 0
    colour_jitter: float = 0.0
    noise: float = 0.0

    @classmethod
    def from_config(cls, augment: ml_collections.ConfigDict, size: tuple[int, int]) -> "Augment":
        """Reads `config.augment`; `UserError` when a value is out of its range."""
        if not augment.scales or min(augment.scales) < 1:
            raise UserError(
                f"config.augment.scales is {tuple(augment.scales)}; expected one or more numbers "
                "of at least 1."
            )
        if not 0 <= augment.turn <= 180:
            raise UserError(
                f"config.augment.turn is {augment.turn}; expected degrees from 0 to 180."
            )
        scale_range = tuple(map(float, augment.scale_range))
        if len(scale_range) != 2 or not 0 < scale_range[0] <= scale_range[1]:
            raise UserError(
                f"config.augment.scale_range is {scale_range}; expected a lowest scale above 0 "
                "and a highest one."
            )
        if not 0 <= augment.colour_jitter < 1:
            raise UserError(
                f"config.augment.colour_jitter is {augment.colour_jitter}; expected a number from "
                "0 up to, but not including, 1."
            )
        if not 0 <= augment.noise < 1:
            raise UserError(
                f"config.augment.noise is {augment.noise}; expected a number from 0 up to, but not "
                "including, 1."
            )
        if augment.shapes < 0:
            raise UserError(f"config.augment.shapes is {augment.shapes}; expected 0 or more.")
        return cls(
            tuple(size),
            tuple(map(float, augment.scales)),
            augment.turn,
            scale_range,
            augment.flip,
            augment.shapes,
            augment.colour_jitter,
            augment.noise,
        )

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Resized:
        sample = scale_crop(sample, rng, self.scales)
        if self.turn or self.scale_range != (1.0, 1.0):
            sample = turn_scale(sample, rng, self.turn, self.scale_range, self.size)
        else:
            sample = fit(sample, self.size)
        if self.flip:
            sample = flip(sample, rng)
        if self.shapes:
            sample = paste_shapes(sample, rng, self.shapes)
        if self.colour_jitter:
            sample = colour_jitter(sample, rng, self.colour_jitter)
        if self.noise:
            sample = noise(sample, rng, self.noise)
        return sample
