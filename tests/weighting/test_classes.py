"""Weights of classes against the formulas they are named after."""

import numpy as np
import pytest

from talora_jax.errors import UserError
from talora_jax.weighting.classes import KINDS, class_weights, given_weights

# Of two images of 100 pixels: 60, 30, 10, 0 and 90, 0, 10, 0.
COUNTS = np.array([150, 30, 20, 0])
PRESENT = np.array([200, 100, 200, 0])


def test_median_frequency():
    # f = 0.75, 0.3, 0.1; the median is 0.3.
    found = class_weights("median_frequency", COUNTS, PRESENT)
    np.testing.assert_allclose(found, [0.4, 1, 3, 3])


def test_inverse_log():
    found = class_weights("inverse_log", COUNTS, PRESENT)
    np.testing.assert_allclose(found, 1 / np.log(1.02 + np.array([0.75, 0.15, 0.1, 0])))


def test_weights_that_are_not_computed_are_refused():
    for kind in KINDS[:2]:
        with pytest.raises(UserError, match="class_weights.kind"):
            class_weights(kind, COUNTS, PRESENT)


def test_given_by_task():
    tasks = ("semantic", "semantic:materials")
    assert given_weights((1, 0, 2.5), tasks) == dict.fromkeys(tasks, (1, 0, 2.5))
    # As a command line gives them, and as a config.json does.
    for given in (((1, 2), (3, 0.5, 0)), ([1, 2], [3, 0.5, 0])):
        assert given_weights(given, tasks) == {tasks[0]: (1, 2), tasks[1]: (3, 0.5, 0)}
    assert given_weights(((), (1, 2)), tasks)["semantic"] == ()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (((1, 2),), "or such a list for each task that has classes, in their order: semantic, sem"),
        (((1, 2), 3), "expected a number for each class, or such a list"),
        (((1, 2), (1, -1)), "expected 0 or more for each class"),
        (((1, 2), (1, "a")), "expected 0 or more for each class"),
        (((1, 2), (1, float("nan"))), "expected 0 or more for each class"),
        (((1, 2), (1, (2,))), "expected 0 or more for each class"),
        (((1, 2), (0, 0)), "all 0, expected a class that counts"),
        ((0, 0), "all 0, expected a class that counts"),
    ],
)
def test_given_that_cannot_be(given, told):
    with pytest.raises(UserError, match=told):
        given_weights(given, ("semantic", "semantic:materials"))
