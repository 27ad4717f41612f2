"""What is in one file or cell of NYUv2 and Cityscapes as MTAN packs them, checked.

Each function raises `BadFile` when it is something else.
"""

import dataclasses
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32, Int8, UInt8

from talora_jax.data.parquet import Cell
from talora_jax.tasks.depth import measured
from talora_jax.tasks.target_files import BadFile, read_npy, whole_numbers

AnyPath = Path | zipfile.Path
Place = AnyPath | Cell

# How far, in steps of 1/255, a value of an 8-bit image may be off: float16's are by 0.06.
_STEP_SLACK = 0.1
_UNIT_SLACK = 1e-3


@dataclasses.dataclass(frozen=True)
class Meaning:
    """What the values of this copy mean, by the fields of `config.data`.

    Attributes:
      ignore_label: a label that is none, as -1 is.
      depth_scale: units of depth per metre; None for metres.
      max_depth: metres above which depth is no measurement.
    """

    ignore_label: int | None = None
    depth_scale: float | None = None
    max_depth: float | None = None


def _array(place: Place) -> np.ndarray:
    return place.read() if isinstance(place, Cell) else read_npy(place)


def read_image(path: Place) -> tuple[UInt8[np.ndarray, "H W 3"], bool]:
    """RGB, and whether it had to be rounded to 8 bits."""
    values = _array(path)
    if values.ndim != 3 or values.shape[2] != 3:
        raise BadFile(f"shape {values.shape}, expected [H, W, 3]")
    if values.dtype == np.uint8:
        return values, False
    if values.dtype.kind != "f":
        raise BadFile(f"{values.dtype}, expected float in [0, 1]")
    if not (values.min() >= 0 and values.max() <= 1):  # also when there is NaN
        raise BadFile(f"from {values.min():g} to {values.max():g}, expected float in [0, 1]")
    steps = values.astype(np.float32) * np.float32(255)
    whole = np.rint(steps)
    return whole.astype(np.uint8), bool(np.abs(steps - whole).max() > _STEP_SLACK)


def read_labels(
    path: Place, class_names: Sequence[str], ignored: int | None
) -> Int8[np.ndarray, "H W"]:
    """Class indices, -1 = no label."""
    values = _array(path)
    if values.ndim != 2:
        raise BadFile(f"shape {values.shape}, expected [H, W]")
    if values.dtype.kind not in "iuf":
        raise BadFile(f"{values.dtype}, expected whole numbers")
    values = whole_numbers(values)
    if ignored is not None:
        values = np.where(values == ignored, -1, values.astype(np.int64))
    wrong = values[(values < -1) | (values >= len(class_names))]
    if wrong.size:
        raise BadFile(
            f"label {wrong[0]:g}, expected 0 to {len(class_names) - 1} for the {len(class_names)} "
            "classes, or -1 for none; config.data.ignore_label names another value for none"
        )
    return values.astype(np.int8)


def _read_floats(path: Place, channels: int, blank: bool = False) -> Float[np.ndarray, "H W C"]:
    """Finite values; with `blank`, zeros in place of NaN if nothing else is there."""
    values = _array(path)
    if values.dtype.kind != "f" or values.ndim != 3 or values.shape[2] != channels:
        raise BadFile(f"{values.dtype} of shape {values.shape}, expected float [H, W, {channels}]")
    if blank and np.isnan(values).all():
        return np.zeros_like(values)
    if not np.isfinite(values).all():
        raise BadFile(f"{(~np.isfinite(values)).sum()} values are NaN or infinite, expected none")
    return values


def read_depth(path: Place, meaning: Meaning) -> Float32[np.ndarray, "H W 1"]:
    """Depth or disparity, 0 = no measurement."""
    values = _read_floats(path, 1, blank=True)
    if values.min() < 0:
        raise BadFile(f"value {values.min():g}, expected 0 (no measurement) or above")
    scale = 1 if meaning.depth_scale is None else meaning.depth_scale
    return measured(values / np.float64(scale), meaning.max_depth)


def read_normals(path: Place) -> Float32[np.ndarray, "H W 3"]:
    """Unit vectors, all-zero = invalid. Resizing may have made some shorter than 1, none longer."""
    values = _read_floats(path, 3)
    longest = np.linalg.norm(values.astype(np.float64), axis=-1).max()
    if longest > 1 + _UNIT_SLACK:
        raise BadFile(f"a vector of length {longest:g}, expected unit vectors or zeros")
    return values.astype(np.float32)
