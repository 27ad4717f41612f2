"""Thinning keeps what it should keep, and the matching is one to one and has the most pairs."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage, optimize, spatial

from talora_jax.data.pascal_context import thin as on_the_host
from talora_jax.tasks.boundaries import count_matches, pack, thin, unpack

EIGHT = np.ones((3, 3))
SEEDS = st.integers(0, 2**32)
jitted_thin = jax.jit(thin)


def blobs(seed, count=40, size=(24, 31)):
    """Maps of thick shapes with holes, [H, W, count]."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=(*size, count)), (2, 2, 0))
    return noise > rng.uniform(-0.1, 0.1, count)


def thinned(maps):
    return unpack(np.asarray(jitted_thin(pack(jnp.asarray(maps[None]))))[0], maps.shape[-1])


def test_packed_maps_come_back():
    maps = np.random.default_rng(0).random((2, 5, 7, 70)) < 0.5
    words = np.asarray(pack(jnp.asarray(maps)))
    assert words.shape == (2, 5, 7, 3)
    assert words.dtype == np.uint32
    np.testing.assert_array_equal(unpack(words, 70), maps)


def test_a_device_thins_as_the_host_does():
    maps = blobs(0)
    lines = [on_the_host.thin(maps[..., i]) for i in range(maps.shape[-1])]
    np.testing.assert_array_equal(thinned(maps), np.stack(lines, axis=-1))


@settings(deadline=None, max_examples=10)
@given(SEEDS)
def test_thin_lines_connect_what_was_connected(seed):
    maps = blobs(seed)
    lines = thinned(maps)
    assert not (lines & ~maps).any()
    np.testing.assert_array_equal(thinned(lines), lines)
    for before, after in zip(np.moveaxis(maps, -1, 0), np.moveaxis(lines, -1, 0), strict=True):
        pieces, count = ndimage.label(before, EIGHT)
        assert ndimage.label(after, EIGHT)[1] == count
        assert (np.unique(pieces[after]) == np.arange(1, count + 1)).all()
        # The same holes, the outside being one of them.
        holes = [ndimage.label(~np.pad(map_, 1))[1] for map_ in (before, after)]
        assert holes[0] == holes[1]
        # No block of 2×2 pixels is left, but where it is a crossing.
        assert ndimage.binary_opening(after, np.ones((2, 2))).sum() <= 0.05 * before.sum()


def test_a_band_becomes_its_middle_line():
    band = np.zeros((20, 30, 1), bool)
    band[5:10, 4:26] = True
    lines = thinned(band)[..., 0]
    assert lines[7, 8:22].all()
    assert (lines.sum(axis=0) <= 1).all()


def test_maps_of_a_batch_do_not_meet():
    maps = np.stack([blobs(0), blobs(1)])
    together = unpack(np.asarray(jitted_thin(pack(jnp.asarray(maps)))), maps.shape[-1])
    np.testing.assert_array_equal(together, [thinned(maps[0]), thinned(maps[1])])


@settings(deadline=None, max_examples=30)
@given(SEEDS, st.sampled_from([0.0, 0.02, 0.1, 0.4]), st.sampled_from([0.5, 1.0, 2.3, 5.0]))
def test_matches_are_those_of_least_distance_with_costly_outliers(seed, share, distance):
    rng = np.random.default_rng(seed)
    predicted, true = rng.random((2, 14, 17)) < share
    away = spatial.distance.cdist(np.argwhere(predicted), np.argwhere(true))
    cost = np.where(away <= distance, away, 100 * distance)
    rows, columns = optimize.linear_sum_assignment(cost)
    expected = np.sum(away[rows, columns] <= distance)
    assert count_matches(predicted, true, distance) == expected
    assert count_matches(true, predicted, distance) == expected


def test_matching_looks_ahead():
    """Nearest first would give the middle pixel to the wrong one and leave the last without."""
    predicted, true = np.zeros((2, 1, 12), bool)
    predicted[0, [3, 5]] = True
    true[0, [0, 4]] = True
    assert count_matches(predicted, true, 3.0) == 2
    assert count_matches(predicted, true, 2.9) == 1
    assert count_matches(predicted, ~true & False, 3.0) == 0
