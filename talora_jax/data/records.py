"""Samples kept as array_record, written and read by TFDS without TensorFlow.

Arrays are stored as bytes, which array_record compresses: that reads faster than PNG.

`ShardBasedBuilder` streams the samples in their order. TFDS's better known `GeneratorBasedBuilder`
shuffles them in memory and, from 1 GB on, through TensorFlow's file system.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import functools
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from jaxtyping import Num
from numpy.typing import DTypeLike

from talora_jax import storage
from talora_jax.data.progress import progress
from talora_jax.errors import UserError, one_line, printable
from talora_jax.files import sweep
from talora_jax.tasks import target_of

Sample = dict[str, Num[np.ndarray, "H W ..."]]

# TFDS holds the samples of a shard in memory until it is written: 32 of 480×640 take 190 MB.
_SHARD = 32


@dataclasses.dataclass(frozen=True)
class SampleFiles:
    """The files that a sample is made of, by what they hold.

    Attributes:
      stem: what their names have in common.
    """

    stem: str
    files: Mapping[str, Path]


@dataclasses.dataclass(eq=False, kw_only=True)
class RecordsConfig(tfds.core.BuilderConfig):
    """What to prepare. The name says all that the samples depend on but the version of `Records`:
    of files, by the `fingerprint` of their `digests`.

    Attributes:
      title: the data's name for people.
      splits: for each split, what its samples are made of, in their order.
      make: makes a sample, as stored, of one of these; called in threads.
      stored: dtype and shape of every array of a sample, None for a length that may differ.
      notes: what is kept beside the samples, for JSON.
    """

    title: str
    splits: Mapping[str, Sequence[Any]]
    make: Callable[[Any], Sample]
    stored: Mapping[str, tuple[DTypeLike, tuple[int | None, ...]]]
    notes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


class _Info(tfds.core.DatasetInfo):
    def initialize_from_bucket(self) -> None:
        """Nothing: TFDS knows none of these data sets, and would leave an empty folder in /tmp."""


class Records(tfds.core.ShardBasedBuilder, skip_registration=True):
    """Writes the samples of a `RecordsConfig`; a data set is a subclass with a docstring.

    Run by `prepare`, read by `prepared`.
    """

    # What is prepared under another version is not read.
    VERSION = tfds.core.Version("1.0.0")

    advance: Callable[[], None]  # called for each sample written

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        features = {
            name: tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes")
            for name, (dtype, shape) in config.stored.items()
        }
        return _Info(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(config.notes),
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> Mapping[str, Sequence[Callable[[], Iterator[tuple[int, Sample]]]]]:
        shards = {}
        for split, items in self.builder_config.splits.items():
            # TFDS writes one shard after the other: they take turns at one stream of samples.
            samples = enumerate(_made(self.builder_config.make, items))
            shards[split] = [
                functools.partial(self._shard, samples) for _ in range(0, len(items), _SHARD)
            ]
        return shards

    def _shard(self, samples: Iterator[tuple[int, Sample]]) -> Iterator[tuple[int, Sample]]:
        for numbered in itertools.islice(samples, _SHARD):
            yield numbered
            self.advance()


def _made(make: Callable[[Any], Sample], items: Sequence[Any]) -> Iterator[Sample]:
    """The samples in order, made in threads that are a few ahead of who takes them."""
    workers = (os.cpu_count() or 1) + 4  # some wait for a disk
    ahead = collections.deque()
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                ahead.append(pool.submit(make, item))
                if len(ahead) > 2 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def as_declared(name: str, stored: Num[np.ndarray, "H W *c"]) -> Num[np.ndarray, "H W *c"]:
    """A target that is kept exactly, in the dtype that its task declares; the image as it is."""
    return stored if name == "image" else stored.astype(target_of(name).target_dtype, copy=False)


def read_record(records: Sequence[Any], row: int) -> Sample:
    """A stored sample.

    Raises:
      UserError: the files that it is in are damaged.
    """
    try:
        return records[row]
    except IndexError:
        raise
    except Exception as error:  # array_record raises several kinds, from OSError to RuntimeError.
        raise UserError(
            f"sample {row} cannot be read from {records.dataset_info.data_dir} ("
            f"{one_line(error)}); remove that folder, and the samples are prepared anew."
        ) from error


class RecordsSource:
    """The samples of a prepared split, with the targets of `tasks`."""

    def __init__(
        self,
        records: Sequence[Any],
        tasks: Sequence[str],
        unpack: Callable[[str, np.ndarray], np.ndarray],
    ):
        """
        Args:
          unpack: makes what `talora_jax.data.dataset.Source` promises of a stored array, by name.
        """
        self._records = records
        self._tasks = tasks
        self._unpack = unpack

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        record = read_record(self._records, index)
        return {name: self._unpack(name, record[name]) for name in ("image", *self._tasks)}


def prepare(dataset: type[Records], data_dir: str | None, config: RecordsConfig) -> None:
    """Writes the records of `config` under `data_dir` (None: TFDS's default), all or nothing.

    TFDS writes beside the final directory and renames at the end. Of processes that prepare the
    same at once, the last ones find that it is there. What killed ones left is removed.

    Raises:
      UserError: the directory cannot be written.
    """
    total = sum(len(items) for items in config.splits.values())
    with _quiet_tfds(), progress(f"Preparing {config.title}", total, "samples") as advance:
        builder = dataset(data_dir=data_dir or None, config=config, file_format="array_record")
        builder.advance = advance
        try:
            with _swept(kept_in(dataset, data_dir)):
                builder.download_and_prepare()
        except OSError as error:
            if prepared(dataset, data_dir, config.name) is None:
                raise UserError(
                    f"The samples cannot be written to {builder.data_dir} "
                    f"({error.strerror or error}); config.data.dir must name a directory that is "
                    "writable and has room for them."
                ) from error
    print(f"{config.title}: {total} samples are kept in {builder.data_dir}", file=sys.stderr)


def prepared(
    dataset: type[Records],
    data_dir: str | None,
    name: str,
    *,
    splits: Collection[str] = (),
    notes_fit: Callable[[Mapping[str, Any]], bool] = lambda notes: True,
) -> tfds.core.DatasetBuilder | None:
    """Reads what `prepare` wrote for the config of that name; None if it has not yet.

    Args:
      splits: those that must be there.
      notes_fit: whether the notes are those that were kept.

    Raises:
      UserError: what is there cannot be read, or was not written by `prepare`.
    """
    directory = kept_in(dataset, data_dir) / name / str(dataset.VERSION)
    if not directory.exists():
        return None
    try:
        _check_features(directory / "features.json")
        builder = tfds.builder_from_directory(directory)
        for split in builder.info.splits.values():
            _ = split.filepaths
        if not {*splits} <= {*builder.info.splits} or not notes_fit(builder.info.metadata):
            raise ValueError("its splits or its notes are others")
    except Exception as error:  # TFDS raises many kinds, from OSError to protobuf's.
        raise UserError(
            f"{directory} does not hold samples as they were prepared ({one_line(error)}); remove "
            "that folder, and they are prepared anew."
        ) from error
    return builder


@runtime_checkable
class Part(Protocol):
    """Some of a data set's targets."""

    def found(self) -> tfds.core.DatasetBuilder | None:
        """What is prepared of it.

        Raises:
          UserError: its files are not all there.
        """

    def prepare(self) -> tfds.core.DatasetBuilder:
        """Prepares it.

        Raises:
          UserError: a file is not as it should be, or as of `prepare`.
        """


def whole_or_wanted(
    root: Path, whole: Part, wanted: Part, others: Sequence[str]
) -> tfds.core.DatasetBuilder:
    """The records of all targets, for other runs as well, or of what is wanted where one of the
    others is not as it should be.

    Args:
      others: the targets that are not wanted.

    Raises:
      UserError: what is wanted cannot be prepared.
    """
    if not others:
        return whole.found() or whole.prepare()
    with contextlib.suppress(UserError):
        if builder := whole.found():
            return builder
    if builder := wanted.found():
        return builder
    try:
        return whole.prepare()
    except UserError as error:
        builder = wanted.prepare()
        note_left_out(root, others, error)
        return builder


def note_left_out(root: Path, others: Sequence[str], error: UserError) -> None:
    """Says that some targets are not prepared, and why."""
    print(
        f"note: of {root} only what this run needs is prepared, without {', '.join(others)}: "
        f"{printable(one_line(error), 400)}",
        file=sys.stderr,
    )


def kept_in(dataset: type[Records], data_dir: str | None) -> Path:
    """The directory that holds, by their names, what is prepared of a data set.

    Raises:
      UserError: it is in a bucket, from which array_record cannot read.
    """
    return storage.local(data_dir or tfds.core.constants.DATA_DIR) / dataset.name


def digests(paths: Iterable[Path], title: str) -> dict[Path, str]:
    """A short hash of what each file holds: a name, a size and a time may be another file's, too.

    Raises:
      UserError: a file cannot be read.
    """
    paths, found = list(paths), {}
    with (
        concurrent.futures.ThreadPoolExecutor() as pool,
        progress(f"Reading {title}", len(paths), "files") as advance,
    ):
        for path, digest in zip(paths, pool.map(_digest, paths), strict=True):
            found[path] = digest
            advance()
    return found


def contents_of(
    root: Path, files: Mapping[str, Sequence[Path]], title: str, hashes: dict[Path, str]
) -> dict[str, dict[str, str]]:
    """For each split, the `digests` of its files by their paths below the root.

    Args:
      hashes: those that are known already; the others are added.

    Raises:
      UserError: a file cannot be read.
    """
    new = [path for paths in files.values() for path in paths if path not in hashes]
    hashes.update(digests(new, title) if new else {})
    return {
        split: {path.relative_to(root).as_posix(): hashes[path] for path in paths}
        for split, paths in files.items()
    }


def fingerprint(*lines: str) -> str:
    """A short hash of some lines."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def name_of(root: Path) -> str:
    """How records of what lies in a directory are called, before what tells them apart."""
    return re.sub(r"[^\w.-]", "_", root.resolve().name, flags=re.ASCII)[:60] or "data"


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise UserError(f"{printable(path)} cannot be read ({error.strerror or error}).") from None


def _check_features(path: Path) -> None:
    """Refuses features of other classes than those of `Records`: TFDS would import, and so run,
    whatever module is named there.

    Raises:
      UserError: one is.
    """
    ours = {
        f"{feature.__module__}.{feature.__name__}"
        for feature in (tfds.features.FeaturesDict, tfds.features.Tensor)
    }
    pending = [json.loads(path.read_text(encoding="utf-8"))]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            for key, inner in value.items():
                # In the spellings that a Protocol Buffer's JSON may have, and TFDS's older one.
                if key in ("pythonClassName", "python_class_name", "type") and inner not in ours:
                    raise UserError(f"its features.json names {printable(repr(inner))}")
                pending.append(inner)
        elif isinstance(value, list):
            pending += value


@contextlib.contextmanager
def _swept(directory: Path) -> Iterator[None]:
    """Removes what preparations that were killed left below a directory, unless another one is at
    work beside it, and keeps others from removing what is written meanwhile."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory.parent, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # Another is at work, or the file system has no locks.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for left in directory.glob("*/incomplete.*"):
                if left.is_dir() and not left.is_symlink():
                    shutil.rmtree(left)
            for kept in directory.glob("*/"):
                sweep(kept)
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Keeps TFDS from telling every step, in its log and on standard output."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
