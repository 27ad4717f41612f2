"""PASCAL-Context's images as stored: each of its own size, normals in the 8 bits of their files."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Num

from talora_jax.data.pascal_context.classes import SEMANTIC
from talora_jax.data.pascal_context.decode import read_sample
from talora_jax.data.records import Records, RecordsConfig, SampleFiles, as_declared

_STORED = {
    "image": (np.uint8, (None, None, 3)),
    "semantic": (np.int8, (None, None)),
    "human_parts": (np.int8, (None, None)),
    "saliency": (np.int8, (None, None, 1)),
    "normals": (np.uint8, (None, None, 3)),
    "edges": (np.int8, (None, None, 1)),
}
TASK_NAMES = tuple(name for name in _STORED if name != "image")


class PascalContext(Records):
    """PASCAL-Context with the five targets of ASTMT."""


def records_config(
    name: str, splits: Mapping[str, Sequence[SampleFiles]], tasks: Sequence[str]
) -> RecordsConfig:
    """What to prepare: the samples of each split with these targets, under this name."""
    return RecordsConfig(
        name=name,
        title="PASCAL-Context",
        splits=splits,
        make=functools.partial(read_sample, tasks=tasks),
        stored={name: _STORED[name] for name in ("image", *tasks)},
        notes={"class_names": SEMANTIC},
    )


def unpack(name: str, stored: Num[np.ndarray, "H W *c"]) -> Num[np.ndarray, "H W *c"]:
    """A stored array as `talora_jax.data.dataset.Source` promises it."""
    if name != "normals":
        return as_declared(name, stored)
    normals = stored.astype(np.float32) * np.float32(2 / 255) - 1
    # No value v is zero (that would be 127.5), so no length is.
    normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
    return np.where(stored.any(axis=-1, keepdims=True), normals, np.float32(0))
