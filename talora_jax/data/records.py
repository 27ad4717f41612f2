"""Samples kept as array_record, written and read by TFDS without TensorFlow.

Arrays are stored as bytes, which array_record compresses: that reads faster than PNG.

`ShardBasedBuilder` streams the samples in their order. TFDS's better known `GeneratorBasedBuilder`
shuffles them in memory and, from 1 GB on, through TensorFlow's file system.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import io
import itertools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from jaxtyping import Num
from numpy.typing import DTypeLike

from talora_jax.data.progress import progress
from talora_jax.errors import UserError
from talora_jax.tasks import TARGETS

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
    of files, by their `fingerprint`.

    Attributes:
      title: the data's name for people.
      splits: for each split, what its samples are made of, in their order.
      make: makes a sample, as stored, of one of these; called in threads.
      stored: dtype and shape of every array of a sample, None for a length that may differ.
      class_names: one per class; empty without 'semantic'.
    """

    title: str
    splits: Mapping[str, Sequence[Any]]
    make: Callable[[Any], Sample]
    stored: Mapping[str, tuple[DTypeLike, tuple[int | None, ...]]]
    class_names: tuple[str, ...]


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
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(class_names=config.class_names),
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
    return stored if name == "image" else stored.astype(TARGETS[name].target_dtype, copy=False)


class RecordsSource:
    """The samples of a prepared split, with the targets of `tasks`."""

    def __init__(
        self,
        records: Sequence[Sample],
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
        record = self._records[index]
        return {name: self._unpack(name, record[name]) for name in ("image", *self._tasks)}


def prepare(dataset: type[Records], data_dir: str | None, config: RecordsConfig) -> None:
    """Writes the records of `config` under `data_dir` (None: TFDS's default), all or nothing.

    TFDS writes beside the final directory and renames at the end. Of processes that prepare the
    same at once, the last ones find that it is there.

    Raises:
      UserError: the directory cannot be written.
    """
    total = sum(len(items) for items in config.splits.values())
    with _quiet_tfds(), progress(f"Preparing {config.title}", total, "samples") as advance:
        builder = dataset(data_dir=data_dir or None, config=config, file_format="array_record")
        builder.advance = advance
        try:
            builder.download_and_prepare()
        except OSError as error:
            if prepared(dataset, data_dir, config.name) is None:
                raise UserError(
                    f"The samples cannot be written to {builder.data_dir} "
                    f"({error.strerror or error}); config.data.dir must name a directory that is "
                    "writable and has room for them."
                ) from error


def prepared(
    dataset: type[Records], data_dir: str | None, name: str
) -> tfds.core.DatasetBuilder | None:
    """Reads what `prepare` wrote for the config of that name; None if it has not yet."""
    root = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    directory = root / dataset.name / name / str(dataset.VERSION)
    return tfds.builder_from_directory(directory) if directory.exists() else None


def fingerprint(settings: str, files: Mapping[str, Path]) -> str:
    """A short hash of the settings, and of all files' names, sizes and times of change."""
    lines = [settings]
    for name, path in files.items():
        stat = path.stat()
        lines.append(f"{name} {stat.st_size} {stat.st_mtime_ns}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


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
