"""What of a trained model is exported, in any form: the program, its weights, what they are."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, UInt8

from talora_jax.inference.model import tasks_of
from talora_jax.models.msam import MSam
from talora_jax.tasks import Task
from talora_jax.weights.adapter_file import AdapterFile
from talora_jax.weights.assemble import Base, assemble, model_of, read_base_of, resolve_dtype
from talora_jax.weights.state import filled, name_of

Weights = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Trained:
    """A finished run.

    Attributes:
      file, path: the adapter.
      tasks: in the order of U3's rows.
      model: both together, float32.
    """

    file: AdapterFile
    path: Path
    tasks: tuple[Task, ...]
    base: Base
    model: MSam


def load(file: AdapterFile, path: Path, base: Path | None, *, force: bool = False) -> Trained:
    """The model of an adapter file and its base; no data set is opened.

    Args:
      force: take a base that the adapter was not trained on, if it has the same sizes.

    Raises:
      UserError: the base is missing, or it is another one than the adapter was trained on.
    """
    found = read_base_of(file, path, base, force=force)
    model = assemble(file, path, found, dtype=resolve_dtype(file.dtype))
    return Trained(file, path, tasks_of(file), found, model)


def make_program(
    trained: Trained, tasks: Sequence[Task], dtype: str, batch_size: int | None
) -> Callable[[Weights, UInt8[Array, "B H W 3"]], dict[str, Array]]:
    """The function (weights, images) → arrays by name that is exported; it computes in `dtype`.

    Without a batch size images are computed one after the other: memory does not grow with their
    number, and no shape depends on it.
    """
    graphdef, abstract = nnx.split(
        nnx.eval_shape(
            lambda: model_of(trained.file, trained.base.sam, dtype=jnp.dtype(dtype), remat="none")
        )
    )

    def predict(weights, images):
        return outputs_of(nnx.merge(graphdef, filled(abstract, weights)), tasks, images)

    if batch_size:
        return predict

    def in_turn(weights, images):
        def one(image):
            return {name: x[0] for name, x in predict(weights, image[None]).items()}

        return jax.lax.map(one, images)

    return in_turn


def outputs_of(
    model: MSam, tasks: Sequence[Task], images: UInt8[Array, "B H W 3"]
) -> dict[str, Array]:
    """What the users of these tasks want of a batch of images."""
    maps = model(images.astype(jnp.float32) / 255, tuple(task.name for task in tasks))
    arrays: dict[str, Array] = {}
    for task in tasks:
        arrays |= task.outputs(maps[task.name])
    return arrays


def weights_of(model: MSam) -> Weights:
    """All parameters by their path in the model."""
    return {name_of(p): v[...] for p, v in nnx.to_flat_state(nnx.state(model))}


def described(
    trained: Trained, tasks: Sequence[Task], size: tuple[int, int], batch_size: int | None
) -> dict:
    """What `model.json` tells: everything one must know to use what the program gives."""

    def arrays(task):
        maps = jax.ShapeDtypeStruct((*size, task.channels), jnp.float32)
        shapes = jax.eval_shape(task.outputs, maps)
        return {k: {"dtype": str(x.dtype), "shape": list(x.shape)} for k, x in shapes.items()}

    return {
        "image_size": list(size),
        "batch_size": batch_size,
        "tasks": {
            task.name: {
                "meaning": task.meaning,
                "arrays": arrays(task),
                "class_names": list(getattr(task, "class_names", ())),
            }
            for task in tasks
        },
        "trained_with": trained.file.config,
    }


def task_rows(tells: dict) -> list[str]:
    """Of `described`, a table of the arrays that the tasks' users get."""
    lines = ["| array | of each image | |", "|---|---|---|"]
    for task in tells["tasks"].values():
        for name, x in task["arrays"].items():
            lines.append(f"| `{name}` | {x['dtype']} {x['shape']} | {task['meaning']} |")
        if task["class_names"]:
            lines.append(f"| | | classes: {', '.join(task['class_names'])} |")
    return lines
