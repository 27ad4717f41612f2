"""Opens a user's folder: list, check, prepare once, read."""

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import ml_collections
import tensorflow_datasets as tfds

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
    `data.dir`; a run that is killed in between leaves nothing that looks prepared. All targets are
    prepared together, for other runs, unless something is wrong with one that is not wanted.

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
    whole = _Part(root, data, settings, listed, available)
    wanted = _Part(root, data, settings, *_only(tasks, listed, settings))
    builder = whole.prepared() or wanted.prepared()
    if builder is None:
        try:
            builder = whole.prepare()
        except UserError as error:
            if wanted.tasks == whole.tasks and wanted.listed.folders == listed.folders:
                raise
            builder = wanted.prepare()
            reason = " ".join(line.strip() for line in str(error).splitlines()[:2])
            print(
                f"note: only {', '.join(wanted.tasks)} is prepared, which this run needs: {reason}",
                file=sys.stderr,
            )
    height, width, _ = builder.info.features["image"].shape
    return Dataset(
        name=data.name,
        tasks=available,
        class_names=tuple(builder.info.metadata["class_names"]),
        image_size=(height, width),
        splits={
            split: RecordsSource(builder.as_data_source(split), tasks, unpack)
            for split in whole.splits
        },
    )


def stated_class_names(data: ml_collections.ConfigDict) -> tuple[str, ...]:
    """The class names that `data` or the folder's `dataset.json` states; none if neither does.

    Raises:
      UserError: as `read_settings`.
    """
    root = Path(data.path).expanduser() if data.path else None
    return read_settings(root, data).class_names


@dataclasses.dataclass(frozen=True)
class _Part:
    """Some of a folder's targets, all they are made from, and what is prepared of them."""

    root: Path
    data: ml_collections.ConfigDict
    settings: Settings
    listed: Listing
    tasks: tuple[str, ...]

    @functools.cached_property
    def splits(self) -> dict[str, tuple[SampleFiles, ...]]:
        fraction = self.data.val_fraction
        return split_samples(self.listed.samples, self.settings, fraction, self.root)

    @functools.cached_property
    def name(self) -> str:
        digest = folder_fingerprint(self.splits, self.settings)
        return "-".join([self.root.resolve().name, *self.tasks, digest])

    def prepared(self) -> tfds.core.DatasetBuilder | None:
        """What an earlier run prepared of it, if nothing is wrong."""
        return None if self.listed.problems else prepared(Folder, self.data.dir, self.name)

    def prepare(self) -> tfds.core.DatasetBuilder:
        """Checks the files, and prepares the samples.

        Raises:
          UserError: with a line for all that is wrong.
        """
        derives_normals = "normals" in self.tasks and "normals" not in self.listed.folders
        size, num_classes = check_samples(
            self.root,
            [sample for samples in self.splits.values() for sample in samples],
            self.listed.folders,
            self.settings,
            # The intrinsics are of one size, and so are samples unless they are resized.
            one_size=derives_normals or self.settings.image_size is None,
            problems=self.listed.problems,
        )
        found = tuple(f"class {index}" for index in range(num_classes))
        config = records_config(
            name=self.name,
            title=self.root.name,
            splits=self.splits,
            settings=self.settings,
            tasks=self.tasks,
            image_size=self.settings.image_size or size,
            class_names=(self.settings.class_names or found) if "semantic" in self.tasks else (),
        )
        prepare(Folder, self.data.dir, config)
        return prepared(Folder, self.data.dir, self.name)


def _available_tasks(folders: Sequence[str], settings: Settings) -> tuple[str, ...]:
    """What the folders give or what can be derived from them."""
    return tuple(name for name in TARGETS if _made_from(name, folders, settings))


def _made_from(task: str, folders: Sequence[str], settings: Settings) -> str | None:
    """The folder that a target comes from, its own or one that it is derived from."""
    sources = [task]
    if task == "normals" and settings.intrinsics is not None:
        sources.append("depth")
    if task == "edges":
        sources += ["instance", "semantic"]
    return next((name for name in sources if name in folders), None)


def _only(
    tasks: Sequence[str], listed: Listing, settings: Settings
) -> tuple[Listing, tuple[str, ...]]:
    """What is listed of the folders that these tasks come from, and the tasks in order."""
    used = {"image", *(_made_from(task, listed.folders, settings) for task in tasks)}
    samples = {
        stem: dataclasses.replace(
            sample, files={name: path for name, path in sample.files.items() if name in used}
        )
        for stem, sample in listed.samples.items()
    }
    part = dataclasses.replace(
        listed,
        folders=tuple(name for name in listed.folders if name in used),
        samples=samples,
        problems=tuple(line for line in listed.problems if line.partition("/")[0] in used),
    )
    return part, tuple(name for name in TARGETS if name in tasks)
