"""Attention over an image grid with decomposed relative positions, whole or in windows.

Source: `segment_anything/modeling/image_encoder.py` (`Attention`, `window_partition`,
`add_decomposed_rel_pos`). What differs:

- The logits of a large grid are never held whole, see `attention_parts`. The backward pass computes
  them again, but not the output, which is kept (Dao et al. 2022, FlashAttention).
- A relative-position table longer than the grid needs is sliced around its centre. Interpolation to
  another grid happens once, when weights are loaded, not at every call.
- Windows are cut after the qkv projection, so padding is never projected; see `ImageEncoder`.
"""

import functools
import math

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from talora_jax.models.attention_parts import MAX_LOGITS, Parts, Tiling, in_parts
from talora_jax.sharding import devices_of_mesh

# What of attention a backward pass may keep, by name; see `config.model.remat`.
ATTENDED = "attended"
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


def positions_of(
    q: Float[Array, "*M h w d"], rel_pos_h: Float[Array, "Lh d"], rel_pos_w: Float[Array, "Lw d"]
) -> tuple[Float[Array, "h h d"], Float[Array, "w w d"]]:
    """The relative positions of a grid of queries, its rows' and its columns', in q's dtype."""
    height, width = q.shape[-3:-1]
    return (
        relative_positions(rel_pos_h, height).astype(q.dtype),
        relative_positions(rel_pos_w, width).astype(q.dtype),
    )


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
    # Every axis of the mesh shares the grids: tasks over `task`, images over `data` and `fsdp`.
    devices = devices_of_mesh()
    logits = q.size // (devices * width_of_head) * height * width
    return _attend(
        Tiling(logits, max_logits, spread=devices > 1),
        *(q, k, v),
        *positions_of(q, rel_pos_h, rel_pos_w),
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(tiling: Tiling, q, k, v, rel_h, rel_w):
    return in_parts(tiling, _attend_rows, Parts((q,), (k, v), rel_h, rel_w)).by_row[0]


def _attend_forward(tiling, *inputs):
    # What is differentiated comes as it was given, as NumPy's array, too.
    inputs = tuple(map(jnp.asarray, inputs))
    # Heads side by side, as the projection takes them: a TPU pads axes as short as a head's.
    kept = rearrange(_attend(tiling, *inputs), "... k h w d -> ... (h w) (k d)")
    kept = checkpoint_name(kept, ATTENDED)
    return _heads_apart(kept, like=inputs[0]), (inputs, kept)


def _attend_backward(tiling, kept, d_out):
    (q, k, v, rel_h, rel_w), out = kept
    given = Parts((q, _heads_apart(out, like=q), d_out), (k, v), rel_h, rel_w)
    found = in_parts(tiling, _gradients_of_rows, given)
    gradients = (*found.by_row, *found.by_key, found.rel_h, found.rel_w)
    return tuple(x.astype(q.dtype) for x in gradients)


_attend.defvjp(_attend_forward, _attend_backward)


def _heads_apart(x, *, like):
    """x [*M, h*w, K*d] in the shape of `like` [*M, K, h, w, d]."""
    *_, heads, height, _, _ = like.shape
    return rearrange(x, "... (h w) (k d) -> ... k h w d", k=heads, h=height)


def _attend_rows(given: Parts) -> Parts:
    """`attend` for some query rows: from q by row, k and v by key, what q attends to."""
    (q,), (k, v), rel_h, rel_w = given
    weights, total = _weights(q, k, rel_h, rel_w)
    v = _in_one_axis(v)
    # The softmax, divided by its sum in the end: fewer times over all logits.
    out = jnp.einsum("...qn,...nd->...qd", weights.astype(v.dtype), v, **_IN_FLOAT32) / total
    return Parts((out.astype(v.dtype).reshape(q.shape),))


def _gradients_of_rows(given: Parts) -> Parts:
    """The backward pass of `_attend_rows`.

    Args:
      given: by row q, what it attends to, and the gradient by that; k and v by key.

    Returns:
      Gradients by q, k and v, and by the relative positions; all but the first in float32.
    """
    (q, out, d_out), (k, v), rel_h, rel_w = given
    scale = 1 / math.sqrt(q.shape[-1])
    weights, total = _weights(q, k, rel_h, rel_w)
    d_out = _in_one_axis(d_out) / total
    # Of a query, Σ weight · (d_out · v) over its keys is d_out · out.
    mean = jnp.einsum("...qd,...qd->...q", d_out, _in_one_axis(out), **_IN_FLOAT32)
    d_out = d_out.astype(v.dtype)
    d_weights = jnp.einsum("...qd,...nd->...qn", d_out, _in_one_axis(v), **_IN_FLOAT32)
    d_logits = weights * (d_weights - mean[..., None])
    by_place = rearrange(d_logits, "... (r w) (i j) -> ... r w i j", w=q.shape[-2], j=k.shape[-2])
    d_rows, d_columns = by_place.sum(axis=-1), by_place.sum(axis=-2)
    weights, d_logits = weights.astype(k.dtype), d_logits.astype(k.dtype)
    d_q = jnp.einsum("...qn,...nd->...qd", d_logits, _in_one_axis(k), **_IN_FLOAT32) * scale
    d_q = d_q.reshape(q.shape)
    d_q += jnp.einsum("...rwi,rid->...rwd", d_rows, rel_h, **_IN_FLOAT32)
    d_q += jnp.einsum("...rwj,wjd->...rwd", d_columns, rel_w, **_IN_FLOAT32)
    # As [d, n]: XLA's kernels for CPUs compute a large product [n, d] at a third of the rate.
    d_keys = tuple(
        jnp.einsum("...qd,...qn->...dn", x, y, **_IN_FLOAT32)
        for x, y in ((_in_one_axis(q * scale), d_logits), (d_out, weights))
    )
    return Parts(
        (d_q.astype(q.dtype),),
        d_keys,
        jnp.einsum("...rwi,...rwd->rid", d_rows, q, **_IN_FLOAT32),
        jnp.einsum("...rwj,...rwd->wjd", d_columns, q, **_IN_FLOAT32),
    )


def _weights(
    q: Float[Array, "*M r w d"],
    k: Float[Array, "*M h v d"],
    rel_h: Float[Array, "r h d"],
    rel_w: Float[Array, "w v d"],
) -> tuple[Float[Array, "*M q n"], Float[Array, "*M q 1"]]:
    """exp of the logits of queries, up to a factor of each, and its sum over keys, in float32."""
    to_rows, to_columns = map(_in_one_axis, relative_terms(q, rel_h, rel_w))
    q = _in_one_axis(q * (1 / math.sqrt(q.shape[-1])))
    logits = jnp.einsum("...qd,...nd->...qn", q, _in_one_axis(k), **_IN_FLOAT32)
    logits = rearrange(logits, "... q (i j) -> ... q i j", j=k.shape[-2])
    logits += to_columns[..., None, :]
    # A row of keys has one `to_rows`: added to the row's highest logit, and subtracted with the
    # highest of all, it takes no addition to all logits of its own.
    highest = (logits.max(axis=-1) + to_rows).max(axis=-1, keepdims=True)
    weights = jnp.exp(logits + (to_rows - highest)[..., :, None])
    weights = rearrange(weights, "... i j -> ... (i j)")
    return weights, weights.sum(axis=-1, keepdims=True)


def _in_one_axis(x: Float[Array, "*M h w e"]) -> Float[Array, "*M h*w e"]:
    return rearrange(x, "... h w e -> ... (h w) e")


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
