"""Order, coverage and exact resumption of the batches."""

import collections
import itertools
import json
import subprocess
import sys

import ml_collections
import numpy as np
import pytest

from talora_jax.data.pipeline import eval_batches, train_iterator
from talora_jax.errors import UserError
from talora_jax.tasks import TASKS as REGISTERED

TASKS = ("semantic", "depth", "normals", "edges")
SIZE = (8, 12)


class Counted:
    """Samples whose targets say which they are."""

    def __init__(self, length, size=SIZE):
        self.length, self.size = length, size

    def __len__(self):
        return self.length

    def __getitem__(self, index):
        if not 0 <= index < self.length:
            raise IndexError(index)
        rng = np.random.default_rng(index)
        return {
            "image": rng.integers(0, 256, (*self.size, 3), dtype=np.uint8),
            "semantic": np.full(self.size, index, np.int32),
            "depth": rng.uniform(1, 2, (*self.size, 1)).astype(np.float32),
            "normals": rng.normal(size=(*self.size, 3)).astype(np.float32),
            "edges": np.zeros((*self.size, 1), np.float32),
            "instance": np.zeros(self.size, np.int32),
        }


def train(length=10, *, augmented=True, **arguments):
    scales, flip, jitter = ((1.0, 1.5), True, 0.2) if augmented else ((1.0,), False, 0.0)
    augment = {"scales": scales, "turn": 0.0, "scale_range": (1.0, 1.0)}
    augment = ml_collections.ConfigDict(
        augment | {"flip": flip, "colour_jitter": jitter, "noise": 0.0, "shapes": 0}
    )
    defaults = {"tasks": TASKS, "image_size": SIZE, "batch_size": 4, "seed": 7, "augment": augment}
    processes = {"num_threads": 0}
    # A list: a class of a test's module is no class in a worker process.
    samples = [Counted(length)[index] for index in range(length)]
    return train_iterator(samples, **(defaults | processes | arguments))


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def identities(batches):
    return [int(index) for batch in batches for index in batch["semantic"][:, 0, 0]]


def assert_same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert a[name].tobytes() == b[name].tobytes(), name


def test_batches_hold_the_image_and_the_tasks_asked_for():
    batch = next(train(tasks=("depth", "semantic")))
    assert {name: (values.shape, values.dtype) for name, values in batch.items()} == {
        "image": ((4, 8, 12, 3), np.float32),
        "depth": ((4, 8, 12, 1), np.float32),
        "semantic": ((4, 8, 12), np.int32),
    }
    assert batch["image"].min() >= 0
    assert 0.9 < batch["image"].max() <= 1


def test_unaugmented_samples_are_the_sources():
    batch = next(train(augmented=False))
    for i, index in enumerate(identities([batch])):
        sample = Counted(10)[index]
        np.testing.assert_array_equal(batch["image"][i], sample["image"] / np.float32(255))
        for task in TASKS:
            np.testing.assert_array_equal(batch[task][i], sample[task])


@pytest.mark.parametrize("length", [1, 3, 10])
def test_every_epoch_holds_every_sample_once_in_a_new_order(length):
    stream = identities(take(train(length, batch_size=1), 6 * length))
    epochs = [stream[start : start + length] for start in range(0, 6 * length, length)]
    assert all(sorted(epoch) == list(range(length)) for epoch in epochs)
    if length == 10:
        assert len({tuple(epoch) for epoch in epochs}) == 6


@pytest.mark.parametrize("rows", [((0, 1), (2, 3)), ((0, 3), (1, 2)), ((0, 1, 2), (1, 2, 3))])
def test_a_batch_is_the_same_whichever_processes_make_its_rows(rows):
    whole = take(train(batch_size=4), 5)
    for some in rows:
        batches = train(batch_size=4, rows=some)
        for expected, batch in zip(whole, take(batches, 5), strict=True):
            assert_same([batch], [{name: x[list(some)] for name, x in expected.items()}])


def test_augmentation_changes_from_epoch_to_epoch_and_with_the_seed():
    first, second = take(train(1, batch_size=1), 2)
    assert first["image"].tobytes() != second["image"].tobytes()
    (other,) = take(train(1, batch_size=1, seed=8), 1)
    assert first["image"].tobytes() != other["image"].tobytes()


@pytest.mark.parametrize("num_threads", [0, 1, 3])
def test_threads_change_nothing(num_threads):
    assert_same(take(train(num_threads=num_threads), 8), take(train(), 8))


@pytest.mark.parametrize("num_threads", [0, 3])
@pytest.mark.parametrize("done", [0, 1, 5])
def test_resume_goes_on_with_the_same_bytes(num_threads, done):
    unbroken = train(num_threads=num_threads, rows=(1, 2))
    take(unbroken, done)
    state = json.loads(json.dumps(unbroken.get_state()))
    following = take(unbroken, 6)

    fresh = train(num_threads=num_threads, rows=(1, 2))
    take(fresh, 2)
    fresh.set_state(state)
    assert_same(take(fresh, 6), following)


@pytest.mark.process
def test_worker_processes_change_nothing():
    unbroken = train(num_workers=2)
    assert_same(take(unbroken, 5), take(train(), 5))
    state = unbroken.get_state()
    following = take(unbroken, 4)
    unbroken.close()

    # Taken up by threads, as on another machine.
    fresh = train(num_threads=1)
    fresh.set_state(state)
    assert_same(take(fresh, 4), following)


def test_an_empty_split_is_refused():
    with pytest.raises(UserError, match="training split is empty"):
        train(0)


@pytest.mark.parametrize(
    "length, rows", [(10, [[0, 1, 2, 3]]), (10, [[0, 2], [1, 3]]), (1, [[1], [0]])]
)
def test_eval_gives_every_sample_once(length, rows):
    batch_size = sum(map(len, rows))
    shares = [
        list(
            eval_batches(
                Counted(length), tasks=TASKS, image_size=SIZE, batch_size=batch_size, rows=some
            )
        )
        for some in rows
    ]
    assert {len(share) for share in shares} == {-(-length // batch_size)}
    seen = collections.Counter()
    for batch in itertools.chain(*shares):
        assert batch["valid"].shape == (len(rows[0]),)
        assert batch["valid"].dtype == bool
        assert batch["image"].dtype == np.float32
        seen.update(batch["semantic"][batch["valid"], 0, 0].tolist())
        for task in TASKS:
            assert (batch[task][~batch["valid"]] == REGISTERED[task].unlabelled).all()
        assert not batch["image"][~batch["valid"]].any()
    assert seen == collections.Counter(range(length))


def test_eval_is_in_order_and_can_be_repeated():
    batches = eval_batches(
        Counted(5),
        tasks=("semantic",),
        image_size=SIZE,
        batch_size=2,
    )
    first = list(batches)
    assert identities(first) == [0, 1, 2, 3, 4, -1]
    assert_same(list(batches), first)


def test_eval_gives_targets_without_their_images():
    arguments = {"tasks": TASKS, "image_size": SIZE, "batch_size": 4}
    whole = list(eval_batches(Counted(6), **arguments))
    targets = list(eval_batches(Counted(6), **arguments, image=False))
    for batch in whole:
        del batch["image"]
    assert_same(targets, whole)


def test_eval_of_nothing_is_nothing():
    assert not list(
        eval_batches(
            Counted(0),
            tasks=TASKS,
            image_size=SIZE,
            batch_size=2,
        )
    )


@pytest.mark.process
def test_tensorflow_is_not_imported():
    script = "import sys, talora_jax.data.pipeline; sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True)
