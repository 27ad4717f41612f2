"""From a JAX function to an ONNX graph, for the operations that the models are made of.

A table of JAX's primitives and what each is in ONNX. What depends on weights alone is computed here
and now; scans are unrolled, for in a loop onnxruntime neither folds nor fuses nor prepares weights
(a SAM's encoder takes five times as long). An operation that is not in the table is told by name.
Dimensions may be symbols of `jax.export.symbolic_shape`.

Broadcasts are not written out: operators of ONNX broadcast by themselves, so a value may have 1
where JAX's has more, until one reads it that does not (see `_Graph.full`).
"""

import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
import onnx
from jax.extend.core import ClosedJaxpr, Literal

# The first with `Gelu`; onnxruntime reads it from 1.17 on.
OPSET = 20
# The oldest that may hold it.
IR_VERSION = 9

# Of products, the least that onnxruntime takes in one step along a row.
_ROW = 16
# Of a slice, for the end of an axis.
_END = np.iinfo(np.int64).max

# Programs are inlined where they are called: which parameter holds them.
_CALLS = {
    "jit": "jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
_AS_IT_IS = ("copy", "copy_p", "name", "stop_gradient", "optimization_barrier")
_ELEMENTWISE = {
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


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """What a node or an input gives; `shape` is what it has in ONNX."""

    name: str
    shape: tuple
    dtype: np.dtype


_Value = _Tensor | np.ndarray


def to_onnx(
    function: Callable,
    constants: Sequence,
    inputs: Mapping[str, jax.ShapeDtypeStruct],
) -> onnx.ModelProto:
    """The ONNX model of a function that gives arrays by name.

    Args:
      function: takes the constants, then the inputs.
      constants: trees of arrays, such as weights; the file holds them.
      inputs: by the names that they get in the model.

    Raises:
      NotImplementedError: names the operation that the table does not have.
    """
    program, shapes = jax.make_jaxpr(function, return_shape=True)(*constants, *inputs.values())
    graph = _Graph()
    values = [np.asarray(x) for x in jax.tree.leaves(tuple(constants))]
    values += [graph.input(name, x.shape, x.dtype) for name, x in inputs.items()]
    results = graph.run(program, values)
    # As `jax.tree` orders the names of a dictionary.
    names = dict(zip(sorted(shapes), results, strict=True))
    return graph.model({name: (names[name], shapes[name].shape) for name in shapes})


class _Graph:
    """Nodes and initializers so far."""

    def __init__(self):
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.initializers: dict[str, np.ndarray] = {}
        # Of tensors, the node that gave them and what it took.
        self.origins: dict[str, tuple[str, tuple[_Value, ...]]] = {}
        # Of symbolic dimensions, by their text, where to read them.
        self.dimensions: dict[str, tuple[str, int]] = {}

    def input(self, name: str, shape: tuple, dtype: np.dtype) -> _Tensor:
        self.inputs.append(_info(name, shape, dtype))
        return self._seen(_Tensor(name, tuple(shape), np.dtype(dtype)))

    def model(self, results: Mapping[str, tuple[_Value, tuple]]) -> onnx.ModelProto:
        """The model that gives these values, at these shapes, by name."""
        outputs = []
        for name, (value, shape) in results.items():
            value = self.full(value, shape)
            self.nodes.append(onnx.helper.make_node("Identity", [self.named(value)], [name]))
            outputs.append(_info(name, shape, value.dtype))
        wanted, kept = set(results), []
        for node in reversed(self.nodes):
            if wanted.intersection(node.output):
                wanted.update(node.input)
                kept.append(node)
        weights = [
            onnx.numpy_helper.from_array(x, name)
            for name, x in self.initializers.items()
            if name in wanted
        ]
        return onnx.helper.make_model(
            onnx.helper.make_graph(kept[::-1], "talora_jax", self.inputs, outputs, weights),
            opset_imports=[onnx.helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="talora_jax",
        )

    def run(self, program, inputs: Sequence[_Value]) -> list[_Value]:
        """The values that a program, traced by JAX, gives."""
        consts = program.consts if isinstance(program, ClosedJaxpr) else ()
        program = getattr(program, "jaxpr", program)
        values = dict(zip(program.constvars, map(np.asarray, consts), strict=True))
        values |= dict(zip(program.invars, inputs, strict=True))

        def value(atom):
            return (
                np.asarray(atom.val, atom.aval.dtype) if isinstance(atom, Literal) else values[atom]
            )

        for equation in program.eqns:
            found = self.equation(equation, [value(x) for x in equation.invars])
            values |= dict(zip(equation.outvars, found, strict=True))
        return [value(x) for x in program.outvars]

    def equation(self, equation, given: list[_Value]) -> list[_Value]:
        """The values that one equation gives."""
        name, params = equation.primitive.name, equation.params
        shapes = [x.aval.shape for x in equation.invars]
        out = equation.outvars[0].aval
        if name in _AS_IT_IS:
            return given
        if name == "broadcast_in_dim":
            return [self.broadcast(given[0], params["shape"], params["broadcast_dimensions"])]
        if name == "platform_index":
            # The last is for any platform.
            return [np.asarray(len(params["platforms"]) - 1, out.dtype)]
        if name == "cond" and isinstance(given[0], np.ndarray):
            return self.run(params["branches"][int(given[0])], given[1:])
        if name == "scan":
            return self.scan(equation, given)
        if name in _CALLS:
            return self.run(params[_CALLS[name]], given)
        if all(isinstance(x, np.ndarray) for x in given) and _is_static(out.shape):
            given = [np.broadcast_to(x, shape) for x, shape in zip(given, shapes, strict=True)]
            found = equation.primitive.bind(*given, **params)
            return [
                np.asarray(x) for x in (found if equation.primitive.multiple_results else [found])
            ]
        if name in _ELEMENTWISE:
            return [self.elementwise(_ELEMENTWISE[name], given, out.dtype)]
        if name in _COMPOSED:
            return [_COMPOSED[name](self, given, params, out)]
        if name not in _STRUCTURAL:
            raise NotImplementedError(name)
        given = [self.full(x, shape) for x, shape in zip(given, shapes, strict=True)]
        found = _STRUCTURAL[name](self, given, params, out)
        return found if equation.primitive.multiple_results else [found]

    # What nodes are made of.

    def node(self, op: str, given: Sequence[_Value], shape, dtype, **attributes) -> _Tensor:
        """A new node of one output."""
        name = f"{op}_{len(self.nodes)}"
        inputs = [self.named(x) for x in given]
        self.nodes.append(onnx.helper.make_node(op, inputs, [name], name=name, **attributes))
        self.origins[name] = (op, tuple(given))
        return self._seen(_Tensor(name, tuple(shape), np.dtype(dtype)))

    def named(self, value: _Value) -> str:
        """A value's name; a constant becomes an initializer, equal ones the same."""
        if isinstance(value, _Tensor):
            return value.name
        value = np.ascontiguousarray(value).reshape(value.shape)
        content = hashlib.sha256(f"{value.dtype}{value.shape}".encode() + value.tobytes())
        name = f"constant_{content.hexdigest()[:16]}"
        self.initializers[name] = value
        return name

    def _seen(self, tensor: _Tensor) -> _Tensor:
        for axis, dim in enumerate(tensor.shape):
            if not _is_static((dim,)):
                self.dimensions.setdefault(str(dim), (tensor.name, axis))
        return tensor

    def lengths(self, shape: tuple) -> _Value:
        """A shape as a tensor of int64."""
        if _is_static(shape):
            return np.array(shape, np.int64)
        parts = [self._length(dim) for dim in shape]
        return self.node("Concat", parts, (len(shape),), np.int64, axis=0)

    def _length(self, dim) -> _Value:
        if _is_static((dim,)):
            return np.array([dim], np.int64)
        name, axis = self.dimensions[str(dim)]
        shape = self.node("Shape", [_Tensor(name, (), np.dtype(np.int64))], (1,), np.int64)
        return self.node("Gather", [shape, np.array([axis], np.int64)], (1,), np.int64, axis=0)

    def full(self, value: _Value, shape: tuple) -> _Value:
        """A value with its broadcasts written out."""
        if tuple(value.shape) == tuple(shape):
            return value
        if isinstance(value, np.ndarray) and _is_static(shape):
            return np.broadcast_to(value, shape)
        return self.node("Expand", [value, self.lengths(shape)], shape, value.dtype)

    def reshape(self, x: _Value, shape: tuple) -> _Value:
        shape = tuple(shape)
        if isinstance(x, np.ndarray):
            return x.reshape(shape)
        (x, *_) = self.made_by("Reshape", x) or (x,)
        if tuple(x.shape) == shape:
            return x
        # In ONNX 0 is the length that this axis had, and -1 the one that is left.
        target = [
            dim if _is_static((dim,)) else 0 if axis < len(x.shape) and x.shape[axis] == dim else -1
            for axis, dim in enumerate(shape)
        ]
        lengths = np.array(target, np.int64) if target.count(-1) < 2 else self.lengths(shape)
        return self.node("Reshape", [x, lengths], shape, x.dtype)

    def transpose(self, x: _Value, order: Sequence[int]) -> _Value:
        order = [int(axis) for axis in order]
        if order == sorted(order):
            return x
        if isinstance(x, np.ndarray):
            return x.transpose(order)
        if origin := self.made_by("Transpose", x):
            x, before = origin
            return self.transpose(x, [before[axis] for axis in order])
        shape = [x.shape[axis] for axis in order]
        moved = [axis for axis in order if not _is_one(x.shape[axis])]
        if moved == sorted(moved):  # nothing moves in memory
            return self.reshape(x, shape)
        found = self.node("Transpose", [x], shape, x.dtype, perm=order)
        self.origins[found.name] = ("Transpose", (x, order))
        return found

    def broadcast(self, x: _Value, shape: tuple, axes: Sequence[int]) -> _Value:
        """`x` with its axes at `axes` of a shape, and 1 elsewhere."""
        places = dict(zip(axes, x.shape, strict=True))
        return self.reshape(x, tuple(places.get(axis, 1) for axis in range(len(shape))))

    def elementwise(self, op: str, given: list[_Value], dtype: np.dtype) -> _Value:
        if op in _FUSED and (fused := _FUSED[op](self, *given)):
            return fused
        if earlier := self._before_split(op, given, dtype):
            return earlier
        return self.node(op, given, _broadcast_shape([x.shape for x in given]), dtype)

    def _before_split(self, op: str, given: list[_Value], dtype: np.dtype) -> _Value | None:
        """`op` with a row of constants done before a value's last axis is split; None if it is not.

        onnxruntime adds a row of 8 several times slower than one of 32.
        """
        if len(given) != 2 or sum(isinstance(x, np.ndarray) for x in given) != 1:
            return None
        x, row = given if isinstance(given[1], np.ndarray) else given[::-1]
        (whole, *_) = self.made_by("Reshape", x) or (None,)
        if whole is None or not whole.shape or row.ndim != len(x.shape) or row.size == 1:
            return None
        kept = len(whole.shape) - 1
        parts = x.shape[kept:]
        if (
            tuple(x.shape[:kept]) != tuple(whole.shape[:kept])
            or not _is_static((*parts, whole.shape[kept]))
            or math.prod(parts) != whole.shape[kept]
            or row.size != math.prod(row.shape[kept:])
        ):
            return None
        row = np.broadcast_to(row.reshape(row.shape[kept:]), parts).reshape(-1)
        earlier = [row if isinstance(value, np.ndarray) else whole for value in given]
        return self.reshape(self.node(op, earlier, whole.shape, dtype), x.shape)

    def made_by(self, op: str, value: _Value) -> tuple[_Value, ...]:
        """What a node of this kind took to give a value; nothing if none did."""
        found, given = self.origins.get(getattr(value, "name", ""), ("", ()))
        return given if found == op else ()

    def scan(self, equation, given: list[_Value]) -> list[_Value]:
        """A loop, one round after the other."""
        params, length = equation.params, equation.params["length"]
        consts, carries = params["num_consts"], params["num_carry"]
        fixed, carry, scanned = (
            given[:consts],
            given[consts : consts + carries],
            [
                self.full(x, var.aval.shape)
                for x, var in zip(
                    given[consts + carries :], equation.invars[consts + carries :], strict=True
                )
            ],
        )
        rounds = range(length)[::-1] if params["reverse"] else range(length)
        gathered = {}
        for i in rounds:
            entries = [self._entry(x, i) for x in scanned]
            found = self.run(params["jaxpr"], [*fixed, *carry, *entries])
            carry, gathered[i] = found[:carries], found[carries:]
        shapes = [var.aval.shape for var in equation.outvars[carries:]]
        return [
            *carry,
            *(
                self.stack([self.full(gathered[i][k], shape[1:]) for i in range(length)], 0)
                for k, shape in enumerate(shapes)
            ),
        ]

    def _entry(self, x: _Value, index: int) -> _Value:
        if isinstance(x, np.ndarray):
            return np.asarray(x[index])
        return self.node("Gather", [x, np.array(index, np.int64)], x.shape[1:], x.dtype, axis=0)

    def stack(self, given: list[_Value], axis: int) -> _Value:
        shape = given[0].shape
        parts = [self.reshape(x, (*shape[:axis], 1, *shape[axis:])) for x in given]
        return self.concatenate(parts, axis)

    def concatenate(self, given: list[_Value], axis: int) -> _Value:
        if all(isinstance(x, np.ndarray) for x in given):
            return np.concatenate(given, axis)
        shape = list(given[0].shape)
        shape[axis] = functools.reduce(lambda a, b: a + b, (x.shape[axis] for x in given))
        return self.node("Concat", given, shape, given[0].dtype, axis=int(axis))

    def slice(self, x: _Value, starts, ends, steps) -> _Value:
        axes = [
            i
            for i, (start, end, step) in enumerate(zip(starts, ends, steps, strict=True))
            if not (_is_static((start,)) and start == 0 and end == x.shape[i] and step == 1)
        ]
        if not axes:
            return x
        shape = list(x.shape)
        for i in axes:
            shape[i] = -(-(ends[i] - starts[i]) // steps[i])
        if not _is_static([starts[i] for i in axes]):
            raise NotImplementedError("slice that begins at a free length")
        # What ends where the axis does may end beyond it: the axis may have a free length.
        ends = [_END if end == dim else end for end, dim in zip(ends, x.shape, strict=True)]
        if not _is_static([ends[i] for i in axes]):
            raise NotImplementedError("slice that ends at a free length")
        bounds = [
            np.array([values[i] for i in axes], np.int64)
            for values in (starts, ends, range(len(shape)), steps)
        ]
        return self.node("Slice", [x, *bounds], shape, x.dtype)


def _dot_general(graph: _Graph, given, params, out):
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
        if _is_static(trail) and math.prod(trail) >= _ROW:
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


def _from_left(graph: _Graph, matrix: np.ndarray, x: _Value, axis: int, out):
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


def _conv(graph: _Graph, given, params, out):
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


def _gather(graph: _Graph, given, params, out):
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


def _pad(graph: _Graph, given, params, out):
    x, value = given
    before, after, between = zip(*params["padding_config"], strict=True)
    if any(between) or min(*before, *after) < 0:
        raise NotImplementedError("pad between elements, or by less than nothing")
    pads = np.array([*before, *after], np.int64)
    return graph.node("Pad", [x, pads, value], out.shape, out.dtype)


def _dynamic_slice(graph: _Graph, given, params, out):
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


def _split(graph: _Graph, given, params, out):
    axis, parts, start = params["axis"], [], 0
    for size in params["sizes"]:
        starts, ends = [0] * len(given[0].shape), list(given[0].shape)
        starts[axis], ends[axis] = start, start + size
        parts.append(graph.slice(given[0], starts, ends, [1] * len(ends)))
        start += size
    return parts


def _argmax(graph: _Graph, given, params, out):
    (axis,) = params["axes"]
    found = graph.node("ArgMax", given, out.shape, np.int64, axis=int(axis), keepdims=0)
    return _cast(graph, [found], params, out)


def _cast(graph: _Graph, given, params, out):
    to = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(out.dtype))
    return graph.node("Cast", given, given[0].shape, out.dtype, to=to)


def _reduce(op: str):
    def reduce(graph: _Graph, given, params, out):
        axes = np.array(params["axes"], np.int64)
        return graph.node(op, [*given, axes], out.shape, out.dtype, keepdims=0)

    return reduce


def _power(graph: _Graph, given, params, out):
    exponent = np.asarray(params["y"], out.dtype)
    return graph.elementwise("Pow", [given[0], exponent], out.dtype)


def _select(graph: _Graph, given, params, out):
    condition, if_false, if_true = given
    if condition.dtype != bool:
        raise NotImplementedError("select_n by number")
    return graph.elementwise("Where", [condition, if_true, if_false], out.dtype)


def _not_equal(graph: _Graph, given, params, out):
    return graph.elementwise("Not", [graph.elementwise("Equal", given, out.dtype)], out.dtype)


def _rsqrt(graph: _Graph, given, params, out):
    return graph.elementwise("Reciprocal", [graph.elementwise("Sqrt", given, out.dtype)], out.dtype)


def _erfc(graph: _Graph, given, params, out):
    erf = graph.elementwise("Erf", given, out.dtype)
    found = graph.elementwise("Sub", [np.ones((), out.dtype), erf], out.dtype)
    graph.origins[found.name] = ("erfc", tuple(given))
    return found


def _gelu(graph: _Graph, half: _Value, erfc: _Value) -> _Value | None:
    """(x / 2) erfc(-x / √2) in one, if these are such factors."""
    constant, x = graph.made_by("Mul", half) or (None, None)
    (inner,) = graph.made_by("erfc", erfc) or (None,)
    negative, root = graph.made_by("Mul", inner) or (None, None)
    if not (_is_constant(constant, 0.5) and _is_constant(root, math.sqrt(0.5))):
        return None
    if not any(of is x for of in graph.made_by("Neg", negative)):
        return None
    return graph.node("Gelu", [x], x.shape, x.dtype)


def _softmax(graph: _Graph, exp: _Value, total: _Value) -> _Value | None:
    """exp(x - max x) / Σ exp(x - max x) in one, if these are such terms."""

    def of_reduction(op, value):
        """What was reduced, and the axes as bytes; of sums and maxima that kept their axes."""
        (value, *_) = graph.made_by("Reshape", value) or (value,)
        floor, below = graph.made_by("Max", value) or (None, None)
        value = below if _is_constant(floor, -math.inf) else value
        of, axes = graph.made_by(op, value) or (None, np.array([]))
        return of, axes.tolist()

    (shifted,) = graph.made_by("Exp", exp) or (None,)
    x, largest = graph.made_by("Sub", shifted) or (None, None)
    summed, axes = of_reduction("ReduceSum", total)
    maximised, same_axes = of_reduction("ReduceMax", largest)
    if x is None or summed is not exp or maximised is not x or axes != same_axes or len(axes) != 1:
        return None
    return graph.node("Softmax", [x], x.shape, x.dtype, axis=axes[0])


def _layer_norm(graph: _Graph, product: _Value, bias: _Value) -> _Value | None:
    """(x - mean x) · (scale / √(var x + ε)) + bias over the last axis in one, if these are such."""

    def mean_of(value):
        """What it is the mean of, over the last axis; None if it is not."""
        (value, *_) = graph.made_by("Reshape", value) or (value,)
        total, count = graph.made_by("Div", value) or (None, None)
        of, axes = graph.made_by("ReduceSum", total) or (None, None)
        if of is None or axes.tolist() != [len(of.shape) - 1]:
            return None
        return of if _is_constant(count, of.shape[-1]) else None

    centred, scaled = graph.made_by("Mul", product) or (None, None)
    x, mean = graph.made_by("Sub", centred) or (None, None)
    inverse, scale = graph.made_by("Mul", scaled) or (None, None)
    (root,) = graph.made_by("Reciprocal", inverse) or (None,)
    (summed,) = graph.made_by("Sqrt", root) or (None,)
    variance, epsilon = graph.made_by("Add", summed) or (None, None)
    first, second = graph.made_by("Mul", mean_of(variance)) or (None, None)
    of, same_mean = graph.made_by("Sub", first) or (None, None)
    if x is None or of is not x or second is not first:
        return None
    if mean_of(mean) is not x or mean_of(same_mean) is not x:
        return None
    if not all(isinstance(constant, np.ndarray) for constant in (epsilon, scale, bias)):
        return None
    if any({row.size, *row.shape[-1:]} != {x.shape[-1]} for row in (scale, bias)):
        return None
    rows = [scale.reshape(-1), bias.reshape(-1)]
    return graph.node("LayerNormalization", [x, *rows], x.shape, x.dtype, epsilon=epsilon.item())


def _relu(graph: _Graph, x: _Value, floor: _Value) -> _Value | None:
    if x.dtype.kind != "f" or not _is_constant(floor, 0):
        return None
    return graph.node("Relu", [x], x.shape, x.dtype)


# What onnxruntime is faster at in one than in its parts, by the last of them.
_FUSED = {"Add": _layer_norm, "Div": _softmax, "Max": _relu, "Mul": _gelu}
# Operations on values that may be broadcast, and on those written out.
_COMPOSED = {
    "convert_element_type": _cast,
    "erfc": _erfc,
    "integer_pow": _power,
    "ne": _not_equal,
    "rsqrt": _rsqrt,
    "select_n": _select,
    "square": lambda graph, given, params, out: graph.elementwise("Mul", given * 2, out.dtype),
}
_STRUCTURAL = {
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


def _is_static(shape: Sequence) -> bool:
    return all(isinstance(dim, (int, np.integer)) for dim in shape)


def _is_one(dim) -> bool:
    return _is_static((dim,)) and dim == 1


def _is_constant(value: _Value | None, number: float) -> bool:
    return isinstance(value, np.ndarray) and value.shape == () and bool(np.isclose(value, number))


def _broadcast_shape(shapes: Sequence[tuple]) -> tuple:
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return tuple(
        next((dim for dim in dims if not _is_one(dim)), 1) for dims in zip(*padded, strict=True)
    )


def _info(name: str, shape: tuple, dtype: np.dtype) -> onnx.ValueInfoProto:
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    dims = [int(dim) if _is_static((dim,)) else str(dim) for dim in shape]
    return onnx.helper.make_tensor_value_info(name, kind, dims)
