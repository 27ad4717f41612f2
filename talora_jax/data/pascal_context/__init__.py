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

import json
import os
from collections.abc import Sequence
from pathlib import Path

import ml_collections

from talora_jax.data.dataset import Dataset, check_tasks
from talora_jax.data.pascal_context.classes import SEMANTIC
from talora_jax.data.pascal_context.layout import list_splits
from talora_jax.data.pascal_context.records import TASK_NAMES, PascalContext, records_config, unpack
from talora_jax.data.records import (
    RecordsSource,
    contents_of,
    fingerprint,
    prepare,
    prepared,
)
from talora_jax.errors import UserError


def open_pascal_context(data: ml_collections.ConfigDict, tasks: Sequence[str]) -> Dataset:
    """Opens the PASCAL_MT under `data.path`; the first time, and after any change, prepares it.

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
    splits = list_splits(data.path)
    root = Path(os.path.expanduser(data.path))
    files = {
        split: [path for sample in samples for path in sample.files.values()]
        for split, samples in splits.items()
    }
    contents = contents_of(root, files, "PASCAL-Context")
    name = f"PASCAL_MT-{fingerprint(repr(root.resolve()), json.dumps(contents))}"
    builder = prepared(PascalContext, data.dir, name)
    if builder is None:
        prepare(PascalContext, data.dir, records_config(name, splits))
        builder = prepared(PascalContext, data.dir, name)
    return Dataset(
        name=data.name,
        tasks=TASK_NAMES,
        class_names=SEMANTIC,
        image_size=size,
        splits={
            split: RecordsSource(builder.as_data_source(split), tasks, unpack) for split in splits
        },
        contents=contents,
    )
