"""The estimator of normals."""

import numpy as np
import pytest

from talora_jax.data.folder.normals import normals_from_depth
from talora_jax.data.folder.settings import Intrinsics


@pytest.mark.parametrize("tilt", [0, 30, 60, 75])
def test_planes_are_exact_at_any_tilt(planes, tilt):
    normal = np.array([np.sin(np.radians(tilt)), 0, -np.cos(np.radians(tilt))])
    intrinsics = (525.0, 525.0, 79.5, 59.5)
    depth = planes.plane_depth((120, 160), intrinsics, normal)
    normals = normals_from_depth(depth[..., None], Intrinsics(*intrinsics))
    assert planes.degrees(normals, normal).max() < 0.5


def test_noise_of_a_kinect_is_smoothed(planes):
    size, intrinsics = (480, 640), (525.0, 525.0, 319.5, 239.5)
    # Kinect v1: disparity in eighths of a pixel, baseline 75 mm.
    rng = np.random.default_rng(0)
    disparity = 525 * 0.075 / planes.plane_depth(size, intrinsics) + rng.normal(size=size) / 8
    depth = (525 * 0.075 / (np.round(disparity * 8) / 8)).astype(np.float32)[..., None]
    angles = planes.degrees(normals_from_depth(depth, Intrinsics(*intrinsics)))
    assert np.mean(angles) < 3


def test_no_plane_is_laid_across_a_step():
    depth = np.ones((40, 60, 1), np.float32)
    depth[:, 30:] = 1.5
    depth[10:14, 10:14] = 0
    normals = normals_from_depth(depth, Intrinsics(60.0, 60.0, 29.5, 19.5))
    assert not normals[10:14, 10:14].any()
    valid = depth[..., 0] > 0
    np.testing.assert_allclose(
        normals[valid], np.broadcast_to([0, 0, -1], (valid.sum(), 3)), atol=1e-5
    )


def test_lone_measurements_have_no_normal():
    depth = np.zeros((40, 60, 1), np.float32)
    depth[20, :] = 1
    depth[5, 5] = 1
    assert not normals_from_depth(depth, Intrinsics(60.0, 60.0, 29.5, 19.5)).any()
