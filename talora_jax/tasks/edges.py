"""Edges, and how well they lie on the true ones."""

import dataclasses
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, UInt32

from talora_jax.tasks.base import AnyArray, HostSums, Maps, Sums, Totals
from talora_jax.tasks.binary import Binary, BinaryContent, reached
from talora_jax.tasks.boundaries import count_matches, pack, thin, unpack
from talora_jax.tasks.content import percent

# Of the labelled pixels: lines leave most of an image free, and thin ones nearly all of it.
_MOST_EDGES = 0.5
_MANY_EDGES = 0.25


class EdgesContent(BinaryContent):
    """Of edges."""

    word = "edges"

    @property
    def measurable(self) -> bool:
        return self.yes > 0

    def refusal(self, *, as_masks: bool = False) -> str | None:
        if self.labelled and not self.yes:
            return (
                "no edge anywhere: derived from numbers they lie where two labels meet, which "
                "foreground as 0 and 1 in instance/, or borders of no label, never do; give every "
                "object a number of its own there, or a folder edges/"
            )
        if self.labelled and self.yes_share > _MOST_EDGES:
            return (
                f"{percent(self.yes_share)} of the labelled pixels are edges, expected lines; in a "
                "PNG 0 is none and anything else an edge: turn black and white about"
            )
        return super().refusal(as_masks=as_masks)

    def notes(self) -> list[str]:
        thick = f"{percent(self.yes_share)} of the labelled pixels are edges, much for lines"
        return super().notes() + ([thick] if self.yes_share > _MANY_EDGES else [])


@dataclasses.dataclass(frozen=True)
class Edges(Binary):
    """Edges: weighted binary cross-entropy on one logit (Maninis et al. 2019, "Attentive
    Single-Tasking of Multiple Tasks"). Target float [B,H,W,1]: 1 edge, 0 not, -1 no label.

    positive_weight: weight of an edge pixel; any other pixel weighs 1 - positive_weight.
    tolerance: how far apart two matching pixels may be, as a fraction of the image's diagonal.
    """

    positive_weight: float = 0.95
    tolerance: float = 0.0075

    meaning = "probability of an edge"
    content_kind = EdgesContent
    thresholds = tuple(k / 100 for k in range(1, 100))

    def pixel_loss(self, maps: Maps, target: Float[AnyArray, "B H W 1"]) -> Float[Array, "B H W"]:
        edge = (target[..., 0] > 0.5).astype(jnp.float32)
        weight = jnp.where(edge > 0, self.positive_weight, 1 - self.positive_weight)
        return weight * optax.sigmoid_binary_cross_entropy(maps[..., 0], edge)

    def metrics(self, maps: Maps, target: Float[AnyArray, "B H W 1"]) -> Sums:
        """Counts at the thresholds 0.01, 0.02 … 0.99, of predictions (probability >= threshold) and
        of true edges, all of them and the matched ones.

        A pixel is matched if one of the other kind lies in the square of `tolerance` (rounded up to
        whole pixels) around it, however many others are matched by that one: an approximation from
        above of `host_metrics` that needs no thinning and next to no time.
        """
        _, height, width, _ = target.shape
        radius = math.ceil(self.tolerance * math.hypot(height, width))
        valid, edge = self.valid(target), target[..., 0] > 0.5
        probability = jnp.where(valid, self.activate(maps)[..., 0], 0)
        near_edge = _spread(edge.astype(jnp.float32), radius) > 0
        counts = {
            "predicted": reached(probability, valid, self.thresholds),
            "matched_predicted": reached(probability, valid & near_edge, self.thresholds),
            # Spreading and thresholding commute: one spread serves all the thresholds.
            "matched_true": reached(_spread(probability, radius), edge, self.thresholds),
            "true": jnp.sum(edge, axis=(1, 2))[:, None],
        }
        best = jnp.max(_f_measure(**counts), axis=1)
        return {
            **{f"tolerant/{key}": jnp.sum(count, axis=0) for key, count in counts.items()},
            "tolerant/best": jnp.sum(best),
            "images": jnp.sum(counts["true"] > 0),
        }

    def host_inputs(
        self, maps: Maps, target: Float[AnyArray, "B H W 1"]
    ) -> dict[str, UInt32[Array, "B H W words"]]:
        """`lines`: what is predicted at each of `thresholds`, then the true edges, all thinned."""
        valid, edge = self.valid(target), target[..., 0] > 0.5
        probability = jnp.where(valid, self.activate(maps)[..., 0], 0)
        predicted = probability[..., None] >= np.float32(self.thresholds)
        return {"lines": thin(pack(jnp.concatenate([predicted, edge[..., None]], axis=-1)))}

    def host_metrics(self, inputs: Mapping[str, UInt32[np.ndarray, "B H W words"]]) -> HostSums:
        """Counts of thin predicted and true edges and of those matched one to one: over the batch
        at each threshold, and at that threshold of each image that is best for it (the lowest of
        equals). See `talora_jax.tasks.boundaries`."""
        num_thresholds = len(self.thresholds)
        sums: HostSums = {
            "exact/counts": np.zeros((num_thresholds, 3), np.int64),
            "exact/best": np.zeros(3, np.int64),
        }
        for words in inputs["lines"]:
            *predicted, true = np.moveaxis(unpack(words, num_thresholds + 1), -1, 0)
            distance = self.tolerance * math.hypot(*true.shape)
            counts = np.zeros((num_thresholds, 3), np.int64)
            for k, lines in enumerate(predicted):
                # A model that is sure of itself gives the same edges at many thresholds.
                if k and (lines == predicted[k - 1]).all():
                    counts[k] = counts[k - 1]
                    continue
                matched = count_matches(lines, true, distance)
                counts[k] = np.count_nonzero(lines), matched, np.count_nonzero(true)
            sums["exact/counts"] += counts
            sums["exact/best"] += counts[np.argmax(_one_to_one_f(counts))]
        return sums

    def summarise(self, sums: Totals) -> dict[str, float]:
        """F-measures of precision and recall; nothing for a set without any edge.

        One to one, with the sums of `host_metrics`, as published: `ods_f` at the one threshold that
        is best for the counts of the whole set, `ods_threshold` (the lowest of equals), `ois_f`
        of the counts of all images, each at the threshold that is best for it.

        Within the tolerance: `tolerant/ods_f` and `tolerant/ods_threshold` likewise, and
        `tolerant/ois_f`, the mean over images with an edge of the F-measure at that image's best
        threshold.
        """
        if not sums["images"]:
            return {}
        result = {}
        if "exact/counts" in sums:
            result = self._at_best_threshold("", _one_to_one_f(sums["exact/counts"]))
            result["ois_f"] = float(_one_to_one_f(sums["exact/best"]))
        keys = ("predicted", "matched_predicted", "matched_true", "true")
        tolerant = _f_measure(**{key: np.asarray(sums[f"tolerant/{key}"]) for key in keys})
        return {
            **result,
            **self._at_best_threshold("tolerant/", tolerant),
            "tolerant/ois_f": float(sums["tolerant/best"] / sums["images"]),
        }

    def _at_best_threshold(
        self, protocol: str, f_measure: Float[np.ndarray, "thresholds"]
    ) -> dict[str, float]:
        best = int(np.argmax(f_measure))
        return {
            f"{protocol}ods_f": float(f_measure[best]),
            f"{protocol}ods_threshold": self.thresholds[best],
        }

    def statistics(self, target: Float[AnyArray, "B H W 1"]) -> Sums:
        return {"edges": jnp.sum(target > 0.5), "count": jnp.sum(self.valid(target))}

    def constant(self, statistics: Totals) -> Float[np.ndarray, "1"]:
        """The logit of the share of edges, by Laplace's rule so that it is always finite."""
        edges, count = np.float64(statistics["edges"]), np.float64(statistics["count"])
        return np.float32([np.log((edges + 1) / (count - edges + 1))])


def _spread(maps: Float[AnyArray, "B H W"], radius: int) -> Float[Array, "B H W"]:
    """The largest value in the square of this radius around each pixel."""
    size = 2 * radius + 1
    return jax.lax.reduce_window(maps, -jnp.inf, jax.lax.max, (1, size, size), (1, 1, 1), "SAME")


def _f_measure(predicted, matched_predicted, matched_true, true):
    """Harmonic mean of precision and recall, element by element; 0 where nothing is predicted.

    Counts in NumPy or JAX arrays, int; the answer is of the same kind, float.
    """
    precision = matched_predicted / (predicted + (predicted == 0))
    recall = matched_true / (true + (true == 0))
    return 2 * precision * recall / (precision + recall + (precision + recall == 0))


def _one_to_one_f(counts):
    """The F-measure of predicted, matched and true counts [..., 3]; 0 where there are none."""
    predicted, matched, true = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    return 2 * matched / np.maximum(predicted + true, 1)
