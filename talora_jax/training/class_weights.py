"""Gives the tasks of a run the weights of their classes, see `config.class_weights`."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from talora_jax.data.survey import Survey
from talora_jax.errors import UserError, short
from talora_jax.tasks import Task
from talora_jax.training.setup import Run
from talora_jax.weighting.classes import class_weights


def weighted(run: Run, found: Survey) -> Run:
    """The run, each task of which has classes with their weights.

    Args:
      found: how often classes occur in the training images that were looked at.

    Raises:
      UserError: weights are given for another number of classes than a task has.
    """
    asked = run.config.class_weights
    if asked.kind == "none":
        return run
    tasks = tuple(
        dataclasses.replace(task, class_weights=_weights(asked.kind, asked.given, task, found))
        if task.class_names
        else task
        for task in run.tasks
    )
    return dataclasses.replace(run, tasks=tasks)


def lines(run: Run) -> list[str]:
    """For each task whose classes weigh unlike, a line that says how much each does."""
    return [
        f"{task.name}: classes weigh "
        + ", ".join(f"{n} {w:.3g}" for n, w in zip(names, task.class_weights, strict=True))
        for task in run.tasks
        if (names := task.class_names) and task.class_weights
    ]


def _weights(kind: str, given: Sequence[float], task: Task, found: Survey) -> tuple[float, ...]:
    if kind == "given":
        if len(given) != len(task.class_names):
            raise UserError(
                f"config.class_weights.given is {short(tuple(given), 80)}, expected a weight for "
                f"each of the {len(task.class_names)} classes of {task.name}"
            )
        return tuple(map(float, given))
    content = found.contents[task.name]
    counts, present = (
        np.array([of.get(i, 0) for i in range(len(task.class_names))])
        for of in (content.counts, content.present)
    )
    return tuple(class_weights(kind, counts, present).tolist())
