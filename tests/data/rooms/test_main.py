"""Rooms written as a folder of one's own data."""

import numpy as np
import pytest

from talora_jax import config as config_lib
from talora_jax.data import open_dataset
from talora_jax.data.rooms import CLASS_NAMES
from talora_jax.data.rooms.__main__ import write_folder
from talora_jax.data.rooms.render import render
from talora_jax.data.rooms.scene import random_scene
from talora_jax.errors import UserError

SIZE = (48, 64)
TASKS = ("semantic", "depth", "normals", "edges")


@pytest.mark.slow
def test_a_written_folder_holds_what_was_rendered(tmp_path):
    size = (96, 128)
    write_folder(tmp_path / "rooms", 3, size, seed=7)
    data = config_lib.default().data
    data.name, data.path, data.image_size = "folder", str(tmp_path / "rooms"), ()
    data.dir, data.val_fraction = str(tmp_path / "records"), 0.34
    dataset = open_dataset(data, TASKS)
    assert dataset.class_names == CLASS_NAMES and dataset.image_size == size
    assert [len(dataset.splits[split]) for split in ("train", "val")] == [2, 1]

    rendered = [render(random_scene(7, "train", i), size) for i in range(3)]
    splits = dataset.splits.values()
    for sample in (split[i] for split in splits for i in range(len(split))):
        (frame,) = (f for f in rendered if (f["semantic"] == sample["semantic"]).all())
        np.testing.assert_allclose(sample["depth"], frame["depth"], rtol=0, atol=0.0005)
        assert np.abs(sample["image"].astype(int) - frame["image"]).mean() < 5  # JPEG
        # Derived from depth and the intrinsics, so right up to rounding but for outlines.
        cosine = (sample["normals"] * frame["normals"]).sum(-1)
        assert np.degrees(np.arccos(np.median(cosine.clip(-1, 1)))) < 3
        # Of the instances alone; the frame's own also has creases and corners.
        assert frame["edges"][sample["edges"] == 1].mean() > 0.9


@pytest.mark.parametrize(
    ("frames", "size", "expected"),
    [(0, SIZE, "--frames is 0"), (1, (16, 64), "--size is 16"), (1, SIZE, "exists: name another")],
)
def test_folders_that_are_not_written(tmp_path, frames, size, expected):
    out = tmp_path if "exists" in expected else tmp_path / "rooms"
    with pytest.raises(UserError, match=expected):
        write_folder(out, frames, size, seed=0)
    assert not any(tmp_path.iterdir())
