"""Edges between labelled regions."""

import numpy as np
from jaxtyping import Float32, Int32


def edges_from_ids(ids: Int32[np.ndarray, "H W"]) -> Float32[np.ndarray, "H W 1"]:
    """Edges where the number of an object or class changes.

    A labelled pixel is an edge (1) when one of its four neighbours has another label, so edges are
    two pixels thick, one on either side. Short of that, it has no label (-1) when a neighbour has
    none, for there it cannot be known, and else is none (0). Pixels without a label have none (-1).

    Args:
      ids: numbers of objects or classes, -1 = no label.
    """
    # The frame's border is no edge: outside lies more of the same.
    padded = np.pad(ids, 1, mode="edge")
    neighbours = np.stack(
        [padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]]
    )
    edge = ((neighbours != ids) & (neighbours >= 0)).any(axis=0)
    unknown = (neighbours < 0).any(axis=0)
    edges = np.where(edge, 1, np.where(unknown, -1, 0))
    return np.where(ids >= 0, edges, -1).astype(np.float32)[..., None]
