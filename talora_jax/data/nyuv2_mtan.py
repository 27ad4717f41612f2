"""NYUv2 as MTAN packs it: 795 training and 654 validation samples of 288×384, three tasks.

Get it from the link "pre-processed NYUv2 dataset" in the README of https://github.com/lorenmt/mtan,
a folder on Dropbox, and set `config.data.path` to the folder or to the zip archive:

    nyuv2/{train,val}/image/{i}.npy     float [288, 384, 3] in [0, 1], RGB
    nyuv2/{train,val}/label/{i}.npy     [288, 384], -1 = no label, 0 to 12 as in `CLASS_NAMES`
    nyuv2/{train,val}/depth/{i}.npy     float [288, 384, 1], metres, 0 = no measurement
    nyuv2/{train,val}/normal/{i}.npy    float [288, 384, 3], unit vectors, all-zero = invalid

with i from 0 to 794 and from 0 to 653. Reading and storing: `talora_jax.data.mtan`.

Normals are Eigen & Fergus's (https://cs.nyu.edu/~deigen/dnl/), in the frame they were published in.
Which of its axes point up and into the scene is written down nowhere, so that pictures of normals
may have other colours than those of other data sets. Only the first axis matters to the protocol
(it changes its sign when an image is mirrored): losses and angles are the same in any such frame.
"""

from collections.abc import Sequence

import ml_collections

from talora_jax.data.dataset import Dataset
from talora_jax.data.mtan import Packing, open_packed
from talora_jax.data.nyuv2_classes import CLASS_NAMES
from talora_jax.data.records import Records


class Nyuv2Mtan(Records):
    """NYUv2 as MTAN packs it: images, 13 classes, depth and normals."""


PACKING = Packing(
    records=Nyuv2Mtan,
    title="NYUv2",
    folders={
        "image": ("image",),
        "semantic": ("label",),
        "depth": ("depth",),
        "normals": ("normal",),
    },
    class_names=CLASS_NAMES,
    published={"train": 795, "val": 654},
)


def open_nyuv2_mtan(data: ml_collections.ConfigDict, tasks: Sequence[str]) -> Dataset:
    """Opens NYUv2; arguments and errors are those of `talora_jax.data.mtan.open_packed`."""
    return open_packed(PACKING, data, tasks)
