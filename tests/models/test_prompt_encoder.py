"""Prompts to tokens, against the formulas written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from talora_jax.models.prompt_encoder import (
    ABSENT,
    BACKGROUND,
    FOREGROUND,
    LOWER_RIGHT,
    NOT_A_POINT,
    UPPER_LEFT,
    PromptEncoder,
)


@pytest.fixture(scope="module")
def encoder():
    return PromptEncoder(32, 128, rngs=nnx.Rngs(0))


def fourier(encoder, x, y):
    """The position of one pixel's centre on a square of 128."""
    unit = 2 * (np.array([x + 0.5, y + 0.5]) / 128) - 1
    angles = 2 * np.pi * unit @ np.asarray(encoder.positions.gaussian_matrix[...], np.float64)
    return np.concatenate([np.sin(angles), np.cos(angles)])


@pytest.mark.parametrize(
    ("label", "row"), [(BACKGROUND, 0), (FOREGROUND, 1), (UPPER_LEFT, 2), (LOWER_RIGHT, 3)]
)
def test_a_point_is_its_position_and_its_kind(encoder, label, row):
    token = encoder.points(jnp.array([[10.0, 99.5]]), jnp.array([label]))[0]
    expected = fourier(encoder, 10, 99.5) + encoder.point_embeddings[row]
    np.testing.assert_allclose(token, expected, rtol=0, atol=1e-5)


def test_not_a_point_has_no_position(encoder):
    tokens = encoder.points(jnp.array([[0.0, 0.0], [77.0, 3.0]]), jnp.full(2, NOT_A_POINT))
    expected = np.tile(encoder.not_a_point_embed[...], (2, 1))
    np.testing.assert_array_equal(tokens, expected)


def test_labels_do_not_touch_each_other(encoder):
    xy = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    labels = jnp.array([FOREGROUND, ABSENT, UPPER_LEFT])
    together = encoder.points(xy, labels)
    for i in range(3):
        alone = encoder.points(xy[i : i + 1], labels[i : i + 1])[0]
        np.testing.assert_allclose(together[i], alone, rtol=0, atol=1e-5)


def test_a_mask_is_embedded_at_a_quarter_of_its_side(encoder):
    """Stride equals kernel: an embedding sees its own 4×4 pixels of the mask and no others."""
    masks = jax.random.normal(jax.random.key(1), (2, 3, 32, 24))
    dense = encoder.masks(masks)
    assert dense.shape == (2, 3, 8, 6, 32)
    changed = encoder.masks(masks.at[1, 2, 4:8, 8:12].add(1.0))
    where = np.argwhere(np.abs(changed - dense).max(-1) > 0)
    np.testing.assert_array_equal(where, [[1, 2, 1, 2]])
