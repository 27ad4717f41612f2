"""What an evaluation leaves where it is asked to, `--out`:

    metrics.json       every metric, and what the best constant scores
    per_class.csv      of tasks with classes: each class's share of the pixels, IoU, constant's IoU
    confusion.csv      pixels by true and predicted class
    confusion.png      the same as a picture, each row in parts of 1
    pictures/000.png   image, truth, prediction and legends, a row for each task

With several tasks that have classes it is confusion_<task>.csv and .png.
"""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from talora_jax import storage
from talora_jax.errors import UserError
from talora_jax.files import write_atomically
from talora_jax.task_names import in_paths
from talora_jax.tasks import Task
from talora_jax.training import per_class
from talora_jax.training.panels import save_png
from talora_jax.training.per_class import ClassRow, Confusion
from talora_jax.training.workdir import on_disk


def check_out(path: str | Path) -> Path:
    """The folder to write to, which is made, before hours are spent.

    Raises:
      UserError: it is a file, in a bucket, or the disk refuses it.
    """
    out = storage.local(path)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is a file, expected a folder")
    with on_disk(out):
        out.mkdir(parents=True, exist_ok=True)
    return out


def write_findings(
    out: Path,
    about: Mapping[str, Any],
    rows: Mapping[str, Sequence[ClassRow]],
    confusions: Sequence[tuple[Task, Confusion]],
    panels: Sequence[UInt8[np.ndarray, "H W 3"]],
) -> None:
    """Writes all of it, over what is there.

    Args:
      about: the whole of metrics.json.
      rows: of each task with classes.
      confusions: the same tasks' matrices.

    Raises:
      UserError: the disk refuses.
    """
    with on_disk(out):
        write_atomically(out / "metrics.json", json.dumps(about, indent=2).encode())
        if rows:
            write_atomically(out / "per_class.csv", per_class.rows_csv(rows).encode())
        for task, confusion in confusions:
            stem = "confusion" if len(confusions) == 1 else f"confusion_{in_paths(task.name)}"
            names = per_class.class_names(task, confusion)
            text = per_class.confusion_csv(names, confusion)
            write_atomically(out / f"{stem}.csv", text.encode())
            title = f"{task.name}, {about['evaluated']} at step {about['step']}"
            picture = io.BytesIO()
            figure = per_class.confusion_picture(title, names, confusion)
            figure.savefig(picture, format="png", dpi=150)
            write_atomically(out / f"{stem}.png", picture.getvalue())
        for i, panel in enumerate(panels):
            save_png(panel, out / "pictures" / f"{i:03d}.png")
