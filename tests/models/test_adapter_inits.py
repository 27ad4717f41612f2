"""How TA-LoRA's factors start, and how large an update is beside its kernel."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from talora_jax.errors import UserError
from talora_jax.models.adapters import INITS, KINDS, AdapterConfig, make_adapter
from talora_jax.models.msam import MSam

WIDTH = 32


def adapter_of(kind="talora", **fields):
    return make_adapter(AdapterConfig(kind, (8, 6, 3), **fields), WIDTH, 2, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("init", INITS)
def test_an_adapter_starts_as_no_update(init):
    adapter = adapter_of(init=init)
    assert not adapter.merge().any() and not adapter.norm().any()


def test_orthonormal_factors_are_what_the_regulariser_asks_for():
    adapter = adapter_of(init="orthonormal")
    total, count = adapter.orthogonality(("U1", "U2"))
    assert count == 2 and total < 1e-5
    np.testing.assert_allclose(jnp.linalg.norm(adapter.U3[...], axis=-1), 1, rtol=1e-6)


def test_scaled_factors_shrink_with_widths_and_ranks():
    published, scaled = adapter_of(), adapter_of(init="scaled")
    for name, size in (("U1", WIDTH), ("U2", 6)):
        one, other = getattr(published, name)[...], getattr(scaled, name)[...]
        np.testing.assert_allclose(other, one / size**0.5, rtol=1e-6)


@pytest.mark.parametrize("tasks", [1, 3, 5])
def test_scaled_rows_of_tasks_are_of_one_length_and_apart_where_there_is_room(tasks):
    config = AdapterConfig("talora", (8, 6, 3), init="scaled")
    rows = make_adapter(config, WIDTH, tasks, rngs=nnx.Rngs(0)).U3[...]
    products = rows @ rows.T
    np.testing.assert_allclose(jnp.diag(products), 1, rtol=1e-5)
    if tasks <= 3:
        np.testing.assert_allclose(products, np.eye(tasks), atol=1e-6)


def test_as_lora_starts_the_first_gradient_is_of_the_way_out():
    graphdef, state = nnx.split(adapter_of(init="lora", dropout=0.0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 50, WIDTH)), jnp.float32)
    wanted = jnp.asarray(np.random.default_rng(1).normal(size=(2, 50, 3 * WIDTH)), jnp.float32)

    def loss(state):
        return jnp.sum((nnx.merge(graphdef, state)(x, jnp.arange(2)) - wanted) ** 2)

    gradient = jax.grad(loss)(state)
    assert gradient["U2"].all() and not gradient["G"].any() and not gradient["U1"].any()


def test_as_lora_starts_what_u2_sees_is_as_large_as_the_input():
    adapter = make_adapter(
        AdapterConfig("talora", (64, 96, 3), init="lora"), 128, 2, rngs=nnx.Rngs(0)
    )
    x = np.random.default_rng(0).normal(size=(500, 128))
    core = jnp.einsum("pqv,tv->tpq", adapter.G[...], adapter.U3[...])
    for seen in jnp.einsum("nd,dp,tpq->tnq", x, adapter.U1[...], core):
        assert 0.8 < seen.std() < 1.2


@pytest.mark.parametrize("kind", [kind for kind, adapter in KINDS.items() if adapter])
@pytest.mark.parametrize("qkv", [(True, True, True), (False, True, True)])
def test_the_norm_is_that_of_the_dense_update(kind, qkv):
    adapter = adapter_of(kind, qkv=qkv)
    core = adapter.G if kind == "talora" else adapter.B
    core[...] = jnp.asarray(np.random.default_rng(0).normal(size=core.shape), jnp.float32)
    dense = jnp.linalg.norm(adapter.merge(), axis=(-2, -1))
    np.testing.assert_allclose(adapter.norm(), dense, rtol=1e-5)


@pytest.mark.slow
def test_relative_updates_are_those_of_every_block(micro, fill):
    config = AdapterConfig(ranks=(4, 4, 2))
    model = fill(lambda: MSam(micro, config, {"depth": 1, "edges": 1}, rngs=nnx.Rngs(0)))
    found = model.image_encoder.relative_updates()
    merged = [model.image_encoder.merge(task) for task in (0, 1)]
    kernels = [
        # Blocks in their order: in each stage the window blocks, then the global one.
        [
            kernel
            for stage in range(micro.encoder.stages)
            for kernel in (
                *encoder.window_blocks.attn.qkv.kernel[stage],
                encoder.global_blocks.attn.qkv.kernel[stage],
            )
        ]
        for encoder in (model.image_encoder, *merged)
    ]
    for i, (plain, *updated) in enumerate(zip(*kernels, strict=True)):
        expected = max(jnp.linalg.norm(x - plain) for x in updated) / jnp.linalg.norm(plain)
        np.testing.assert_allclose(found[i], expected, rtol=1e-4)
    none = fill(
        lambda: MSam(
            micro, dataclasses.replace(config, kind="none"), {"depth": 1}, rngs=nnx.Rngs(0)
        )
    )
    assert not none.image_encoder.relative_updates().any()


def test_an_unknown_init_is_refused():
    with pytest.raises(UserError, match="no init 'normal'; expected one of published, orthonormal"):
        AdapterConfig(init="normal")
    assert (
        AdapterConfig.of(
            {"kind": "talora", "ranks": [4, 4, 2], "scale": 0.5, "dropout": 0.0, "qkv": [True] * 3}
        ).init
        == "published"
    )
