"""The adapters' dropout: how much is dropped, what the rest becomes, and whose mask it is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from talora_jax.models.adapters import AdapterConfig, make_adapter

WIDTH = 7  # odd: not every word gives two entries


@functools.cache
def adapter(dropout):
    """One whose update is its input, three times over."""
    config = AdapterConfig("lora_shared", (WIDTH, 1, 1), scale=1.0, dropout=dropout)
    found = make_adapter(config, WIDTH, 3, rngs=nnx.Rngs(0))
    found.A[...] = jnp.eye(WIDTH)
    found.B[...] = jnp.tile(jnp.eye(WIDTH), (3, 1))
    return found


def dropped(dropout, key=0, tasks=(0,), shape=(2, 60, 70)):
    """What dropout leaves of ones: [tasks, *shape, WIDTH]."""
    x = jnp.ones((len(tasks), *shape, WIDTH))
    return np.asarray(adapter(dropout)(x, jnp.array(tasks), jax.random.key(key)))[..., :WIDTH]


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_so_many_are_zero_and_the_mean_stays(rate):
    found = dropped(rate)
    share = np.mean(found == 0)
    deviation = np.sqrt(rate * (1 - rate) / found.size)
    assert abs(share - rate) < 5 * deviation
    np.testing.assert_allclose(found[found != 0], 1 / (1 - rate), rtol=1e-4)


def test_entries_are_independent():
    found = (dropped(0.5) != 0).reshape(-1, WIDTH) * 2.0 - 1
    # Of neighbours along a row, which share a word, and of one entry in neighbouring tokens.
    others = [np.mean(found[:, i] * found[:, j]) for i in range(WIDTH) for j in range(i)]
    others += [np.mean(found[1:, i] * found[:-1, i]) for i in range(WIDTH)]
    assert np.abs(others).max() < 5 / np.sqrt(len(found))


def test_a_mask_is_its_tasks_and_its_keys():
    one, other = dropped(0.5, tasks=(0, 2))
    assert np.mean(one != other) > 0.4
    np.testing.assert_array_equal(dropped(0.5, tasks=(2,))[0], other)
    assert np.mean(dropped(0.5, key=1)[0] != one) > 0.4


def test_without_a_key_or_a_rate_nothing_is_dropped():
    np.testing.assert_array_equal(dropped(0.0), 1)
    x = jnp.ones((1, 2, WIDTH))
    np.testing.assert_array_equal(adapter(0.5)(x, jnp.array([0]))[..., :WIDTH], x)
    # The least that is not none.
    assert np.isfinite(dropped(1 - 1e-9)).all()
