"""The device mesh, and how arrays are laid over it.

Mesh axes: `data` and `fsdp` share the batch; `fsdp` also shards the frozen parameters; `task`
shards the task axis of the encoder's activations.
"""

import collections
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, PyTree, Shaped

from talora_jax.errors import UserError

AXES = ("data", "fsdp", "task")
AnyMesh = jax.sharding.Mesh | jax.sharding.AbstractMesh
# Below this many elements a parameter is replicated: sharding it costs more than it saves.
MIN_SHARDED_SIZE = 2**12


def make_mesh(
    data: int, fsdp: int, task: int, devices: Sequence[Any] | None = None
) -> jax.sharding.Mesh:
    """A mesh over all devices of all hosts; `data` = -1 takes what the other axes leave.

    Where the devices are several slices (TPUs that a data centre's network joins, GPUs of several
    machines), `data` runs over the slices, and `fsdp` and `task` stay within one.

    Args:
      devices: in place of those that are here.

    Raises:
      UserError: an axis has no size, the sizes do not multiply to the number of devices, or slices
        of TPUs do not divide `data`.
    """
    devices = jax.devices() if devices is None else list(devices)
    data = _data_axis(data, len(devices), fsdp * task)
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
    data = _data_axis(data, jax.device_count(), fsdp * task)
    return jax.sharding.AbstractMesh(
        (data, fsdp, task), AXES, axis_types=(AxisType.Auto,) * len(AXES)
    )


def _data_axis(data: int, devices: int, others: int) -> int:
    """The size of `data`: -1 is what the other axes leave of the devices, at least 1."""
    if data == -1:
        return max(1, devices // others)
    if data < 1:
        raise UserError(f"config.mesh.data is {data}, expected at least 1, or -1 for what is here")
    return data


def devices_of_mesh() -> int:
    """How many devices the current mesh has; without a mesh, 1."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.size


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


class BatchRows(NamedTuple):
    """The rows of a batch that this process has to do with.

    Attributes:
      loaded: those that its devices hold, which another process's may hold, too.
      counted: of each of these, whether it is this process that counts it: one does of all.
    """

    loaded: tuple[int, ...]
    counted: Bool[np.ndarray, "rows"]


def batch_rows(mesh: jax.sharding.Mesh, batch_size: int) -> BatchRows:
    """This process's rows of a batch that `batch_sharding` lays over the mesh."""
    holders = _holders(mesh)
    each = batch_size // len(holders)
    ours = jax.process_index()
    held = [(block, by[0] == ours) for block, by in enumerate(holders) if ours in by]
    loaded = [range(block * each, (block + 1) * each) for block, _ in held]
    counted = np.repeat(np.array([first for _, first in held], bool), each)
    return BatchRows(tuple(itertools.chain(*loaded)), counted)


def shard_batch(batch: dict[str, np.ndarray], mesh: jax.sharding.Mesh) -> PyTree[Array]:
    """This process's rows of the batch, see `batch_rows`, as part of one array over all hosts."""
    sharding, holders = batch_sharding(mesh), _holders(mesh)
    held = [block for block, by in enumerate(holders) if jax.process_index() in by]

    def placed(rows: np.ndarray) -> Array:
        each = len(rows) // len(held)

        def block(index: tuple[slice, ...]) -> np.ndarray:
            at = held.index((index[0].start or 0) // each) * each
            return rows[at : at + each]

        shape = (each * len(holders), *rows.shape[1:])
        return jax.make_array_from_callback(shape, sharding, block)

    return {name: placed(rows) for name, rows in batch.items()}


def local_rows(x: Shaped[Array, "B ..."]) -> Shaped[np.ndarray, "rows ..."]:
    """The rows that `batch_rows` says this process loads, of an array that lies like a batch."""
    blocks = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(blocks[start]) for start in sorted(blocks)])


@functools.lru_cache
def _holders(mesh: jax.sharding.Mesh) -> list[list[int]]:
    """For each block of rows that a batch is cut into, the processes of which devices hold it."""
    blocks = mesh.shape["data"] * mesh.shape["fsdp"]
    holders: list[set[int]] = [set() for _ in range(blocks)]
    for device, (where,) in batch_sharding(mesh).devices_indices_map((blocks,)).items():
        holders[where.start or 0].add(device.process_index)
    return [sorted(by) for by in holders]
