"""A folder is prepared once, whole or not at all."""

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from talora_jax.data.folder import records
from talora_jax.data.records import fingerprint
from talora_jax.errors import UserError


@contextlib.contextmanager
def open_directory(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@pytest.fixture
def made(monkeypatch):
    """The stems of the samples that are made from now on."""
    stems, make = [], records._make_sample

    def counting(frame, **how):
        stems.append(frame.stem)
        return make(frame, **how)

    monkeypatch.setattr(records, "_make_sample", counting)
    return stems


def test_preparing_happens_once_and_again_after_a_change(planes, root, made):
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


def test_what_files_hold_tells_them_apart(planes, root, made):
    planes.open_root(root)
    path = root / "depth/2.png"
    status, size = path.stat(), path.stat().st_size
    planes.save(path, np.full(planes.SIZE, 15_000, np.uint16))
    path.write_bytes(path.read_bytes().ljust(size, b"\0"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (size, status.st_mtime_ns)
    depths = [sample["depth"] for sample in planes.samples(planes.open_root(root))]
    assert sum((depth == 1.5).all() for depth in depths) == 1
    assert len(made) == 10


def test_another_folder_of_that_name_is_another(planes, root, made):
    planes.open_root(root)
    other = root.parent / "other" / root.name
    shutil.copytree(root, other)
    planes.open_root(other, dir=str(root.parent / "prepared"))
    assert len(made) == 10


def test_copies_are_not_made_again_for_other_names_splits_or_labels_that_mean_none(
    planes, root, made, tmp_path
):
    planes.open_root(root)
    for changes in (
        {"class_names": ["a", "b", "c"]},
        {"splits": {"train": ["1", "2"], "val": ["0"]}},
        # Then 255 is a class.
        {"ignore_label": 0, "class_names": [str(label) for label in range(256)]},
        {"ignore_label": 255},
    ):
        planes.write_json(root, changes)
        dataset = planes.open_root(root)
        fresh = planes.open_root(root, dir=str(tmp_path / fingerprint(str(changes))))
        assert dataset.class_names == fresh.class_names
        for ours, theirs in zip(planes.samples(dataset), planes.samples(fresh), strict=True):
            for name in planes.ALL:
                np.testing.assert_array_equal(ours[name], theirs[name])
    assert len(made) == 5 * 4 + 3
    # What does not fit the samples is still told.
    planes.write_json(root, {"class_names": ["a"]})
    assert "label 1, expected 0 to 0 for the 1 class_names" in planes.refused(root)
    planes.write_json(root, {"ignore_label": 1})
    assert "semantic/0.png" in planes.refused(root, class_names=("a", "b"))


def test_a_sample_that_comes_to_a_split_is_made(planes, root, made):
    planes.write_json(root, {"splits": {"train": ["1"], "val": ["0"]}})
    planes.open_root(root)
    planes.write_json(root, {"splits": {"train": ["1", "2"], "val": ["0"]}})
    assert len(planes.open_root(root).splits["train"]) == 2
    assert sorted(made) == ["0", "0", "1", "1", "2"]


def test_a_target_that_is_not_wanted_may_be_broken(planes, root, made, capsys):
    (root / "depth/1.png").write_bytes(b"broken")
    dataset = planes.open_root(root, ("semantic", "edges"))
    assert len(planes.samples(dataset)) == 5 and "depth" in dataset.tasks
    assert "without depth" in (said := capsys.readouterr().err)
    assert "depth/1.png: cannot be decoded" in said
    planes.open_root(root, ("semantic",))
    assert len(made) == 5
    assert "depth/1.png: cannot be decoded" in planes.refused(root, ("depth",))


def test_files_are_checked_once(planes, root, monkeypatch):
    names = planes.open_root(root, ("depth",)).class_names
    monkeypatch.setattr("talora_jax.data.folder.open.check_samples", None)
    assert planes.open_root(root, ("depth",)).class_names == names
    planes.open_root(root)


def test_where_samples_are_kept_is_said(planes, root, capsys):
    planes.open_root(root)
    (place,) = (root.parent / "prepared/folder").glob("my_data-*/1*")
    assert f"my data: 5 samples are kept in {place}\n" in capsys.readouterr().err


def test_what_killed_preparations_left_is_removed_unless_one_is_at_work(planes, root):
    kept = root.parent / "prepared"
    left = kept / "folder/my data-0/incomplete.ABC_1.1.0"
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"")
    with open_directory(kept) as at_work:
        fcntl.flock(at_work, fcntl.LOCK_SH)
        planes.open_root(root, ("depth",))
        assert left.exists()
    planes.open_root(root, ("depth",), image_size=(12, 16), intrinsics=None)
    assert not left.exists()
    assert planes.open_root(root).image_size == planes.SIZE


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name", "type"])
def test_records_name_no_code_to_run(planes, root, key, monkeypatch):
    planes.open_root(root)
    monkeypatch.syspath_prepend(root.parent)
    (root.parent / "evil_module.py").write_text("raise SystemExit('ran')")
    (path,) = root.parent.rglob("features.json")
    content = json.loads(path.read_text())
    content["featuresDict"]["features"]["image"] = {key: "evil_module.Feature", "content": {}}
    path.write_text(json.dumps(content))
    message = planes.refused(root)
    assert "its features.json names 'evil_module.Feature'" in message
    assert "remove that folder, and they are prepared anew" in message


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json", "metadata.json"])
def test_damaged_records_are_told(planes, root, name):
    planes.open_root(root)
    (path,) = root.parent.rglob(name)
    path.write_text("{")
    assert "remove that folder, and they are prepared anew" in planes.refused(root)


@pytest.mark.parametrize("kept", [0.0, 0.5])
def test_damaged_samples_are_told(planes, root, kept):
    planes.open_root(root)
    (path,) = root.parent.rglob("*.array_record*")
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(UserError, match="remove that folder, and the samples are prepared anew"):
        planes.samples(planes.open_root(root))


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
