"""From samples to batches: shuffle, augment, share out over processes, batch, read ahead (Grain).

A batch holds `image` float32 [B, H, W, 3] in [0, 1] and the targets of the tasks asked for, as in
`talora_jax.data.dataset.Source` with B in front; for training from prompts what
`talora_jax.data.masks` makes of them. All batches are of one H×W: samples of another are
stretched to it (see `transforms.fit`), those of the source's own size left as they are.

Samples are read and augmented in threads of this process. Everything random depends on the seed and
on the sample's position in the one endless stream that all processes share, never on the threads:
an iterator restored from its state goes on with the same bytes, and the batches of a step, put
together over all processes, hold the same samples however many processes there are.
"""

import functools
from collections.abc import Callable, Iterable, Sequence

import grain
import ml_collections
import numpy as np

from talora_jax.data.dataset import Source
from talora_jax.data.masks import Asked, AskedMasks
from talora_jax.data.transforms import Augment, Sample, fit
from talora_jax.errors import UserError
from talora_jax.tasks import TARGETS

# One batch is being consumed, so two threads with a batch each keep ahead of it.
_EVAL_THREADS = 2


def train_iterator(
    source: Source,
    *,
    tasks: Sequence[str],
    image_size: tuple[int, int],
    batch_size: int,
    seed: int,
    augment: ml_collections.ConfigDict,
    process_index: int,
    process_count: int,
    num_threads: int,
    asked: AskedMasks | None = None,
) -> grain.DatasetIterator:
    """Endless augmented batches in an order that is new in every epoch.

    The stream runs through epoch after epoch, each a permutation of all samples, and process p gets
    the stream's positions p, p + process_count, …: the processes' samples are disjoint, together
    they cover each epoch, and no sample is dropped (a batch may span the end of an epoch).

    Args:
      source: samples of the training split.
      tasks: targets to keep.
      image_size: H, W of the batches.
      batch_size: samples per batch of this process.
      seed: from 0 to 2³² - 1.
      augment: `config.augment`, see `Augment.from_config`.
      process_index: this process, of `process_count`.
      num_threads: batches made at a time; 0 makes each when it is asked for.
      asked: makes masks of the targets, for training from prompts.

    Returns:
      An iterator whose `get_state()` is a small JSON-able dict that names the next batch;
      `set_state` takes it up exactly, in any process started with the same arguments.

    Raises:
      UserError: the split is empty, or `augment` is out of range.
    """
    if not len(source):
        raise UserError("The training split is empty; expected at least one sample.")
    augmented = (
        grain.MapDataset.source(source)
        .seed(seed)
        .map(lambda sample: _keep(sample, tasks))
        .shuffle()
        .repeat()
        .random_map(Augment.from_config(augment, image_size))
    )
    if asked is not None:
        augmented = augmented.random_map(asked.draw)
    share = augmented[process_index::process_count].map(_finish)
    return iter(_batches(share, batch_size, num_threads))


def eval_batches(
    source: Source,
    *,
    tasks: Sequence[str],
    image_size: tuple[int, int],
    batch_size: int,
    process_index: int,
    process_count: int,
    asked: AskedMasks | None = None,
) -> Iterable[dict[str, np.ndarray]]:
    """Every sample once over all processes, in order; the same number of batches in each process.

    Process p gets samples p, p + process_count, …. What is missing to full batches is made up by
    black images with unlabelled targets, and the extra key `valid`, bool [B], tells them apart.
    The result can be iterated again.

    Args: as of `train_iterator`.
    """
    to_one_size = functools.partial(fit, size=image_size) if asked is None else asked.all
    share = _Share(source, tasks, to_one_size, batch_size, process_index, process_count)
    return _batches(grain.MapDataset.source(share).map(_finish), batch_size, _EVAL_THREADS)


class _Share:
    """One process's share of `source`, filled up so that all shares make equally many batches."""

    def __init__(
        self,
        source: Source,
        tasks: Sequence[str],
        to_one_size: Callable[[Sample], Asked],
        batch_size: int,
        process_index: int,
        process_count: int,
    ):
        self._source = source
        self._tasks = tasks
        self._to_one_size = to_one_size
        self._process_index = process_index
        self._process_count = process_count
        self._batches = -(-len(source) // (batch_size * process_count))
        self._batch_size = batch_size

    def __len__(self) -> int:
        return self._batches * self._batch_size

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        position = self._process_index + index * self._process_count
        valid = position < len(self._source)
        sample = _keep(self._source[position if valid else 0], self._tasks)
        sample = self._to_one_size(sample)
        if not valid:
            sample = {
                name: np.full_like(x, TARGETS[name].unlabelled if name in TARGETS else 0)
                for name, x in sample.items()
            }
        return {**sample, "valid": np.bool_(valid)}


def _keep(sample: dict[str, np.ndarray], tasks: Sequence[str]) -> dict[str, np.ndarray]:
    """The image and the targets of `tasks`: what is not trained on is not augmented either."""
    return {name: sample[name] for name in ("image", *tasks)}


def _finish(sample: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """uint8 is for moving pixels about, float32 in [0, 1] for the model."""
    return {**sample, "image": sample["image"].astype(np.float32) / np.float32(255)}


def _batches(
    samples: grain.MapDataset, batch_size: int, num_threads: int
) -> grain.IterDataset[dict[str, np.ndarray]]:
    # Grain's threads take one element each, here a whole batch: two per thread are held at most.
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    return samples.batch(batch_size, drop_remainder=True).to_iter_dataset(options)
