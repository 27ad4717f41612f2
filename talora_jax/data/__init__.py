"""Datasets by name. `open_dataset` is the way in; `pipeline` makes batches of what it gives.

A new data set is a module and one entry in `DATASETS`.
"""

import pkgutil
from collections.abc import Sequence
from typing import Any, NamedTuple

import ml_collections

from talora_jax.data.dataset import Dataset, check_tasks
from talora_jax.errors import check_choice
from talora_jax.task_names import is_head, kind_of

__all__ = ["DATASETS", "Dataset", "class_names", "classes_of", "fields_read", "open_dataset"]


class _Entry(NamedTuple):
    """Where a data set is defined, as 'module:name' below here: only the one that is opened pays
    for its imports.

    Attributes:
      opens: a function of `config.data` and the targets wanted that gives a `Dataset`.
      class_names: those of `semantic` without opening it: a tuple, or a function of `config.data`
        that gives one, empty where it must be opened to be asked.
      reads: the fields of `config.data` that it reads, beside those of `_ALL_READ`.
    """

    opens: str
    class_names: str
    reads: tuple[str, ...]


_ALL_READ = ("name", "dir", "image_size")
DATASETS = {
    "cityscapes_mtan": _Entry(
        "cityscapes_mtan:open_cityscapes_mtan",
        "cityscapes_mtan:class_names",
        ("path", "ignore_label"),
    ),
    "folder": _Entry(
        "folder:open_folder",
        "folder:stated_class_names",
        (
            "path",
            "description",
            "val_fraction",
            "class_names",
            "depth_scale",
            "max_depth",
            "ignore_label",
            "intrinsics",
            "partly",
        ),
    ),
    "mix": _Entry("mix:open_mix", "mix:class_names", ("path", "part_weights")),
    "nyuv2_mtan": _Entry(
        "nyuv2_mtan:open_nyuv2_mtan",
        "nyuv2_classes:CLASS_NAMES",
        ("path", "depth_scale", "max_depth", "ignore_label"),
    ),
    "pascal_context": _Entry(
        "pascal_context:open_pascal_context", "pascal_context.classes:SEMANTIC", ("path",)
    ),
    "rooms": _Entry(
        "rooms:open_rooms", "nyuv2_classes:CLASS_NAMES", ("seed", "train_frames", "val_frames")
    ),
}


def open_dataset(data: ml_collections.ConfigDict, tasks: Sequence[str]) -> Dataset:
    """Opens the dataset that `data.name` names, ready to give the targets of `tasks`.

    Args:
      data: `config.data`; the fields that a dataset reads are told where it is defined.
      tasks: names of the targets wanted; see `talora_jax.data.dataset.Source`.

    Raises:
      UserError: no dataset has that name, or the dataset lacks one of the tasks.
    """
    dataset = _resolve(_entry(data.name).opens)(data, tasks)
    check_tasks(data.name, dataset.tasks, tasks)
    return dataset


def class_names(data: ml_collections.ConfigDict, tasks: Sequence[str]) -> tuple[str, ...]:
    """The classes of a dataset, without opening it where they are known beforehand.

    Raises:
      UserError: no dataset has that name, or as `open_dataset` where it must be opened.
    """
    known = _resolve(_entry(data.name).class_names)
    if callable(known):
        known = known(data)
    if known or "semantic" not in tasks:
        return known
    return open_dataset(data, tasks).class_names


def classes_of(data: ml_collections.ConfigDict, tasks: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The class names to make each task with, as `class_names`; for heads that have classes the
    dataset is opened.

    Raises:
      UserError: as `class_names`, or as `open_dataset`.
    """
    if any(is_head(task) and kind_of(task) == "semantic" for task in tasks):
        dataset = open_dataset(data, tasks)
        return {task: dataset.classes(task) for task in tasks}
    return dict.fromkeys(tasks, class_names(data, tasks))


def fields_read(name: str) -> tuple[str, ...]:
    """The fields of `config.data` that a data set reads.

    Raises:
      UserError: no dataset has that name.
    """
    return (*_ALL_READ, *_entry(name).reads)


def _entry(name: str) -> _Entry:
    check_choice("config.data.name", name, DATASETS)
    return DATASETS[name]


def _resolve(place: str) -> Any:
    return pkgutil.resolve_name(f"{__name__}.{place}")
