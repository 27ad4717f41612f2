"""Weights of classes against the formulas they are named after."""

import numpy as np
import pytest

from talora_jax.errors import UserError
from talora_jax.weighting.classes import KINDS, class_weights

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
