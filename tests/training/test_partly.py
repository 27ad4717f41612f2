"""A task without a label in a batch learns nothing from it, however losses are weighted."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from talora_jax import sharding
from talora_jax.data.dataset import Dataset
from talora_jax.models.adapters import TaskParam
from talora_jax.tasks import make_task
from talora_jax.training.gradients import init_weighting, make_gradient
from talora_jax.training.setup import Run
from talora_jax.weighting import losses

TASKS = {"semantic": 3, "depth": 1, "normals": 3}


class Toy(nnx.Module):
    """A pixel's maps are linear in its colour."""

    def __init__(self):
        self.kernels = TaskParam(jnp.ones((3, sum(TASKS.values()))) / 10)

    def __call__(self, images, *, key, trunk):
        ends = tuple(itertools.accumulate(TASKS.values()))[:-1]
        maps = jnp.split(images @ self.kernels[...], ends, axis=-1)
        return dict(zip(TASKS, maps, strict=True))

    def takes_turns(self, images, size):
        return False

    def orthogonality(self, parts):
        return jnp.zeros(())


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("kind", losses.KINDS)
def test_no_label_no_gradient(config, kind, accumulate):
    config.tasks = tuple(TASKS)
    config.weighting.kind, config.accumulate = kind, accumulate
    config.weighting.stch_warmup_epochs = 0
    tasks = tuple(make_task(name, class_names=("a", "b", "c")) for name in TASKS)
    graphdef, learnt, frozen = nnx.split(Toy(), TaskParam, ...)
    dataset = Dataset("random", config.tasks, (), (6, 8), {"train": [0] * 4})
    run = Run(config, sharding.make_mesh(1, 1, 1), dataset, tasks, graphdef, learnt, frozen, "")
    rng = np.random.default_rng(0)
    batch = {"image": rng.random((4, 6, 8, 3), np.float32)}
    batch["semantic"] = rng.integers(0, 3, (4, 6, 8)).astype(np.int32)
    batch["normals"] = rng.random((4, 6, 8, 3), np.float32)
    # Of two samples in different parts.
    batch["normals"][1:3] = 0
    batch["depth"] = np.stack([tasks[1].nothing((6, 8))] * 4)
    params, state = init_weighting(run)
    trainable = {"model": learnt, "weighting": params}
    gradient_of = jax.jit(make_gradient(run))
    for step in range(2):
        found = gradient_of(trainable, state, frozen, batch, jnp.int32(step), jax.random.key(step))
        state = found.weighting
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
        assert found.scalars["depth/loss"] == 0 < found.scalars["normals/loss"]
        slope = np.asarray(found.gradient["model"]["kernels"][...])
        assert (slope[:, 3] == 0).all() and (slope[:, :3] != 0).all() and (slope[:, 4:] != 0).all()
        for x in found.gradient["weighting"].values():
            np.testing.assert_array_equal(x != 0, [True, False, True])
