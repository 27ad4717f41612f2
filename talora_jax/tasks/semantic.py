"""Tasks that give each pixel one of several classes."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Int32, UInt8
from matplotlib.colors import hsv_to_rgb

from talora_jax.errors import UserError
from talora_jax.tasks.base import (
    Activated,
    AnyArray,
    AnyTarget,
    Labelled,
    Maps,
    Picture,
    Sums,
    Task,
    Totals,
    Truth,
    bincount,
)
from talora_jax.tasks.legends import Legend, Swatches
from talora_jax.tasks.png import Png
from talora_jax.tasks.target_files import BadFile, FileSettings, read_indices

# In 8-bit PNGs of class indices, the value that nearly every dataset uses for 'no label'.
_IGNORED_IN_UINT8 = 255


@dataclasses.dataclass(frozen=True)
class Semantic(Task):
    """Semantic segmentation: softmax cross-entropy. Target int [B,H,W], -1 = no label.

    A label of `num_classes` or more is a mistake in the data that must show: it makes the loss NaN,
    and `summarise` and `constant` raise a `UserError` that tells how many pixels have one.
    """

    num_classes: int
    class_names: tuple[str, ...] = ()

    target_shape = ()
    target_dtype = stored_dtype = np.int32
    unlabelled = -1
    meaning = "class index, and the probability of each class"

    @classmethod
    def make(cls, name: str, class_names: Sequence[str]) -> "Task":
        if not class_names:
            raise UserError(
                f"Task {name!r} needs a dataset with class names, and this one has none."
            )
        return cls(name, len(class_names), tuple(class_names))

    @classmethod
    def read(cls, path: Path, settings: FileSettings) -> Int32[np.ndarray, "H W"]:
        """Class indices of a PNG or an npy file; -1 is no label, and so is `ignore_label`."""
        return _read_labels(path, settings.class_names, settings.ignore_label)

    @property
    def channels(self) -> int:
        return self.num_classes

    def valid(self, target: AnyTarget) -> Labelled:
        return target >= 0

    def pixel_loss(self, maps: Maps, target: Int[AnyArray, "B H W"]) -> Float[Array, "B H W"]:
        return optax.softmax_cross_entropy_with_integer_labels(maps, jnp.maximum(target, 0))

    def activate(self, maps: Float[AnyArray, "*b H W C"]) -> Float[Array, "*b H W C"]:
        """Log-probabilities."""
        return jax.nn.log_softmax(maps.astype(jnp.float32))

    def outputs(
        self, maps: Float[AnyArray, "*b H W C"], *, probabilities: bool = True
    ) -> dict[str, Array]:
        """The most probable class, int32 [*b,H,W], and as `<name>_probabilities` [*b,H,W,C]."""
        outputs = {self.name: jnp.argmax(maps, axis=-1).astype(jnp.int32)}
        if probabilities:
            outputs[f"{self.name}_probabilities"] = jax.nn.softmax(maps.astype(jnp.float32))
        return outputs

    def metrics(self, maps: Maps, target: Int[AnyArray, "B H W"]) -> Sums:
        """The confusion matrix, int32 [truth, prediction], and the count of unknown labels."""
        cell = target * self.num_classes + jnp.argmax(maps, axis=-1)
        known = self.valid(target) & (target < self.num_classes)
        counts = bincount(cell, known, self.num_classes**2)
        return {
            "confusion": counts.reshape(self.num_classes, self.num_classes),
            "unknown": jnp.sum(target >= self.num_classes),
        }

    def summarise(self, sums: Totals) -> dict[str, float]:
        """`miou`, `pixel_acc`, `absent_classes`, and `iou/<class>` of the classes not absent.

        All from one confusion matrix over the whole set.

        Raises: UserError for labels without a class.
        """
        self._refuse_unknown(sums)
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

    def colours(self) -> UInt8[np.ndarray, "C 3"]:
        """One per class, none of them black."""
        return palette(self.num_classes)

    def picture(self, prediction: Activated, target: Truth | None = None) -> Picture:
        return self.colours()[prediction.argmax(-1)]

    def target_picture(self, target: Truth) -> Picture:
        colours = self.colours()[np.maximum(target, 0)]
        return np.where(target[..., None] >= 0, colours, np.uint8(0))

    def show(self, output: Int[np.ndarray, "H W"]) -> Picture:
        return self.colours()[output]

    def legend(self, output: Int[np.ndarray, "H W"]) -> Legend:
        """The classes that occur."""
        counts = np.bincount(output.ravel(), minlength=self.num_classes)
        present = [i for i in np.argsort(-counts, kind="stable") if counts[i]]
        names = self.class_names or tuple(map(str, range(self.num_classes)))
        return Swatches(
            tuple(names[i] for i in present),
            self.colours()[present],
            tuple(counts[i] / output.size for i in present),
        )

    def png(self, output: Int[np.ndarray, "H W"]) -> Png:
        """Class indices: 8 bits with a palette; 16 bits without one for more than 256 classes."""
        text = {"task": self.name, "class_names": json.dumps(self.class_names)}
        if self.num_classes > 256:
            return Png(output.astype(np.uint16), text)
        return Png(output.astype(np.uint8), text, self.colours())

    def statistics(self, target: Int[AnyArray, "B H W"]) -> Sums:
        known = self.valid(target) & (target < self.num_classes)
        return {
            "classes": bincount(target, known, self.num_classes),
            "unknown": jnp.sum(target >= self.num_classes),
        }

    def constant(self, statistics: Totals) -> Float[np.ndarray, "C"]:
        """One-hot at the most frequent class.

        Raises: UserError for labels without a class.
        """
        self._refuse_unknown(statistics)
        return np.eye(self.num_classes, dtype=np.float32)[np.argmax(statistics["classes"])]

    def _refuse_unknown(self, sums: Totals) -> None:
        if sums["unknown"]:
            raise UserError(
                f"{self.name}: {int(sums['unknown'])} pixels have a label above the last class; "
                f"expected 0 to {self.num_classes - 1}, or -1 for no label."
            )


@dataclasses.dataclass(frozen=True)
class HumanParts(Semantic):
    """The six parts of PASCAL-Context's people, and background. Target int [B,H,W], -1 = no label.

    `Semantic` with classes of its own. An image without people has no label anywhere, so that it
    gives no loss and no metric, as Maninis et al. 2019 ("Attentive Single-Tasking of Multiple
    Tasks", ASTMT) train and evaluate. The mIoU is theirs, too: over all seven classes, background
    among them, but for a class that is absent, which they count as 0 and we leave out.
    """

    part_names: ClassVar[tuple[str, ...]] = (
        "background",
        "head",
        "torso",
        "upper_arm",
        "lower_arm",
        "upper_leg",
        "lower_leg",
    )

    @classmethod
    def make(cls, name: str, class_names: Sequence[str]) -> "Task":
        del class_names  # those are of `semantic`
        return cls(name, len(cls.part_names), cls.part_names)

    @classmethod
    def read(cls, path: Path, settings: FileSettings) -> Int32[np.ndarray, "H W"]:
        """Indices of `part_names`; -1 is no label, and so is 255 in an 8-bit PNG."""
        del settings  # its classes, and the label that means none of them, are of `semantic`
        return _read_labels(path, cls.part_names, None)

    def colours(self) -> UInt8[np.ndarray, "C 3"]:
        """Grey for the background, for it is most of the image."""
        return np.concatenate([np.full((1, 3), 200, np.uint8), palette(self.num_classes - 1)])


def _read_labels(
    path: Path, class_names: Sequence[str], ignored: int | None
) -> Int32[np.ndarray, "H W"]:
    stored = read_indices(path)
    values = stored.astype(np.int32)
    if ignored is None and stored.dtype == np.uint8 and path.suffix != ".npy":
        ignored = _IGNORED_IN_UINT8
    values[values == ignored] = -1
    lowest, highest = values.min(), values.max()
    if lowest < -1:
        raise BadFile(f"label {lowest}, expected -1 (no label) or a class index")
    if class_names and highest >= len(class_names):
        no_label = "-1" if ignored is None else ignored
        raise BadFile(
            f"label {highest}, expected 0 to {len(class_names) - 1} for the {len(class_names)} "
            f"class_names, or {no_label} for no label"
        )
    return values


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
