"""What every dataset hands to the rest of the code: two splits of samples and what is in them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from talora_jax.errors import UserError
from talora_jax.task_names import is_head


@runtime_checkable
class Source(Protocol):
    """Random access to the samples of a split; what Grain reads from.

    A sample is a dict of arrays of one H×W, which may be another in the next sample:

        image        uint8    [H, W, 3]   RGB
        semantic     int32    [H, W]      class index, -1 = no label
        depth        float32  [H, W, 1]   metres, 0 = no measurement
        disparity    float32  [H, W, 1]   inverse depth in the data's own unit, 0 = no measurement
        normals      float32  [H, W, 3]   unit, camera frame (x right, y down, z forward; a surface
                                          that faces the camera has z < 0), all-zero = invalid
        human_parts  int32    [H, W]      0 = background, 1 to 6 = head, torso, upper arm, lower
                                          arm, upper leg, lower leg, -1 = no label; an image
                                          without people is -1 everywhere
        saliency     float32  [H, W, 1]   1 = salient, 0 = not, -1 = no label
        edges        float32  [H, W, 1]   1 = edge, 0 = none, -1 = no label
        instance     int32    [H, W]      number of an object, -1 = no label
        part         int32    [H, W]      number of a part of an object, -1 = no label

    and each head of one of these kinds as its kind, under its whole name, as `semantic:materials`;
    with the image always there and the targets as asked for when the dataset was opened. What is
    true of a target by itself its class in `talora_jax.tasks` declares: `target_dtype`,
    `target_shape`, `unlabelled`.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, np.ndarray]: ...


@dataclasses.dataclass(frozen=True)
class Dataset:
    """An opened dataset.

    Attributes:
      name: what `config.data.name` calls it.
      tasks: the targets it can give, of those of `Source`.
      class_names: of `semantic`, in the order of its class indices; empty if it has none.
      head_classes: the same of each head with classes, by its name, as `semantic:materials`.
      image_size: H, W of batches; samples of another size are stretched to it.
      splits: a source for 'train' and one for 'val'.
      contents: what tells these samples from others, for JSON: a digest of each file, by split and
        name, and under 'settings' what else they depend on; see `talora_jax.data.memory`.
      having: for each split, the targets that not all of its samples have, and the indices of
        those that do; where a sample lacks a target, it is unlabelled.
      parts: of data sets that are mixed, a line about each, for people.
      unread: how the names of files begin that belong to other targets than those asked for. Runs
        of before this was told apart remember them, too.
    """

    name: str
    tasks: tuple[str, ...]
    class_names: tuple[str, ...]
    image_size: tuple[int, int]
    splits: Mapping[str, Source]
    contents: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    having: Mapping[str, Mapping[str, Sequence[int]]] = dataclasses.field(default_factory=dict)
    parts: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    head_classes: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    def classes(self, task: str) -> tuple[str, ...]:
        """The class names to make a task with, see `make_task`."""
        return self.head_classes.get(task, ()) if is_head(task) else self.class_names

    def with_target(self, split: str, target: str) -> Sequence[int]:
        """The indices of the samples of a split that have a target, in their order."""
        everywhere = range(len(self.splits[split]))
        return self.having.get(split, {}).get(target, everywhere)


def check_tasks(name: str, available: Sequence[str], tasks: Sequence[str]) -> None:
    """Raises a `UserError` when dataset `name` lacks one of `tasks`."""
    lacking = [task for task in tasks if task not in available]
    if lacking:
        raise UserError(
            f"Dataset {name!r} has no targets for {', '.join(lacking)}; it has "
            f"{', '.join(available) or 'none of any task, images alone: add files of targets'}."
        )
