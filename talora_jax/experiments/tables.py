"""Runs side by side: rows over seeds, relative improvements, what is published.

Runs are in one table if they are on the same data, see `same_data`, and train the same kind of
thing. Runs that differ in the seed only are one row. Single-task runs are one row together, its
parameters and step time those of one run per task added up. Relative improvement is over the
single-task runs of the same data set and model size, see `improvement`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from talora_jax.config import model_name
from talora_jax.data.memory import PARTS
from talora_jax.errors import UserError
from talora_jax.experiments.finished_run import FinishedRun, key, settings
from talora_jax.experiments.improvement import delta_m, delta_p, signed
from talora_jax.experiments.published import published_rows
from talora_jax.experiments.same_data import fingerprint, in_words

PARAMETERS, STEP_TIME = "trainable parameters", "step time (s)"
DELTA_P, DELTA_M = "Δp (%)", "Δm (%)"
SUMMARY = (PARAMETERS, STEP_TIME, DELTA_P, DELTA_M)
MEASURED = "measured"
# Of each domain of prompts. A plot shows the first two.
IOUS = ("box/picked", "1_click/picked", "1_click/best", "3_clicks/picked", "5_clicks/picked")


@dataclasses.dataclass(frozen=True)
class ResultRow:
    """A line of the table.

    Attributes:
      source: MEASURED, or where it is published.
      seeds: how many; None for a published row.
      values: of every column, one number per seed; a column may be missing.
      runs: that it is made of.
    """

    method: str
    source: str
    seeds: int | None
    values: Mapping[str, Sequence[float]]
    runs: tuple[FinishedRun, ...] = ()


@dataclasses.dataclass(frozen=True)
class ResultTable:
    """The rows of one data set.

    Attributes:
      tasks: of any of the runs; where prompts were trained, their domains.
      metrics: `<task>/<metric>` that are shown; the rows may have more.
      plotted: of these, the one of each panel of a plot, and 1 where higher is better, else -1.
      notes: what a reader must know, a sentence each.
    """

    title: str
    tasks: tuple[str, ...]
    metrics: tuple[str, ...]
    plotted: Mapping[str, int]
    rows: tuple[ResultRow, ...]
    notes: tuple[str, ...]


def make_tables(
    runs: Sequence[FinishedRun], baseline: Sequence[FinishedRun] = ()
) -> list[ResultTable]:
    """A table per data set and kind of training.

    Args:
      runs: all of them, no two of the same settings and seed.
      baseline: single-task runs, the only ones that Δ is relative to on their data set.

    Raises:
      UserError: `baseline` names two different experiments for one task.
    """
    datasets: list[list[FinishedRun]] = []
    for run in runs:
        fitting = (group for group in datasets if all(_comparable(run, other) for other in group))
        group = next(fitting, None)
        if group is None:
            datasets.append([run])
        else:
            group.append(run)
    names = _differences([_told_apart_by(group) for group in datasets])
    tables = []
    for group, name in zip(datasets, names, strict=True):
        parts = group[0].data.settings.get(PARTS, ())
        title = " ".join(
            (group[0].config.data.name, *([f"({', '.join(parts)})"] if parts else []), *name)
        )
        if group[0].config.trains == "prompts":
            table = _prompts_table(title, group)
        else:
            chosen = [run for run in baseline if _comparable(run, group[0])]
            table = _make_table(title, group, chosen)
        about = in_words([run.data for run in group])
        notes = (about, *table.notes) if about else table.notes
        tables.append(dataclasses.replace(table, notes=notes))
    return tables


def experiment(run: FinishedRun) -> dict[str, Any]:
    """What a run's numbers depend on, beside its data and its seed."""
    fields = settings(run.config)
    return {name: value for name, value in fields.items() if not name.startswith("config.data.")}


def _comparable(run: FinishedRun, other: FinishedRun) -> bool:
    return run.config.trains == other.config.trains and run.data.same(other.data)


def _told_apart_by(group: Sequence[FinishedRun]) -> dict[str, Any]:
    """What may differ between data sets, to be named where it does."""
    apart = ("config.data.", "config.trains")
    fields = settings(group[0].config)
    classes = {task: len(names) for run in group for task, names in run.data.class_names.items()}
    return {
        **{name: value for name, value in fields.items() if name.startswith(apart)},
        **{f"{task}_classes": number for task, number in classes.items()},
        "data": fingerprint([run.data for run in group]),
    }


def _prompts_table(title: str, runs: Sequence[FinishedRun]) -> ResultTable:
    """IoUs of promptable models: there is nothing that they are relative to."""
    domains = tuple(dict.fromkeys(domain for run in runs for domain in run.tasks))
    groups = list(_grouped(runs, lambda run: key(experiment(run))).values())
    labels = _differences([experiment(group[0]) for group in groups])
    rows = tuple(
        _measured(" ".join((group[0].config.adapter.kind, *label)), group, {})
        for group, label in zip(groups, labels, strict=True)
    )
    shown = tuple(f"{domain}/{iou}" for domain in domains for iou in IOUS)
    plotted = {f"{domain}/{iou}": 1 for domain in domains for iou in IOUS[:2]}
    return ResultTable(title, domains, shown, plotted, rows, ())


def _make_table(
    title: str, runs: Sequence[FinishedRun], chosen: Sequence[FinishedRun]
) -> ResultTable:
    tasks = tuple(dict.fromkeys(task for run in runs for task in run.tasks))
    groups = list(_grouped(runs, lambda run: key(_row_settings(run))).values())
    groups.sort(key=lambda group: len(group[0].tasks) > 1)  # what Δ is relative to comes first
    labels = _differences([_row_settings(group[0]) for group in groups])
    baselines, notes = {}, []
    for size in dict.fromkeys(model_name(run.config.model) for run in runs):
        singles = chosen or [
            run for run in runs if len(run.tasks) == 1 and model_name(run.config.model) == size
        ]
        baselines[size], lacking = _baseline(singles, tasks, bool(chosen))
        notes += [f"no Δ for {size}: {line}" for line in lacking]

    rows = []
    for group, label in zip(groups, labels, strict=True):
        config = group[0].config
        single = len(group[0].tasks) == 1
        name = f"single-task {config.adapter.kind}" if single else config.adapter.kind
        row = _measured(" ".join((name, *label)), group, baselines[model_name(config.model)])
        rows.append(row)
    data, classes = runs[0].config.data, _classes(runs)
    dataset = data.description or data.name
    published = published_rows(dataset, classes)
    if len(published) < len(published_rows(dataset)):
        notes.append(f"what is published of other than {classes} classes is left out")
    shown = _shown(tasks, [name for row in published for name in row.metrics])
    for row in published:
        values = {name: [value] for name, value in row.metrics.items() if name in shown}
        # A relative improvement over other tasks than ours is another quantity.
        if row.tasks == set(tasks):
            beside = {DELTA_P: row.delta_p, DELTA_M: row.delta_m, PARAMETERS: row.parameters}
            values |= {name: [value] for name, value in beside.items() if value is not None}
        if values:
            rows.append(ResultRow(row.method, row.source, None, values))
    plotted = {name: sign for task in tasks for name, sign in signed(task, "delta_m").items()}
    return ResultTable(title, tasks, shown, plotted, tuple(rows), tuple(notes))


def _measured(
    method: str, group: Sequence[FinishedRun], baseline: Mapping[str, float]
) -> ResultRow:
    """The row of runs that differ in the seed, and in the task if they are single-task runs."""
    tasks = tuple(dict.fromkeys(task for run in group for task in run.tasks))
    seeds = _grouped(group, lambda run: run.config.seed)
    values: dict[str, list[float]] = {}
    for members in seeds.values():
        metrics = {name: value for run in members for name, value in run.metrics.items()}
        columns: dict[str, float | None] = dict(metrics)
        # Sums over single-task runs mean something only where no task is lacking.
        if len({task for run in members for task in run.tasks}) == len(tasks):
            columns[PARAMETERS] = _total(run.parameters for run in members)
            columns[STEP_TIME] = _total(run.step_time for run in members)
            columns[DELTA_P] = delta_p(tasks, metrics, baseline)
            columns[DELTA_M] = delta_m(tasks, metrics, baseline)
        for name, value in columns.items():
            if value is not None:
                values.setdefault(name, []).append(value)
    return ResultRow(method, MEASURED, len(seeds), values, tuple(group))


def _baseline(
    singles: Sequence[FinishedRun], tasks: Sequence[str], chosen: bool
) -> tuple[dict[str, float], list[str]]:
    """Single-task metrics, means over seeds, and what is in the way of having them.

    Args:
      chosen: whether the user named the runs, and must name them well.
    """
    means: dict[str, float] = {}
    lacking = []
    for task in tasks:
        runs = [run for run in singles if run.tasks == (task,)]
        experiments = _grouped(runs, lambda run: key(experiment(run)))
        if len(experiments) == 1:
            names = {name for run in runs for name in run.metrics}
            means |= {n: fmean(r.metrics[n] for r in runs if n in r.metrics) for n in names}
        elif runs:
            these = ", ".join(str(group[0].workdir) for group in experiments.values())
            line = f"{len(experiments)} different single-task runs of {task} ({these})"
            if chosen:
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
        shown += [*signed(task, "delta_p"), *signed(task, "delta_m")]
        shown += [name for name in published if name.startswith(f"{task}/")]
    return tuple(dict.fromkeys(shown))


def _row_settings(run: FinishedRun) -> dict[str, Any]:
    """What all runs of a row have in common."""
    fields = experiment(run)
    if len(run.tasks) > 1:
        return fields
    apart = ("config.tasks", "config.weighting.", "config.class_weights.")
    return {k: v for k, v in fields.items() if not k.startswith(apart)} | {"single-task": True}


def _classes(runs: Sequence[FinishedRun]) -> int | None:
    """How many classes `semantic` has; None if nothing tells."""
    found = (run.data.class_names.get("semantic") for run in runs)
    return next((len(names) for names in found if names), None)


def _differences(settings_of: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """For each of several settings, "name=value" of the fields that not all who have them agree on.

    But for the adapter's and the data set's kind, which are named anyway.
    """
    values: dict[str, set[str]] = {}
    for fields in settings_of:
        for name, value in fields.items():
            values.setdefault(name, set()).add(key({"value": value}))
    for name in ("config.adapter.kind", "config.data.name", "single-task"):
        values.pop(name, None)
    differing = [name for name, found in values.items() if len(found) > 1]
    return [
        [f"{_short(name)}={_plain(fields[name])}" for name in differing if name in fields]
        for fields in settings_of
    ]


def _short(name: str) -> str:
    return name.removeprefix("config.").removeprefix("data.").removeprefix("adapter.")


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
