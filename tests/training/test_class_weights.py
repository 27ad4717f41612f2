"""A task's classes weigh as asked, by what the training images hold."""

import dataclasses

import numpy as np
import pytest

from talora_jax import sharding
from talora_jax.data.dataset import Dataset
from talora_jax.data.survey import survey
from talora_jax.errors import UserError
from talora_jax.tasks import make_task
from talora_jax.training.class_weights import lines, weighted
from talora_jax.training.setup import Run

NAMES = ("floor", "wall", "chair")
# Floor 4 and chair 2 of 6; floor 6 of 6: floor 10 of 12, chair 2 of the 6 where there is one.
LABELS = np.int32([[[0, 0, 0], [0, 2, 2]], [[0, 0, 0], [0, 0, 0]]])


@pytest.fixture
def run(config):
    config.tasks = ("semantic", "depth")
    samples = [
        {"semantic": labels, "depth": np.float32([[[1], [2], [3]]] * 2)} for labels in LABELS
    ]
    dataset = Dataset("toy", config.tasks, NAMES, (2, 3), {"train": samples, "val": samples})
    tasks = tuple(make_task(name, class_names=NAMES) for name in config.tasks)
    return Run(config, sharding.make_mesh(1, 1, 1), dataset, tasks, None, None, None, "")


def of(run, kind, given=()):
    run.config.class_weights.update(kind=kind, given=given)
    return weighted(run, survey(run.dataset, ("semantic", "depth")))


def test_they_are_computed_from_what_is_looked_at(run):
    assert of(run, "none") is run and lines(run) == []
    median = (10 / 12 + 2 / 6) / 2
    found = of(run, "median_frequency")
    expected = [median / (10 / 12), median / (2 / 6), median / (2 / 6)]
    np.testing.assert_allclose(found.tasks[0].class_weights, expected)
    assert found.tasks[1] == run.tasks[1]
    assert lines(found) == ["semantic: classes weigh floor 0.7, wall 1.75, chair 1.75"]
    share = np.array([10, 0, 2]) / 12
    np.testing.assert_allclose(
        of(run, "inverse_log").tasks[0].class_weights, 1 / np.log(1.02 + share)
    )
    assert of(run, "given", (1, 0, 2)).tasks[0].class_weights == (1, 0, 2)
    with pytest.raises(UserError, match="2 numbers for semantic, expected .* its 3 classes"):
        of(run, "given", (1, 2))


def test_each_head_has_its_own(run):
    materials = make_task("semantic:materials", class_names=("wood", "metal"))
    run = dataclasses.replace(run, tasks=(*run.tasks, materials))
    run.config.class_weights.update(kind="given", given=((), (1, 3)))
    found = weighted(run, None)
    assert [task.class_weights for task in (found.tasks[0], found.tasks[2])] == [(), (1, 3)]
    assert lines(found) == ["semantic:materials: classes weigh wood 1, metal 3"]
    run.config.class_weights.given = ((1, 2, 3), (1, 3, 5))
    with pytest.raises(UserError, match="3 numbers for semantic:materials, expected .* 2 classes"):
        weighted(run, None)


def loss_of(task, maps, target):
    total, count = task.loss(maps, target)
    return float(total) / max(float(count), 1)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 50.0])
def test_the_loss_is_the_weighted_mean(scale):
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(2, 4, 6, 3)).astype(np.float32)
    target = rng.integers(-1, 3, (2, 4, 6)).astype(np.int32)
    task = make_task("semantic", class_names=NAMES)
    plain = task.pixel_loss(maps, target)

    def numpys(weights):
        each = np.where(target < 0, 0, np.array(weights)[target])
        return (each * plain).sum() / each.sum()

    for weights in ((1, 1, 1), (1, 2, 5), (0.5, 0, 3)):
        heavy = dataclasses.replace(task, class_weights=tuple(scale * w for w in weights))
        np.testing.assert_allclose(loss_of(heavy, maps, target), numpys(weights), rtol=1e-6)
    # Weights of 1 are none.
    ones = dataclasses.replace(task, class_weights=(scale,) * 3)
    assert loss_of(ones, maps, target) == loss_of(task, maps, target)
    # What weighs nothing is as if it had no label.
    only = dataclasses.replace(task, class_weights=(0.0, 0.0, scale))
    masked = np.where(target == 2, target, -1)
    np.testing.assert_allclose(loss_of(only, maps, target), loss_of(task, maps, masked), rtol=1e-6)
    assert only.count(np.zeros_like(target)) == 0
