"""A block of SAM's image encoder, with its adapter.

Source: `segment_anything/modeling/image_encoder.py`. What differs:

- qkv is projected before windows are padded and the output after they are joined: padding carries
  the projection's bias, which is what projecting zeros gives, and costs no matrix product.
"""

import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, Float, Int, PRNGKeyArray

from talora_jax.models.adapters import make_adapter
from talora_jax.models.attention import join_windows, split_windows
from talora_jax.models.attention_kernels import KERNELS
from talora_jax.models.gelu import gelu
from talora_jax.models.norm import LayerNorm

# The LayerNorms of blocks; the neck's are called otherwise.
NORMS = nnx.Any(nnx.PathContains("norm1"), nnx.PathContains("norm2"))


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
        qkv = jnp.einsum("...d,dk->...k", x, self.qkv.kernel[...].astype(x.dtype))
        if adapter is not None:
            qkv += adapter(x, task_ids, key)
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
          adapted: LayerNorms and adapter in place of the block's own.
        """
        norm1, norm2, adapter = self.norm1, self.norm2, self.attn.adapter
        if adapted is not None:
            norm1, norm2, adapter = adapted.norm1, adapted.norm2, adapted.adapter
        x += self.attn(norm1(x), self.window, adapter, task_ids, key)
        return x + self.lin2(gelu(self.lin1(norm2(x))))
