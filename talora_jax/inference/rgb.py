"""Whatever image a person has, as 8-bit RGB, which is what SAM was trained on."""

from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from talora_jax.errors import UserError, one_line

# Pillow's modes whose values do not fit 8 bits; its own conversion would clip them.
_DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def as_rgb(image) -> UInt8[np.ndarray, "H W 3"]:
    """An image as 8-bit RGB.

    Args:
      image: a Pillow image, turned upright if its EXIF orientation says so, or an array [H, W],
        [H, W, 1], [H, W, 3] or [H, W, 4]. Gray is repeated in all channels; alpha is dropped.
        16-bit values are scaled to 8 bits, and so are floating-point values, which must lie in
        [0, 1]; other integers must lie in [0, 255].

    Raises:
      UserError: the shape, the dtype or the values are others.
    """
    if isinstance(image, Image.Image):
        image = ImageOps.exif_transpose(image)
        image = np.asarray(image if image.mode in _DEEP else image.convert("RGB"))
    image = np.asarray(image)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or image.size == 0:
        raise UserError(
            f"an image of shape {list(image.shape)}: expected [H, W, 3] for RGB, [H, W, 4] with "
            "alpha, or [H, W] for gray"
        )
    image = _to_8_bits(image[..., :3])
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))


def read_rgb(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    """An image file of any kind that Pillow knows, as 8-bit RGB, upright.

    Raises:
      UserError: the file is missing, empty, no image or cut short, or `as_rgb` refuses it.
    """
    try:
        if path.is_file() and path.stat().st_size == 0:
            raise UserError("the file is empty (0 bytes)")
        with Image.open(path) as image:
            return as_rgb(image)
    except UnidentifiedImageError:
        reason = "not an image that Pillow can read"
    except Exception as error:  # Pillow raises many kinds, from OSError to SyntaxError.
        reason = getattr(error, "strerror", None) or one_line(error)
    raise UserError(f"{path}: {reason}")


def _to_8_bits(image: np.ndarray) -> UInt8[np.ndarray, "H W C"]:
    if image.dtype == np.uint8:
        return image
    if image.dtype == np.uint16:
        return ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if np.issubdtype(image.dtype, np.floating):
        limit, scale = 1, 255
    elif np.issubdtype(image.dtype, np.integer):
        limit, scale = 255, 1
    else:
        raise UserError(f"an image of dtype {image.dtype}: expected uint8, uint16 or float32")
    low, high = image.min(), image.max()
    if not (low >= 0 and high <= limit):
        raise UserError(
            f"an image of dtype {image.dtype} with values from {low} to {high}: expected values of "
            f"this dtype within [0, {limit}]"
        )
    return np.round(image.astype(np.float64) * scale).astype(np.uint8)
