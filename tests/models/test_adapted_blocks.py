"""Adapters in some blocks alone: a trunk for all tasks, and nothing else that is new."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks.flops import count_flops
from talora_jax.errors import UserError
from talora_jax.models import image_encoder
from talora_jax.models.adapters import AdapterConfig
from talora_jax.models.encoder_config import ImageEncoderConfig
from talora_jax.models.image_encoder import ImageEncoder
from talora_jax.models.msam import MSam, norms, trainable
from talora_jax.models.sam import SIZES

CHANNELS = {"depth": 1, "normals": 3, "edges": 1}
# Three stages of two window blocks and a global one.
ENCODER = ImageEncoderConfig(
    image_size=32, patch_size=8, width=16, heads=2, stages=3, window_blocks=2, window=3
)
# The global blocks in other places.
UNEVEN = dataclasses.replace(ENCODER, stages=1, window_blocks=8, global_blocks=(1, 2, 6))
RANKS = (3, 4, 2)


@pytest.mark.parametrize(
    ("blocks", "expected"),
    [
        (None, range(12)),
        ((9,), range(9, 12)),
        ((-3,), range(9, 12)),
        ((0,), range(12)),
        ((2, 5), range(2, 5)),
        ((-10, -1), range(2, 11)),
        ((-12, 12), range(12)),
        (-3, range(9, 12)),
        ([2, 5], range(2, 5)),
    ],
)
def test_blocks_are_named_as_slices_name_them(blocks, expected):
    assert AdapterConfig(blocks=blocks).adapted(12) == expected


@pytest.mark.parametrize(
    "blocks", [(12,), (-13,), (3, 3), (-6, 0), (4, 13), (1, 2, 3), (), (True,)]
)
def test_blocks_that_there_are_not(blocks):
    with pytest.raises(UserError) as told:
        AdapterConfig(blocks=blocks).adapted(12)
    assert str(told.value) == (
        f"adapter.blocks is {blocks}, and the encoder has 12 blocks: expected the number of the "
        "first adapted one (-3 for the last 3), or that and the number behind the last one's, as "
        "(6, 12)"
    )


def test_no_blocks_where_all_of_the_encoder_trains():
    with pytest.raises(UserError, match="kind=full has no adapter and trains the whole encoder: l"):
        AdapterConfig("full", blocks=(-1,))


@pytest.mark.parametrize(
    ("config", "blocks", "expected"),
    [
        (ENCODER, range(9), [([[0, 1], [3, 4], [6, 7]], [2, 5, 8])]),
        (ENCODER, range(3), [([[0, 1]], [2])]),
        (ENCODER, range(1, 7), [([[1]], [2]), ([[3, 4]], [5]), ([[6]], [])]),
        (ENCODER, range(2, 3), [([[]], [2])]),
        (UNEVEN, range(9), [([[0]], [1]), ([[]], [2]), ([[3, 4, 5]], [6]), ([[7, 8]], [])]),
    ],
)
def test_blocks_are_runs_of_like_stages(config, blocks, expected):
    runs = [(windows.tolist(), last.tolist()) for windows, last in config.stages_of(blocks)]
    assert runs == expected


def test_a_program_does_not_grow_with_depth():
    def operations(stages, blocks):
        config = dataclasses.replace(ENCODER, stages=stages)
        graphdef, state = nnx.split(abstract(config, AdapterConfig(ranks=RANKS, blocks=blocks)))
        images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
        program = jax.make_jaxpr(lambda s, x: nnx.merge(graphdef, s)(x, (0, 1)))(state, images)
        return str(program).count(" = ")

    assert operations(4, (-4,)) == operations(9, (-4,))


def abstract(config, adapter, remat="none"):
    return nnx.eval_shape(
        lambda: ImageEncoder(config, adapter, len(CHANNELS), remat=remat, rngs=nnx.Rngs(0))
    )


def operations(function, *arguments):
    """Of a call, and of the gradient by the first argument."""

    def gradient(first, *others):
        return jax.grad(lambda x: function(x, *others).sum())(first)

    return count_flops(function, *arguments), count_flops(gradient, *arguments)


@pytest.mark.parametrize("kind", ["talora", "lora_shared"])
def test_the_trunk_is_computed_once_and_has_no_backward_pass(kind):
    adapter = AdapterConfig(kind, RANKS, blocks=(4,))
    encoder = abstract(ENCODER, adapter, "block_but_attention")
    graphdef, learnt, frozen = nnx.split(encoder, nnx.PathContains("adapted"), ...)
    tasks, key = tuple(range(3)), jax.random.key(0)
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    trunk = jax.ShapeDtypeStruct((2, 4, 4, 16), jnp.float32)

    def whole(learnt, frozen, images):
        return nnx.merge(graphdef, learnt, frozen)(images, tasks, key=key)

    def after(learnt, frozen, trunk):
        return nnx.merge(graphdef, learnt, frozen).from_trunk(trunk, tasks, key=key)

    before = count_flops(lambda s, x: nnx.merge(graphdef, s).trunk(x), nnx.state(encoder), images)
    alone = operations(after, learnt, frozen, trunk)
    assert operations(whole, learnt, frozen, images) == (alone[0] + before, alone[1] + before)


def test_no_frozen_kernel_is_copied_for_the_backward_pass(monkeypatch):
    monkeypatch.setattr(image_encoder, "FILLING", 1)
    encoder = abstract(ENCODER, AdapterConfig(ranks=RANKS, blocks=(-3,)), "block_but_attention")
    graphdef, learnt, frozen = nnx.split(encoder, nnx.PathContains("adapted"), ...)

    def total(learnt, frozen, images):
        model = nnx.merge(graphdef, learnt, frozen)
        return model(images, (0, 1, 2), key=jax.random.key(0)).sum()

    images = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
    program = str(jax.make_jaxpr(jax.grad(total))(learnt, frozen, images))
    # The first layers of the MLPs of all window blocks, and of the two that are adapted.
    assert "f32[6,16,64]" in program and "f32[2,16,64]" not in program


def test_operations_are_as_many_as_blocks_times_their_tasks():
    """(k + (N − k) T) / (N T), but for adapters and relative positions, in operations of ViT-L."""
    config, tasks = SIZES["vit_l"]().encoder, tuple(range(5))

    def forward(blocks):
        adapter = AdapterConfig(blocks=blocks)
        model = nnx.eval_shape(lambda: ImageEncoder(config, adapter, 5, rngs=nnx.Rngs(0)))
        graphdef, state = nnx.split(model)
        images = jax.ShapeDtypeStruct((1, 1024, 1024, 3), jnp.float32)
        return count_flops(lambda s, x: nnx.merge(graphdef, s)(x, tasks), state, images)

    assert forward((-6,)) / forward(None) == pytest.approx((18 + 6 * 5) / (24 * 5), abs=0.01)


@pytest.fixture(scope="module")
def make(micro, fill):
    """Makes a small mSAM with random numbers in every parameter."""

    @functools.cache
    def filled(kind, blocks, encoder, remat):
        decoder = dataclasses.replace(micro.decoder, dim=encoder.out_channels, depth=1)
        sam = dataclasses.replace(micro, encoder=encoder, decoder=decoder)
        config = AdapterConfig(kind, RANKS, blocks=blocks, dropout=0.3)
        return nnx.split(fill(lambda: MSam(sam, config, CHANNELS, remat=remat, rngs=nnx.Rngs(0))))

    def make(kind="talora", blocks=None, encoder=ENCODER, remat="block_but_attention"):
        return nnx.merge(*filled(kind, blocks, encoder, remat))

    return make


IMAGES = jnp.asarray(np.random.default_rng(1).random((2, 32, 32, 3)), jnp.float32)


@functools.partial(jax.jit, static_argnums=(0, 1, 4))
def embed(graphdef, tasks, state, images, dropout=False):
    model = nnx.merge(graphdef, state)
    return model.embed(images, tasks, key=jax.random.key(0) if dropout else None)


def with_all_adapted(late, make):
    """The model of all blocks that a late one is: the others' adapters are zero."""
    encoder = late.image_encoder
    whole = make(late.adapter.kind, encoder=encoder.config)
    rest = nnx.state(late, nnx.Not(nnx.PathContains("adapted")))
    tensors = dict(nnx.to_flat_state(nnx.state(whole)))
    tensors |= dict(nnx.to_flat_state(rest))
    for path, variable in tensors.items():
        if "adapter" in path:
            zeros = np.zeros(variable.shape, variable.dtype)
            tensors[path] = variable.replace(jax.device_put(zeros))
    for path, own in nnx.to_flat_state(nnx.state(encoder.adapted)):
        stack, *inside = path
        inside = ["attn", *inside] if "adapter" in inside else inside
        variable = tensors["image_encoder", stack, *inside]
        x, axes = np.array(variable[...]), len(encoder.config.stacks[stack])
        flat = x.reshape(-1, *x.shape[axes:])  # of the same memory
        flat[encoder.config.rows(stack, encoder.blocks)] = own[...]
        tensors["image_encoder", stack, *inside] = variable.replace(jax.device_put(x))
    return nnx.merge(nnx.graphdef(whole), nnx.from_flat_state(list(tensors.items())))


@pytest.mark.parametrize(
    ("kind", "blocks", "encoder"),
    [
        ("talora", (4, 8), ENCODER),
        pytest.param("talora", (-1,), ENCODER, marks=pytest.mark.slow),
        pytest.param("talora", (5, 7), UNEVEN, marks=pytest.mark.slow),
        pytest.param("lora_shared", (6,), ENCODER, marks=pytest.mark.slow),
        pytest.param("lora_per_task", (4,), ENCODER, marks=pytest.mark.slow),
        pytest.param("none", (4,), ENCODER, marks=pytest.mark.slow),
    ],
)
def test_it_is_the_model_whose_other_adapters_are_zero(make, kind, blocks, encoder):
    """With dropout, too; and a task alone is the same, and merged."""
    late = make(kind, blocks, encoder)
    whole = with_all_adapted(late, make)
    (graphdef, state), tasks = nnx.split(late), tuple(CHANNELS)
    ours = embed(graphdef, tasks, state, IMAGES, True)
    theirs = embed(nnx.graphdef(whole), tasks, nnx.state(whole), IMAGES, True)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    together = embed(graphdef, tasks, state, IMAGES)
    if late.adapter.per_task:
        assert jnp.abs(together[0] - together[1]).max() > 1e-3
    alone = embed(graphdef, (tasks[1],), state, IMAGES)
    np.testing.assert_allclose(alone[0], together[1], rtol=0, atol=1e-5)
    merged = jax.jit(lambda model: model(IMAGES, (0,)))(late.image_encoder.merge(1))
    np.testing.assert_allclose(merged[0], together[1], rtol=0, atol=1e-5)


def test_relative_updates_are_those_of_the_adapted_blocks(make):
    late = make("talora", (4, 8))
    every = with_all_adapted(late, make).image_encoder.relative_updates()
    ours = late.image_encoder.relative_updates()
    assert ours.shape == (4,) and ours.min() > 0
    np.testing.assert_allclose(ours, every[4:8], rtol=1e-5)
    assert not every[:4].any() and not every[8:].any()


def test_what_trains_is_of_the_adapted_blocks(make):
    late = make("talora", (4,))
    encoder = nnx.state(late, trainable(late.adapter))["image_encoder"]
    assert set(encoder) == {"adapted"}
    shapes = {
        (stack, part): x.shape
        for (_, stack, *_, part), x in nnx.to_flat_state(encoder)
        if part in ("U3", "scale")
    }
    assert shapes == {
        ("window_blocks", "U3"): (3, 3, 2),
        ("global_blocks", "U3"): (2, 3, 2),
        ("window_blocks", "scale"): (3, 16),
        ("global_blocks", "scale"): (2, 16),
    }
    frozen = nnx.state(late, nnx.Not(trainable(late.adapter)))
    of_base = nnx.filter_state(frozen, norms(AdapterConfig()))["image_encoder"]
    assert of_base["window_blocks"]["norm1"]["scale"].shape == (3, 2, 16)


@pytest.mark.slow
def test_tasks_in_turn_and_remat_change_no_gradient(make, monkeypatch):
    def gradient(filling, remat):
        monkeypatch.setattr(image_encoder, "FILLING", filling)
        model = make("talora", (4, 8), remat=remat)
        graphdef, learnt, frozen = nnx.split(model, trainable(model.adapter), ...)

        def loss(learnt):
            model = nnx.merge(graphdef, learnt, frozen)
            return jnp.mean(model.embed(IMAGES, model.tasks, key=jax.random.key(3)) ** 2)

        return jax.tree.leaves(jax.jit(jax.grad(loss))(learnt))

    expected = gradient(10**9, "none")
    for found in (gradient(1, "none"), gradient(10**9, "block_but_attention")):
        for ours, theirs in zip(found, expected, strict=True):
            atol = max(1e-7, 1e-4 * float(jnp.abs(theirs).max()))
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)
