"""What the tasks share that say yes or no of each pixel: one logit, and counts by threshold."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from talora_jax.tasks.base import (
    AnyTarget,
    Labelled,
    Picture,
    Prediction,
    Task,
    Truth,
    bincount,
)


@dataclasses.dataclass(frozen=True)
class Binary(Task):
    """A task of one logit. Target float [B,H,W,1]: 1 yes, 0 no, -1 no label."""

    channels = 1

    def valid(self, target: AnyTarget) -> Labelled:
        return target[..., 0] >= 0

    def activate(self, maps: Float[Array, "*b H W 1"]) -> Float[Array, "*b H W 1"]:
        """The probability of a yes."""
        return jax.nn.sigmoid(maps.astype(jnp.float32))

    def picture(self, prediction: Prediction, target: Truth | None = None) -> Picture:
        """White on black."""
        return np.rint(prediction.clip(0, 1) * 255).astype(np.uint8).repeat(3, axis=-1)


def reached(
    probability: Float[Array, "B H W"],
    mask: Bool[Array, "B H W"],
    thresholds: Sequence[float],
    *,
    above: bool = False,
) -> Int[Array, "B thresholds"]:
    """How many pixels of each image's mask reach each threshold, int32.

    Args:
      thresholds: in ascending order; compared in float32.
      above: whether to reach is to be above, not only at the threshold.
    """
    levels = len(thresholds) + 1
    level = jnp.searchsorted(
        np.float32(thresholds),
        probability,
        side="left" if above else "right",
        method="compare_all",
    )
    histogram = jax.vmap(lambda at, where: bincount(at, where, levels))(level, mask)
    return jnp.cumsum(histogram[:, ::-1], axis=1)[:, ::-1][:, 1:]
