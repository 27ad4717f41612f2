"""Morphological thinning of a mask to lines one pixel wide."""

import numpy as np
from jaxtyping import Bool


def thin(mask: Bool[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Peels pixels off a mask until nothing can go without breaking it; connected stays connected.

    Algorithm A1 of Guo and Hall, "Parallel thinning with two-subiteration algorithms", CACM 1989,
    as MATLAB's `bwmorph(mask, 'thin')` and scikit-image's `thin` word it: a pixel goes when (G1)
    its neighbourhood holds one connected piece, (G2) it is neither an end nor inside, and (G3) it
    lies on the side that this half of the pass peels: above and to the right, then opposite.
    Outside the frame there is nothing.
    """
    thinned = np.pad(mask, 1)
    while True:
        rows, columns = np.nonzero(thinned)
        before = len(rows)
        for half in (0, 4):
            rows, columns = _peel(thinned, rows, columns, half)
        if len(rows) == before:
            return thinned[1:-1, 1:-1]


# Neighbours x1 … x8 of a pixel as (row, column) steps: east, north-east, and on counter-clockwise.
_RING = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))


def _peel(padded, rows, columns, half):
    """Removes, all at once, what this half of a pass may; returns the pixels that are left."""
    x = [padded[rows + down, columns + right] for down, right in _RING]
    # b_i: from the even neighbour x_{2i} or the one after it, a piece begins next to a gap.
    pieces = sum(~x[k] & (x[k + 1] | x[(k + 2) % 8]) for k in (0, 2, 4, 6))
    pairs_after = sum(x[k] | x[k + 1] for k in (0, 2, 4, 6))
    pairs_before = sum(x[k + 1] | x[(k + 2) % 8] for k in (0, 2, 4, 6))
    fewest = np.minimum(pairs_after, pairs_before)
    # The second half is the first turned by 180 degrees: four neighbours further round the ring.
    x = x[half:] + x[:half]
    side = (x[1] | x[2] | ~x[7]) & x[0]
    goes = (pieces == 1) & (fewest >= 2) & (fewest <= 3) & ~side
    padded[rows[goes], columns[goes]] = False
    return rows[~goes], columns[~goes]
