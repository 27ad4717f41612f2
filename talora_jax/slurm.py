"""What SLURM tells of a process, where JAX would guess."""

import os
import re
from collections.abc import Mapping


def local_device_ids(environment: Mapping[str, str] = os.environ) -> list[int] | None:
    """The GPUs of this process, numbered as it sees them, for `jax.distributed.initialize`.

    JAX takes the one of the task's number on its node. Here the tasks of a node share out the GPUs
    that each of them sees: one task has them all. Where SLURM has bound tasks to GPUs of their own
    (`--gpus-per-task`), a task has all that it sees. `JAX_LOCAL_DEVICE_IDS` is stronger.

    Returns:
      None leaves it to JAX: out of an `srun`, or where there are no GPUs.
    """
    seen = environment.get("CUDA_VISIBLE_DEVICES") or environment.get("ROCR_VISIBLE_DEVICES")
    tasks = _tasks_on_node(environment)
    if not seen or not tasks or "JAX_LOCAL_DEVICE_IDS" in environment:
        return None
    gpus = len(seen.split(","))
    if gpus < tasks or gpus < int(environment.get("SLURM_GPUS_ON_NODE", gpus)):
        return list(range(gpus))
    task, each = int(environment["SLURM_LOCALID"]), gpus // tasks
    return list(range(task * each, (task + 1) * each))


def _tasks_on_node(environment: Mapping[str, str]) -> int:
    """How many tasks of this step run on this node; 0 out of a step."""
    told = environment.get("SLURM_STEP_TASKS_PER_NODE", "")  # as 4(x2),3: of two nodes 4, then 3
    if "SLURM_LOCALID" not in environment:
        return 0
    counts = [
        int(tasks)
        for tasks, nodes in re.findall(r"(\d+)(?:\(x(\d+)\))?", told)
        for _ in range(int(nodes or 1))
    ]
    node = int(environment.get("SLURM_NODEID", 0))
    return counts[node] if node < len(counts) else 0
