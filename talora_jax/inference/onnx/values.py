"""What nodes of an ONNX graph take and give."""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tensor:
    """What a node or an input gives; `shape` is what it has in ONNX."""

    name: str
    shape: tuple
    dtype: np.dtype


Value = Tensor | np.ndarray


def is_static(shape: Sequence) -> bool:
    return all(isinstance(dim, (int, np.integer)) for dim in shape)


def is_one(dim) -> bool:
    return is_static((dim,)) and dim == 1


def is_constant(value: Value | None, number: float) -> bool:
    return isinstance(value, np.ndarray) and value.shape == () and bool(np.isclose(value, number))


def broadcast_shape(shapes: Sequence[tuple]) -> tuple:
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(shape)) + tuple(shape) for shape in shapes]
    return tuple(
        next((dim for dim in dims if not is_one(dim)), 1) for dims in zip(*padded, strict=True)
    )
