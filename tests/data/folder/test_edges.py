"""Edges between regions."""

import numpy as np

from talora_jax.data.folder.edges import edges_from_ids


def test_edges_say_nothing_where_labels_do_not():
    ids = np.array([[1, 1, 2, 2, -1, 2, 3]], np.int32)
    np.testing.assert_array_equal(edges_from_ids(ids)[0, :, 0], [0, 1, 1, -1, -1, 1, 1])
