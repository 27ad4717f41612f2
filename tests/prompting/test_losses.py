"""Losses and IoUs against their definitions, and padding that changes nothing."""

import numpy as np
import pytest

from talora_jax.prompting import losses


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 2, (2, 3, 6, 8)).astype(np.float32)
    mask = rng.random((2, 3, 6, 8)) < 0.3
    inside = np.zeros((2, 1, 6, 8), bool)
    inside[0], inside[1, :, :4, :5] = True, True
    return logits, mask, inside


def shown(inside, i):
    rows, columns = inside[i, 0].any(1).sum(), inside[i, 0].any(0).sum()
    return np.s_[:rows, :columns]


def test_focal_is_its_definition(case):
    logits, mask, inside = case
    found = losses.focal(*case)
    for i, j in np.ndindex(2, 3):
        z, m = logits[i, j][shown(inside, i)].astype(np.float64), mask[i, j][shown(inside, i)]
        p = 1 / (1 + np.exp(-z))
        per_pixel = np.where(m, -0.25 * (1 - p) ** 2 * np.log(p), -0.75 * p**2 * np.log(1 - p))
        np.testing.assert_allclose(found[i, j], per_pixel.mean(), rtol=1e-5)


def test_dice_is_its_definition(case):
    logits, mask, inside = case
    found = losses.dice(*case)
    for i, j in np.ndindex(2, 3):
        p = 1 / (1 + np.exp(-logits[i, j][shown(inside, i)].astype(np.float64)))
        m = mask[i, j][shown(inside, i)]
        expected = 1 - (2 * (p * m).sum() + 1) / (p.sum() + m.sum() + 1)
        np.testing.assert_allclose(found[i, j], expected, rtol=1e-5)


def test_a_mask_loss_is_twenty_focal_and_dice(case):
    np.testing.assert_allclose(
        losses.mask_loss(*case), 20 * losses.focal(*case) + losses.dice(*case), rtol=1e-6
    )


def test_intersection_over_union(case):
    logits, mask, inside = case
    answer = logits > 0
    found = losses.intersection_over_union(answer, mask, inside)
    for i, j in np.ndindex(2, 3):
        a, m = answer[i, j][shown(inside, i)], mask[i, j][shown(inside, i)]
        np.testing.assert_allclose(found[i, j], (a & m).sum() / (a | m).sum(), rtol=1e-6)
    nothing = np.zeros((4, 4), bool)
    assert losses.intersection_over_union(nothing, nothing, ~nothing) == 1
