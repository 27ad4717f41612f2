"""Normals: their files, how they turn, angles to the last bit."""

import math

import numpy as np
import pytest

from talora_jax.tasks import (
    Normals,
)


@pytest.mark.parametrize("degrees", [0, 0.01, 1, 90, 179.99, 180])
def test_angles_are_accurate_in_float32(cases, degrees):
    radians = math.radians(degrees)
    maps = np.float32([0, math.sin(radians), math.cos(radians)]) * np.ones(
        (1, cases.H, cases.W, 1), np.float32
    )
    target = np.float32([0, 0, 1]) * np.ones((1, cases.H, cases.W, 1), np.float32)
    actual = cases.summary(Normals("normals"), maps * 5, target)
    for key in ("mean", "median", "rmse"):
        np.testing.assert_allclose(actual[f"per_image/{key}"], degrees, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(actual["pooled/median"], degrees, atol=1e-3)


def test_a_zero_normal_is_a_right_angle_off(cases):
    _, target = cases.case_of("normals")
    actual = cases.summary(Normals("normals"), np.zeros_like(target), target)
    total, count = cases.loss(Normals("normals"), np.zeros_like(target), target)
    assert actual["per_image/mean"] == pytest.approx(90)
    assert total == count


def test_colours():
    right_up_here = np.float32([[[1, 0, 0], [0, -1, 0], [0, 0, -1]]])
    np.testing.assert_array_equal(
        Normals("normals").picture(right_up_here),
        [[[255, 128, 128], [128, 255, 128], [128, 128, 255]]],
    )


def unit_vectors(size):
    vectors = np.random.default_rng(0).normal(size=(*size, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    vectors[0, 0] = 0
    return vectors


def test_a_mirror_turns_left_into_right():
    target = unit_vectors((4, 6))
    mirrored = Normals.mirror(target)
    np.testing.assert_array_equal(mirrored, target[:, ::-1] * np.float32([-1, 1, 1]))
    np.testing.assert_array_equal(Normals.mirror(mirrored), target)


def test_they_turn_about_the_line_of_sight():
    """Counter-clockwise as seen, where y points down: what pointed right points up."""
    right = np.float32([[[1, 0, 0]]])
    np.testing.assert_allclose(Normals.turn(right, np.pi / 2), [[[0, -1, 0]]], atol=1e-7)
    target = unit_vectors((4, 6))
    turned = Normals.turn(target, 0.7)
    np.testing.assert_array_equal(turned[..., 2], target[..., 2])
    np.testing.assert_allclose(Normals.turn(turned, -0.7), target, atol=1e-6)
    assert (turned[0, 0] == 0).all()
    assert not np.may_share_memory(turned, target)


def test_nearness_leaves_directions_as_they_are():
    target = unit_vectors((4, 6))
    np.testing.assert_array_equal(Normals.nearer(target, 1.5), target)


def test_they_are_kept_to_2e_5():
    target = unit_vectors((4, 6))
    stored = Normals.store(target)
    assert stored.dtype == np.int16
    np.testing.assert_allclose(Normals.restore(stored), target, rtol=0, atol=2e-5)
    assert (Normals.restore(stored)[0, 0] == 0).all()
