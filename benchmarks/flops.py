"""Counts the floating-point operations of a JAX function from its jaxpr, without running it.

XLA's own `cost_analysis` counts the body of a loop once, however often it runs; here a scan's body
counts as often as the scan is long. Only matrix products and convolutions are counted, with a
multiply-add as two operations: they are nearly all of a transformer's work, and the only part that
does not depend on how a compiler fuses the rest.
"""

import math
from collections.abc import Callable, Iterator
from fractions import Fraction

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn


def count_flops(function: Callable, *args, **kwargs) -> int:
    """The operations of `function(*args, **kwargs)`; arguments may be shapes (ShapeDtypeStruct).

    Of a branch the dearest side counts. What a checkpointed function computes again counts again.

    Raises:
      ValueError: a product stands in a while loop, whose number of rounds no jaxpr tells.
    """
    return jaxpr_flops(jax.make_jaxpr(function)(*args, **kwargs).jaxpr)


def jaxpr_flops(jaxpr: Jaxpr, rounds: Fraction | None = None) -> int:
    """The operations of one run of a jaxpr; see `count_flops`.

    Args:
      rounds: how many a while loop with products makes, on average over its runs.
    """
    return int(_flops(jaxpr, rounds))


def _flops(jaxpr: Jaxpr, rounds: Fraction | None) -> int | Fraction:
    return sum(_equation(equation, rounds) for equation in jaxpr.eqns)


def _equation(equation: JaxprEqn, rounds: Fraction | None) -> int | Fraction:
    name = equation.primitive.name
    if name == "dot_general":
        return _dot_general(equation)
    if name == "conv_general_dilated":
        return _convolution(equation)
    inner = [_flops(jaxpr, rounds) for jaxpr in _jaxprs(equation)]
    if name == "scan":
        return equation.params["length"] * sum(inner)
    if name == "cond":
        return max(inner)
    if name == "shard_map":
        return equation.params["mesh"].size * sum(inner)
    if name == "pallas_call":
        return math.prod(equation.params["grid_mapping"].grid) * sum(inner)
    if name == "while" and any(inner):
        if rounds is None:
            raise ValueError("cannot tell how often the products inside a `while` are computed")
        return rounds * sum(inner)
    return sum(inner)


def _dot_general(equation: JaxprEqn) -> int:
    """Two operations per element of the result and per contracted element."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)


def _convolution(equation: JaxprEqn) -> int:
    """Two per element of the result and of the kernel that one output channel has.

    Products with padding count, as do those with the zeros that a dilation of the input inserts.
    """
    kernel = equation.invars[1].aval
    out_channels = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
    return 2 * equation.outvars[0].aval.size * kernel.size // out_channels


def _jaxprs(equation: JaxprEqn) -> Iterator[Jaxpr]:
    """The jaxprs that an equation calls: of jit, scan, remat, custom derivatives, …."""
    for value in equation.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, ClosedJaxpr):
                yield item.jaxpr
            elif isinstance(item, Jaxpr):
                yield item
