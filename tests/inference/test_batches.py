"""Results come in the order given, whatever the shapes; what fails keeps its place."""

import threading

import numpy as np
import pytest

from talora_jax.errors import UserError
from talora_jax.inference.batches import Prepared, in_batches


def doubled(numbers, batch_size, shape=lambda n: (1,)):
    """2 n of each n, and the batches that were computed, as (images, room)."""
    computed = []

    def prepare(n):
        if n < 0:
            raise UserError(f"{n} is negative")
        return Prepared(None, None, np.full(shape(n), n))

    def compute(images, room):
        assert len({image.padded.shape for image in images}) == 1
        computed.append((len(images), room))
        return [int(image.padded.flat[0]) for image in images]

    def finish(n, image, found):
        assert n == found == image.padded.flat[0]
        return 2 * n

    return list(in_batches(numbers, prepare, compute, finish, batch_size)), computed


def test_batches_of_one_shape():
    results, computed = doubled(range(10), 4)
    assert results == [2 * n for n in range(10)]
    assert computed == [(4, 4), (4, 4), (2, 4)]


def test_fewer_than_a_batch_need_a_program_of_a_power_of_two():
    assert doubled(range(3), 8) == ([0, 2, 4], [(3, 4)])
    assert doubled(range(1), 8) == ([0], [(1, 1)])
    assert doubled(range(5), 5) == ([0, 2, 4, 6, 8], [(5, 5)])
    assert doubled([], 8) == ([], [])


def test_shapes_do_not_mix_and_none_waits_for_ever():
    # One image of a shape of its own, first of all.
    results, computed = doubled(range(40), 2, lambda n: (1 + (n == 0),))
    assert results == [2 * n for n in range(40)]
    # It was computed before the end.
    assert computed.index((1, 1)) < len(computed) - 2


def test_what_cannot_be_read_stands_in_its_place():
    results, _ = doubled([0, -1, 2, -3], 2)
    assert [str(x) for x in results] == ["0", "-1 is negative", "4", "-3 is negative"]


def test_what_fails_later_is_raised():
    def finish(n, image, found):
        raise UserError("disk full")

    prepared = Prepared(None, None, np.zeros(1))
    results = in_batches(range(9), lambda n: prepared, lambda images, room: images, finish, 2)
    with pytest.raises(UserError, match="disk full"):
        list(results)


def test_what_was_given_before_a_failure_comes_first():
    def given():
        yield from range(7)
        raise RuntimeError("the camera is gone")

    prepared = Prepared(None, None, np.zeros(1))
    results = in_batches(
        given(), lambda n: prepared, lambda images, room: images, lambda n, image, found: n, 2
    )
    assert [next(results) for _ in range(7)] == [*range(7)]
    with pytest.raises(RuntimeError, match="the camera is gone"):
        next(results)


def test_lanes_compute_at_a_time_and_keep_the_order():
    together = threading.Barrier(2, timeout=60)

    def compute(images, room):
        together.wait()  # for ever, if there was one lane
        return [image.image for image in images]

    results = in_batches(
        range(8),
        lambda n: Prepared(n, None, np.zeros(1)),
        compute,
        lambda n, image, found: (n, found),
        batch_size=1,
        lanes=2,
    )
    assert list(results) == [(n, n) for n in range(8)]


def test_little_is_read_ahead_and_threads_end():
    before = threading.active_count()
    taken = []

    def given():
        for n in range(100):
            taken.append(n)
            yield n

    prepared = Prepared(None, None, np.zeros(1))
    results = in_batches(
        given(), lambda n: prepared, lambda images, room: images, lambda n, image, found: n, 2
    )
    assert next(results) == 0
    assert len(taken) < 20
    results.close()
    assert threading.active_count() == before
