"""Rooms that could be."""

import numpy as np
import pytest

from talora_jax.data.rooms import CLASS_NAMES
from talora_jax.data.rooms.furniture import BOX, CYLINDER


@pytest.mark.slow
def test_rooms_are_possible(scenes):
    """Nothing leaves the room, enters another thing (but pillows the bed), or holds the camera."""
    points = np.random.default_rng(0).uniform(-1, 1, (200, 3))
    bed, objects = CLASS_NAMES.index("bed"), CLASS_NAMES.index("objects")

    def inside(unit, shape):
        if shape == BOX:
            return (np.abs(unit) < 0.99).all(-1)
        if shape == CYLINDER:
            return (np.hypot(unit[:, 0], unit[:, 1]) < 0.99) & (np.abs(unit[:, 2]) < 0.99)
        return (unit**2).sum(-1) < 0.98

    def to_unit(scene, part, world):
        (c, s), away = scene.heading[part], world - scene.centre[part]
        turned = np.stack([c * away[:, 0] + s * away[:, 1], c * away[:, 1] - s * away[:, 0]], 1)
        return np.concatenate([turned, away[:, 2:]], 1) / scene.half[part]

    for scene in scenes[:12]:
        for i in range(scene.count):
            unit = points[inside(points, scene.shape[i])]
            x, y, z = (unit * scene.half[i]).T
            c, s = scene.heading[i]
            world = np.stack([c * x - s * y, s * x + c * y, z], 1) + scene.centre[i]
            # What hangs on a wall is sunk into it a little.
            assert (world > -0.025).all() and (world < scene.room + 0.025).all()
            assert not inside(to_unit(scene, i, scene.position[None]) / 1.1, scene.shape[i]).any()
            for j in range(scene.count):
                classes = {int(scene.semantic[i]), int(scene.semantic[j])}
                if scene.instance[i] != scene.instance[j] and classes != {bed, objects}:
                    assert not inside(to_unit(scene, j, world), scene.shape[j]).any()
