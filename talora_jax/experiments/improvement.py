"""Relative improvement over single-task training, in %.

  Δp  LibMTL's: the mean over tasks of the mean over a task's metrics of the signed relative change.
  Δm  ASTMT's: the same with one metric per task.

Here, and not with the tasks, which need JAX: a report does not.
"""

import dataclasses
from collections.abc import Iterable, Mapping
from statistics import fmean

from talora_jax.metrics import sign
from talora_jax.task_names import kind_of


@dataclasses.dataclass(frozen=True)
class Compared:
    """The metrics of a task that are compared, 1 where higher is better and -1 where lower is.

    Attributes:
      delta_p: all of Δp.
      delta_m: the one of Δm.
    """

    delta_p: Mapping[str, int]
    delta_m: Mapping[str, int]


def _signs(*metrics: str) -> dict[str, int]:
    return {metric: sign(metric) for metric in metrics}


_DEPTH = Compared(_signs("pooled/abs_err", "pooled/rel_err"), _signs("pooled/rmse"))
# By kind of task. One that is not here is in no Δ.
COMPARED = {
    "semantic": Compared(_signs("miou", "pixel_acc"), _signs("miou")),
    "depth": _DEPTH,
    "disparity": _DEPTH,
    "normals": Compared(
        _signs(
            "pooled/mean",
            "pooled/median",
            "pooled/within_11.25",
            "pooled/within_22.5",
            "pooled/within_30",
        ),
        _signs("pooled/mean"),
    ),
    "human_parts": Compared(_signs("miou"), _signs("miou")),
    "saliency": Compared(_signs("miou_max"), _signs("miou_max")),
    "edges": Compared(_signs("ods_f"), _signs("ods_f")),
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
    compared = COMPARED.get(kind_of(task))
    if compared is None:
        return {}
    return {f"{task}/{metric}": sign for metric, sign in getattr(compared, delta).items()}


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
