"""The registry: tasks by name, and what a new one takes."""

import dataclasses

import pytest

from talora_jax.errors import UserError
from talora_jax.tasks import (
    TASKS,
    Semantic,
    make_task,
)


def test_make_task(cases):
    assert make_task("semantic", class_names=["floor", "wall"]) == Semantic(
        "semantic", 2, ("floor", "wall")
    )
    for name in TASKS:
        task = make_task(name, class_names=cases.CLASS_NAMES)
        assert task.name == name
        assert dataclasses.is_dataclass(task)
        assert hash(task) == hash(make_task(name, class_names=cases.CLASS_NAMES))
    channels = {name: cases.task_of(name).channels for name in TASKS}
    assert channels == dict.fromkeys(TASKS, 1) | cases.NUM_CLASSES | {"normals": 3}
    assert make_task("human_parts", class_names=cases.CLASS_NAMES).class_names == cases.PART_NAMES


def test_make_task_tells_what_is_wrong():
    with pytest.raises(UserError, match="'dept'.*semantic, depth, disparity, normals"):
        make_task("dept", class_names=())
    with pytest.raises(UserError, match="'semantic'.*class names"):
        make_task("semantic", class_names=())
