"""Where a run's scalars and pictures go beside TensorBoard, if `config.tracker` names it: Weights &
Biases, MLflow or Trackio.

Where and as whom is each one's own matter, told by its own variables (WANDB_MODE=offline,
MLFLOW_TRACKING_URI, TRACKIO_DIR, …). Nothing depends on it: metrics.jsonl holds every number. Of
many processes the first one tells. What a killed run had told of steps after its last checkpoint is
told again when it resumes, with the same numbers.
"""

import importlib.util
import json
import os
import re
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from talora_jax import config as config_lib
from talora_jax import storage
from talora_jax.errors import UserError, one_line
from talora_jax.files import write_atomically

FILE_NAME = "tracker.json"
_PROJECT = "talora_jax"
_MOST_PARAMETERS = 100  # of MLflow, in one request


def check(kind: str) -> None:
    """Refuses a tracker whose package is not installed.

    Raises:
      UserError: it is not.
    """
    if kind and importlib.util.find_spec(kind) is None:
        raise UserError(
            f"config.tracker={kind} needs {kind}, which is not installed: pip install "
            f"'talora_jax[{kind}]'"
        )


class Tracker:
    """A run's place in a tracker. Where that fails later on, it is told once, and training goes on.

    `tracker.json` in the workdir holds the run's name there, so that a resumed run goes on in it.

    Args:
      kind: of `config.TRACKERS`.
      config: of the run, which is shown beside it.
      resume_step: the step that is restored; 0 begins a new one.

    Raises:
      UserError: the tracker refuses.
    """

    def __init__(
        self, kind: str, config: ml_collections.ConfigDict, workdir: Path, resume_step: int
    ):
        path = workdir / FILE_NAME
        known = json.loads(path.read_text()) if resume_step and path.exists() else {}
        fields = config_lib.flat_fields(config_lib.plain(config))
        self._kind = kind
        try:
            self._place: Any = _PLACES[kind](workdir, fields, known.get(kind))
        except Exception as error:  # of a package that is not ours
            raise UserError(
                f"config.tracker={kind}: {one_line(error)}; set it up as its documentation says, "
                "or leave config.tracker empty"
            ) from error
        write_atomically(path, json.dumps(known | {kind: self._place.name}).encode())

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._tell("scalars", step, values)

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """A picture [H, W, 3] uint8."""
        self._tell("picture", step, name, picture)

    def close(self) -> None:
        self._tell("close")

    def _tell(self, what: str, *values: Any) -> None:
        if self._place is None:
            return
        try:
            getattr(self._place, what)(*values)
        except Exception as error:  # a network, a quota: no reason to lose a run
            self._place = None
            print(
                f"note: {self._kind} gets no more of this run ({one_line(error)}); metrics.jsonl "
                "and TensorBoard have it all"
            )


class _Run:
    """A run of Weights & Biases, or of Trackio, which is told as those are."""

    _run: Any
    _image: Callable[[np.ndarray], Any]

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        self._run.log({name: self._image(picture)}, step=step)

    def close(self) -> None:
        self._run.finish()


class _Wandb(_Run):
    def __init__(self, workdir: Path, fields: Mapping[str, Any], name: str | None):
        import wandb

        self.name = name or secrets.token_hex(4)
        self._image = wandb.Image
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=workdir.name,
            id=self.name,
            resume="allow",
            config=dict(fields),
            dir=None if storage.is_remote(workdir) else str(workdir),
        )


class _Mlflow:
    def __init__(self, workdir: Path, fields: Mapping[str, Any], name: str | None):
        import mlflow

        self._entities = mlflow.entities
        self._client = client = mlflow.MlflowClient()
        if name:
            client.update_run(name, status="RUNNING")
            self.name = name
            return
        project = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        experiment = client.get_experiment_by_name(project)
        number = experiment.experiment_id if experiment else client.create_experiment(project)
        self.name = client.create_run(number, run_name=workdir.name).info.run_id
        told = [mlflow.entities.Param(key, str(value)) for key, value in fields.items()]
        for start in range(0, len(told), _MOST_PARAMETERS):
            client.log_batch(self.name, params=told[start : start + _MOST_PARAMETERS])

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metric = self._entities.Metric
        # Other characters are none of a metric's name there.
        metrics = [
            metric(re.sub(r"[^\w./ :-]", "_", name), value, now, step)
            for name, value in values.items()
        ]
        self._client.log_batch(self.name, metrics=metrics)

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        self._client.log_image(self.name, picture, key=name, step=step)

    def close(self) -> None:
        self._client.set_terminated(self.name)


class _Trackio(_Run):
    def __init__(self, workdir: Path, fields: Mapping[str, Any], name: str | None):
        import trackio

        self.name = name or f"{workdir.name}-{secrets.token_hex(4)}"
        self._image = trackio.Image
        self._run = trackio.init(
            project=os.environ.get("TRACKIO_PROJECT", _PROJECT),
            name=self.name,
            resume="allow",
            config=json.loads(json.dumps(fields)),
            embed=False,
        )


_PLACES = {"wandb": _Wandb, "mlflow": _Mlflow, "trackio": _Trackio}
