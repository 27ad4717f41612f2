"""The samples of a folder as they are stored: what each frame's files become.

Normals are kept in 16-bit fixed point (to 2e-5) and edges in 8 bits.
"""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Shaped
from PIL import Image

from talora_jax.data.folder.decode import READ
from talora_jax.data.folder.edges import edges_from_ids
from talora_jax.data.folder.frames import Frame
from talora_jax.data.folder.normals import normals_from_depth
from talora_jax.data.folder.settings import Settings
from talora_jax.data.records import Records, RecordsConfig, Sample
from talora_jax.data.transforms import resize_nearest

_NORMAL_ONE = 32767

_STORED = {
    "image": (np.uint8, (3,)),
    "semantic": (np.int32, ()),
    "depth": (np.float32, (1,)),
    "normals": (np.int16, (3,)),
    "edges": (np.int8, (1,)),
}


class Folder(Records):
    """Images and dense targets of a user's folder."""


def records_config(
    name: str,
    splits: Mapping[str, Sequence[Frame]],
    settings: Settings,
    tasks: tuple[str, ...],
    image_size: tuple[int, int],
    class_names: tuple[str, ...],
) -> RecordsConfig:
    """What to prepare.

    Args:
        settings: of `dataset.json`.
        tasks: targets to store: all that the folder can give.
        image_size: H, W to store.
        class_names: one per class; empty without 'semantic'.
    """
    return RecordsConfig(
        name=name,
        splits=splits,
        make=functools.partial(
            _make_example, settings=settings, tasks=tasks, image_size=image_size
        ),
        stored={
            name: (dtype, (*image_size, *channels))
            for name, (dtype, channels) in _STORED.items()
            if name in ("image", *tasks)
        },
        class_names=class_names,
    )


def _make_example(
    frame: Frame, settings: Settings, tasks: tuple[str, ...], image_size: tuple[int, int]
) -> Sample:
    """Reads a frame's files, derives what is derived, resizes, and packs for storing.

    Normals are fitted before resizing, to all there is measured; edges are drawn after it, so that
    they are as thick at any size.
    """
    read = {name: READ[name](path, settings) for name, path in frame.files.items()}
    if "normals" in tasks and "normals" not in read:
        read["normals"] = normals_from_depth(read["depth"], settings.intrinsics)
    read = {name: _resize(name, values, image_size) for name, values in read.items()}
    if "edges" in tasks and "edges" not in read:
        read["edges"] = edges_from_ids(read["instance" if "instance" in read else "semantic"])
    return {name: _pack(name, read[name]) for name in ("image", *tasks)}


def _resize(
    name: str, values: Shaped[np.ndarray, "H W ..."], size: tuple[int, int]
) -> Shaped[np.ndarray, "H W ..."]:
    """Bilinear with antialiasing for the image, nearest for targets."""
    if values.shape[:2] == size:
        return values
    if name == "image":
        image = Image.fromarray(values).resize(size[::-1], Image.Resampling.BILINEAR)
        return np.asarray(image)
    return resize_nearest(values, size)


def _pack(name: str, values: np.ndarray) -> np.ndarray:
    if name == "normals":
        values = (values * _NORMAL_ONE).round()
    return values.astype(_STORED[name][0])


def unpack(name: str, values: np.ndarray) -> np.ndarray:
    match name:
        case "normals":
            return values.astype(np.float32) * np.float32(1 / _NORMAL_ONE)
        case "edges":
            return values.astype(np.float32)
    return values
