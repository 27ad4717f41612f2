"""What every task is, and the sums that several of them make."""

import abc
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Num, Shaped, UInt8

from talora_jax.tasks.legends import Bar, Legend
from talora_jax.tasks.png import Png, scaled
from talora_jax.tasks.target import PixelTarget, Truth

AnyArray = Array | np.ndarray
Maps = Float[AnyArray, "B H W C"]  # what the model gives: raw, of any float type
Target = Num[AnyArray, "B H W *c"]
Mask = Bool[AnyArray, "B H W"]
Sums = dict[str, Array]  # of one batch
HostSums = dict[str, Int[np.ndarray, "..."]]
Totals = Mapping[str, ArrayLike]  # the same, added over batches
AnyTarget = Num[AnyArray, "..."]  # with a batch axis or without
Labelled = Bool[AnyArray, "*b H W"]
Activated = Float[np.ndarray, "H W C"]  # of one image, as `Task.activate` gives it
Output = Num[np.ndarray, "H W *c"]  # of one image, as `Task.outputs` gives it
Picture = UInt8[np.ndarray, "H W 3"]


@dataclasses.dataclass(frozen=True)
class Task(PixelTarget):
    """One kind of dense prediction.

    Frozen and hashable: a task can be a static argument of a jitted function.
    """

    name: str
    channels: ClassVar[int]  # number of raw maps, C
    meaning: ClassVar[str] = ""  # what the arrays of `outputs` hold, for people

    # Of a task with classes. Not annotated: that would put it before the fields of such a task.
    class_names = ()

    @classmethod
    def make(cls, name: str, class_names: Sequence[str]) -> "Task":
        """This task for a dataset with these classes, which most tasks do not care about."""
        del class_names
        return cls(name)

    # A batch of them and of the model's maps.

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
        return jnp.sum(image_sums(pixel_loss, self.valid(target))), self.count(target)

    @abc.abstractmethod
    def activate(self, maps: Float[AnyArray, "*b H W C"]) -> Float[Array, "*b H W C"]:
        """The prediction that raw maps stand for, in float32."""

    def outputs(
        self, maps: Float[AnyArray, "*b H W C"], *, probabilities: bool = True
    ) -> dict[str, Array]:
        """What raw maps mean to a person: arrays [*b,H,W,…] by name, the task's own first.

        Unless a task says otherwise it is what `activate` gives, one channel without its axis.

        Args:
          probabilities: whether a task with classes gives `<task>_probabilities` beside the labels.
        """
        del probabilities
        activated = self.activate(maps)
        return {self.name: activated[..., 0] if self.channels == 1 else activated}

    @abc.abstractmethod
    def metrics(self, maps: Maps, target: Target) -> Sums:
        """Sums over one batch of raw maps, to be added over batches (on the host, in 64 bits)."""

    def host_inputs(self, maps: Maps, target: Target) -> dict[str, Shaped[Array, "B ..."]]:
        """What `host_metrics` is made from, of one batch, under jit as `metrics` is; for most tasks
        nothing."""
        del maps, target
        return {}

    def host_metrics(self, inputs: Mapping[str, Shaped[np.ndarray, "B ..."]]) -> HostSums:
        """Sums over one batch like those of `metrics`, but by work that XLA is no good at.

        Integers, so that sums over batches and processes are exact. None of the names is one of
        `metrics`; `summarise` gets them all, or where they are switched off those of `metrics`.
        """
        del inputs
        return {}

    @abc.abstractmethod
    def summarise(self, sums: Totals) -> dict[str, float]:
        """The metrics of all the batches behind `sums`. What nothing is valid for is left out."""

    @abc.abstractmethod
    def picture(self, prediction: Activated, target: Truth | None = None) -> Picture:
        """An activated prediction in colour, on the target's scale where the task has one."""

    def target_picture(self, target: Truth) -> Picture:
        """The truth in the same colours, black where there is no label."""
        return np.where(self.valid(target)[..., None], self.picture(target, target), np.uint8(0))

    def target_legend(self, target: Truth) -> Legend | None:
        """What the colours of `target_picture` mean; None where there is no label."""
        labelled = np.asarray(self.valid(target))
        if not labelled.any():
            return None
        # A legend is of what occurs: as one row, without what has no label.
        output = target[labelled][None]
        return self.legend(output[..., 0] if self.channels == 1 else output)

    # How a person gets to see an output. The forms below are those of a map of probabilities.

    def show(self, output: Output) -> Picture:
        """An output in colour."""
        return self.picture(output if output.ndim == 3 else output[..., None])

    def legend(self, output: Output) -> Legend:
        """What the colours of `show` mean."""
        grey = np.arange(256, dtype=np.uint8)[:, None].repeat(3, axis=1)
        return Bar(grey, 0.0, 1.0, "")

    def png(self, output: Output) -> Png:
        """An output as a file: 16 bits, in which 65535 is 1."""
        return scaled(output, 65535, {"task": self.name})

    @abc.abstractmethod
    def statistics(self, target: Target) -> Sums:
        """Sums over one batch from which `constant` is made, to be added like `metrics`."""

    @abc.abstractmethod
    def constant(self, statistics: Totals) -> Float[np.ndarray, "C"]:
        """The raw map value a model that never looks at the image would give everywhere."""


def bincount(
    index: Int[AnyArray, "*b"], mask: Bool[AnyArray, "*b"], length: int
) -> Int[Array, "n"]:
    """How often each index in [0, length) occurs inside the mask, int32."""
    return jnp.bincount(jnp.where(mask, index, length).ravel(), length=length)


def image_sums(values: Float[AnyArray, "B H W"], valid: Mask) -> Float[Array, "B"]:
    """Sums over each image's valid pixels, row by row.

    Without the barriers XLA's CPU would make one sum of it and add a small image's pixels one after
    another, which float32 feels in the fifth digit.
    """
    rows = jax.lax.optimization_barrier(jnp.sum(values, axis=2, where=valid))
    return jax.lax.optimization_barrier(jnp.sum(rows, axis=1))


def error_sums(errors: Mapping[str, Float[AnyArray, "B H W"]], valid: Mask) -> Sums:
    """Sums of per-pixel errors over all pixels, and of their per-image means over images.

    `rmse` stands for the squared error: its root is taken after the mean.
    """
    pixels = jnp.sum(valid, axis=(1, 2))
    sums = {"pooled/count": jnp.sum(pixels), "per_image/count": jnp.sum(pixels > 0)}
    for key, error in errors.items():
        total = image_sums(error, valid)
        mean = total / jnp.maximum(pixels, 1)
        sums[f"pooled/{key}"] = jnp.sum(total)
        sums[f"per_image/{key}"] = jnp.sum(jnp.sqrt(mean) if key == "rmse" else mean)
    return sums


def error_means(sums: Totals) -> dict[str, float]:
    """The means that the sums of `error_sums` stand for, none where nothing is valid."""
    means = {}
    for key, total in sums.items():
        protocol, _, metric = key.partition("/")
        if metric and metric != "count" and sums[f"{protocol}/count"]:
            mean = float(total / sums[f"{protocol}/count"])
            means[key] = math.sqrt(mean) if key == "pooled/rmse" else mean
    return means
