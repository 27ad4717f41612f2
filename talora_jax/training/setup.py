"""What a config stands for: data, tasks and a model laid over the mesh. Shared by all modes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import ml_collections
import numpy as np
from flax import nnx

from talora_jax import config as config_lib
from talora_jax import config_checks, hosts, sharding
from talora_jax.data import Dataset, open_dataset
from talora_jax.data.transforms import Augment
from talora_jax.errors import Refusals, UserError, tell_together
from talora_jax.models import attention_kernels
from talora_jax.models.adapters import AdapterConfig
from talora_jax.models.msam import MSam, new_tasks, task_axis, trainable
from talora_jax.models.remat import choose_remat
from talora_jax.models.sam import SIZES, SamConfig
from talora_jax.tasks import Task, make_task
from talora_jax.training import agreement
from talora_jax.training.trained_with import check_trained_with
from talora_jax.weights.adapter_file import AdapterFile, find
from talora_jax.weights.assemble import base_in_words, resolve_dtype
from talora_jax.weights.base_file import read_base, read_description
from talora_jax.weights.build import build, check_base_tasks, make_msam
from talora_jax.weights.state import fingerprint, tensors_of


@dataclasses.dataclass(frozen=True)
class Run:
    """A config made concrete.

    Attributes:
      tasks: in the order of U3's rows.
      graphdef, trainable, frozen: the model; `nnx.merge` puts it together again.
      fingerprint: of the base, that is, of what is frozen when an adapter is trained.
      parent: the adapter that this run adds tasks to.
    """

    config: ml_collections.ConfigDict
    mesh: jax.sharding.Mesh
    dataset: Dataset
    tasks: tuple[Task, ...]
    graphdef: nnx.GraphDef
    trainable: nnx.State
    frozen: nnx.State
    fingerprint: str
    parent: AdapterFile | None = None


def start(config: ml_collections.ConfigDict, *, trains: bool = True) -> jax.sharding.Mesh:
    """Checks the config, joins the hosts, and makes the mesh.

    Args:
      trains: else the mesh need not divide the batches of updates.

    Raises:
      UserError: the config cannot work, or not on these devices.
    """
    check(config)
    hosts.join(config.hosts)
    mesh = sharding.make_mesh(**config.mesh)
    config_checks.check_mesh(config, mesh.shape, trains=trains)
    dtype = resolve_dtype(config.model.dtype)
    attention_kernels.check(config.model.attention, mesh.devices.flat[0], dtype)
    return mesh


def check(config: ml_collections.ConfigDict) -> None:
    """Refuses what in a config cannot work, a line each; nothing is opened.

    Raises:
      UserError: there is something.
    """
    tell_together(refusals(config).by_field.values())


def refusals(config: ml_collections.ConfigDict) -> Refusals:
    """What in a config cannot work whatever the data hold and the devices are."""
    found = config_checks.refusals(config)
    data, augment = (
        [f"{section}.{name}" for name in config[section]] for section in ("data", "augment")
    )
    found.ask(lambda: config_checks.check_read(config), "data", *data)
    # Of any size, before data is prepared.
    found.ask(lambda: Augment.from_config(config.augment, (1, 1)), "augment", *augment)
    return found


def prepare(
    config: ml_collections.ConfigDict,
    tell: Callable[[str], None] = lambda line: None,
    *,
    trains: bool = True,
) -> Run:
    """Checks the config, opens the data, builds the model and lays it over the mesh.

    Args:
      tell: is given a line on each thing that takes time.
      trains: as of `start`.

    Raises:
      UserError: whatever in the config, the data or the checkpoint cannot work.
    """
    mesh = start(config, trains=trains)
    # What files cannot be is told before data is prepared, which may take long.
    sizes(config)
    parent = parent_of(config)
    tell(f"opening the data, {config.data.name}")
    dataset = open_dataset(config.data, config.tasks)
    hosts.agree(agreement.of_data(dataset))
    tasks = tuple(make_task(name, class_names=dataset.classes(name)) for name in config.tasks)
    tell(f"building the model, {config_lib.model_name(config.model)}")
    return assemble(config, mesh, dataset, tasks, parent)


def assemble(
    config: ml_collections.ConfigDict,
    mesh: jax.sharding.Mesh,
    dataset: Dataset,
    tasks: tuple[Task, ...],
    parent: AdapterFile | None,
) -> Run:
    """The run of a checked config on an opened data set.

    With `config.adapter.extend`, everything that the old tasks have in common comes from that
    adapter, the `parent` (see `parent_of`), and is frozen, and only what belongs to the new tasks
    alone trains: for TA-LoRA rows of U3, no-mask rows and mask decoders. The old tasks' own entries
    are put beside them when the run is over, see `learnt_file`; in training they would do nothing.

    Raises:
      UserError: the base of `config.model.weights` or the adapter to extend does not fit.
    """
    adapter = AdapterConfig.of(config.adapter)
    base = read_base(config.model.weights)[0] if config.model.weights else None
    shared = parent and {
        name: x for name, x in parent.tensors.items() if task_axis(adapter, name.split(".")) is None
    }
    sam = sizes(config)
    model = build(lambda: make_model(config, tasks, sam), base, shared)
    graphdef, learnt, kept, frozen = _split(model, config)
    digest = fingerprint(tensors_of(frozen))
    hosts.agree({"the base": digest})
    if parent and digest != parent.base_fingerprint:
        raise UserError(
            f"config.adapter.extend: {config.adapter.extend} belongs to another base "
            f"({parent.base}) than config.model.weights={config.model.weights!r} gives"
        )
    param_dtype = resolve_dtype(config.model.param_dtype)
    frozen = sharding.shard_frozen(jax.tree.map(lambda x: x.astype(param_dtype), frozen), mesh)
    # What an adapter once learnt is as precise as when it was learnt.
    frozen = nnx.merge_state(frozen, jax.device_put(kept, sharding.replicated(mesh)))
    learnt = jax.device_put(learnt, sharding.replicated(mesh))
    return Run(config, mesh, dataset, tasks, graphdef, learnt, frozen, digest, parent)


def told(run: Run) -> dict:
    """What a checkpoint says of its run, for JSON, so that no other run goes on from it."""
    names = {task.name: list(task.class_names) for task in run.tasks if task.class_names}
    return {"base_fingerprint": run.fingerprint, "class_names": names}


def learnt_file(run: Run, learnt: nnx.State) -> AdapterFile:
    """What to share of a run: what it learnt, and where it added tasks, the old ones' before it."""
    config, parent = run.config, run.parent
    tensors = tensors_of(learnt)
    channels = {task.name: task.channels for task in run.tasks}
    class_names = {task.name: task.class_names for task in run.tasks if task.class_names}
    base = base_in_words(config.model.weights, config.seed)
    if parent:
        adapter = AdapterConfig.of(config.adapter)
        axes = {name: task_axis(adapter, name.split(".")) for name in parent.tensors}
        tensors = {
            name: old if axes[name] is None else np.concatenate([old, tensors[name]], axes[name])
            for name, old in parent.tensors.items()
        }
        channels = {**parent.channels, **channels}
        class_names = {**parent.class_names, **class_names}
        base = parent.base
    # The file stands for itself: all its tasks are tasks of its config.
    fields = config.to_dict()
    fields["tasks"], fields["adapter"]["extend"] = list(channels), None
    return AdapterFile(
        tensors,
        dataclasses.asdict(AdapterConfig.of(config.adapter)),
        channels,
        class_names,
        base,
        run.fingerprint,
        weights=config.model.weights or "",
        seed=config.seed,
        sam=sizes(config).fields(),
        pixel_normalisation=config.model.pixel_normalisation,
        native_aspect=config.model.native_aspect,
        dtype=config.model.dtype,
        param_dtype=config.model.param_dtype,
        config=fields,
    )


def abstract(
    config: ml_collections.ConfigDict,
    mesh: sharding.AnyMesh,
    tasks: tuple[Task, ...],
    sam: SamConfig,
) -> Run:
    """The run as shapes in place of arrays: nothing is allocated, and the mesh need not be here.

    Its data set has no samples: as many are counted for training as are in one batch.
    """
    model = nnx.eval_shape(lambda: make_model(config, tasks, sam))
    graphdef, learnt, kept, frozen = _split(model, config)
    return abstract_of(config, mesh, tasks, (graphdef, learnt, frozen), kept)


def abstract_of(
    config: ml_collections.ConfigDict,
    mesh: sharding.AnyMesh,
    tasks: tuple[Task, ...],
    parts: tuple[nnx.GraphDef, nnx.State, nnx.State],
    kept: nnx.State | None = None,
) -> Run:
    """A run of shapes: the graph, what trains and what is frozen, some of it kept in float32."""
    graphdef, learnt, frozen = parts
    param_dtype = resolve_dtype(config.model.param_dtype)
    frozen = jax.eval_shape(lambda x: jax.tree.map(lambda a: a.astype(param_dtype), x), frozen)
    if kept is not None:
        frozen = nnx.merge_state(frozen, kept)
    names = tuple(task.name for task in tasks)
    splits = {"train": range(config.batch_size), "val": ()}
    dataset = Dataset(config.data.name, names, (), tuple(config.data.image_size or ()), splits)
    return Run(config, mesh, dataset, tasks, graphdef, learnt, frozen, "")


def _split(
    model: MSam, config: ml_collections.ConfigDict
) -> tuple[nnx.GraphDef, nnx.State, nnx.State, nnx.State]:
    """The model's graph; what trains; what an adapter that is extended has learnt; the base."""
    adapter = AdapterConfig.of(config.adapter)
    learns = new_tasks(adapter) if config.adapter.extend else trainable(adapter)
    return nnx.split(model, learns, trainable(adapter), ...)


def make_model(config: ml_collections.ConfigDict, tasks: tuple[Task, ...], sam: SamConfig) -> MSam:
    """The model with random parameters; cheap under `nnx.eval_shape`."""
    return make_msam(
        sam,
        AdapterConfig.of(config.adapter),
        {task.name: task.channels for task in tasks},
        seed=config.seed,
        pixel_normalisation=config.model.pixel_normalisation,
        **how_to_compute(config),
    )


def how_to_compute(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """native_aspect, attention, remat and dtype as models take them: `auto` suits this machine."""
    platform = jax.default_backend()
    return {
        "native_aspect": config.model.native_aspect,
        "attention": attention_kernels.choose(config.model.attention, platform),
        "remat": choose_remat(config.model.remat, platform),
        "dtype": resolve_dtype(config.model.dtype),
    }


def sizes(config: ml_collections.ConfigDict) -> SamConfig:
    """The model's sizes, from the header of the base where there is one.

    Raises:
      UserError: there is no base at `config.model.weights`, or it does not fit the config.
    """
    named = config.model.size and SIZES[config.model.size]()
    if not config.model.weights:
        found = named or SIZES[config_lib.DEFAULT_SIZE]()
    else:
        description = read_description(config.model.weights)
        found = description.config
        if named and named.in_words() != found.in_words():
            raise UserError(
                f"{config.model.weights} is a base of {found.in_words()}, but "
                f"config.model.size={config.model.size} has {named.in_words()}"
            )
        check_base_tasks(description.tasks, tuple(config.tasks), config.model.weights)
        # Without a base, `check` has done it.
        config_checks.check_ranks(config, found.encoder.width)
        AdapterConfig.of(config.adapter).adapted(found.encoder.depth)
    config_checks.check_trunk(config, found.encoder.depth)
    return found


def parent_of(config: ml_collections.ConfigDict) -> AdapterFile | None:
    """The adapter that `config.adapter.extend` names.

    Raises:
      UserError: it cannot be read, has one of the tasks already, or was trained with other sizes.
    """
    path = config.adapter.extend
    if not path:
        return None
    parent = AdapterFile.read(find(path))
    old = [task for task in config.tasks if task in parent.tasks]
    if old:
        raise UserError(
            f"config.tasks: {path} has {', '.join(old)} already; name only the tasks to add"
        )
    check_trained_with(config, "adapter.extend", parent, sizes(config))
    return parent
