"""Our data pipeline: what delivers batches, and a training that waits for them."""

import sys
import time
from collections.abc import Iterator
from typing import Any

import jax
import ml_collections
import numpy as np

from benchmarks.harness import peak_rss
from benchmarks.ours import TASKS, Contender, make_config, name_sizes, sam_config
from talora_jax import sharding
from talora_jax.data import open_dataset
from talora_jax.data.dataset import Dataset
from talora_jax.data.pipeline import train_iterator
from talora_jax.errors import UserError
from talora_jax.tasks import make_task
from talora_jax.training.setup import assemble
from talora_jax.training.step import init_state, make_train_step


def prepare_data(**data: Any) -> tuple[None, dict[str, Any]]:
    """Writes the samples, so that contenders only read.

    Returns:
      No step, and samples of all splits, their size H, W, and what preparing took: seconds, and the
      most memory resident so far, in bytes. Data that cannot be used end the process with a line.
    """
    start = time.perf_counter()
    try:
        dataset = open_dataset(data_config(**data).data, TASKS)
    except UserError as error:
        sys.exit(f"error: {error}")
    return None, {
        "samples": sum(len(source) for source in dataset.splits.values()),
        "image_size": dataset.image_size,
        "seconds": time.perf_counter() - start,
        "peak_rss": peak_rss(),
    }


def pipeline(data: dict[str, Any], batch_size: int, batches: int, threads: int) -> Contender:
    """Augmented batches from a pipeline that starts anew: no batch is ready before.

    Args:
      data: fields of `config.data`.
      threads: that read and augment; 0 makes each batch when it is asked for.
    """
    config = data_config(**data)
    dataset = open_dataset(config.data, TASKS)

    def step():
        iterator = batches_of(config, dataset, batch_size, threads)
        for _ in range(batches):
            next(iterator)

    return step, {"images": batch_size * batches}


def input_wait(
    architecture: dict[str, Any], data: dict[str, Any], batch_size: int, steps: int, threads: int
) -> tuple[None, dict[str, Any]]:
    """Trains for some steps, as `talora_jax.training.loop` does, and says what it waited for.

    Returns:
      No step, and seconds by step, {"total": [...], "waiting": [...]}; the first two are left out.
    """
    config = data_config(**data)
    config.batch_size = batch_size
    name_sizes(config, sam_config(architecture))
    dataset = open_dataset(config.data, TASKS)
    mesh = sharding.make_mesh(**config.mesh)
    tasks = tuple(make_task(name, class_names=dataset.class_names) for name in TASKS)
    run = assemble(config, mesh, dataset, tasks, parent=None)
    train_step, state = make_train_step(run), init_state(run)
    iterator = batches_of(config, dataset, batch_size, threads)
    total, waiting = [], []
    with jax.set_mesh(mesh):
        for _ in range(steps + 2):
            start = time.perf_counter()
            batch = next(iterator)
            waiting.append(time.perf_counter() - start)
            state, scalars = train_step(state, run.frozen, sharding.shard_batch(batch, mesh))
            jax.block_until_ready(scalars)
            total.append(time.perf_counter() - start)
    return None, {"total": total[2:], "waiting": waiting[2:]}


def data_config(**data: Any) -> ml_collections.ConfigDict:
    """The default config with these fields of `config.data`."""
    config = make_config(data["image_size"], native_aspect=False)
    for field, value in data.items():
        config.data[field] = tuple(value) if isinstance(value, list) else value
    return config


def batches_of(
    config: ml_collections.ConfigDict, dataset: Dataset, batch_size: int, threads: int
) -> Iterator[dict[str, np.ndarray]]:
    """Training batches for one process."""
    return train_iterator(
        dataset.splits["train"],
        tasks=TASKS,
        image_size=dataset.image_size,
        batch_size=batch_size,
        seed=config.seed,
        augment=config.augment,
        num_threads=threads,
    )
