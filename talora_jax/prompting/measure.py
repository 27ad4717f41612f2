"""How good a promptable model is: the clicks it is asked with, and what answers without a model are
worth. In NumPy, on the host: distances in a mask are no work for an accelerator.

The protocol is that of interactive segmentation (Sofiiuk et al. 2021, RITM): a click lies where it
is the farthest from the edge of what is wrong, in the larger of what was missed and what was said
too much.
"""

import numpy as np
import scipy.ndimage
from jaxtyping import Bool, Float

from talora_jax.models.prompt_encoder import ABSENT, BACKGROUND, FOREGROUND

# Radii in parts of the image's longest side, of which the best one is the best fixed disc.
RADII = np.geomspace(0.01, 0.5, 40)


def centre(region: Bool[np.ndarray, "Y X"]) -> tuple[tuple[int, int], float]:
    """The (x, y) of the pixel that is the farthest from the region's edge, and how far it is.

    The frame's border is an edge. Of an empty region, the upper left pixel, and 0.
    """
    rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
    if not len(rows):
        return (0, 0), 0.0
    top, left = rows[0], columns[0]
    inner = np.pad(region[top : rows[-1] + 1, left : columns[-1] + 1], 1)
    distance = scipy.ndimage.distance_transform_edt(inner)
    y, x = np.unravel_index(distance.argmax(), distance.shape)
    return (int(x - 1 + left), int(y - 1 + top)), float(distance[y, x])


def next_click(
    answer: Bool[np.ndarray, "Y X"], mask: Bool[np.ndarray, "Y X"]
) -> tuple[tuple[int, int], int]:
    """Where an answer is corrected, (x, y), and the label of this click; ABSENT if it is right."""
    missed, missed_depth = centre(mask & ~answer)
    too_much, too_much_depth = centre(answer & ~mask)
    if not missed_depth and not too_much_depth:
        return (0, 0), ABSENT
    if missed_depth >= too_much_depth:
        return missed, FOREGROUND
    return too_much, BACKGROUND


def box_around(mask: Bool[np.ndarray, "Y X"]) -> Float[np.ndarray, "4"]:
    """The edges x0, y0, x1, y1 of the smallest box."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def box_filled(mask: Bool[np.ndarray, "Y X"]) -> float:
    """The IoU of a mask and the box around it, filled."""
    x0, y0, x1, y1 = box_around(mask)
    return float(mask.sum() / ((x1 - x0) * (y1 - y0)))


def discs(
    mask: Bool[np.ndarray, "Y X"], click: tuple[int, int], side: int
) -> Float[np.ndarray, "r"]:
    """The IoUs of a mask and discs about a click, one for each of `RADII` times a side."""
    y, x = np.ogrid[: mask.shape[0], : mask.shape[1]]
    distance = np.hypot(x - click[0], y - click[1])
    radii = RADII * side
    inside, hit = (
        np.sort(at, axis=None).searchsorted(radii, "right") for at in (distance, distance[mask])
    )
    return hit / (mask.sum() + inside - hit)
