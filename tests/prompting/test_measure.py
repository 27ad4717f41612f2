"""Where the clicks of an evaluation lie, and what answers without a model are worth."""

import numpy as np

from talora_jax.models.prompt_encoder import ABSENT, BACKGROUND, FOREGROUND
from talora_jax.prompting import measure


def disc(x, y, radius, size=(40, 50)):
    rows, columns = np.ogrid[: size[0], : size[1]]
    return np.hypot(columns - x, rows - y) <= radius


def test_a_click_is_centred():
    assert measure.centre(disc(20, 15, 6))[0] == (20, 15)
    # The wide part of a drop, not its middle; and the frame is an edge.
    drop = disc(10, 20, 8)
    drop[19:22, 10:45] = True
    assert measure.centre(drop)[0] == (10, 20)
    half = disc(0, 20, 10)
    (x, y), depth = measure.centre(half)
    assert y == 20 and 4 <= x <= 6 and 5 <= depth <= 7
    assert measure.centre(np.zeros((4, 4), bool)) == ((0, 0), 0.0)


def test_the_next_click_corrects_the_larger_mistake():
    mask = disc(12, 12, 9)
    assert measure.next_click(mask, mask) == ((0, 0), ABSENT)
    missed, label = measure.next_click(np.zeros_like(mask), mask)
    assert missed == (12, 12) and label == FOREGROUND
    too_much, label = measure.next_click(mask | disc(35, 25, 12), mask)
    assert too_much == (35, 25) and label == BACKGROUND


def test_a_box_filled():
    mask = np.zeros((9, 9), bool)
    mask[2:6, 3:7] = True
    np.testing.assert_array_equal(measure.box_around(mask), [3, 2, 7, 6])
    assert measure.box_filled(mask) == 1
    mask[2, 3] = False
    assert measure.box_filled(mask) == 15 / 16


def test_discs_are_measured_one_by_one():
    mask, click = disc(20, 15, 7) | disc(30, 15, 3), (20, 15)
    found = measure.discs(mask, click, side=50)
    for radius, iou in zip(50 * measure.RADII, found, strict=True):
        drawn = disc(*click, radius)
        np.testing.assert_allclose(iou, (drawn & mask).sum() / (drawn | mask).sum())
