"""SAM's prompt encoder: points and boxes to tokens, masks to a dense embedding.

Source: `segment_anything/modeling/prompt_encoder.py`. What differs: a box is two more points, with
labels of their own, and a label can say that there is no point; so any mix of prompts is one array
of points and one of labels (the form of SAM's own ONNX export). mSAM uses the positions alone.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, DTypeLike, Float, Int

from talora_jax.models.gelu import gelu
from talora_jax.models.keys import Rngs
from talora_jax.models.norm import LayerNorm
from talora_jax.models.patch_conv import PatchConv

# Labels of points. A prompt of points without a box carries one NOT_A_POINT, as in SAM.
ABSENT, NOT_A_POINT, BACKGROUND, FOREGROUND, UPPER_LEFT, LOWER_RIGHT = range(-2, 4)

# Channels between a mask prompt and its embedding.
MASK_CHANNELS = 16


class RandomFourierPositions(nnx.Module):
    """Positions as sines and cosines of random projections (Tancik et al. 2020)."""

    def __init__(self, dim: int, *, rngs: Rngs):
        self.gaussian_matrix = nnx.Param(jax.random.normal(rngs.params(), (2, dim // 2)))

    def __call__(self, xy: Float[Array, "*b 2"]) -> Float[Array, "*b dim"]:
        """Encodes points given as fractions (x, y) of the padded square, in [0, 1]."""
        angles = 2 * jnp.pi * ((2 * xy - 1) @ self.gaussian_matrix[...].astype(jnp.float32))
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)

    def grid(self, height: int, width: int, square: int) -> Float[Array, "height width dim"]:
        """Encodes the token centres of the upper left part of a square of `square` tokens."""
        y = (jnp.arange(height) + 0.5) / square
        x = (jnp.arange(width) + 0.5) / square
        return self(jnp.stack(jnp.meshgrid(x, y), axis=-1))


class MaskDownscaling(nnx.Module):
    """Mask logits to the token grid: two convolutions of stride 2 and one of 1×1."""

    def __init__(self, dim: int, *, dtype, rngs):
        conv = functools.partial(PatchConv, dtype=dtype, rngs=rngs)
        norm = functools.partial(LayerNorm, dtype=dtype, rngs=rngs)
        self.conv1 = conv(1, MASK_CHANNELS // 4, 2)
        self.norm1 = norm(MASK_CHANNELS // 4)
        self.conv2 = conv(MASK_CHANNELS // 4, MASK_CHANNELS, 2)
        self.norm2 = norm(MASK_CHANNELS)
        self.conv3 = conv(MASK_CHANNELS, dim, 1)

    def __call__(self, x):
        x = gelu(self.norm1(self.conv1(x)))
        x = gelu(self.norm2(self.conv2(x)))
        return self.conv3(x)


class PromptEncoder(nnx.Module):
    """Prompts to what the mask decoder reads."""

    def __init__(self, dim: int, image_size: int, *, dtype: DTypeLike = jnp.float32, rngs: Rngs):
        row = functools.partial(jax.random.normal, shape=(1, dim))
        self.image_size = image_size
        self.positions = RandomFourierPositions(dim, rngs=rngs)
        self.point_embeddings = nnx.Param(jax.random.normal(rngs.params(), (4, dim)))
        self.not_a_point_embed = nnx.Param(row(rngs.params()))
        self.no_mask_embed = nnx.Param(row(rngs.params()))
        self.mask_downscaling = MaskDownscaling(dim, dtype=dtype, rngs=rngs)

    def points(
        self, points: Float[Array, "*b n 2"], labels: Int[Array, "*b n"]
    ) -> Float[Array, "*b n dim"]:
        """Tokens of points and box corners, in float32.

        Args:
          points: (x, y) in pixels of the padded square; a pixel's centre is half a pixel on.
          labels: what each point is: NOT_A_POINT, BACKGROUND, FOREGROUND, UPPER_LEFT or
            LOWER_RIGHT. An ABSENT point's token is for the mask decoder to leave out.
        """
        tokens = self.positions((points.astype(jnp.float32) + 0.5) / self.image_size)
        tokens += self.point_embeddings[...][jnp.maximum(labels, 0)]
        real = (labels >= 0)[..., None]
        return jnp.where(real, tokens, self.not_a_point_embed[0])

    def masks(self, masks: Float[Array, "*b Y X"]) -> Float[Array, "*b h w dim"]:
        """The dense embedding of mask logits at Y = 4h, X = 4w, such as an earlier prediction's."""
        return self.mask_downscaling(masks[..., None])
