"""Files that targets and images are read from, npy, PNG and JPEG: nothing in them is trusted."""

import io
import threading
from pathlib import Path
from typing import Protocol, runtime_checkable
from zipfile import Path as ZipPath

import numpy as np
from jaxtyping import Bool, Int32, Integer, Num, UInt8
from PIL import Image

from talora_jax.errors import one_line
from talora_jax.rgb import check_png

# NumPy reads a header by `ast.literal_eval`, which some Pythons break when two threads are in it.
_ONE_HEADER_AT_A_TIME = threading.Lock()
# Up to here float64 holds every integer.
_EXACT = 2**53


class BadFile(Exception):
    """A file does not hold what it should. The message says what was expected."""


@runtime_checkable
class FileSettings(Protocol):
    """What the files of a user's folder cannot tell and `Task.read` may need.

    Attributes:
      class_names: of `semantic`, one per class index; empty if nobody named them.
      depth_scale: units of a depth file per metre; None leaves it to the kind of file.
      max_depth: metres above which depth is no measurement; None knows no such depth.
      ignore_label: the label of `semantic` that means none; None leaves it to the kind of file.
    """

    class_names: tuple[str, ...]
    depth_scale: float | None
    max_depth: float | None
    ignore_label: int | None


def read_npy(path: Path | ZipPath) -> np.ndarray:
    """The array of a file, on disk or in a zip archive. A pickle in it is not run.

    Raises:
      BadFile: it cannot be read, is cut short, or is not an array with values.
    """
    try:
        content = io.BytesIO(path.read_bytes())
        with _ONE_HEADER_AT_A_TIME:
            values = np.load(content, allow_pickle=False)
    except Exception as error:  # NumPy raises many kinds, from EOFError to tokenize's.
        raise BadFile(f"cannot be read as npy ({one_line(error)})") from error
    if not isinstance(values, np.ndarray) or not values.size:
        raise BadFile("expected an npy file of one array that is not empty")
    return values


def open_image(path: Path) -> Image.Image:
    """Decodes the whole file, so that a truncated one is found out.

    Raises:
      BadFile: it is no whole PNG or JPEG.
    """
    try:
        image = Image.open(path, formats=("PNG", "JPEG"))
        image.load()
        check_png(path)
    except Exception as error:  # Pillow raises many kinds, from OSError to SyntaxError.
        raise BadFile(f"cannot be decoded as PNG or JPEG ({one_line(error)})") from error
    one_frame(image)
    return image


def one_frame(image: Image.Image) -> None:
    """Refuses an image of which nothing tells the frame, page or moment that is meant.

    Raises:
      BadFile: it has several.
    """
    # What cameras put beside a JPEG's one picture (MPO) are previews.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise BadFile(f"{image.n_frames} frames, expected one: save the one that is meant alone")


def read_indices(path: Path) -> Integer[np.ndarray, "H W"]:
    """Integers of a grey or palette PNG, or of an npy file, where they may be floating point, too.

    Raises:
      BadFile: the file holds something else.
    """
    if path.suffix.lower() != ".npy":
        image = open_image(path)
        if image.mode not in ("1", "L", "P", "I;16", "I;16B", "I"):
            raise BadFile(
                f"mode {image.mode}, expected one channel of integers; which colour is which "
                "class 'read' in dataset.json can say"
            )
        values = np.asarray(image)
    else:
        values = read_npy(path)
        if values.dtype.kind not in "biuf" or values.ndim != 2:
            raise BadFile(
                f"{values.dtype} of shape {values.shape}, expected integers [H, W], such as "
                "values.astype(np.int32)"
            )
        values = whole_numbers(values)
    return values.astype(np.uint8) if values.dtype == bool else values


def whole_numbers(values: Num[np.ndarray, "..."] | Bool[np.ndarray, "..."]) -> np.ndarray:
    """Floating point as the integers that it stands for, NaN as -1, no label; all else as it is.

    Raises:
      BadFile: a value is no whole number, or so large that the next one could be meant.
    """
    if values.dtype.kind != "f":
        return values
    values = np.where(np.isnan(values), -1, values.astype(np.float64))
    wrong = values[(values != np.rint(values)) | (np.abs(values) > _EXACT)]
    if wrong.size:
        raise BadFile(f"a value {wrong[0]:g}, expected whole numbers, or NaN for no label")
    return values.astype(np.int64)


def as_int32(values: Integer[np.ndarray, "H W"], way_on: str) -> Int32[np.ndarray, "H W"]:
    """Integers of any kind in 32 bits; none is wrapped.

    Raises:
      BadFile: one does not fit; the message ends with `way_on`.
    """
    lowest, highest = int(values.min()), int(values.max())
    limits = np.iinfo(np.int32)
    if lowest < limits.min or highest > limits.max:
        wrong = lowest if lowest < limits.min else highest
        raise BadFile(f"value {wrong}, expected at most 2**31 - 1, what 32 bits hold: {way_on}")
    return values.astype(np.int32)


def read_palette(path: Path) -> UInt8[np.ndarray, "n 3"] | None:
    """The colours of a palette PNG; None of any other file.

    Raises:
      BadFile: it is no PNG.
    """
    if path.suffix.lower() != ".png":
        return None
    try:
        image = Image.open(path, formats=("PNG",))
    except Exception as error:  # as in `open_image`
        raise BadFile(f"cannot be decoded as PNG ({one_line(error)})") from error
    if image.mode != "P":
        return None
    return np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)


def read_plane(path: Path) -> np.ndarray:
    """Values [H, W] of an npy file, which may have them as [H, W, 1]; other shapes as they are.

    Raises:
      BadFile: as `read_npy`.
    """
    values = read_npy(path)
    return values[..., 0] if values.ndim == 3 and values.shape[2] == 1 else values


def span(values: np.ndarray) -> str:
    """What there is, for an error."""
    if values.dtype.kind not in "biuf":
        return str(values.dtype)
    return f"{values.dtype} from {values.min():g} to {values.max():g}"
