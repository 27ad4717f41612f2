"""Gives the tasks of a run the weights of their classes, see `config.class_weights`."""

import dataclasses

import numpy as np

from talora_jax.data.survey import Survey
from talora_jax.errors import UserError
from talora_jax.tasks import Task
from talora_jax.training.setup import Run
from talora_jax.weighting.classes import class_weights, given_weights


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
    named = [task for task in run.tasks if task.class_names]
    if asked.kind == "given":
        weights = given_weights(asked.given, [task.name for task in named])
        for task in named:
            _check_count(task, weights[task.name])
    else:
        weights = {task.name: _weights(asked.kind, task, found) for task in named}
    tasks = tuple(
        dataclasses.replace(task, class_weights=weights[task.name])
        if task.name in weights
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


def _check_count(task: Task, weights: tuple[float, ...]) -> None:
    if weights and len(weights) != len(task.class_names):
        raise UserError(
            f"config.class_weights.given has {len(weights)} numbers for {task.name}, expected a "
            f"weight for each of its {len(task.class_names)} classes"
        )


def _weights(kind: str, task: Task, found: Survey) -> tuple[float, ...]:
    content = found.contents[task.name]
    counts, present = (
        np.array([of.get(i, 0) for i in range(len(task.class_names))])
        for of in (content.counts, content.present)
    )
    return tuple(class_weights(kind, counts, present).tolist())
