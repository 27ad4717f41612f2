"""The train step of a config, abstractly: shapes and shardings, compiled but never run.

Nothing is allocated, so a step can be compiled for more memory, and for other devices, than this
machine has.
"""

import dataclasses
import math
import time
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.extend.core import Jaxpr
from jax.sharding import Mesh, NamedSharding
from jaxtyping import PyTree

from talora_jax import sharding
from talora_jax.models.sam import SIZES
from talora_jax.tasks import TASKS, Task
from talora_jax.training.setup import abstract
from talora_jax.training.step import abstract_state, make_train_step


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
class CompiledStep:
    """A compiled step, its jaxpr, and the seconds each part of compiling it took."""

    compiled: jax.stages.Compiled
    jaxpr: Jaxpr
    trace_seconds: float
    lower_seconds: float
    compile_seconds: float


def choose_tasks(names: tuple[str, ...], count: int, num_classes: int) -> tuple[Task, ...]:
    """`count` tasks: those of the config, then the kinds it leaves out, then kinds once more."""
    kinds = [*names, *(kind for kind in TASKS if kind not in names)]
    classes = tuple(f"class {i}" for i in range(num_classes))
    tasks = []
    for i in range(count):
        kind, again = kinds[i % len(kinds)], i // len(kinds)
        name = f"{kind}_{again + 1}" if again else kind
        tasks.append(TASKS[kind].make(name, classes))
    return tuple(tasks)


def make_step(
    config: ml_collections.ConfigDict, mesh: Mesh, tasks: tuple[Task, ...]
) -> AbstractStep:
    """The step that training this config would run on this mesh.

    The dtypes `auto` are resolved for this machine: name them where the mesh is another's.
    """
    run = abstract(config, mesh, tasks, SIZES[config.model.size]())
    state = abstract_state(run)

    everywhere = sharding.replicated(mesh)
    arguments = (
        jax.tree.map(lambda x: _laid(x, everywhere), state),
        jax.tree.map(lambda x: _laid(x, sharding.fsdp_sharding(mesh, x.shape)), run.frozen),
        {k: _laid(x, sharding.batch_sharding(mesh)) for k, x in _batch(config, tasks).items()},
    )
    return AbstractStep(
        mesh, make_train_step(run), arguments, _bytes(state.trainable), _bytes(run.frozen)
    )


def compile_step(step: AbstractStep) -> CompiledStep:
    """Traces, lowers and compiles the step for the devices of its mesh."""
    with jax.set_mesh(step.mesh):
        start = time.perf_counter()
        traced = step.step.trace(*step.arguments)
        traced_at = time.perf_counter()
        lowered = traced.lower()
        lowered_at = time.perf_counter()
        compiled = lowered.compile()
        compiled_at = time.perf_counter()
    return CompiledStep(
        compiled,
        traced.jaxpr.jaxpr,
        traced_at - start,
        lowered_at - traced_at,
        compiled_at - lowered_at,
    )


def _batch(config: ml_collections.ConfigDict, tasks: tuple[Task, ...]) -> PyTree:
    shape = (config.batch_size, *config.data.image_size)
    batch = {"image": jax.ShapeDtypeStruct((*shape, 3), jnp.float32)}
    for task in tasks:
        if isinstance(task, TASKS["semantic"]):
            batch[task.name] = jax.ShapeDtypeStruct(shape, jnp.int32)
        else:
            batch[task.name] = jax.ShapeDtypeStruct((*shape, task.channels), jnp.float32)
    return batch


def _laid(x: Any, over: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=over)


def _bytes(tree: PyTree) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
