"""From samples to batches: shuffle, augment, share out over processes, batch, read ahead (Grain).

A batch holds `image` float32 [B, H, W, 3] in [0, 1] and the targets of the tasks asked for, as in
`talora_jax.data.dataset.Source` with B in front; for training from prompts it is what
`talora_jax.data.masks` makes of them, images as bytes. All batches are of one H×W: samples of
another are stretched to it (see `transforms.fit`), those of the source's own size left as they are.

Samples are read and augmented in threads of this process, or in worker processes of its own, where
Python's lock would keep the threads of a large machine from feeding an accelerator. Everything
random depends on the seed and on the sample's position in the one endless stream that all hosts'
processes share, never on who reads it: batches restored from their state go on with the same bytes,
and that of a step, put together over all hosts, is the same however many there are.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import grain
import ml_collections
import numpy as np
from absl import flags

from talora_jax.data.dataset import Source
from talora_jax.data.masks import Asked, AskedMasks
from talora_jax.data.mixed import Mixed
from talora_jax.data.transforms import Augment, Resized, Sample, fit
from talora_jax.errors import UserError
from talora_jax.task_names import kind_of
from talora_jax.tasks import TARGETS, target_of

# One batch is being consumed, so two threads with a batch each keep ahead of it.
_EVAL_THREADS = 2


class TrainBatches:
    """Endless batches; their position is one number, whoever makes them."""

    def __init__(self, start_at: Callable[[int], grain.DatasetIterator]):
        """
        Args:
          start_at: gives the batches from one on.
        """
        self._start_at = start_at
        self._next = 0
        self._batches: grain.DatasetIterator | None = None

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return self

    def __next__(self) -> dict[str, np.ndarray]:
        if self._batches is None:
            self._batches = self._start_at(self._next)
        batch = next(self._batches)
        self._next += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """The next batch, for JSON."""
        return {"next_index": self._next}

    def set_state(self, state: Mapping[str, int]) -> None:
        """Goes on with the batch that a state names, in any process started alike."""
        self.close()
        self._next = int(state["next_index"])

    def close(self) -> None:
        """Ends the threads and processes that read ahead."""
        if self._batches is not None:
            self._batches.close()
            self._batches = None


def train_iterator(
    source: Source,
    *,
    tasks: Sequence[str],
    image_size: tuple[int, int],
    batch_size: int,
    rows: Sequence[int] | None = None,
    seed: int,
    augment: ml_collections.ConfigDict,
    num_threads: int,
    num_workers: int = 0,
    asked: AskedMasks | None = None,
) -> TrainBatches:
    """Endless augmented batches in an order that is new in every epoch.

    The stream runs through epoch after epoch, each a permutation of all samples, cut into batches;
    no sample is dropped (a batch may span the end of an epoch). Of each batch a process makes its
    own rows: put together they are the batch that one process would have made. Where data sets are
    mixed, each has a stream and epochs of its own, and they take turns by their weights.

    Args:
      source: samples of the training split; a `Mixed` one is drawn by its weights.
      tasks: targets to keep.
      image_size: H, W of the batches.
      batch_size: samples per batch, over all processes.
      rows: those of a batch to make, see `talora_jax.sharding.batch_rows`; None for all.
      seed: from 0 to 2³² - 1.
      augment: `config.augment`, see `Augment.from_config`.
      num_threads: batches made at a time; 0 makes each when it is asked for.
      num_workers: processes that make the batches instead, one each at a time; 0 starts none.
      asked: makes masks of the targets, for training from prompts.

    Raises:
      UserError: the split is empty, or `augment` is out of range.
    """
    if not len(source):
        raise UserError("The training split is empty; expected at least one sample.")
    augmented = _drawn(source, tasks, seed).random_map(Augment.from_config(augment, image_size))
    finished = augmented.map(_finish) if asked is None else augmented.random_map(asked.draw)
    rows = tuple(range(batch_size) if rows is None else rows)
    share = _Rows(finished, batch_size, rows)

    def start_at(batch: int) -> grain.DatasetIterator:
        rest = share[batch * len(rows) :]
        if not num_workers:
            return iter(_batches(rest, len(rows), num_threads))
        # Grain asks absl for a flag of its own, whoever parses the command line.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(num_workers, per_worker_buffer_size=2)
        return iter(_batches(rest, len(rows), 1).mp_prefetch(options))

    return TrainBatches(start_at)


def eval_batches(
    source: Source,
    *,
    tasks: Sequence[str],
    image_size: tuple[int, int],
    batch_size: int,
    rows: Sequence[int] | None = None,
    asked: AskedMasks | None = None,
    image: bool = True,
) -> Iterable[dict[str, np.ndarray]]:
    """Every sample once, in order, cut into batches; of each of them the rows asked for.

    What is missing to a full last batch is made up by black images with unlabelled targets, and the
    extra key `valid`, bool [B], tells them apart. The result can be iterated again.

    Args: as of `train_iterator`, and
      image: False leaves it out, where nothing is `asked`.
    """

    def fitted(sample: Sample) -> Resized:
        resized = fit(sample, image_size)
        return _finish(resized) if image else resized

    names = ("image", *tasks) if image else tuple(tasks)
    prepare = fitted if asked is None else asked.all
    rows = tuple(range(batch_size) if rows is None else rows)
    share = _Share(source, names, prepare, batch_size, rows)
    return _batches(grain.MapDataset.source(share), len(rows), _EVAL_THREADS)


def _drawn(source: Source, tasks: Sequence[str], seed: int) -> grain.MapDataset:
    """Samples without end, each epoch in an order of its own."""
    if isinstance(source, Mixed):
        # Streams of one seed would be permuted alike.
        seeds = np.random.SeedSequence(seed).generate_state(len(source.parts))
        streams = [
            _drawn(part, tasks, int(own)) for part, own in zip(source.parts, seeds, strict=True)
        ]
        return grain.MapDataset.mix(streams, source.weights).seed(seed)
    return (
        grain.MapDataset.source(source)
        .seed(seed)
        .map(lambda sample: _keep(sample, ("image", *tasks)))
        .shuffle()
        .repeat()
    )


class _Rows(grain.MapDataset):
    """Some rows of each of the batches that an endless stream is cut into."""

    def __init__(self, stream: grain.MapDataset, batch_size: int, rows: tuple[int, ...]):
        super().__init__(stream)
        self._batch_size, self._rows = batch_size, rows

    def __len__(self) -> int:
        return len(self._parent) // self._batch_size * len(self._rows)

    def __getitem__(self, index: int | slice):
        if isinstance(index, slice):
            return self.slice(index)
        batch, row = divmod(index, len(self._rows))
        return self._parent[batch * self._batch_size + self._rows[row]]


class _Share:
    """One process's rows of the batches of `source`, the last of which is filled up."""

    def __init__(
        self,
        source: Source,
        names: Sequence[str],
        prepare: Callable[[Sample], Resized | Asked],
        batch_size: int,
        rows: tuple[int, ...],
    ):
        self._source = source
        self._names = names
        self._prepare = prepare
        self._batch_size = batch_size
        self._rows = rows

    def __len__(self) -> int:
        return -(-len(self._source) // self._batch_size) * len(self._rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        batch, row = divmod(index, len(self._rows))
        position = batch * self._batch_size + self._rows[row]
        valid = position < len(self._source)
        sample = _keep(self._source[position if valid else 0], self._names)
        sample = self._prepare(sample)
        if not valid:
            sample = {
                name: np.full_like(x, target_of(name).unlabelled if kind_of(name) in TARGETS else 0)
                for name, x in sample.items()
            }
        return {**sample, "valid": np.bool_(valid)}


def _keep(sample: dict[str, np.ndarray], names: Sequence[str]) -> dict[str, np.ndarray]:
    """What is asked for: what is not trained on is not augmented either."""
    return {name: sample[name] for name in names}


def _finish(sample: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """uint8 is for moving pixels about, float32 in [0, 1] for the model."""
    return {**sample, "image": sample["image"].astype(np.float32) / np.float32(255)}


def _batches(
    samples: grain.MapDataset, batch_size: int, num_threads: int
) -> grain.IterDataset[dict[str, np.ndarray]]:
    # Grain's threads take one element each, here a whole batch: two per thread are held at most.
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=2 * num_threads)
    return samples.batch(batch_size, drop_remainder=True).to_iter_dataset(options)
