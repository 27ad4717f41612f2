"""Attention by accelerators' own kernels, for the encoder's global blocks.

The words of `config.model.attention`:

- `xla`: `attention.attend`, plain XLA on every platform.
- `splash`: the splash attention of TPUs, which comes with JAX (Pallas). It takes no bias, and needs
  none: with unit vectors for a key's row and column, the relative positions are part of one inner
  product, [q / sqrt(d), q·Rh, q·Rw] · [k, row, column]. On a 64×64 grid a head of 64 becomes one of
  192 (ViT-H: 80 and 208), two times a TPU's 128 lanes. No logit leaves the kernel.
- `cudnn`: cuDNN's attention on NVIDIA GPUs, with the relative positions as a bias, made for one
  tile of query rows after the other. The longer heads would need none, but cuDNN has no backward
  pass for heads above 128 on Ampere and Blackwell, and JAX wants values as long as keys, which
  triples the products.
- `tokamax`: Tokamax's Triton kernels (Pallas) on NVIDIA GPUs, in bfloat16 or float32. They take
  values shorter than keys, so the relative positions are folded in as for `splash`, and no logit
  leaves the kernel. It is the extra `tokamax`, for Python 3.12 and newer.
- `auto`: `splash` on TPUs, for what compiled programs tell (see `choose`); `xla` elsewhere.

Windows are small: they go by `attend` on every platform.

In bfloat16 these kernels round the relative terms of a logit to bfloat16, which `attend` adds in
float32; logits and softmax are in float32 in all of them.
"""

import functools
import importlib.util
import math
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec
from jaxtyping import Array, DTypeLike, Float

from talora_jax.errors import UserError
from talora_jax.models.attention import ATTENDED, attend, positions_of, relative_terms
from talora_jax.models.attention_parts import Parts, in_tiles

# Splash pads heads and tokens to a TPU's lanes, and works on square blocks of one of these sizes.
LANES = 128
BLOCKS = (512, 256, 128)
# Elements of cuDNN's bias at once: 128 MB in bfloat16, and as much for its gradient. Tiles as small
# as `attend`'s would leave most of a GPU idle.
MAX_BIAS = 2**26
# What the backward pass of splash keeps, by name: the output and log Σ exp of the logits.
KEPT = "splash_attention"


def choose(word: str, platform: str) -> str:
    """The kernel that a word of the config means on a platform, as JAX names it.

    `auto` is `splash` on TPUs. Compiled for v5e (16 heads of 64, 64×64 tokens, three tasks,
    bfloat16), attention and its backward pass take 28 million cycles in the kernels, by the
    compiler's schedule of their instructions, and 23 million around them, by XLA's estimate; XLA's
    estimate for the tiles of `attend` is 257 million. On GPUs there is no such evidence.
    """
    if word == "auto":
        return "splash" if platform == "tpu" else "xla"
    return word


def check(word: str, device: Any, dtype: DTypeLike) -> None:
    """Refuses a kernel that was asked for by name where it cannot run.

    Args:
      word: of `ATTENTION`.
      device: one of those to compile for, a `jax.Device`.
      dtype: of activations.

    Raises:
      UserError: names what the kernel needs.
    """
    instead = "; config.model.attention=auto chooses what runs here"
    if word == "splash" and device.platform != "tpu":
        raise UserError(
            f"config.model.attention=splash needs a TPU, but the devices are {device.platform}"
            + instead
        )
    if word in ("cudnn", "tokamax"):
        version = device.client.platform_version if device.platform == "gpu" else ""
        if "cuda" not in version:
            raise UserError(
                f"config.model.attention={word} needs an NVIDIA GPU, but the devices are "
                f"{device.platform}" + instead
            )
        if float(device.compute_capability) < 8:
            raise UserError(
                f"config.model.attention={word} needs compute capability 8.0 (Ampere) or newer, "
                f"but {device.device_kind} has {device.compute_capability}" + instead
            )
    if word == "cudnn" and jnp.dtype(dtype) != jnp.bfloat16:
        raise UserError(
            f"config.model.attention=cudnn needs config.model.dtype=bfloat16, not {dtype}" + instead
        )
    if word == "tokamax" and importlib.util.find_spec("tokamax") is None:
        raise UserError(
            "config.model.attention=tokamax needs tokamax, in Python 3.12 or newer: "
            "pip install 'talora_jax[tokamax]'" + instead
        )


def splash(
    q: Float[Array, "T B K h w d"],
    k: Float[Array, "T B K h w d"],
    v: Float[Array, "T B K h w d"],
    rel_pos_h: Float[Array, "Lh d"],
    rel_pos_w: Float[Array, "Lw d"],
    *,
    interpret: bool = False,
) -> Float[Array, "T B K h w d"]:
    """`attend` on a TPU, by its splash attention kernel.

    Grids take turns: what the kernel works on, padded to whole lanes, is alive for one at a time.

    Args:
      interpret: runs the kernel on any platform, slowly.
    """
    return _on_each_device(
        functools.partial(_splash, interpret=interpret), q, k, v, rel_pos_h, rel_pos_w
    )


def _splash(q, k, v, rel_pos_h, rel_pos_w, *, interpret: bool):
    # Imported here: Pallas takes a while, and few devices need it.
    from jax.experimental.pallas.ops.tpu import splash_attention

    heads, height, width = q.shape[2:5]
    tokens = height * width
    padding = -tokens % LANES
    block = next(size for size in BLOCKS if (tokens + padding) % size == 0)
    mask = splash_attention.FullMask((tokens + padding,) * 2)
    kernel = splash_attention.make_splash_mha_single_device(
        splash_attention.MultiHeadMask([mask] * heads),
        block_sizes=splash_attention.BlockSizes(
            **{f"block_{axis}": block for axis in ("q", "q_dkv", "q_dq")},
            **{f"block_{axis}": block for axis in ("kv", "kv_dkv", "kv_dq")},
        ),
        residual_checkpoint_name=KEPT,
        interpret=interpret,
    )
    # Queries attend within their segment: none is of that of the padding.
    is_padding = (jnp.arange(tokens + padding) >= tokens).astype(jnp.int32)
    segments = splash_attention.SegmentIds(jnp.zeros_like(is_padding), is_padding)

    # The backward pass folds the relative positions in again, and does not run the kernel again.
    @functools.partial(
        jax.checkpoint,
        policy=jax.checkpoint_policies.save_only_these_names(KEPT),
        prevent_cse=False,
    )
    def grid(q, k, v):
        q, k = fold_relative_positions(q, k, rel_pos_h, rel_pos_w)
        flat = (rearrange(x, "k h w d -> k (h w) d") for x in (q, k, v))
        padded = (jnp.pad(x, ((0, 0), (0, padding), (0, 0))) for x in flat)
        out = kernel(*padded, segments if padding else None)[:, :tokens]
        return rearrange(out, "k (h w) d -> k h w d", h=height)

    grids = (rearrange(x, "t b ... -> (t b) ...") for x in (q, k, v))
    out = jax.lax.map(lambda qkv: grid(*qkv), tuple(grids))
    return rearrange(out, "(t b) ... -> t b ...", t=q.shape[0])


def fold_relative_positions(
    q: Float[Array, "*M h w d"],
    k: Float[Array, "*M h w d"],
    rel_pos_h: Float[Array, "Lh d"],
    rel_pos_w: Float[Array, "Lw d"],
) -> tuple[Float[Array, "*M h w d+h+w"], Float[Array, "*M h w d+h+w"]]:
    """Queries and keys whose plain inner products are the logits of `attend`."""
    *_, height, width, width_of_head = q.shape
    terms = relative_terms(q, *positions_of(q, rel_pos_h, rel_pos_w))
    terms = (x.astype(q.dtype) for x in terms)
    row = jnp.broadcast_to(jnp.eye(height, dtype=k.dtype)[:, None], (*k.shape[:-1], height))
    column = jnp.broadcast_to(jnp.eye(width, dtype=k.dtype), (*k.shape[:-1], width))
    return (
        jnp.concatenate([q * (1 / math.sqrt(width_of_head)), *terms], axis=-1),
        jnp.concatenate([k, row, column], axis=-1),
    )


def cudnn(
    q: Float[Array, "T B K h w d"],
    k: Float[Array, "T B K h w d"],
    v: Float[Array, "T B K h w d"],
    rel_pos_h: Float[Array, "Lh d"],
    rel_pos_w: Float[Array, "Lw d"],
    *,
    max_bias: int = MAX_BIAS,
    implementation: str = "cudnn",
) -> Float[Array, "T B K h w d"]:
    """`attend` on an NVIDIA GPU, by cuDNN.

    Args:
      max_bias: above this many elements of the bias on one device, query rows are tiled.
      implementation: of `jax.nn.dot_product_attention`.
    """
    on_device = functools.partial(_cudnn, max_bias=max_bias, implementation=implementation)
    return _on_each_device(on_device, q, k, v, rel_pos_h, rel_pos_w)


def _cudnn(q, k, v, rel_pos_h, rel_pos_w, *, max_bias: int, implementation: str):
    *_, height, width, width_of_head = q.shape
    size = q.size // width_of_head * height * width
    of_rows = functools.partial(_cudnn_rows, implementation=implementation)
    if size > max_bias:  # a tile's bias is made again in the backward pass
        of_rows = jax.checkpoint(of_rows)
    given = Parts((q,), (k, v), *positions_of(q, rel_pos_h, rel_pos_w))
    # cuDNN's backward pass with a bias wants an even number of queries.
    unit = 2 if width % 2 and height % 2 == 0 else 1
    found = in_tiles(given, of_rows=of_rows, logits=size, max_logits=max_bias, unit=unit)
    return found.by_row[0]


def _cudnn_rows(given: Parts, *, implementation: str) -> Parts:
    """`attend` for some query rows r: q [T, B, K, r, w, d]."""
    (q,), keys, rel_h, rel_w = given
    tasks, rows = q.shape[0], q.shape[3]
    to_rows, to_columns = relative_terms(q, rel_h, rel_w)
    bias = (to_rows[..., :, None] + to_columns[..., None, :]).astype(q.dtype)
    out = jax.nn.dot_product_attention(
        *(rearrange(x, "t b k h w d -> (t b) (h w) k d") for x in (q, *keys)),
        bias=rearrange(bias, "t b k r w i j -> (t b) k (r w) (i j)"),
        scale=1 / math.sqrt(q.shape[-1]),
        implementation=implementation,
    )
    return Parts((rearrange(out, "(t b) (r w) k d -> t b k r w d", t=tasks, r=rows),))


def tokamax(
    q: Float[Array, "T B K h w d"],
    k: Float[Array, "T B K h w d"],
    v: Float[Array, "T B K h w d"],
    rel_pos_h: Float[Array, "Lh d"],
    rel_pos_w: Float[Array, "Lw d"],
) -> Float[Array, "T B K h w d"]:
    """`attend` on an NVIDIA GPU, by Tokamax.

    Where the backward pass computes blocks again it runs the forward kernel, too: what the kernels
    keep for it has no name, as in `splash`.
    """
    return _on_each_device(_tokamax, q, k, v, rel_pos_h, rel_pos_w)


def _tokamax(q, k, v, rel_pos_h, rel_pos_w):
    # An extra, and it takes seconds to import.
    from tokamax import dot_product_attention

    tasks, height = q.shape[0], q.shape[3]
    q, k = fold_relative_positions(q, k, rel_pos_h, rel_pos_w)
    out = dot_product_attention(
        *(rearrange(x, "t b k h w d -> (t b) (h w) k d") for x in (q, k, v)),
        scale=1.0,  # which q has
        # Its Mosaic kernels have no float32, and no backward pass on Ampere.
        implementation="triton",
    )
    return rearrange(out, "(t b) (h w) k d -> t b k h w d", t=tasks, h=height)


def _on_each_device(kernel, q, k, v, *tables):
    """`kernel` on each device's own grids: XLA cannot divide a kernel among devices by itself.

    What it gives is called `ATTENDED`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return checkpoint_name(kernel(q, k, v, *tables), ATTENDED)

    def share(axes, size):
        return axes if size % math.prod(mesh.shape[axis] for axis in axes) == 0 else None

    # As the encoder's activations are laid out.
    grids = PartitionSpec(share(("task",), q.shape[0]), share(("data", "fsdp"), q.shape[1]))
    spread = jax.shard_map(
        kernel,
        in_specs=(grids,) * 3 + (PartitionSpec(),) * len(tables),
        out_specs=grids,
        check_vma=False,  # kernels do not tell over which axes their results vary
    )
    return checkpoint_name(spread(q, k, v, *tables), ATTENDED)


KERNELS = {"xla": attend, "splash": splash, "cudnn": cudnn, "tokamax": tokamax}
# The words of the config.
ATTENTION = ("auto", *KERNELS)
