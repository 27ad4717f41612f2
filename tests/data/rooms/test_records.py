"""Records that keep what was rendered, whole or not at all."""

import dataclasses
import pickle
import shutil
import subprocess
import sys
import tempfile

import ml_collections
import numpy as np
import pytest
import tensorflow_datasets as tfds

from talora_jax.data import memory
from talora_jax.data import records as records_lib
from talora_jax.data.rooms import CLASS_NAMES, open_rooms, records
from talora_jax.data.rooms.render import render
from talora_jax.data.rooms.scene import random_scene
from talora_jax.errors import UserError

SIZE = (48, 64)
TASKS = ("semantic", "depth", "normals", "edges", "instance", "part")


def config(directory, **changes):
    values = dict(dir=str(directory), train_frames=4, val_frames=2, image_size=SIZE, seed=7)
    return ml_collections.ConfigDict(values | changes)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    return directory, open_rooms(config(directory), TASKS)


def test_records_give_back_what_was_rendered(prepared):
    _, dataset = prepared
    assert dataset.tasks == TASKS and dataset.image_size == SIZE
    assert dataset.class_names == CLASS_NAMES and len(dataset.class_names) == 13
    for split, length in (("train", 4), ("val", 2)):
        source = dataset.splits[split]
        assert len(source) == length
        for i in range(length):
            sample, frame = source[i], render(random_scene(7, split, i), SIZE)
            assert set(sample) == {"image", *TASKS}
            for key, value in sample.items():
                assert (value.dtype, value.shape) == (frame[key].dtype, frame[key].shape)
                tolerance = {"depth": 1.1e-4, "normals": 2e-5}.get(key, 0.0)
                np.testing.assert_allclose(value, frame[key], rtol=0, atol=tolerance)


def test_preparing_leaves_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    open_rooms(config(tmp_path / "data", train_frames=1, val_frames=1), TASKS)
    assert not [*(tmp_path / "temporary").iterdir()]


def test_a_run_remembers_the_version_of_the_rooms(prepared, tmp_path):
    _, dataset = prepared
    memory.remember(dataset, tmp_path, resumes=False, write=True)
    assert memory.changes(dataset, tmp_path) == []
    later = dataclasses.replace(dataset, contents={"settings": {"version": "9.0.0"}})
    told = f'version was "{records.Rooms.VERSION}" and is now "9.0.0"'
    assert memory.changes(later, tmp_path) == [told]


def test_only_what_is_asked_for_is_read(prepared):
    directory, _ = prepared
    sample = open_rooms(config(directory), ("depth",)).splits["val"][0]
    assert set(sample) == {"image", "depth"}


def test_source_can_be_pickled(prepared):
    source = prepared[1].splits["train"]
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(source))[2]["depth"], source[2]["depth"]
    )


def test_prepared_rooms_are_not_rendered_again(prepared, monkeypatch):
    monkeypatch.setattr(records, "render", lambda *_: pytest.fail("rendered again"))
    assert len(open_rooms(config(prepared[0]), TASKS).splits["train"]) == 4


def test_rooms_of_another_version_are_rendered_anew(prepared, monkeypatch):
    rendered = []
    monkeypatch.setattr(records, "render", lambda *room: rendered.append(1) or render(*room))
    monkeypatch.setattr(records.Rooms, "VERSION", tfds.core.Version("2.0.0"))
    assert len(open_rooms(config(prepared[0]), TASKS).splits["train"]) == 4
    assert len(rendered) == 6


def test_instances_are_kept_too(prepared):
    builder = records_lib.prepared(
        records.Rooms, str(prepared[0]), records.records_config(4, 2, SIZE, 7).name
    )
    source = records_lib.RecordsSource(builder.as_data_source("val"), ("instance",), records.unpack)
    instance = source[1]["instance"]
    assert instance.dtype == np.int32
    np.testing.assert_array_equal(instance, render(random_scene(7, "val", 1), SIZE)["instance"])


def test_interrupted_preparation_leaves_nothing(tmp_path, monkeypatch):
    calls = []

    def interrupted(scene, size):
        calls.append(scene)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return render(scene, size)

    with monkeypatch.context() as patch:
        patch.setattr(records, "render", interrupted)
        with pytest.raises(KeyboardInterrupt):
            open_rooms(config(tmp_path), TASKS)
    assert not list(tmp_path.glob("rooms/*/*/*"))
    # A directory that a killed process could not tidy up does not count as prepared either.
    made = records.records_config(4, 2, SIZE, 7).name
    stray = tmp_path / "rooms" / made / "incomplete.ABCDEF_1.0.0"
    stray.mkdir(parents=True)
    (stray / "rooms-train.array_record-00000-of-00001").write_bytes(b"half")
    dataset = open_rooms(config(tmp_path), TASKS)
    assert len(dataset.splits["train"]) == 4 and dataset.splits["val"][1]["depth"].min() > 0


def test_one_process_may_finish_before_another(prepared, tmp_path, monkeypatch):
    """Two processes prepare the same rooms: the slower one takes what the faster one wrote."""
    directory, dataset = prepared
    original = records.Rooms.download_and_prepare

    def late(self, **arguments):
        shutil.copytree(directory / "rooms", tmp_path / "rooms")
        with monkeypatch.context() as patch:
            patch.setattr(type(self.data_path), "exists", lambda _: False)
            original(self, **arguments)

    monkeypatch.setattr(records.Rooms, "download_and_prepare", late)
    sample = open_rooms(config(tmp_path), TASKS).splits["train"][0]
    np.testing.assert_array_equal(sample["image"], dataset.splits["train"][0]["image"])


@pytest.mark.process
def test_tensorflow_stays_out():
    code = "import sys, talora_jax.data.rooms; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"train_frames": 0}, "train_frames"),
        ({"val_frames": -1}, "val_frames"),
        ({"image_size": (16, 64)}, "image_size"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_values_are_named(tmp_path, changes, named):
    with pytest.raises(UserError, match=f"config.data.{named}") as error:
        open_rooms(config(tmp_path, **changes), TASKS)
    assert "\n" not in str(error.value)


def test_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="config.data.dir"):
        open_rooms(config(tmp_path / "file"), TASKS)
