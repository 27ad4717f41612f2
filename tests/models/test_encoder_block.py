"""A block of the image encoder, whole and in parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks.flops import count_flops
from talora_jax.models import encoder_block
from talora_jax.models.adapters import AdapterConfig
from talora_jax.models.encoder_block import Block
from talora_jax.models.encoder_config import ImageEncoderConfig
from talora_jax.sharding import abstract_mesh

ENCODER = ImageEncoderConfig(
    image_size=40, patch_size=8, width=8, heads=2, stages=1, window_blocks=0, window=2
)


@pytest.fixture
def program():
    """A block's function of tokens and a key, and two images' 50 tokens."""
    block = Block(ENCODER, AdapterConfig("none"), 1, 0, "xla", dtype=jnp.float32, rngs=nnx.Rngs(0))
    graphdef, state = nnx.split(block)
    x = jax.random.normal(jax.random.key(1), (1, 2, 5, 5, 8))
    # Anew for each test: what JAX has traced does not see another number of tokens.
    return lambda x, key=None: nnx.merge(graphdef, state)(x, jnp.zeros(1, int), key), x


@pytest.mark.parametrize("tokens", [25, 16, 7])
def test_an_mlp_of_some_tokens_after_others_is_that_of_all(program, monkeypatch, tokens):
    function, x = program
    whole = jax.jit(function)(x)
    monkeypatch.setattr(encoder_block, "MLP_TOKENS", tokens)
    parted = jax.jit(lambda x: function(x))(x)
    np.testing.assert_allclose(parted, whole, rtol=0, atol=1e-6)
    gradient = jax.grad(lambda x: jnp.square(function(x)).sum())(x)
    monkeypatch.undo()
    expected = jax.grad(lambda x: jnp.square(function(x)).sum())(x)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-5)


def test_it_is_so_on_a_cpu_alone_where_nothing_trains_and_nothing_is_shared(program, monkeypatch):
    function, x = program
    monkeypatch.setattr(encoder_block, "MLP_TOKENS", 25)

    def loops(*given, platform="cpu"):
        traced = jax.jit(lambda *given: function(*given)).trace(*given)
        return traced.lower(lowering_platforms=(platform,)).as_text().count("stablehlo.while")

    assert loops(x) == 1
    assert loops(x, platform="tpu") == 0
    assert loops(x, jax.random.key(0)) == 0
    assert loops(x[:, :1]) == 0
    with jax.sharding.use_abstract_mesh(abstract_mesh(2, 1, 1)):
        assert loops(x) == 0


def test_an_adapter_is_merged_where_nothing_trains_and_that_takes_fewer_operations():
    adapter = AdapterConfig(ranks=(4, 4, 2), dropout=0.0)

    def operations(grid, key=None, dtype=jnp.float32):
        block = Block(ENCODER, adapter, 3, 0, "xla", dtype=dtype, rngs=nnx.Rngs(0))
        graphdef, state = nnx.split(block)
        tokens = jax.ShapeDtypeStruct((2, 1, *grid, 8), dtype)
        task_ids = jnp.array([2, 0])
        return count_flops(lambda x: nnx.merge(graphdef, state)(x, task_ids, key), tokens)

    key = jax.random.key(0)
    assert operations((5, 5)) < operations((5, 5), key)
    assert operations((1, 5)) == operations((1, 5), key)  # fewer tokens than channels
    assert operations((5, 5), dtype=jnp.bfloat16) == operations((5, 5), key, jnp.bfloat16)
    with jax.sharding.use_abstract_mesh(abstract_mesh(1, 1, 2)):
        assert operations((5, 5)) == operations((5, 5), key)
