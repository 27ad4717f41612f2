"""What each of JAX's primitives is in ONNX."""

import math

import jax
import numpy as np
import onnx

from talora_jax.inference.onnx.graph import Graph
from talora_jax.inference.onnx.values import Value, is_static

# Of products, the least that onnxruntime takes in one step along a row.
_ROW = 16
ELEMENTWISE = {
    "abs": "Abs",
    "add": "Add",
    "add_any": "Add",
    "and": "And",
    "ceil": "Ceil",
    "cos": "Cos",
    "div": "Div",
    "eq": "Equal",
    "erf": "Erf",
    "exp": "Exp",
    "floor": "Floor",
    "ge": "GreaterOrEqual",
    "gt": "Greater",
    "le": "LessOrEqual",
    "log": "Log",
    "logistic": "Sigmoid",
    "lt": "Less",
    "max": "Max",
    "min": "Min",
    "mul": "Mul",
    "neg": "Neg",
    "not": "Not",
    "or": "Or",
    "pow": "Pow",
    "sign": "Sign",
    "sin": "Sin",
    "sqrt": "Sqrt",
    "sub": "Sub",
    "tanh": "Tanh",
}
_REDUCTIONS = {"reduce_sum": "ReduceSum", "reduce_max": "ReduceMax", "reduce_min": "ReduceMin"}


def _dot_general(graph: Graph, given, params, out):
    """As a MatMul: axes in order, and those of a kind in one."""
    a, b = given
    (a_sums, b_sums), (a_batch, b_batch) = params["dimension_numbers"]
    free_a = [i for i in range(len(a.shape)) if i not in (*a_sums, *a_batch)]
    free_b = [i for i in range(len(b.shape)) if i not in (*b_sums, *b_batch)]
    if isinstance(a, np.ndarray) and not a_batch:
        # The constant comes second, as a matrix: so the other's axes stay as they are.
        swapped = {"dimension_numbers": ((b_sums, a_sums), ((), ()))}
        shape = (*(b.shape[i] for i in free_b), *(a.shape[i] for i in free_a))
        found = _dot_general(graph, [b, a], swapped, jax.ShapeDtypeStruct(shape, out.dtype))
        axes = range(len(shape))
        return graph.transpose(found, [*axes[len(free_b) :], *axes[: len(free_b)]])
    if isinstance(b, np.ndarray) and not b_batch and len(a_sums) == 1:
        (axis,) = a_sums
        trail = a.shape[axis + 1 :]
        if is_static(trail) and math.prod(trail) >= _ROW:
            return _from_left(graph, b.transpose([*free_b, *b_sums]), a, axis, out)
    batch = [a.shape[i] for i in a_batch]
    rows, columns = [a.shape[i] for i in free_a], [b.shape[i] for i in free_b]
    summed = math.prod(a.shape[i] for i in a_sums)
    a = graph.transpose(a, [*a_batch, *free_a, *a_sums])
    b = graph.transpose(b, [*b_batch, *b_sums, *free_b])
    # A matrix without a batch may meet any number of rows' axes.
    rows = rows if not batch and rows else [math.prod(rows)]
    a = graph.reshape(a, (*batch, *rows, summed))
    b = graph.reshape(b, (*batch, summed, math.prod(columns)))
    product = graph.node("MatMul", [a, b], (*batch, *rows, math.prod(columns)), out.dtype)
    return graph.reshape(product, out.shape)


def _from_left(graph: Graph, matrix: np.ndarray, x: Value, axis: int, out):
    """Constants [..., k] by an axis of `x` of that length: no axis of `x` is moved before."""
    lead, length, trail = x.shape[:axis], x.shape[axis], x.shape[axis + 1 :]
    rows, matrix = matrix.shape[:-1], matrix.reshape(-1, length)
    x = graph.reshape(x, (*lead, length, math.prod(trail)))
    shape = (*lead, len(matrix), x.shape[-1])
    product = graph.reshape(
        graph.node("MatMul", [matrix, x], shape, out.dtype), (*lead, *rows, *trail)
    )
    axes, end = range(len(product.shape)), axis + len(rows)
    return graph.transpose(product, [*axes[:axis], *axes[end:], *axes[axis:end]])


def _conv(graph: Graph, given, params, out):
    x, kernel = given
    order = params["dimension_numbers"]
    if params["batch_group_count"] != 1 or set(params["lhs_dilation"]) != {1}:
        raise NotImplementedError("conv_general_dilated, transposed or grouped by batch")
    x = graph.transpose(x, order.lhs_spec)
    starts, ends = zip(*params["padding"], strict=True)
    found = graph.node(
        "Conv",
        [x, graph.transpose(kernel, order.rhs_spec)],
        [out.shape[i] for i in order.out_spec],
        out.dtype,
        strides=list(params["window_strides"]),
        pads=[*starts, *ends],
        dilations=list(params["rhs_dilation"]),
        group=params["feature_group_count"],
    )
    return graph.transpose(found, np.argsort(order.out_spec))


def _gather(graph: Graph, given, params, out):
    """A part that lies in one known place, or rows of a table by their numbers."""
    table, numbers = given
    how = params["dimension_numbers"]
    if isinstance(numbers, np.ndarray) and numbers.ndim == 1:
        starts = dict(zip(how.start_index_map, numbers.tolist(), strict=True))
        starts = [starts.get(axis, 0) for axis in range(len(table.shape))]
        ends = [start + size for start, size in zip(starts, params["slice_sizes"], strict=True)]
        return graph.reshape(graph.slice(table, starts, ends, [1] * len(ends)), out.shape)
    first = len(out.shape) - len(table.shape) + 1
    if (
        tuple(how.collapsed_slice_dims) != (0,)
        or tuple(how.start_index_map) != (0,)
        or how.operand_batching_dims
        or tuple(how.offset_dims) != tuple(range(first, len(out.shape)))
        or tuple(params["slice_sizes"]) != (1, *table.shape[1:])
    ):
        raise NotImplementedError("gather, of other than a part or rows")
    numbers = graph.reshape(numbers, numbers.shape[:-1])
    return graph.node("Gather", [table, numbers], out.shape, out.dtype, axis=0)


def _pad(graph: Graph, given, params, out):
    x, value = given
    before, after, between = zip(*params["padding_config"], strict=True)
    if any(between) or min(*before, *after) < 0:
        raise NotImplementedError("pad between elements, or by less than nothing")
    pads = np.array([*before, *after], np.int64)
    return graph.node("Pad", [x, pads, value], out.shape, out.dtype)


def _dynamic_slice(graph: Graph, given, params, out):
    x, *starts = given
    if not all(isinstance(start, np.ndarray) for start in starts):
        raise NotImplementedError("dynamic_slice at places that depend on the inputs")
    sizes = params["slice_sizes"]
    starts = [
        min(max(int(start), 0), whole - size)
        for start, whole, size in zip(starts, x.shape, sizes, strict=True)
    ]
    ends = [start + size for start, size in zip(starts, sizes, strict=True)]
    return graph.slice(x, starts, ends, [1] * len(sizes))


def _split(graph: Graph, given, params, out):
    axis, parts, start = params["axis"], [], 0
    for size in params["sizes"]:
        starts, ends = [0] * len(given[0].shape), list(given[0].shape)
        starts[axis], ends[axis] = start, start + size
        parts.append(graph.slice(given[0], starts, ends, [1] * len(ends)))
        start += size
    return parts


def _argmax(graph: Graph, given, params, out):
    (axis,) = params["axes"]
    found = graph.node("ArgMax", given, out.shape, np.int64, axis=int(axis), keepdims=0)
    return _cast(graph, [found], params, out)


def _cast(graph: Graph, given, params, out):
    to = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(out.dtype))
    return graph.node("Cast", given, given[0].shape, out.dtype, to=to)


def _reduce(op: str):
    def reduce(graph: Graph, given, params, out):
        axes = np.array(params["axes"], np.int64)
        return graph.node(op, [*given, axes], out.shape, out.dtype, keepdims=0)

    return reduce


def _power(graph: Graph, given, params, out):
    exponent = np.asarray(params["y"], out.dtype)
    return graph.elementwise("Pow", [given[0], exponent], out.dtype)


def _select(graph: Graph, given, params, out):
    condition, if_false, if_true = given
    if condition.dtype != bool:
        raise NotImplementedError("select_n by number")
    return graph.elementwise("Where", [condition, if_true, if_false], out.dtype)


def _not_equal(graph: Graph, given, params, out):
    return graph.elementwise("Not", [graph.elementwise("Equal", given, out.dtype)], out.dtype)


def _rsqrt(graph: Graph, given, params, out):
    return graph.elementwise("Reciprocal", [graph.elementwise("Sqrt", given, out.dtype)], out.dtype)


def _erfc(graph: Graph, given, params, out):
    erf = graph.elementwise("Erf", given, out.dtype)
    found = graph.elementwise("Sub", [np.ones((), out.dtype), erf], out.dtype)
    graph.origins[found.name] = ("erfc", tuple(given))
    return found


# Operations on values that may be broadcast, and on those written out.
COMPOSED = {
    "convert_element_type": _cast,
    "erfc": _erfc,
    "integer_pow": _power,
    "ne": _not_equal,
    "rsqrt": _rsqrt,
    "select_n": _select,
    "square": lambda graph, given, params, out: graph.elementwise("Mul", given * 2, out.dtype),
}
STRUCTURAL = {
    "argmax": _argmax,
    "concatenate": lambda graph, given, params, out: graph.concatenate(given, params["dimension"]),
    "conv_general_dilated": _conv,
    "dot_general": _dot_general,
    "dynamic_slice": _dynamic_slice,
    "expand_dims": lambda graph, given, params, out: graph.reshape(given[0], out.shape),
    "gather": _gather,
    "pad": _pad,
    "reshape": lambda graph, given, params, out: graph.reshape(given[0], out.shape),
    "slice": lambda graph, given, params, out: graph.slice(
        given[0],
        params["start_indices"],
        params["limit_indices"],
        params["strides"] or [1] * len(out.shape),
    ),
    "split": _split,
    "squeeze": lambda graph, given, params, out: graph.reshape(given[0], out.shape),
    "stack": lambda graph, given, params, out: graph.stack(given, params["axis"]),
    "transpose": lambda graph, given, params, out: graph.transpose(given[0], params["permutation"]),
} | {name: _reduce(op) for name, op in _REDUCTIONS.items()}
