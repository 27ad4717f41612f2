"""Small holes of a mask filled, small islands taken away.

Source: `remove_small_regions` of `segment_anything/utils/amg.py`. What differs: SciPy's labelling
takes OpenCV's place. Regions are 8-connected, holes and islands alike.
"""

import numpy as np
import scipy.ndimage
from jaxtyping import Bool

_NEIGHBOURS = np.ones((3, 3), bool)


def without_small_regions(
    mask: Bool[np.ndarray, "H W"], min_area: float
) -> tuple[Bool[np.ndarray, "H W"], bool]:
    """The mask without holes and islands of fewer than so many pixels, and whether it had any.

    If there are only islands, the largest stays.
    """
    holes, areas = _regions(~mask)
    small_holes = areas < min_area
    small_holes[0] = False
    filled = mask | small_holes[holes] if small_holes.any() else mask

    islands, areas = _regions(filled)
    large = areas >= min_area
    large[0] = False
    if large[1:].all():
        return filled, bool(small_holes.any())
    if not large.any():
        large[1 + areas[1:].argmax()] = True
    return large[islands], True


def _regions(mask):
    """Each pixel's region, 0 off the mask, and the regions' areas by number."""
    regions, _ = scipy.ndimage.label(mask, _NEIGHBOURS)
    return regions, np.bincount(regions.ravel(), minlength=1)
