"""A block of SAM's image encoder, with its adapter.

Source: `segment_anything/modeling/image_encoder.py`. What differs:

- qkv is projected before windows are padded and the output after they are joined: padding carries
  the projection's bias, which is what projecting zeros gives, and costs no matrix product.
- Where nothing trains, an adapter is merged into its kernel if that takes fewer operations, and on
  a CPU the MLP takes some tokens after others.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from talora_jax.models.adapters import make_adapter
from talora_jax.models.attention import join_windows, split_windows
from talora_jax.models.attention_kernels import KERNELS
from talora_jax.models.gelu import gelu
from talora_jax.models.norm import LayerNorm
from talora_jax.sharding import devices_of_mesh

# The LayerNorms of blocks; the neck's are called otherwise.
NORMS = nnx.Any(nnx.PathContains("norm1"), nnx.PathContains("norm2"))
# Tokens at once, of which the hidden layer of ViT-B's MLP (12 MB) stays in a CPU's cache.
MLP_TOKENS = 2**10


class Attention(nnx.Module):
    """Multi-head attention with decomposed relative positions and an adapted qkv projection."""

    def __init__(self, config, adapter, num_tasks, size, attention, *, dtype, rngs):
        head_width = config.width // config.heads
        self.heads = config.heads
        self.attention = attention
        self.qkv = nnx.Linear(config.width, 3 * config.width, dtype=dtype, rngs=rngs)
        self.proj = nnx.Linear(config.width, config.width, dtype=dtype, rngs=rngs)
        self.rel_pos_h = nnx.Param(jnp.zeros((2 * size - 1, head_width)))
        self.rel_pos_w = nnx.Param(jnp.zeros((2 * size - 1, head_width)))
        self.adapter = nnx.data(make_adapter(adapter, config.width, num_tasks, rngs=rngs))

    def __call__(self, x, window, adapter, task_ids, key):
        grid = x.shape[2:4]
        qkv = self._projected(x, adapter, task_ids, key)
        if window:
            qkv = split_windows(qkv, window)
        qkv += self.qkv.bias[...].astype(x.dtype)
        q, k, v = (
            rearrange(x, "t m h w (k d) -> t m k h w d", k=self.heads)
            for x in jnp.split(qkv, 3, axis=-1)
        )
        out = KERNELS[self.attention](q, k, v, self.rel_pos_h[...], self.rel_pos_w[...])
        out = rearrange(out, "t m k h w d -> t m h w (k d)")
        out = join_windows(out, grid) if window else out
        return self.proj(out)

    def _projected(self, x, adapter, task_ids, key):
        """q, k and v of all tokens, but for their bias."""
        kernel = self.qkv.kernel[...].astype(x.dtype)
        if adapter is not None and key is None and _merging_pays(x):
            return jnp.einsum("t...d,tdk->t...k", x, kernel + adapter.merge(task_ids))
        qkv = jnp.einsum("...d,dk->...k", x, kernel)
        return qkv if adapter is None else qkv + adapter(x, task_ids, key)


class Adapted(nnx.Module):
    """What trains of a block: beside a base's blocks, where only some of them are adapted."""

    def __init__(self, config, adapter, num_tasks, *, dtype, rngs):
        self.norm1 = LayerNorm(config.width, dtype=dtype, rngs=rngs)
        self.norm2 = LayerNorm(config.width, dtype=dtype, rngs=rngs)
        self.adapter = nnx.data(make_adapter(adapter, config.width, num_tasks, rngs=rngs))


class Block(nnx.Module):
    """A pre-norm transformer block; `window` = 0 attends to the whole grid."""

    def __init__(self, config, adapter, num_tasks, window, attention, *, dtype, rngs):
        self.window = window
        self.norm1 = LayerNorm(config.width, dtype=dtype, rngs=rngs)
        self.attn = Attention(
            config, adapter, num_tasks, window or config.grid, attention, dtype=dtype, rngs=rngs
        )
        self.norm2 = LayerNorm(config.width, dtype=dtype, rngs=rngs)
        self.lin1 = nnx.Linear(config.width, 4 * config.width, dtype=dtype, rngs=rngs)
        self.lin2 = nnx.Linear(4 * config.width, config.width, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "n B h w D"],
        task_ids: Int[Array, "n"],
        key: PRNGKeyArray | None,
        adapted: Adapted | None = None,
    ) -> Float[Array, "n B h w D"]:
        """
        Args:
          key: for the adapter's dropout; None where nothing trains.
          adapted: LayerNorms and adapter in place of the block's own.
        """
        norm1, norm2, adapter = self.norm1, self.norm2, self.attn.adapter
        if adapted is not None:
            norm1, norm2, adapter = adapted.norm1, adapted.norm2, adapted.adapter
        x += self.attn(norm1(x), self.window, adapter, task_ids, key)

        def mlp(x):
            return x + self.lin2(gelu(self.lin1(norm2(x))))

        # A backward pass gains nothing by parts.
        return mlp(x) if key is not None else _of_tokens(mlp, x)


def _merging_pays(x: Float[Array, "n B h w D"]) -> bool:
    """Whether W + ΔW[t] takes fewer operations than the update of a task's tokens does.

    In fewer bits than float32's the sum would lose what is small of ΔW.
    """
    tokens, width = math.prod(x.shape[1:-1]), x.shape[-1]
    return tokens >= width and x.dtype == jnp.float32 and devices_of_mesh() == 1


def _of_tokens(function: Callable[[Array], Array], x: Float[Array, "*b D"]) -> Float[Array, "*b D"]:
    """A function of each token; on a CPU, `MLP_TOKENS` after others."""
    if devices_of_mesh() > 1 or math.prod(x.shape[:-1]) < 2 * MLP_TOKENS:
        return function(x)

    def in_parts(x):
        tokens = x.reshape(-1, x.shape[-1])
        return jax.lax.map(function, tokens, batch_size=MLP_TOKENS).reshape(x.shape)

    return jax.lax.platform_dependent(x, cpu=in_parts, default=function)
