"""The samples of a folder as array_record, written and read by TFDS without TensorFlow.

Arrays are stored as bytes, which array_record compresses: that reads faster than PNG. Normals are
kept in 16-bit fixed point (to 2e-5) and edges in 8 bits.

`ShardBasedBuilder` streams the frames in their order. TFDS's better known `GeneratorBasedBuilder`
shuffles them in memory and, from 1 GB on, through TensorFlow's file system.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from absl import logging
from jaxtyping import Shaped
from PIL import Image

from talora_jax.data.folder.decode import READ
from talora_jax.data.folder.edges import edges_from_ids
from talora_jax.data.folder.frames import Frame
from talora_jax.data.folder.normals import normals_from_depth
from talora_jax.data.folder.settings import Settings

Sample = dict[str, np.ndarray]

# TFDS holds the frames of a shard in memory until it is written: 32 of 480×640 take 190 MB.
_SHARD = 32

_NORMAL_ONE = 32767

_STORED = {
    "image": (np.uint8, (3,)),
    "semantic": (np.int32, ()),
    "depth": (np.float32, (1,)),
    "normals": (np.int16, (3,)),
    "edges": (np.int8, (1,)),
}


@dataclasses.dataclass(eq=False, kw_only=True)
class FolderConfig(tfds.core.BuilderConfig):
    """What to prepare. The name is the folder's, a dash, and a fingerprint of all that is in it.

    Attributes:
        splits: frames of each split.
        settings: of `dataset.json`.
        tasks: targets to store: all that the folder can give.
        image_size: H, W to store.
        class_names: one per class; empty without 'semantic'.
    """

    splits: Mapping[str, Sequence[Frame]]
    settings: Settings
    tasks: tuple[str, ...]
    image_size: tuple[int, int]
    class_names: tuple[str, ...]


class Folder(tfds.core.ShardBasedBuilder):
    """Writes the frames of `FolderConfig.splits`; run by `prepare`, read by `prepared`."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        features = {
            name: tfds.features.Tensor(
                shape=(*config.image_size, *channels), dtype=dtype, encoding="bytes"
            )
            for name, (dtype, channels) in _STORED.items()
            if name in ("image", *config.tasks)
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Images and dense targets of a user's folder.",
            features=tfds.features.FeaturesDict(features),
            metadata=tfds.core.MetadataDict(class_names=config.class_names),
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> Mapping[str, Sequence[Callable[[], Iterator[tuple[str, Sample]]]]]:
        splits = self.builder_config.splits
        progress = tqdm.tqdm(
            desc=f"Preparing {self.builder_config.name.rpartition('-')[0]}",
            total=sum(len(frames) for frames in splits.values()),
            unit=" frames",
            leave=False,
        )
        return {
            split: [
                functools.partial(self._examples, frames[start : start + _SHARD], progress)
                for start in range(0, len(frames), _SHARD)
            ]
            for split, frames in splits.items()
        }

    def _examples(
        self, frames: Sequence[Frame], progress: tqdm.tqdm
    ) -> Iterator[tuple[str, Sample]]:
        make = functools.partial(_make_example, config=self.builder_config)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            for frame, example in zip(frames, pool.map(make, frames), strict=True):
                yield frame.stem, example
                progress.update()
        if progress.n == progress.total:
            progress.close()


class FolderSource:
    """The samples of a prepared split, with the targets of `tasks`."""

    def __init__(self, records: Sequence[Sample], tasks: Sequence[str]):
        self._records = records
        self._tasks = tasks

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Sample:
        record = self._records[index]
        return {name: _unpack(name, record[name]) for name in ("image", *self._tasks)}


def prepare(data_dir: str, config: FolderConfig) -> None:
    """Writes the records of `config` under `data_dir` ('' = TFDS's default), all or nothing.

    TFDS writes beside the final directory and renames at the end. Of processes that prepare the
    same at once, the last ones find that it is there.
    """
    with _quiet_tfds():
        builder = Folder(data_dir=data_dir or None, config=config, file_format="array_record")
        try:
            builder.download_and_prepare()
        except OSError:
            if prepared(data_dir, config.name) is None:
                raise


def prepared(data_dir: str, name: str) -> tfds.core.DatasetBuilder | None:
    """Reads what `prepare` wrote for the `FolderConfig` of that name; None if it has not yet."""
    root = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    directory = root / Folder.name / name / str(Folder.VERSION)
    return tfds.builder_from_directory(directory) if directory.exists() else None


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


def _make_example(frame: Frame, config: FolderConfig) -> Sample:
    """Reads a frame's files, derives what is derived, resizes, and packs for storing.

    Normals are fitted before resizing, to all there is measured; edges are drawn after it, so that
    they are as thick at any size.
    """
    settings = config.settings
    read = {name: READ[name](path, settings) for name, path in frame.files.items()}
    if "normals" in config.tasks and "normals" not in read:
        read["normals"] = normals_from_depth(read["depth"], settings.intrinsics)
    read = {name: _resize(name, values, config.image_size) for name, values in read.items()}
    if "edges" in config.tasks and "edges" not in read:
        read["edges"] = edges_from_ids(read["instance" if "instance" in read else "semantic"])
    return {name: _pack(name, read[name]) for name in ("image", *config.tasks)}


def _resize(
    name: str, values: Shaped[np.ndarray, "H W ..."], size: tuple[int, int]
) -> Shaped[np.ndarray, "H W ..."]:
    """Bilinear with antialiasing for the image, nearest for targets."""
    height, width = values.shape[:2]
    if (height, width) == size:
        return values
    if name == "image":
        image = Image.fromarray(values).resize(size[::-1], Image.Resampling.BILINEAR)
        return np.asarray(image)
    rows = (2 * np.arange(size[0]) + 1) * height // (2 * size[0])
    columns = (2 * np.arange(size[1]) + 1) * width // (2 * size[1])
    return values[rows[:, None], columns]


def _pack(name: str, values: np.ndarray) -> np.ndarray:
    if name == "normals":
        values = (values * _NORMAL_ONE).round()
    return values.astype(_STORED[name][0])


def _unpack(name: str, values: np.ndarray) -> np.ndarray:
    match name:
        case "normals":
            return values.astype(np.float32) * np.float32(1 / _NORMAL_ONE)
        case "edges":
            return values.astype(np.float32)
    return values
