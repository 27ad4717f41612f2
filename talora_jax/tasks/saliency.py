"""Saliency, and the two ways in which the multi-task papers measure it."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from talora_jax.tasks.base import AnyArray, Maps, Sums, Totals
from talora_jax.tasks.binary import Binary, BinaryContent, reached


class SaliencyContent(BinaryContent):
    """Of what is salient."""

    word = "salient"
    in_files = "in a PNG of a folder 0 is not salient and anything else is"


@dataclasses.dataclass(frozen=True)
class Saliency(Binary):
    """Saliency: class-balanced binary cross-entropy on one logit. Target float [B,H,W,1]: 1
    salient, 0 not, -1 no label.

    A salient pixel weighs the share of the others in its image, and the other way round, as in HED
    (Xie and Tu 2015, eq. 2), so that an image without one of the two kinds gives a loss of 0.
    ASTMT (Maninis et al. 2019) and its followers take the shares of a whole batch instead, which
    would make the loss depend on how a batch is put together and split over devices.
    """

    meaning = "probability of being salient"
    content_kind = SaliencyContent
    # np.linspace(0.2, 0.9, 15), and 0.05, 0.10 … 0.95.
    miou_thresholds = tuple((4 + k) / 20 for k in range(15))
    f_thresholds = tuple(k / 20 for k in range(1, 20))
    # InvPT's program takes the sigmoid of what already is a probability p, between 1/2 and 0.73,
    # and compares that with `f_thresholds`: p with their logits, of which those count in [0, 1].
    invpt_thresholds = tuple(math.log(k / (20 - k)) for k in range(10, 15))
    beta_squared = 0.3

    def pixel_loss(self, maps: Maps, target: Float[AnyArray, "B H W 1"]) -> Float[Array, "B H W"]:
        valid, salient = self.valid(target), target[..., 0] > 0.5
        pixels = jnp.maximum(jnp.sum(valid, axis=(1, 2), keepdims=True), 1)
        share = jnp.sum(salient, axis=(1, 2), keepdims=True) / pixels
        weight = jnp.where(salient, 1 - share, share)
        truth = salient.astype(jnp.float32)
        return weight * optax.sigmoid_binary_cross_entropy(maps[..., 0], truth)

    def metrics(self, maps: Maps, target: Float[AnyArray, "B H W 1"]) -> Sums:
        """Sums over images of the IoU at each of `miou_thresholds`; counts of salient pixels, true,
        predicted and both, at `f_thresholds` and `invpt_thresholds`."""
        valid, salient = self.valid(target), target[..., 0] > 0.5
        probability = self.activate(maps)[..., 0]
        true = jnp.sum(salient, axis=(1, 2))

        predicted = reached(probability, valid, self.miou_thresholds, above=True)
        hits = reached(probability, salient, self.miou_thresholds, above=True)
        union = predicted + true[:, None] - hits
        iou = jnp.where(union > 0, hits / jnp.maximum(union, 1), 1)
        images = valid.any(axis=(1, 2))
        sums = {
            "iou": jnp.sum(iou, axis=0, where=images[:, None]),
            "images": jnp.sum(images),
            "true": jnp.sum(true),
        }
        for protocol, thresholds in self._f_protocols():
            predicted = reached(probability, valid, thresholds)
            hits = reached(probability, salient, thresholds)
            sums[f"{protocol}/predicted"] = jnp.sum(predicted, axis=0)
            sums[f"{protocol}/hits"] = jnp.sum(hits, axis=0)
        return sums

    def summarise(self, sums: Totals) -> dict[str, float]:
        """`miou_max`, `max_f` and `invpt/max_f`; nothing where nothing is labelled.

        `miou_max` (ASTMT, MTLoRA) is the largest over `miou_thresholds` of the mean over images of
        the IoU of the salient pixels, predicted where the probability is above the threshold; it is
        1 for an image where none is predicted and none is true.

        `max_f` (ATRC, InvPT) is the largest over thresholds of the F-measure with β² = 0.3,
        (1 + β²) P R / (β² P + R), of the precision P and recall R of all the set's pixels together,
        predicted where the probability reaches the threshold; 0 where nothing is hit. By that name
        with the thresholds it is defined with, `f_thresholds`; `invpt/max_f` is with those that
        InvPT's program comes to, and what its tables and its followers' print.
        """
        if not sums["images"]:
            return {}
        result = {"miou_max": float(np.max(sums["iou"]) / sums["images"])}
        for protocol, _ in self._f_protocols():
            hits = np.asarray(sums[f"{protocol}/hits"], np.float64)
            # P = hits / predicted and R = hits / true: no division by what may be zero.
            weighed = self.beta_squared * sums["true"] + np.asarray(sums[f"{protocol}/predicted"])
            f_measure = (1 + self.beta_squared) * hits / np.maximum(weighed, 1)
            name = "max_f" if protocol == "pooled" else f"{protocol}/max_f"
            result[name] = float(np.max(f_measure))
        return result

    def statistics(self, target: Float[AnyArray, "B H W 1"]) -> Sums:
        return {}

    def constant(self, statistics: Totals) -> Float[np.ndarray, "1"]:
        """0, even odds: what the loss, in which both kinds weigh the same, likes best whatever the
        data. It lies above the lower thresholds: everything is salient, the best that a constant
        can do in either metric."""
        return np.zeros(1, np.float32)

    def _f_protocols(self) -> tuple[tuple[str, tuple[float, ...]], ...]:
        return (("pooled", self.f_thresholds), ("invpt", self.invpt_thresholds))
