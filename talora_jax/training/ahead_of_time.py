"""The train step of a config, abstractly: shapes and shardings, compiled but never run.

Nothing is allocated, so a step can be compiled for more memory, and for other devices, than this
machine has.
"""

import dataclasses
import math
import re
import time
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr
from jax.sharding import Mesh, NamedSharding
from jaxtyping import PyTree

from talora_jax import sharding
from talora_jax.errors import UserError
from talora_jax.training.prompted.setup import asked_masks
from talora_jax.training.setup import Run
from talora_jax.training.step import abstract_state, make_train_step

# What a program takes is decided before a CPU's machine code is made better, which takes minutes.
_OPTIONS = {"cpu": {"xla_backend_optimization_level": 0}}


@dataclasses.dataclass(frozen=True)
class AbstractStep:
    """A train step and what it is called with, all of it shapes.

    Attributes:
      step: the jitted step of `talora_jax.training.loop`.
      arguments: (state, frozen, batch), laid over the mesh as in training.
      trainable_bytes, frozen_bytes: of the parameters, before they are laid over the mesh.
    """

    mesh: Mesh
    step: Any
    arguments: tuple[PyTree, PyTree, PyTree]
    trainable_bytes: int
    frozen_bytes: int


@dataclasses.dataclass(frozen=True)
class Memory:
    """What a compiled step takes of one device, in bytes.

    Attributes:
      arguments: state, frozen parameters and batch; what the step returns takes their place.
      temporaries: what else is alive at the worst moment, activations above all.
      peak: arguments, results that take nobody's place, and temporaries.
      program: the machine code.
    """

    arguments: int
    temporaries: int
    peak: int
    program: int


class OutOfMemory(UserError):
    """XLA refuses to compile the step, for it takes more than the device has.

    Attributes:
      needed: bytes, as far as XLA tells; None where it does not.
    """

    def __init__(self, needed: int | None):
        size = f"{needed / 1e9:.1f} GB, " if needed else ""
        super().__init__(f"a step takes {size}more memory than the device has")
        self.needed = needed


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A compiled step, its jaxpr, its memory, and the seconds each part of compiling it took."""

    compiled: jax.stages.Compiled
    jaxpr: Jaxpr
    memory: Memory
    trace_seconds: float
    lower_seconds: float
    compile_seconds: float


def make_step(run: Run) -> AbstractStep:
    """The step that training would run.

    The dtypes `auto` are resolved for this machine: name them where the mesh is another's.

    Args:
      run: of shapes, see `setup.abstract`, on a mesh of devices to compile for; its data set has an
        `image_size`.
    """
    state = abstract_state(run)
    everywhere, mesh = sharding.replicated(run.mesh), run.mesh
    arguments = (
        jax.tree.map(lambda x: _laid(x, everywhere), state),
        jax.tree.map(lambda x: _laid(x, sharding.fsdp_sharding(mesh, x.shape)), run.frozen),
        {name: _laid(x, sharding.batch_sharding(mesh)) for name, x in _batch(run).items()},
    )
    return AbstractStep(
        mesh, make_train_step(run), arguments, _bytes(state.trainable), _bytes(run.frozen)
    )


def compile_step(step: AbstractStep) -> CompiledStep:
    """Traces, lowers and compiles the step for the devices of its mesh.

    Raises:
      OutOfMemory: it takes more than a device has.
    """
    with jax.set_mesh(step.mesh):
        platform = step.mesh.devices.flat[0].platform
        start = time.perf_counter()
        traced = step.step.trace(*step.arguments)
        traced_at = time.perf_counter()
        lowered = traced.lower()
        lowered_at = time.perf_counter()
        try:
            compiled = lowered.compile(_OPTIONS.get(platform))
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise OutOfMemory(_needed(str(error))) from error
        compiled_at = time.perf_counter()
    return CompiledStep(
        compiled,
        traced.jaxpr.jaxpr,
        _memory(compiled.memory_analysis(), platform),
        traced_at - start,
        lowered_at - traced_at,
        compiled_at - lowered_at,
    )


def _memory(told: Any, platform: str) -> Memory:
    """What XLA tells of a compiled program's memory."""
    kept = told.argument_size_in_bytes + told.output_size_in_bytes - told.alias_size_in_bytes
    temporaries = told.temp_size_in_bytes
    if platform == "tpu":
        # Of TPUs `temp_size_in_bytes` is too much: XLA compiles programs that by it would not fit.
        # It refuses those whose peak does not, with the gaps between buffers: a few percent.
        temporaries = told.peak_memory_in_bytes - kept
    return Memory(
        told.argument_size_in_bytes,
        temporaries,
        kept + temporaries,
        told.generated_code_size_in_bytes,
    )


def _needed(told: str) -> int | None:
    """Bytes in what XLA says of a program that is too large, as "Used 20.50G of 15.75G hbm", or
    "required for HLO temporaries (16.98G) exceeds available HBM (15.75G)"."""
    used = re.search(r"(?:[Uu]sed |temporaries \()([\d.]+)([KMGT]?)(?: of |\) exceeds)", told)
    return used and int(float(used[1]) * 1024 ** " KMGT".index(used[2] or " "))


def _batch(run: Run) -> dict[str, jax.ShapeDtypeStruct]:
    """What the pipeline makes of the samples, see `talora_jax.data.pipeline`."""
    config, size = run.config, run.dataset.image_size
    if config.trains == "tasks":
        shapes = {"image": ((*size, 3), jnp.float32)}
    else:
        asked = asked_masks(config, run.dataset, "train")
        size = asked.frame
        shapes = {
            "image": ((*size, 3), jnp.uint8),
            "asked": ((len(asked.domains), *size), jnp.uint8),
            "size": ((2,), jnp.int32),
        }
    for task in run.tasks:
        shapes[task.name] = ((*size, *task.target_shape), task.target_dtype)
    return {
        name: jax.ShapeDtypeStruct((config.batch_size, *shape), dtype)
        for name, (shape, dtype) in shapes.items()
    }


def _laid(x: Any, over: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=over)


def _bytes(tree: PyTree) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
