"""Rooms: a data set that needs no download, because it is rendered when first opened.

Indoor scenes in the manner of NYUv2, with its 13 classes: random rooms, furnished, lit and ray-cast
(`furniture`, `scene`, `textures`, `render`), kept as a TFDS data set (`builder`).
"""

from collections.abc import Sequence

import ml_collections

from talora_jax.data.dataset import Dataset
from talora_jax.data.nyuv2_classes import CLASS_NAMES

TASKS = ("semantic", "depth", "normals", "edges")


def open_rooms(data: ml_collections.ConfigDict, tasks: Sequence[str]) -> Dataset:
    """Opens the rooms, rendering them first if they are not there yet.

    Args:
        data: `config.data`, of which are read `dir` (where data sets are kept; None for
            TFDS's default), `train_frames`, `val_frames`, `image_size` (H, W) and `seed`.
        tasks: the targets that samples shall have besides the image.

    Raises:
        UserError: a field is out of range, or the directory cannot be written.
    """
    # Imported here: `python -m talora_jax.data.rooms --help` need not wait for JAX.
    from talora_jax.data.rooms.builder import RoomsSource, prepare, rooms_config

    config = rooms_config(data.train_frames, data.val_frames, data.image_size or (), data.seed)
    data_dir = data.dir or None
    prepare(config, data_dir)
    keys = ("image", *(task for task in TASKS if task in tasks))
    return Dataset(
        name="rooms",
        tasks=TASKS,
        class_names=CLASS_NAMES,
        image_size=config.image_size,
        splits={split: RoomsSource(config, data_dir, split, keys) for split in ("train", "val")},
    )
