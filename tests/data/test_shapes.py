"""Pasted shapes are objects of their own."""

import numpy as np

from talora_jax.data.shapes import paste_shapes


def sample():
    return {
        "image": np.full((60, 80, 3), 128, np.uint8),
        "instance": np.zeros((60, 80), np.int32),
        "semantic": np.zeros((60, 80), np.int32),
        "depth": np.ones((60, 80, 1), np.float32),
    }


def test_a_shape_has_a_number_and_no_other_label():
    for seed in range(20):
        before = sample()
        after = paste_shapes(before, np.random.default_rng(seed), 5)
        pasted = after["instance"] > 0
        assert after["instance"].max() <= 5
        np.testing.assert_array_equal(after["semantic"] == -1, pasted)
        np.testing.assert_array_equal(after["depth"][..., 0] == 0, pasted)
        # It is seen, and so is its shadow; the sample that was given stays.
        changed = (after["image"] != 128).any(-1)
        assert (changed & pasted).sum() >= 0.9 * pasted.sum()
        np.testing.assert_array_equal(before["image"], 128)
        again = paste_shapes(sample(), np.random.default_rng(seed), 5)
        np.testing.assert_array_equal(again["image"], after["image"])


def test_shapes_are_of_many_sizes():
    areas = [
        (paste_shapes(sample(), np.random.default_rng(seed), 1)["instance"] == 1).sum()
        for seed in range(200)
    ]
    assert 60 < sum(area == 0 for area in areas) < 140  # none or one
    areas = [area for area in areas if area]
    assert min(areas) < 50 and max(areas) > 600
