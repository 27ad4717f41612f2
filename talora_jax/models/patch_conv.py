"""Convolutions whose stride is their kernel, 1×1 ones among them, as matrix products of patches.

SAM's patch embedding, its mask prompts and the first layer of its neck are such. With few channels
in or out they are where a convolution library is slowest: on a GPU they took half of a step of
training from prompts, most of it the gradients of kernels.
"""

import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from talora_jax.models.keys import Rngs


class PatchConv(nnx.Conv):
    """An `nnx.Conv`, parameters and all, that moves by its own size.

    Args:
      inputs, outputs: channels.
      patch: the side of the kernel, and the stride.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        patch: int,
        *,
        use_bias: bool = True,
        dtype: DTypeLike = jnp.float32,
        rngs: Rngs,
    ):
        super().__init__(
            inputs,
            outputs,
            (patch, patch),
            strides=(patch, patch),
            padding="VALID",
            use_bias=use_bias,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, inputs: Float[Array, "*b Y X i"]) -> Float[Array, "*b y x o"]:
        """Y and X are multiples of the patch's side, which y and x count."""
        size, _ = self.kernel_size
        kernel = rearrange(self.kernel[...], "r s i o -> (r s i) o").astype(self.dtype)
        patches = rearrange(
            inputs.astype(self.dtype), "... (y r) (x s) i -> ... y x (r s i)", r=size, s=size
        )
        out = patches @ kernel
        return out if self.bias is None else out + self.bias[...].astype(self.dtype)
