"""PASCAL-Context with five targets, as ASTMT packs it (Maninis et al., CVPR 2019): `PASCAL_MT`.

Where to get it. ASTMT's code (github.com/facebookresearch/astmt) names
https://data.vision.ee.ethz.ch/kmaninis/share/MTL/PASCAL_MT.tgz; `PASCALContext.tar.gz` of ATRC and
InvPT (github.com/prismformore/Multi-Task-Transformer tells where) has the same layout. Unpack
either and let `config.data.path` name the folder that holds `JPEGImages`:

    ImageSets/Context/{train,val}.txt   names of the images, one a line: 4,998 and 5,105
    JPEGImages/*.jpg                    at most 500 pixels a side, of many sizes
    semseg/VOC12/*.png                  21 classes of VOC, 255 = no label; where it lacks an image,
    semseg/pascal-context/*.png         the same, made from PASCAL-Context's labels
    human_parts/*.mat                   PASCAL-Part's annotation
    normals_distill/*.png               a network's normals: v for 2v/255 - 1
    sal_distill/*.png                   a network's saliency: above 127 is salient
    pascal-context/trainval/*.mat       PASCAL-Context's LabelMap of 459 classes

Targets (see `decode` for what is done as in ASTMT and what is not):

    semantic     21 classes, 'background' first
    human_parts  head, torso, upper arms, lower arms, upper legs, lower legs as 1 to 6, all else 0;
                 an image with no annotated part is unlabelled
    saliency     salient or not
    normals      kept where PASCAL-Context's class is one of NYUv2's
    edges        thinned outlines of PASCAL-Context's classes

Images are stored as they are, and stretched to `config.data.image_size` (512×512 in ASTMT) when
batches are made, for training after `transforms.turn_scale`. Metrics are taken at that size, as
SimonVandenhende/Multi-Task-Learning-PyTorch and MTLoRA do while they train; ASTMT's own tool
stretches predictions back to each image's size first.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Sequence
from pathlib import Path

import ml_collections
import tensorflow_datasets as tfds

from talora_jax.data.dataset import Dataset, check_tasks
from talora_jax.data.pascal_context.classes import SEMANTIC
from talora_jax.data.pascal_context.layout import list_splits, unread
from talora_jax.data.pascal_context.records import TASK_NAMES, PascalContext, records_config, unpack
from talora_jax.data.records import (
    RecordsSource,
    SampleFiles,
    contents_of,
    fingerprint,
    prepare,
    prepared,
    whole_or_wanted,
)
from talora_jax.errors import UserError


def open_pascal_context(data: ml_collections.ConfigDict, tasks: Sequence[str]) -> Dataset:
    """Opens the PASCAL_MT under `data.path`; the first time, and after any change, prepares it: all
    targets together, unless something is wrong with one that is not wanted.

    Args:
      data: `config.data`, of which are read `path`, `dir` (where records are kept; None: TFDS's
        default) and `image_size` (H, W of batches).
      tasks: targets wanted.

    Raises:
      UserError: the folder, one of its files or a field is not as it should be.
    """
    size = tuple(data.image_size or ())
    if len(size) != 2 or min(size) < 1:
        raise UserError(
            f"config.data.image_size is {size}; pascal_context needs (height, "
            "width), the size that images are brought to, such as (512, 512)."
        )
    check_tasks(data.name, TASK_NAMES, tasks)
    others = tuple(name for name in TASK_NAMES if name not in tasks)
    part = functools.partial(_Part, data.path, data.dir, {})
    wanted = part(tuple(name for name in TASK_NAMES if name in tasks))
    builder = whole_or_wanted(wanted.root, part(TASK_NAMES), wanted, others)
    return Dataset(
        name=data.name,
        tasks=TASK_NAMES,
        class_names=SEMANTIC,
        image_size=size,
        splits={
            split: RecordsSource(builder.as_data_source(split), tasks, unpack)
            for split in wanted.splits
        },
        contents=wanted.contents,
        unread=unread(tasks),
    )


@dataclasses.dataclass(frozen=True)
class _Part:
    """Some of the targets, and what is prepared of them.

    Attributes:
      path: `config.data.path`.
      hashes: of the files that have been read so far, for all parts.
    """

    path: str
    data_dir: str | None
    hashes: dict[Path, str]
    tasks: tuple[str, ...]

    @property
    def root(self) -> Path:
        return Path(os.path.expanduser(self.path))

    @functools.cached_property
    def splits(self) -> dict[str, tuple[SampleFiles, ...]]:
        return list_splits(self.path, self.tasks)

    @functools.cached_property
    def contents(self) -> dict[str, dict[str, str]]:
        files = {
            split: [path for sample in samples for path in sample.files.values()]
            for split, samples in self.splits.items()
        }
        return contents_of(self.root, files, "PASCAL-Context", self.hashes)

    @functools.cached_property
    def _name(self) -> str:
        """Of the records."""
        only = () if self.tasks == TASK_NAMES else self.tasks
        digest = fingerprint(repr(self.root.resolve()), json.dumps(self.contents), *only)
        return f"PASCAL_MT-{digest}"

    def found(self) -> tfds.core.DatasetBuilder | None:
        return prepared(PascalContext, self.data_dir, self._name)

    def prepare(self) -> tfds.core.DatasetBuilder:
        config = records_config(self._name, self.splits, self.tasks)
        prepare(PascalContext, self.data_dir, config)
        return self.found()
