"""The samples of a folder as they are stored: what each one's files become."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Num

from talora_jax.data.folder.decode import masked, read
from talora_jax.data.folder.edges import edges_from_ids
from talora_jax.data.folder.labels import labels_of, read_labels
from talora_jax.data.folder.normals import normals_from_depth
from talora_jax.data.folder.settings import Settings
from talora_jax.data.folder.validity import is_mask
from talora_jax.data.records import (
    Records,
    RecordsConfig,
    Sample,
    SampleFiles,
    read_record,
)
from talora_jax.data.transforms import resized
from talora_jax.tasks import target_of

# All samples, of whatever split: that is settled when they are read.
SAMPLES = "samples"


class Folder(Records):
    """Images and dense targets of a user's folder."""

    # What 1.1.0 prepared has splits, and labels that one `ignore_label` was applied to.
    VERSION = tfds.core.Version("1.2.0")


def records_config(
    name: str,
    title: str,
    samples: Sequence[SampleFiles],
    settings: Settings,
    made_from: Mapping[str, str],
    image_size: tuple[int, int],
    notes: Mapping[str, Any],
) -> RecordsConfig:
    """What to prepare.

    Args:
      settings: of `dataset.json`.
      made_from: the targets that are to be had, and the folder that each is made from.
      image_size: H, W to store.
      notes: kept beside the samples.
    """
    stored = {
        task: folder for task, folder in made_from.items() if not drawn_when_read(task, folder)
    }
    return RecordsConfig(
        name=name,
        title=title,
        splits={SAMPLES: samples},
        make=functools.partial(
            _make_sample, settings=settings, made_from=stored, image_size=image_size
        ),
        stored={
            "image": (np.uint8, (*image_size, 3)),
            **{
                name: (target_of(name).stored_dtype, (*image_size, *target_of(name).target_shape))
                for name in stored
            },
        },
        notes=notes,
    )


def drawn_when_read(task: str, made_from: str) -> bool:
    """Whether a target is made of a stored one: edges of labels depend on which means none."""
    return task == "edges" and made_from == "semantic"


def _make_sample(
    sample: SampleFiles,
    settings: Settings,
    made_from: Mapping[str, str],
    image_size: tuple[int, int],
) -> Sample:
    """Reads a sample's files, derives what is derived, resizes, and packs for storing.

    A target that it has no file of is unlabelled. Normals are fitted before resizing, to all there
    is measured; edges are drawn after it, so that they are as thick at any size.
    """
    found = {
        name: read_labels(path, settings) if name == "semantic" else read(name, path, settings)
        for name, path in sample.files.items()
        if not is_mask(name)
    }
    found = {name: masked(name, values, sample, settings) for name, values in found.items()}
    if made_from.get("normals") == "depth" in found:
        found["normals"] = normals_from_depth(found["depth"], settings.intrinsics)
    found = {name: resized(name, values, image_size) for name, values in found.items()}
    if made_from.get("edges") == "instance" in found:
        found["edges"] = edges_from_ids(found["instance"])
    targets = {
        name: found[name] if folder in found else target_of(name).nothing(image_size)
        for name, folder in made_from.items()
    }
    stored = {name: target_of(name).store(target) for name, target in targets.items()}
    return {"image": found["image"], **stored}


class FolderSource:
    """Some of the samples that are stored, as `talora_jax.data.dataset.Source` promises them."""

    def __init__(
        self,
        records: Sequence[Any],
        rows: Sequence[int],
        made_from: Mapping[str, str],
        ignore_label: int | None,
    ):
        """
        Args:
          rows: which samples, in their order.
          made_from: the targets to give, and the folder that each is made from.
          ignore_label: the label of `semantic` that means none, see `settings`.
        """
        self._records = records
        self._rows = rows
        self._made_from = made_from
        self._ignore_label = ignore_label

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Sample:
        record = read_record(self._records, self._rows[index])
        return {name: self._unpack(name, record) for name in ("image", *self._made_from)}

    def _unpack(self, name: str, record: Sample) -> Num[np.ndarray, "H W *c"]:
        if name == "image":
            return record[name]
        if drawn_when_read(name, self._made_from[name]):
            return edges_from_ids(self._stored("semantic", record))
        return self._stored(name, record)

    def _stored(self, name: str, record: Sample) -> Num[np.ndarray, "H W *c"]:
        target = target_of(name).restore(record[name])
        return labels_of(target, self._ignore_label) if name == "semantic" else target
