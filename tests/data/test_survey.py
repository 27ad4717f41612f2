"""A data set is looked at before it is trained on."""

import numpy as np
import pytest

from talora_jax.data.dataset import Dataset
from talora_jax.data.masks import AskedMasks
from talora_jax.data.survey import IMAGES, survey
from talora_jax.errors import UserError

CLASSES = np.array([[0, 1], [1, 0]], np.int32)


class Source:
    """As many images; sample i has the labels that `labels` gives."""

    def __init__(self, images, labels):
        self.images, self.labels, self.asked = images, labels, []

    def __len__(self):
        return self.images

    def __getitem__(self, index):
        self.asked.append(index)
        return {
            "image": np.zeros((2, 2, 3), np.uint8),
            "semantic": self.labels(index),
            "depth": np.float32([[[1], [2]], [[3], [0]]]),
        }


def dataset(train, val=None):
    val = val or Source(2, lambda index: CLASSES)
    return Dataset("toy", ("semantic", "depth"), ("a", "b"), (2, 2), {"train": train, "val": val})


def test_a_line_for_each_target():
    found = survey(dataset(Source(3, lambda index: CLASSES)), ("semantic", "depth"))
    seen = "(3 of 3 training images)"
    assert found.lines() == [
        f"semantic: class ids 0 to 1, 2 found, none missing, 0 % unlabelled {seen}",
        f"depth: min 1, median 2, max 3 m, 75 % of the pixels measured {seen}",
    ]
    numbers = found.numbers()
    assert numbers["images_looked_at"] == 3 and numbers["semantic/share/1"] == 0.5
    assert numbers["depth/max"] == 3 and all(type(x) is float for x in numbers.values())


def test_of_many_images_some_say_it_all():
    train = Source(10 * IMAGES, lambda index: CLASSES)
    found = survey(dataset(train), ("semantic",))
    assert train.asked == sorted(set(train.asked)) and len(train.asked) == IMAGES
    assert train.asked[0] == 0 and train.asked[-1] == 10 * IMAGES - 1
    assert found.lines()[0].endswith(f"({IMAGES} of {10 * IMAGES} training images)")


def test_nothing_is_refused_for_what_was_not_looked_at():
    rare = 10 * IMAGES - 2
    train = Source(10 * IMAGES, lambda index: CLASSES if index == rare else CLASSES * 0)
    found = survey(dataset(train), ("semantic", "depth"))
    assert sorted(train.asked) == list(range(10 * IMAGES))
    assert found.contents["semantic"].counts == {0: 4 * len(train) - 2, 1: 2}
    train = Source(10 * IMAGES, lambda index: CLASSES * 0)
    with pytest.raises(UserError, match=r"the 1280 training images of toy: semantic: every"):
        survey(dataset(train), ("semantic",))


def test_all_that_cannot_be_used_is_named():
    train = Source(2, lambda index: CLASSES * 0)
    train.__class__ = type("Blank", (Source,), {"__getitem__": blank_depth})
    with pytest.raises(UserError, match=r"semantic: every .* \(depth cannot be used either\)$"):
        survey(dataset(train), ("semantic", "depth"))


def blank_depth(self, index):
    sample = Source.__getitem__(self, index)
    return sample | {"depth": sample["depth"] * 0}


def test_masks_may_be_of_one_class():
    train = Source(2, lambda index: CLASSES * 0 + 1)
    asked = AskedMasks(("semantic",), 1, 1, (2, 2))
    assert survey(dataset(train), ("semantic",), asked).images == 2
    with pytest.raises(UserError, match="every labelled pixel is of class 1"):
        survey(dataset(train), ("semantic",))


def test_masks_that_are_too_small_to_be_asked_about():
    large = Source(2, lambda index: CLASSES * 0 + 1)
    asked = AskedMasks(("semantic",), 1, 9, (4, 4))
    small = Source(2, lambda index: CLASSES)
    with pytest.raises(
        UserError,
        match="2 training images of toy have no mask of semantic of config.prompts.min_pixels=9 "
        "pixels or more, each image as large as 4×4 hold it",
    ):
        survey(dataset(small, large), ("semantic",), asked)
    assert survey(dataset(large, small), ("semantic",), asked).unmeasured == ("semantic",)
    assert survey(dataset(large, large), ("semantic",), asked).unmeasured == ()


def test_validation_images_without_anything_to_measure_are_noted():
    val = Source(3, lambda index: CLASSES * 0 - 1)
    found = survey(dataset(Source(2, lambda index: CLASSES), val), ("semantic", "depth"))
    assert found.unmeasured == ("semantic",)
    assert found.lines()[-1] == (
        "note: semantic: nothing in the validation images to measure, so that it has no metric"
    )
