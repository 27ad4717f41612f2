"""The tasks: what each one predicts, how it is trained, measured and drawn.

A `Task` (base.py) owns its channel count, its activation, its loss, its metrics and its picture,
and of its target what is unlabelled, how it moves when an image does, how it is read from a folder
and kept; nothing else in the code asks "is this depth?". A new task is one class and one line in
`TASKS`, and a model may have several heads of one kind (`talora_jax.task_names`). What is a target
and no task stands in `TARGETS` beside them: numbers of objects and of their parts, which a
promptable SAM learns from.

Losses and metrics are sums and counts in float32 and int32: those of two batches (devices, hosts)
added are those of the whole, a pixel without a label adds nothing, and the one division comes last.

Definitions are those of the MTAN data protocol (Liu et al. 2019, "End-to-End Multi-Task Learning
with Attention") as MTSAM (ICLR 2025) applies it, and of ASTMT (Maninis et al. 2019, "Attentive
Single-Tasking of Multiple Tasks") and its followers on PASCAL-Context. Deviations:
  - mIoU leaves out classes absent from both truth and prediction (NaN or 0 there), says how many.
  - Depth and normals are reported twice: `pooled` over all valid pixels of the set (LibMTL's way),
    and `per_image`, the mean over images with a valid pixel of each image's value (MTSAM's).
  - Angles are 2 atan2(|a - b|, |a + b|) (Kahan), not arccos(a · b), which float32 blurs near 0.
  - A predicted normal of length zero is 90 degrees off (NaN there).
  - Saliency's loss is balanced within each image, not over a batch; see `Saliency`.
  - Edges are matched one to one as BSDS does, but for what `boundaries` says, and a second time
    within a tolerance only; see `Edges.summarise`.
"""

import collections
from collections.abc import Mapping, Sequence

from talora_jax.task_names import check_name, kind_of
from talora_jax.tasks.base import Task
from talora_jax.tasks.depth import Depth, Disparity
from talora_jax.tasks.edges import Edges
from talora_jax.tasks.masks import Instance, Part
from talora_jax.tasks.normals import Normals
from talora_jax.tasks.saliency import Saliency
from talora_jax.tasks.semantic import HumanParts, Semantic, palette
from talora_jax.tasks.target import PixelTarget

__all__ = [
    "MASKS",
    "TARGETS",
    "TASKS",
    "Depth",
    "Disparity",
    "Edges",
    "HumanParts",
    "Normals",
    "Saliency",
    "Semantic",
    "Task",
    "make_task",
    "palette",
    "target_of",
    "with_classes",
]

TASKS: dict[str, type[Task]] = {
    "semantic": Semantic,
    "depth": Depth,
    "disparity": Disparity,
    "normals": Normals,
    "human_parts": HumanParts,
    "saliency": Saliency,
    "edges": Edges,
}

# What masks to ask about are made of: every number of these is one mask.
MASKS: dict[str, type[PixelTarget]] = {
    "instance": Instance,
    "part": Part,
    "semantic": Semantic,
    "human_parts": HumanParts,
}

# All that data sets hold of a pixel: both of these, tasks first, as they are at any moment.
TARGETS: Mapping[str, type[PixelTarget]] = collections.ChainMap(MASKS, TASKS)


def target_of(name: str) -> type[PixelTarget]:
    """What the target called `name` is: its kind decides, see `talora_jax.task_names`."""
    return TARGETS[kind_of(name)]


def with_classes(names: Sequence[str]) -> list[str]:
    """Those of some tasks that tell classes apart."""
    return [name for name in names if issubclass(TASKS[kind_of(name)], Semantic)]


def make_task(name: str, *, class_names: Sequence[str]) -> Task:
    """The task called `name`, a kind or a head of one, with these classes.

    >>> import talora_jax
    >>> depth = talora_jax.make_task("depth", class_names=())
    >>> depth.channels, sorted(depth.outputs(jnp.ones((1, 4, 6, 1))))
    (1, ['depth'])
    >>> talora_jax.make_task("semantic:materials", class_names=("wood", "metal")).channels
    2

    Raises:
      UserError: an unknown name, or a task that needs classes where there are none.
    """
    check_name("task", name, TASKS)
    return TASKS[kind_of(name)].make(name, class_names)
