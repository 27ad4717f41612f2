"""A folder whose every sample shows the same plane, and what may be done to it."""

import json

import ml_collections
import numpy as np
import pytest
from PIL import Image

from talora_jax.data import open_dataset
from talora_jax.errors import UserError

SIZE = (24, 32)
ALL = ("semantic", "depth", "normals", "edges")
INTRINSICS = (40.0, 42.0, 15.5, 11.5)
# The plane n·X = δ that every frame shows, in metres.
NORMAL = np.array([0.3, -0.5, -0.81])
NORMAL /= np.linalg.norm(NORMAL)
OFFSET = -1.2


def plane_depth(size=SIZE, intrinsics=INTRINSICS, normal=NORMAL):
    fx, fy, cx, cy = intrinsics
    y, x = np.mgrid[: size[0], : size[1]]
    rays = np.stack([(x - cx) / fx, (y - cy) / fy, np.ones(size)], axis=-1)
    return (OFFSET / (rays @ normal)).astype(np.float32)


def degrees(normals, normal=NORMAL):
    return np.degrees(np.arccos(np.clip(normals @ normal, -1, 1)))


def save(path, values):
    path.parent.mkdir(exist_ok=True, parents=True)
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        Image.fromarray(values).save(path)


def labels():
    values = np.zeros(SIZE, np.uint8)
    values[8:16, 10:20] = 1
    values[:3] = 255
    return values


def write_json(root, changes):
    fx, fy, cx, cy = INTRINSICS
    camera = {"fx": fx, "fy": fy, "cx": cx, "cy": cy}
    content = {"depth_scale": 10_000, "intrinsics": camera, **changes}
    content = {name: value for name, value in content.items() if value is not None}
    (root / "dataset.json").write_text(json.dumps(content))


def open_root(root, tasks=ALL, **changes):
    data = {"name": "folder", "path": str(root), "dir": str(root.parent / "prepared")}
    return open_dataset(ml_collections.ConfigDict(data | {"val_fraction": 0.4} | changes), tasks)


def refused(root, tasks=ALL, **changes):
    with pytest.raises(UserError) as error:
        open_root(root, tasks, **changes)
    return str(error.value)


def samples(dataset):
    return [source[i] for source in dataset.splits.values() for i in range(len(source))]


def write(root):
    """Five frames with images, semantic labels and depth."""
    for index in range(5):
        rng = np.random.default_rng(index)
        save(root / f"image/{index}.png", rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
        save(root / f"semantic/{index}.png", labels())
        save(root / f"depth/{index}.png", (plane_depth() * 10_000).round().astype(np.uint16))
    write_json(root, {})
