"""Functions of JAX as ONNX, run by onnxruntime."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

from talora_jax.inference.onnx.graph import OPSET  # noqa: E402
from talora_jax.inference.onnx.program import to_onnx  # noqa: E402
from talora_jax.models.gelu import gelu  # noqa: E402

X = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
WEIGHT = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
KERNEL = np.random.default_rng(2).normal(size=(3, 3, 2, 6)).astype(np.float32)


def model_of(function, *arrays, **shapes):
    """The ONNX model of a function of arrays, called x, y and so on."""
    inputs = {
        name: jax.ShapeDtypeStruct(shapes.get(name, array.shape), array.dtype)
        for name, array in zip("xyz", arrays, strict=False)
    }
    return to_onnx(lambda *given: {"out": function(*given)}, [], inputs)


def ran(model, *arrays):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    return session.run(["out"], dict(zip("xyz", arrays, strict=False)))[0]


def operations(model):
    return {node.op_type for node in model.graph.node}


def layer_norm(axis, size):
    """`nnx.LayerNorm` over an axis of this size."""
    norm = nnx.LayerNorm(
        size, reduction_axes=axis, feature_axes=axis, use_fast_variance=False, rngs=nnx.Rngs(0)
    )
    norm.scale[...], norm.bias[...] = jnp.arange(1.0, size + 1), -jnp.arange(1.0, size + 1)
    return norm


OVER_LAST, OVER_MIDDLE = layer_norm(-1, 4), layer_norm(1, 3)


def scanned(x):
    def round_(total, entry):
        return total + entry, total * entry[0, 0]

    total, steps = lax.scan(round_, jnp.ones((3, 4)), x, reverse=True)
    return steps + total


def by_platform(x):
    return lax.platform_dependent(x, cpu=lambda x: jnp.sin(x) * 1, default=jnp.sin)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x @ WEIGHT,
        lambda x: jnp.einsum("do,abd->oab", WEIGHT, x),
        lambda x: jnp.einsum("abc,dbc->ad", x, x),
        lambda x: jnp.einsum("abc,abd->bdac", x, x[..., :2]),
        lambda x: jnp.einsum("yb,abc,xc->ayx", WEIGHT[:, :3], x, WEIGHT.T),
        lambda x: jnp.einsum("yb,abc->ayc", WEIGHT[:, :3], jnp.concatenate([x] * 4, axis=2)),
        lambda x: jnp.einsum("abc,bpq->apqc", jnp.repeat(x, 4, axis=2), KERNEL[:, 0]),
        lambda x: jnp.einsum("abc->cab", jnp.einsum("abc->bca", x)) + x[:1, :1].transpose(1, 0, 2),
        lambda x: (x @ WEIGHT[:, :4]).reshape(2, 3, 2, 2) - jnp.asarray(WEIGHT[0, :2]),
        lambda x: jnp.asarray(WEIGHT[0, :2, None]) / (1 + x * x).reshape(2, 3, 2, 2),
        lambda x: (x @ WEIGHT[:, :4]).reshape(2, 3, 2, 2) + jnp.asarray(X[:, :, :2, None]),
        lambda x: OVER_LAST(x) + OVER_MIDDLE(x),
        lambda x: jax.nn.softmax(x, axis=1),
        lambda x: jax.nn.softmax(x, axis=(1, 2)),
        lambda x: x / jnp.sum(jnp.exp(x), axis=-1, keepdims=True),
        gelu,
        lambda x: jax.nn.gelu(x, approximate=False),
        lambda x: x / 2 * (2 + lax.erf(x)),
        lambda x: jax.scipy.special.erfc(x) * x,
        lambda x: jax.nn.relu(x) + jnp.maximum(x, 1) - jnp.minimum(x, X[0]),
        lambda x: jax.nn.sigmoid(x) ** 3 + lax.rsqrt(1 + x * x),
        lambda x: jnp.argmax(x, axis=1),
        lambda x: jnp.where(x > 0, x, -jnp.inf).max(axis=(0, 2)),
        lambda x: (x != X[0]).astype(jnp.int32),
        lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 3)), constant_values=7),
        lambda x: x[:, 1:, ::2],
        lambda x: x[:, 1],
        lambda x: jnp.asarray(WEIGHT)[jnp.clip(x[0, :, 0].astype(jnp.int32), 0, 3)],
        lambda x: jnp.stack([x, 2 * x], axis=1),
        lambda x: jnp.concatenate([jnp.ones((2, 1, 4)), x, x[:, :1]], axis=1),
        lambda x: jnp.concatenate(jnp.split(x, [1], axis=2)[::-1], axis=2),
        lambda x: jnp.broadcast_to(x[:, None], (2, 5, 3, 4)).reshape(10, 12),
        lambda x: lax.map(lambda row: row * row.sum(), x),
        lambda x: jnp.ones((3, 2)),
        scanned,
        by_platform,
    ],
)
def test_each_operation_gives_what_jax_gives(function):
    expected = np.asarray(function(jnp.asarray(X)))
    found = ran(model_of(function, X), X)
    assert found.dtype == expected.dtype and found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("strides", [(1, 1), (2, 1)])
def test_convolutions(strides):
    images = np.random.default_rng(3).normal(size=(2, 5, 6, 2)).astype(np.float32)
    conv = functools.partial(
        lax.conv_general_dilated,
        rhs=jnp.asarray(KERNEL),
        window_strides=strides,
        padding=((1, 1), (0, 2)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    found = ran(model_of(conv, images), images)
    np.testing.assert_allclose(found, conv(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("function", "has", "has_not"),
    [
        (lambda x: jax.nn.softmax(x), {"Softmax"}, {"Exp", "ReduceMax", "Div"}),
        (lambda x: jax.nn.gelu(x, approximate=False), {"Gelu"}, {"Erf", "Mul"}),
        (gelu, {"Gelu"}, {"Erf", "Mul"}),
        (lambda x: jax.nn.relu(x), {"Relu"}, {"Max"}),
        (OVER_LAST, {"LayerNormalization"}, {"ReduceSum", "Sub", "Reciprocal"}),
        (OVER_MIDDLE, {"ReduceSum"}, {"LayerNormalization"}),
        # A constant goes on the side where nothing need be moved, and back and forth is nowhere.
        (
            lambda x: jnp.einsum("yb,abc->ayc", WEIGHT[:, :3], jnp.concatenate([x] * 4, axis=2)),
            {"MatMul"},
            {"Transpose"},
        ),
        (
            lambda x: jnp.transpose(jnp.transpose(x, (2, 0, 1)), (1, 2, 0)) + 1,
            {"Add"},
            {"Transpose"},
        ),
        (lambda x: jnp.transpose(x[:, :1], (1, 0, 2)) + 1, {"Reshape"}, {"Transpose"}),
        # Weights are no work for the runtime.
        (lambda x: x @ (jnp.sin(WEIGHT).T[:4] * 2).T[:, :2], {"MatMul"}, {"Sin", "Transpose"}),
    ],
)
def test_what_is_fused_or_folded(function, has, has_not):
    found = operations(model_of(function, X))
    assert has <= found and not has_not & found


def test_a_row_is_added_before_an_axis_is_split():
    model = model_of(lambda x: x.reshape(2, 3, 2, 2) + jnp.asarray(WEIGHT[0, :2]), X)
    assert [node.op_type for node in model.graph.node] == ["Add", "Reshape", "Identity"]
    assert [list(x.dims) for x in model.graph.initializer if x.data_type == 1] == [[4]]


def test_lengths_that_are_free():
    prompts, number = jax.export.symbolic_shape("P, n")

    def function(x, y):
        tokens = jnp.concatenate([jnp.broadcast_to(y, (x.shape[0], 2, 4)), x], axis=1)
        weights = jax.nn.softmax(jnp.einsum("pnd,pmd->pnm", tokens, tokens))
        merged = jnp.einsum("pnm,pmd->pnd", weights, tokens).reshape(-1, 2, 2)
        return merged.reshape(*tokens.shape)[:, 1:]

    y = np.ones((2, 4), np.float32)
    model = model_of(function, X, y, x=(prompts, number, 4))
    shape = model.graph.input[0].type.tensor_type.shape
    assert [dim.dim_param or dim.dim_value for dim in shape.dim] == ["P", "n", 4]
    for x in (X, X[:1, :1], np.tile(X, (3, 2, 1))):
        np.testing.assert_allclose(ran(model, x, y), function(x, y), rtol=1e-5, atol=1e-5)


def test_a_model_says_its_opset_and_keeps_equal_constants_once():
    model = model_of(lambda x: (x @ WEIGHT) @ jnp.asarray(WEIGHT).T + x @ WEIGHT @ WEIGHT.T, X)
    assert [(x.domain, x.version) for x in model.opset_import] == [("", OPSET)]
    assert len(model.graph.initializer) == 2


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda x: jnp.sort(x), "sort"),
        (lambda x: lax.dynamic_slice_in_dim(x, x[0, 0, 0].astype(int), 1), "dynamic_slice at"),
        (lambda x: x.at[0].set(1), "scatter"),
        (lambda x: lax.pad(x, 0.0, ((0, 0, 1),) * 3), "pad between"),
        (lambda x: jnp.take_along_axis(x, x.astype(int), axis=1), "gather"),
    ],
)
def test_an_operation_that_is_not_known_is_told_by_name(function, named):
    with pytest.raises(NotImplementedError, match=named):
        model_of(function, X)
