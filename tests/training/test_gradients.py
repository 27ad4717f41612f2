"""The gradient of a step against one put together by hand from each task's own gradient."""

import dataclasses
import functools
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from benchmarks.flops import jaxpr_flops
from talora_jax import config as config_lib
from talora_jax import sharding
from talora_jax.data.dataset import Dataset
from talora_jax.models import image_encoder
from talora_jax.models.adapters import AdapterConfig
from talora_jax.models.msam import shared, trainable
from talora_jax.tasks import make_task
from talora_jax.training import checkpoint, gradients
from talora_jax.training.setup import Run, make_model
from talora_jax.training.step import TrainState
from talora_jax.weighting import gradients as balancing

TASKS = ("depth", "normals", "semantic")
CLASSES = ("a", "b")
LAMBDA = 0.01
KEY = jax.random.key(0)


def make_config(kind, adapter, parts, blocks, dropout=0.0):
    config = config_lib.default()
    config.tasks = TASKS
    config.adapter.kind = adapter
    config.adapter.ranks = (4, 3, 2)
    config.adapter.dropout = dropout
    config.adapter.blocks = blocks
    config.weighting.kind = kind
    config.orthogonal_weight = LAMBDA
    config.batch_size = 8
    config.accumulate = parts
    config.model.remat = "none"
    return config


def make_tasks():
    return tuple(make_task(name, class_names=CLASSES) for name in TASKS)


@functools.cache
def random_model(micro, adapter, blocks):
    """Random numbers in every parameter, so that no gradient is zero: what trains, and the rest."""
    config = make_config("equal", adapter, 1, blocks)
    sizes = dataclasses.replace(
        micro,
        encoder=dataclasses.replace(micro.encoder, stages=1),
        decoder=dataclasses.replace(micro.decoder, depth=1),
    )
    graphdef, learnt, frozen = nnx.split(
        nnx.eval_shape(lambda: make_model(config, make_tasks(), sizes)),
        trainable(AdapterConfig.of(config.adapter)),
        ...,
    )
    rng = np.random.default_rng(0)

    def draw(path, variable):
        noise = rng.normal(size=variable.shape).astype(np.float32)
        return variable.replace(1 + 0.1 * noise if path[-1] == "scale" else 0.2 * noise)

    return graphdef, nnx.map_state(draw, learnt), nnx.map_state(draw, frozen)


def make_run(micro, kind, adapter, parts=1, mesh=(1, 1, 1), blocks=None, dropout=0.0):
    config = make_config(kind, adapter, parts, blocks, dropout)
    dataset = Dataset("random", TASKS, CLASSES, (24, 32), {"train": [0] * 8})
    model = random_model(micro, adapter, blocks)
    return Run(config, sharding.make_mesh(*mesh), dataset, make_tasks(), *model, "")


def random_batch():
    rng = np.random.default_rng(1)
    normals = rng.normal(size=(8, 24, 32, 3))
    return {
        "image": rng.random((8, 24, 32, 3), np.float32),
        "depth": rng.random((8, 24, 32, 1), np.float32),
        "normals": (normals / np.linalg.norm(normals, axis=-1, keepdims=True)).astype(np.float32),
        "semantic": rng.integers(-1, 2, (8, 24, 32)).astype(np.int32),
    }


def compiled_gradient(run):
    """The compiled program, and what it takes."""
    params, state = gradients.init_weighting(run)
    trainable = {"model": run.trainable, "weighting": params}
    with jax.set_mesh(run.mesh):
        batch = sharding.shard_batch(random_batch(), run.mesh)
        arguments = trainable, state, run.frozen, batch, 0, KEY
        return jax.jit(gradients.make_gradient(run)).lower(*arguments).compile(), arguments


def gradient_of(run) -> gradients.Gradient:
    program, arguments = compiled_gradient(run)
    return program(*arguments)


@pytest.fixture
def in_turn(monkeypatch):
    """Tasks take turns, as those of large images do."""
    monkeypatch.setattr(image_encoder, "FILLING", 1)


@functools.cache
def balanced(micro, kind, adapter, parts, blocks) -> gradients.Gradient:
    """The gradient on one device, of all tasks together."""
    return gradient_of(make_run(micro, kind, adapter, parts, blocks=blocks))


def by_name(state) -> dict[str, np.ndarray]:
    return {".".join(map(str, path)): np.asarray(v[...]) for path, v in nnx.to_flat_state(state)}


@functools.cache
def task_gradients(micro, adapter, blocks):
    """Each task's loss and its gradient by everything that trains; the regulariser's gradient."""
    run = make_run(micro, "equal", adapter, blocks=blocks)
    batch = random_batch()

    @functools.partial(jax.value_and_grad, has_aux=True)
    def objective(learnt, weights, regulariser):
        model = nnx.merge(run.graphdef, learnt, run.frozen)
        maps = model(batch["image"])
        sums = [task.loss(maps[task.name], batch[task.name]) for task in run.tasks]
        losses = jnp.stack([total / count for total, count in sums])
        return weights @ losses + regulariser * model.orthogonality(), losses

    compiled = jax.jit(objective)
    found = [compiled(run.trainable, row, 0.0) for row in np.eye(len(TASKS), dtype=np.float32)]
    _, regulariser = compiled(run.trainable, np.zeros(len(TASKS), np.float32), 1.0)
    return found[0][0][1], [by_name(g) for _, g in found], by_name(regulariser)


def is_shared(name, adapter):
    return name.startswith("image_encoder") and not (adapter == "talora" and name.endswith("U3"))


def expected_weights(kind, losses, per_task, adapter):
    """Of the shared parameters' gradients, and of each task's own."""
    names = [name for name in per_task[0] if is_shared(name, adapter)]
    rows = np.stack([np.concatenate([g[n].ravel() for n in names]) for g in per_task])
    gram = jnp.asarray(rows @ rows.T)
    if kind == "nash_mtl":
        weights = balancing.nash_weights(gram)
        return weights, weights
    if kind == "cagrad":
        return balancing.cagrad_weights(gram, 0.4) / 1.16, np.full(3, 1 / 3)
    share = 1 / losses  # of FAMO, at the start
    return share / share.sum(), share / share.sum()


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        # A bias on all keys changes no softmax: its gradient is rounding alone.
        if "k_proj.bias" not in name:
            atol = 2e-4 * np.abs(value).max() + 1e-7
            np.testing.assert_allclose(found[name], value, rtol=0, atol=atol, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "adapter", "parts", "blocks"),
    [
        ("nash_mtl", "talora", 1, None),
        ("famo", "talora", 2, None),
        ("cagrad", "lora_shared", 2, None),
        ("nash_mtl", "talora", 1, (-1,)),
        ("cagrad", "lora_shared", 2, (-1,)),
    ],
)
def test_a_gradient_is_the_combination_of_the_tasks(micro, kind, adapter, parts, blocks):
    check_combination(micro, kind, adapter, blocks, balanced(micro, kind, adapter, parts, blocks))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "parts", "blocks"),
    [("nash_mtl", 1, None), ("nash_mtl", 2, (-1,)), ("famo", 2, None)],
)
def test_so_it_is_where_tasks_take_turns(micro, in_turn, kind, parts, blocks):
    found = gradient_of(make_run(micro, kind, "talora", parts, blocks=blocks))
    check_combination(micro, kind, "talora", blocks, found)


def check_combination(micro, kind, adapter, blocks, found):
    losses, per_task, regulariser = task_gradients(micro, adapter, blocks)
    together, own = expected_weights(kind, losses, per_task, adapter)
    expected = {}
    for name in regulariser:
        weights = together if is_shared(name, adapter) else own
        total = sum(np.float64(w) * g[name] for w, g in zip(weights, per_task, strict=True))
        expected[name] = total + LAMBDA * regulariser[name]
    for name, values, rtol in (("loss", losses, 1e-5), ("weight", together, 1e-3)):
        seen = [found.scalars[f"{task}/{name}"] for task in TASKS]
        np.testing.assert_allclose(seen, values, rtol=rtol)
    assert np.ptp(together) > 0.01
    assert_close(by_name(found.gradient["model"]), expected)


@pytest.mark.slow
def test_turns_change_nothing_of_dropout_and_trained_weights(micro, monkeypatch):
    def found(filling):
        monkeypatch.setattr(image_encoder, "FILLING", filling)
        run = make_run(micro, "uncertainty", "lora_per_task", 2, dropout=0.3)
        return gradient_of(run)

    together, in_turn = found(10**9), found(1)
    assert_close(by_name(in_turn.gradient["model"]), by_name(together.gradient["model"]))
    assert in_turn.scalars.keys() == together.scalars.keys()
    for name, value in together.scalars.items():
        np.testing.assert_allclose(in_turn.scalars[name], value, rtol=1e-5, err_msg=name)
    losses = np.array([in_turn.scalars[f"{task}/loss"] for task in TASKS])
    for gradient in (together, in_turn):
        # By s of L exp(-s) / 2 + s / 2, at s = -0.5.
        slopes = gradient.gradient["weighting"]["log_variance"]
        np.testing.assert_allclose(slopes, (1 - losses * np.exp(0.5)) / 2, rtol=1e-5)


@pytest.mark.slow
def test_activations_are_those_of_one_task_where_tasks_take_turns(micro, monkeypatch):
    def temporaries(filling):
        monkeypatch.setattr(image_encoder, "FILLING", filling)
        program, _ = compiled_gradient(make_run(micro, "equal", "talora"))
        return program.memory_analysis().temp_size_in_bytes

    assert temporaries(1) < 0.5 * temporaries(10**9)


def test_turns_compute_what_a_step_of_all_tasks_does(micro, monkeypatch):
    """But that channels are decoded again, where the model here keeps all."""

    def operations(filling):
        monkeypatch.setattr(image_encoder, "FILLING", filling)
        run = make_run(micro, "equal", "talora")
        trainable = {"model": run.trainable, "weighting": {}}
        arguments = trainable, {}, run.frozen, random_batch(), 0, KEY
        with jax.set_mesh(run.mesh):
            jaxpr = jax.make_jaxpr(gradients.make_gradient(run))(*arguments).jaxpr
        return jaxpr_flops(jaxpr, Fraction(1 + 3 + 2, len(TASKS)))

    assert 1 < operations(1) / operations(10**9) < 1.2


@pytest.mark.parametrize("adapter", ["talora", "lora_per_task"])
def test_a_task_weighs_what_is_its_own_wherever_the_task_axis_is(micro, adapter):
    run = make_run(micro, "nash_mtl", adapter)
    kind = AdapterConfig.of(run.config.adapter)
    own = nnx.filter_state(run.trainable, nnx.Not(shared(kind)))
    ones = jax.tree.map(jnp.ones_like, own)
    channels = [task.channels for task in run.tasks]
    scaled = by_name(gradients._scale_by_task(kind, ones, jnp.array([1.0, 2.0, 3.0]), channels))
    assert channels == [1, 3, 2]
    np.testing.assert_array_equal(scaled.pop("no_mask_embed")[:, 0], [1, 2, 2, 2, 3, 3])
    for name, x in scaled.items():
        if "mask_decoders" in name:
            x = np.moveaxis(x, 0, -1)
        elif name.endswith("U3"):
            x = np.moveaxis(x, -2, -1)
        else:
            assert name.endswith((".A", ".B"))
            x = np.moveaxis(x, -3, -1)
        np.testing.assert_array_equal(x, np.broadcast_to([1, 2, 3], x.shape), err_msg=name)


PROGRAM = """
import sys
import numpy as np
sys.path[:0] = ["tests", "tests/training"]
import micro, test_gradients as t

run = t.make_run(micro.MICRO, "nash_mtl", "talora", 2, (2, 1, 3))
found = t.gradient_of(run)
np.savez(sys.argv[1], **t.by_name(found.gradient["model"]))
"""


@pytest.mark.slow
def test_a_mesh_and_accumulation_change_no_balanced_gradient(micro, start_python, tmp_path):
    process = start_python("-c", PROGRAM, str(tmp_path / "found.npz"), devices=6)
    one = by_name(balanced(micro, "nash_mtl", "talora", 1, None).gradient["model"])
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    assert_close(dict(np.load(tmp_path / "found.npz")), one)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["famo", "nash_mtl"])
def test_what_balancing_carries_along_is_resumed_exactly(micro, tmp_path, kind):
    params, weighting = gradients.init_weighting(make_run(micro, kind, "talora"))
    trains = {"weighting": params, "model": jnp.zeros(3)}
    state = TrainState(jnp.zeros((), jnp.int32), trains, (), weighting)
    rng = np.random.default_rng(2)
    carried = jax.tree.map(lambda x: jnp.asarray(10 * rng.random(x.shape), x.dtype), weighting)
    checkpoints = checkpoint.Checkpoints(tmp_path)
    checkpoints.save(1, state._replace(weighting=carried), {})
    checkpoints.close()
    restored, _ = checkpoint.Checkpoints(tmp_path).restore(state)
    assert jax.tree.structure(restored.weighting) == jax.tree.structure(carried)
    for ours, theirs in zip(
        jax.tree.leaves(restored.weighting), jax.tree.leaves(carried), strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
