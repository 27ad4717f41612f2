"""Boxes around masks: which of them mean the same thing, and which were cut off by a crop.

Source: `batched_mask_to_box` and `is_box_near_crop_edge` of `segment_anything/utils/amg.py`, and
torchvision's `nms`. A box is (x0, y0, x1, y1), and as there its last column and row are those of
the last pixels inside: a mask of one pixel has a box of no area.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

# Pixels from an edge of a crop within which a box counts as cut off by it.
NEAR_EDGE = 20


def box_of(mask: Bool[np.ndarray, "H W"]) -> Int[np.ndarray, "4"]:
    """The first and the last column and row of a mask; zeros for none."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    if not len(columns):
        return np.zeros(4, int)
    return np.array([columns[0], rows[0], columns[-1], rows[-1]])


def is_cut_off(
    box: Int[np.ndarray, "4"], crop: Int[np.ndarray, "4"], size: tuple[int, int]
) -> bool:
    """Whether a box ends at an edge of its crop that is no edge of the image.

    Args:
      box, crop: both in pixels of the image.
      size: (H, W) of the image.
    """
    whole = np.array([0, 0, *size[::-1]])
    near_crop, near_image = (np.abs(box - edges) <= NEAR_EDGE for edges in (crop, whole))
    return bool((near_crop & ~near_image).any())


def distinct(
    boxes: Int[np.ndarray, "N 4"], scores: Float[np.ndarray, "N"], threshold: float
) -> Int[np.ndarray, "n"]:
    """Non-maximum suppression: the indices of those boxes that stay, the best first.

    A box goes if its IoU with a better one that stays is above the threshold; of equal scores the
    earlier is the better one.
    """
    # Torchvision's precision: an IoU in float32 is compared with a threshold in float64.
    x0, y0, x1, y1 = boxes.astype(np.float32).reshape(-1, 4).T
    areas, threshold = (x1 - x0) * (y1 - y0), np.float64(threshold)
    left = np.argsort(-scores, kind="stable")
    kept = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        width = np.minimum(x1[best], x1[left]) - np.maximum(x0[best], x0[left])
        height = np.minimum(y1[best], y1[left]) - np.maximum(y0[best], y0[left])
        both = np.maximum(width, 0) * np.maximum(height, 0)
        either = areas[best] + areas[left] - both
        # Two boxes of no area are two things, wherever they lie.
        iou = np.divide(both, either, out=np.zeros_like(both), where=either > 0)
        left = left[~(iou > threshold)]
    return np.array(kept, int)
