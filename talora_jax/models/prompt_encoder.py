"""What is left of SAM's prompt encoder in mSAM: the dense positional encoding.

Source: `segment_anything/modeling/prompt_encoder.py` (`PositionEmbeddingRandom`).
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class RandomFourierPositions(nnx.Module):
    """Positions as sines and cosines of random projections (Tancik et al. 2020)."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
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
