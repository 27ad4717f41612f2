"""Relative improvement over single-task training, in %.

  Δp  LibMTL's: the mean over tasks of the mean over a task's metrics of the signed relative change.
  Δm  ASTMT's: the same with one metric per task.

Here, and not with the tasks, which need JAX: a report does not.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from statistics import fmean


@dataclasses.dataclass(frozen=True)
class Compared:
    """The metrics of a task that are compared, 1 where higher is better and -1 where lower is.

    Attributes:
      delta_p: all of Δp.
      delta_m: the one of Δm.
    """

    delta_p: Mapping[str, int]
    delta_m: Mapping[str, int]


_DEPTH = Compared({"pooled/abs_err": -1, "pooled/rel_err": -1}, {"pooled/rmse": -1})
# A task that is not here is in no Δ.
COMPARED = {
    "semantic": Compared({"miou": 1, "pixel_acc": 1}, {"miou": 1}),
    "depth": _DEPTH,
    "disparity": _DEPTH,
    "normals": Compared(
        {
            "pooled/mean": -1,
            "pooled/median": -1,
            "pooled/within_11.25": 1,
            "pooled/within_22.5": 1,
            "pooled/within_30": 1,
        },
        {"pooled/mean": -1},
    ),
    "human_parts": Compared({"miou": 1}, {"miou": 1}),
    "saliency": Compared({"miou_max": 1}, {"miou_max": 1}),
    "edges": Compared({"ods_f": 1}, {"ods_f": 1}),
}


def delta_p(
    tasks: Iterable[str], metrics: Mapping[str, float], baseline: Mapping[str, float]
) -> float | None:
    """LibMTL's Δp in %: None where a metric is missing, or is 0 in the baseline.

    Args:
      metrics, baseline: by `<task>/<metric>`.
    """
    return _relative([signed(task, "delta_p") for task in tasks], metrics, baseline)


def delta_m(
    tasks: Iterable[str], metrics: Mapping[str, float], baseline: Mapping[str, float]
) -> float | None:
    """ASTMT's Δm in %, as `delta_p`."""
    return _relative([signed(task, "delta_m") for task in tasks], metrics, baseline)


def signed(task: str, delta: str) -> dict[str, int]:
    """The signs of a task's metrics of Δ, by `<task>/<metric>`; nothing of a task in no Δ.

    Args:
      delta: delta_p or delta_m.
    """
    if task not in COMPARED:
        return {}
    return {f"{task}/{metric}": sign for metric, sign in getattr(COMPARED[task], delta).items()}


def _relative(
    signs: Iterable[Mapping[str, int]],
    metrics: Mapping[str, float],
    baseline: Mapping[str, float],
) -> float | None:
    changes = []
    for names in signs:
        if not names or not all(name in metrics and baseline.get(name) for name in names):
            return None
        changes.append(
            fmean(
                sign * (metrics[name] - baseline[name]) / baseline[name]
                for name, sign in names.items()
            )
        )
    return 100 * fmean(changes)
