"""Runs side by side: rows over seeds, relative improvements, what is published.

Runs that differ in the seed only are one row. Single-task runs are one row together, its parameters
and step time those of one run per task added up. Relative improvement is over the single-task runs
of the same data set and model size, in %:

  Δp  LibMTL's: the mean over tasks of the mean over a task's metrics of the signed relative change.
  Δm  ASTMT's: the same with one metric per task.

Which metrics those are, each task says (`delta_p`, `delta_m` in `talora_jax.tasks`).
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from talora_jax.errors import UserError
from talora_jax.experiments.finished_run import FinishedRun, key, settings
from talora_jax.experiments.published import published_rows
from talora_jax.tasks import TASKS

PARAMETERS, STEP_TIME = "trainable parameters", "step time (s)"
DELTA_P, DELTA_M = "Δp (%)", "Δm (%)"
SUMMARY = (PARAMETERS, STEP_TIME, DELTA_P, DELTA_M)
MEASURED = "measured"


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
      source: MEASURED, or where it is published.
      seeds: how many; None for a published row.
      values: of every column, one number per seed; a column may be missing.
    """

    method: str
    source: str
    seeds: int | None
    values: Mapping[str, Sequence[float]]


@dataclasses.dataclass(frozen=True)
class Table:
    """The rows of one data set.

    Attributes:
      tasks: of any of the runs.
      metrics: `<task>/<metric>` that are shown; the rows may have more.
      notes: what a reader must know, a sentence each.
    """

    title: str
    tasks: tuple[str, ...]
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]


def make_tables(runs: Sequence[FinishedRun], told: Sequence[FinishedRun] = ()) -> list[Table]:
    """A table per data set.

    Args:
      runs: all of them, no two of the same settings and seed.
      told: single-task runs, the only ones that Δ is relative to on their data set.

    Raises:
      UserError: `told` names two different experiments for one task.
    """
    datasets = _grouped(runs, lambda run: key(_dataset(run)))
    names = _told_apart([_dataset(group[0]) for group in datasets.values()], "data.")
    return [
        _make_table(
            " ".join((group[0].config.data.name, *name)),
            group,
            [run for run in told if key(_dataset(run)) == dataset],
        )
        for (dataset, group), name in zip(datasets.items(), names, strict=True)
    ]


def delta_p(
    tasks: Iterable[str], metrics: Mapping[str, float], baseline: Mapping[str, float]
) -> float | None:
    """LibMTL's Δp in %: None where a metric is missing, or is 0 in the baseline.

    Args:
      metrics, baseline: by `<task>/<metric>`.
    """
    return _relative({task: TASKS[task].delta_p for task in tasks}, metrics, baseline)


def delta_m(
    tasks: Iterable[str], metrics: Mapping[str, float], baseline: Mapping[str, float]
) -> float | None:
    """ASTMT's Δm in %, as `delta_p`."""
    return _relative({task: TASKS[task].delta_m for task in tasks}, metrics, baseline)


def _relative(
    signs: Mapping[str, Mapping[str, int]],
    metrics: Mapping[str, float],
    baseline: Mapping[str, float],
) -> float | None:
    changes = []
    for task, signed in signs.items():
        names = {f"{task}/{metric}": sign for metric, sign in signed.items()}
        if not all(name in metrics and baseline.get(name) for name in names):
            return None
        changes.append(
            fmean(
                sign * (metrics[name] - baseline[name]) / baseline[name]
                for name, sign in names.items()
            )
        )
    return 100 * fmean(changes)


def _make_table(title: str, runs: Sequence[FinishedRun], told: Sequence[FinishedRun]) -> Table:
    tasks = tuple(dict.fromkeys(task for run in runs for task in run.tasks))
    groups = list(_grouped(runs, lambda run: key(_row_settings(run))).values())
    groups.sort(key=lambda group: len(group[0].tasks) > 1)  # what Δ is relative to comes first
    labels = _told_apart([_row_settings(group[0]) for group in groups])
    baselines, notes = {}, []
    for size in dict.fromkeys(run.config.model.size for run in runs):
        singles = told or [
            run for run in runs if len(run.tasks) == 1 and run.config.model.size == size
        ]
        baselines[size], lacking = _baseline(singles, tasks, bool(told))
        notes += [f"no Δ for {size}: {line}" for line in lacking]

    rows = []
    for group, label in zip(groups, labels, strict=True):
        config = group[0].config
        single = len(group[0].tasks) == 1
        name = f"single-task {config.adapter.kind}" if single else config.adapter.kind
        row = _measured(" ".join((name, *label)), group, baselines[config.model.size])
        rows.append(row)
    published = published_rows(runs[0].config.data.name)
    shown = _shown(tasks, [name for row in published for name in row.metrics])
    for row in published:
        values = {name: [value] for name, value in row.metrics.items() if name in shown}
        # A relative improvement over other tasks than ours is another quantity.
        if row.tasks == set(tasks):
            beside = {DELTA_P: row.delta_p, DELTA_M: row.delta_m, PARAMETERS: row.parameters}
            values |= {name: [value] for name, value in beside.items() if value is not None}
        if values:
            rows.append(Row(row.method, row.source, None, values))
    return Table(title, tasks, shown, tuple(rows), tuple(notes))


def _measured(method: str, group: Sequence[FinishedRun], baseline: Mapping[str, float]) -> Row:
    """The row of runs that differ in the seed, and in the task if they are single-task runs."""
    tasks = tuple(dict.fromkeys(task for run in group for task in run.tasks))
    seeds = _grouped(group, lambda run: run.config.seed)
    values: dict[str, list[float]] = {}
    for members in seeds.values():
        metrics = {name: value for run in members for name, value in run.metrics.items()}
        told: dict[str, float | None] = dict(metrics)
        # Sums over single-task runs mean something only where no task is lacking.
        if len({task for run in members for task in run.tasks}) == len(tasks):
            told[PARAMETERS] = _total(run.parameters for run in members)
            told[STEP_TIME] = _total(run.step_time for run in members)
            told[DELTA_P] = delta_p(tasks, metrics, baseline)
            told[DELTA_M] = delta_m(tasks, metrics, baseline)
        for name, value in told.items():
            if value is not None:
                values.setdefault(name, []).append(value)
    return Row(method, MEASURED, len(seeds), values)


def _baseline(
    singles: Sequence[FinishedRun], tasks: Sequence[str], told: bool
) -> tuple[dict[str, float], list[str]]:
    """Single-task metrics, means over seeds, and what is in the way of having them."""
    means: dict[str, float] = {}
    lacking = []
    for task in tasks:
        runs = [run for run in singles if run.tasks == (task,)]
        experiments = _grouped(runs, lambda run: key(settings(run.config)))
        if len(experiments) == 1:
            names = {name for run in runs for name in run.metrics}
            means |= {n: fmean(r.metrics[n] for r in runs if n in r.metrics) for n in names}
        elif runs:
            these = ", ".join(str(group[0].workdir) for group in experiments.values())
            line = f"{len(experiments)} different single-task runs of {task} ({these})"
            if told:
                raise UserError(f"--baseline names {line}, expected one and its seeds")
            lacking.append(f"{line}: choose with --baseline")
    absent = [task for task in tasks if not any(run.tasks == (task,) for run in singles)]
    if absent:
        lacking.append(f"no finished single-task run of {', '.join(absent)}")
    return means, lacking


def _shown(tasks: Sequence[str], published: Sequence[str]) -> tuple[str, ...]:
    """The metrics that Δp and Δm are made of, and those published, task by task."""
    shown = []
    for task in tasks:
        compared = (*TASKS[task].delta_p, *TASKS[task].delta_m)
        shown += [f"{task}/{metric}" for metric in compared]
        shown += [name for name in published if name.startswith(f"{task}/")]
    return tuple(dict.fromkeys(shown))


def _dataset(run: FinishedRun) -> dict[str, Any]:
    return {k: v for k, v in settings(run.config).items() if k.startswith("config.data.")}


def _row_settings(run: FinishedRun) -> dict[str, Any]:
    """What all runs of a row have in common."""
    fields = settings(run.config)
    if len(run.tasks) > 1:
        return fields
    apart = ("config.tasks", "config.weighting.")
    return {k: v for k, v in fields.items() if not k.startswith(apart)} | {"single-task": True}


def _told_apart(fields: Sequence[Mapping[str, Any]], prefix: str = "") -> list[list[str]]:
    """For each of several settings, "name=value" of what not all that have the field agree on.

    But for the adapter's and the data set's kind, which are named anyway.
    """
    named = {"config.adapter.kind", "config.data.name", "single-task"}
    names = dict.fromkeys(name for one in fields for name in one if name not in named)
    values = {name: {key({"": f[name]}) for f in fields if name in f} for name in names}
    return [
        [
            f"{name.removeprefix('config.' + prefix).removeprefix('adapter.')}={_plain(one[name])}"
            for name in names
            if name in one and len(values[name]) > 1
        ]
        for one in fields
    ]


def _plain(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _grouped(
    runs: Iterable[FinishedRun], by: Callable[[FinishedRun], Any]
) -> dict[Any, list[FinishedRun]]:
    groups: dict[Any, list[FinishedRun]] = {}
    for run in runs:
        groups.setdefault(by(run), []).append(run)
    return groups


def _total(values: Iterable[float | None]) -> float | None:
    values = list(values)
    return None if None in values else sum(values)
