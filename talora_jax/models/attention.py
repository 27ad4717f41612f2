"""Attention over an image grid with decomposed relative positions, whole or in windows.

Source: `segment_anything/modeling/image_encoder.py` (`Attention`, `window_partition`,
`add_decomposed_rel_pos`). What differs:

- The logits of a large grid are never held whole: query rows are mapped in tiles (on a CPU some
  heads at a time, of windows, too), and a tile's logits are computed again in the backward pass.
- A relative-position table longer than the grid needs is sliced around its centre. Interpolation to
  another grid happens once, when weights are loaded, not at every call.
- Windows are cut after the qkv projection, so padding is never projected; see `ImageEncoder`.
"""

import functools
import math

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

# Logits held at once before the query rows are tiled: 2**24 elements are 64 MB in float32.
MAX_LOGITS = 2**24
# And on a CPU, where tiles are of some heads: 4 MB, which stay in the caches of two cores. ViT-B's
# windows take a third of the time that they take as a whole.
CPU_TILE = 2**20
_IN_FLOAT32 = {"preferred_element_type": jnp.float32}


def relative_positions(table: Float[Array, "L d"], size: int) -> Float[Array, "size size d"]:
    """The embedding of every (query, key) offset along one axis of the grid.

    Args:
      table: row `i - j + (L - 1) / 2` belongs to query i and key j.
      size: tokens along the axis.

    Raises:
      ValueError: the table is shorter than 2 * size - 1.
    """
    if table.shape[0] < 2 * size - 1:
        raise ValueError(
            f"a relative-position table of {table.shape[0]} rows serves at most "
            f"{(table.shape[0] + 1) // 2} tokens, not {size}"
        )
    centre = (table.shape[0] - 1) // 2
    offsets = jnp.arange(size)[:, None] - jnp.arange(size)[None, :] + centre
    return table[offsets]


def attend(
    q: Float[Array, "*M K h w d"],
    k: Float[Array, "*M K h w d"],
    v: Float[Array, "*M K h w d"],
    rel_pos_h: Float[Array, "Lh d"],
    rel_pos_w: Float[Array, "Lw d"],
    *,
    max_logits: int = MAX_LOGITS,
) -> Float[Array, "*M K h w d"]:
    """softmax(q·k / sqrt(d) + q·Rh + q·Rw) v, over all tokens of each grid.

    The relative terms use the unscaled q, as SAM does. The softmax is in float32 whatever the
    dtype of q, k and v.

    Args:
      q, k, v: grids (tasks, images or windows, in axes of their own), K heads.
      rel_pos_h, rel_pos_w: the tables of relative positions, rows and columns.
      max_logits: above this many logits on one device, query rows are tiled.
    """
    *_, height, width, width_of_head = q.shape
    rel_h = relative_positions(rel_pos_h, height).astype(q.dtype)
    rel_w = relative_positions(rel_pos_w, width).astype(q.dtype)

    # Every axis of the mesh shares the grids: tasks over `task`, images over `data` and `fsdp`.
    mesh = jax.sharding.get_abstract_mesh()
    devices = 1 if mesh.empty else mesh.size
    logits = q.size // (devices * width_of_head) * height * width
    most_on_cpu = min(max_logits, CPU_TILE)
    if logits <= most_on_cpu:
        return _attend_rows(q, rel_h, k, v, rel_w)
    default = _attend_rows
    if logits > max_logits:
        default = functools.partial(
            attend_in_tiles, _attend_rows, logits=logits, max_logits=max_logits
        )
    on_cpu = functools.partial(
        _attend_some_heads, logits=logits, max_logits=most_on_cpu, spread=devices > 1
    )
    return jax.lax.platform_dependent(q, rel_h, k, v, rel_w, cpu=on_cpu, default=default)


def _attend_some_heads(q, rel_h, k, v, rel_w, *, logits: int, max_logits: int, spread: bool):
    """`attend_in_tiles`, some heads after others: a tile's logits stay in a processor's cache.

    Args:
      spread: whether the grids are laid over a mesh. Then each device has its share of a head's
        grids; else heads of all grids are counted alike.
    """
    if spread:
        heads = [jnp.moveaxis(x, -4, 0) for x in (q, k, v)]
    else:
        together = math.prod(q.shape[:-3])
        n = _most_at_once(together, logits // together, max_logits)
        flat = (x.reshape(together, *x.shape[-3:]) for x in (q, k, v))
        heads = [rearrange(x, "(s n) h w d -> s n h w d", n=n) for x in flat]
    share = {"logits": logits // len(heads[0]), "max_logits": max_logits}

    def attend_to(heads):
        q, k, v = heads
        return attend_in_tiles(_attend_rows, q, rel_h, k, v, rel_w, **share)

    out = jax.lax.map(attend_to, tuple(heads))
    return jnp.moveaxis(out, 0, -4) if spread else out.reshape(q.shape)


def attend_in_tiles(
    attend_rows, q, rel_h, k, v, rel_w, *, logits: int, max_logits: int, unit: int = 1
):
    """`attend_rows` for some query rows after others.

    Args:
      attend_rows: takes what `_attend_rows` does.
      q, rel_h, k, v, rel_w: as there, for all rows.
      logits: how many all rows take.
      max_logits: of a tile, unless `unit` rows take more.
      unit: a tile's rows are a multiple of this divisor of all rows.
    """
    units = rel_h.shape[0] // unit
    rows = unit * _most_at_once(units, logits // units, max_logits)
    width = q.shape[-2]

    # A row's tokens and channels share an axis meanwhile: no array has more than six.
    def tile(args):
        q, rel_h = args
        q = rearrange(q, "... r (w d) -> ... r w d", w=width)
        out = attend_rows(q, rel_h, k=k, v=v, rel_w=rel_w)
        return rearrange(out, "... r w d -> ... r (w d)")

    q = rearrange(rearrange(q, "... w d -> ... (w d)"), "... (n r) e -> n ... r e", r=rows)
    rel_h = rearrange(rel_h, "(n r) j d -> n r j d", r=rows)
    out = rearrange(jax.lax.map(jax.checkpoint(tile), (q, rel_h)), "n ... r e -> ... (n r) e")
    return rearrange(out, "... (w d) -> ... w d", w=width)


def _most_at_once(number: int, logits_each: int, max_logits: int) -> int:
    """The largest divisor of a number of heads, or of rows, that stays within `max_logits`."""
    fitting = [n for n in range(1, number + 1) if number % n == 0 and n * logits_each <= max_logits]
    return max(fitting, default=1)


def _attend_rows(q, rel_h, k, v, rel_w):
    """`attend` for some query rows r: q [*M, K, r, w, d], rel_h [r, h, d], k [*M, K, h, w, d]."""
    scale = 1 / math.sqrt(q.shape[-1])
    height, width = k.shape[-3:-1]
    to_rows, to_columns = relative_terms(q, rel_h, rel_w)
    # Queries in one axis, and keys for the softmax: no array has more than six.
    q, to_rows, to_columns = (
        rearrange(x, "... r w d -> ... (r w) d") for x in (q, to_rows, to_columns)
    )
    k, v = (rearrange(x, "... i j d -> ... (i j) d") for x in (k, v))
    logits = _inner_products(q * scale, k)
    logits = rearrange(logits, "... q (i j) -> ... q i j", i=height, j=width)
    logits += to_columns[..., None, :]
    # A row of keys has one `to_rows`: added to the row's highest logit, and subtracted with the
    # highest of all, it takes no addition to all logits of its own.
    highest = (logits.max(axis=-1) + to_rows).max(axis=-1, keepdims=True)
    weights = jnp.exp(logits + (to_rows - jax.lax.stop_gradient(highest))[..., :, None])
    weights = rearrange(weights, "... q i j -> ... q (i j)")
    # The softmax, divided by its sum in the end: fewer times over all logits, forward and backward.
    total = weights.sum(axis=-1, keepdims=True)
    out = jnp.einsum("...qn,...nd->...qd", weights.astype(v.dtype), v, **_IN_FLOAT32) / total
    return rearrange(out.astype(v.dtype), "... (r w) d -> ... r w d", r=rel_h.shape[0])


@jax.custom_vjp
def _inner_products(q: Float[Array, "*M q d"], k: Float[Array, "*M n d"]) -> Float[Array, "*M q n"]:
    """q·k in float32.

    JAX's gradient by k is a product [n, d], which XLA's kernels for CPUs compute at a third of the
    rate of [d, n]: with the latter a global block's backward pass takes 0.85 of the time.
    """
    return jnp.einsum("...qd,...nd->...qn", q, k, **_IN_FLOAT32)


def _inner_products_forward(q, k):
    return _inner_products(q, k), (q, k)


def _inner_products_backward(kept, slope):
    q, k = kept
    by_q = jnp.einsum("...qn,...nd->...qd", slope, k, **_IN_FLOAT32)
    by_k = jnp.einsum("...qd,...qn->...dn", q, slope, **_IN_FLOAT32)
    return by_q.astype(q.dtype), jnp.swapaxes(by_k, -1, -2).astype(k.dtype)


_inner_products.defvjp(_inner_products_forward, _inner_products_backward)


def relative_terms(
    q: Float[Array, "*M r w d"], rel_h: Float[Array, "r h d"], rel_w: Float[Array, "w v d"]
) -> tuple[Float[Array, "*M r w h"], Float[Array, "*M r w v"]]:
    """q·Rh and q·Rw in float32: of query rows r with every row and every column of keys."""
    return (
        jnp.einsum("...rwd,rid->...rwi", q, rel_h, **_IN_FLOAT32),
        jnp.einsum("...rwd,wjd->...rwj", q, rel_w, **_IN_FLOAT32),
    )


def split_windows(
    x: Float[Array, "T B h w D"], window: int
) -> Float[Array, "T windows window window D"]:
    """Cuts grids into windows, zero-padded right and below to whole windows."""
    height, width = x.shape[2:4]
    pad = ((0, 0), (0, 0), (0, -height % window), (0, -width % window), (0, 0))
    # One axis after the other: no array has more than six axes.
    rows = rearrange(jnp.pad(x, pad), "t b (i r) w d -> t (b i) r w d", r=window)
    return rearrange(rows, "t m r (j c) d -> t (m j) r c d", c=window)


def join_windows(
    windows: Float[Array, "T windows window window D"], grid: tuple[int, int]
) -> Float[Array, "T B h w D"]:
    """The inverse of `split_windows`: joins the windows and crops the padding off."""
    height, width = grid
    rows = rearrange(
        windows, "t (m j) r c d -> t m r (j c) d", j=math.ceil(width / windows.shape[3])
    )
    x = rearrange(rows, "t (b i) r w d -> t b (i r) w d", i=math.ceil(height / windows.shape[2]))
    return x[:, :, :height, :width]
