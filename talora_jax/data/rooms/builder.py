"""`rooms` on disk: a TFDS builder over ArrayRecord files, and the source that reads samples back.

TensorFlow is neither installed nor imported: every feature is a packed tensor, which TFDS
writes and reads with NumPy alone. Record i of a split is frame i. TFDS writes into a directory with
another name and renames it when all is written, so that a run that was killed leaves nothing that
looks whole.

Stored with less precision than rendered: depth in steps of 0.2 mm (off by at most 0.1 mm), normals
in steps of 1 / 32767 (off by at most 2e-5 a component).
"""

import collections
import contextlib
import dataclasses
import io
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent import futures

import absl.logging
import numpy as np
import tensorflow_datasets as tfds
import tqdm
from tensorflow_datasets.core.utils import tqdm_utils

from talora_jax.data.nyuv2_classes import CLASS_NAMES
from talora_jax.data.rooms.render import render
from talora_jax.data.rooms.scene import random_scene
from talora_jax.errors import UserError

_DEPTH_STEP = 1 / 5000
_NORMAL_STEP = 1 / 32767
# TFDS holds a split in memory until it is written, and beyond this many bytes wants TensorFlow.
_SPLIT_BYTES = 1000 << 20
_PIXEL_BYTES = 5


@dataclasses.dataclass(eq=False)
class RoomsConfig(tfds.core.BuilderConfig):
    """Which frames: how many of each split, their size (H, W), and the seed of the rooms."""

    train_frames: int = 1
    val_frames: int = 1
    image_size: tuple[int, int] = (192, 256)
    seed: int = 0


def rooms_config(train_frames, val_frames, image_size, seed) -> RoomsConfig:
    """The config, named after its values.

    Raises:
        UserError: a value is out of range.
    """
    for name, frames in (("train_frames", train_frames), ("val_frames", val_frames)):
        if frames < 1:
            raise UserError(f"config.data.{name} is {frames}; rooms needs at least 1 frame.")
    if len(image_size) != 2 or min(image_size) < 32:
        raise UserError(
            f"config.data.image_size is {tuple(image_size)}; rooms needs (height, width) of at "
            "least 32 pixels each."
        )
    if seed < 0:
        raise UserError(f"config.data.seed is {seed}; it must not be negative.")
    height, width = image_size
    most = _SPLIT_BYTES // (_PIXEL_BYTES * height * width)
    for name, frames in (("train_frames", train_frames), ("val_frames", val_frames)):
        if frames > most:
            raise UserError(
                f"config.data.{name} is {frames}; at {height}x{width} pixels rooms can hold at "
                f"most {most} frames a split."
            )
    return RoomsConfig(
        name=f"train{train_frames}_val{val_frames}_{height}x{width}_seed{seed}",
        train_frames=train_frames,
        val_frames=val_frames,
        image_size=(height, width),
        seed=seed,
    )


class Rooms(tfds.core.GeneratorBasedBuilder):
    """Ray-cast rooms with semantic labels, depth, normals, edges and instances."""

    # Any change of what a frame looks like needs another version: prepared data would stay behind.
    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        height, width = self.builder_config.image_size

        def tensor(dtype, *channels, encoding="zlib"):
            return tfds.features.Tensor(
                shape=(height, width, *channels), dtype=dtype, encoding=encoding
            )

        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    # Noise does not shrink; ArrayRecord's own compression does for it.
                    "image": tensor(np.uint8, 3, encoding="bytes"),
                    "semantic": tensor(np.uint8),
                    "depth": tensor(np.uint16, 1),
                    "normals": tensor(np.int16, 3),
                    "edges": tensor(np.uint8, 1),
                    "instance": tensor(np.uint8),
                }
            ),
            metadata=tfds.core.MetadataDict(class_names=list(CLASS_NAMES)),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        config = self.builder_config
        bar = tqdm.tqdm(
            total=config.train_frames + config.val_frames,
            desc="Rendering rooms",
            unit=" frames",
            # A log file gets a line's worth now and then, not ten a second.
            mininterval=0.5 if sys.stderr.isatty() else 20.0,
        )
        return {
            "train": self._generate_examples("train", config.train_frames, bar),
            "val": self._generate_examples("val", config.val_frames, bar),
        }

    def _generate_examples(self, split: str, frames: int, bar: tqdm.tqdm) -> Iterator:
        config = self.builder_config

        def record(frame):
            return pack(render(random_scene(config.seed, split, frame), config.image_size))

        workers = os.cpu_count() or 1
        with futures.ThreadPoolExecutor(workers) as pool:
            # A few frames ahead of the writer, in order.
            ahead = collections.deque()
            for frame in range(frames):
                ahead.append(pool.submit(record, frame))
                if len(ahead) > 2 * workers:
                    yield frame - len(ahead) + 1, ahead.popleft().result()
                    bar.update()
            while ahead:
                yield frames - len(ahead), ahead.popleft().result()
                bar.update()
        if bar.n == bar.total:
            bar.close()


def pack(frame: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A rendered frame (see `render.render`) as stored."""
    return {
        "image": frame["image"],
        "semantic": frame["semantic"].astype(np.uint8),
        "depth": np.round(frame["depth"] / _DEPTH_STEP).astype(np.uint16),
        "normals": np.round(frame["normals"] / _NORMAL_STEP).astype(np.int16),
        "edges": frame["edges"].astype(np.uint8),
        "instance": frame["instance"].astype(np.uint8),
    }


_UNPACK = {
    "image": lambda stored: stored,
    "semantic": lambda stored: stored.astype(np.int32),
    "depth": lambda stored: stored.astype(np.float32) * np.float32(_DEPTH_STEP),
    "normals": lambda stored: stored.astype(np.float32) * np.float32(_NORMAL_STEP),
    "edges": lambda stored: stored.astype(np.float32),
    "instance": lambda stored: stored.astype(np.int32),
}


class RoomsSource:
    """Samples of one split by index, with only the wanted parts unpacked; can be pickled."""

    def __init__(self, config: RoomsConfig, data_dir: str | None, split: str, keys: Sequence[str]):
        """
        Args:
            config: of prepared rooms.
            data_dir: TFDS's root directory; None for its default.
            split: 'train' or 'val'.
            keys: parts of the sample, of 'image', 'semantic', 'depth', ...
        """
        self._arguments = (config, data_dir, split, tuple(keys))
        builder = open_builder(config, data_dir)
        self._keys = tuple(keys)
        features = builder.info.features
        self._features = tfds.features.FeaturesDict({key: features[key] for key in self._keys})
        self._records = builder.as_data_source(
            split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        stored = self._features.deserialize_example_np(self._records[index])
        return {key: _UNPACK[key](stored[key]) for key in self._keys}

    def __reduce__(self):
        return RoomsSource, self._arguments


def prepare(config: RoomsConfig, data_dir: str | None) -> None:
    """Renders the rooms if they are not there yet.

    Raises:
        UserError: the directory cannot be written.
    """
    builder = open_builder(config, data_dir)
    if builder.data_path.exists():
        return
    try:
        with _quiet():
            builder.download_and_prepare()
    except OSError as error:
        # Another process may have been faster; what it wrote is the same.
        if not builder.data_path.exists():
            raise UserError(
                f"The rooms cannot be written to {builder.data_dir} "
                f"({error.strerror or error}); config.data.dir must name a writable directory."
            ) from error


def open_builder(config: RoomsConfig, data_dir: str | None) -> Rooms:
    """The builder for a config, which stores ArrayRecord files under TFDS's root `data_dir`."""
    with _quiet():
        return Rooms(config=config, data_dir=data_dir, file_format="array_record")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without TFDS's talk of downloads and configs, and its bars: ours is enough."""
    verbosity, active = absl.logging.get_verbosity(), tqdm_utils._active
    absl.logging.set_verbosity(absl.logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl.logging.set_verbosity(verbosity)
        tqdm_utils._active = active
