"""The tasks: what each one predicts, how it is trained, measured and drawn.

A `Task` owns its channel count, its activation, its loss, its metrics and its picture; nothing else
in the code asks "is this depth?". A new task is one class here and one line in `TASKS`.

Losses and metrics are sums and counts in float32 and int32: those of two batches (devices, hosts)
added are those of the whole, a pixel without a label adds nothing, and the one division comes last.

Definitions are those of the MTAN data protocol (Liu et al. 2019, "End-to-End Multi-Task Learning
with Attention") as MTSAM (ICLR 2025) applies it. Deviations:
  - mIoU leaves out classes absent from both truth and prediction (NaN there) and says how many.
  - Depth and normals are reported twice: `pooled` over all valid pixels of the set (LibMTL's way),
    and `per_image`, the mean over images with a valid pixel of each image's value (MTSAM's).
  - Angles are 2 atan2(|a - b|, |a + b|) (Kahan), not arccos(a · b), which float32 blurs near 0.
  - A predicted normal of length zero is 90 degrees off (NaN there).
  - Edges are matched within a tolerance, not one to one; see `Edges.metrics`.
"""

import abc
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Num, UInt8
from matplotlib.colors import hsv_to_rgb

from talora_jax.errors import UserError

Maps = Float[Array, "B H W C"]  # what the model gives: raw, of any float type
Target = Num[Array, "B H W *c"]
Mask = Bool[Array, "B H W"]
Sums = dict[str, Array]  # of one batch
Totals = Mapping[str, ArrayLike]  # the same, added over batches
AnyTarget = Num[Array | np.ndarray, "..."]  # with a batch axis or without
Labelled = Bool[Array | np.ndarray, "*b H W"]
Prediction = Float[np.ndarray, "H W C"]  # of one image, activated
Truth = Num[np.ndarray, "H W *c"]
Picture = UInt8[np.ndarray, "H W 3"]


@dataclasses.dataclass(frozen=True)
class Task(abc.ABC):
    """One kind of dense prediction.

    Frozen and hashable: a task can be a static argument of a jitted function.
    """

    name: str
    channels: ClassVar[int]  # number of raw maps, C

    @classmethod
    def make(cls, name: str, class_names: Sequence[str]) -> "Task":
        """This task for a dataset with these classes, which most tasks do not care about."""
        del class_names
        return cls(name)

    @abc.abstractmethod
    def valid(self, target: AnyTarget) -> Labelled:
        """The pixels that carry a label."""

    @abc.abstractmethod
    def pixel_loss(self, maps: Maps, target: Target) -> Float[Array, "B H W"]:
        """Loss of each pixel from float32 maps; any finite value where there is no label."""

    def count(self, target: Target) -> Float[Array, ""]:
        """The count of `loss`, from the target alone."""
        return jnp.sum(self.valid(target)).astype(jnp.float32)

    def loss(self, maps: Maps, target: Target) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """The training loss as (sum, count), both float32: the loss is sum / max(count, 1)."""
        pixel_loss = self.pixel_loss(maps.astype(jnp.float32), target)
        return jnp.sum(_image_sums(pixel_loss, self.valid(target))), self.count(target)

    @abc.abstractmethod
    def activate(self, maps: Float[Array, "*b H W C"]) -> Float[Array, "*b H W C"]:
        """The prediction that raw maps stand for, in float32."""

    @abc.abstractmethod
    def metrics(self, maps: Maps, target: Target) -> Sums:
        """Sums over one batch of raw maps, to be added over batches (on the host, in 64 bits)."""

    @abc.abstractmethod
    def summarise(self, sums: Totals) -> dict[str, float]:
        """The metrics of all the batches behind `sums`. What nothing is valid for is left out."""

    @abc.abstractmethod
    def picture(self, prediction: Prediction, target: Truth | None = None) -> Picture:
        """An activated prediction in colour, on the target's scale where the task has one."""

    def target_picture(self, target: Truth) -> Picture:
        """The truth in the same colours, black where there is no label."""
        return np.where(self.valid(target)[..., None], self.picture(target, target), np.uint8(0))

    @abc.abstractmethod
    def statistics(self, target: Target) -> Sums:
        """Sums over one batch from which `constant` is made, to be added like `metrics`."""

    @abc.abstractmethod
    def constant(self, statistics: Totals) -> Float[np.ndarray, "C"]:
        """The raw map value a model that never looks at the image would give everywhere."""


@dataclasses.dataclass(frozen=True)
class Semantic(Task):
    """Semantic segmentation: softmax cross-entropy. Target int [B,H,W], -1 = no label.

    A label of `num_classes` or more makes the loss NaN: a mistake in the data that must show.
    """

    num_classes: int
    class_names: tuple[str, ...] = ()

    @classmethod
    def make(cls, name: str, class_names: Sequence[str]) -> "Task":
        if not class_names:
            raise UserError(
                f"Task {name!r} needs a dataset with class names, and this one has none."
            )
        return cls(name, len(class_names), tuple(class_names))

    @property
    def channels(self) -> int:
        return self.num_classes

    def valid(self, target: AnyTarget) -> Labelled:
        return target >= 0

    def pixel_loss(self, maps: Maps, target: Int[Array, "B H W"]) -> Float[Array, "B H W"]:
        return optax.softmax_cross_entropy_with_integer_labels(maps, jnp.maximum(target, 0))

    def activate(self, maps: Float[Array, "*b H W C"]) -> Float[Array, "*b H W C"]:
        """Log-probabilities."""
        return jax.nn.log_softmax(maps.astype(jnp.float32))

    def metrics(self, maps: Maps, target: Int[Array, "B H W"]) -> Sums:
        """The confusion matrix, int32 [truth, prediction]."""
        cell = target * self.num_classes + jnp.argmax(maps, axis=-1)
        counts = _bincount(cell, self.valid(target), self.num_classes**2)
        return {"confusion": counts.reshape(self.num_classes, self.num_classes)}

    def summarise(self, sums: Totals) -> dict[str, float]:
        """`miou`, `pixel_acc`, `absent_classes`, and `iou/<class>` of the classes not absent."""
        confusion = np.asarray(sums["confusion"])
        if not confusion.any():
            return {}
        hits = np.diagonal(confusion)
        union = confusion.sum(0) + confusion.sum(1) - hits
        names = self.class_names or range(self.num_classes)
        iou = {
            f"iou/{name}": float(hit / area)
            for name, hit, area in zip(names, hits, union, strict=True)
            if area
        }
        return {
            "miou": sum(iou.values()) / len(iou),
            "pixel_acc": float(hits.sum() / confusion.sum()),
            "absent_classes": float(self.num_classes - len(iou)),
            **iou,
        }

    def picture(self, prediction: Prediction, target: Truth | None = None) -> Picture:
        return palette(self.num_classes)[prediction.argmax(-1)]

    def target_picture(self, target: Truth) -> Picture:
        colours = palette(self.num_classes)[np.maximum(target, 0)]
        return np.where(target[..., None] >= 0, colours, np.uint8(0))

    def statistics(self, target: Int[Array, "B H W"]) -> Sums:
        return {"classes": _bincount(target, self.valid(target), self.num_classes)}

    def constant(self, statistics: Totals) -> Float[np.ndarray, "C"]:
        """One-hot at the most frequent class."""
        return np.eye(self.num_classes, dtype=np.float32)[np.argmax(statistics["classes"])]


@dataclasses.dataclass(frozen=True)
class Depth(Task):
    """Depth: L1. Target float [B,H,W,1] in the data's unit (metres), 0 = no measurement."""

    channels = 1

    def valid(self, target: AnyTarget) -> Labelled:
        return target[..., 0] > 0

    def pixel_loss(self, maps: Maps, target: Float[Array, "B H W 1"]) -> Float[Array, "B H W"]:
        return jnp.abs(maps - target)[..., 0]

    def activate(self, maps: Float[Array, "*b H W 1"]) -> Float[Array, "*b H W 1"]:
        return maps.astype(jnp.float32)

    def metrics(self, maps: Maps, target: Float[Array, "B H W 1"]) -> Sums:
        valid = self.valid(target)
        error = self.pixel_loss(maps.astype(jnp.float32), target)
        truth = jnp.where(valid, target[..., 0], 1)
        return _error_sums({"abs_err": error, "rel_err": error / truth, "rmse": error**2}, valid)

    def summarise(self, sums: Totals) -> dict[str, float]:
        """`abs_err` and `rmse` in the data's unit, `rel_err` |p - t| / t; pooled and per image."""
        return _error_means(sums)

    def picture(self, prediction: Prediction, target: Truth | None = None) -> Picture:
        """Near is yellow, far is violet; the range is the target's if it has one, else its own."""
        if target is None or not (target > 0).any():
            near, far = prediction.min(), prediction.max()
        else:
            near, far = target[target > 0].min(), target.max()
        nearness = (far - prediction[..., 0]) / max(far - near, np.finfo(np.float32).tiny)
        # viridis is perceptually uniform, and its dark end is not the black of "no measurement".
        return matplotlib.colormaps["viridis"](nearness.clip(0, 1), bytes=True)[..., :3]

    def statistics(self, target: Float[Array, "B H W 1"]) -> Sums:
        valid = self.valid(target)
        return {"sum": jnp.sum(target[..., 0], where=valid), "count": jnp.sum(valid)}

    def constant(self, statistics: Totals) -> Float[np.ndarray, "1"]:
        """The mean depth."""
        return np.float32([statistics["sum"] / np.maximum(statistics["count"], 1)])


@dataclasses.dataclass(frozen=True)
class Normals(Task):
    """Surface normals: 1 - cosine. Target float [B,H,W,3], all-zero = no label.

    Unit vectors in the camera's frame: x right, y down, z forward.
    """

    channels = 3
    # The pooled median comes from a histogram, which can be added over batches. Bins of 0.001
    # degrees (0.7 MB of int32) leave it off by less than that.
    bins_per_degree = 1000

    def valid(self, target: AnyTarget) -> Labelled:
        return (target != 0).any(-1)

    def pixel_loss(self, maps: Maps, target: Float[Array, "B H W 3"]) -> Float[Array, "B H W"]:
        return 1 - jnp.sum(_unit(maps) * _unit(target), axis=-1)

    def activate(self, maps: Float[Array, "*b H W 3"]) -> Float[Array, "*b H W 3"]:
        """Unit vectors; a zero vector stays zero."""
        return _unit(maps.astype(jnp.float32))

    def metrics(self, maps: Maps, target: Float[Array, "B H W 3"]) -> Sums:
        valid = self.valid(target)
        prediction, truth = self.activate(maps), self.activate(target)
        opposite = jnp.linalg.norm(prediction - truth, axis=-1)
        angle = jnp.degrees(2 * jnp.arctan2(opposite, jnp.linalg.norm(prediction + truth, axis=-1)))
        within = {
            f"within_{limit}": (angle < limit).astype(jnp.float32) for limit in (11.25, 22.5, 30)
        }
        sums = _error_sums({"mean": angle, "rmse": angle**2, **within}, valid)

        ascending = jnp.sort(jnp.where(valid, angle, jnp.inf).reshape(len(angle), -1))
        pixels = jnp.sum(valid, axis=(1, 2))
        middle = jnp.maximum(pixels - 1, 0) // 2
        medians = jnp.take_along_axis(ascending, middle[:, None], axis=1)[:, 0]
        sums["per_image/median"] = jnp.sum(medians, where=pixels > 0)

        bins = 180 * self.bins_per_degree
        at = jnp.minimum((angle * self.bins_per_degree).astype(jnp.int32), bins - 1)
        sums["histogram"] = _bincount(at, valid, bins)
        return sums

    def summarise(self, sums: Totals) -> dict[str, float]:
        """`mean`, `median`, `rmse` in degrees, `within_11.25` … as fractions; pooled and per image.

        A median is the lower of the two middle values (as `torch.median`); the pooled one is
        interpolated inside its bin.
        """
        result = _error_means(sums)
        if sums["pooled/count"]:
            histogram = np.asarray(sums["histogram"])
            rank = (sums["pooled/count"] - 1) // 2
            seen = np.cumsum(histogram)
            at = np.searchsorted(seen, rank, side="right")
            fraction = (rank + 0.5 - seen[at] + histogram[at]) / histogram[at]
            result["pooled/median"] = float((at + fraction) / self.bins_per_degree)
        return result

    def picture(self, prediction: Prediction, target: Truth | None = None) -> Picture:
        """Red is right, green is up, blue is towards the camera: a wall facing it is lilac."""
        colours = np.rint((prediction * np.float32([1, -1, -1]) + 1) * 127.5).astype(np.uint8)
        return np.where(prediction.any(-1, keepdims=True), colours, np.uint8(0))

    def statistics(self, target: Float[Array, "B H W 3"]) -> Sums:
        return {"direction": jnp.sum(_unit(target.astype(jnp.float32)), axis=(0, 1, 2))}

    def constant(self, statistics: Totals) -> Float[np.ndarray, "3"]:
        """The mean direction."""
        return np.asarray(_unit(jnp.asarray(statistics["direction"], jnp.float32)))


@dataclasses.dataclass(frozen=True)
class Edges(Task):
    """Edges: weighted binary cross-entropy on one logit (Maninis et al. 2019, "Attentive
    Single-Tasking of Multiple Tasks"). Target float [B,H,W,1]: 1 edge, 0 not, -1 no label.

    positive_weight: weight of an edge pixel; any other pixel weighs 1 - positive_weight.
    tolerance: how far apart two matching pixels may be, as a fraction of the image's diagonal.
    """

    positive_weight: float = 0.95
    tolerance: float = 0.0075

    channels = 1
    num_thresholds = 99

    def valid(self, target: AnyTarget) -> Labelled:
        return target[..., 0] >= 0

    def pixel_loss(self, maps: Maps, target: Float[Array, "B H W 1"]) -> Float[Array, "B H W"]:
        edge = (target[..., 0] > 0.5).astype(jnp.float32)
        weight = jnp.where(edge > 0, self.positive_weight, 1 - self.positive_weight)
        return weight * optax.sigmoid_binary_cross_entropy(maps[..., 0], edge)

    def activate(self, maps: Float[Array, "*b H W 1"]) -> Float[Array, "*b H W 1"]:
        """The probability of an edge."""
        return jax.nn.sigmoid(maps.astype(jnp.float32))

    def metrics(self, maps: Maps, target: Float[Array, "B H W 1"]) -> Sums:
        """Counts at the thresholds 0.01, 0.02 … 0.99, of predictions (probability >= threshold) and
        of true edges, all of them and the matched ones.

        A pixel is matched if one of the other kind lies in the square of `tolerance` (rounded up to
        whole pixels) around it. This is a fast approximation from above of the BSDS benchmark
        (Martin et al. 2004), which thins the prediction and matches pixels one to one.
        """
        _, height, width, _ = target.shape
        radius = math.ceil(self.tolerance * math.hypot(height, width))
        thresholds = np.arange(1, self.num_thresholds + 1, dtype=np.float32) / (
            self.num_thresholds + 1
        )
        valid, edge = self.valid(target), target[..., 0] > 0.5
        probability = jnp.where(valid, self.activate(maps)[..., 0], 0)

        def reached(probability: Float[Array, "B H W"], mask: Mask) -> Array:
            """How many pixels of the mask reach each threshold, int32 [B, thresholds]."""
            level = jnp.searchsorted(thresholds, probability, side="right", method="compare_all")
            levels = self.num_thresholds + 1
            histogram = jax.vmap(lambda at, where: _bincount(at, where, levels))(level, mask)
            return jnp.cumsum(histogram[:, ::-1], axis=1)[:, ::-1][:, 1:]

        counts = {
            "predicted": reached(probability, valid),
            "matched_predicted": reached(
                probability, valid & (_spread(edge.astype(jnp.float32), radius) > 0)
            ),
            # Spreading and thresholding commute: one spread serves all the thresholds.
            "matched_true": reached(_spread(probability, radius), edge),
            "true": jnp.sum(edge, axis=(1, 2))[:, None],
        }
        best = jnp.max(_f_measure(**counts), axis=1)
        return {
            **{key: jnp.sum(count, axis=0) for key, count in counts.items()},
            "per_image/ois_f": jnp.sum(best),
            "per_image/count": jnp.sum(counts["true"] > 0),
        }

    def summarise(self, sums: Totals) -> dict[str, float]:
        """`pooled/ods_f`, the F-measure at the one threshold that is best for the set,
        `pooled/ods_threshold` (the lowest of equals); `per_image/ois_f`, the mean over images with
        an edge of the F-measure at that image's best threshold. Without any edge, nothing.
        """
        if not sums["per_image/count"]:
            return {}
        keys = ("predicted", "matched_predicted", "matched_true", "true")
        f_measure = _f_measure(**{key: np.asarray(sums[key]) for key in keys})
        best = int(np.argmax(f_measure))
        return {
            "pooled/ods_f": float(f_measure[best]),
            "pooled/ods_threshold": (best + 1) / (self.num_thresholds + 1),
            **_error_means(sums),
        }

    def picture(self, prediction: Prediction, target: Truth | None = None) -> Picture:
        """White on black."""
        return np.rint(prediction.clip(0, 1) * 255).astype(np.uint8).repeat(3, axis=-1)

    def statistics(self, target: Float[Array, "B H W 1"]) -> Sums:
        return {"edges": jnp.sum(target > 0.5), "count": jnp.sum(self.valid(target))}

    def constant(self, statistics: Totals) -> Float[np.ndarray, "1"]:
        """The logit of the share of edges, by Laplace's rule so that it is always finite."""
        edges, count = np.float64(statistics["edges"]), np.float64(statistics["count"])
        return np.float32([np.log((edges + 1) / (count - edges + 1))])


TASKS: dict[str, type[Task]] = {
    "semantic": Semantic,
    "depth": Depth,
    "normals": Normals,
    "edges": Edges,
}


def make_task(name: str, *, class_names: Sequence[str]) -> Task:
    """The task called `name` on a dataset with these classes.

    Raises: UserError for an unknown name, or for a task that needs classes where there are none.
    """
    if name not in TASKS:
        raise UserError(f"Unknown task {name!r}: expected one of {', '.join(TASKS)}.")
    return TASKS[name].make(name, class_names)


def palette(num_colours: int) -> UInt8[np.ndarray, "N 3"]:
    """Distinct colours, none of them black; a colour does not depend on how many follow it."""
    tab20 = np.array(matplotlib.colormaps["tab20"].colors)
    index = np.arange(max(num_colours - len(tab20), 0))
    # Steps of the golden ratio never meet on the hue circle.
    hues = (index * (math.sqrt(5) - 1) / 2) % 1
    more = hsv_to_rgb(np.stack([hues, 1 - 0.4 * (index % 2), 0.9 - 0.2 * (index % 3)], axis=-1))
    # tab20 lists each colour with its paler sister; all the strong ones first.
    colours = np.concatenate([tab20[::2], tab20[1::2], more])
    return np.rint(colours[:num_colours] * 255).astype(np.uint8)


def _unit(vectors: Float[Array, "*b C"]) -> Float[Array, "*b C"]:
    """Vectors of length 1; one of no length stays zero and has gradient zero, not NaN."""
    square = jnp.sum(vectors**2, axis=-1, keepdims=True)
    safe = square > 1e-30
    return jnp.where(safe, vectors * jax.lax.rsqrt(jnp.where(safe, square, 1)), 0)


def _bincount(index: Int[Array, "*b"], mask: Bool[Array, "*b"], length: int) -> Int[Array, "n"]:
    """How often each index in [0, length) occurs inside the mask, int32."""
    return jnp.bincount(jnp.where(mask, index, length).ravel(), length=length)


def _error_sums(errors: Mapping[str, Float[Array, "B H W"]], valid: Mask) -> Sums:
    """Sums of per-pixel errors over all pixels, and of their per-image means over images.

    `rmse` stands for the squared error: its root is taken after the mean.
    """
    pixels = jnp.sum(valid, axis=(1, 2))
    sums = {"pooled/count": jnp.sum(pixels), "per_image/count": jnp.sum(pixels > 0)}
    for key, error in errors.items():
        total = _image_sums(error, valid)
        mean = total / jnp.maximum(pixels, 1)
        sums[f"pooled/{key}"] = jnp.sum(total)
        sums[f"per_image/{key}"] = jnp.sum(jnp.sqrt(mean) if key == "rmse" else mean)
    return sums


def _image_sums(values: Float[Array, "B H W"], valid: Mask) -> Float[Array, "B"]:
    """Sums over each image's valid pixels, row by row.

    Without the barriers XLA's CPU would make one sum of it and add a small image's pixels one after
    another, which float32 feels in the fifth digit.
    """
    rows = jax.lax.optimization_barrier(jnp.sum(values, axis=2, where=valid))
    return jax.lax.optimization_barrier(jnp.sum(rows, axis=1))


def _error_means(sums: Totals) -> dict[str, float]:
    """The means that the sums of `_error_sums` stand for, none where nothing is valid."""
    means = {}
    for key, total in sums.items():
        protocol, _, metric = key.partition("/")
        if metric and metric != "count" and sums[f"{protocol}/count"]:
            mean = float(total / sums[f"{protocol}/count"])
            means[key] = math.sqrt(mean) if key == "pooled/rmse" else mean
    return means


def _spread(maps: Float[Array, "B H W"], radius: int) -> Float[Array, "B H W"]:
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
