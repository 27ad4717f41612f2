"""The rooms as stored: sample i of a split is frame i, with less precision than it was rendered
with.

Depth is kept in steps of 0.2 mm (off by at most 0.1 mm), normals in steps of 1 / 32767 (off by at
most 2e-5 a component).
"""

import functools
from collections.abc import Sequence

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Num

from talora_jax.data.nyuv2_classes import CLASS_NAMES
from talora_jax.data.records import Records, RecordsConfig, Sample, as_declared
from talora_jax.data.rooms.render import render
from talora_jax.data.rooms.scene import random_scene
from talora_jax.errors import UserError

_DEPTH_STEP = 1 / 5000
_NORMAL_STEP = 1 / 32767

_STORED = {
    "image": (np.uint8, (3,)),
    "semantic": (np.uint8, ()),
    "depth": (np.uint16, (1,)),
    "normals": (np.int16, (3,)),
    "edges": (np.uint8, (1,)),
    "instance": (np.uint8, ()),
    "part": (np.uint8, ()),
}


class Rooms(Records):
    """Ray-cast rooms with semantic labels, depth, normals, edges, instances and their parts."""

    # Any change of what a frame looks like or holds needs another version: prepared data would
    # stay behind.
    VERSION = tfds.core.Version("1.1.0")


def records_config(
    train_frames: int, val_frames: int, image_size: Sequence[int], seed: int
) -> RecordsConfig:
    """What to prepare, named after its values.

    Args:
      image_size: H, W.

    Raises:
      UserError: a value is out of range.
    """
    for name, frames in (("train_frames", train_frames), ("val_frames", val_frames)):
        if frames < 1:
            raise UserError(f"config.data.{name} is {frames}; rooms needs at least 1 frame.")
    if len(image_size) != 2 or min(image_size) < 32:
        raise UserError(
            f"config.data.image_size is {tuple(image_size)}; rooms needs (height, width) of at "
            "least 32 pixels each."
        )
    if seed < 0:
        raise UserError(f"config.data.seed is {seed}; it must not be negative.")
    height, width = image_size
    return RecordsConfig(
        name=f"train{train_frames}_val{val_frames}_{height}x{width}_seed{seed}",
        title="rooms",
        splits={
            split: [(split, index) for index in range(frames)]
            for split, frames in (("train", train_frames), ("val", val_frames))
        },
        make=functools.partial(_make_sample, seed=seed, size=(height, width)),
        stored={name: (dtype, (height, width, *rest)) for name, (dtype, rest) in _STORED.items()},
        notes={"class_names": CLASS_NAMES},
    )


def _make_sample(place: tuple[str, int], seed: int, size: tuple[int, int]) -> Sample:
    """The frame at a place, split and index, as stored."""
    frame = render(random_scene(seed, *place), size)
    frame["depth"] = np.round(frame["depth"] / _DEPTH_STEP)
    frame["normals"] = np.round(frame["normals"] / _NORMAL_STEP)
    return {name: frame[name].astype(dtype) for name, (dtype, _) in _STORED.items()}


def unpack(name: str, stored: Num[np.ndarray, "H W *c"]) -> Num[np.ndarray, "H W *c"]:
    """A stored array as `talora_jax.data.dataset.Source` promises it."""
    match name:
        case "depth":
            return stored.astype(np.float32) * np.float32(_DEPTH_STEP)
        case "normals":
            return stored.astype(np.float32) * np.float32(_NORMAL_STEP)
    return as_declared(name, stored)
