"""What a compiled program sends between devices, read from its HLO text.

An instruction inside a loop counts as often as the loop runs: by the `known_trip_count` that XLA
wrote down, or else by the constant that the loop's condition compares its counter with, which is
how `jax.lax.scan` and `fori_loop` compile (from zero, in steps of one).
"""

import collections
import dataclasses
import math
import re
from collections.abc import Iterator, Sequence

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)

_COMPUTATION = re.compile(r"(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?(?P<name>[\w.\-]+) = (?P<rest>.*)")
_CALLED = re.compile(
    r"\b(?:calls|to_apply|body|branch_computations|true_computation|false_computation)="
    r"\{?(%?[\w.\-]+(?:, %?[\w.\-]+)*)"
)
_ARRAY = re.compile(r"\b([a-z]+)(\d*)\w*\[([\d,]*)\]")
_NAME = re.compile(r"%([\w.\-]+)")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One collective instruction.

    Attributes:
      kind: of `KINDS`; asynchronous forms count as the plain one.
      size: bytes of one call on one device, the larger side of it: the operand (of an all-gather
        the result).
      calls: times that a run of the program makes it.
      source: the JAX operation it comes from, as far as XLA tells.
    """

    kind: str
    size: int
    calls: int
    source: str

    @property
    def total(self) -> int:
        return self.size * self.calls


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    arguments: str
    attributes: str


def find_collectives(hlo: str) -> list[Collective]:
    """The collectives of a compiled program (`compiled.as_text()`), in the order of the text.

    Of a conditional every branch counts. A collective that XLA has spread over several fusions,
    which carry one channel then, counts once.

    Raises:
      ValueError: the text has no entry computation, or a collective is in a loop of which nothing
        tells how often it runs.
    """
    computations, entry = _parse(hlo)
    calls: dict[str, float] = collections.Counter({entry: 1})
    found: dict[object, Collective] = {}
    # A computation stands before those that call it: backwards, all its callers are known.
    for name in reversed(computations):
        instructions = computations[name]
        shapes = {i.name: i.shape for i in instructions}
        for at, instruction in enumerate(instructions):
            for callee, times in _callees(instruction, computations):
                calls[callee] += calls[name] * times
            kind = instruction.opcode.removesuffix("-start")
            if kind not in KINDS or not calls[name]:
                continue
            if math.isnan(calls[name]):
                raise ValueError(f"nothing tells how often the {kind} in {name} is called")
            collective = Collective(
                kind, _size(instruction, shapes), int(calls[name]), _source(instruction)
            )
            channel = re.search(r"\bchannel_id=(\d+)", instruction.attributes)
            key = channel[1] if channel else (name, at)
            if key not in found or found[key].total < collective.total:
                found[key] = collective
    return list(found.values())[::-1]


def totals(found: Sequence[Collective]) -> dict[str, dict[str, int]]:
    """Bytes and calls of each kind that is there."""
    return {
        kind: {
            "bytes": sum(c.total for c in found if c.kind == kind),
            "calls": sum(c.calls for c in found if c.kind == kind),
        }
        for kind in KINDS
        if any(c.kind == kind for c in found)
    }


def shape_bytes(shape: str) -> int:
    """Bytes of an HLO shape, arrays or tuples of them, without the padding of its layout.

    >>> shape_bytes("(f32[2,3]{1,0:T(8,128)}, bf16[4]{0})")
    32
    """
    return sum(
        math.ceil(_bits(kind, bits) * math.prod(int(n) for n in sides.split(",") if n) / 8)
        for kind, bits, sides in _ARRAY.findall(_without_layouts(shape))
    )


def _bits(kind: str, bits: str) -> int:
    if kind == "pred":
        return 8
    return int(bits) if bits else 0  # Tokens and opaque values have none.


def _without_layouts(shape: str) -> str:
    return re.sub(r"\{[^}]*\}|/\*.*?\*/", "", shape)


def _parse(hlo: str) -> tuple[dict[str, list[_Instruction]], str]:
    """The computations by name, in the order of the text, and the name of the entry."""
    computations: dict[str, list[_Instruction]] = {}
    entry, body = None, None
    for line in hlo.splitlines():
        if header := _COMPUTATION.match(line):
            body = computations.setdefault(header["name"], [])
            if header["entry"]:
                entry = header["name"]
        elif body is not None and (instruction := _INSTRUCTION.match(line)):
            body.append(_instruction(instruction["name"], instruction["rest"]))
    if entry is None:
        raise ValueError("this is no HLO module: it has no entry computation")
    return computations, entry


def _instruction(name: str, rest: str) -> _Instruction:
    # `shape opcode(operands), attributes`, where a tuple's shape is in parentheses, too.
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, call = rest[:end], rest[end:].lstrip()
    opening = call.index("(")
    closing = _closing(call, opening)
    arguments = call[opening + 1 : closing]
    operands = tuple(_NAME.findall(arguments))
    return _Instruction(name, shape, call[:opening], operands, arguments, call[closing + 1 :])


def _closing(text: str, opening: int) -> int:
    depth = 0
    for i in range(opening, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if not depth:
            return i
    raise ValueError(f"unbalanced parentheses in HLO: {text[:80]}")


def _callees(
    instruction: _Instruction, computations: dict[str, list[_Instruction]]
) -> Iterator[tuple[str, float]]:
    """The computations an instruction calls, each with how often."""
    if instruction.opcode in ("async-update", "async-done"):
        return  # They name again what async-start has called.
    times = _trips(instruction, computations) if instruction.opcode == "while" else 1
    for names in _CALLED.findall(instruction.attributes):
        for name in names.split(", "):
            yield name.lstrip("%"), times


def _trips(loop: _Instruction, computations: dict[str, list[_Instruction]]) -> float:
    """How often a loop's body runs; NaN where nothing tells."""
    known = re.search(r'"known_trip_count":\s*\{"n":\s*"(\d+)"', loop.attributes)
    if known:
        return int(known[1])
    condition = re.search(r"\bcondition=%?([\w.\-]+)", loop.attributes)[1]
    limits = [
        int(i.arguments)
        for i in computations[condition]
        if i.opcode == "constant" and re.fullmatch(r"\d+", i.arguments)
    ]
    compared = [condition] + [
        name
        for instruction in computations[condition]
        for name, _ in _callees(instruction, computations)
    ]
    directions = {
        direction
        for name in compared
        for i in computations[name]
        for direction in re.findall(r"\bdirection=(\w+)", i.attributes)
    }
    return limits[0] if len(limits) == 1 and directions == {"LT"} else math.nan


def _size(instruction: _Instruction, shapes: dict[str, str]) -> int:
    operands = sum(shape_bytes(shapes[name]) for name in instruction.operands)
    if instruction.opcode == "all-gather":
        return shape_bytes(instruction.shape)
    if instruction.opcode == "all-gather-start":
        # Its shape is a tuple of the operands and the results.
        return shape_bytes(instruction.shape) - operands
    return operands


def _source(instruction: _Instruction) -> str:
    named = re.search(r'\bop_name="([^"]*)"', instruction.attributes)
    return named[1] if named else ""
