"""Cityscapes as MTAN packs it: 2975 training and 500 validation samples, two tasks.

Get it from the README of https://github.com/lorenmt/mtan, which links to two folders on Dropbox,
128×256 (651 MB, the literature's) and 256×512 (2.42 GB), and set `config.data.path` to the folder
or to the zip archive:

    cityscapes2/{train,val}/image/{i}.npy      float [128, 256, 3] in [0, 1], RGB
    cityscapes2/{train,val}/label_7/{i}.npy    [128, 256], -1 = no label, 0 to 6 as in `CLASS_NAMES`
    cityscapes2/{train,val}/depth/{i}.npy      float [128, 256, 1], disparity, 0 = no measurement

with i from 0 to 2974 and from 0 to 499. Copies that keep only the 7 classes call their folder
`label`; the ones of 2 and 19 classes beside `label_7` are not read. Reading and storing:
`talora_jax.data.mtan`.

The same samples as parquet files (`tanganke/cityscapes` on the Hub) have 19 classes, taken to be in
the order of Cityscapes' train ids, as in `CLASS_NAMES_19`; that data set states no names.

What the folder `depth` holds is the inverse of depth (lorenmt/mtan#25), hence the task
`disparity`. Its scale is documented nowhere and is kept as it is, for published errors are in it:
the largest published value, 0.4922, is the largest of Cityscapes' own 16-bit PNGs, 32257, by 65535.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import ml_collections

from talora_jax.data.dataset import Dataset
from talora_jax.data.mtan import Packing, open_packed
from talora_jax.data.parquet import find_tables
from talora_jax.data.records import Records

# MTAN's files name no classes. These are Cityscapes' categories in the order of their `catId`
# (https://github.com/mcordts/cityscapesScripts, helpers/labels.py) from 1 on; 0, void, is -1 here.
CLASS_NAMES = ("flat", "construction", "object", "nature", "sky", "human", "vehicle")

# By `trainId`, of the same file.
CLASS_NAMES_19 = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign",
    "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle",
    "bicycle",
)  # fmt: skip


class CityscapesMtan(Records):
    """Cityscapes as MTAN packs it: images, 7 categories and disparity."""


PACKING = Packing(
    records=CityscapesMtan,
    title="Cityscapes",
    folders={"image": ("image",), "semantic": ("label_7", "label"), "disparity": ("depth",)},
    class_names=CLASS_NAMES,
    class_names_of_tables=CLASS_NAMES_19,
    published={"train": 2975, "val": 500},
)


def class_names(data: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Those of the copy that `data.path` names.

    Raises:
      UserError: its parquet files are not as they should be.
    """
    tables = find_tables(Path(os.path.expanduser(data.path))) if data.path else None
    return CLASS_NAMES_19 if tables else CLASS_NAMES


def open_cityscapes_mtan(data: ml_collections.ConfigDict, tasks: Sequence[str]) -> Dataset:
    """Opens Cityscapes; arguments and errors are those of `talora_jax.data.mtan.open_packed`."""
    return open_packed(PACKING, data, tasks)
