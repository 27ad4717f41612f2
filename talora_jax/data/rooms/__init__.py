"""Rooms: a data set that needs no download, because it is rendered when first opened.

Indoor scenes in the manner of NYUv2, with its 13 classes: random rooms, furnished, lit and ray-cast
(`furniture`, `scene`, `textures`, `render`), kept as records.

What they look like depends on fields of the config, which a run's config.json holds, and on this
code: so a run remembers the version of the rooms, and does not go on with other ones unawares.
"""

from collections.abc import Sequence

import ml_collections

from talora_jax.data.dataset import Dataset, check_tasks
from talora_jax.data.nyuv2_classes import CLASS_NAMES

TASK_NAMES = ("semantic", "depth", "normals", "edges", "instance", "part")


def open_rooms(data: ml_collections.ConfigDict, tasks: Sequence[str]) -> Dataset:
    """Opens the rooms, rendering them first if they are not there yet.

    Args:
      data: `config.data`, of which are read `dir` (where records are kept; None: TFDS's default),
        `train_frames`, `val_frames`, `image_size` (H, W) and `seed`.
      tasks: targets wanted.

    Raises:
      UserError: a field is out of range, or the directory cannot be written.
    """
    # Imported here: `python -m talora_jax.data.rooms --help` need not wait for JAX.
    from talora_jax.data.memory import SETTINGS
    from talora_jax.data.records import RecordsSource, prepare, prepared
    from talora_jax.data.rooms.records import Rooms, records_config, unpack

    check_tasks(Rooms.name, TASK_NAMES, tasks)
    size = tuple(data.image_size or ())
    config = records_config(data.train_frames, data.val_frames, size, data.seed)
    if prepared(Rooms, data.dir, config.name) is None:
        prepare(Rooms, data.dir, config)
    builder = prepared(Rooms, data.dir, config.name)
    return Dataset(
        name=Rooms.name,
        tasks=TASK_NAMES,
        class_names=CLASS_NAMES,
        image_size=size,
        splits={
            split: RecordsSource(builder.as_data_source(split), tasks, unpack)
            for split in config.splits
        },
        contents={SETTINGS: {"version": str(Rooms.VERSION)}},
    )
