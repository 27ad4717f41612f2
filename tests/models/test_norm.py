"""LayerNorms and softmaxes without axes of one entry."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from talora_jax.models.keys import Keys
from talora_jax.models.norm import LayerNorm, without_unit_axes


@pytest.fixture
def norm():
    norm = LayerNorm(8, dtype=jnp.float32, rngs=Keys(0))
    rng = np.random.default_rng(0)
    norm.scale[...], norm.bias[...] = rng.normal(size=(2, 8)).astype(np.float32)
    return norm


@pytest.mark.parametrize("shape", [(8,), (1, 8), (3, 8), (1, 1, 4, 3, 8), (2, 1, 4, 1, 8)])
def test_axes_of_one_entry_change_nothing(norm, shape):
    x = jnp.asarray(np.random.default_rng(1).normal(2, 3, size=shape), jnp.float32)
    mean, variance = x.mean(-1, keepdims=True), jnp.var(x, -1, keepdims=True)
    expected = (x - mean) / np.sqrt(variance + 1e-6) * norm.scale[...] + norm.bias[...]
    assert norm(x).shape == shape
    np.testing.assert_allclose(norm(x), expected, rtol=0, atol=1e-5)


def test_a_variance_small_beside_the_mean_is_exact(norm):
    x = 1000 + jnp.asarray(np.random.default_rng(1).normal(size=(1, 5, 8)), jnp.float32)
    expected = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
    found = (norm(x) - norm.bias[...]) / norm.scale[...]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3)


def test_no_sum_of_the_backward_pass_has_axes_of_one_entry_before_the_last(norm):
    graphdef, state = nnx.split(norm)

    def gradients(state, x):
        return jax.vjp(lambda state, x: nnx.merge(graphdef, state)(x), state, x)[1](x)

    jaxpr = jax.make_jaxpr(gradients)(state, jnp.ones((1, 1, 4, 3, 8)))
    summed = [e.invars[0].aval.shape for e in jaxpr.eqns if e.primitive.name == "reduce_sum"]
    assert len(summed) > 5
    assert all(1 not in shape[:-1] for shape in summed)


def test_a_function_along_any_axis():
    x = np.random.default_rng(0).normal(size=(1, 3, 1, 4)).astype(np.float32)
    for axis in (0, 1, 2, 3, -1, -2, -3, -4):
        found = without_unit_axes(jax.nn.softmax, jnp.asarray(x), axis)
        np.testing.assert_allclose(found, jax.nn.softmax(x, axis), rtol=0, atol=1e-7)
