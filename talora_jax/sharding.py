"""The device mesh, how arrays are laid over it, and the start of many hosts.

Mesh axes: `data` and `fsdp` share the batch; `fsdp` also shards the frozen parameters; `task`
shards the task axis of the encoder's activations.
"""

import collections
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from talora_jax import slurm
from talora_jax.errors import UserError

AXES = ("data", "fsdp", "task")
AnyMesh = jax.sharding.Mesh | jax.sharding.AbstractMesh
# Below this many elements a parameter is replicated: sharding it costs more than it saves.
MIN_SHARDED_SIZE = 2**12


def start_hosts(coordinator: str | None, num_processes: int, process_id: int) -> None:
    """Joins this process to the others; on a TPU pod `coordinator='auto'` finds them by itself."""
    gpus = slurm.local_device_ids()
    if coordinator == "auto":
        jax.distributed.initialize(local_device_ids=gpus)
    elif coordinator:
        jax.distributed.initialize(coordinator, num_processes, process_id, gpus)


def make_mesh(
    data: int, fsdp: int, task: int, devices: Sequence[Any] | None = None
) -> jax.sharding.Mesh:
    """A mesh over all devices of all hosts; `data` = -1 takes what the other axes leave.

    Where the devices are several slices (TPUs that a data centre's network joins, GPUs of several
    machines), `data` runs over the slices, and `fsdp` and `task` stay within one.

    Args:
      devices: in place of those that are here.

    Raises:
      UserError: the sizes do not multiply to the number of devices, or slices of TPUs do not divide
        `data`.
    """
    devices = jax.devices() if devices is None else list(devices)
    if data == -1:
        data = len(devices) // (fsdp * task)
    if data * fsdp * task != len(devices):
        raise UserError(
            f"mesh data={data} × fsdp={fsdp} × task={task} needs {data * fsdp * task} devices, "
            f"but {len(devices)} are here; set config.mesh so that the product is {len(devices)}"
        )
    # jax.make_mesh refuses several slices, and on v5p and v6e what splits a physical axis.
    sizes = collections.Counter(getattr(device, "slice_index", 0) for device in devices)
    slices = len(sizes)
    if slices > 1 and data % slices == 0 and len(set(sizes.values())) == 1:
        laid = mesh_utils.create_hybrid_device_mesh(
            (data // slices, fsdp, task),
            (slices, 1, 1),
            devices,
            allow_split_physical_axes=True,
        )
    elif slices > 1 and devices[0].platform == "tpu":
        raise UserError(
            f"config.mesh.data is {data}, expected a multiple of {slices}: it runs over the "
            f"{slices} slices, and config.mesh.fsdp and config.mesh.task stay within one"
        )
    else:
        laid = mesh_utils.create_device_mesh(
            (data, fsdp, task), devices, allow_split_physical_axes=True
        )
    return jax.sharding.Mesh(laid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def abstract_mesh(data: int, fsdp: int, task: int) -> jax.sharding.AbstractMesh:
    """The mesh of `make_mesh` over any number of devices, none of which need be here.

    Raises:
      UserError: an axis has no size.
    """
    for axis, size in (("fsdp", fsdp), ("task", task)):
        if size < 1:
            raise UserError(f"config.mesh.{axis} is {size}, expected at least 1")
    if data == -1:
        data = max(1, jax.device_count() // (fsdp * task))
    if data < 1:
        raise UserError(f"config.mesh.data is {data}, expected at least 1, or -1 for what is here")
    return jax.sharding.AbstractMesh(
        (data, fsdp, task), AXES, axis_types=(AxisType.Auto,) * len(AXES)
    )


def constrain(x: Array, *spec: str | tuple[str, ...] | None) -> Array:
    """Lays x over the current mesh as `spec` says; without a mesh it is x itself."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*spec))


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """The leading axis over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: AnyMesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def fsdp_sharding(mesh: AnyMesh, shape: tuple[int, ...]) -> NamedSharding:
    """A parameter's largest axis that `fsdp` divides, sharded; small parameters replicated."""
    size = mesh.shape["fsdp"]
    axes = [i for i, n in enumerate(shape) if n % size == 0]
    if size == 1 or not axes or math.prod(shape) < MIN_SHARDED_SIZE:
        return replicated(mesh)
    largest = max(axes, key=lambda i: shape[i])
    return NamedSharding(mesh, PartitionSpec(*[None] * largest, "fsdp"))


def shard_frozen(frozen: nnx.State, mesh: jax.sharding.Mesh) -> nnx.State:
    """The frozen parameters, spread over `fsdp`."""
    return jax.tree.map(lambda x: jax.device_put(x, fsdp_sharding(mesh, x.shape)), frozen)


def shard_batch(batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> PyTree[Array]:
    """This host's rows of the batch as part of one global array over all hosts."""
    sharding = batch_sharding(mesh)
    return {k: jax.make_array_from_process_local_data(sharding, v) for k, v in batch.items()}
