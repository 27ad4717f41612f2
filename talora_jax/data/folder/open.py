"""Opens a user's folder: list, check, prepare once, read."""

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections
import tensorflow_datasets as tfds

from talora_jax.data.dataset import Dataset, check_tasks
from talora_jax.data.folder.check import check_samples
from talora_jax.data.folder.described import list_described
from talora_jax.data.folder.listing import Listing, check_root, list_samples, split_samples
from talora_jax.data.folder.records import (
    SAMPLES,
    Folder,
    FolderSource,
    drawn_when_read,
    records_config,
)
from talora_jax.data.folder.settings import Settings, named_classes, read_settings
from talora_jax.data.folder.validity import is_mask, mask_of, masked_by
from talora_jax.data.memory import SETTINGS
from talora_jax.data.records import (
    SampleFiles,
    digests,
    fingerprint,
    kept_in,
    name_of,
    note_left_out,
    prepare,
    prepared,
)
from talora_jax.errors import UserError, printable
from talora_jax.files import write_atomically
from talora_jax.task_names import is_head, kind_of
from talora_jax.tasks import TARGETS

# Settings that say where files lie, of which `Dataset.contents` has the names, or that only
# `read` has a say in.
_PLACES = ("files", "leave_out", "table", "read", "partly", "stretch")
# Settings that files of one folder alone are read with.
_ONLY_FOR = {
    "depth_scale": "depth",
    "ignore_label": "semantic",
    "max_depth": "depth",
}


def open_folder(data: ml_collections.ConfigDict, tasks: Sequence[str]) -> Dataset:
    """Opens the folder `data.path`; see `talora_jax.data.folder` for what may lie in it.

    The first time, and after any change, its files are checked and its samples prepared under
    `data.dir`; a run that is killed in between leaves nothing that looks prepared. All targets are
    prepared together, for other runs, unless something is wrong with one that is not wanted. What
    is prepared holds for other class names, splits and labels that mean none, too.

    Args:
      data: `config.data` with `path`, `dir` (None: TFDS's default), `val_fraction`, and those of
        the fields of `talora_jax.data.folder.settings` that it may carry.
      tasks: targets wanted.

    Raises:
      UserError: something in the folder, `dataset.json` or `data` is not as it should be.
    """
    if not data.path:
        raise UserError("config.data.path is empty; expected the directory of the data.")
    root = Path(os.path.expanduser(data.path))
    settings, listed = list_all(root, data)
    derives_normals = "normals" not in listed.folders and "depth" in listed.folders
    if "normals" in tasks and derives_normals and settings.intrinsics is None:
        raise UserError(
            f"{root} has no folder 'normals', and to derive them from depth the camera must be "
            "known: add intrinsics {fx, fy, cx, cy} in pixels to its dataset.json, or pass "
            "--config.data.intrinsics='(fx, fy, cx, cy)'."
        )
    available = _made_from(listed.folders, settings)
    _check_tasks(root, listed, available, tasks)
    splits = split_samples(listed, settings, data.val_fraction, root)
    stems = sorted(sample.stem for samples in splits.values() for sample in samples)
    having = _having(root, splits, {task: available[task] for task in tasks}, settings)

    hashes: dict[Path, str] = {}
    part = functools.partial(_Part, root, data.dir, settings, listed, stems, hashes)
    wanted_from = {task: available[task] for task in tasks}
    # What is drawn when it is read is made of what must be there.
    needed = {name: name for task, name in wanted_from.items() if drawn_when_read(task, name)}
    whole, wanted = part(available), part({**wanted_from, **needed})
    builder = wanted.found()
    if builder is None:
        builder, checked = _prepare(whole, wanted)
    else:
        checked = wanted.check()
    height, width, _ = builder.info.features["image"].shape
    rows = {stem: row for row, stem in enumerate(builder.info.metadata["stems"])}
    records = builder.as_data_source(SAMPLES)
    counts = {"semantic": checked["num_classes"], **checked.get("of_heads", {})}
    class_names = {
        task: named_classes(task, settings, counts.get(task, 0))
        for task in available
        if kind_of(task) == "semantic"
    }
    return Dataset(
        name=data.name,
        tasks=tuple(available),
        class_names=class_names.pop("semantic", ()),
        head_classes=class_names,
        image_size=(height, width),
        splits={
            split: FolderSource(
                records,
                [rows[sample.stem] for sample in samples],
                wanted_from,
                settings.ignore_label,
            )
            for split, samples in splits.items()
        },
        having=having,
        contents={
            SETTINGS: wanted.depends_on((height, width)),
            **{split: wanted.contents(samples) for split, samples in splits.items()},
        },
    )


def list_all(root: Path, data: ml_collections.ConfigDict) -> tuple[Settings, Listing]:
    """What is said of a directory, and its samples: in the plain layout, or as described.

    Raises:
      UserError: as of `open_folder`.
    """
    check_root(root)
    settings = read_settings(root, data)
    described = settings.files or settings.table
    listed = (list_described if described else list_samples)(root, settings)
    for name in listed.folders:
        if masked_by(name) not in listed.folders:
            raise UserError(
                f"{root}: there are files that say where {masked_by(name)} is valid ({name}), and "
                f"none of {masked_by(name)}; expected both."
            )
    return settings, listed


def stated_class_names(data: ml_collections.ConfigDict) -> tuple[str, ...]:
    """The class names that `data` or the folder's `dataset.json` states; none if neither does.

    Raises:
      UserError: there is no such folder, or as `read_settings`.
    """
    root = Path(os.path.expanduser(data.path)) if data.path else None
    if root:
        check_root(root)
    return read_settings(root, data).class_names


@dataclasses.dataclass(frozen=True)
class _Part:
    """Some of a folder's targets, all that they are made from, and what is prepared of them.

    Attributes:
      stems: of the samples that are in a split, sorted.
      hashes: of the files that have been read so far, for all parts.
      made_from: the targets, and the folder that each is made from.
    """

    root: Path
    data_dir: str | None
    settings: Settings
    all_listed: Listing
    stems: Sequence[str]
    hashes: dict[Path, str]
    made_from: Mapping[str, str]

    @functools.cached_property
    def listed(self) -> Listing:
        read = {"image", *self.made_from.values()}
        return self.all_listed.only(read | set(map(mask_of, read)))

    @functools.cached_property
    def samples(self) -> tuple[SampleFiles, ...]:
        return tuple(self.listed.samples[stem] for stem in self.stems)

    @functools.cached_property
    def files(self) -> dict[str, list[str | None]]:
        """For each folder, a hash of the file of each sample, with its mask's if there is one, in
        the order of the stems."""
        paths = [path for sample in self.samples for path in sample.files.values()]
        unread = [path for path in paths if path not in self.hashes]
        self.hashes.update(digests(unread, printable(self.root.name)))
        return {
            folder: [self._hash(sample, folder) for sample in self.samples]
            for folder in self.listed.folders
            if not is_mask(folder)
        }

    def _hash(self, sample: SampleFiles, folder: str) -> str | None:
        if folder not in sample.files:
            return None
        mask = sample.files.get(mask_of(folder))
        return self.hashes[sample.files[folder]] + (f"-{self.hashes[mask]}" if mask else "")

    @functools.cached_property
    def _kind(self) -> str:
        """Begins the names of all that is prepared of this folder in this way."""
        how = dataclasses.replace(self.settings, class_names=(), ignore_label=None, splits=None)
        read = [repr(self.settings.read)] if self.settings.read else []
        read += ["partly"] if self.settings.partly else []
        place = repr(self.root.resolve())
        return f"{name_of(self.root)}-{fingerprint(place, repr(how), *read)}"

    def contents(self, samples: Sequence[SampleFiles]) -> dict[str, str]:
        """The hash of each file of some samples, by its path below the root."""
        paths = [
            path
            for sample in samples
            for folder, path in sample.files.items()
            if folder in self.listed.folders
        ]
        return {path.relative_to(self.root).as_posix(): self.hashes[path] for path in paths}

    def depends_on(self, image_size: tuple[int, int]) -> dict[str, Any]:
        """The settings that these targets depend on, with what was found where none was given."""
        settings = dataclasses.asdict(dataclasses.replace(self.settings, image_size=image_size))
        unused = {name for name, folder in _ONLY_FOR.items() if folder not in self.listed.folders}
        if self.made_from.get("normals") != "depth" and not self._along_ray:
            unused.add("intrinsics")
        unused |= {"class_names", "splits", *_PLACES}
        found = {name: value for name, value in settings.items() if name not in unused}
        read = {name: repr(x) for name, x in (self.settings.read or {}).items()}
        used = {name: text for name, text in read.items() if name in self.listed.folders}
        return found | ({"read": used} if used else {})

    @property
    def _along_ray(self) -> bool:
        """Whether a depth is told by the camera's intrinsics."""
        readings = self.settings.read or {}
        return any(getattr(readings.get(name), "along_ray", False) for name in self.listed.folders)

    def found(self) -> tfds.core.DatasetBuilder | None:
        """What an earlier run prepared that has these targets of these files, and maybe more."""
        if self.listed.problems:
            return None
        kept = kept_in(Folder, self.data_dir)
        for directory in sorted(kept.glob(f"{self._kind}-*")) if kept.is_dir() else []:
            builder = self._prepared(directory.name)
            if builder is not None and self._is_in(builder.info.metadata):
                return builder
        return None

    def _is_in(self, notes: Mapping[str, Any]) -> bool:
        if not self.made_from.items() <= notes["made_from"].items():
            return False
        rows = {stem: row for row, stem in enumerate(notes["stems"])}
        return rows.keys() >= set(self.stems) and all(
            (digest is not None or self.settings.partly)
            and notes["files"][folder][rows[stem]] == digest
            for folder, found in self.files.items()
            for stem, digest in zip(self.stems, found, strict=True)
        )

    def check(self) -> dict[str, Any]:
        """What `check_samples` finds: `image_size`, and the `num_classes` of `semantic` and
        `of_heads`; it is not asked twice.

        Raises:
          UserError: with a line for all that is wrong.
        """
        if not self.listed.problems:
            with contextlib.suppress(OSError, ValueError, LookupError, TypeError, RecursionError):
                kept = json.loads(self._checked.read_text(encoding="utf-8"))
                if kept["fingerprint"] == fingerprint(json.dumps(kept["checked"])):
                    return kept["checked"]
        derives_normals = self.made_from.get("normals") == "depth"
        size, classes = check_samples(
            self.root,
            self.samples,
            self.listed.folders,
            self.settings,
            # The intrinsics are of one size, and so are samples unless they are resized.
            one_size=derives_normals or self._along_ray or self.settings.image_size is None,
            problems=self.listed.problems,
        )
        checked = {"image_size": list(size), "num_classes": classes.pop("semantic", 0)}
        if classes:  # Others are kept as they were before there were heads.
            checked["of_heads"] = classes
        self.keep(checked)
        return checked

    def keep(self, checked: Mapping[str, Any]) -> None:
        """Keeps what `check` has found; where nothing can be kept, it is asked again."""
        with contextlib.suppress(OSError, UserError):
            self._checked.parent.mkdir(parents=True, exist_ok=True)
            kept = {"checked": checked, "fingerprint": fingerprint(json.dumps(checked))}
            write_atomically(self._checked, json.dumps(kept).encode())

    @functools.cached_property
    def _checked(self) -> Path:
        asked = [self._kind, self.settings, self.made_from, self.stems, self.files]
        name = f"{fingerprint(*map(repr, asked))}.json"
        return kept_in(Folder, self.data_dir) / "checked" / name

    def prepare(self, checked: Mapping[str, Any]) -> tfds.core.DatasetBuilder:
        """Prepares the samples, which have been checked."""
        notes = {"made_from": self.made_from, "stems": self.stems, "files": self.files}
        config = records_config(
            name=self._name(notes),
            title=printable(self.root.name),
            samples=self.samples,
            settings=self.settings,
            made_from=self.made_from,
            image_size=self.settings.image_size or tuple(checked["image_size"]),
            notes=notes,
        )
        prepare(Folder, self.data_dir, config)
        return self._prepared(config.name)

    def _prepared(self, name: str) -> tfds.core.DatasetBuilder | None:
        return prepared(
            Folder,
            self.data_dir,
            name,
            splits=(SAMPLES,),
            notes_fit=lambda notes: self._name(notes) == name,
        )

    def _name(self, notes: Mapping[str, Any]) -> str:
        """Of what is prepared: its notes are told by it."""
        return f"{self._kind}-{fingerprint(json.dumps(notes))}"


def _prepare(whole: _Part, wanted: _Part) -> tuple[tfds.core.DatasetBuilder, dict[str, Any]]:
    """Prepares the whole, or only what is wanted where something else is not as it should be."""
    if wanted.listed.folders == whole.listed.folders:
        checked = whole.check()
        return whole.prepare(checked), checked
    try:
        checked = whole.check()
    except UserError as error:
        checked = wanted.check()
        left_out = [name for name in whole.listed.folders if name not in wanted.listed.folders]
        note_left_out(whole.root, left_out, error)
        return wanted.prepare(checked), checked
    wanted.keep(checked)
    return whole.prepare(checked), checked


def _made_from(folders: Sequence[str], settings: Settings) -> dict[str, str]:
    """The targets that are to be had, and the folder that each is made from."""
    sources = {task: [task] for task in TARGETS}
    if settings.intrinsics is not None:
        sources["normals"].append("depth")
    sources["edges"] += ["instance", "semantic"]
    sources |= {name: [name] for name in folders if is_head(name) and not is_mask(name)}
    found = {
        task: next((name for name in names if name in folders), None)
        for task, names in sources.items()
    }
    return {task: name for task, name in found.items() if name}


def _having(
    root: Path,
    splits: Mapping[str, Sequence[SampleFiles]],
    made_from: Mapping[str, str],
    settings: Settings,
) -> dict[str, dict[str, list[int]]]:
    """`Dataset.having` of these targets.

    Raises:
      UserError: no sample of a split has one of them.
    """
    having: dict[str, dict[str, list[int]]] = {split: {} for split in splits}
    for split, samples in splits.items() if settings.partly else ():
        for task, folder in made_from.items():
            found = [i for i, sample in enumerate(samples) if folder in sample.files]
            if not found:
                raise UserError(
                    f"{root}: none of the {len(samples)} images of {split!r} has a file of "
                    f"{folder}, expected some that do: choose splits in dataset.json, or train "
                    f"without {task}."
                )
            if len(found) < len(samples):
                having[split][task] = found
    return having


def _check_tasks(
    root: Path, listed: Listing, available: Mapping[str, str], tasks: Sequence[str]
) -> None:
    """Raises a `UserError` when one of `tasks` is not to be had."""
    try:
        check_tasks(str(root), tuple(available), tasks)
    except UserError as error:
        if not listed.others:
            raise
        others = ", ".join(map(printable, listed.others[:5]))
        raise UserError(f"{error} Its folder {others} has the name of no target.") from None
