"""Datasets by name. `open_dataset` is the way in; `pipeline` makes batches of what it gives."""

from collections.abc import Sequence

import ml_collections

from talora_jax.data.dataset import Dataset, check_tasks
from talora_jax.errors import UserError

__all__ = ["Dataset", "class_names", "open_dataset"]


def open_dataset(data: ml_collections.ConfigDict, tasks: Sequence[str]) -> Dataset:
    """Opens the dataset that `data.name` names, ready to give the targets of `tasks`.

    Args:
        data: `config.data`; the fields that a dataset reads are told where it is defined.
        tasks: names of the targets wanted; see `talora_jax.data.dataset.Source`.

    Raises:
        UserError: no dataset has that name, or the dataset lacks one of the tasks.
    """
    # Only the dataset that is opened pays for its imports.
    match data.name:
        case "cityscapes_mtan":
            from talora_jax.data.cityscapes_mtan import open_cityscapes_mtan as open_it
        case "folder":
            from talora_jax.data.folder import open_folder as open_it
        case "nyuv2_mtan":
            from talora_jax.data.nyuv2_mtan import open_nyuv2_mtan as open_it
        case "pascal_context":
            from talora_jax.data.pascal_context import open_pascal_context as open_it
        case "rooms":
            from talora_jax.data.rooms import open_rooms as open_it
        case _:
            raise UserError(
                f"config.data.name is {data.name!r}; expected 'cityscapes_mtan', 'folder', "
                "'nyuv2_mtan', 'pascal_context' or 'rooms'."
            )
    dataset = open_it(data, tasks)
    check_tasks(data.name, dataset.tasks, tasks)
    return dataset


def class_names(data: ml_collections.ConfigDict, tasks: Sequence[str]) -> tuple[str, ...]:
    """The classes of a dataset, without opening it where they are known beforehand.

    Raises:
        UserError: as `open_dataset`, of a dataset that must be opened.
    """
    match data.name:
        case "nyuv2_mtan" | "rooms":
            from talora_jax.data.nyuv2_classes import CLASS_NAMES as known
        case "cityscapes_mtan":
            from talora_jax.data.cityscapes_mtan import CLASS_NAMES as known
        case "pascal_context":
            from talora_jax.data.pascal_context.classes import SEMANTIC as known
        case "folder":
            from talora_jax.data.folder import stated_class_names

            known = stated_class_names(data)
        case _:
            known = ()
    if known or "semantic" not in tasks:
        return known
    return open_dataset(data, tasks).class_names
