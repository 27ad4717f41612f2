"""The operation counter against counts made by hand."""

import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import pytest

from benchmarks.flops import count_flops, jaxpr_flops
from benchmarks.ours import adapter_flops, describe
from talora_jax.models.attention_kernels import splash

A = jax.ShapeDtypeStruct((3, 5), jnp.float32)
B = jax.ShapeDtypeStruct((5, 7), jnp.float32)
S = jax.ShapeDtypeStruct((5, 5), jnp.float32)
MATMUL = 2 * 3 * 5 * 7
SQUARE = 2 * 3 * 5 * 5


def test_a_product_is_two_operations_for_each_of_its_terms():
    assert count_flops(jnp.matmul, A, B) == MATMUL


def test_batched_products_and_several_contracted_axes():
    x = jax.ShapeDtypeStruct((2, 3, 4, 5), jnp.float32)
    y = jax.ShapeDtypeStruct((2, 4, 5, 6), jnp.float32)
    assert count_flops(functools.partial(jnp.einsum, "bqij,bijk->bqk"), x, y) == 2 * 2 * 3 * 20 * 6


def test_what_is_no_product_counts_nothing():
    assert count_flops(lambda x: jax.nn.softmax(x).sum() + x[0, 0], A) == 0


def repeated(x, w, times):
    return jax.lax.scan(lambda x, _: (x @ w, None), x, length=times)[0]


def test_a_loop_counts_as_often_as_it_runs():
    assert count_flops(functools.partial(repeated, times=11), A, S) == 11 * SQUARE
    assert count_flops(lambda x, w: jax.lax.map(lambda row: row @ w, x), A, B) == MATMUL


def test_loops_inside_loops_and_other_calls():
    def nested(x, w):
        body = jax.checkpoint(jax.jit(functools.partial(repeated, times=3)))
        return jax.lax.scan(lambda x, _: (body(x, w), None), x, length=4)[0] @ w

    assert count_flops(nested, A, S) == (3 * 4 + 1) * SQUARE


@pytest.mark.parametrize("kind", [jax.custom_vjp, jax.custom_jvp])
def test_functions_with_derivatives_of_their_own(kind):
    product = kind(jnp.matmul)
    if kind is jax.custom_vjp:
        product.defvjp(lambda x, w: (x @ w, (x, w)), lambda saved, g: saved)
    else:
        product.defjvp(lambda primals, tangents: (jnp.matmul(*primals),) * 2)
    assert count_flops(product, A, B) == MATMUL


def test_a_gradient_takes_two_products_more_and_a_checkpointed_one_three():
    def loss(x, w):
        return jnp.sum((x @ w) ** 2)

    both = (0, 1)
    assert count_flops(jax.grad(loss, both), A, B) == 3 * MATMUL
    assert count_flops(jax.grad(jax.checkpoint(loss), both), A, B) == 4 * MATMUL


def test_the_dearer_branch_counts():
    def branches(x, w):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ w @ w, lambda: x @ w)

    assert count_flops(branches, A, S) == 2 * SQUARE


def test_an_unbounded_loop_is_refused_if_it_multiplies():
    def unbounded(x, w):
        return jax.lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ w, x)

    with pytest.raises(ValueError, match="inside a `while`"):
        count_flops(unbounded, A, S)
    told = jaxpr_flops(jax.make_jaxpr(unbounded)(A, S).jaxpr, rounds=Fraction(5, 2))
    assert told == 2.5 * SQUARE
    assert count_flops(lambda x: jax.lax.while_loop(lambda n: n < 9, lambda n: n + 1, 0), A) == 0


def test_a_kernel_counts_once_for_every_step_of_its_grid():
    tokens, heads, width = 16 * 16, 3, 8
    grids = jax.ShapeDtypeStruct((2, 1, heads, 16, 16, width), jnp.float32)
    table = jax.ShapeDtypeStruct((31, width), jnp.float32)
    folded = width + 16 + 16
    per_query = 2 * (2 * 16 * width + tokens * (folded + width))
    assert count_flops(splash, grids, grids, grids, table, table) == 2 * heads * tokens * per_query


def convolve(x, kernel, **options):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, dimension_numbers=layout, **options)


def test_convolutions():
    x = jax.ShapeDtypeStruct((2, 8, 8, 6), jnp.float32)
    kernel = jax.ShapeDtypeStruct((3, 3, 6, 10), jnp.float32)
    same = functools.partial(convolve, window_strides=(1, 1), padding="SAME")
    assert count_flops(same, x, kernel) == 2 * (2 * 8 * 8 * 10) * (3 * 3 * 6)
    strided = functools.partial(convolve, window_strides=(2, 2), padding="VALID")
    assert count_flops(strided, x, kernel) == 2 * (2 * 3 * 3 * 10) * (3 * 3 * 6)
    groups = functools.partial(same, feature_group_count=2)
    grouped = jax.ShapeDtypeStruct((3, 3, 3, 10), jnp.float32)
    assert count_flops(groups, x, grouped) == 2 * (2 * 8 * 8 * 10) * (3 * 3 * 3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["talora", "lora_shared", "lora_per_task"])
def test_encodings_are_frozen_passes_and_adapters_with_one_patch_embedding(kind):
    architecture = describe("tiny", 64)[1]
    _, counted = adapter_flops(architecture, (18, 24), [kind])
    row, encoder = counted["kinds"][kind], architecture["encoder"]
    tokens = (encoder["image_size"] // encoder["patch_size"]) ** 2
    patches = 2 * tokens * encoder["width"] * 3 * encoder["patch_size"] ** 2
    passes = row["passes"] * counted["frozen"] - (row["passes"] - 1) * patches
    assert row["encode"] == passes + row["adapters"]
    assert row["joint"] > row["encode"]
