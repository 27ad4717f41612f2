"""A convolution as a product of patches is the convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from talora_jax.models.patch_conv import PatchConv


@pytest.mark.parametrize("patch", [1, 2, 3])
@pytest.mark.parametrize("use_bias", [True, False])
def test_it_is_the_convolution_and_so_are_its_gradients(patch, use_bias):
    ours = PatchConv(3, 5, patch, use_bias=use_bias, rngs=nnx.Rngs(0))
    theirs = nnx.Conv(
        3, 5, (patch, patch), (patch, patch), padding="VALID", use_bias=use_bias, rngs=nnx.Rngs(1)
    )
    if use_bias:
        ours.bias[...] = jnp.arange(5.0)
    nnx.update(theirs, nnx.state(ours))  # of one structure
    x = jax.random.normal(jax.random.key(0), (2, 4, 2 * patch, 3 * patch, 3))

    def value_and_gradients(conv):
        graphdef, state = nnx.split(conv)

        def loss(state, x):
            return jnp.sum(jnp.sin(nnx.merge(graphdef, state)(x)))

        return conv(x), jax.grad(loss, argnums=(0, 1))(state, x)

    pairs = (jax.tree.leaves(value_and_gradients(conv)) for conv in (ours, theirs))
    for a, b in zip(*pairs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_it_computes_in_its_dtype():
    conv = PatchConv(3, 5, 2, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert conv(jnp.ones((1, 4, 4, 3))).dtype == jnp.bfloat16
    assert conv.kernel[...].dtype == jnp.float32
