"""No array of a model has more than six axes, which is all that some runtimes know."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from talora_jax.models.adapters import AdapterConfig
from talora_jax.models.msam import MSam
from talora_jax.models.sam import Sam, SamConfig


def ranks(program):
    """The ranks of all arrays of a program and of those that it calls."""
    for equation in program.eqns:
        yield from (x.aval.ndim for x in equation.outvars)
        for value in jax.tree.leaves(
            tuple(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from ranks(inner)


# Of a few blocks whose windows are padded, and of a grid whose attention is tiled.
@pytest.mark.parametrize("size", [SamConfig.tiny, SamConfig.vit_b])
def test_a_sam_and_a_model_of_tasks(size):
    sam = nnx.eval_shape(lambda: Sam(size(), rngs=nnx.Rngs(0)))
    adapter = AdapterConfig(ranks=(4, 4, 2))
    model = nnx.eval_shape(lambda: MSam(size(), adapter, {"a": 2, "b": 1}, rngs=nnx.Rngs(0)))
    side, grid = sam.config.encoder.image_size, sam.config.encoder.grid
    images = jax.ShapeDtypeStruct((2, side, side, 3), jnp.float32)
    embeddings = jax.ShapeDtypeStruct((2, grid, grid, sam.config.decoder.dim), jnp.float32)
    points = jax.ShapeDtypeStruct((2, 3, 4, 2), jnp.float32)
    labels = jax.ShapeDtypeStruct((2, 3, 4), jnp.int32)
    for module, call, given in (
        (model, lambda m, x: m(x), (images,)),
        (sam, lambda m, x: m.encode(x), (images,)),
        (sam, lambda m, *x: m.decode(*x), (embeddings, points, labels)),
    ):
        graphdef, state = nnx.split(module)
        program = jax.make_jaxpr(
            lambda state, *x, graphdef=graphdef, call=call: call(nnx.merge(graphdef, state), *x)
        )(state, *given)
        found = list(ranks(program.jaxpr))
        assert max(found) <= 6 and len(found) > 100
