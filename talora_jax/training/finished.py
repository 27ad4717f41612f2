"""Whether there is anything left to do of a run, found out without making its model anew."""

from collections.abc import Sequence
from pathlib import Path

import jax
import ml_collections

from talora_jax import storage
from talora_jax.data import memory, open_dataset
from talora_jax.errors import UserError
from talora_jax.training.jobs import Job
from talora_jax.training.setup import refusals
from talora_jax.weights import adapter_file
from talora_jax.weights.adapter_file import AdapterFile
from talora_jax.weights.assemble import read_base_of


def surely(config: ml_collections.ConfigDict, workdir: Path, job: Job) -> bool:
    """Whether a workdir surely holds all that a run of this config leaves.

    Then data and base are those that it was trained on. False says nothing: the loop, which reads
    the checkpoint, finds out what is the matter, and so it does for runs of many processes, runs in
    buckets, and runs that leave something else than an adapter.

    Args:
      config: the one that the workdir is of.

    Raises:
      UserError: the data has changed, or cannot be opened.
    """
    adapter = workdir / adapter_file.FILE_NAME
    if jax.process_count() > 1 or storage.is_remote(workdir):
        return False
    if job.results(config) != [adapter.name] or not adapter.exists() or not config.model.weights:
        return False
    steps = [int(x.name) for x in (workdir / "checkpoints").glob("*") if x.name.isdigit()]
    if max(steps, default=0) != config.steps or refusals(config).by_field:
        return False
    dataset = open_dataset(config.data, job.targets(config))
    memory.remember(dataset, workdir, resumes=True, write=False)
    try:
        file = AdapterFile.read(adapter)
        read_base_of(file, adapter, config.model.weights)
    except UserError:
        return False
    same = all(tuple(names) == dataset.classes(task) for task, names in file.class_names.items())
    return not config.adapter.extend and same


def told(steps: int, workdir: Path, files: Sequence[str]) -> dict[str, float]:
    """Says that a run is finished; it has no metrics that are new.

    Args:
      files: what it left.
    """
    if jax.process_index() == 0:
        print(f"This run is finished: {workdir} holds {steps} steps and {', '.join(files)}.")
    return {}
