"""Trackers, of which stubs stand here with as much of their interface as is called."""

import importlib.machinery
import json
import sys
import types

import numpy as np
import pytest

from talora_jax import config as config_lib
from talora_jax import config_checks
from talora_jax.errors import UserError
from talora_jax.training import loop, trackers
from talora_jax.training.log import RunLog, read_metrics
from talora_jax.training.loop import train

PICTURE = np.zeros((2, 3, 3), np.uint8)


class Stub(types.ModuleType):
    """A tracker's package that notes what is asked of it."""

    def __init__(self, name):
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)
        self.calls = []
        self.broken = None


class Wandb(Stub):
    def Image(self, data):
        return "image", data.shape

    def init(self, *, project, name, id, resume, config, dir):
        self.calls.append(("init", project, name, id, resume, config["config.steps"], dir))
        return self

    def log(self, data, *, step):
        if self.broken:
            raise self.broken
        self.calls.append(("log", step, data))

    def finish(self):
        self.calls.append(("finish",))


class Trackio(Wandb):
    def init(self, *, project, name, resume, config, embed):
        self.calls.append(("init", project, name, resume, config["config.steps"], embed))
        return self


class Mlflow(Stub):
    def __init__(self, name):
        super().__init__(name)
        self.entities = types.SimpleNamespace(
            Param=lambda key, value: (key, value),
            Metric=lambda key, value, timestamp, step: (key, value, step),
        )
        self.experiments = {}

    def MlflowClient(self):
        return self

    def get_experiment_by_name(self, name):
        number = self.experiments.get(name)
        return number and types.SimpleNamespace(experiment_id=number)

    def create_experiment(self, name):
        self.experiments[name] = str(len(self.experiments) + 1)
        return self.experiments[name]

    def create_run(self, experiment_id, *, run_name):
        self.calls.append(("create_run", experiment_id, run_name))
        info = types.SimpleNamespace(run_id=f"run {len(self.calls)}")
        return types.SimpleNamespace(info=info)

    def update_run(self, run_id, *, status):
        self.calls.append(("update_run", run_id, status))

    def log_batch(self, run_id, *, metrics=(), params=()):
        assert len(params) <= 100 and len(metrics) <= 1000
        self.calls.append(("log_batch", run_id, *metrics, *params))

    def log_image(self, run_id, image, *, key, step):
        self.calls.append(("log_image", run_id, image.shape, key, step))

    def set_terminated(self, run_id):
        self.calls.append(("set_terminated", run_id))


@pytest.fixture
def installed(monkeypatch):
    """A stub of each, as if it were installed; nothing in the environment."""
    for name in ("WANDB_PROJECT", "MLFLOW_EXPERIMENT_NAME", "TRACKIO_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    stubs = {"wandb": Wandb("wandb"), "mlflow": Mlflow("mlflow"), "trackio": Trackio("trackio")}
    for name, stub in stubs.items():
        monkeypatch.setitem(sys.modules, name, stub)
    return stubs


def logged(kind, workdir, resume_step=0):
    """What a run of two steps tells, from a step on."""
    tracker = trackers.Tracker(kind, config_lib.default(), workdir, resume_step)
    log = RunLog(workdir, resume_step=resume_step, last_step=2, active=True, tracker=tracker)
    log.write(2, "train", {"depth/loss": 0.5, "semantic/iou/a (b)": 1.0})
    log.picture(2, "val_000", PICTURE)
    log.close()


def test_wandb_is_told_what_tensorboard_is_and_goes_on_in_its_run(installed, tmp_path):
    (tmp_path / "mine").mkdir()
    logged("wandb", tmp_path / "mine")
    calls = installed["wandb"].calls
    name = calls[0][3]
    assert calls == [
        ("init", "talora_jax", "mine", name, "allow", 1000, str(tmp_path / "mine")),
        ("log", 2, {"train/depth/loss": 0.5, "train/semantic/iou/a (b)": 1.0}),
        ("log", 2, {"val_000": ("image", (2, 3, 3))}),
        ("finish",),
    ]
    logged("wandb", tmp_path / "mine", resume_step=1)
    assert calls[4][3] == name
    # Begun anew in the same place, it is another one.
    logged("wandb", tmp_path / "mine")
    assert calls[8][3] != name


def test_trackio_the_same(installed, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_PROJECT", "rooms")
    logged("trackio", tmp_path)
    logged("trackio", tmp_path, resume_step=1)
    calls = installed["trackio"].calls
    name = calls[0][2]
    assert name.startswith(f"{tmp_path.name}-")
    assert calls[0] == calls[4] == ("init", "rooms", name, "allow", 1000, False)
    assert calls[2] == ("log", 2, {"val_000": ("image", (2, 3, 3))})


def test_mlflow_the_same(installed, tmp_path):
    logged("mlflow", tmp_path)
    logged("mlflow", tmp_path, resume_step=1)
    calls = installed["mlflow"].calls
    assert calls[0] == ("create_run", "1", tmp_path.name)
    told = [pair for call in calls[1:] if call[0] == "log_batch" for pair in call[2:]]
    assert ("config.steps", "1000") in told
    told = [
        # Its metrics' names have no brackets.
        ("log_batch", "run 1", ("train/depth/loss", 0.5, 2), ("train/semantic/iou/a _b_", 1.0, 2)),
        ("log_image", "run 1", (2, 3, 3), "val_000", 2),
        ("set_terminated", "run 1"),
    ]
    at = calls.index(("update_run", "run 1", "RUNNING"))
    assert calls[at - 3 : at] == calls[at + 1 :] == told


def test_a_tracker_that_fails_is_told_of_once_and_ends_no_run(installed, tmp_path, capsys):
    installed["trackio"].broken = ConnectionError("no route to host")
    logged("trackio", tmp_path)
    out = capsys.readouterr().out
    assert out.count("note: trackio gets no more of this run (no route to host); metrics") == 1
    assert [call[0] for call in installed["trackio"].calls] == ["init"]
    assert read_metrics(tmp_path / "metrics.jsonl")[0]["depth/loss"] == 0.5

    def init(**_):
        raise ValueError("api_key not configured")

    installed["wandb"].init = init
    with pytest.raises(UserError, match="config.tracker=wandb: api_key not configured; set it up"):
        logged("wandb", tmp_path)


def test_what_is_not_installed_is_told_before_data_are_prepared(config, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    jobs = {"tasks": loop.JOBS["tasks"]._replace(prepare=lambda config: pytest.fail("prepared"))}
    monkeypatch.setattr(loop, "JOBS", jobs)
    for kind in config_lib.TRACKERS:
        config.tracker = kind
        with pytest.raises(UserError, match=rf"pip install 'talora_jax\[{kind}\]'"):
            train(config, tmp_path)
    assert list(tmp_path.iterdir()) == []
    config.tracker = "tensorboard"
    with pytest.raises(UserError, match="config.tracker: unknown 'tensorboard', expected one of"):
        config_checks.check(config)


@pytest.mark.slow
def test_a_run_tells_its_tracker_all_that_it_logs(config, linear, installed, tmp_path):
    config.tracker = "trackio"
    train(config, tmp_path / "run")
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    begun, *calls, finished = installed["trackio"].calls
    pictures = [call for call in calls if "val_000" in call[2]]
    assert pictures == [("log", config.steps, {"val_000": ("image", pictures[0][2]["val_000"][1])})]
    assert [call for call in calls if call not in pictures] == [
        (
            *("log", row.pop("step")),
            {f"{split}/{name}": x for split in [row.pop("split")] for name, x in row.items()},
        )
        for row in rows
    ]
    assert finished == ("finish",)
    assert json.loads((tmp_path / "run" / trackers.FILE_NAME).read_text()) == {"trackio": begun[2]}
