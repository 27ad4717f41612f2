"""The promptable model: absent prompts change nothing, prompts do not see each other."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from talora_jax.models.prompt_encoder import ABSENT
from talora_jax.models.sam import SIZES, Sam


@pytest.fixture(scope="module")
def sam(micro_sam):
    return micro_sam


@pytest.fixture(scope="module")
def embeddings(micro):
    grid = micro.encoder.grid
    return jax.random.normal(jax.random.key(0), (2, grid, grid, micro.decoder.dim))


@pytest.fixture(scope="module")
def decode(sam):
    """`Sam.decode`, compiled; `state` puts other parameters in place of the model's."""
    graphdef, own = nnx.split(sam)

    @functools.partial(jax.jit, static_argnames="multimask")
    def decode(state, embeddings, points, labels, masks, multimask):
        model = nnx.merge(graphdef, state)
        return model.decode(embeddings, points, labels, masks, multimask=multimask)

    def call(embeddings, points, labels, masks=None, multimask=True, state=own):
        return decode(state, embeddings, points, labels, masks, multimask)

    return call


def prompts(batch, number, points, seed=1):
    keys = jax.random.split(jax.random.key(seed), 2)
    shape = (batch, number, points)
    xy = jax.random.uniform(keys[0], (*shape, 2), maxval=64)
    return xy, jax.random.randint(keys[1], shape, -1, 4)


def assert_close(a, b):
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5)


def test_shapes_and_dtypes(decode, embeddings):
    for multimask, count in ((True, 3), (False, 1)):
        masks, iou = decode(embeddings, *prompts(2, 5, 4), multimask=multimask)
        assert masks.shape == (2, 5, count, 32, 32) and iou.shape == (2, 5, count)
        assert masks.dtype == iou.dtype == jnp.float32


@pytest.mark.parametrize("with_masks", [False, True])
def test_absent_points_change_nothing(decode, embeddings, with_masks):
    xy, labels = prompts(2, 3, 4)
    masks = jax.random.normal(jax.random.key(5), (2, 3, 32, 32)) if with_masks else None
    padding = jnp.full((2, 3, 9), ABSENT)
    elsewhere = jnp.full((2, 3, 9, 2), 1e3)
    padded = decode(
        embeddings,
        jnp.concatenate([elsewhere[:, :, :2], xy, elsewhere[:, :, 2:]], 2),
        jnp.concatenate([padding[..., :2], labels, padding[..., 2:]], 2),
        masks,
    )
    plain = decode(embeddings, xy, labels, masks)
    assert_close(padded, plain)
    assert plain[0].std() > 0.01


def test_points_count_whatever_their_order(decode, embeddings):
    xy, labels = prompts(2, 3, 4)
    whole = decode(embeddings, xy, labels)
    assert_close(decode(embeddings, xy[:, :, ::-1], labels[:, :, ::-1]), whole)
    fewer = decode(embeddings, xy, labels.at[:, :, 0].set(ABSENT))
    assert np.abs(fewer[0] - whole[0]).max() > 1e-3


def test_prompts_and_images_do_not_see_each_other(decode, embeddings):
    xy, labels = prompts(2, 3, 4)
    masks = jax.random.normal(jax.random.key(5), (2, 3, 32, 32))
    together = decode(embeddings, xy, labels, masks)
    for b in range(2):
        for p in range(3):
            alone = decode(
                embeddings[b : b + 1],
                xy[b : b + 1, p : p + 1],
                labels[b : b + 1, p : p + 1],
                masks[b : b + 1, p : p + 1],
            )
            assert_close([x[0, 0] for x in alone], [x[b, p] for x in together])


def test_one_mask_is_token_0_and_three_are_the_others(sam, decode, embeddings):
    """Which tokens give the masks shows in whose hypernetwork moves them."""
    xy, labels = prompts(1, 1, 2)
    moved = nnx.clone(sam)
    moved.mask_decoder.output_hypernetworks_mlps[0].layers[-1].bias[...] += 1.0
    moved = nnx.state(moved)
    prompt = (embeddings[:1], xy, labels)
    assert_close(decode(*prompt, state=moved), decode(*prompt))
    before, after = (decode(*prompt, multimask=False, **kw)[0] for kw in ({}, {"state": moved}))
    assert np.abs(before - after).max() > 1e-3


def test_a_mask_prompt_equal_to_the_no_mask_row_is_none(sam, embeddings):
    """Both ways into the decoder, one dense map per prompt or one row for all, are the same."""
    xy, labels = prompts(2, 3, 4)
    encoder = sam.prompt_encoder
    row = encoder.no_mask_embed[0]
    dense = jnp.broadcast_to(row, (2, 3, *embeddings.shape[1:3], row.size))
    args = (
        embeddings,
        encoder.positions.grid(8, 8, 8),
        encoder.points(xy, labels),
        jnp.ones(labels.shape, bool),
    )
    call = nnx.jit(lambda decoder, dense: decoder(*args, dense, multimask=True))
    assert_close(call(sam.mask_decoder, dense), call(sam.mask_decoder, row))


@pytest.mark.parametrize(
    ("size", "millions"), [("vit_b", 93.7), ("vit_l", 312.3), ("vit_h", 641.1)]
)
def test_parameter_counts_are_those_of_the_releases(size, millions):
    sam = nnx.eval_shape(lambda: Sam(SIZES[size](), rngs=nnx.Rngs(0)))
    count = sum(x.size for x in jax.tree.leaves(nnx.state(sam)))
    assert round(count / 1e6, 1) == millions


def test_sizes_of_the_same_words_are_told_apart(micro):
    other = dataclasses.replace(micro, decoder=dataclasses.replace(micro.decoder, heads=1))
    assert micro.apart_from(other) == f"{micro.in_words()} with decoder.heads 2"
    assert other.apart_from(micro) == f"{micro.in_words()} with decoder.heads 1"
    larger = SIZES["vit_b"]()
    assert larger.apart_from(micro) == larger.in_words()
