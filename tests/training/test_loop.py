"""The train step and the loop, in this process."""

import dataclasses
import itertools
import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from talora_jax import sharding
from talora_jax.data.dataset import Dataset
from talora_jax.data.pipeline import eval_batches
from talora_jax.errors import Stopped, UserError
from talora_jax.main import main
from talora_jax.models.adapters import TaskParam
from talora_jax.tasks import make_task
from talora_jax.training import loop
from talora_jax.training.checkpoint import Checkpoints
from talora_jax.training.evaluate import Evaluator, constant_baselines, evaluate
from talora_jax.training.log import read_metrics
from talora_jax.training.loop import train
from talora_jax.training.optim import make_schedule
from talora_jax.training.setup import Run, prepare
from talora_jax.training.step import init_state, make_train_step
from talora_jax.weighting import losses
from talora_jax.weights.adapter_file import AdapterFile


def first_batch(run):
    batches = eval_batches(
        run.dataset.splits["train"],
        tasks=run.config.tasks,
        image_size=run.dataset.image_size,
        batch_size=run.config.batch_size,
    )
    return sharding.shard_batch(next(iter(batches)), run.mesh)


def one_step(run):
    before = init_state(run)
    kept = jax.tree.map(np.asarray, before.trainable)
    after, scalars = make_train_step(run)(before, run.frozen, first_batch(run))
    return kept, after, {name: float(x) for name, x in scalars.items()}


def optimizer_state(state):
    """Adam's moments and counts by path."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state.opt_state)
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}


@pytest.mark.slow
def test_accumulated_parts_are_one_batch(config):
    config.tasks, config.weighting.task_weights = ("depth", "normals"), (1.0, 4.0)
    config.adapter.dropout = 0.0
    config.optimizer.warmup = 0.0
    # Of random numbers of an initialisation: the base's make some gradients rounding alone.
    config.model.weights = None
    run = prepare(config)
    kept, whole, scalars = one_step(run)
    config.accumulate = 2
    _, parts, scalars_of_parts = one_step(dataclasses.replace(run, config=config))
    for name, value in scalars.items():
        np.testing.assert_allclose(scalars_of_parts[name], value, rtol=1e-5, err_msg=name)
    expected, found = optimizer_state(whole), optimizer_state(parts)
    assert expected.keys() == found.keys()
    for path, moment in expected.items():
        # A bias on all keys changes no softmax: its gradient is rounding alone.
        if "['k_proj']['bias']" not in path:
            atol = 1e-4 * float(np.abs(moment).max())
            np.testing.assert_allclose(found[path], moment, rtol=0, atol=atol, err_msg=path)
    moved = [
        np.abs(a - b).max()
        for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(whole.trainable), strict=True)
    ]
    assert max(moved) > 1e-4


class Toy(nnx.Module):
    """Stands for MSam where a claim is not about it: a pixel's maps are linear in its colour."""

    def __init__(self, channels):
        self.tasks = tuple(channels)
        self.kernels = TaskParam(jnp.ones((3, sum(channels.values()))) / 10)
        self.ends = tuple(itertools.accumulate(channels.values()))[:-1]

    def __call__(self, images, *, key, trunk):
        maps = jnp.split(images @ self.kernels[...], self.ends, axis=-1)
        return dict(zip(self.tasks, maps, strict=True))

    def takes_turns(self, images, size):
        return False

    def orthogonality(self, parts):
        return jnp.zeros(())


@pytest.mark.parametrize("kind", losses.KINDS)
def test_every_weighting_trains(config, kind):
    config.tasks = ("depth", "normals")
    config.weighting.kind = kind
    config.weighting.task_weights = (1.0, 2.0)
    config.weighting.stch_warmup_epochs = 0
    config.adapter.kind = "none"
    config.optimizer.warmup = 0.0
    tasks = tuple(make_task(name, class_names=()) for name in config.tasks)
    rng = np.random.default_rng(0)
    batch = {"image": rng.random((4, 6, 8, 3), np.float32)}
    batch |= {task.name: rng.random((4, 6, 8, task.channels), np.float32) for task in tasks}
    graphdef, learnt, frozen = nnx.split(Toy({t.name: t.channels for t in tasks}), TaskParam, ...)
    dataset = Dataset("random", config.tasks, (), (6, 8), {"train": [0] * 4})
    run = Run(config, sharding.make_mesh(1, 1, 1), dataset, tasks, graphdef, learnt, frozen, "")
    state = init_state(run)
    kept = jax.tree.map(np.asarray, state)
    step = make_train_step(run)
    for _ in range(3):
        state, scalars = step(state, frozen, batch)
        scalars = {name: float(x) for name, x in scalars.items()}
        weights = [scalars[f"{task.name}/weight"] for task in tasks]
        assert min(weights) > 0
        weighted = sum(w * scalars[f"{t.name}/loss"] for w, t in zip(weights, tasks, strict=True))
        if kind != "uncertainty":
            np.testing.assert_allclose(scalars["objective"], weighted, rtol=1e-6)
    assert np.isfinite(scalars["objective"])
    before, after = kept.trainable, jax.tree.map(np.asarray, state.trainable)
    assert (before["model"]["kernels"][...] != after["model"]["kernels"][...]).all()
    for name, x in before["weighting"].items():
        assert (x != after["weighting"][name]).all()
    assert bool(before["weighting"]) == (kind == "uncertainty")
    carried = jax.tree.leaves(state.weighting)
    assert bool(carried) == (kind in ("dynamic_average", "famo", "stch"))
    moved = [(a != b).any() for a, b in zip(jax.tree.leaves(kept.weighting), carried, strict=True)]
    assert any(moved) == bool(carried)


@pytest.mark.slow
def test_balanced_gradients_train(config):
    config.tasks = ("depth", "normals")
    config.weighting.kind = "db_mtl"
    config.optimizer.warmup = 0.0
    kept, after, scalars = one_step(prepare(config))
    assert scalars["depth/weight"] > 0 and np.isfinite(scalars["objective"])
    old, new = (
        model["image_encoder"]["global_blocks"]["attn"]["adapter"]["G"][...]
        for model in (kept["model"], after.trainable["model"])
    )
    assert (old != new).any()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["lora_per_task", "full"])
def test_every_adapter_kind_trains_what_it_says(config, kind):
    config.tasks = ("depth",)
    config.weighting.task_weights = (1.0,)
    config.adapter.kind = kind
    config.optimizer.warmup = 0.0
    kept, after, _ = one_step(prepare(config))
    moved = {
        ".".join(map(str, path)): bool((variable[...] != old[...]).any())
        for (path, variable), (_, old) in zip(
            nnx.to_flat_state(after.trainable["model"]),
            nnx.to_flat_state(kept["model"]),
            strict=True,
        )
    }
    assert moved["no_mask_embed"]
    assert any("adapter" in name for name in moved) == kind.startswith("lora")
    assert ("image_encoder.patch_embed.kernel" in moved) == (kind == "full")
    unread = "mask_decoders.output_hypernetworks_mlps.1.layers.0.kernel"
    assert not moved[unread]


def test_a_run_leaves_what_it_says_and_says_when_it_is_finished(config, tmp_path, capsys):
    metrics = train(config, tmp_path / "run")
    assert {"semantic/miou", "depth/pooled/abs_err", "normals/per_image/mean"} < metrics.keys()
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left == {
        "config.json",
        "data.json",
        "log.txt",
        "metrics.jsonl",
        "tensorboard",
        "pictures",
        "checkpoints",
        "adapter.safetensors",
    }
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [(r["step"], r["split"]) for r in rows] == [
        (0, "model"),
        (0, "data"),
        (0, "val_constant"),
        *((step, "train") for step in range(1, 5)),
        (4, "val"),
    ]
    said = rows[1]
    assert said["images_looked_at"] == 10
    assert (said["semantic/classes"], said["semantic/gaps"], said["semantic/labelled"]) == (3, 0, 1)
    assert (said["depth/min"], said["depth/max"], said["normals/valid"]) == (1, 3, 1)
    updates = [r["adapter/relative_update"] for r in rows if r["split"] == "train"]
    assert len(updates) == 4 and 0 < updates[0] < updates[-1]
    file = AdapterFile.read(tmp_path / "run" / "adapter.safetensors")
    assert file.channels == {"semantic": 3, "depth": 1, "normals": 3}
    assert file.class_names == {"semantic": ["red", "green", "blue"]}
    assert len(file.base_fingerprint) == 64
    assert "no_mask_embed" in file.tensors
    assert not any("qkv" in name for name in file.tensors)
    lines = capsys.readouterr().out.splitlines()
    semantic = "semantic: class ids 0 to 2, 3 found, none missing, 0 % unlabelled"
    assert f"{semantic} (10 of 10 training images)" in lines
    assert train(config, tmp_path / "run") == {}
    assert read_metrics(tmp_path / "run" / "metrics.jsonl") == rows
    assert "This run is finished" in capsys.readouterr().out

    run = prepare(config)
    found = evaluate(run, Evaluator(run), constant_baselines(run), tmp_path / "run", print)
    assert found == metrics

    # Other data under the same names.
    data = tmp_path / "run" / "data.json"
    data.write_text(data.read_text().replace('"image/', '"image/old_', 1))
    with pytest.raises(UserError, match=r"has changed: 1 files new \(.*1 files gone \(image/old_"):
        train(config, tmp_path / "run")


def test_data_that_nobody_can_mean_are_refused_before_the_workdir_is_taken(
    config, folder, tmp_path
):
    root = shutil.copytree(folder, tmp_path / "data")
    for path in (root / "semantic").iterdir():
        mask = (np.asarray(Image.open(path)) > 0) * np.uint8(255)
        Image.fromarray(mask).save(path)
    config.data.path = str(root)
    with pytest.raises(UserError, match="masks of 0 and 255 need 1 where they have 255"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.long
def test_a_finished_run_goes_on_and_is_evaluated_on_other_data(config, folder, tmp_path, capsys):
    workdir = tmp_path / "run"
    # Without what runs long, and compiles no other programs than it runs.
    config.tasks, config.weighting.task_weights = ("semantic",), (1.0,)
    config.adapter.kind, config.steps = "none", 2
    config.data.class_names = None
    own = train(config, workdir)
    config.steps, config.log_every = 4, 1
    train(config, workdir, more_steps=True)
    assert (workdir / "adapter_2_steps.safetensors").exists()
    rows = read_metrics(workdir / "metrics.jsonl")
    steps = [(r["step"], r["split"]) for r in rows if r["step"]]
    assert steps == [(1, "train"), (2, "train"), (2, "val"), (3, "train"), (4, "train"), (4, "val")]
    # As of a run with as many steps from the start.
    schedule = make_schedule(config)
    rates = [r["learning_rate"] for r in rows if r["split"] == "train"]
    np.testing.assert_allclose(rates[2:], [schedule(2), schedule(3)], rtol=1e-6)
    kept = next(r for r in rows if (r["step"], r["split"]) == (2, "val"))
    assert kept["semantic/miou"] == own["semantic/miou"]

    other = shutil.copytree(folder, tmp_path / "other")
    for labels in (other / "semantic").iterdir():  # of one class, and named by nobody
        Image.fromarray(np.zeros((24, 32), np.uint8)).save(labels)
    before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    capsys.readouterr()
    asked = [f"--config.data.path={other}", "--split=all"]
    main(["--mode=evaluate", f"--workdir={workdir}", *asked])
    told = capsys.readouterr().out
    assert f"all (12 images) of {other} at step 4" in told and "Nothing is written" in told
    assert before == {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
    for wrong, message in (
        (["--config.optimizer.learning_rate=1"], "cannot change config.optimizer.learning_rate"),
        (["--config.data.class_names=('a','b','c')"], "the classes .* but the data has .*'a'"),
    ):
        with pytest.raises(UserError, match=message):
            main(["--mode=evaluate", f"--workdir={workdir}", *wrong])


@pytest.mark.slow
def test_a_stop_while_the_last_step_is_saved_counts(config, linear, tmp_path, monkeypatch):
    def save_and_stop(self, step, *what):
        save(self, step, *what)
        if step == config.steps:
            os.kill(os.getpid(), signal.SIGINT)

    save = Checkpoints.save
    monkeypatch.setattr(Checkpoints, "save", save_and_stop)
    config.tasks, config.weighting.task_weights = ("semantic",), (1.0,)
    config.steps = 2
    with pytest.raises(Stopped, match="stopped after step 2 of 2"):
        train(config, tmp_path)
    assert not (tmp_path / "adapter.safetensors").exists()
    assert "semantic/miou" in train(config, tmp_path)


def test_another_config_may_not_use_the_workdir(config, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    config.batch_size = 2
    with pytest.raises(UserError, match=r"config\.batch_size was 4 and is now 2\. Choose"):
        train(config, tmp_path)


@pytest.mark.slow
def test_a_non_finite_loss_stops_the_run_and_keeps_the_last_checkpoint(
    config, linear, tmp_path, monkeypatch
):
    def poisoned(run):
        train_step = make_train_step(run)

        def step(state, frozen, batch):
            if int(state.step) == 2:
                batch = batch | {"image": batch["image"] * jnp.nan}
            return train_step(state, frozen, batch)

        return step

    monkeypatch.setattr(loop, "make_train_step", poisoned)
    config.tasks, config.weighting.task_weights = ("depth",), (1.0,)
    with pytest.raises(UserError, match=r"step 3: depth/loss is nan\. The last checkpoint"):
        train(config, tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").glob("[0-9]*")] == ["2"]


def test_constant_baselines_are_those_of_the_training_split(config):
    run = prepare(config)
    baselines = constant_baselines(run)
    depths = [s["depth"] for s in map(run.dataset.splits["train"].__getitem__, range(10))]
    truth = [run.dataset.splits["val"][i]["depth"] for i in range(2)]
    error = np.abs(np.mean(depths) - np.array(truth)).mean()
    np.testing.assert_allclose(baselines["depth/pooled/abs_err"], error, rtol=1e-5)
