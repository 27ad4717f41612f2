"""Accelerators that need not be here: their memory, and of TPUs the slices to compile for.

XLA compiles for a topology given by name, such as v5e:2x4 (eight chips), where libtpu is installed.
JAX is not imported before it is needed: it reads the environment only once.
"""

import importlib.util
import math
import os
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from talora_jax.errors import UserError, one_line, short


class Generation(NamedTuple):
    """A generation of TPUs.

    Attributes:
      accelerator: the name of some chips that libtpu wants to hear.
      slices: the shapes that slices have, by their chips.
    """

    accelerator: str
    slices: dict[int, str]

    @property
    def sides(self) -> int:
        return 1 + self.slices[1].count("x")


_FLAT = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_CUBIC = ("1x1x1", "2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8")


def _by_chips(shapes: tuple[str, ...]) -> dict[int, str]:
    return {math.prod(map(int, shape.split("x"))): shape for shape in shapes}


GENERATIONS = {
    "v5e": Generation("v5litepod-8", _by_chips(_FLAT)),
    "v5p": Generation("v5p-16", _by_chips(_CUBIC)),
    "v6e": Generation("v6e-8", _by_chips(_FLAT)),
}


class Accelerator(NamedTuple):
    """A device that a step may fit or not.

    Attributes:
      memory: GiB that drivers tell, of TPUs those that XLA gives to a program.
      generation: of `GENERATIONS`; None for GPUs.
    """

    memory: float
    generation: str | None = None


ACCELERATORS = {
    "rtx3070": Accelerator(8),
    "t4": Accelerator(15),
    "l4": Accelerator(22.5),
    "a100-40": Accelerator(40),
    "a100-80": Accelerator(80),
    "h100": Accelerator(80),
    "h200": Accelerator(140),
    "v5e": Accelerator(15.75, "v5e"),
    "v5p": Accelerator(95.74, "v5p"),
    "v6e": Accelerator(31.25, "v6e"),
}
_MOST_ON_CPU = 512
# By JAX's own extra: what a newer libtpu compiles, jaxlib cannot always read.
INSTALL_LIBTPU = "pip install 'jax[tpu]'"
TOPOLOGIES = (
    f"GENERATION:SHAPE, with generation one of {', '.join(GENERATIONS)} and a shape such as 2x4 "
    "(v5p: 2x2x1), or cpu:DEVICES"
)


def split_topology(name: str) -> tuple[str, str]:
    """Generation and shape of a topology's name.

    Raises:
      UserError: there is no such topology, or libtpu is not installed.
    """
    generation, _, shape = name.partition(":")
    sides = {g: known.sides for g, known in GENERATIONS.items()} | {"cpu": 1}
    wanted = "x".join(["[1-9][0-9]*"] * sides.get(generation, 1))
    if generation not in sides or not re.fullmatch(wanted, shape):
        raise UserError(f"--topology: unknown {short(name, 80)}, expected {TOPOLOGIES}")
    if generation != "cpu" and not knows_tpus():
        raise UserError(f"--topology={name} needs libtpu, which is not installed: {INSTALL_LIBTPU}")
    return generation, shape


def slice_of(device: str, chips: int) -> str:
    """The topology of so many chips of an accelerator.

    Raises:
      UserError: it has no such slice.
    """
    generation = ACCELERATORS[device].generation
    slices = GENERATIONS[generation].slices
    if chips not in slices:
        raise UserError(
            f"config.mesh has {chips} devices, but slices of {device} have "
            f"{', '.join(map(str, slices))} chips"
        )
    return f"{generation}:{slices[chips]}"


def devices_of(mesh: Mapping[str, int]) -> int:
    """How many devices `config.mesh` has, of which -1 is one."""
    return math.prod(max(1, mesh[axis]) for axis in ("data", "fsdp", "task"))


def compiles_for(device: str) -> bool:
    """Whether XLA can compile for an accelerator that is not here."""
    return bool(ACCELERATORS[device].generation) and knows_tpus()


def prepare_for(device: str, count: int) -> None:
    """Sets what JAX reads when it is loaded, to compile for so many of an accelerator."""
    if compiles_for(device):
        prepare_for_tpus()
    else:
        prepare_for_cpus(count)


def knows_tpus() -> bool:
    """Whether TPUs can be compiled for."""
    return importlib.util.find_spec("libtpu") is not None


def prepare_for_tpus() -> None:
    """Sets what JAX and libtpu read when they are loaded, to compile for TPUs on any machine."""
    # Whatever this machine has, programs are traced on its CPU and compiled for the topology.
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ |= {
        # Without these libtpu asks a metadata server, which only TPU machines have.
        "TPU_SKIP_MDS_QUERY": "1",
        "TPU_ACCELERATOR_TYPE": GENERATIONS["v5e"].accelerator,
        "TPU_WORKER_HOSTNAMES": "localhost",
        # Nothing is run, so nothing is in the way of another process.
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    }


def prepare_for_cpus(count: int) -> None:
    """Sets what JAX reads when it starts, so that this machine's CPU is so many devices.

    Where it has started, nothing changes.
    """
    if count > 1:
        flags = os.environ.get("XLA_FLAGS", "")
        many = f"--xla_force_host_platform_device_count={min(count, _MOST_ON_CPU)}"
        os.environ["XLA_FLAGS"] = f"{flags} {many}".strip()


def tpus(topology: str, slices: int = 1) -> list[Any]:
    """The chips of a topology, as devices to compile for, after `prepare_for_tpus`.

    Args:
      slices: of this topology each.

    Raises:
      UserError: libtpu knows no such topology.
    """
    import jax
    from jax.experimental import topologies

    shape = [int(side) for side in topology.partition(":")[2].split("x")]
    more: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if math.prod(shape) == 1:
        more["chips_per_host_bounds"] = [1, 1, 1]
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=topology, **more)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(f"--topology: {topology!r} cannot be: {one_line(error)}") from None
    return found.devices
