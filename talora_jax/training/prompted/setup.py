"""What a config of training from prompts stands for, and what its run leaves."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx

from talora_jax import config as config_lib
from talora_jax import hosts, sharding
from talora_jax.data import Dataset, open_dataset
from talora_jax.data.masks import AskedMasks
from talora_jax.errors import UserError
from talora_jax.models.adapters import AdapterConfig
from talora_jax.models.keys import Keys
from talora_jax.models.sam import Sam
from talora_jax.tasks import Task, make_task
from talora_jax.training import agreement
from talora_jax.training.prompted.learner import FINE, Learner, trainable
from talora_jax.training.setup import Run, abstract_of, how_to_compute, sizes, start
from talora_jax.weights.assemble import resolve_dtype
from talora_jax.weights.base_file import (
    FILE_NAME,
    Description,
    read_base,
    read_description,
    write_base,
)
from talora_jax.weights.build import build
from talora_jax.weights.state import fingerprint, tensors_of


def prepare(
    config: ml_collections.ConfigDict,
    tell: Callable[[str], None] = lambda line: None,
    *,
    trains: bool = True,
) -> Run:
    """Checks the config, opens the data, builds the SAM and lays it over the mesh.

    Args:
      tell: is given a line on each thing that takes time.
      trains: as of `talora_jax.training.setup.start`.

    Raises:
      UserError: whatever in the config, the data or the checkpoint cannot work.
    """
    mesh = start(config, trains=trains)
    patch = sizes(config).encoder.patch_size
    if patch % FINE:
        raise UserError(
            f"config.model has patches of {patch} pixels; training from prompts needs a multiple "
            f"of {FINE}"
        )
    if sizes(config).decoder.mask_tokens < 2:
        raise UserError(
            "config.model has a decoder of one mask token; training from prompts needs two or "
            "more: one for several prompts of an object, the others for what one can mean"
        )
    if config.model.weights and read_description(config.model.weights).tasks is not None:
        raise UserError(f"{config.model.weights} has decoders of tasks and none for prompts")
    if not config.model.weights and config.adapter.kind != "full":
        tell(
            "warning: config.model.weights is empty: the encoder is random numbers and stays so, "
            f"but for what config.adapter.kind={config.adapter.kind} trains; name a base, such as "
            "sam_small"
        )
    tell(f"opening the data, {config.data.name}")
    dataset = open_dataset(config.data, (*config.prompts.domains, *config.prompts.auxiliary))
    hosts.agree(agreement.of_data(dataset))
    tell(f"building the model, {config_lib.model_name(config.model)}")
    return assemble(config, mesh, dataset)


def assemble(config: ml_collections.ConfigDict, mesh: jax.sharding.Mesh, dataset: Dataset) -> Run:
    """The run of a checked config on an opened data set; its tasks are the auxiliary ones.

    Raises:
      UserError: the base of `config.model.weights` does not fit.
    """
    tasks = auxiliary_tasks(config, dataset.classes)
    graphdef, learns, frozen = _built(config, tasks)
    digest = fingerprint(tensors_of(frozen))
    hosts.agree({"the base": digest})
    param_dtype = resolve_dtype(config.model.param_dtype)
    frozen = sharding.shard_frozen(jax.tree.map(lambda x: x.astype(param_dtype), frozen), mesh)
    learns = jax.device_put(learns, sharding.replicated(mesh))
    return Run(config, mesh, dataset, tasks, graphdef, learns, frozen, digest)


def _built(
    config: ml_collections.ConfigDict, tasks: tuple[Task, ...]
) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """The learner from the base, float32: its graph; what trains; what is frozen."""
    base = None
    if config.model.weights:
        base = {f"sam.{name}": x for name, x in read_base(config.model.weights)[0].items()}
    return nnx.split(build(lambda: make_learner(config, tasks), base), _filter(config), ...)


def abstract(
    config: ml_collections.ConfigDict, mesh: sharding.AnyMesh, classes: Mapping[str, Sequence[str]]
) -> Run:
    """The run as shapes in place of arrays, see `talora_jax.training.setup.abstract`.

    Args:
      classes: the class names of each auxiliary task.
    """
    tasks = auxiliary_tasks(config, classes.__getitem__)
    learner = nnx.eval_shape(lambda: make_learner(config, tasks))
    return abstract_of(config, mesh, tasks, nnx.split(learner, _filter(config), ...))


def _filter(config: ml_collections.ConfigDict) -> nnx.filterlib.Filter:
    return trainable(AdapterConfig.of(config.adapter), config.prompts.learns)


def auxiliary_tasks(
    config: ml_collections.ConfigDict, classes: Callable[[str], Sequence[str]]
) -> tuple[Task, ...]:
    """The tasks that linear layers on the embeddings learn."""
    return tuple(make_task(name, class_names=classes(name)) for name in config.prompts.auxiliary)


def make_learner(config: ml_collections.ConfigDict, tasks: tuple[Task, ...]) -> Learner:
    """What trains, with random parameters; cheap under `nnx.eval_shape`."""
    rngs = Keys(jax.random.key(config.seed, impl="rbg"))
    how = how_to_compute(config)
    sam = Sam(
        sizes(config),
        AdapterConfig.of(config.adapter),
        len(config.prompts.domains),
        **how,
        rngs=rngs,
    )
    return Learner(sam, {task.name: task.channels for task in tasks}, dtype=how["dtype"], rngs=rngs)


def asked_masks(config: ml_collections.ConfigDict, dataset: Dataset, split: str) -> AskedMasks:
    """How a sample becomes a padded image and masks."""
    encoder = sizes(config).encoder
    training = split == "train"
    frame = (encoder.image_size, encoder.image_size)
    if config.model.native_aspect:
        geometry = encoder.geometry(dataset.image_size, native_aspect=True)
        frame = geometry.padded
    return AskedMasks(
        tuple(config.prompts.domains),
        config.prompts.masks if training else config.prompts.eval_masks,
        config.prompts.min_pixels,
        frame,
        config.prompts.aspects and tuple(config.prompts.aspects) if training else None,
        tuple(config.prompts.auxiliary) if training else (),
    )


def results(config: ml_collections.ConfigDict) -> list[str]:
    """The bases that a run leaves: one for each domain, where an adapter tells them apart."""
    if not AdapterConfig.of(config.adapter).per_task:
        return [FILE_NAME]
    return [f"base_{domain}.safetensors" for domain in config.prompts.domains]


def write_learnt(run: Run, learnt: nnx.State, workdir: Path) -> None:
    """Writes the SAM that was trained as `results`, adapters in its weights; process 0 does.

    Raises:
      UserError: what is frozen has to be read again, and the base is not what it was.
    """
    config = run.config
    exact = resolve_dtype(config.model.param_dtype) == jnp.float32
    if exact:
        # Parts of it may be on other hosts' devices.
        frozen = jax.device_put(run.frozen, sharding.replicated(run.mesh))
    if jax.process_index() > 0:
        return
    if not exact:
        # In fewer bits what is frozen is not the base's, and updates are lost in its rounding.
        frozen = _built(config, run.tasks)[-1]
        if fingerprint(tensors_of(frozen)) != run.fingerprint:
            raise UserError(
                f"config.model.weights: {config.model.weights} has changed since this run began, "
                "and what was learnt goes into its weights: put back what it was, and the same "
                "command goes on"
            )
    learner: Learner = nnx.merge(run.graphdef, learnt, frozen)
    sam = learner.sam
    source = {
        "trained": "from prompts, by talora_jax",
        "on": run.dataset.name,
        "from": config.model.weights or f"random numbers of seed {config.seed}",
        "steps": config.steps,
    }
    rest = tensors_of(nnx.state(sam, nnx.Not(nnx.PathContains("image_encoder"))))
    for domain, name in enumerate(results(config)):
        encoder = nnx.state(sam.image_encoder.merge(domain))
        write_base(
            workdir / name,
            {f"image_encoder.{k}": x for k, x in tensors_of(encoder).items()} | rest,
            Description(sam.config, None, {"file": name, **source}, config.model.native_aspect),
        )
