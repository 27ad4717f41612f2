"""NYUv2 and Cityscapes as MTAN packs them: what the two have in common.

    ROOT/train/image/0.npy   ROOT/train/label/0.npy   ROOT/train/depth/0.npy   …
    ROOT/val/image/0.npy     …

one file per sample and kind, of one size H×W, numbered from 0 (Liu et al., CVPR 2019, "End-to-End
Multi-Task Learning with Attention"; the reader of its `im2im_pred/create_dataset.py`). Both
downloads are linked to from the README of https://github.com/lorenmt/mtan.

`config.data.path` is the folder, or the zip archive of it as it was downloaded: that is read
without being unpacked. In either, train and val may lie up to three folders down. Or it is a folder
of the same samples as parquet files, as https://huggingface.co/datasets/tanganke/nyuv2 and
…/cityscapes have them (`talora_jax.data.parquet`; pyarrow is in the extra `parquet`): a row is a
sample, with the columns `image` f32 [3, H, W] in [0, 1], `segmentation` i64 [H, W], `depth` f32
[1, H, W] and, of NYUv2, `normal` f32 [3, H, W]; others, such as `noise`, are not read.

The samples are checked and written as array_record under `config.data.dir` once, all targets
together unless something is wrong with one that is not wanted; a changed download is prepared anew.

What is kept:

- image: 8 bits. The published floats in [0, 1] are taken for k / 255, which come back bit for bit
  in float32. Images of other values are rounded, which puts them off by at most 1 / 510, and a note
  on standard error counts them.
- labels: exactly. Floats are accepted if they are whole numbers. `config.data.ignore_label` and NaN
  are no label, as -1 is.
- depth, disparity, normals: as float32. Nothing is scaled, and no axis is turned, but that depth is
  divided by `config.data.depth_scale` where it is set, and above `max_depth` no measurement. A map
  that is NaN all over has none, either.
"""

import contextlib
import dataclasses
import functools
import json
import os
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import ml_collections
import numpy as np
import tensorflow_datasets as tfds

from talora_jax.data.dataset import Dataset, check_tasks
from talora_jax.data.mtan_files import (
    AnyPath,
    Meaning,
    Place,
    read_depth,
    read_image,
    read_labels,
    read_normals,
)
from talora_jax.data.parquet import Tables, find_tables
from talora_jax.data.records import (
    Records,
    RecordsConfig,
    RecordsSource,
    Sample,
    as_declared,
    contents_of,
    digests,
    fingerprint,
    name_of,
    prepare,
    prepared,
    whole_or_wanted,
)
from talora_jax.errors import UserError, one_line, printable, some
from talora_jax.tasks.target_files import BadFile

HOME = "https://github.com/lorenmt/mtan"
SPLITS = ("train", "val")

AnyRoot = AnyPath | Tables
Files = Mapping[str, Place]  # of one sample, by 'image' and task

# The columns of parquet files.
_COLUMNS = {
    "image": "image",
    "semantic": "segmentation",
    "depth": "depth",
    "disparity": "depth",
    "normals": "normal",
}

_STORED = {
    "image": (np.uint8, (3,)),
    "semantic": (np.int8, ()),
    "depth": (np.float32, (1,)),
    "disparity": (np.float32, (1,)),
    "normals": (np.float32, (3,)),
}
_NAMED = 3  # names in a sentence
_MOST_NESTED = 3  # folders that train and val may lie in


@dataclasses.dataclass(frozen=True)
class Packing:
    """One of the two data sets.

    Attributes:
      records: the class its records are kept under; its name is the one of `config.data.name`.
      title: what people call the data set.
      folders: in which folder of a split 'image' and each task lie; of several, the first there.
      class_names: of 'semantic'.
      class_names_of_tables: the same, of the parquet files, where they are others.
      published: how many samples the published splits have.
    """

    records: type[Records]
    title: str
    folders: Mapping[str, tuple[str, ...]]
    class_names: tuple[str, ...]
    published: Mapping[str, int]
    class_names_of_tables: tuple[str, ...] = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        return tuple(name for name in self.folders if name != "image")

    def only(self, tasks: Sequence[str]) -> "Packing":
        """With these targets alone."""
        folders = {name: self.folders[name] for name in self.folders if name in ("image", *tasks)}
        return dataclasses.replace(self, folders=folders)


def open_packed(packing: Packing, data: ml_collections.ConfigDict, tasks: Sequence[str]) -> Dataset:
    """Opens the data set at `data.path`, preparing it if that has not been done.

    Args:
      data: `config.data`, of which are read `path`, `dir` (None: TFDS's default), `image_size`
        (H, W that the files must have; None takes what they have), `ignore_label`, and of
        depth `depth_scale` and `max_depth`.
      tasks: targets wanted.

    Raises:
      UserError: a part of the layout is missing, or a file does not hold what it should.
    """
    check_tasks(packing.records.name, packing.tasks, tasks)
    meaning = Meaning(*map(data.get, ("ignore_label", "depth_scale", "max_depth")))
    others = tuple(name for name in packing.tasks if name not in tasks)
    with _opened(packing, data.path) as root:
        _check_title(packing, root)
        if isinstance(root, Tables) and packing.class_names_of_tables:
            packing = dataclasses.replace(packing, class_names=packing.class_names_of_tables)
        part = functools.partial(_Part, root, data.dir, data.image_size or (), meaning, {})
        wanted = part(packing.only(tasks), tasks=tuple(tasks))
        builder = whole_or_wanted(_download(root), part(packing), wanted, others)
        _note_counts(packing, root, wanted.splits)
        return Dataset(
            name=packing.records.name,
            tasks=packing.tasks,
            class_names=packing.class_names,
            image_size=wanted.size,
            splits={
                split: RecordsSource(builder.as_data_source(split), tasks, as_declared)
                for split in SPLITS
            },
            contents=wanted.contents,
            unread=tuple(
                f"{split}/{folder}/"
                for split in SPLITS
                for name in others
                for folder in packing.folders[name]
            ),
        )


@dataclasses.dataclass(frozen=True)
class _Part:
    """Some of a copy's targets, and what is prepared of them.

    Attributes:
      wanted_size: H, W that the files must have; () takes what they have.
      hashes: of the files that have been read so far, for all parts.
      packing: with these targets alone.
      tasks: these targets; empty for all that there are.
    """

    root: AnyRoot
    data_dir: str | None
    wanted_size: Sequence[int]
    meaning: Meaning
    hashes: dict[Path, str]
    packing: Packing
    tasks: tuple[str, ...] = ()

    @functools.cached_property
    def splits(self) -> dict[str, list[Files]]:
        return _list(self.packing, self.root)

    @functools.cached_property
    def size(self) -> tuple[int, int]:
        return _size(self.wanted_size, self.splits["train"][0]["image"])

    @functools.cached_property
    def contents(self) -> dict[str, dict[str, str]]:
        return _contents(self.packing, self.root, self.splits, self.hashes)

    @functools.cached_property
    def _name(self) -> str:
        """Of the records."""
        settings = "" if self.meaning == Meaning() else repr(self.meaning)
        place = _download(self.root)
        digest = fingerprint(
            repr(place.resolve()), settings, json.dumps(self.contents), *sorted(self.tasks)
        )
        return f"{name_of(place)}-{digest}"

    def found(self) -> tfds.core.DatasetBuilder | None:
        _ = self.size  # the config's, or nothing that is prepared fits
        return prepared(self.packing.records, self.data_dir, self._name)

    def prepare(self) -> tfds.core.DatasetBuilder:
        _prepare(self.packing, self.data_dir, self._name, self.splits, self.size, self.meaning)
        return self.found()


# Which files there are.


@contextlib.contextmanager
def _opened(packing: Packing, path: str) -> Iterator[AnyRoot]:
    """The folder, on disk or in an archive, that has train or val in it, or parquet files."""
    wanted = f"expected the folder or zip archive of {packing.title} that {HOME} links to"
    if not path:
        raise UserError(f"config.data.path is empty; {wanted}.")
    download = Path(os.path.expanduser(path))
    if not download.exists():
        raise UserError(f"config.data.path is {path!r}, which does not exist; {wanted}.")
    if tables := find_tables(download):
        yield tables
        return
    with contextlib.ExitStack() as stack:
        root = download
        if not download.is_dir():
            try:
                if not download.is_file():  # Reading a pipe would wait for ever.
                    raise OSError("no file")
                archive = stack.enter_context(zipfile.ZipFile(download))
                root = zipfile.Path(_with_slashes(archive))
            except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError) as error:
                raise UserError(
                    f"config.data.path is {path!r}, which is not a whole zip archive "
                    f"({one_line(error)}); {wanted}."
                ) from error
        # What lies beside train and val is no data set.
        level, folders = [root], []
        for _ in range(_MOST_NESTED + 1):
            folders = [f for f in level if any((f / split).is_dir() for split in SPLITS)]
            if folders:
                break
            level = [entry for folder in level for entry in _folders(folder)]
        if len(folders) == 1:
            yield folders[0]
            return
        if folders:
            names = some(sorted(folder.name for folder in folders), _NAMED)
            raise UserError(
                f"{download} holds {names}, each with train/ or val/; name one of them."
            )
        names = sorted(entry.name for entry in _entries(root))
        archives = [name for name in names if name.lower().endswith(".zip")]
        hint = f"; it holds {some(names, _NAMED)}" if names else ""
        if archives:
            way_on = "which may be the path itself" if root is download else "unpack that"
            hint = f"; it holds {printable(archives[0])}, {way_on}"
        raise UserError(f"{download} has neither train/ nor val/{hint}; {wanted}.")


def _with_slashes(archive: zipfile.ZipFile) -> zipfile.ZipFile:
    """The archive with folders told by slashes; some programs write them as backslashes."""
    for info in archive.filelist:
        info.filename = info.filename.replace("\\", "/")
    archive.NameToInfo = {info.filename: info for info in archive.filelist}
    return archive


def _folders(folder: AnyPath) -> list[AnyPath]:
    return [
        entry
        for entry in _entries(folder)
        if entry.is_dir() and not entry.name.startswith((".", "__MACOSX"))
    ]


def _entries(folder: AnyPath) -> list[AnyPath]:
    """What lies in a folder; nothing in one that may not be listed."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _download(root: AnyRoot) -> Path:
    """The folder or the archive that the files lie in."""
    if isinstance(root, Tables):
        return root.root
    return Path(root.root.filename) if isinstance(root, zipfile.Path) else root


def _contents(
    packing: Packing,
    root: AnyRoot,
    splits: Mapping[str, Sequence[Files]],
    hashes: dict[Path, str],
) -> dict[str, dict[str, str]]:
    """A digest of each file by split, or of the archive that they are in."""
    if isinstance(root, Tables):
        return contents_of(root.root, root.files, packing.title, hashes)
    if isinstance(root, zipfile.Path):
        archive = _download(root)
        if archive not in hashes:
            hashes.update(digests([archive], packing.title))
        return {"archive": {root.at or "/": hashes[archive]}}
    files = {
        split: [path for files in samples for path in files.values()]
        for split, samples in splits.items()
    }
    return contents_of(root, files, packing.title, hashes)


def _list(packing: Packing, root: AnyRoot) -> dict[str, list[Files]]:
    """The files of all samples of each split, in the order of their numbers.

    Raises:
      UserError: with a line for all that is missing from a folder.
    """
    if isinstance(root, Tables):
        return _list_rows(packing, root)
    there = _there(root)
    folders = {
        target: next((name for name in names if name in there), " or ".join(names))
        for target, names in packing.folders.items()
    }
    splits, problems = {}, []
    for split in SPLITS:
        found: dict[str, dict[int, AnyPath]] = {}
        for target, name in folders.items():
            if (root / split / name).is_dir():
                found[target], others = _numbered(root / split / name)
                if others:
                    problems.append(
                        f"{split}/{name} has {some(others, _NAMED)}, expected 0.npy, 1.npy, …"
                    )
        numbers = sorted(set().union(*found.values()))
        if not numbers:
            problems.append(f"{split} is missing, or has no samples 0.npy, 1.npy, …")
            continue
        for target, name in folders.items():
            if target not in found:
                problems.append(f"{split}/{name} is missing")
                continue
            lacking = [f"{number}.npy" for number in numbers if number not in found[target]]
            if lacking:
                problems.append(
                    f"{split}/{name} lacks {some(lacking, _NAMED)}, which another folder has"
                )
        splits[split] = [
            {target: files.get(number) for target, files in found.items()} for number in numbers
        ]
    if problems:
        between = "\n  " if len(problems) > 1 else " "
        title = f"{root} is not {packing.title} as MTAN packs it:"
        raise UserError(between.join([title, *problems]))
    return splits


def _list_rows(packing: Packing, root: Tables) -> dict[str, list[Files]]:
    """The cells of all samples of each split, in the order of files and rows."""
    columns = {target: _COLUMNS[target] for target in packing.folders}
    if lacking := [column for column in columns.values() if column not in root.columns]:
        raise UserError(
            f"{root} is not {packing.title} as parquet files: it has the columns "
            f"{some(sorted(root.columns), 9)}, and not {', '.join(lacking)}."
        )
    splits = {split: root.cells(split, columns) for split in SPLITS}
    if empty := [split for split, cells in splits.items() if not cells]:
        raise UserError(f"{root}: the parquet files of {empty[0]!r} have no rows.")
    return splits


def _there(root: AnyRoot) -> set[str]:
    """The names of all folders of a split, or of all columns."""
    if isinstance(root, Tables):
        return root.columns
    return {
        folder.name
        for split in SPLITS
        if (root / split).is_dir()
        for folder in (root / split).iterdir()
        if folder.is_dir()
    }


def _check_title(packing: Packing, root: AnyRoot) -> None:
    """Tells NYUv2 from Cityscapes: the one has normals, the other has not."""
    there = _there(root)
    if not {"image", "depth"} <= there or ("normal" in there) == ("normals" in packing.tasks):
        return
    title, name = (
        ("NYUv2", "nyuv2_mtan") if "normal" in there else ("Cityscapes", "cityscapes_mtan")
    )
    raise UserError(
        f"{root} is laid out as {title}, {'with' if 'normal' in there else 'without'} a folder "
        f"'normal', and not as {packing.title}; set config.data.name={name} if it is {title}."
    )


def _numbered(folder: AnyPath) -> tuple[dict[int, AnyPath], list[str]]:
    """The files 0.npy, 1.npy, … of a folder by their numbers, and the names of other npy files."""
    files, others = {}, []
    for path in folder.iterdir():
        stem, _, suffix = path.name.rpartition(".")
        if stem.isdecimal() and path.name == f"{int(stem)}.npy" and path.is_file():
            files[int(stem)] = path
        elif suffix.lower() == "npy" and not stem.startswith("."):
            others.append(path.name)
    return files, sorted(others)


def _note_counts(packing: Packing, root: AnyRoot, splits: Mapping[str, Sequence[Files]]) -> None:
    """Copies vary; whoever compares with published numbers should know."""
    if any(len(splits[split]) != packing.published[split] for split in SPLITS):
        counts = (f"{split} {len(splits[split])} ({packing.published[split]})" for split in SPLITS)
        _note(f"{root} has other numbers of samples than published: {', '.join(counts)}")


def _note(text: str) -> None:
    print(f"note: {text}", file=sys.stderr)


# How a sample is stored.


def _size(wanted: Sequence[int], image: Place) -> tuple[int, int]:
    """H, W of the images, which must be the config's."""
    try:
        size = read_image(image)[0].shape[:2]
    except BadFile as error:
        raise UserError(f"{image}: {error}.") from error
    if tuple(wanted) not in ((), size):
        raise UserError(
            f"config.data.image_size is {tuple(wanted)}, but {image} is {size}: set it to that if "
            "these are the files you mean."
        )
    return size


def _prepare(
    packing: Packing,
    data_dir: str | None,
    name: str,
    splits: Mapping[str, Sequence[Files]],
    size: tuple[int, int],
    meaning: Meaning,
) -> None:
    rounded: list[Place] = []
    config = RecordsConfig(
        name=name,
        title=packing.title,
        splits=splits,
        make=functools.partial(
            _make_sample,
            size=size,
            class_names=packing.class_names,
            meaning=meaning,
            rounded=rounded,
        ),
        stored={
            target: (dtype, (*size, *channels))
            for target, (dtype, channels) in _STORED.items()
            if target in packing.folders
        },
        notes={"class_names": packing.class_names},
    )
    prepare(packing.records, data_dir, config)
    if rounded:
        _note(
            f"{len(rounded)} images, {rounded[0]} first, are not of 8 bits: kept rounded to "
            "multiples of 1/255"
        )


def _make_sample(
    files: Files,
    size: tuple[int, int],
    class_names: Sequence[str],
    meaning: Meaning,
    rounded: list[Place],
) -> Sample:
    """Reads and checks the files of one sample; adds its image to `rounded` if it was."""
    sample = {}
    for target, path in files.items():
        try:
            match target:
                case "image":
                    values, was_rounded = read_image(path)
                    if was_rounded:
                        rounded.append(path)
                case "semantic":
                    values = read_labels(path, class_names, meaning.ignore_label)
                case "normals":
                    values = read_normals(path)
                case "depth":
                    values = read_depth(path, meaning)
                case "disparity":
                    values = read_depth(path, Meaning())  # has neither metres nor a scale
        except BadFile as error:
            raise UserError(f"{path}: {error}.") from error
        if values.shape[:2] != size:
            raise UserError(
                f"{path}: {values.shape[0]}×{values.shape[1]} (H×W), expected {size[0]}×{size[1]} "
                "as the first image."
            )
        sample[target] = values
    return sample
