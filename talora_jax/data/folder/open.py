"""Opens a user's folder: list, check, prepare once, read."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_collections

from talora_jax.data.dataset import Dataset, check_tasks
from talora_jax.data.folder.check import check_samples
from talora_jax.data.folder.listing import (
    Listing,
    folder_fingerprint,
    list_samples,
    split_samples,
)
from talora_jax.data.folder.records import Folder, records_config, unpack
from talora_jax.data.folder.settings import Settings, read_settings
from talora_jax.data.records import RecordsSource, SampleFiles, prepare, prepared
from talora_jax.errors import UserError
from talora_jax.tasks import TARGETS


def open_folder(data: ml_collections.ConfigDict, tasks: Sequence[str]) -> Dataset:
    """Opens the folder `data.path`; see `talora_jax.data.folder` for what may lie in it.

    The first time, and after any change, its files are checked and its samples prepared under
    `data.dir`; a run that is killed in between leaves nothing that looks prepared.

    Args:
      data: `config.data` with `path`, `dir` (None: TFDS's default), `val_fraction`, and those of
        the fields of `talora_jax.data.folder.settings` that it may carry.
      tasks: targets wanted.

    Raises:
      UserError: something in the folder, `dataset.json` or `data` is not as it should be.
    """
    if not data.path:
        raise UserError("config.data.path is empty; expected the directory of the data.")
    root = Path(data.path).expanduser()
    listed = list_samples(root)
    settings = read_settings(root, data)
    derives_normals = "normals" not in listed.folders and "depth" in listed.folders
    if "normals" in tasks and derives_normals and settings.intrinsics is None:
        raise UserError(
            f"{root} has no folder 'normals', and to derive them from depth the camera must be "
            "known: add intrinsics {fx, fy, cx, cy} in pixels to its dataset.json, or pass "
            "--config.data.intrinsics='(fx, fy, cx, cy)'."
        )
    available = _available_tasks(listed.folders, settings)
    check_tasks(str(root), available, tasks)
    splits = split_samples(listed.samples, settings, data.val_fraction, root)

    name = f"{root.resolve().name}-{folder_fingerprint(splits, settings)}"
    builder = prepared(Folder, data.dir, name)
    if listed.problems or builder is None:
        _prepare(root, data.dir, name, listed, settings, splits, available)
        builder = prepared(Folder, data.dir, name)
    height, width, _ = builder.info.features["image"].shape
    return Dataset(
        name=data.name,
        tasks=available,
        class_names=tuple(builder.info.metadata["class_names"]),
        image_size=(height, width),
        splits={
            split: RecordsSource(builder.as_data_source(split), tasks, unpack) for split in splits
        },
    )


def stated_class_names(data: ml_collections.ConfigDict) -> tuple[str, ...]:
    """The class names that `data` or the folder's `dataset.json` states; none if neither does.

    Raises:
      UserError: as `read_settings`.
    """
    root = Path(data.path).expanduser() if data.path else None
    return read_settings(root, data).class_names


def _available_tasks(folders: Sequence[str], settings: Settings) -> tuple[str, ...]:
    """What the folders give or what can be derived from them."""
    derivable = set()
    if "depth" in folders and settings.intrinsics is not None:
        derivable.add("normals")
    if not {"instance", "semantic"}.isdisjoint(folders):
        derivable.add("edges")
    return tuple(name for name in TARGETS if name in folders or name in derivable)


def _prepare(
    root: Path,
    data_dir: str,
    name: str,
    listed: Listing,
    settings: Settings,
    splits: Mapping[str, Sequence[SampleFiles]],
    tasks: tuple[str, ...],
) -> None:
    derives_normals = "normals" in tasks and "normals" not in listed.folders
    size, num_classes = check_samples(
        root,
        [sample for samples in splits.values() for sample in samples],
        listed.folders,
        settings,
        # The intrinsics are of one size, and so are samples unless they are resized.
        one_size=derives_normals or settings.image_size is None,
        problems=listed.problems,
    )
    found = tuple(f"class {index}" for index in range(num_classes))
    config = records_config(
        name=name,
        title=root.name,
        splits=splits,
        settings=settings,
        tasks=tasks,
        image_size=settings.image_size or size,
        class_names=(settings.class_names or found) if "semantic" in tasks else (),
    )
    prepare(Folder, data_dir, config)
