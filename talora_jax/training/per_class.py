"""How each class fares, from a task's confusion matrix."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from jaxtyping import Int

from talora_jax.tasks import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Confusion = Int[np.ndarray, "C C"]  # pixels by [truth, prediction]
_NUMBERED = 25  # classes, up to which a picture has its numbers in words, too


class ClassRow(NamedTuple):
    """One class.

    Attributes:
      share: of the labelled pixels that are of this class.
      iou: intersection over union; None where it is neither in truth nor in prediction.
      constant: the same of the best constant.
    """

    name: str
    share: float
    iou: float | None
    constant: float | None


def class_names(task: Task, confusion: Confusion) -> tuple[str, ...]:
    """The names of a task's classes, or their numbers."""
    return tuple(task.class_names) or tuple(map(str, range(len(confusion))))


def class_rows(
    task: Task, confusion: Confusion, metrics: Mapping[str, float], constant: Mapping[str, float]
) -> list[ClassRow]:
    """A row for each class, in their order.

    Args:
      metrics, constant: by `<task>/iou/<class>`, among others.
    """
    pixels = confusion.sum(axis=1)
    shares = pixels / max(pixels.sum(), 1)
    rows = []
    for name, share in zip(class_names(task, confusion), shares, strict=True):
        key = f"{task.name}/iou/{name}"
        rows.append(ClassRow(name, float(share), metrics.get(key), constant.get(key)))
    return rows


def lines(task: Task, rows: Sequence[ClassRow]) -> list[str]:
    """The rows as text."""
    heads = (f"{task.name}, by class", "pixels", "IoU", "constant")
    text = [f"  {heads[0]:<34} {heads[1]:>8} {heads[2]:>8} {heads[3]:>9}"]
    for row in rows:
        iou, constant = ("–" if x is None else f"{x:.4f}" for x in (row.iou, row.constant))
        text.append(f"    {row.name:<32} {100 * row.share:>6.2f} % {iou:>8} {constant:>9}")
    return text


def rows_csv(rows: Mapping[str, Sequence[ClassRow]]) -> str:
    """The rows of each task, at full precision; what nothing is known of is empty."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("task", *ClassRow._fields))
    writer.writerows((task, *row) for task, of_task in rows.items() for row in of_task)
    return file.getvalue()


def confusion_csv(names: Sequence[str], confusion: Confusion) -> str:
    """Pixels: a line for each true class, a column for each predicted one."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(("truth \\ prediction", *names))
    for name, counts in zip(names, confusion.tolist(), strict=True):
        writer.writerow((name, *counts))
    return file.getvalue()


def confusion_picture(title: str, names: Sequence[str], confusion: Confusion) -> "Figure":
    """What the pixels of each true class are taken for, as parts of 1 in each row; the row of a
    class without pixels stays empty."""
    # Imported here: who writes no picture need not wait for it.
    from matplotlib.figure import Figure

    totals = confusion.sum(axis=1, keepdims=True)
    parts = np.ma.masked_where(np.broadcast_to(totals == 0, confusion.shape), confusion)
    parts = parts / np.maximum(totals, 1)
    side = 2.5 + 0.36 * len(names)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    drawn = axes.imshow(parts, vmin=0, vmax=1, cmap="Blues")
    axes.set_facecolor("0.9")
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("prediction")
    axes.set_ylabel("truth")
    axes.set_title(title, fontsize=10)
    for row, column in np.ndindex(*parts.shape) if len(names) <= _NUMBERED else ():
        part = parts[row, column]
        if part is not np.ma.masked and part >= 0.005:
            colour = "white" if part > 0.6 else "black"
            text = f"{100 * part:.0f}"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=colour)
    bar = figure.colorbar(drawn, ax=axes, shrink=0.7)
    bar.set_label("part of the true class's pixels (numbers: %)", fontsize=8)
    bar.ax.tick_params(labelsize=8)
    return figure
