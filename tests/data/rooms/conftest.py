"""Rooms that several files look at."""

import pytest

from talora_jax.data.rooms.scene import random_scene


@pytest.fixture(scope="session")
def scenes():
    return [random_scene(7, "train", i) for i in range(24)]
