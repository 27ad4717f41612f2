"""Whatever prompts a person gives for an image, as arrays for the model, or one sentence.

Points and box corners become one array of points with labels, masks become logits. A prompt may
lack what others have: what it lacks is absent to the model, and it is answered as if asked alone.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int32

from talora_jax.arrays import as_array, finite
from talora_jax.errors import UserError
from talora_jax.models.geometry import Geometry, resize_matrix
from talora_jax.models.prompt_encoder import (
    ABSENT,
    BACKGROUND,
    FOREGROUND,
    LOWER_RIGHT,
    NOT_A_POINT,
    UPPER_LEFT,
)

LABELS = (ABSENT, NOT_A_POINT, BACKGROUND, FOREGROUND)
# The logits that a mask of a person's stands for, on the object and off it: near certainty.
CERTAIN = 10.0

_EXPECTED = {
    "points": "an array [P, n, 2] of (x, y) in pixels",
    "labels": "an array [P, n] of 1 (on the object), 0 (off it), -1 (no point) or -2 (absent)",
    "boxes": "an array [P, 4] of (x0, y0, x1, y1) in pixels",
    "masks": "an earlier prediction, its logits [P, Y, X], or masks [P, H, W] of dtype bool",
}
# Of one prompt, in a list.
_EXPECTED_OF_ONE = {
    "points": "an array [n, 2] of (x, y) in pixels, or None",
    "labels": "an array [n] of 1 (on the object), 0 (off it) or -1 (no point), or None",
    "boxes": "an array [4] of (x0, y0, x1, y1) in pixels, or None",
    "masks": "logits [Y, X], such as prediction.best()[0], a mask [H, W] of dtype bool, or None",
}


@dataclasses.dataclass(frozen=True)
class Prompts:
    """P prompts for one image, as `Sam.decode` takes them.

    Attributes:
      points: points and box corners, (x, y) in pixels of the padded square.
      labels: what each point is, see `prompt_encoder`.
      masks: logits of the padded image; None where no prompt has a mask.
      masked: which prompts have one; what `masks` has for the others means nothing.
    """

    points: Float[np.ndarray, "P n 2"]
    labels: Int32[np.ndarray, "P n"]
    masks: Float[np.ndarray, "P Y X"] | None
    masked: Bool[np.ndarray, "P"]


def as_prompts(given: Mapping[str, Any], geometry: Geometry, low: tuple[int, int]) -> Prompts:
    """Checks prompts and puts them together.

    Args:
      given: points, labels, boxes and masks by these names, as `SamPredictor.predict` takes them,
        but for an earlier prediction; None is not given.
      geometry: of the image.
      low: (Y, X) of mask logits.

    Raises:
      UserError: they have other shapes or values.
    """
    given = {name: given[name] for name in _EXPECTED if given.get(name) is not None}
    if ("points" in given) != ("labels" in given):
        raise UserError("points and labels belong together: give both or neither")
    arrays: dict[str, np.ndarray] = {}
    # Of each prompt, how many points and labels it has, and boxes and masks.
    counts: dict[str, np.ndarray] = {}
    for name, x in given.items():
        together = _of_list if _is_list_of_prompts(x) else _of_array
        arrays[name], counts[name] = together(name, x, geometry, low)
    if len({len(x) for x in arrays.values()}) > 1:
        numbers = ", ".join(f"{len(x)} of {name}" for name, x in arrays.items())
        raise UserError(f"prompts of different numbers, {numbers}: expected the same P for all")
    if "points" in arrays:
        _check_labels(arrays["labels"], counts["labels"], counts["points"])
    for name, x in arrays.items():
        if name in ("points", "boxes") and x.dtype.kind == "b":
            raise UserError(f"{name} of dtype bool; expected {_EXPECTED[name]}")
        arrays[name] = finite(name, x)
    if "boxes" in arrays:
        _check_boxes(arrays["boxes"])

    count = max((len(x) for x in arrays.values()), default=1)
    none = np.zeros(count, int)
    boxed, masked = (counts.get(name, none) > 0 for name in ("boxes", "masks"))
    xy, labels = [np.zeros((count, 0, 2))], [np.zeros((count, 0), int)]
    if "points" in arrays:
        xy.append(arrays["points"])
        labels.append(arrays["labels"].astype(int))
    # A prompt of points without a box carries one that is none, as in SAM.
    pointed = (np.concatenate(labels, 1) != ABSENT).any(axis=1)
    instead = np.where(pointed, NOT_A_POINT, ABSENT)[:, None]
    if boxed.any():
        xy.append(arrays["boxes"].reshape(count, 2, 2))
        unboxed = np.concatenate([instead, np.full_like(instead, ABSENT)], 1)
        labels.append(np.where(boxed[:, None], [UPPER_LEFT, LOWER_RIGHT], unboxed))
    elif pointed.any():
        xy.append(np.zeros((count, 1, 2)))
        labels.append(instead)
    points = geometry.points_to_square(np.concatenate(xy, 1))
    return Prompts(
        finite("points and boxes, scaled to what is encoded", points).astype(np.float32),
        np.concatenate(labels, 1).astype(np.int32),
        arrays["masks"].astype(np.float32) if masked.any() else None,
        masked,
    )


def _is_list_of_prompts(x: Any) -> bool:
    """Whether this is what each prompt has, None or more or less than others, and no one array."""
    if not isinstance(x, (list, tuple)):
        return False
    if any(one is None for one in x):
        return True
    try:
        return len({len(one) for one in x}) > 1
    except TypeError:  # Numbers have no length.
        return False


def _of_array(
    name: str, x: Any, geometry: Geometry, low: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """What all prompts have, as one array, and how many of it each has."""
    x = np.atleast_1d(as_array(name, x, _EXPECTED[name]))
    expected = _shape(name, x.dtype, geometry, low)
    if not _fits(x.shape[1:], expected) or len(x) == 0:
        shape = ", ".join(map(str, ("P", *expected)))
        raise UserError(
            f"{name} of shape {list(x.shape)}: expected [{shape}] for P > 0 prompts"
            f"{_way_on(name, x, expected, geometry.original)}"
        )
    count = x.shape[1] if name in ("points", "labels") else 1
    if name == "masks":
        x = _mask_logits(name, x, geometry, low)
    return x, np.full(len(x), count)


def _of_list(
    name: str, x: Sequence, geometry: Geometry, low: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The same of prompts that have none of it, or different numbers: absent where it lacks."""
    several = name in ("points", "labels")
    ones: list[np.ndarray | None] = []
    for prompt, one in enumerate(x):
        if one is not None:
            whose = f"{name} of prompt {prompt}"
            one = as_array(whose, one, _EXPECTED_OF_ONE[name])
            expected = _shape(name, one.dtype, geometry, low)
            if not _fits(one.shape, expected):
                raise UserError(
                    f"{whose} of shape {list(one.shape)}: expected "
                    f"[{', '.join(map(str, expected))}], or None for a prompt without"
                )
            if name == "masks":
                one = _mask_logits(whose, one[None], geometry, low)[0]
            elif one.dtype.kind == "b" and name != "labels":
                raise UserError(f"{whose} of dtype bool; expected {_EXPECTED_OF_ONE[name]}")
        ones.append(one)
    counts = np.array([0 if one is None else len(one) if several else 1 for one in ones])
    tail = {"points": (2,), "labels": (), "boxes": (4,), "masks": low}[name]
    shape = (int(counts.max()), *tail) if several else tail
    array = np.full((len(ones), *shape), float(ABSENT if name == "labels" else 0))
    for row, one in zip(array, ones, strict=True):
        if one is not None:
            row[: len(one)] = one
    return array, counts


def _shape(
    name: str, dtype: np.dtype, geometry: Geometry, low: tuple[int, int]
) -> tuple[int | str, ...]:
    """What one prompt's part of this dtype has."""
    masks = geometry.original if dtype.kind == "b" else low
    return {"points": ("n", 2), "labels": ("n",), "boxes": (4,), "masks": masks}[name]


def _fits(shape: tuple[int, ...], expected: tuple[int | str, ...]) -> bool:
    return len(shape) == len(expected) and all(
        side == wanted or wanted == "n" for side, wanted in zip(shape, expected, strict=True)
    )


def _check_labels(labels: np.ndarray, counts: np.ndarray, points: np.ndarray) -> None:
    if (counts != points).any():
        prompt = int((counts != points).argmax())
        raise UserError(
            f"labels of prompt {prompt}: {counts[prompt]} for {points[prompt]} points; expected "
            "one for each"
        )
    unknown = labels[~np.isin(labels, LABELS)]
    if unknown.size:
        raise UserError(
            f"labels {np.unique(unknown)[:5].tolist()}: expected 1 (on the object), 0 (off "
            "it), -1 (no point) or -2 (absent)"
        )


def _check_boxes(boxes: np.ndarray) -> None:
    turned = (boxes[:, 2:] < boxes[:, :2]).any(axis=1)
    if turned.any():
        raise UserError(
            f"boxes: {boxes[turned][0].tolist()} ends before it begins; expected "
            "(x0, y0, x1, y1) with x0 ≤ x1 and y0 ≤ y1, which of (x, y, width, height) is "
            "(x, y, x + width, y + height)"
        )


def _way_on(
    name: str, x: np.ndarray, expected: tuple[int | str, ...], original: tuple[int, int]
) -> str:
    """What to do about prompts of a wrong shape, where it can be guessed."""
    if x.ndim == len(expected) and x.size:
        return f"; for a single prompt, P = 1: np.array({name})[None]"
    if name == "masks" and x.dtype.kind == "b":
        return ", the image's own size, for dtype bool"
    if name == "masks" and x.shape[-2:] == original:
        return "; masks of the image's own size are of dtype bool: masks > 0"
    if name == "masks" and x.ndim == 4:
        return "; one mask for each prompt, of which masks=prediction takes the best"
    return ""


def _mask_logits(
    name: str, masks: np.ndarray, geometry: Geometry, low: tuple[int, int]
) -> Float[np.ndarray, "P Y X"]:
    """Mask prompts as SAM takes them: logits of the padded image, four to a token's side.

    Masks of the image's own size take the image's way: resized, padded with what is off the object,
    and then made as small as logits are, each step an average.
    """
    if masks.dtype.kind != "b":
        if masks.dtype.kind != "f" or (masks.any() and np.isin(masks, (0, 1)).all()):
            raise UserError(
                f"{name} of dtype {masks.dtype} with values from {masks.min()} to {masks.max()}; "
                "expected logits in floating point, of which those off the object are negative, or "
                "masks of the image's own size of dtype bool: masks > 0"
            )
        return masks
    rows, columns = (
        (resize_matrix(whole, small, antialias=True) @ matrix).astype(np.float32)
        for matrix, whole, small in zip(
            geometry.matrices_to_padded(), geometry.padded, low, strict=True
        )
    )
    # One after the other: a mask in floating point has the size of a photograph.
    inside = np.stack([rows @ mask.astype(np.float32) @ columns.T for mask in masks])
    return CERTAIN * (2 * inside - 1)
