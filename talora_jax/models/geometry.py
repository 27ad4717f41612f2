"""From an image's own size to what SAM encodes, its padded square, and for maps the way back.

Source: `segment_anything/utils/transforms.py` (`ResizeLongestSide`) and `Sam.postprocess_masks`.
What differs: a bilinear resize is linear and separable, so each way is two small matrices. The way
back (to the square, crop, to the original size) is multiplied out into one matrix per axis, exact
to the two steps and without a full-size map in between. Training resizes in floating point, where
gradients and any dtype pass; `to_padded_uint8` and `normalise` are SAM's own path, bit for bit.

Native aspect: padding to whole patches instead of to the square. An image's tokens are then the
only tokens. What this changes: in the square, global attention also reads the padding, whose tokens
are not zero (they carry positions and biases) but say nothing; windows at the border are cut off
where the image ends and not where the square does; and the neck and the decoder see a shorter grid.
Absolute positions are cropped, relative ones sliced, nothing is interpolated. For a square image
nothing changes.
"""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num, UInt8
from PIL import Image

# On 0-255 RGB; SAM's `pixel_mean` and `pixel_std`.
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The sizes of one image on its way through the model.

    Attributes:
      original: (H, W) of the image.
      resized: (H, W) with the longest side equal to `square`.
      square: side of the padded square.
      patch: with it the aspect is native: sides are padded to multiples of the patch only.
    """

    original: tuple[int, int]
    resized: tuple[int, int]
    square: int
    patch: int | None = None

    @classmethod
    def of(cls, original: tuple[int, int], square: int, patch: int | None = None) -> "Geometry":
        """The geometry of an image of size `original`, sides rounded to the nearest as SAM does."""
        height, width = original
        scale = square / max(height, width)
        resized = (max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)))
        return cls((height, width), resized, square, patch)

    @property
    def padded(self) -> tuple[int, int]:
        """(H, W) of what is encoded: the square, or the resized size in whole patches."""
        if self.patch is None:
            return self.square, self.square
        height, width = (-(-side // self.patch) * self.patch for side in self.resized)
        return height, width

    def to_padded(
        self, images: Float[Array | np.ndarray, "*b H W 3"], *, normalise: bool = True
    ) -> Float[Array, "*b Y X 3"]:
        """The images at size `padded`: resizes, normalises, then zero-pads right and below.

        The resize is bilinear, antialiased when shrinking.

        Args:
          images: RGB in [0, 1], of size `original`.
          normalise: subtract SAM's pixel mean and divide by its standard deviation. The official
            MTSAM code does not.
        """
        x = jnp.asarray(images)
        if self.original != self.resized:
            rows, columns = (
                jnp.asarray(resize_matrix(i, o, antialias=True), x.dtype)
                for i, o in zip(self.original, self.resized, strict=True)
            )
            x = resize(x, rows, columns)
        if normalise:
            mean, std = np.array(PIXEL_MEAN) / 255, np.array(PIXEL_STD) / 255
            x = (x - jnp.asarray(mean, x.dtype)) / jnp.asarray(std, x.dtype)
        pad = [(0, whole - n) for whole, n in zip(self.padded, self.resized, strict=True)]
        return jnp.pad(x, [(0, 0)] * (x.ndim - 3) + [*pad, (0, 0)])

    def to_padded_uint8(self, image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "Y X 3"]:
        """Resizes as SAM does, with Pillow and to 8 bits, and zero-pads right and below."""
        height, width = self.resized
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        padded = np.zeros((*self.padded, 3), np.uint8)
        padded[:height, :width] = resized
        return padded

    def points_to_square(self, xy: Float[np.ndarray, "*b 2"]) -> Float[np.ndarray, "*b 2"]:
        """Points (x, y) in pixels of the original image, to pixels of the padded square."""
        (height, width), (new_height, new_width) = self.original, self.resized
        return xy * np.array([new_width / width, new_height / height])

    def from_padded(self, maps: Float[Array | np.ndarray, "*b h w C"]) -> Float[Array, "*b H W C"]:
        """Maps of the padded image at any resolution, to the original size, in float32.

        Bilinear to `padded`, crop, bilinear to `original`; half-pixel centres, no antialiasing.
        """
        return resize(maps.astype(jnp.float32), *self.matrices_from_padded(maps.shape[-3:-1]))

    def matrices_to_padded(self) -> tuple[np.ndarray, np.ndarray]:
        """Matrices [Y, H] and [X, W], float32, whose `resize` is `to_padded` but for the pixels'
        normalisation; the rows of the padding are zero."""
        return tuple(
            _way_there(*sides)
            for sides in zip(self.original, self.resized, self.padded, strict=True)
        )

    def matrices_from_padded(self, low_res: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Matrices [H, h] and [W, w], float32, whose `resize` is `from_padded` for maps [h, w]."""
        return tuple(
            _way_back(*sides)
            for sides in zip(low_res, self.padded, self.resized, self.original, strict=True)
        )


def resize(
    x: Float[Array | np.ndarray, "*b h w C"],
    rows: Float[Array | np.ndarray, "H h"],
    columns: Float[Array | np.ndarray, "W w"],
) -> Float[Array, "*b H W C"]:
    """A separable resize of both axes."""
    # TPUs would round float32 to bfloat16: depth in metres, to centimetres.
    return jnp.einsum("yh,...hwc,xw->...yxc", rows, x, columns, precision="highest")


def normalise(
    padded: Num[Array | np.ndarray, "*b Y X 3"], resized: Int[Array | np.ndarray, "*#b 2"]
) -> Float[Array, "*b Y X 3"]:
    """SAM's pixel normalisation of padded images: padding is zero after it, not before.

    Args:
      padded: RGB from 0 to 255.
      resized: (H, W) of each image in its padding.
    """
    x = (padded.astype(jnp.float32) - jnp.array(PIXEL_MEAN)) / jnp.array(PIXEL_STD)
    return jnp.where(shown(resized, padded.shape[-3:-1])[..., None], x, 0)


def shown(
    resized: Int[Array | np.ndarray, "*b 2"], size: tuple[int, int], stride: int = 1
) -> Bool[Array, "*b y x"]:
    """Which pixels of a padded image show the image, and not its padding.

    Args:
      resized: (H, W) of each image in its padding.
      size: (y, x) of the result.
      stride: pixels of the padded image to one of the result's; its first one counts.
    """
    rows, columns = (jnp.arange(n) * stride for n in size)
    return (rows < resized[..., :1])[..., :, None] & (columns < resized[..., 1:])[..., None, :]


def resize_matrix(size: int, new_size: int, *, antialias: bool) -> Float[np.ndarray, "new size"]:
    """Bilinear resize along one axis, half-pixel centres, edges clamped, as a float64 matrix."""
    scale = size / new_size
    support = max(scale, 1.0) if antialias else 1.0
    centres = (np.arange(new_size) + 0.5) * scale - 0.5
    if not antialias:
        # PyTorch clamps the sample point; a renormalised triangle would be the same.
        centres = np.clip(centres, 0, size - 1)
    weights = np.maximum(0, 1 - np.abs(np.arange(size) - centres[:, None]) / support)
    return weights / weights.sum(axis=1, keepdims=True)


# Of the last image or two, for the next of the same size. No more: a folder of photographs may have
# as many sizes as files, and a matrix has megabytes.
@functools.lru_cache(maxsize=4)
def _way_there(original: int, resized: int, padded: int) -> np.ndarray:
    matrix = resize_matrix(original, resized, antialias=True).astype(np.float32)
    return np.pad(matrix, ((0, padded - resized), (0, 0)))


@functools.lru_cache(maxsize=4)
def _way_back(low: int, padded: int, resized: int, original: int) -> np.ndarray:
    up = resize_matrix(low, padded, antialias=False)[:resized]
    return (resize_matrix(resized, original, antialias=False) @ up).astype(np.float32)
