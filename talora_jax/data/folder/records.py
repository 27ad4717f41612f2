"""The samples of a folder as they are stored: what each one's files become."""

import functools
from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Num

from talora_jax.data.folder.decode import read
from talora_jax.data.folder.edges import edges_from_ids
from talora_jax.data.folder.normals import normals_from_depth
from talora_jax.data.folder.settings import Settings
from talora_jax.data.records import Records, RecordsConfig, Sample, SampleFiles
from talora_jax.data.transforms import resize_image
from talora_jax.tasks import TARGETS


class Folder(Records):
    """Images and dense targets of a user's folder."""

    # What 1.0.0 prepared has no objects' numbers.
    VERSION = tfds.core.Version("1.1.0")


def records_config(
    name: str,
    title: str,
    splits: Mapping[str, Sequence[SampleFiles]],
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
        title=title,
        splits=splits,
        make=functools.partial(_make_sample, settings=settings, tasks=tasks, image_size=image_size),
        stored={
            "image": (np.uint8, (*image_size, 3)),
            **{
                name: (TARGETS[name].stored_dtype, (*image_size, *TARGETS[name].target_shape))
                for name in tasks
            },
        },
        class_names=class_names,
    )


def _make_sample(
    sample: SampleFiles, settings: Settings, tasks: tuple[str, ...], image_size: tuple[int, int]
) -> Sample:
    """Reads a sample's files, derives what is derived, resizes, and packs for storing.

    Normals are fitted before resizing, to all there is measured; edges are drawn after it, so that
    they are as thick at any size.
    """
    found = {name: read(name, path, settings) for name, path in sample.files.items()}
    if "normals" in tasks and "normals" not in found:
        found["normals"] = normals_from_depth(found["depth"], settings.intrinsics)
    found = {name: _resize(name, values, image_size) for name, values in found.items()}
    if "edges" in tasks and "edges" not in found:
        found["edges"] = edges_from_ids(found["instance" if "instance" in found else "semantic"])
    return {"image": found["image"], **{name: TARGETS[name].store(found[name]) for name in tasks}}


def _resize(
    name: str, values: Num[np.ndarray, "H W *c"], size: tuple[int, int]
) -> Num[np.ndarray, "h w *c"]:
    if values.shape[:2] == size:
        return values
    return resize_image(values, size) if name == "image" else TARGETS[name].resize(values, size)


def unpack(name: str, stored: Num[np.ndarray, "H W *c"]) -> Num[np.ndarray, "H W *c"]:
    """A stored array as `talora_jax.data.dataset.Source` promises it."""
    return stored if name == "image" else TARGETS[name].restore(stored)
