"""What all processes of a run must have in common, for `hosts.agree`."""

import hashlib
import json
from typing import Any

import jax
import ml_collections

import talora_jax
from talora_jax import config as config_lib
from talora_jax.data import Dataset

# Where the same data and base lie, and who reads them, may be another matter on each host.
_OF_ONE_HOST = (
    "config.hosts.",
    "config.data.dir",
    "config.data.path",
    "config.model.weights",
    "config.read_",
)


def of_run(config: ml_collections.ConfigDict, mode: str) -> dict[str, Any]:
    """What all processes of a run have in common before they do anything."""
    fields = config_lib.flat_fields(config_lib.plain(config))
    shared = {k: x for k, x in fields.items() if not k.startswith(_OF_ONE_HOST)}
    versions = {"talora_jax": talora_jax.__version__, "jax": jax.__version__}
    # JAX gathers what processes have in an array of as many devices of each.
    devices = {"its number of devices": jax.local_device_count()}
    return {"--mode": mode, **versions, **devices, **shared}


def of_data(dataset: Dataset) -> dict[str, str]:
    """What all processes find in their data."""
    found = {name: f"{len(samples)} samples" for name, samples in dataset.splits.items()}
    for name, files in dataset.contents.items():
        digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]
        found[name] = f"{found[name]}, {digest}" if name in found else digest
    found["classes"] = ", ".join(dataset.class_names)
    for task, names in dataset.head_classes.items():
        found[f"classes of {task}"] = ", ".join(names)
    return {f"the data's {name}": value for name, value in found.items()}
