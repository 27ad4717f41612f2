"""`python tests/mesh_sweep.py` sets steps on every mesh of eight fake devices beside those on one.

Prints for each variant of the step and each mesh the relative differences of the objective and of
the gradient's norm, and the largest of the gradients (Adam's moments; relative to the largest entry
of each tensor, or to a thousandth of the largest of all). Two steps with a learning rate of 0, so
that the state of weightings counts and Adam's division by tiny gradients does not.

`--cases JSON` does some of them and prints a line of JSON for each, see `step_on`. With
JAX_ENABLE_X64=1 in the environment all is computed in float64: what is left then of a difference is
no rounding.
"""

import argparse
import dataclasses
import itertools
import json
import os
import tempfile
from pathlib import Path

DEVICES = 8
if __name__ == "__main__" and "device_count" not in os.environ.get("XLA_FLAGS", ""):
    # Read when JAX is loaded.
    flags = f"--xla_force_host_platform_device_count={DEVICES} --xla_backend_optimization_level=0"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

DTYPE = np.float64 if jax.config.jax_enable_x64 else np.float32
if DTYPE is np.float64:
    # The losses are computed in this, whatever the model is.
    jnp.float32 = jnp.float64

import micro  # noqa: E402, F401  # adds the sizes

from talora_jax import config as config_lib  # noqa: E402
from talora_jax import sharding  # noqa: E402
from talora_jax.data import Dataset  # noqa: E402
from talora_jax.tasks import TASKS  # noqa: E402
from talora_jax.training import setup  # noqa: E402
from talora_jax.training.prompted import setup as prompted  # noqa: E402
from talora_jax.training.step import init_state, make_train_step  # noqa: E402
from talora_jax.weighting import gradients, losses  # noqa: E402

CLASSES = ("a", "b", "c")
SIZE = (24, 32)
BATCH = 16
TASKS_OF = {
    2: ("semantic", "edges"),
    4: ("semantic", "normals", "edges", "saliency"),
    # For a task on each device, kinds stand there again.
    8: (
        "semantic",
        "normals",
        "edges",
        "saliency",
        "depth",
        "human_parts",
        "semantic_2",
        "edges_2",
    ),
}
COMPARED = ("objective", "norm", "gradients")
OLD_TASK = "disparity"
MESHES = [
    (data, fsdp, task)
    for data, fsdp, task in itertools.product((8, 4, 2, 1), (1, 2, 4, 8), (1, 2, 4, 8))
    if data * fsdp * task == DEVICES
]
VARIANTS = {
    "one part": {"accumulate": 1},
    "accumulate 2": {},
    "native_aspect": {"model.native_aspect": True},
    **{f"remat {word}": {"model.remat": word} for word in ("dots", "block_but_attention", "block")},
    **{f"weighting {kind}": {"weighting.kind": kind} for kind in losses.KINDS if kind != "fixed"},
    **{f"balancing {kind}": {"weighting.kind": kind} for kind in gradients.KINDS},
    **{f"adapter {kind}": {"adapter.kind": kind} for kind in ("lora_shared", "lora_per_task")},
    "adapter full": {"adapter.kind": "full"},
    "adapter in the last block": {"adapter.blocks": [-1]},
    "extend": {"adapter.extend": "old adapter"},
}


def make_config(mesh, fields):
    """Of the smallest model, in two parts; fields of `VARIANTS` come on top."""
    config = config_lib.default()
    config.model.size = "nano"
    config.model.dtype = config.model.param_dtype = np.dtype(DTYPE).name
    config.model.remat = "none"
    config.adapter.ranks = (4, 4, 2)
    config.optimizer.learning_rate = 0.0
    config.orthogonal_weight = 1e-3  # no more than the losses
    config.batch_size, config.accumulate = BATCH, 2
    config.tasks = TASKS_OF[max(2, mesh[2])]
    config.weighting.task_weights = tuple(1.0 + i for i in range(len(config.tasks)))
    config.prompts.update(domains=("semantic",), masks=2, clicks=2)
    config.mesh.update(dict(zip(sharding.AXES, mesh, strict=True)))
    # JSON has no tuples.
    fields = {name: tuple(x) if isinstance(x, list) else x for name, x in fields.items()}
    config.update_from_flattened_dict(fields)
    return config


def make_tasks(names):
    return tuple(TASKS[name.partition("_2")[0]].make(name, CLASSES) for name in names)


def make_batch(config):
    rng = np.random.default_rng(0)
    if config.trains == "prompts":
        asked = np.zeros((BATCH, 1, 64, 64), np.uint8)
        for i, m in np.ndindex(BATCH, 2):
            asked[i, 0, 2 * i : 2 * i + 20, 10 + 20 * m : 24 + 20 * m] = 1 + m
        return {
            "image": rng.integers(0, 256, (BATCH, 64, 64, 3), np.uint8),
            "asked": asked,
            "size": np.full((BATCH, 2), 64, np.int32),
        }
    batch = {"image": rng.random((BATCH, *SIZE, 3), DTYPE)}
    for task in make_tasks(config.tasks):
        if isinstance(task, TASKS["semantic"]):
            batch[task.name] = rng.integers(-1, 3, (BATCH, *SIZE)).astype(np.int32)
        elif task.name.startswith("normals"):
            normals = rng.normal(size=(BATCH, *SIZE, 3)).astype(DTYPE)
            batch[task.name] = normals / np.linalg.norm(normals, axis=-1, keepdims=True)
        elif task.name.startswith("depth"):
            batch[task.name] = rng.random((BATCH, *SIZE, 1), DTYPE)
        else:
            batch[task.name] = rng.integers(0, 2, (BATCH, *SIZE, 1)).astype(DTYPE)
    return batch


def make_run(config, mesh, parent=None):
    """The run on random numbers, also in what starts as zeros."""
    dataset = Dataset("random", tuple(config.tasks), CLASSES, SIZE, {"train": [0] * BATCH})
    if config.trains == "prompts":
        run = prompted.assemble(config, mesh, dataset)
    else:
        run = setup.assemble(config, mesh, dataset, make_tasks(config.tasks), parent)
    rng = np.random.default_rng(1)
    noisy = jax.tree.map(lambda x: (x + rng.normal(0, 0.1, x.shape)).astype(DTYPE), run.trainable)
    return dataclasses.replace(run, trainable=noisy)


def old_adapter(folder):
    """A file of the task that `extend` adds others to."""
    # A file names no float64, whatever its numbers are.
    dtypes = {"model.dtype": "float32", "model.param_dtype": "float32"}
    config = make_config((1, 1, 1), {"tasks": (OLD_TASK,)} | dtypes)
    run = make_run(config, sharding.make_mesh(1, 1, 1, jax.devices()[:1]))
    path = Path(folder) / "adapter.safetensors"
    setup.learnt_file(run, run.trainable).write(path)
    return str(path)


def step_on(mesh, devices, fields):
    """Two steps on a mesh of the first `devices` devices, as arrays of JSON.

    Args:
      mesh: data, fsdp, task; with one device its task axis still says how many tasks there are.
      fields: of the config, by their dotted names.
    """
    config = make_config(mesh, fields)
    parent = setup.parent_of(config) if config.trains == "tasks" else None
    shape = mesh if devices == DEVICES else (1, 1, 1)
    where = sharding.make_mesh(*shape, jax.devices()[:devices])
    run = make_run(config, where, parent)
    step, batch = make_train_step(run), sharding.shard_batch(make_batch(config), where)
    with jax.set_mesh(where):
        state, _ = step(init_state(run), run.frozen, batch)
        state, scalars = step(state, run.frozen, batch)
    frozen = [x for x in jax.tree.leaves(run.frozen) if x.size >= sharding.MIN_SHARDED_SIZE]
    return {
        "objective": float(scalars["objective"]),
        "grad_norm": float(scalars["grad_norm"]),
        "gradients": [np.asarray(x).ravel() for x in jax.tree.leaves(state.opt_state) if x.ndim],
        "compilations": step._cache_size(),
        "frozen_shares": [x.addressable_shards[0].data.size / x.size for x in frozen],
    }


def differences(many, one):
    """Of the objective, the gradient's norm (both relative) and the gradients."""
    moments = list(zip(many["gradients"], one["gradients"], strict=True))
    least = 1e-3 * max(np.abs(y).max() for _, y in moments)
    return (
        *(abs(many[name] / one[name] - 1) for name in ("objective", "grad_norm")),
        max(np.abs(x - y).max() / max(least, np.abs(y).max()) for x, y in moments),
    )


def sweep(variants, meshes):
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        adapter = old_adapter(folder) if "extend" in variants else None
        for name in variants:
            fields = {k: adapter if v == "old adapter" else v for k, v in VARIANTS[name].items()}
            one = {}
            for mesh in meshes:
                alone = (1, 1, max(2, mesh[2]))
                if alone not in one:
                    one[alone] = step_on(alone, 1, fields)
                found = differences(step_on(mesh, DEVICES, fields), one[alone])
                told = "  ".join(f"{what} {x:.1e}" for what, x in zip(COMPARED, found, strict=True))
                print(f"{name:28} {'×'.join(map(str, mesh)):8} {told}", flush=True)
                worst = max(worst, *found)
            jax.clear_caches()
    print(f"largest difference {worst:.1e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--cases", help="[[mesh, devices, fields], …]")
    add("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    add("--meshes", nargs="+", choices=["x".join(map(str, mesh)) for mesh in MESHES])
    args = parser.parse_args()
    if args.cases is None:
        meshes = [tuple(map(int, mesh.split("x"))) for mesh in args.meshes or ()]
        sweep(args.variants, meshes or MESHES)
        return
    for mesh, devices, fields in json.loads(args.cases):
        found = step_on(tuple(mesh), devices, fields)
        found["gradients"] = [x[:200].tolist() for x in found["gradients"]]
        print(json.dumps(found))


if __name__ == "__main__":
    main()
