"""Nodes that onnxruntime is faster at in one than in their parts, and how those are known."""

import math

import numpy as np

from talora_jax.inference.onnx.graph import Graph
from talora_jax.inference.onnx.values import Value, is_constant


def _gelu(graph: Graph, half: Value, twice: Value) -> Value | None:
    """(x / 2) (1 + erf(x / √2)) or (x / 2) erfc(-x / √2) in one, if these are such factors."""
    constant, x = graph.made_by("Mul", half) or (None, None)
    one, erf = graph.made_by("Add", twice) or (None, None)
    (inner,) = graph.made_by("Erf", erf) or graph.made_by("erfc", twice) or (None,)
    of, root = graph.made_by("Mul", inner) or (None, None)
    if erf is None:
        (of,) = graph.made_by("Neg", of) or (None,)
    elif not is_constant(one, 1):
        return None
    if x is None or of is not x:
        return None
    if not (is_constant(constant, 0.5) and is_constant(root, math.sqrt(0.5))):
        return None
    return graph.node("Gelu", [x], x.shape, x.dtype)


def _softmax(graph: Graph, exp: Value, total: Value) -> Value | None:
    """exp(x - max x) / Σ exp(x - max x) in one, if these are such terms."""

    def of_reduction(op, value):
        """What was reduced, and the axes as bytes; of sums and maxima that kept their axes."""
        (value, *_) = graph.made_by("Reshape", value) or (value,)
        floor, below = graph.made_by("Max", value) or (None, None)
        value = below if is_constant(floor, -math.inf) else value
        of, axes = graph.made_by(op, value) or (None, np.array([]))
        return of, axes.tolist()

    (shifted,) = graph.made_by("Exp", exp) or (None,)
    x, largest = graph.made_by("Sub", shifted) or (None, None)
    summed, axes = of_reduction("ReduceSum", total)
    maximised, same_axes = of_reduction("ReduceMax", largest)
    if x is None or summed is not exp or maximised is not x or axes != same_axes or len(axes) != 1:
        return None
    return graph.node("Softmax", [x], x.shape, x.dtype, axis=axes[0])


def _layer_norm(graph: Graph, product: Value, bias: Value) -> Value | None:
    """(x - mean x) · (scale / √(var x + ε)) + bias over the last axis in one, if these are such."""

    def mean_of(value):
        """What it is the mean of, over the last axis; None if it is not."""
        (value, *_) = graph.made_by("Reshape", value) or (value,)
        total, count = graph.made_by("Div", value) or (None, None)
        of, axes = graph.made_by("ReduceSum", total) or (None, None)
        if of is None or axes.tolist() != [len(of.shape) - 1]:
            return None
        return of if is_constant(count, of.shape[-1]) else None

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


def _relu(graph: Graph, x: Value, floor: Value) -> Value | None:
    if x.dtype.kind != "f" or not is_constant(floor, 0):
        return None
    return graph.node("Relu", [x], x.shape, x.dtype)


# By the last of the parts.
FUSED = {"Add": _layer_norm, "Div": _softmax, "Max": _relu, "Mul": _gelu}
