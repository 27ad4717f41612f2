"""What the encoder's backward pass computes again."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from talora_jax.models.adapters import AdapterConfig
from talora_jax.models.encoder_config import ImageEncoderConfig
from talora_jax.models.image_encoder import ImageEncoder
from talora_jax.models.msam import trainable
from talora_jax.models.remat import REMAT

ENCODER = ImageEncoderConfig(
    image_size=32, patch_size=8, width=8, heads=2, stages=1, window_blocks=1, window=2
)


def count(jaxpr, name):
    """How often a primitive stands in a program, loops and all."""
    inner = [x for eqn in jaxpr.eqns for x in jax.tree.leaves(list(eqn.params.values()))]
    inner = [getattr(x, "jaxpr", x) for x in inner]
    here = sum(eqn.primitive.name == name for eqn in jaxpr.eqns)
    return here + sum(count(x, name) for x in inner if hasattr(x, "eqns"))


@pytest.mark.parametrize("remat", REMAT)
def test_softmaxes_are_computed_again_with_whole_blocks_alone(remat):
    config = AdapterConfig(ranks=(2, 2, 1), dropout=0.0)
    encoder = ImageEncoder(ENCODER, config, 1, remat=remat, rngs=nnx.Rngs(0))
    graphdef, learnt, frozen = nnx.split(encoder, trainable(config), ...)

    def loss(learnt):
        encoder = nnx.merge(graphdef, learnt, frozen)
        return encoder(jnp.ones((1, 32, 32, 3)), (0,), key=jax.random.key(0)).sum()

    # One block of windows and a global one: forward, in the gradient, and in the block before it.
    maxima = count(jax.make_jaxpr(jax.grad(loss))(learnt).jaxpr, "reduce_max")
    per_softmax = count(jax.make_jaxpr(loss)(learnt).jaxpr, "reduce_max") / 2
    assert maxima == per_softmax * 2 * (3 if remat == "block" else 2)
