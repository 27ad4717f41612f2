"""What a config stands for: data, tasks and a model laid over the mesh. Shared by all modes."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_collections
import safetensors.numpy
from flax import nnx

from talora_jax import config as config_lib
from talora_jax import sharding
from talora_jax.base import build
from talora_jax.checkpoint import fingerprint
from talora_jax.data import Dataset, open_dataset
from talora_jax.errors import UserError
from talora_jax.models.adapters import AdapterConfig
from talora_jax.models.msam import MSam, trainable
from talora_jax.models.sam import SIZES
from talora_jax.tasks import Task, make_task


@dataclasses.dataclass(frozen=True)
class Run:
    """A config made concrete.

    Attributes:
      tasks: in the order of U3's rows.
      graphdef, trainable, frozen: the model; `nnx.merge` puts it together again.
      fingerprint: of the frozen parameters.
    """

    config: ml_collections.ConfigDict
    mesh: jax.sharding.Mesh
    dataset: Dataset
    tasks: tuple[Task, ...]
    graphdef: nnx.GraphDef
    trainable: nnx.State
    frozen: nnx.State
    fingerprint: str


def prepare(config: ml_collections.ConfigDict) -> Run:
    """Checks the config, opens the data, builds the model and lays it over the mesh.

    Raises:
      UserError: whatever in the config, the data or the checkpoint cannot work.
    """
    config_lib.check(config)
    sharding.start_hosts(
        config.hosts.coordinator, config.hosts.num_processes, config.hosts.process_id
    )
    mesh = sharding.make_mesh(**config.mesh)
    config_lib.check_mesh(config, mesh.shape)
    base = _read_base(config.model.weights)

    dataset = open_dataset(config.data, config.tasks)
    tasks = tuple(make_task(name, class_names=dataset.class_names) for name in config.tasks)
    return assemble(config, mesh, dataset, tasks, base)


def assemble(config, mesh, dataset, tasks, base=None) -> Run:
    """The run of a checked config on an opened data set."""
    adapter = adapter_config(config)
    model = build(lambda: make_model(config, tasks), base)
    graphdef, learnt, frozen = nnx.split(model, trainable(adapter), ...)
    digest = fingerprint(frozen)
    param_dtype = resolve_dtype(config.model.param_dtype)
    frozen = sharding.shard_frozen(jax.tree.map(lambda x: x.astype(param_dtype), frozen), mesh)
    learnt = jax.device_put(learnt, sharding.replicated(mesh))
    return Run(config, mesh, dataset, tasks, graphdef, learnt, frozen, digest)


def make_model(config: ml_collections.ConfigDict, tasks: tuple[Task, ...]) -> MSam:
    """The model with random parameters; cheap under `nnx.eval_shape`."""
    return MSam(
        SIZES[config.model.size](),
        adapter_config(config),
        {task.name: task.channels for task in tasks},
        pixel_normalisation=config.model.pixel_normalisation,
        remat=config.model.remat,
        dtype=resolve_dtype(config.model.dtype),
        rngs=nnx.Rngs(jax.random.key(config.seed, impl="rbg")),
    )


def adapter_config(config: ml_collections.ConfigDict) -> AdapterConfig:
    a = config.adapter
    return AdapterConfig(a.kind, tuple(a.ranks), a.scale, a.dropout, tuple(a.qkv))


def resolve_dtype(name: str) -> jnp.dtype:
    """`auto` is bfloat16 on accelerators and float32 on CPU."""
    if name == "auto":
        name = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(name)


def _read_base(path: str):
    """The tensors of `config.model.weights`, by our names; None for no path."""
    if not path:
        return None
    if path.endswith(".pth"):
        # PyTorch's names are known in one place only, and only who brings a .pth needs it.
        from weights_convert.official import from_official, read_pth

        return from_official(read_pth(path))[0]
    try:
        return safetensors.numpy.load_file(path)
    except FileNotFoundError:
        raise UserError(f"config.model.weights: no file at {path}") from None
    except Exception as error:
        raise UserError(
            f"config.model.weights: {path} is not a .pth or .safetensors file: {error}"
        ) from None
