"""Which GPUs a process under SLURM takes."""

import pytest

from talora_jax.slurm import local_device_ids

EIGHT = ",".join(map(str, range(8)))


@pytest.mark.parametrize(
    ("seen", "tasks", "node", "task", "on_node", "ids"),
    [
        (EIGHT, "1(x2)", 1, 0, 8, range(8)),  # a task a node: JAX alone would take one GPU
        (EIGHT, "8(x2)", 0, 3, 8, [3]),
        (EIGHT, "2(x2)", 1, 1, 8, range(4, 8)),
        (EIGHT, "8,2", 1, 1, 8, range(4, 8)),
        ("5", "8", 0, 5, 8, [0]),  # bound to its own, which it sees as its first
        ("GPU-a,GPU-b", "4", 0, 1, 8, [0, 1]),
    ],
)
def test_tasks_of_a_node_share_out_what_they_see(seen, tasks, node, task, on_node, ids):
    told = {
        "CUDA_VISIBLE_DEVICES": seen,
        "SLURM_STEP_TASKS_PER_NODE": tasks,
        "SLURM_NODEID": str(node),
        "SLURM_LOCALID": str(task),
        "SLURM_GPUS_ON_NODE": str(on_node),
    }
    assert local_device_ids(told) == list(ids)
    assert local_device_ids(told | {"JAX_LOCAL_DEVICE_IDS": "1"}) is None


def test_out_of_srun_and_without_gpus_jax_decides():
    assert local_device_ids({"CUDA_VISIBLE_DEVICES": EIGHT}) is None
    # A batch script that starts Python itself.
    assert local_device_ids({"CUDA_VISIBLE_DEVICES": EIGHT, "SLURM_LOCALID": "0"}) is None
    assert local_device_ids({"SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_LOCALID": "0"}) is None
