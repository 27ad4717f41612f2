"""Every config in configs/ loads and passes its checks; the big recipe builds and steps."""

import dataclasses
import importlib.util
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from talora_jax import config as config_lib
from talora_jax import sharding
from talora_jax.data.dataset import Dataset
from talora_jax.errors import UserError
from talora_jax.models.msam import trainable
from talora_jax.models.sam import SIZES
from talora_jax.run import Run, adapter_config, assemble, make_model, prepare
from talora_jax.tasks import make_task
from talora_jax.train import init_state, make_train_step

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.py"))
CLASSES = tuple(f"class {i}" for i in range(13))


def load(name):
    path = CONFIGS[0].with_name(f"{name}.py")
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


@pytest.mark.parametrize("name", [path.stem for path in CONFIGS])
def test_configs_pass_their_checks_and_are_locked(name):
    config = load(name)
    config_lib.check(config)
    with pytest.raises(AttributeError):
        config.no_such_field = 1


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        ("tasks", ("semantic", "flow"), "config.tasks: unknown 'flow', expected one of semantic"),
        ("tasks", ("depth", "depth"), "names a task twice"),
        ("model.size", "vit_x", "config.model.size: unknown 'vit_x'"),
        ("model.attention", "flash", "unknown 'flash', expected one of auto, xla, splash, cudnn"),
        ("adapter.ranks", (97, 16, 3), "p is 97, expected at least 1 and at most 96 for tiny"),
        ("adapter.qkv", (False, False, False), "switches q, k and v all off"),
        ("adapter.dropout", 1.0, "config.adapter.dropout is 1.0"),
        ("optimizer.warmup", 1.5, "a fraction of the steps"),
        ("accumulate", 3, "config.batch_size=4 is not divisible by config.accumulate=3"),
        ("steps", 0, "config.steps is 0, expected at least 1"),
    ],
)
def test_values_that_cannot_work(field, value, told):
    config = config_lib.default()
    *parents, last = field.split(".")
    node = config
    for parent in parents:
        node = node[parent]
    node[last] = value
    with pytest.raises(UserError, match=told):
        config_lib.check(config)


def test_a_kernel_of_another_machine_is_refused_before_data_is_read(config):
    config.model.attention = "splash"
    config.data.path = "nowhere"
    with pytest.raises(UserError, match="attention=splash needs a TPU, but the devices are cpu"):
        prepare(config)


def nyuv2(config):
    height, width = config.data.image_size
    tasks = tuple(make_task(name, class_names=CLASSES) for name in config.tasks)
    dataset = Dataset(
        "nyuv2_mtan", config.tasks, CLASSES, (height, width), {"train": [0] * 795, "val": []}
    )
    shapes = {"semantic": ((), jnp.int32), "depth": ((1,), jnp.float32)}
    shapes |= {name: ((3,), jnp.float32) for name in ("image", "normals")}
    batch = {
        name: jax.ShapeDtypeStruct((config.batch_size, height, width, *channels), dtype)
        for name, (channels, dtype) in shapes.items()
    }
    return sharding.make_mesh(**config.mesh), dataset, tasks, batch


def test_the_nyuv2_recipe_traces_at_full_size_without_allocating():
    config = load("nyuv2_vit_l")
    mesh, dataset, tasks, batch = nyuv2(config)
    model = nnx.eval_shape(lambda: make_model(config, tasks, SIZES["vit_l"]()))
    graphdef, learnt, frozen = nnx.split(model, trainable(adapter_config(config)), ...)
    run = Run(config, mesh, dataset, tasks, graphdef, learnt, frozen, "")
    state = jax.eval_shape(lambda x: init_state(dataclasses.replace(run, trainable=x)), learnt)
    with jax.set_mesh(mesh):
        after, scalars = jax.eval_shape(make_train_step(run), state, frozen, batch)
    assert scalars["objective"].shape == ()
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(learnt)) == 15_521_996


def test_the_nyuv2_recipe_steps_with_a_small_encoder(micro):
    config = load("nyuv2_vit_l")
    config.model.size = "micro"
    config.optimizer.warmup = 0.0
    mesh, dataset, tasks, batch = nyuv2(config)
    run = assemble(config, mesh, dataset, tasks)
    rng = np.random.default_rng(0)
    arrays = {name: rng.random(s.shape).astype(s.dtype) for name, s in batch.items()}
    with jax.set_mesh(mesh):
        state, scalars = make_train_step(run)(
            init_state(run), run.frozen, sharding.shard_batch(arrays, mesh)
        )
    assert int(state.step) == 1
    assert all(np.isfinite(float(x)) for x in scalars.values())
