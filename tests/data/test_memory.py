"""A run does not go on with other data than it began with."""

import dataclasses
import json

import pytest

from talora_jax.data import memory
from talora_jax.data.dataset import Dataset
from talora_jax.errors import UserError

BEGAN = {
    "settings": {"depth_scale": None, "image_size": [4, 6]},
    "train": {"image/0.png": "a", "image/1.png": "b"},
    "val": {"image/2.png": "c"},
}


def dataset(**contents):
    return Dataset("folder", (), (), (4, 6), {}, BEGAN | contents)


@pytest.fixture
def workdir(tmp_path):
    memory.remember(dataset(), tmp_path, resumes=False, write=True)
    return tmp_path


def test_the_same_data_is_taken(workdir):
    memory.remember(dataset(), workdir, resumes=True, write=True)
    assert memory.changes(dataset(), workdir) == []


@pytest.mark.parametrize(
    "contents, change",
    [
        (
            {"settings": {"depth_scale": None, "image_size": (4, 8)}},
            "image_size was [4, 6] and is now [4, 8]",
        ),
        ({"train": {"image/0.png": "a", "image/1.png": "x"}}, "1 files changed (image/1.png)"),
        ({"val": {}}, "1 files gone (image/2.png)"),
        ({"val": {"image/2.png": "c", "a\x1b": "d"}}, "1 files new (a\\x1b)"),
        (
            {"train": {"image/0.png": "a"}, "val": {"image/1.png": "b", "image/2.png": "c"}},
            "1 files moved from train to val (image/1.png)",
        ),
    ],
)
def test_what_has_changed_is_named(workdir, contents, change):
    with pytest.raises(UserError) as error:
        memory.remember(dataset(**contents), workdir, resumes=True, write=True)
    assert str(error.value) == (
        f"the data of the run in {workdir} has changed: {change}. Put it back, or choose another "
        "--workdir to train on the data as it is now."
    )
    # What never had a checkpoint has nothing to go on from.
    memory.remember(dataset(**contents), workdir, resumes=False, write=True)
    assert memory.changes(dataset(**contents), workdir) == []


def test_runs_of_before_remember_from_now_on(tmp_path):
    memory.remember(dataset(), tmp_path, resumes=True, write=True)
    assert memory.changes(dataset(val={}), tmp_path) == ["1 files gone (image/2.png)"]


def test_a_damaged_memory_is_told(workdir):
    for content in ("{", "[]", '{"train": []}', "[" * 100_000, '{"val": {}, "val": {}}'):
        (workdir / memory.FILE_NAME).write_text(content)
        with pytest.raises(UserError, match=r"data.json cannot be read"):
            memory.changes(dataset(), workdir)


def test_evaluation_tells_other_data(workdir):
    lines = []
    memory.tell(dataset(), workdir, lines.append)
    assert lines == []
    memory.tell(dataset(val={}), workdir, lines.append)
    (line,) = lines
    assert line.endswith("is not what the run was trained on: 1 files gone (image/2.png)")


def test_class_names_that_a_run_of_before_remembers_are_checked_elsewhere(workdir):
    named = dataset(settings={**BEGAN["settings"], "class_names": ["road", "sky"]})
    memory.remember(named, workdir, resumes=False, write=True)
    assert memory.changes(dataset(), workdir) == []


def test_files_of_other_targets_that_a_run_of_before_remembers_are_no_concern(workdir):
    began = json.loads((workdir / memory.FILE_NAME).read_text())
    began["train"]["depth/0.png"] = "d"
    (workdir / memory.FILE_NAME).write_text(json.dumps(began))
    assert memory.changes(dataset(), workdir) == ["1 files gone (depth/0.png)"]
    now = dataclasses.replace(dataset(), unread=("depth/",))
    memory.remember(now, workdir, resumes=True, write=True)
    assert memory.changes(now, workdir) == []
