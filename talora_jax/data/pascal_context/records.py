"""PASCAL-Context's images as stored: each of its own size, normals in the 8 bits of their files."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Shaped

from talora_jax.data.pascal_context.classes import SEMANTIC
from talora_jax.data.pascal_context.decode import read_frame
from talora_jax.data.pascal_context.layout import Frame
from talora_jax.data.records import Records, RecordsConfig

_STORED = {
    "image": (np.uint8, (None, None, 3)),
    "semantic": (np.int8, (None, None)),
    "human_parts": (np.int8, (None, None)),
    "saliency": (np.int8, (None, None, 1)),
    "normals": (np.uint8, (None, None, 3)),
    "edges": (np.int8, (None, None, 1)),
}
TASKS = tuple(name for name in _STORED if name != "image")


class PascalContext(Records):
    """PASCAL-Context with the five targets of ASTMT."""


def records_config(name: str, splits: Mapping[str, Sequence[Frame]]) -> RecordsConfig:
    """What to prepare: the frames of each split, under this name."""
    return RecordsConfig(
        name=name, splits=splits, make=read_frame, stored=_STORED, class_names=SEMANTIC
    )


def unpack(name: str, values: Shaped[np.ndarray, "H W *c"]) -> Shaped[np.ndarray, "H W *c"]:
    """A stored array as `talora_jax.data.dataset.Source` promises it."""
    match name:
        case "semantic" | "human_parts":
            return values.astype(np.int32)
        case "saliency" | "edges":
            return values.astype(np.float32)
        case "normals":
            normals = values.astype(np.float32) * np.float32(2 / 255) - 1
            # No value v is zero (that would be 127.5), so no length is.
            normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
            return np.where(values.any(axis=-1, keepdims=True), normals, np.float32(0))
    return values
