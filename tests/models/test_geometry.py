"""Sizes and resizes against the two-step way and Pillow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from talora_jax.models.geometry import PIXEL_MEAN, PIXEL_STD, Geometry, resize_matrix


@pytest.mark.parametrize(
    ("original", "resized"),
    [
        ((288, 384), (768, 1024)),
        ((480, 640), (768, 1024)),
        ((1, 5000), (1, 1024)),
        ((3, 3), (1024, 1024)),
    ],
)
def test_longest_side(original, resized):
    assert Geometry.of(original, 1024).resized == resized


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(4, 16))
def test_way_back_equals_two_bilinear_steps_and_a_crop(height, width, quarter):
    square = 4 * quarter
    geometry = Geometry.of((height, width), square)
    maps = jnp.asarray(np.random.default_rng(0).normal(size=(2, quarter, quarter, 3)), jnp.float32)
    full = jax.image.resize(maps, (2, square, square, 3), "bilinear", antialias=False)
    crop = full[:, : geometry.resized[0], : geometry.resized[1]]
    two_steps = jax.image.resize(crop, (2, height, width, 3), "bilinear", antialias=False)
    np.testing.assert_allclose(geometry.from_padded(maps), two_steps, rtol=0, atol=1e-5)


def test_native_aspect_pads_to_whole_patches():
    assert Geometry.of((288, 384), 1024).padded == (1024, 1024)
    assert Geometry.of((288, 384), 1024, 16).padded == (768, 1024)
    assert Geometry.of((100, 33), 1024, 16).padded == (1024, 352)
    maps = jnp.full((1, 256, 88, 2), 3.0)
    np.testing.assert_allclose(Geometry.of((100, 33), 1024, 16).from_padded(maps), 3, rtol=1e-6)


def test_to_padded_resizes_normalises_and_pads_in_this_order():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (60, 80, 3), np.uint8)
    geometry = Geometry.of((60, 80), 32)
    square = np.asarray(geometry.to_padded(jnp.asarray(image / 255, jnp.float32)))
    # Channels as 32-bit floats, which Pillow does not round to whole grey values.
    channels = [Image.fromarray(image[..., c].astype(np.float32)) for c in range(3)]
    pillow = np.stack([c.resize((32, 24), Image.Resampling.BILINEAR) for c in channels], -1)
    expected = (pillow - np.array(PIXEL_MEAN)) / np.array(PIXEL_STD)
    np.testing.assert_allclose(square[:24], expected, rtol=0, atol=1e-5)
    assert not square[24:].any()


def test_rows_of_a_resize_are_averages():
    for size, new_size, antialias in ((5, 13, False), (13, 5, False), (13, 5, True)):
        matrix = resize_matrix(size, new_size, antialias=antialias)
        np.testing.assert_allclose(matrix.sum(1), 1)
        assert (matrix >= 0).all()
