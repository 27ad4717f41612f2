"""Crops in layers, and grids of points."""

import numpy as np

from talora_jax.inference.masks.crops import crops_of, point_grid


def test_crops_overlap_and_cover_the_image():
    crops = crops_of((1000, 1500), 2, 512 / 1500)
    assert [crop.layer for crop in crops] == [0] + [1] * 4 + [2] * 16
    boxes = [crop.box.tolist() for crop in crops]
    # Overlaps of 341 and 170 pixels; from left to right, in each column from above.
    assert boxes[:5] == [
        [0, 0, 1500, 1000],
        [0, 0, 921, 671],
        [0, 330, 921, 1000],
        [580, 0, 1500, 671],
        [580, 330, 1500, 1000],
    ]
    assert boxes[5] == [0, 0, 503, 378]
    for layer in (1, 2):
        seen = np.zeros((1000, 1500), int)
        for crop in crops:
            x0, y0, x1, y1 = crop.box
            seen[y0:y1, x0:x1] += crop.layer == layer
        assert seen.min() == 1


def test_a_tiny_image_has_no_empty_crops():
    assert all(crop.area > 0 for crop in crops_of((1, 5), 3, 0.3))


def test_points_are_evenly_spaced():
    assert point_grid(1).tolist() == [[0.5, 0.5]]
    assert point_grid(2).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
