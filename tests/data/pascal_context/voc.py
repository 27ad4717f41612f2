"""PASCAL_MT as it is published, but small, and what may be done to it."""

import ml_collections
import numpy as np
import pytest
import scipy.io
import scipy.ndimage
from PIL import Image

from talora_jax.data import open_dataset
from talora_jax.errors import UserError

TASKS = ("semantic", "human_parts", "saliency", "normals", "edges")
TRAIN = ("2008_000002", "2008_000003", "2008_000007")
VAL = ("2009_000001", "2009_000006")
SIZES = dict(zip(TRAIN + VAL, ((30, 40), (36, 28), (24, 40), (33, 40), (40, 27)), strict=True))
# PASCAL-Context's numbers: sky has no NYUv2 name, wall and person have, the screen is an addition.
SKY, WALL, PERSON, MONITOR = 360, 440, 284, 427

# VOC's palette: bit i of a label stands in bit 7 - i // 3 of red, green or blue by i % 3.
PALETTE = [
    sum((label >> (3 * i + channel) & 1) << (7 - i) for i in range(3))
    for label in range(256)
    for channel in range(3)
]


def save_labels(path, values):
    image = Image.fromarray(values.astype(np.uint8), mode="P")
    image.putpalette(PALETTE)
    image.save(path)


def struct(fields, rows):
    """A 1×n MATLAB struct array; 0×0 and of no fields where MATLAB writes [] for no rows."""
    if not rows:
        return np.zeros((0, 0))
    values = np.zeros((1, len(rows)), [(field, object) for field in fields])
    for i, row in enumerate(rows):
        values[0, i] = row
    return values


def save_anno(path, things):
    """PASCAL-Part's `anno` of [(class, class_ind, mask, [(part_name, mask), …]), …]."""
    rows = [
        (name, index, mask.astype(np.uint8), struct(("part_name", "mask"), parts))
        for name, index, mask, parts in things
    ]
    objects = struct(("class", "class_ind", "mask", "parts"), rows)
    anno = {"imname": path.stem, "objects": objects}
    scipy.io.savemat(path, {"anno": anno}, do_compression=True)


def box(size, top, left, bottom, right):
    mask = np.zeros(size, np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def context_of(size):
    """Sky above, wall below, a person in the middle and a monitor to the right."""
    labels = np.full(size, WALL, np.uint16)
    labels[: size[0] // 3] = SKY
    labels[8:20, 10:16] = PERSON
    labels[12:18, 20:25] = MONITOR
    return labels


def things_of(stem, size):
    def part(name, *corners):
        return name, box(size, *corners)

    if stem == "2008_000003":  # nobody: a chair, which has no parts, and a dog's
        dog = [part("head", 20, 2, 24, 8), part("lfleg", 24, 2, 30, 4)]
        return [
            ("chair", 9, box(size, 5, 5, 10, 10), []),
            ("dog", 12, box(size, 20, 2, 30, 9), dog),
        ]
    if stem == "2008_000007":  # a person, but too small for parts
        return [("person", 15, box(size, 2, 2, 5, 4), [])]
    if stem == "2009_000006":  # no object at all
        return []
    body = [part("torso", 12, 10, 18, 16), part("head", 8, 11, 12, 15), part("hair", 8, 11, 9, 15)]
    limbs = [part("ruarm", 12, 9, 15, 10), part("lhand", 15, 16, 17, 17)]
    legs = [part("luleg", 18, 11, 20, 13), part("rfoot", 20, 11, 22, 13)]
    second = [part("neck", 12, 15, 14, 17)]
    return [
        ("person", 15, box(size, 8, 9, 22, 17), body + limbs + legs),
        ("dog", 12, box(size, 0, 0, 4, 4), [part("head", 0, 0, 4, 4)]),
        ("person", 15, box(size, 12, 15, 14, 17), second),
    ]


def normals_of(size):
    values = np.zeros((*size, 3), np.uint8)
    values[...] = (128, 40, 220)
    values[:, 22:] = (10, 128, 150)
    return values


def open_root(root, data_dir, tasks=TASKS, **changes):
    data = {"name": "pascal_context", "path": str(root), "dir": str(data_dir)}
    data |= {"image_size": (32, 32)} | changes
    return open_dataset(ml_collections.ConfigDict(data), tasks)


def refused(root, tmp_path, **changes):
    directory = tmp_path / "nothing"
    with pytest.raises(UserError) as error:
        open_root(root, directory, **changes)
    assert not list(directory.rglob("*.array_record*"))
    return str(error.value)


def truncate(path, share=2):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // share])


def write(root):
    """Five images in exactly the published layout."""
    for folder in (
        "ImageSets/Context",
        "JPEGImages",
        "semseg/VOC12",
        "semseg/pascal-context",
        "human_parts",
        "normals_distill",
        "sal_distill",
        "pascal-context/trainval",
    ):
        (root / folder).mkdir(parents=True)
    for name, stems in (("train", TRAIN), ("val", VAL)):
        (root / f"ImageSets/Context/{name}.txt").write_text("".join(f"{s}\n" for s in stems))
    for index, (stem, size) in enumerate(SIZES.items()):
        rng = np.random.default_rng(index)
        coarse = rng.integers(0, 256, (-(-size[0] // 8), -(-size[1] // 8), 3), np.uint8)
        image = coarse.repeat(8, 0).repeat(8, 1)[: size[0], : size[1]]
        Image.fromarray(image).save(root / f"JPEGImages/{stem}.jpg")
        labels = np.zeros(size, np.uint8)
        labels[8:20, 10:16] = 15
        labels[8:20, 9] = labels[8:20, 16] = 255
        if stem != "2008_000003":  # VOC 2012 lacks this image
            save_labels(root / f"semseg/VOC12/{stem}.png", labels)
        labels[12:18, 20:25] = 20
        save_labels(root / f"semseg/pascal-context/{stem}.png", labels)
        save_anno(root / f"human_parts/{stem}.mat", things_of(stem, size))
        Image.fromarray(normals_of(size)).save(root / f"normals_distill/{stem}.png")
        grey = np.tile(np.linspace(0, 255, size[1]).astype(np.uint8), (size[0], 1))
        grey[0, :2] = 127, 128
        Image.fromarray(grey).save(root / f"sal_distill/{stem}.png")
        scipy.io.savemat(
            root / f"pascal-context/trainval/{stem}.mat",
            {"LabelMap": context_of(size)},
            do_compression=True,
        )
