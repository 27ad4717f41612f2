"""Runs that go on: to more steps, from an adapter, and until a metric has no more gain."""

import json
import os
import signal

import jax
import numpy as np
import pytest

from talora_jax.data.pipeline import train_iterator
from talora_jax.errors import Stopped, UserError
from talora_jax.experiments.finished_run import read_run
from talora_jax.main import main
from talora_jax.sharding import shard_batch
from talora_jax.training import setup
from talora_jax.training.checkpoint import Checkpoints
from talora_jax.training.evaluate import Evaluator, Measured
from talora_jax.training.log import RunLog, read_metrics
from talora_jax.training.loop import train
from talora_jax.training.optim import make_schedule
from talora_jax.training.step import init_state, make_train_step
from talora_jax.weights.adapter_file import AdapterFile


@pytest.fixture
def config(config, linear):
    config.tasks, config.weighting.task_weights = ("semantic", "depth"), (1.0, 1.0)
    config.optimizer.learning_rate, config.num_pictures = 0.1, 0
    return config


def rows(workdir):
    """All that was logged, but for times."""
    found = read_metrics(workdir / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k != "step_time"} for row in found]


def stop_after(step, monkeypatch):
    """Has a run stopped by Ctrl-C while it saves this step: the next one is its last."""
    save = Checkpoints.save

    def save_and_stop(self, saved, *what):
        save(self, saved, *what)
        if saved == step:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Checkpoints, "save", save_and_stop)


def by_hand(config, steps):
    """The scalars of a run whose schedule changes: for each number of steps in `steps` one that is
    of a run of so many from the start."""
    run = setup.prepare(config)
    iterator = train_iterator(
        run.dataset.splits["train"],
        tasks=config.tasks,
        image_size=run.dataset.image_size,
        batch_size=config.batch_size,
        rows=tuple(range(config.batch_size)),
        seed=config.seed,
        augment=config.augment,
        num_threads=config.read_threads,
    )
    state, told, step_of = init_state(run), [], {}
    for total in steps:
        run.config.steps = total
        step = step_of.setdefault(total, make_train_step(run))
        with jax.set_mesh(run.mesh):
            state, scalars = step(state, run.frozen, shard_batch(next(iterator), run.mesh))
        told.append({name: float(x) for name, x in scalars.items()})
    return told


@pytest.mark.slow
def test_more_steps_are_those_of_the_schedule_that_the_run_now_has(config, tmp_path):
    config.steps = 3
    train(config, tmp_path)
    config.steps = 6
    train(config, tmp_path, more_steps=True)
    logged = [row for row in rows(tmp_path) if row["split"] == "train"]
    expected = by_hand(config, (3, 3, 3, 6, 6, 6))
    assert [row["step"] for row in logged] == [1, 2, 3, 4, 5, 6]
    for row, scalars in zip(logged, expected, strict=True):
        assert {name: row[name] for name in scalars} == scalars
    # Another one than of six steps from the start.
    assert abs(logged[2]["learning_rate"] - make_schedule(config)(2)) > 0.01


@pytest.mark.slow
def test_a_run_from_an_adapter_resumes_without_it(config, tmp_path, monkeypatch, capsys):
    train(config, tmp_path / "old")
    adapter = tmp_path / "old" / "adapter.safetensors"
    config.init, config.seed = str(adapter), 1
    told = r"config.seed is 1, but config.init names an adapter trained with 0"
    with pytest.raises(UserError, match=told):
        train(config, tmp_path / "new")
    assert not (tmp_path / "new").exists()

    config.seed, config.optimizer.warmup = 0, 0.0
    unbroken = train(config, tmp_path / "unbroken")
    assert "what tasks share: taken" in capsys.readouterr().out
    with monkeypatch.context() as patch:
        stop_after(2, patch)
        with pytest.raises(Stopped, match="after step 3 of 4"):
            train(config, tmp_path / "new")
    adapter.unlink()
    assert train(config, tmp_path / "new") == unbroken
    assert rows(tmp_path / "new") == rows(tmp_path / "unbroken")
    # It started where the old one ended, and not afresh.
    first = next(row for row in rows(tmp_path / "new") if row["split"] == "train")
    last = [row for row in rows(tmp_path / "old") if row["split"] == "train"][-1]
    assert first["objective"] < 1.1 * last["objective"] < rows(tmp_path / "old")[3]["objective"]
    main(["--mode=evaluate", f"--workdir={tmp_path / 'new'}"])
    assert f"{unbroken['semantic/miou']:.4f}" in capsys.readouterr().out


def test_a_missing_adapter_is_told_before_data_is_read(config, tmp_path):
    config.init, config.data.path = "none.safetensors", "nowhere"
    with pytest.raises(UserError, match="no adapter at none.safetensors"):
        train(config, tmp_path / "run")


ERRORS = (0.5, 0.3, 0.4, float("nan"), 0.2, 0.25, 0.2, 0.3, 0.1, 0.3, 0.05, 0.06)


@pytest.fixture
def scripted(config, monkeypatch):
    """A run whose depth is as far off as `ERRORS` say, one evaluation after the other."""
    seen = {}
    measured = Evaluator.measured

    def scripted(self, trainable):
        # By what was learnt: who comes by the same parameters again is told the same.
        key = np.asarray(trainable["kernels"][...]).tobytes()
        error = ERRORS[seen.setdefault(key, len(seen))]
        metrics, confusions = measured(self, trainable)
        return Measured({**metrics, "depth/pooled/abs_err": error}, confusions)

    monkeypatch.setattr(Evaluator, "measured", scripted)
    config.best, config.patience, config.eval_every = "depth/pooled/abs_err", 3, 1
    config.steps = 9
    return config


@pytest.mark.slow
def test_the_best_is_left_and_patience_ends_a_run(scripted, tmp_path, monkeypatch, capsys):
    workdir = tmp_path / "unbroken"
    metrics = train(scripted, workdir)
    assert metrics["depth/pooled/abs_err"] == 0.2
    said = capsys.readouterr().out
    told = "what it leaves is of step 5 of 8, the best by depth/pooled/abs_err: 0.2000"
    assert f"3 evaluations without gain, which ends the run; {told}" in said
    left = [row for row in rows(workdir) if row["split"] == "val"]
    assert [row["step"] for row in left] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert {k: left[-1][k] for k in ("best_step", "steps")} == {"best_step": 5, "steps": 9}
    assert read_run(workdir).metrics == {k: v for k, v in left[4].items() if "/" in k}
    train(scripted, workdir)
    assert "This run is finished" in capsys.readouterr().out

    # The same, stopped where the best is behind it and patience not yet at its end.
    with monkeypatch.context() as patch:
        stop_after(6, patch)
        with pytest.raises(Stopped, match="after step 7 of 9"):
            train(scripted, tmp_path / "stopped")
    assert train(scripted, tmp_path / "stopped") == metrics
    assert rows(tmp_path / "stopped") == rows(workdir)
    adapters = [
        AdapterFile.read(tmp_path / n / "adapter.safetensors") for n in ("stopped", workdir)
    ]
    kernels = adapters[0].tensors["kernels"]
    np.testing.assert_array_equal(kernels, adapters[1].tensors["kernels"])

    # Which parameters these are.
    capsys.readouterr()
    main(["--mode=evaluate", f"--workdir={workdir}", "--best"])
    assert "the best by depth/pooled/abs_err: validation at step 5" in capsys.readouterr().out

    # Patience begins anew with more steps; what is the best stays so until there is better.
    scripted.steps = 12
    assert train(scripted, workdir, more_steps=True)["depth/pooled/abs_err"] == 0.05
    assert (workdir / "adapter_9_steps.safetensors").exists()
    assert read_run(workdir).metrics["depth/pooled/abs_err"] == 0.05
    scripted.eval_every = 2
    with pytest.raises(UserError, match="config.eval_every was 1 and is now 2"):
        train(scripted, workdir)


def test_a_metric_that_there_is_not_is_told_before_the_workdir_is_taken(scripted, tmp_path):
    for best, told in (
        (
            "depth/poold/abs_err",
            "there is no depth/poold/abs_err here, expected one of sem",
        ),
        ("semantic/iou/blu", "did you mean semantic/iou/blue"),
        ("depth/pooled/abs_er", r"expected a metric that has a better way.* did you mean abs_err"),
        ("semantic/absent_classes", "expected a metric that has a better way"),
        ("normals/pooled/mean", "config.best=normals/pooled/mean: unknown 'normals'"),
    ):
        scripted.best = best
        with pytest.raises(UserError, match=told):
            train(scripted, tmp_path / "run")
    scripted.best, scripted.eval_every = "semantic/miou", 0
    with pytest.raises(UserError, match="evaluations on the way: set config.eval_every, as 1"):
        train(scripted, tmp_path / "run")
    scripted.best = None
    with pytest.raises(UserError, match="config.patience=3 waits for gains in no metric"):
        train(scripted, tmp_path / "run")
    assert not (tmp_path / "run" / "config.json").exists()


def test_an_evaluation_writes_what_it_finds_where_it_is_asked_to(
    config, tmp_path, capsys, monkeypatch
):
    workdir, out = tmp_path / "run", tmp_path / "found"
    config.steps, config.eval_every, config.num_pictures = 2, 1, 1
    pictures = []
    monkeypatch.setattr(RunLog, "picture", lambda self, *which: pictures.append(which[:2]))
    metrics = train(config, workdir)
    assert pictures == [(1, "val_000"), (2, "val_000")]
    capsys.readouterr()
    main(["--mode=evaluate", f"--workdir={workdir}", f"--out={out}"])
    told = capsys.readouterr().out
    assert "semantic, by class" in told and f"Wrote what was found in {out}" in told
    found = json.loads((out / "metrics.json").read_text())
    assert found["metrics"] == metrics and found["images"] == 2
    assert found["constant"].keys() == metrics.keys()
    assert (out / "pictures" / "000.png").read_bytes() == (
        workdir / "pictures" / "val_000.png"
    ).read_bytes()

    before = {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}
    main(["--mode=evaluate", f"--workdir={workdir}", "--split=all", f"--out={out}"])
    found = json.loads((out / "metrics.json").read_text())
    assert (found["evaluated"], found["images"]) == ("all (12 images)", 12)
    assert "Nothing is written" not in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in workdir.rglob("*") if path.is_file()}

    with pytest.raises(UserError, match="--best: the run in .* was trained without config.best"):
        main(["--mode=evaluate", f"--workdir={workdir}", "--best"])
    with pytest.raises(UserError, match="--best is of a run"):
        main(["--mode=evaluate", "--config=rooms_tiny", "--best"])
    with pytest.raises(UserError, match="--out is for --mode evaluate or predict, and --mode is t"):
        main(["--mode=train", f"--workdir={workdir}", "--out=x"])
