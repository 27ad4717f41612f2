"""Does a training step fit a device that need not be here, and what to change if it does not."""

import dataclasses
import math
import os
from collections.abc import Mapping

import jax
import ml_collections

from talora_jax import sharding
from talora_jax.errors import UserError
from talora_jax.experiments import accelerators
from talora_jax.models import attention_kernels
from talora_jax.models.encoder_config import ImageEncoderConfig
from talora_jax.models.remat import choose_remat
from talora_jax.training import ahead_of_time
from talora_jax.training.setup import Run

# What JAX takes of a GPU's memory, if not told otherwise.
_GPU_SHARE = 0.75
# Which of these says otherwise; with both set, JAX finds no GPU. The second is the older name.
_SHARE_VARIABLES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")


@dataclasses.dataclass(frozen=True)
class Fit:
    """What a step takes of one device, in bytes.

    Attributes:
      capacity: what a program may take.
      memory: what the step takes; None where XLA has refused to compile it.
      needed: all that it takes; None where XLA does not tell.
    """

    capacity: int
    memory: ahead_of_time.Memory | None
    needed: int | None

    @property
    def fits(self) -> bool:
        return self.memory is not None and self.needed <= self.capacity


def settled(config: ml_collections.ConfigDict, device: str) -> ml_collections.ConfigDict:
    """The config with what `auto` means on a device, and -1 on one of them.

    Args:
      device: of `accelerators.ACCELERATORS`.
    """
    config = config.copy_and_resolve_references()
    for field in ("dtype", "param_dtype"):
        if config.model[field] == "auto":
            config.model[field] = "bfloat16"
    platform = "tpu" if accelerators.compiles_for(device) else "gpu"
    config.model.remat = choose_remat(config.model.remat, platform)
    if platform == "tpu":
        config.model.attention = attention_kernels.choose(config.model.attention, platform)
    elif config.model.attention in ("auto", "cudnn", "tokamax"):
        config.model.attention = "xla"  # a GPU's kernels cannot be compiled without it
    if config.mesh.data == -1:
        config.mesh.data = 1
    return config


def mesh_of(config: ml_collections.ConfigDict, device: str) -> jax.sharding.Mesh:
    """The mesh of a settled config, over devices to compile for.

    Raises:
      UserError: no slice has so many chips, this machine cannot stand for so many devices, or the
        attention's kernel does not run on them.
    """
    shape = tuple(config.mesh[axis] for axis in sharding.AXES)
    count = accelerators.devices_of(config.mesh)
    if accelerators.compiles_for(device):
        devices = accelerators.tpus(accelerators.slice_of(device, count))
    else:
        platform = "gpu" if jax.default_backend() == "gpu" else "cpu"
        devices = jax.devices(platform)[:count]
        if len(devices) < count:
            raise UserError(
                f"config.mesh has {count} devices, and this program sees {len(devices)} to stand "
                f"for {device}: start describe in a process of its own, or set a smaller mesh"
            )
    attention_kernels.check(config.model.attention, devices[0], config.model.dtype)
    return sharding.make_mesh(*shape, devices)


def measure(run: Run, device: str) -> Fit:
    """Compiles a step; `run` is of shapes, on the mesh of `mesh_of`.

    Raises:
      UserError: what JAX may take of a GPU is set to what is no share.
    """
    size = accelerators.ACCELERATORS[device].memory * 2**30
    if not accelerators.ACCELERATORS[device].generation:
        size *= _gpu_share()
    try:
        memory = ahead_of_time.compile_step(ahead_of_time.make_step(run)).memory
    except ahead_of_time.OutOfMemory as error:
        return Fit(int(size), None, error.needed)
    return Fit(int(size), memory, memory.peak + memory.program)


def _gpu_share() -> float:
    name = _share_variable()
    told = os.environ.get(name)
    if not told:
        return _GPU_SHARE
    try:
        share = float(told)
    except ValueError:
        share = 0.0
    if not 0 < share < math.inf:
        raise UserError(f"{name} is {told!r}, expected a share of a GPU's memory, as .95")
    return share


def _share_variable() -> str:
    """The one that is set, or is to be."""
    return next((name for name in _SHARE_VARIABLES if os.environ.get(name)), _SHARE_VARIABLES[0])


def source(run: Run, device: str) -> str:
    """Where the numbers come from."""
    if accelerators.compiles_for(device):
        return f"compiled by XLA for {device}"
    compiled_for = run.mesh.devices.flat[0].device_kind
    told = f"XLA's estimate for what this program runs on ({compiled_for}), not for {device}"
    if accelerators.ACCELERATORS[device].generation:
        told += f"; {accelerators.INSTALL_LIBTPU} compiles for it"
    return told


def advice(
    config: ml_collections.ConfigDict,
    encoder: ImageEncoderConfig,
    mesh: Mapping[str, int],
    device: str,
    fit: Fit,
) -> list[str]:
    """What takes less memory than this config, what costs least first."""
    told = []
    gpu = not accelerators.ACCELERATORS[device].generation
    whole = accelerators.ACCELERATORS[device].memory * 2**30
    if gpu and fit.needed and fit.capacity < fit.needed < 0.95 * whole:
        told.append(f"{_share_variable()}=.95 in the environment: JAX leaves a part of a GPU alone")
    if "float32" in (config.model.dtype, config.model.param_dtype):
        told.append(
            "--config.model.dtype=bfloat16 --config.model.param_dtype=bfloat16: half of most bytes"
        )
    shares = mesh["data"] * mesh["fsdp"]
    at_once = config.batch_size // config.accumulate // shares
    if at_once > 1:
        told.append(
            f"--config.accumulate={config.batch_size // shares}: one image at a time on each "
            f"device, not {at_once}; the numbers stay the same"
        )
    if config.model.remat != "block":
        told.append(
            "--config.model.remat=block: the backward pass computes whole blocks again, which "
            "takes more time"
        )
    size = tuple(config.data.image_size)
    now, without = (
        encoder.geometry(size, native_aspect=native).padded
        for native in (config.model.native_aspect, True)
    )
    if without != now:
        patch = encoder.patch_size
        rows, columns = (side // patch for side in without)
        told.append(
            f"--config.model.native_aspect=True: {rows}×{columns} tokens, not "
            f"{now[0] // patch}×{now[1] // patch}; not what published recipes do"
        )
    told.append(
        f"--config.mesh.fsdp={2 * mesh['fsdp']} on twice as many devices: each keeps half of the "
        "frozen parameters"
    )
    return told
