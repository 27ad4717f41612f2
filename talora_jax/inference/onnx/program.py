"""From a JAX function to an ONNX model, for the operations that the models are made of.

What depends on weights alone is computed here and now; scans are unrolled, for in a loop
onnxruntime neither folds nor fuses nor prepares weights (a SAM's encoder takes five times as long).
An operation that is not in the tables is told by name. Dimensions may be symbols of
`jax.export.symbolic_shape`.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
import onnx
from jax.extend.core import ClosedJaxpr, Literal

from talora_jax.inference.onnx.fusions import FUSED
from talora_jax.inference.onnx.graph import Graph
from talora_jax.inference.onnx.operations import COMPOSED, ELEMENTWISE, STRUCTURAL
from talora_jax.inference.onnx.values import Value, is_static

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
      NotImplementedError: names the operation that the tables do not have.
    """
    program, shapes = jax.make_jaxpr(function, return_shape=True)(*constants, *inputs.values())
    graph = Graph(FUSED)
    values = [np.asarray(x) for x in jax.tree.leaves(tuple(constants))]
    values += [graph.input(name, x.shape, x.dtype) for name, x in inputs.items()]
    results = _run(graph, program, values)
    # As `jax.tree` orders the names of a dictionary.
    names = dict(zip(sorted(shapes), results, strict=True))
    return graph.model({name: (names[name], shapes[name].shape) for name in shapes})


def _run(graph: Graph, program, inputs: Sequence[Value]) -> list[Value]:
    """The values that a program, traced by JAX, gives."""
    consts = program.consts if isinstance(program, ClosedJaxpr) else ()
    program = getattr(program, "jaxpr", program)
    values = dict(zip(program.constvars, map(np.asarray, consts), strict=True))
    values |= dict(zip(program.invars, inputs, strict=True))

    def value(atom):
        return np.asarray(atom.val, atom.aval.dtype) if isinstance(atom, Literal) else values[atom]

    for equation in program.eqns:
        found = _equation(graph, equation, [value(x) for x in equation.invars])
        values |= dict(zip(equation.outvars, found, strict=True))
    return [value(x) for x in program.outvars]


def _equation(graph: Graph, equation, given: list[Value]) -> list[Value]:
    """The values that one equation gives."""
    name, params = equation.primitive.name, equation.params
    shapes = [x.aval.shape for x in equation.invars]
    out = equation.outvars[0].aval
    if name in _AS_IT_IS:
        return given
    if name == "broadcast_in_dim":
        return [graph.broadcast(given[0], params["shape"], params["broadcast_dimensions"])]
    if name == "platform_index":
        # The last is for any platform.
        return [np.asarray(len(params["platforms"]) - 1, out.dtype)]
    if name == "cond" and isinstance(given[0], np.ndarray):
        return _run(graph, params["branches"][int(given[0])], given[1:])
    if name == "scan":
        return _scan(graph, equation, given)
    if name in _CALLS:
        return _run(graph, params[_CALLS[name]], given)
    if all(isinstance(x, np.ndarray) for x in given) and is_static(out.shape):
        given = [np.broadcast_to(x, shape) for x, shape in zip(given, shapes, strict=True)]
        found = equation.primitive.bind(*given, **params)
        return [np.asarray(x) for x in (found if equation.primitive.multiple_results else [found])]
    if name in ELEMENTWISE:
        return [graph.elementwise(ELEMENTWISE[name], given, out.dtype)]
    if name in COMPOSED:
        return [COMPOSED[name](graph, given, params, out)]
    if name not in STRUCTURAL:
        raise NotImplementedError(name)
    given = [graph.full(x, shape) for x, shape in zip(given, shapes, strict=True)]
    found = STRUCTURAL[name](graph, given, params, out)
    return found if equation.primitive.multiple_results else [found]


def _scan(graph: Graph, equation, given: list[Value]) -> list[Value]:
    """A loop, one round after the other."""
    params, length = equation.params, equation.params["length"]
    # Constants, what is carried, and what each round takes an entry of. How many of each, versions
    # of JAX tell in different ways; what a round sees of the last kind has an axis less.
    body = params["jaxpr"]
    unscanned = _alike(equation.invars, body.in_avals)
    carries = _alike(equation.outvars, body.out_avals)
    consts = unscanned - carries
    fixed, carry = given[:consts], given[consts:unscanned]
    scanned = [
        graph.full(x, var.aval.shape)
        for x, var in zip(given[unscanned:], equation.invars[unscanned:], strict=True)
    ]
    rounds = range(length)[::-1] if params["reverse"] else range(length)
    gathered = {}
    for i in rounds:
        entries = [graph.entry(x, i) for x in scanned]
        found = _run(graph, body, [*fixed, *carry, *entries])
        carry, gathered[i] = found[:carries], found[carries:]
    shapes = [var.aval.shape for var in equation.outvars[carries:]]
    return [
        *carry,
        *(
            graph.stack([graph.full(gathered[i][k], shape[1:]) for i in range(length)], 0)
            for k, shape in enumerate(shapes)
        ),
    ]


def _alike(variables: Sequence, avals: Sequence) -> int:
    """How many variables of a loop a round sees with as many axes."""
    return sum(x.aval.ndim == y.ndim for x, y in zip(variables, avals, strict=True))
