"""Augmentation of one sample: an image and its targets moved together, in NumPy.

The geometry is that of the MTAN protocol (Liu et al., CVPR 2019, `RandomScaleCrop` and the flip of
its NYUv2 loader): a window of 1/scale of the frame is blown up to the whole frame, which brings
everything nearer by that scale; a mirror image has normals of the other x. As there, the crop
leaves the directions of normals untouched. Differences:

- Normals are taken from the nearest pixel like the other targets, where MTAN interpolates them:
  nothing invalid bleeds into what is valid, and unit vectors stay unit.
- The image is resized with pixel centres at one half, where MTAN aligns corners, so that the image
  and its targets stay aligned.

Randomness comes only from the `np.random.Generator` that is passed in.
"""

import dataclasses
from collections.abc import Sequence

import ml_collections
import numpy as np
from jaxtyping import Shaped, UInt8
from PIL import Image

from talora_jax.errors import UserError

Sample = dict[str, Shaped[np.ndarray, "H W ..."]]

# What losses and metrics ignore, per target.
UNLABELLED = {"semantic": -1, "depth": 0, "normals": 0, "edges": -1}

# ITU-R BT.601 luma, as in Pillow's conversion to grey.
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


def scale_crop(sample: Sample, rng: np.random.Generator, scales: Sequence[float]) -> Sample:
    """Brings the scene nearer by one of `scales`, drawn evenly, looking at a random window of it.

    The window of int(H/scale) × int(W/scale) pixels is resized back to H×W: bilinear for the
    image, nearest for every target. Depth is divided by the scale.

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

    # Centre of output pixel i lies at (i + 1/2)·window/size of the window.
    rows = top + (2 * np.arange(height) + 1) * window_height // (2 * height)
    columns = left + (2 * np.arange(width) + 1) * window_width // (2 * width)

    def move(name: str, values: np.ndarray) -> np.ndarray:
        if name == "image":
            box = (left, top, left + window_width, top + window_height)
            image = Image.fromarray(values).resize((width, height), Image.Resampling.BILINEAR, box)
            return np.asarray(image)
        values = values.take(rows, axis=0).take(columns, axis=1)
        return values / np.float32(scale) if name == "depth" else values

    return {name: move(name, values) for name, values in sample.items()}


def mirror(sample: Sample) -> Sample:
    """Exchanges left and right in the image and all targets; the x of normals changes its sign."""
    mirrored = {name: values[:, ::-1] for name, values in sample.items()}
    if "normals" in mirrored:
        mirrored["normals"] = mirrored["normals"] * np.array([-1, 1, 1], np.float32)
    return mirrored


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


@dataclasses.dataclass(frozen=True)
class Augment:
    """The augmentation of training samples: `scale_crop`, `flip` and `colour_jitter` in turn.

    Attributes:
        scales: to draw from for `scale_crop`; (1.0,) leaves the frame as it is.
        flip: whether to `flip`.
        colour_jitter: strength in [0, 1); 0 leaves colours as they are.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    colour_jitter: float = 0.0

    @classmethod
    def from_config(cls, augment: ml_collections.ConfigDict) -> "Augment":
        """Reads `config.augment`; `UserError` when a value is out of its range."""
        if not augment.scales or min(augment.scales) < 1:
            raise UserError(
                f"config.augment.scales is {tuple(augment.scales)}; expected one or more numbers "
                "of at least 1."
            )
        if not 0 <= augment.colour_jitter < 1:
            raise UserError(
                f"config.augment.colour_jitter is {augment.colour_jitter}; expected a number from "
                "0 up to, but not including, 1."
            )
        return cls(tuple(augment.scales), augment.flip, augment.colour_jitter)

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        sample = scale_crop(sample, rng, self.scales)
        if self.flip:
            sample = flip(sample, rng)
        if self.colour_jitter:
            sample = colour_jitter(sample, rng, self.colour_jitter)
        return sample
