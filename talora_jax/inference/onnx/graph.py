"""An ONNX graph in the making.

Broadcasts are not written out: operators of ONNX broadcast by themselves, so a value may have 1
where JAX's has more, until one reads it that does not (see `Graph.full`).
"""

import functools
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx

from talora_jax.inference.onnx.values import Tensor, Value, broadcast_shape, is_one, is_static

# The first with `Gelu`; onnxruntime reads it from 1.17 on.
OPSET = 20
# The oldest that may hold it.
IR_VERSION = 9

# Of a slice, for the end of an axis.
_END = np.iinfo(np.int64).max

# Makes one node of what was to become several, if it knows them.
Fusion = Callable[..., Value | None]


class Graph:
    """Nodes and initializers so far."""

    def __init__(self, fused: Mapping[str, Fusion]):
        """
        Args:
          fused: what may be made in one, by the last node of its parts.
        """
        self._fused = fused
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.initializers: dict[str, np.ndarray] = {}
        # Of tensors, the node that gave them and what it took.
        self.origins: dict[str, tuple[str, tuple[Value, ...]]] = {}
        # Of symbolic dimensions, by their text, where to read them.
        self.dimensions: dict[str, tuple[str, int]] = {}

    def input(self, name: str, shape: tuple, dtype: np.dtype) -> Tensor:
        self.inputs.append(_info(name, shape, dtype))
        return self._seen(Tensor(name, tuple(shape), np.dtype(dtype)))

    def model(self, results: Mapping[str, tuple[Value, tuple]]) -> onnx.ModelProto:
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

    def node(self, op: str, given: Sequence[Value], shape, dtype, **attributes) -> Tensor:
        """A new node of one output."""
        name = f"{op}_{len(self.nodes)}"
        inputs = [self.named(x) for x in given]
        self.nodes.append(onnx.helper.make_node(op, inputs, [name], name=name, **attributes))
        self.origins[name] = (op, tuple(given))
        return self._seen(Tensor(name, tuple(shape), np.dtype(dtype)))

    def named(self, value: Value) -> str:
        """A value's name; a constant becomes an initializer, equal ones the same."""
        if isinstance(value, Tensor):
            return value.name
        value = np.ascontiguousarray(value).reshape(value.shape)
        content = hashlib.sha256(f"{value.dtype}{value.shape}".encode() + value.tobytes())
        name = f"constant_{content.hexdigest()[:16]}"
        self.initializers[name] = value
        return name

    def _seen(self, tensor: Tensor) -> Tensor:
        for axis, dim in enumerate(tensor.shape):
            if not is_static((dim,)):
                self.dimensions.setdefault(str(dim), (tensor.name, axis))
        return tensor

    def lengths(self, shape: tuple) -> Value:
        """A shape as a tensor of int64."""
        if is_static(shape):
            return np.array(shape, np.int64)
        parts = [self._length(dim) for dim in shape]
        return self.node("Concat", parts, (len(shape),), np.int64, axis=0)

    def _length(self, dim) -> Value:
        if is_static((dim,)):
            return np.array([dim], np.int64)
        name, axis = self.dimensions[str(dim)]
        shape = self.node("Shape", [Tensor(name, (), np.dtype(np.int64))], (1,), np.int64)
        return self.node("Gather", [shape, np.array([axis], np.int64)], (1,), np.int64, axis=0)

    def full(self, value: Value, shape: tuple) -> Value:
        """A value with its broadcasts written out."""
        if tuple(value.shape) == tuple(shape):
            return value
        if isinstance(value, np.ndarray) and is_static(shape):
            return np.broadcast_to(value, shape)
        return self.node("Expand", [value, self.lengths(shape)], shape, value.dtype)

    def reshape(self, x: Value, shape: tuple) -> Value:
        shape = tuple(shape)
        if isinstance(x, np.ndarray):
            return x.reshape(shape)
        (x, *_) = self.made_by("Reshape", x) or (x,)
        if tuple(x.shape) == shape:
            return x
        # In ONNX 0 is the length that this axis had, and -1 the one that is left.
        target = [
            dim if is_static((dim,)) else 0 if axis < len(x.shape) and x.shape[axis] == dim else -1
            for axis, dim in enumerate(shape)
        ]
        lengths = np.array(target, np.int64) if target.count(-1) < 2 else self.lengths(shape)
        return self.node("Reshape", [x, lengths], shape, x.dtype)

    def transpose(self, x: Value, order: Sequence[int]) -> Value:
        order = [int(axis) for axis in order]
        if order == sorted(order):
            return x
        if isinstance(x, np.ndarray):
            return x.transpose(order)
        if origin := self.made_by("Transpose", x):
            x, before = origin
            return self.transpose(x, [before[axis] for axis in order])
        shape = [x.shape[axis] for axis in order]
        moved = [axis for axis in order if not is_one(x.shape[axis])]
        if moved == sorted(moved):  # nothing moves in memory
            return self.reshape(x, shape)
        found = self.node("Transpose", [x], shape, x.dtype, perm=order)
        self.origins[found.name] = ("Transpose", (x, order))
        return found

    def broadcast(self, x: Value, shape: tuple, axes: Sequence[int]) -> Value:
        """`x` with its axes at `axes` of a shape, and 1 elsewhere."""
        places = dict(zip(axes, x.shape, strict=True))
        return self.reshape(x, tuple(places.get(axis, 1) for axis in range(len(shape))))

    def elementwise(self, op: str, given: list[Value], dtype: np.dtype) -> Value:
        if op in self._fused and (fused := self._fused[op](self, *given)):
            return fused
        if earlier := self._before_split(op, given, dtype):
            return earlier
        return self.node(op, given, broadcast_shape([x.shape for x in given]), dtype)

    def _before_split(self, op: str, given: list[Value], dtype: np.dtype) -> Value | None:
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
            or not is_static((*parts, whole.shape[kept]))
            or math.prod(parts) != whole.shape[kept]
            or row.size != math.prod(row.shape[kept:])
        ):
            return None
        row = np.broadcast_to(row.reshape(row.shape[kept:]), parts).reshape(-1)
        earlier = [row if isinstance(value, np.ndarray) else whole for value in given]
        return self.reshape(self.node(op, earlier, whole.shape, dtype), x.shape)

    def made_by(self, op: str, value: Value) -> tuple[Value, ...]:
        """What a node of this kind took to give a value; nothing if none did."""
        found, given = self.origins.get(getattr(value, "name", ""), ("", ()))
        return given if found == op else ()

    def entry(self, x: Value, index: int) -> Value:
        if isinstance(x, np.ndarray):
            return np.asarray(x[index])
        return self.node("Gather", [x, np.array(index, np.int64)], x.shape[1:], x.dtype, axis=0)

    def stack(self, given: list[Value], axis: int) -> Value:
        shape = given[0].shape
        parts = [self.reshape(x, (*shape[:axis], 1, *shape[axis:])) for x in given]
        return self.concatenate(parts, axis)

    def concatenate(self, given: list[Value], axis: int) -> Value:
        if all(isinstance(x, np.ndarray) for x in given):
            return np.concatenate(given, axis)
        shape = list(given[0].shape)
        shape[axis] = functools.reduce(lambda a, b: a + b, (x.shape[axis] for x in given))
        return self.node("Concat", given, shape, given[0].dtype, axis=int(axis))

    def slice(self, x: Value, starts, ends, steps) -> Value:
        axes = [
            i
            for i, (start, end, step) in enumerate(zip(starts, ends, steps, strict=True))
            if not (is_static((start,)) and start == 0 and end == x.shape[i] and step == 1)
        ]
        if not axes:
            return x
        shape = list(x.shape)
        for i in axes:
            shape[i] = -(-(ends[i] - starts[i]) // steps[i])
        if not is_static([starts[i] for i in axes]):
            raise NotImplementedError("slice that begins at a free length")
        # What ends where the axis does may end beyond it: the axis may have a free length.
        ends = [_END if end == dim else end for end, dim in zip(ends, x.shape, strict=True)]
        if not is_static([ends[i] for i in axes]):
            raise NotImplementedError("slice that ends at a free length")
        bounds = [
            np.array([values[i] for i in axes], np.int64)
            for values in (starts, ends, range(len(shape)), steps)
        ]
        return self.node("Slice", [x, *bounds], shape, x.dtype)


def _info(name: str, shape: tuple, dtype: np.dtype) -> onnx.ValueInfoProto:
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    dims = [int(dim) if is_static((dim,)) else str(dim) for dim in shape]
    return onnx.helper.make_tensor_value_info(name, kind, dims)
