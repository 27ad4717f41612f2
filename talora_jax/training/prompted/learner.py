"""What trains from prompts: a SAM, and linear layers for auxiliary targets, which are dropped."""

from collections.abc import Mapping

import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jaxtyping import Array, DTypeLike, Float

from talora_jax.models.adapters import AdapterConfig, TaskParam
from talora_jax.models.image_encoder import ImageEncoder
from talora_jax.models.keys import Rngs
from talora_jax.models.msam import norms
from talora_jax.models.sam import Sam

# Pixels of a mask's logits along a token's side.
FINE = 4


class Learner(nnx.Module):
    """A SAM that learns from prompts, and maybe from auxiliary targets beside them."""

    def __init__(
        self,
        sam: Sam,
        auxiliary: Mapping[str, int],
        *,
        dtype: DTypeLike = jnp.float32,
        rngs: Rngs,
    ):
        """
        Args:
          auxiliary: channels of every auxiliary task.
        """
        self.sam = sam
        self.auxiliary = nnx.Dict(
            {
                name: nnx.Linear(sam.config.decoder.dim, channels * FINE**2, dtype=dtype, rngs=rngs)
                for name, channels in auxiliary.items()
            }
        )

    @property
    def image_encoder(self) -> ImageEncoder:
        """The SAM's."""
        return self.sam.image_encoder

    def auxiliary_maps(
        self, embeddings: Float[Array, "B h w D"]
    ) -> dict[str, Float[Array, "B 4*h 4*w C"]]:
        """Raw maps of the auxiliary tasks."""
        return {
            name: rearrange(
                linear(embeddings), "b h w (i j c) -> b (h i) (w j) c", i=FINE, j=FINE
            ).astype(jnp.float32)
            for name, linear in self.auxiliary.items()
        }


def trainable(adapter: AdapterConfig, learns: str = "all") -> nnx.filterlib.Filter:
    """The filter that names what trains, `config.prompts.learns`, with such an adapter.

    `full`: all but the random Fourier features, which SAM never trains. Else what TA-LoRA adds, the
    adapted blocks' LayerNorms, and the mask decoder: the prompt encoder stays SAM's.
    """
    if learns == "iou_head":
        return nnx.PathContains("iou_prediction_head")
    if adapter.kind == "full":
        return nnx.Not(nnx.PathContains("gaussian_matrix"))
    return nnx.Any(
        TaskParam,
        nnx.PathContains("mask_decoder"),
        nnx.PathContains("auxiliary"),
        norms(adapter),
    )
