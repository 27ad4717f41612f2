"""Prompts that are drawn lie where they should, as often as they should."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from talora_jax.models.prompt_encoder import (
    ABSENT,
    BACKGROUND,
    FOREGROUND,
    LOWER_RIGHT,
    NOT_A_POINT,
    UPPER_LEFT,
)
from talora_jax.prompting import draw


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 1))
def test_a_random_pixel_lies_in_its_region(seed, density):
    region = np.random.default_rng(seed).random((3, 2, 7, 9)) < density
    xy, exists = draw.random_pixel(jax.random.key(seed), jnp.asarray(region))
    np.testing.assert_array_equal(exists, region.any((-2, -1)))
    x, y = np.asarray(xy, int)[..., 0], np.asarray(xy, int)[..., 1]
    for i in np.ndindex(3, 2):
        assert region[(*i, y[i], x[i])] == exists[i]


def test_every_pixel_of_a_region_is_as_likely():
    region = np.zeros((5, 6), bool)
    region[0, 2] = region[3, :4] = region[4, 5] = True
    many = jnp.broadcast_to(jnp.asarray(region), (6000, 5, 6))
    xy, _ = draw.random_pixel(jax.random.key(0), many)
    counts = np.zeros((5, 6), int)
    np.add.at(counts, (np.asarray(xy[:, 1], int), np.asarray(xy[:, 0], int)), 1)
    assert (counts > 0).sum() == 6
    # 1000 each; six standard deviations.
    np.testing.assert_allclose(counts[region], 1000, atol=180)


def test_the_box_of_a_mask():
    masks = np.zeros((2, 5, 6), bool)
    masks[0, 1:3, 2:6] = True
    np.testing.assert_array_equal(draw.box_of(jnp.asarray(masks)), [[2, 1, 6, 3], [0, 0, 0, 0]])


def test_a_box_is_noisy_by_a_tenth_of_its_side_and_a_few_pixels_at_most():
    small = jnp.tile(jnp.array([40.0, 40.0, 50.0, 60.0]), (4000, 1))
    moved = np.asarray(draw.noisy_box(jax.random.key(0), small, 1024) - small)
    np.testing.assert_allclose(moved.std(0), [1, 2, 1, 2], rtol=0.1)
    large = jnp.tile(jnp.array([100.0, 100.0, 900.0, 900.0]), (4000, 1))
    moved = np.asarray(draw.noisy_box(jax.random.key(0), large, 1024) - large)
    assert np.abs(moved).max() == 20
    at_the_edge = draw.noisy_box(jax.random.key(0), jnp.tile(jnp.array([0.0, 0, 9, 9]), (99, 1)), 9)
    assert at_the_edge.min() == 0 and at_the_edge.max() == 9


def test_first_prompts_are_clicks_and_boxes_of_their_masks():
    masks = np.zeros((400, 16, 16), bool)
    masks[:, 4:9, 6:12] = True
    prompts = draw.first_prompts(jax.random.key(0), jnp.asarray(masks), 16)
    is_box = np.asarray(prompts.labels[:, 0]) == UPPER_LEFT
    assert 150 < is_box.sum() < 250
    np.testing.assert_array_equal(
        np.unique(prompts.labels[is_box], axis=0), [[UPPER_LEFT, LOWER_RIGHT]]
    )
    np.testing.assert_array_equal(
        np.unique(prompts.labels[~is_box], axis=0), [[FOREGROUND, NOT_A_POINT]]
    )
    x, y = np.asarray(prompts.points[~is_box, 0]).T
    assert x.min() == 6 and x.max() == 11 and y.min() == 4 and y.max() == 8


def test_a_corrective_click_lies_where_the_answer_is_wrong():
    mask = np.zeros((3, 4, 4), bool)
    mask[0, 1, 2] = True  # missed
    answer = np.zeros((3, 4, 4), bool)
    answer[1, 3, 0] = True  # too much
    answer[2, 0, 3] = True  # outside of the image, where nothing is wrong
    inside = np.ones((1, 4, 4), bool)
    inside[:, :, 3] = False
    xy, labels = draw.corrective_click(
        jax.random.key(0), jnp.asarray(answer), jnp.asarray(mask), jnp.asarray(inside), 4
    )
    np.testing.assert_array_equal(labels, [FOREGROUND, BACKGROUND, ABSENT])
    # The middle of the 4×4 pixels, half a pixel back.
    np.testing.assert_array_equal(xy[:2], [[9.5, 5.5], [1.5, 13.5]])


def test_a_click_takes_its_place_among_the_points():
    prompts = draw.with_room(draw.click_prompt(jnp.zeros((2, 3, 2))), 2)
    assert prompts.points.shape == (2, 3, 4, 2)
    np.testing.assert_array_equal(prompts.labels[..., 2:], ABSENT)
    clicked = draw.with_click(prompts, 3, jnp.ones((2, 3, 2)), jnp.full((2, 3), BACKGROUND))
    labels = [FOREGROUND, NOT_A_POINT, ABSENT, BACKGROUND]
    np.testing.assert_array_equal(clicked.labels[0, 0], labels)
    np.testing.assert_array_equal(clicked.points[..., 3, :], 1)
    np.testing.assert_array_equal(clicked.points[..., :3, :], 0)
