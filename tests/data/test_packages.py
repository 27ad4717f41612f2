"""Boxes and cans are whole, of the size that is asked for, and look like printed things."""

import numpy as np

from talora_jax.data.packages import draw_package


def drawn(seed):
    y, x = (np.mgrid[-48:49, -48:49] / 30).astype(np.float32)
    return draw_package(np.random.default_rng(seed), y, x)


def test_a_package_is_one_piece_about_the_middle():
    areas = []
    for seed in range(60):
        inside, colour = drawn(seed)
        assert inside[46:51, 46:51].any(), seed
        assert not inside[[0, -1]].any() and not inside[:, [0, -1]].any(), seed
        # Faces meet without a gap: along a row or a column there is one run and no hole.
        edges = np.diff(inside.astype(int), axis=1)
        assert ((edges == 1).sum(1) <= 1).all(), seed
        assert np.isfinite(colour).all() and (colour[~inside] == 0).all()
        areas.append(inside.sum() / 30**2)
    assert 0.5 < min(areas) and 2 * min(areas) < max(areas) < 4.5


def test_faces_differ_more_than_a_plain_thing_does():
    deviations = []
    for seed in range(40):
        inside, colour = drawn(seed)
        deviations.append(colour[inside].std(0).mean())
    assert np.median(deviations) > 25
