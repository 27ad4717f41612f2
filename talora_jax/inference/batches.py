"""Many images through a model: read ahead, computed in batches, finished beside, in order.

    given ─ prepare, in threads ─▶ batches of one shape ─ compute ─▶ finish, in threads ─▶ results

A model is fastest when it has several images at once and never waits for one to be read, resized or
written. Threads do that: decoding, resizing and encoding leave Python's lock to others.
"""

import collections
import concurrent.futures
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float, UInt8

from talora_jax.errors import UserError
from talora_jax.models.geometry import Geometry

Given = TypeVar("Given")
Found = TypeVar("Found")
Result = TypeVar("Result")


class Prepared(NamedTuple):
    """An image, and what the encoder takes of it."""

    image: UInt8[np.ndarray, "H W 3"]
    geometry: Geometry
    padded: Float[np.ndarray, "1 Y X 3"]


def threads() -> int:
    """How many read and finish images beside a model."""
    return min(os.cpu_count() or 1, 16)


def in_batches(
    given: Iterable[Given],
    prepare: Callable[[Given], Prepared],
    compute: Callable[[Sequence[Prepared], int], Sequence[Found]],
    finish: Callable[[Given, Prepared, Found], Result],
    batch_size: int,
    lanes: int = 1,
) -> Iterator[Result | UserError]:
    """The results of all that is given, in its order.

    Where `given` fails, what it gave before has its results first.

    Args:
      prepare: reads one; may raise UserError, which then stands in the place of its result.
      compute: gives what is found in each of up to `batch_size` images that are padded to one
        shape; its second argument is for how many the program should be.
      finish: makes a result of what was found in one.
      lanes: how many batches are computed at a time, each in a thread.

    Raises:
      UserError: from `compute` or `finish`.
      Exception: from `given`, in the end.
    """
    reading, computing, finishing = (
        concurrent.futures.ThreadPoolExecutor(n) for n in (threads(), lanes, threads())
    )
    under_way = 2 * batch_size * lanes
    failed: Exception | None = None
    ahead: collections.deque = collections.deque()
    gathered: dict[tuple[int, ...], list[tuple[int, Given, Prepared]]] = {}
    full: set[tuple[int, ...]] = set()
    results: dict[int, concurrent.futures.Future | UserError] = {}
    told = 0

    def numbered() -> Iterator[tuple[int, Given]]:
        nonlocal failed
        try:
            yield from enumerate(given)
        except Exception as error:
            failed = error

    source = numbered()

    def read_ahead() -> None:
        while len(ahead) < under_way and (following := next(source, None)) is not None:
            ahead.append((*following, reading.submit(prepare, following[1])))

    def flush(shape: tuple[int, ...]) -> None:
        together = gathered.pop(shape)
        n = len(together)
        if n == batch_size:
            full.add(shape)
        # A program that is there serves fewer images, too; else a new one for a power of two.
        room = batch_size if shape in full else min(1 << (n - 1).bit_length(), batch_size)
        found = computing.submit(compute, [prepared for _, _, prepared in together], room)
        for n, (i, one, prepared) in enumerate(together):
            results[i] = finishing.submit(
                lambda n, one, prepared: finish(one, prepared, found.result()[n]), n, one, prepared
            )

    def ready(all_of_them: bool) -> Iterator[Result | UserError]:
        nonlocal told
        # So many may be under way: what is found waits in memory until it is asked for.
        while told in results and (all_of_them or len(results) > under_way):
            result = results.pop(told)
            told += 1
            yield result if isinstance(result, UserError) else result.result()

    try:
        read_ahead()
        while ahead:
            i, one, future = ahead.popleft()
            try:
                prepared = future.result()
            except UserError as error:
                results[i] = error
            else:
                shape = prepared.padded.shape
                gathered.setdefault(shape, []).append((i, one, prepared))
                if len(gathered[shape]) == batch_size:
                    flush(shape)
            read_ahead()
            if i - told >= 2 * under_way and told not in results:
                flush(next(s for s, held in gathered.items() if held[0][0] == told))
            yield from ready(False)
        for shape in list(gathered):
            flush(shape)
        yield from ready(True)
        if failed is not None:
            raise failed
    finally:
        for pool in (reading, computing, finishing):
            pool.shutdown(cancel_futures=True)
