"""One step on eight fake devices is the step on one."""

import dataclasses
import json
import math

import numpy as np
import pytest

from talora_jax.config_checks import check_mesh
from talora_jax.errors import UserError
from talora_jax.sharding import abstract_mesh, make_mesh

# Every axis is shared out in one of them, all three in the last.
MESHES = [(1, 1, 1), (8, 1, 1), (2, 2, 2)]
# As much at once as goes together.
MIXED = {
    "accumulate": 2,
    "adapter.blocks": [-1],
    "model.native_aspect": True,
    "model.remat": "block",
    "weighting.kind": "db_mtl",
}


@pytest.fixture(scope="module")
def run_on(start_python, nano_base):
    def run_on(meshes, fields):
        # In a process of its own: the number of devices is fixed when JAX starts.
        fields = {"accumulate": 1, "model.weights": str(nano_base), **fields}
        cases = [(mesh, math.prod(mesh), fields) for mesh in meshes]
        process = start_python("tests/mesh_sweep.py", "--cases", json.dumps(cases), devices=8)
        out, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
        return dict(zip(meshes, map(json.loads, out.splitlines()), strict=True))

    return run_on


@pytest.fixture(scope="module")
def steps(run_on):
    return run_on(MESHES, {})


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
@pytest.mark.long
def test_nor_does_it_in_training_from_prompts(run_on):
    one, many = run_on([(1, 1, 1), (8, 1, 1)], {"trains": "prompts"}).values()
    assert_same_step(many, one)


@pytest.mark.slow
@pytest.mark.long
def test_nor_where_a_batch_comes_in_parts_and_gradients_are_balanced(run_on):
    one, many = run_on([(1, 1, 1), (2, 2, 2)], MIXED).values()
    assert_same_step(many, one)
    # What belongs to tasks comes back as it went in, not laid over `task`.
    assert many["compilations"] == 1


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
    config.eval_batch_size = 5
    with pytest.raises(UserError, match=r"accumulate = 6 .*\n.*eval_batch_size = 5 is not divis"):
        check_mesh(config, {"data": 2, "fsdp": 2, "task": 1})
    config.batch_size = config.eval_batch_size = 4
    with pytest.raises(UserError, match=r"names 3 tasks, not divisible by config.mesh.task=2"):
        check_mesh(config, {"data": 2, "fsdp": 1, "task": 2})
    # Of an evaluation, on more devices than a run had images in a batch.
    config.eval_batch_size = 8
    check_mesh(config, {"data": 8, "fsdp": 1, "task": 1}, trains=False)


def test_a_mesh_of_another_number_of_devices():
    with pytest.raises(UserError, match=r"data=2 × fsdp=3 × task=1 needs 6 devices, but 1 are"):
        make_mesh(2, 3, 1)
    with pytest.raises(UserError, match=r"data=1 × fsdp=3 × task=1 needs 3 devices, but 1 are"):
        make_mesh(-1, 3, 1)


@pytest.mark.parametrize("data", [0, -2])
def test_a_data_axis_that_has_no_size(data):
    for make in (make_mesh, abstract_mesh):
        with pytest.raises(UserError, match=f"data is {data}, expected at least 1, or -1 for what"):
            make(data, 1, 1)


@dataclasses.dataclass(frozen=True)
class Chip:
    """A device of one of several slices, in the order in which JAX gives them."""

    id: int
    slice_index: int
    platform: str
    process_index: int = 0
    device_kind: str = "chip"


def chips(slices, each, platform):
    return [Chip(i, i // each, platform) for i in range(slices * each)]


def test_data_runs_over_slices_and_the_other_axes_stay_within_one():
    # By turns, so that it is not their order that makes the mesh.
    turned = sorted(chips(2, 4, "gpu"), key=lambda chip: chip.id % 4)
    mesh = make_mesh(-1, 2, 2, turned)
    assert mesh.shape == {"data": 2, "fsdp": 2, "task": 2}
    for of_data, devices in enumerate(mesh.devices):
        assert {chip.slice_index for chip in devices.flat} == {of_data}
    with pytest.raises(
        UserError, match=r"config.mesh.data is 1, expected a multiple of 2: it runs"
    ):
        make_mesh(1, 4, 2, chips(2, 4, "tpu"))
    # GPUs of two machines can be one group, if slowly.
    assert make_mesh(1, 8, 1, chips(2, 4, "gpu")).shape["fsdp"] == 8
