"""One step on eight fake devices is the step on one."""

import json

import numpy as np
import pytest

from talora_jax.config import check_mesh
from talora_jax.errors import UserError
from talora_jax.sharding import make_mesh

# Runs in a process of its own: the number of devices is fixed when JAX starts.
PROGRAM = """
import json, sys
import jax, numpy as np
from talora_jax import config as config_lib, sharding
from talora_jax.data.dataset import Dataset
from talora_jax.training import setup
from talora_jax.training.prompted import setup as prompted_setup
from talora_jax.tasks import make_task
from talora_jax.training.step import init_state, make_train_step

sys.path.insert(0, "tests")
import micro

names, (height, width) = ("a", "b", "c"), (24, 32)
rng = np.random.default_rng(0)
trains = sys.argv[3]
if trains == "tasks":
    batch = {
        "image": rng.random((8, height, width, 3), np.float32),
        "semantic": rng.integers(-1, 3, (8, height, width)).astype(np.int32),
        "depth": rng.random((8, height, width, 1), np.float32),
    }
else:
    asked = np.zeros((8, 1, 64, 64), np.uint8)
    for i, m in np.ndindex(8, 2):
        asked[i, 0, 4 * i : 4 * i + 20, 10 + 20 * m : 24 + 20 * m] = 1 + m
    batch = {
        "image": rng.integers(0, 256, (8, 64, 64, 3), np.uint8),
        "asked": asked,
        "size": np.full((8, 2), 64, np.int32),
    }
dataset = Dataset("random", ("semantic", "depth"), names, (height, width), {"train": [0] * 8})
for data, fsdp, task, *blocks in json.loads(sys.argv[1]):
    config = config_lib.default()
    config.trains = trains
    config.prompts.update(domains=("semantic",), masks=2, clicks=2)
    config.model.size = "nano"
    config.model.weights = sys.argv[2]
    config.tasks = ("semantic", "depth")
    config.weighting.task_weights = (1.0, 2.0)
    config.adapter.ranks = (4, 4, 2)
    config.adapter.blocks = tuple(blocks) or None
    config.batch_size = 8
    config.mesh.update(data=data, fsdp=fsdp, task=task)
    if data * fsdp * task == 1:
        mesh = jax.make_mesh(
            (1, 1, 1), sharding.AXES, devices=jax.devices()[:1],
            axis_types=(jax.sharding.AxisType.Auto,) * 3,
        )
    else:
        mesh = sharding.make_mesh(data, fsdp, task)
    if trains == "tasks":
        tasks = tuple(make_task(t, class_names=names) for t in config.tasks)
        run = setup.assemble(config, mesh, dataset, tasks, parent=None)
    else:
        run = prompted_setup.assemble(config, mesh, dataset)
    step = make_train_step(run)
    with jax.set_mesh(mesh):
        state, scalars = step(init_state(run), run.frozen, sharding.shard_batch(batch, mesh))
        # The first step's scalars and moments are read below, and a step donates its state.
        step(jax.tree.map(jax.numpy.copy, state), run.frozen, sharding.shard_batch(batch, mesh))
    frozen = [x for x in jax.tree.leaves(run.frozen) if x.size >= sharding.MIN_SHARDED_SIZE]
    # Adam's first moment is a tenth of the gradient.
    moments = [x for x in jax.tree.leaves(state.opt_state) if x.ndim]
    print(json.dumps({
        "objective": float(scalars["objective"]),
        "grad_norm": float(scalars["grad_norm"]),
        "gradients": [np.asarray(x).ravel()[:200].tolist() for x in moments],
        "compilations": step._cache_size(),
        "frozen_shares": [x.addressable_shards[0].data.size / x.size for x in frozen],
    }))
"""


# Every axis is shared out in one of them, all three in the last.
MESHES = [(1, 1, 1), (8, 1, 1), (2, 2, 2)]


@pytest.fixture(scope="module")
def run_on(start_python, nano_base):
    def run_on(meshes, trains):
        arguments = (json.dumps(meshes), str(nano_base), trains)
        process = start_python("-c", PROGRAM, *arguments, devices=8)
        out, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
        return dict(zip(meshes, map(json.loads, out.splitlines()), strict=True))

    return run_on


@pytest.fixture(scope="module")
def steps(run_on):
    return run_on(MESHES, "tasks")


def assert_same_step(many, one):
    np.testing.assert_allclose(many["objective"], one["objective"], rtol=1e-5)
    np.testing.assert_allclose(many["grad_norm"], one["grad_norm"], rtol=1e-5)
    for ours, theirs in zip(many["gradients"], one["gradients"], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * max(1, *map(abs, theirs)))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES[1:])
def test_a_mesh_changes_neither_loss_nor_gradients(steps, mesh):
    assert_same_step(steps[mesh], steps[1, 1, 1])


@pytest.mark.slow
def test_nor_does_it_in_training_from_prompts(run_on):
    one, many = run_on([(1, 1, 1), (8, 1, 1)], "prompts").values()
    assert_same_step(many, one)


@pytest.mark.slow
def test_nor_where_the_last_block_alone_is_adapted(run_on):
    one, many = run_on([(1, 1, 1, -1), (2, 2, 2, -1)], "tasks").values()
    assert_same_step(many, one)


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_the_second_step_runs_the_first_ones_program(steps, mesh):
    assert steps[mesh]["compilations"] == 1


@pytest.mark.slow
def test_frozen_parameters_are_sharded_under_fsdp(steps):
    assert set(steps[8, 1, 1]["frozen_shares"]) == {1}
    assert len(steps[2, 2, 2]["frozen_shares"]) >= 4  # qkv, proj, lin1, lin2
    assert set(steps[2, 2, 2]["frozen_shares"]) == {1 / 2}


def test_batches_and_tasks_that_the_mesh_does_not_divide(config):
    config.batch_size = 6
    with pytest.raises(UserError, match=r"batch_size / config.accumulate = 6 is not divisible by"):
        check_mesh(config, {"data": 2, "fsdp": 2, "task": 1})
    config.batch_size = 4
    with pytest.raises(UserError, match=r"names 3 tasks, not divisible by config.mesh.task=2"):
        check_mesh(config, {"data": 2, "fsdp": 1, "task": 2})


def test_a_mesh_of_another_number_of_devices():
    with pytest.raises(UserError, match=r"data=2 × fsdp=3 × task=1 needs 6 devices, but 1 are"):
        make_mesh(2, 3, 1)
