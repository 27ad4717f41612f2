"""Training that starts from an adapter, on other data, classes or tasks: what fits is taken.

Other than with `config.adapter.extend`, all of it trains on, and what the run leaves has its own
tasks alone.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

import jax
import ml_collections
import numpy as np

from talora_jax import hosts, sharding
from talora_jax.errors import UserError, listed
from talora_jax.models.adapters import AdapterConfig
from talora_jax.models.msam import task_axis
from talora_jax.tasks import Task
from talora_jax.training.setup import Run, sizes
from talora_jax.training.trained_with import check_trained_with
from talora_jax.weights.adapter_file import AdapterFile, find
from talora_jax.weights.state import filled, fingerprint, tensors_of

_ROWS = "no_mask_embed"  # one for each output channel


def source_of(config: ml_collections.ConfigDict) -> AdapterFile:
    """The adapter that `config.init` names.

    Raises:
      UserError: it cannot be read, is of another kind, or was trained with other sizes.
    """
    file = AdapterFile.read(find(config.init))
    check_trained_with(config, "init", file, sizes(config))
    return file


def started(run: Run) -> tuple[Run, list[str]]:
    """The run with what it takes of the adapter of `config.init`, and a line on each part of it.

    Raises:
      UserError: as of `source_of`; or the adapter was trained on another base.
    """
    config = run.config
    file = source_of(config)
    hosts.agree({"the adapter of config.init": fingerprint(file.tensors)})
    if file.base_fingerprint != run.fingerprint:
        raise UserError(
            f"config.init: {config.init} belongs to another base ({file.base}) than "
            f"config.model.weights={config.model.weights!r} gives"
        )
    adapter = AdapterConfig.of(config.adapter)
    tensors, lines = taken(tensors_of(run.trainable), file, run.tasks, adapter)
    learnt = jax.device_put(filled(run.trainable, tensors), sharding.replicated(run.mesh))
    head = f"starting from {config.init}, an adapter for {', '.join(file.tasks)}"
    return dataclasses.replace(run, trainable=learnt), [head, *(f"  {line}" for line in lines)]


def taken(
    own: Mapping[str, np.ndarray],
    file: AdapterFile,
    tasks: Sequence[Task],
    adapter: AdapterConfig,
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The tensors of a run with those of an adapter that fit, and what was done with each part.

    What tasks share is taken by name and shape; what a task has of its own (decoder, row of U3) by
    the task's name; its no-mask rows by the names of its classes, or all, where it has none and as
    many channels.

    Args:
      own: what trains, by path in the model, as a run without the adapter has it.
    """
    tensors = {name: np.array(x) for name, x in own.items()}
    unfit = []
    for name, x in tensors.items():
        old, axis = file.tensors.get(name), task_axis(adapter, name.split("."))
        if axis is None and old is not None and old.shape == x.shape:
            x[...] = old
        elif name == _ROWS:
            for here, there in _channels(tasks, file):
                x[here] = old[there]
        elif axis is not None and old is not None and _each(old, axis) == _each(x, axis):
            ours, theirs = np.moveaxis(x, axis, 0), np.moveaxis(old, axis, 0)
            for i, task in enumerate(tasks):
                if task.name in file.tasks:
                    ours[i] = theirs[file.tasks.index(task.name)]
        else:
            unfit.append(name)
    lines = ["what tasks share: taken"]
    lines += [f"{listed(unfit)}: of another shape or not there, start anew"] if unfit else []
    lines += [f"{task.name}: {_told(task, file)}" for task in tasks]
    names = [task.name for task in tasks]
    lines += [f"{name}: not of this run, left out" for name in file.tasks if name not in names]
    return tensors, lines


def _each(x: np.ndarray, axis: int) -> tuple[int, ...]:
    """The shape of what one task has."""
    return np.moveaxis(x, axis, 0).shape[1:]


def _rows(task: Task, file: AdapterFile) -> list[tuple[int, int]]:
    """Which of a task's channels is which one there."""
    ours, theirs = list(task.class_names), list(file.class_names.get(task.name, ()))
    if ours or theirs:
        return [(i, theirs.index(name)) for i, name in enumerate(ours) if name in theirs]
    same = file.channels.get(task.name) == task.channels
    return [(i, i) for i in range(task.channels)] if same else []


def _channels(tasks: Sequence[Task], file: AdapterFile) -> list[tuple[int, int]]:
    """The same over the channels of all tasks."""
    starts = itertools.accumulate((task.channels for task in tasks), initial=0)
    there = dict(
        zip(file.tasks, itertools.accumulate(file.channels.values(), initial=0), strict=False)
    )
    return [
        (start + ours, there[task.name] + theirs)
        for start, task in zip(starts, tasks, strict=False)
        if task.name in file.tasks
        for ours, theirs in _rows(task, file)
    ]


def _told(task: Task, file: AdapterFile) -> str:
    if task.name not in file.tasks:
        return "not there, starts anew"
    rows = _rows(task, file)
    if len(rows) == task.channels == file.channels[task.name]:
        return "taken"
    what = "classes" if task.class_names else "channels"
    told = f"{file.channels[task.name]} {what} there, {task.channels} here: its decoder is taken"
    if not rows:
        return f"{told}, its no-mask rows start anew"
    if len(rows) == task.channels:
        return f"{told}, and the no-mask rows of all {what}"
    names = listed([task.class_names[ours] for ours, _ in rows], 100)
    return f"{told}, and the no-mask rows of {names}; the others start anew"
