"""Samples that lack files of some targets are taken where one says so, and say nothing of them."""

import numpy as np
import pytest

from talora_jax.data.survey import survey
from talora_jax.tasks import TARGETS


@pytest.fixture
def partly(planes, root):
    """Frame 1 has no depth, frames 0 and 2 have no labels."""
    for name in ("depth/1", "semantic/0", "semantic/2"):
        (root / f"{name}.png").unlink()
    return root


def test_it_must_be_asked_for(planes, partly):
    told = planes.refused(partly)
    assert (
        "image/1.png: depth/ has no file of stem '1', expected one, or config.data.partly" in told
    )
    planes.open_root(partly, partly=True)
    # What was checked and prepared for those who asked is not taken for others.
    assert planes.refused(partly) == told
    planes.write_json(partly, {"partly": True})
    planes.open_root(partly)


def test_what_is_lacking_is_unlabelled(planes, root, partly):
    planes.write_json(partly, {"partly": True, "splits": {"train": ["0", "1", "2"], "val": ["3"]}})
    dataset = planes.open_root(partly)
    samples = [dataset.splits["train"][i] for i in range(3)]
    lacking = {"depth": [1], "normals": [1], "semantic": [0, 2], "edges": [0, 2]}
    for task, indices in lacking.items():
        for index, sample in enumerate(samples):
            target = sample[task]
            assert target.dtype == TARGETS[task].target_dtype
            assert target.shape == (*planes.SIZE, *TARGETS[task].target_shape)
            assert (target == TARGETS[task].unlabelled).all() == (index in indices), task
        assert dataset.with_target("train", task) == [i for i in range(3) if i not in indices]
        assert list(dataset.with_target("val", task)) == [0]
    # Those that all have all, in one folder and in another, are the same.
    whole = planes.open_root(partly, image_size=(12, 16)).splits["val"][0]
    assert all((whole[task] != TARGETS[task].unlabelled).any() for task in lacking)


def test_how_many_have_each_is_told(planes, partly):
    planes.write_json(
        partly, {"partly": True, "splits": {"train": ["0", "1", "2"], "val": ["3", "4"]}}
    )
    found = survey(planes.open_root(partly), ("semantic", "depth"))
    lines = found.lines()
    # Of those that have it, and no other.
    assert lines[0].endswith("12 % unlabelled (1 of 1 training images)")
    assert lines[1].endswith("100 % of the pixels measured (2 of 2 training images)")
    assert lines[2:4] == [
        "semantic: 1 of 3 training and 2 of 2 validation images have it",
        "depth: 2 of 3 training and 2 of 2 validation images have it",
    ]
    numbers = found.numbers()
    assert numbers["semantic/images"] == 1 and numbers["depth/images"] == 2
    assert numbers["images_looked_at"] == 2


def test_a_split_without_a_task_is_refused(planes, partly):
    planes.write_json(partly, {"partly": True, "splits": {"train": ["0", "2"], "val": ["3"]}})
    assert planes.refused(partly).endswith(
        "none of the 2 images of 'train' has a file of semantic, expected some that do: choose "
        "splits in dataset.json, or train without semantic."
    )
    planes.open_root(partly, ("depth",))


def test_other_mistakes_stay_mistakes(planes, partly):
    planes.save(partly / "depth/9.png", np.ones(planes.SIZE, np.uint16))
    (partly / "depth/2.png").write_text("")
    lines = planes.refused(partly, partly=True).splitlines()[1:]
    assert [line.strip().partition(": ")[0] for line in lines] == ["depth/9.png", "depth/2.png"]
    planes.write_json(partly, {"partly": "yes"})
    assert "partly is 'yes'; expected true or false" in planes.refused(partly)
