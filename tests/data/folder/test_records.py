"""A folder is prepared once, whole or not at all."""

import os
import subprocess
import sys

import numpy as np
import pytest

from talora_jax.data.folder import records


def test_preparing_happens_once_and_again_after_a_change(planes, root, monkeypatch):
    made = []
    make = records._make_sample

    def counting(frame, **how):
        made.append(frame.stem)
        return make(frame, **how)

    monkeypatch.setattr(records, "_make_sample", counting)
    planes.open_root(root)
    assert sorted(made) == list("01234")
    planes.open_root(root, ("depth",))
    assert len(made) == 5
    changed = np.full(planes.SIZE, 15_000, np.uint16)
    planes.save(root / "depth/2.png", changed)
    os.utime(root / "depth/2.png", (1, 1))
    depths = [sample["depth"] for sample in planes.samples(planes.open_root(root))]
    assert len(made) == 10
    assert sum((depth == 1.5).all() for depth in depths) == 1
    planes.write_json(root, {"image_size": [12, 16]})
    assert planes.open_root(root).image_size == (12, 16)


def test_more_frames_than_a_shard_stay_in_order(planes, root, monkeypatch):
    monkeypatch.setattr("talora_jax.data.records._SHARD", 2)
    planes.write_json(root, {"splits": {"train": list("01234")[:4], "val": ["4"]}})
    images = [sample["image"].tobytes() for sample in planes.samples(planes.open_root(root, ()))]
    rng = [np.random.default_rng(index) for index in range(5)]
    assert images == [r.integers(0, 256, (*planes.SIZE, 3), dtype=np.uint8).tobytes() for r in rng]


@pytest.mark.process
@pytest.mark.parametrize("killed", [False, True])
def test_a_broken_off_preparation_leaves_nothing_to_be_taken_for_whole(planes, root, killed):
    script = f"""
import os, ml_collections
from talora_jax.data import open_dataset
from talora_jax.data.folder import records
make = records._make_sample
def broken(frame, **how):
    if frame.stem == "3":
        {"os._exit(9)" if killed else "raise RuntimeError('power cut')"}
    return make(frame, **how)
records._make_sample = broken
data = dict(name="folder", path={str(root)!r}, dir={str(root.parent / "prepared")!r})
open_dataset(ml_collections.ConfigDict(dict(data, val_fraction=0.4)), ["depth"])
"""
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode
    assert len(planes.samples(planes.open_root(root))) == 5
