"""GELU, exact, as PyTorch computes it."""

import math

import jax
import numpy as np
from jaxtyping import Array, Float


def gelu(x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """x Φ(x) = x / 2 · (1 + erf(x / √2)), to float32's rounding.

    `jax.nn.gelu` has the complement of the error function, for which a CPU takes two and a half
    times as long. Numbers of fewer bits need it: of theirs, a small 1 + erf(x) has no digits left.
    """
    if x.dtype != np.float32:
        return jax.nn.gelu(x, approximate=False)
    return 0.5 * x * (1 + jax.lax.erf(x * np.float32(math.sqrt(0.5))))
