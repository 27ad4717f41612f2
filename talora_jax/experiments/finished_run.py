"""Finished runs read back from their workdirs, and what makes two runs the same experiment."""

import dataclasses
import json
from pathlib import Path
from statistics import median
from typing import Any

import ml_collections

from talora_jax import config as config_lib
from talora_jax.errors import UserError, one_line
from talora_jax.experiments.same_data import Data, data_of
from talora_jax.training.log import is_row, read_metrics


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """What a finished run came to.

    Attributes:
      metrics: of the validation split after the last step, or with `config.best` after the step
        that the run leaves, by `<task>/<metric>`, for prompts by `<domain>/<prompt>/<answer>`.
      parameters: how many train; None in a workdir without it.
      step_time: median seconds a step; None where it was never measured.
      data: what it was trained and evaluated on.
    """

    workdir: Path
    config: ml_collections.ConfigDict
    metrics: dict[str, float]
    parameters: float | None
    step_time: float | None
    data: Data

    @property
    def tasks(self) -> tuple[str, ...]:
        """What its metrics are of: tasks, or the domains of prompts."""
        return _tasks(self.config)


def read_run(workdir: Path) -> FinishedRun:
    """The run of a workdir, from config.json, metrics.jsonl and what tells of its data.

    Raises:
      UserError: there is no run, it is not finished, or its files are not as a run leaves them.
    """
    if not workdir.is_dir():
        raise UserError(f"{workdir}: there is no such directory")
    config = config_lib.read(workdir / "config.json")
    rows = _read_rows(workdir)
    steps = [row["step"] for row in rows if row["split"] == "train"]
    evaluated = {row["step"]: row for row in rows if row["split"] == "val"}
    # With config.best the last one tells of how many steps it is the end.
    final = [row for step, row in evaluated.items() if row.get("steps", step) == config.steps]
    if not final:
        reached = f"the last logged step is {max(steps)}" if steps else "no step is logged"
        raise UserError(f"{workdir}: unfinished, {reached} of {config.steps}")
    left = evaluated.get(final[-1].get("best_step"), final[-1])
    model, data = (
        next((row for row in rows if row["split"] == split), {}) for split in ("model", "data")
    )
    # The first step compiles and has no time.
    times = [t for row in rows if row["split"] == "train" and (t := row.get("step_time"))]
    return FinishedRun(
        workdir,
        config,
        {name: value for name, value in left.items() if "/" in name},
        model.get("trainable_parameters"),
        median(times) if times else None,
        data_of(workdir, config, _tasks(config), data),
    )


def _tasks(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    return tuple(config.prompts.domains if config.trains == "prompts" else config.tasks)


def settings(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The fields that a run's numbers depend on, but for the seed: {"config.batch_size": 4, …}.

    Fields that the run never reads are left out: ranks of a kind without adapters, the
    regulariser's of a kind without Tucker factors. Runs of equal settings differ by the seed only.
    """
    fields = config_lib.flat_fields(config.to_dict())
    place = config_lib.place(config)
    fields = {name: value for name, value in fields.items() if not name.startswith(place)}
    other = ("config.tasks", "config.weighting.", "config.class_weights.")
    other = other if config.trains == "prompts" else "config.prompts."
    fields = {name: value for name, value in fields.items() if not name.startswith(other)}
    unread = {"config.seed"}
    kind = config.adapter.kind
    if kind in ("none", "full"):
        read = {"config.adapter.kind", "config.adapter.blocks"}
        unread |= {k for k in fields if k.startswith("config.adapter.")} - read
    if kind.startswith("lora"):
        fields["config.adapter.rank"] = config.adapter.ranks[0]
        unread.add("config.adapter.ranks")
    if kind != "talora" or not config.orthogonal_weight:
        unread.add("config.orthogonal_parts")
    if kind != "talora":
        unread |= {"config.orthogonal_weight", "config.adapter.init"}
    if config.weighting.kind != "fixed" or len(config.tasks) == 1:
        unread.add("config.weighting.task_weights")
    if config.data.name not in ("folder", "mix"):
        unread.add("config.data.path")  # where the download lies
    return {name: value for name, value in fields.items() if name not in unread}


def key(fields: dict[str, Any]) -> str:
    """Equal for equal fields, whether they come from a file (lists) or not (tuples)."""
    return json.dumps(fields, sort_keys=True)


def _read_rows(workdir: Path) -> list[dict]:
    path = workdir / "metrics.jsonl"
    try:
        rows = read_metrics(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {one_line(error)}") from error
    for number, row in enumerate(rows, 1):
        if not is_row(row):
            raise UserError(
                f"{path}: line {number} is not of a run: expected a step, a split and numbers"
            )
    return rows
