"""mSAM as a whole: joint and single forwards, merging, what trains."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from talora_jax.models import image_encoder
from talora_jax.models.adapters import AdapterConfig
from talora_jax.models.geometry import Geometry
from talora_jax.models.msam import MSam, trainable
from talora_jax.models.remat import REMAT, choose_remat
from talora_jax.models.sam import SIZES
from talora_jax.weights.build import build
from talora_jax.weights.state import tensors_of

CHANNELS = {"semantic": 5, "depth": 1, "normals": 3, "edges": 1}


@pytest.fixture(scope="module")
def make(micro, fill):
    """Makes a micro mSAM with random numbers in every parameter: no update is zero, no two tasks
    are alike."""

    @functools.cache
    def filled(adapter, channels, sam, dtype):
        made = functools.partial(MSam, sam, adapter, dict(channels), dtype=dtype)
        return nnx.split(fill(lambda: made(rngs=nnx.Rngs(0))))

    def make(kind="talora", channels=CHANNELS, sam=micro, dtype=jnp.float32, **adapter):
        config = AdapterConfig(kind, (4, 5, 3), **adapter)
        return nnx.merge(*filled(config, tuple(channels.items()), sam, dtype))

    return make


def images(*sizes):
    rng = np.random.default_rng(2)
    return [jnp.asarray(rng.random((*size, 3)), jnp.float32) for size in sizes]


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def call(graphdef, method, tasks, state, images, **training):
    return getattr(nnx.merge(graphdef, state), method)(images, tasks, **training)


def compiled(model, method, images, tasks=None, **training):
    """A call of the model, compiled once for models and images of one shape."""
    graphdef, state = nnx.split(model)
    return call(graphdef, method, tasks, state, images, **training)


@pytest.mark.slow
def test_joint_forward_of_mixed_sizes_equals_single_forwards(make, micro):
    channels = {"semantic": 5, "depth": 1}
    model = make(channels=channels)
    batch = images((48, 64), (64, 40), (31, 57))
    padded = jnp.concatenate([model.to_padded(image[None]) for image in batch])
    embeddings = compiled(model, "embed", padded, model.tasks)
    low_res = compiled(model, "decode", embeddings, model.tasks)
    joint = {
        task: [model.from_padded(x, image.shape[:2]) for x, image in zip(maps, batch, strict=True)]
        for task, maps in low_res.items()
    }
    graphdef, state = nnx.split(model)
    for task, of_task in channels.items():

        @jax.jit
        def single(state, x, task=task):
            model = nnx.merge(graphdef, state)
            return model.decode(model.embed(x, [task]), [task])[task]

        for i, image in enumerate(batch):
            geometry = Geometry.of(image.shape[:2], micro.encoder.image_size)
            maps = geometry.from_padded(single(state, geometry.to_padded(image)[None])[0])
            assert maps.shape == (*image.shape[:2], of_task)
            np.testing.assert_allclose(joint[task][i], maps, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_images_of_one_size_are_a_batch(make):
    model = make(channels={"depth": 1, "edges": 1})
    batch = images((48, 40), (48, 40))
    maps = compiled(model, "__call__", jnp.stack(batch))
    for i, image in enumerate(batch):
        alone = compiled(model, "__call__", image[None])
        for task in model.tasks:
            np.testing.assert_allclose(maps[task][i], alone[task][0], rtol=0, atol=1e-5)


def natively(model):
    """The same model, encoding images in their native aspect."""
    model = nnx.merge(*nnx.split(model))
    model.native_aspect = True
    return model


def test_native_aspect_of_square_images_is_the_padded_model(make):
    model = make(channels={"depth": 1, "edges": 1})
    (square,) = images((1, 40, 40))
    padded = compiled(model, "__call__", square)
    native = compiled(natively(model), "__call__", square)
    for task in model.tasks:
        np.testing.assert_array_equal(native[task], padded[task])


@pytest.mark.slow
def test_native_aspect_encodes_no_padding(make):
    model = natively(make(channels={"depth": 1, "edges": 1}))
    assert model.geometry((48, 64)).padded == (48, 64)
    assert model.geometry((61, 17)).padded == (64, 24)  # resized to 64×18, in patches of 8
    for image in images((48, 64), (61, 17)):
        grid = tuple(side // 8 for side in model.geometry(image.shape[:2]).padded)
        padded = model.to_padded(image[None])
        assert compiled(model, "embed", padded, model.tasks).shape[2:4] == grid
        for maps in compiled(model, "__call__", image[None]).values():
            assert maps.shape[1:3] == image.shape[:2] and maps.std() > 0.01


def test_a_smaller_grid_crops_positions_and_slices_relative_ones(make, micro):
    """24×32 pixels in an encoder for 64×64 are 24×32 in one for 32×32 with those positions."""
    model = make(channels={"depth": 1})
    smaller = dataclasses.replace(micro, encoder=dataclasses.replace(micro.encoder, image_size=32))
    graphdef, _ = nnx.split(make(sam=smaller, channels={"depth": 1}))
    state = nnx.state(model)
    encoder = state["image_encoder"]
    encoder["pos_embed"] = encoder["pos_embed"].replace(encoder["pos_embed"][...][:4, :4])
    attention = encoder["global_blocks"]["attn"]
    for axis in ("rel_pos_h", "rel_pos_w"):
        table = attention[axis][...]  # offsets of 8 tokens, 15 rows; of 4, the middle 7
        attention[axis] = attention[axis].replace(table[:, 4:-4])
    (image,) = images((1, 24, 32))
    large = compiled(model, "embed", image, ("depth",))
    small = call(graphdef, "embed", ("depth",), state, image)
    assert large.shape[2:4] == (3, 4)
    np.testing.assert_allclose(large, small, rtol=0, atol=1e-5)


def test_tasks_and_images_differ(make):
    model = make()
    embeddings = compiled(model, "embed", jnp.stack(images((64, 64), (64, 64))), model.tasks)
    flat = embeddings.reshape(8, -1)
    distances = jnp.abs(flat[:, None] - flat[None]).max(-1) + jnp.eye(8)
    assert distances.min() > 1e-2


@pytest.mark.slow
def test_a_subset_of_tasks_in_any_order(make):
    model = make(channels={"depth": 1, "normals": 3, "edges": 1})
    batch = jnp.stack(images((48, 64)))
    every = compiled(model, "__call__", batch)
    some = compiled(model, "__call__", batch, ("edges", "depth"))
    assert some.keys() == {"edges", "depth"}
    for task, maps in some.items():
        np.testing.assert_allclose(maps, every[task], rtol=0, atol=1e-5)
    with pytest.raises(KeyError, match="no task flow; this model has depth"):
        model(batch, ["flow"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "qkv"),
    [
        ("talora", (True, True, True)),
        ("talora", (True, False, True)),
        ("lora_per_task", (False, True, False)),
        ("lora_shared", (True, True, True)),
    ],
)
def test_merged_equals_factored(make, kind, qkv):
    channels = {"depth": 1, "normals": 3}
    model = make(kind, channels, qkv=qkv, dropout=0.0)
    (batch,) = images((1, 64, 64))
    factored = compiled(model, "embed", batch, model.tasks, key=jax.random.key(0))
    predicting = compiled(model, "embed", batch, model.tasks)
    np.testing.assert_allclose(predicting, factored, rtol=0, atol=1e-5)
    graphdef, _ = nnx.split(make("none", channels))
    for t in range(len(channels)):
        state = nnx.state(model)
        for blocks in ("window_blocks", "global_blocks"):
            adapter = getattr(model.image_encoder, blocks).attn.adapter
            dense = adapter.merge()[..., t if adapter.config.per_task else 0, :, :]
            parts = jnp.split(dense, 3, axis=-1)
            assert [bool(part.any()) for part in parts] == list(qkv)
            attention = state["image_encoder"][blocks]["attn"]
            kernel = attention["qkv"]["kernel"]
            attention["qkv"]["kernel"] = kernel.replace(kernel[...] + dense)
            del attention["adapter"]
        (dense,) = call(graphdef, "embed", ("depth",), state, batch)
        np.testing.assert_allclose(dense, factored[t], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_new_adapter_changes_nothing(make, micro):
    (batch,) = images((1, 64, 64))
    channels, config = {"depth": 1}, AdapterConfig("talora", (4, 5, 3))
    plain = make("none", channels)
    tensors = tensors_of(nnx.state(plain))
    adapted = build(lambda: MSam(micro, config, channels, rngs=nnx.Rngs(0)), {}, tensors)
    np.testing.assert_array_equal(
        compiled(plain, "embed", batch, ("depth",)), compiled(adapted, "embed", batch, ("depth",))
    )


@pytest.mark.slow
def test_remat_changes_no_gradient(micro, fill):
    (batch,) = images((1, 48, 64))
    encoder = dataclasses.replace(micro.encoder, stages=1)
    sam = dataclasses.replace(
        micro, encoder=encoder, decoder=dataclasses.replace(micro.decoder, depth=1)
    )

    def gradient(remat):
        config = AdapterConfig(ranks=(4, 4, 2), dropout=0.1)
        model = fill(lambda: MSam(sam, config, {"depth": 1}, remat=remat, rngs=nnx.Rngs(0)))
        graphdef, learnt, frozen = nnx.split(model, trainable(config), ...)

        def loss(learnt):
            maps = nnx.merge(graphdef, learnt, frozen)(batch, key=jax.random.key(0))
            return jnp.mean(maps["depth"] ** 2)

        return jax.jit(jax.grad(loss))(learnt)

    kept = jax.tree.leaves(gradient("none"))
    for remat in REMAT[1:]:
        for ours, theirs in zip(jax.tree.leaves(gradient(remat)), kept, strict=True):
            # The floor is for a bias on all keys, whose gradient is rounding alone.
            atol = max(1e-7, 1e-5 * float(jnp.abs(theirs).max()))
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def kept(micro):
    """Bytes that a forward pass leaves for its backward pass, parameters among them."""

    @functools.cache
    def kept(channels=1, **how):
        config = AdapterConfig(ranks=(4, 4, 2))
        make = functools.partial(MSam, micro, config, {"a": channels}, **how)
        model = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
        graphdef, learnt, frozen = nnx.split(model, trainable(config), ...)

        def pullback(learnt, frozen, batch):
            def loss(learnt):
                model = nnx.merge(graphdef, learnt, frozen)
                return model(batch, key=jax.random.key(0))["a"].sum()

            return jax.vjp(loss, learnt)[1]

        batch = jax.ShapeDtypeStruct((2, 48, 64, 3), jnp.float32)
        left = jax.eval_shape(pullback, learnt, frozen, batch)
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(left))

    return kept


def test_an_output_channel_keeps_nothing_but_its_row_for_the_backward_pass(kept):
    row, place = 32 * 4, 3 * 4  # of `no_mask_embed`; the numbers of embedding, decoder and row
    assert kept(channels=9) - kept() <= 8 * (row + place)


def test_the_backward_pass_is_left_less_by_every_word_of_remat_and_by_bfloat16(kept):
    by_word = [kept(remat=word) for word in REMAT]
    assert by_word == sorted(set(by_word), reverse=True)
    assert kept(dtype=jnp.bfloat16) < kept()


def test_what_is_kept_is_chosen_for_the_machine():
    words = {platform: choose_remat("auto", platform) for platform in ("cpu", "gpu", "tpu")}
    assert words == {
        "cpu": "dots",
        "gpu": "block_but_attention",
        "tpu": "block_but_attention",
    }
    assert [choose_remat(word, "cpu") for word in REMAT] == list(REMAT)


@pytest.mark.slow
def test_tasks_one_after_the_other_are_tasks_together(make, monkeypatch):
    batch = jnp.stack(images((48, 64), (48, 64)))
    model = make(dropout=0.3)
    graphdef, learnt, frozen = nnx.split(model, trainable(AdapterConfig()), ...)
    tasks = ("normals", "depth")  # not all of them, and in another order

    def both(filling):
        monkeypatch.setattr(image_encoder, "FILLING", filling)

        def loss(learnt):
            model = nnx.merge(graphdef, learnt, frozen)
            embeddings = model.embed(batch, tasks, key=jax.random.key(3))
            return jnp.mean(embeddings**2), embeddings

        return jax.jit(jax.grad(loss, has_aux=True))(learnt)

    together, in_turn = both(10**9), both(1)
    np.testing.assert_allclose(in_turn[1], together[1], rtol=0, atol=1e-5)
    pairs = zip(jax.tree.leaves(in_turn[0]), jax.tree.leaves(together[0]), strict=True)
    for ours, theirs in pairs:
        atol = max(1e-7, 1e-4 * float(jnp.abs(theirs).max()))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=atol)


@pytest.mark.slow
def test_bfloat16_computes_near_float32(make):
    batch = jnp.stack(images((48, 64)))

    def maps(dtype):
        return compiled(make(channels={"depth": 1}, dtype=dtype), "__call__", batch)["depth"]

    exact, rounded = maps(jnp.float32), maps(jnp.bfloat16)
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, exact, rtol=0, atol=0.05 * float(jnp.abs(exact).max()))


# The method's published sizes for NYUv2: adapter parameters, and all that train.
@pytest.mark.parametrize(
    ("size", "adapters", "all_trainable"),
    [
        ("vit_b", 1_228_944, 13_445_180),
        ("vit_l", 3_244_320, 15_521_996),
        ("vit_h", 5_374_336, 17_717_548),
    ],
)
def test_trainable_parameter_counts_without_allocating(size, adapters, all_trainable):
    config, channels = AdapterConfig(), {"semantic": 13, "depth": 1, "normals": 3}
    model = nnx.eval_shape(lambda: MSam(SIZES[size](), config, channels, rngs=nnx.Rngs(0)))

    def count(filter):
        return sum(math.prod(x.shape) for x in jax.tree.leaves(nnx.state(model, filter)))

    assert count(nnx.PathContains("adapter")) == adapters
    assert count(trainable(config)) == all_trainable


def test_full_trains_the_encoder_and_nothing_adapted(make):
    model = make("full")
    frozen = nnx.state(model, nnx.Not(trainable(AdapterConfig("full"))))
    assert list(frozen) == ["positions"]
