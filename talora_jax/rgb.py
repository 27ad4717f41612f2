"""Whatever image a person has, as 8-bit RGB, which is what SAM was trained on."""

import functools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from talora_jax.arrays import as_array, in_words
from talora_jax.errors import UserError, one_line, printable

# Pillow's modes whose values do not fit 8 bits; its own conversion would clip them.
_DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
# Formats of which Pillow gives 16 bits in 32, whatever the file's own maximum.
_16_BITS_IN_32 = ("PPM", "PNG")
_CAMERA_BITS = (8, 10, 12)
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0

# Images that Pillow cannot read, and what can.
_OTHER_READERS = {
    ".npy": "; give np.load(path)",
    **dict.fromkeys((".heic", ".heif"), "; convert it to JPEG or PNG"),
}

_EXPECTED = (
    "a path, a Pillow image, or an array [H, W, 3] for RGB, [H, W, 4] with alpha, or [H, W] for "
    "gray"
)


def as_rgb(image) -> UInt8[np.ndarray, "H W 3"]:
    """An image as 8-bit RGB.

    Args:
      image: the path of an image file, a Pillow image, turned upright if its EXIF orientation says
        so, or an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]. Gray is repeated in all channels;
        alpha is dropped. 16-bit values are scaled to 8 bits, and so are floating-point values,
        which must lie in [0, 1]; other integers must lie in [0, 255].

    Raises:
      UserError: it is something else, or of another shape, dtype or range, or has no known range.
    """
    if isinstance(image, (str, os.PathLike)):
        if "://" in str(image):
            raise UserError(f"{printable(image)} is an address; expected a file: download it first")
        return read_rgb(Path(image).expanduser())
    maximum, pillow = None, isinstance(image, Image.Image)
    if pillow:
        image, maximum = _of_pillow(image)
    elif hasattr(image, "read"):
        raise UserError(
            f"an image: {in_words(image)} to read from; expected {_EXPECTED}: open it with "
            "PIL.Image.open"
        )
    elif isinstance(image, (bytes, bytearray, memoryview)):
        raise UserError(
            f"an image: {in_words(image)}; expected {_EXPECTED}: open an encoded image with "
            "PIL.Image.open(io.BytesIO(…))"
        )
    image = as_array("an image", image, _EXPECTED)
    if image.ndim == 2:
        image = image[..., None]
    if image.ndim != 3 or image.shape[2] not in (1, 3, 4) or image.size == 0:
        raise UserError(
            f"an image of shape {list(image.shape)}: expected [H, W, 3] for RGB, [H, W, 4] with "
            f"alpha, or [H, W] for gray{_way_on(image.shape)}"
        )
    image = image[..., :3]
    if not pillow and image.dtype == np.uint16:
        _check_bits(image)
    image = _to_8_bits(image, maximum)
    return np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))


def each_rgb(images: Iterable) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Several images as 8-bit RGB, one after the other.

    Raises:
      UserError: one is no image, and which; or they are the rows of one.
    """
    check_several(images)
    return map(nth_rgb, enumerate(images))


def check_several(images: Iterable) -> None:
    """
    Raises:
      UserError: what should be several images are the rows of one.
    """
    if isinstance(images, (list, tuple)) and images and all(map(_is_row, images)):
        raise UserError(
            f"{len(images)} images of shape {list(np.shape(images[0]))}, as the rows of one are; "
            "expected a list of images: give a single one as one array"
        )


def nth_rgb(numbered: tuple[int, Any]) -> UInt8[np.ndarray, "H W 3"]:
    """An image as 8-bit RGB, of several that are numbered.

    Raises:
      UserError: it is no image, and which.
    """
    number, image = numbered
    try:
        return as_rgb(image)
    except UserError as error:
        raise UserError(f"image {number} of those given: {error}") from None


def read_rgb(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    """An image file of any kind that Pillow knows, as 8-bit RGB, upright.

    Raises:
      UserError: the file is missing, empty, no image or cut short, or `as_rgb` refuses it.
    """
    try:
        if path.is_dir():
            raise UserError("a folder; expected an image file")
        if path.is_file() and path.stat().st_size == 0:
            raise UserError("the file is empty (0 bytes)")
        with Image.open(path) as image:
            found = as_rgb(image)
        check_png(path)
        return found
    except UnidentifiedImageError:
        way_on = _OTHER_READERS.get(path.suffix.lower(), "")
        reason = f"not an image that Pillow can read{way_on}"
    except Exception as error:  # Pillow raises many kinds, from OSError to SyntaxError.
        reason = getattr(error, "strerror", None) or one_line(error)
    raise UserError(f"{printable(path)}: {reason}")


def check_png(path: Path) -> None:
    """Refuses a PNG that is not as it was written, by its checksums: Pillow's decoder passes over
    those of the pixels. Of other files nothing is told.

    Raises:
      UserError: one is wrong.
    """
    try:
        image = Image.open(path, formats=("PNG",))
    except Exception:  # as in `read_rgb`; who decodes it tells
        return
    with image:
        try:
            image.verify()
        except Exception as error:
            raise UserError(f"a damaged PNG ({one_line(error)}): copy it again") from None


def _is_row(x) -> bool:
    """Whether it is [W, 3] or [W, 4], or numbers: what iterating over one image gives."""
    try:
        shape = np.shape(x) if isinstance(x, (list, tuple)) else getattr(x, "shape", None)
    except ValueError:  # Ragged, and no image either.
        return False
    return isinstance(shape, tuple) and (len(shape) == 1 or len(shape) == 2 and shape[1] in (3, 4))


def _of_pillow(image: Image.Image) -> tuple[np.ndarray, int | None]:
    """The pixels, upright, and the value of white where the dtype does not tell."""
    try:
        maximum = _maximum(image)
        upright = ImageOps.exif_transpose(image)
        if upright.mode == "La":  # Pillow has one way out of it.
            upright = upright.convert("LA")
        # Alpha is dropped: of a palette's, Pillow would warn that RGB has none.
        upright.info.pop("transparency", None)
        return np.asarray(upright if upright.mode in _DEEP else upright.convert("RGB")), maximum
    except UserError:
        raise
    except Exception as error:  # Pillow raises many kinds, from OSError to AssertionError.
        raise UserError(
            f"an image of Pillow's mode {image.mode} cannot be read ({one_line(error)}): it is "
            "damaged, cut short, or was closed before its pixels were loaded; expected a whole, "
            "open one"
        ) from None


def _maximum(image: Image.Image) -> int | None:
    """The value of white in what Pillow's 16 and 32 bit modes hold; None where the dtype tells.

    Raises:
      UserError: nothing tells.
    """
    if image.mode == "I":
        if image.format not in _16_BITS_IN_32:
            raise UserError(
                "an image of Pillow's mode I, 32-bit integers, of which nothing tells the maximum; "
                "expected 8 or 16 bits: give np.asarray(image) scaled to uint8, or as uint16 where "
                "white is 65535"
            )
        return 2**16 - 1
    if image.mode.startswith("I;16") and image.format == "TIFF":
        if image.tag_v2.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
            raise UserError(
                "a TIFF of 16 bits whose white is 0, which Pillow does not turn round: give "
                "65535 - np.asarray(image)"
            )
        return 2 ** image.tag_v2.get(_BITS_PER_SAMPLE, (16,))[0] - 1
    return None


def _way_on(shape: tuple[int, ...]) -> str:
    """What to do about an array of a wrong shape, where it can be guessed."""
    if 0 in shape:
        return "; it has no pixels"
    if len(shape) == 4:
        return "; give several images one by one, as a list"
    if len(shape) == 3 and shape[0] in (1, 3, 4):
        return "; channels come last: np.moveaxis(image, 0, -1)"
    return ""


def _check_bits(image: np.ndarray) -> None:
    """Refuses 16-bit integers that are as good as black, and may be of a camera of fewer bits.

    Raises:
      UserError: they are.
    """
    low, high = int(image.min()), int(image.max())
    bits = next((bits for bits in _CAMERA_BITS if high < 2**bits), None)
    if bits and high > 1:
        as_it_is = "image.astype(np.uint8)" if bits == 8 else f"image / {2**bits - 1}"
        raise UserError(
            f"an image of dtype uint16 with values from {low} to {high}: as 16 bits it is "
            f"{'black' if bits == 8 else 'nearly black'}; if these are {bits} bits, give "
            f"{as_it_is}, otherwise image / 65535"
        )


def _to_8_bits(image: np.ndarray, maximum: int | None) -> UInt8[np.ndarray, "H W C"]:
    """Scales `maximum`, by default what the dtype stands for, to 255, rounding to the nearest."""
    if image.dtype == np.uint8:
        return image
    if image.dtype.kind == "b":
        raise UserError(
            "an image of dtype bool; expected uint8, uint16 or floating point in [0, 1]: a mask is "
            "image.astype(float)"
        )
    real = image.dtype.kind == "f"
    if maximum is None:
        maximum = 1 if real else 2**16 - 1 if image.dtype == np.uint16 else 255
    low, high = image.min(), image.max()
    if not (low >= 0 and high <= maximum):
        remedy = "divide by the value of white, such as 255" if real else "16 bits are uint16"
        raise UserError(
            f"an image of dtype {image.dtype} with values from {low} to {high}: expected values of "
            f"this dtype within [0, {maximum}]; {remedy}"
        )
    if real:
        return np.round(image.astype(np.float64) * 255).astype(np.uint8)
    return ((image.astype(np.uint32) * 510 + maximum) // (2 * maximum)).astype(np.uint8)


@functools.cache
def suffixes() -> frozenset[str]:
    """How the names of files end that `read_rgb` may know, in lower case."""
    kinds = Image.registered_extensions()
    # Of films Pillow reads the size alone.
    known = Image.OPEN.keys() - {"MPEG"}
    return frozenset(suffix for suffix, kind in kinds.items() if kind in known)
