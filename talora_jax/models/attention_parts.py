"""Attention in parts: some query rows and some heads after others.

So the logits of a large grid are never held whole. On a CPU a part is small enough for the caches,
of windows, too. What is computed of a part, forward or backward, is a function of `Parts` to
`Parts`.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array

# Logits held at once before the query rows are tiled: 2**24 elements are 64 MB in float32.
MAX_LOGITS = 2**24
# And on a CPU, where tiles are of some heads: 4 MB, which stay in the caches of two cores. ViT-B's
# windows take a third of the time that they take as a whole.
CPU_TILE = 2**20


class Tiling(NamedTuple):
    """What decides how much is computed at once.

    Attributes:
      logits: how many there are on a device.
      max_logits: see `attend`.
      spread: whether the grids are laid over a mesh.
    """

    logits: int
    max_logits: int
    spread: bool


class Parts(NamedTuple):
    """What attention takes, or finds, for some query rows r and some heads.

    Attributes:
      by_row: arrays [*M, r, w, e].
      by_key: arrays of all keys, [*M, h, w, d]. Found are shares of these rows, to be summed; a
        function of `Parts` gives them as [*M, d, n], keys n in one axis.
      rel_h: relative positions [r, h, d]. Found are shares of these heads.
      rel_w: relative positions [w, w, d]. Found are shares of these rows and heads.
    """

    by_row: tuple[Array, ...]
    by_key: tuple[Array, ...] = ()
    rel_h: Array | None = None
    rel_w: Array | None = None


OfRows = Callable[[Parts], Parts]


def in_parts(tiling: Tiling, of_rows: OfRows, given: Parts) -> Parts:
    """`of_rows` of all rows and heads, as many at once as fit."""
    logits, max_logits, spread = tiling
    on_cpu = min(max_logits, CPU_TILE)

    def whole(given):
        share = {"of_rows": of_rows, "logits": logits}
        if logits <= on_cpu:
            return in_tiles(given, max_logits=on_cpu, **share)
        return jax.lax.platform_dependent(
            given,
            cpu=functools.partial(_some_heads, max_logits=on_cpu, spread=spread, **share),
            default=functools.partial(in_tiles, max_logits=max_logits, **share),
        )

    if spread:
        return whole(given)
    # Grids and heads in one axis: on a CPU some reductions take many times as long over arrays with
    # axes of one entry, see `norm`.
    leading = given.by_row[0].shape[:-3]
    found = whole(_of_heads(lambda x: x.reshape(-1, *x.shape[-3:]), given))
    return _of_heads(lambda x: x.reshape(*leading, *x.shape[-3:]), found)


def _of_heads(change: Callable[[Array], Array], parts: Parts) -> Parts:
    """Parts with a change in all arrays that heads have for themselves."""
    by_row, by_key = jax.tree.map(change, (parts.by_row, parts.by_key))
    return parts._replace(by_row=by_row, by_key=by_key)


def _some_heads(
    given: Parts, *, of_rows: OfRows, logits: int, max_logits: int, spread: bool
) -> Parts:
    """`in_tiles`, some heads after others: a tile's logits stay in a processor's cache.

    Args:
      spread: whether the grids are laid over a mesh. Then each device has its share of a head's
        grids; else heads of all grids are counted alike, in one axis.
    """
    heads = given.by_row[0].shape[-4]
    n = 1 if spread else _most_at_once(heads, logits // heads, max_logits)

    def apart(x):
        if spread:
            return jnp.moveaxis(x, -4, 0)
        return x if n == 1 else x.reshape(-1, n, *x.shape[1:])

    def together(x):
        return jnp.moveaxis(x, 0, -4) if spread else x.reshape(-1, *x.shape[-3:])

    def of_some(by_row, by_key):
        some = given._replace(by_row=by_row, by_key=by_key)
        return in_tiles(some, of_rows=of_rows, logits=logits * n // heads, max_logits=max_logits)

    arrays = jax.tree.map(apart, (given.by_row, given.by_key))
    found = _of_heads(together, jax.lax.map(lambda x: of_some(*x), arrays))
    rel_h, rel_w = jax.tree.map(lambda x: x.sum(axis=0), (found.rel_h, found.rel_w))
    return found._replace(rel_h=rel_h, rel_w=rel_w)


def in_tiles(
    given: Parts, *, of_rows: OfRows, logits: int, max_logits: int, unit: int = 1
) -> Parts:
    """`of_rows` of some query rows after others.

    Args:
      given: of all rows.
      logits: how many all rows take.
      max_logits: of a tile, unless `unit` rows take more.
      unit: a tile's rows are a multiple of this divisor of all rows.
    """
    number = given.rel_h.shape[0]
    units = number // unit
    rows = unit * _most_at_once(units, logits // units, max_logits)
    if rows == number:
        return _by_key(of_rows(given), given)

    def tiles(x):
        # A row's tokens and channels share an axis meanwhile: no array has more than six.
        return rearrange(rearrange(x, "... w e -> ... (w e)"), "... (n r) e -> n ... r e", r=rows)

    def of_tile(tile):
        by_row, rel_h = jax.tree.map(
            lambda x, like: rearrange(x, "... r (w e) -> ... r w e", w=like.shape[-2]),
            tile,
            (given.by_row, given.rel_h),
        )
        return of_rows(given._replace(by_row=by_row, rel_h=rel_h))

    def step(sums, tile):
        found = of_tile(tile)
        sums = jax.tree.map(jnp.add, sums, (found.by_key, found.rel_w))
        merge = functools.partial(rearrange, pattern="... w e -> ... (w e)")
        return sums, jax.tree.map(merge, (found.by_row, found.rel_h))

    parted = jax.tree.map(tiles, (given.by_row, given.rel_h))
    like = jax.eval_shape(of_tile, jax.tree.map(lambda x: x[0], parted))
    start = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (like.by_key, like.rel_w))
    (by_key, rel_w), found = jax.lax.scan(step, start, parted)
    by_row, rel_h = jax.tree.map(
        lambda x, like: rearrange(x, "n ... r (w e) -> ... (n r) w e", w=like.shape[-2]),
        found,
        (like.by_row, like.rel_h),
    )
    return _by_key(Parts(by_row, by_key, rel_h, rel_w), given)


def _by_key(found: Parts, given: Parts) -> Parts:
    """What was found of keys, [*M, d, n], in the shape of keys."""
    like = given.by_key[0].shape
    by_key = tuple(jnp.swapaxes(x, -1, -2).reshape(like) for x in found.by_key)
    return found._replace(by_key=by_key)


def _most_at_once(number: int, logits_each: int, max_logits: int) -> int:
    """The largest divisor of a number of heads, or of rows, that stays within `max_logits`."""
    fitting = [n for n in range(1, number + 1) if number % n == 0 and n * logits_each <= max_logits]
    return max(fitting, default=1)
