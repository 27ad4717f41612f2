"""Tasks that give each pixel one of several classes."""

import collections
import dataclasses
import itertools
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
from jaxtyping import Array, Float, Int, Int32, Integer, UInt8
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
    image_sums,
)
from talora_jax.tasks.content import ALL_ONES, Content
from talora_jax.tasks.legends import Legend, Swatches
from talora_jax.tasks.png import Png
from talora_jax.tasks.target_files import (
    BadFile,
    FileSettings,
    as_int32,
    read_indices,
    read_palette,
)

_WAY_ON = "config.data.ignore_label names the one that is no label"
_PARTS_WAY_ON = "255 is none in 8-bit PNGs alone"

# In 8-bit PNGs of class indices, the value that nearly every dataset uses for 'no label'.
_IGNORED_IN_UINT8 = 255

# Class indices that nobody has named: from so many on, a tenth of them must occur; and the most.
_MANY_CLASSES = 1000
_MOST_CLASSES = 2**16


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelContent(Content):
    """Of class indices.

    Attributes:
      counts: pixels of each class that occurs.
      present: labelled pixels of the images that each occurs in.
    """

    counts: collections.Counter[int]
    present: collections.Counter[int]

    @property
    def num_classes(self) -> int:
        """One more than the highest class index."""
        return max(self.counts, default=-1) + 1

    @property
    def gaps(self) -> int:
        """How many indices below the highest one do not occur."""
        return self.num_classes - len(self.counts)

    def numbers(self) -> dict[str, float]:
        """And the share of each class in the labelled pixels, by its index."""
        return super().numbers() | {
            "classes": len(self.counts),
            "gaps": self.gaps,
            **{f"share/{i}": n / self.labelled for i, n in sorted(self.counts.items())},
        }

    def in_words(self) -> str:
        if not self.counts:
            return super().in_words()
        return (
            f"class ids {min(self.counts)} to {max(self.counts)}, {len(self.counts)} found, "
            f"{self.gaps or 'none'} missing, {super().in_words()}"
        )

    def numbering(self) -> str | None:
        found, last = len(self.counts), self.num_classes - 1
        if last in ALL_ONES and last - 1 not in self.counts:
            return (
                f"{found} class ids occur, {last} and not the one before it among them, which "
                f"looks like a label for none: set config.data.ignore_label={last}, or if it is a "
                f"class name all {last + 1} in config.data.class_names"
            )
        if last >= _MOST_CLASSES or (last >= _MANY_CLASSES and 10 * found <= last):
            return (
                f"{found} class ids occur, up to {last}, expected indices of classes from 0 on: "
                "renumber them, or set config.data.ignore_label if the last one is no label"
            )
        return None

    def refusal(self, *, as_masks: bool = False) -> str | None:
        if len(self.counts) == 1:
            only = next(iter(self.counts))
            some_unlabelled = self.labelled < self.pixels
            # As masks, any class but the background is something to ask about.
            if not as_masks or (only == 0 and some_unlabelled):
                way_on = "; is config.data.ignore_label one of the classes?"
                if only == 0 and some_unlabelled:
                    way_on = (
                        ": in 8-bit PNGs 255 is no label, so that masks of 0 and 255 need 1 where "
                        "they have 255"
                    )
                return (
                    f"every labelled pixel is of class {only}, expected two classes or more"
                    f"{way_on if some_unlabelled else ''}"
                )
        return super().refusal(as_masks=as_masks)

    def notes(self) -> list[str]:
        if not self.gaps:
            return super().notes()
        first = itertools.islice((i for i in range(self.num_classes) if i not in self.counts), 5)
        some = ", ".join(map(str, first)) + (f" and {self.gaps - 5} more" if self.gaps > 5 else "")
        return [*super().notes(), f"class ids up to {self.num_classes - 1}, but no pixel of {some}"]


@dataclasses.dataclass(frozen=True)
class Semantic(Task):
    """Semantic segmentation: softmax cross-entropy. Target int [B,H,W], -1 = no label.

    A label of `num_classes` or more is a mistake in the data that must show: it makes the loss NaN,
    and `summarise` and `constant` raise a `UserError` that tells how many pixels have one.
    """

    num_classes: int
    class_names: tuple[str, ...] = ()
    class_weights: tuple[float, ...] = ()

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
        stored, ignored = read_indices(path), settings.ignore_label
        if ignored is None and is_8_bits(stored, path):
            ignored = _IGNORED_IN_UINT8
        return _labels(stored, settings.class_names, ignored, _WAY_ON)

    @classmethod
    def from_values(cls, values: np.ndarray, settings: FileSettings) -> Int32[np.ndarray, "H W"]:
        return _labels(values, settings.class_names, settings.ignore_label, _WAY_ON)

    @classmethod
    def palette_in_use(cls, path: Path, target: Int[np.ndarray, "H W"]) -> dict[int, tuple]:
        """The colour of each class, where the file has a palette."""
        palette = read_palette(path)
        if palette is None:
            return {}
        return {i: tuple(palette[i].tolist()) for i in _counts(target) if i < len(palette)}

    @classmethod
    def content(cls, target: Int[np.ndarray, "H W"]) -> LabelContent:
        counts = _counts(target)
        labelled = counts.total()
        present = collections.Counter(dict.fromkeys(counts, labelled))
        return LabelContent(pixels=target.size, labelled=labelled, counts=counts, present=present)

    @property
    def channels(self) -> int:
        return self.num_classes

    def valid(self, target: AnyTarget) -> Labelled:
        return target >= 0

    def pixel_loss(self, maps: Maps, target: Int[AnyArray, "B H W"]) -> Float[Array, "B H W"]:
        losses = optax.softmax_cross_entropy_with_integer_labels(maps, jnp.maximum(target, 0))
        return losses * self._weights(target) if self.class_weights else losses

    def count(self, target: Int[AnyArray, "B H W"]) -> Float[Array, ""]:
        """The sum of the labelled pixels' weights: a weighted loss is Σ w l / Σ w."""
        if not self.class_weights:
            return super().count(target)
        return jnp.sum(image_sums(self._weights(target), self.valid(target)))

    def _weights(self, target: Int[AnyArray, "B H W"]) -> Float[Array, "B H W"]:
        # Only ratios matter; what counts at all counts for one at least, as pixels do elsewhere.
        least = min(weight for weight in self.class_weights if weight)
        weights = jnp.float32([weight / least for weight in self.class_weights])
        return weights[jnp.maximum(target, 0)]

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
        return self.colours().take(output, axis=0)

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
        stored = read_indices(path)
        ignored = _IGNORED_IN_UINT8 if is_8_bits(stored, path) else None
        return _labels(stored, cls.part_names, ignored, _PARTS_WAY_ON)

    @classmethod
    def from_values(cls, values: np.ndarray, settings: FileSettings) -> Int32[np.ndarray, "H W"]:
        del settings
        return _labels(values, cls.part_names, None, _PARTS_WAY_ON)

    def colours(self) -> UInt8[np.ndarray, "C 3"]:
        """Grey for the background, for it is most of the image."""
        return np.concatenate([np.full((1, 3), 200, np.uint8), palette(self.num_classes - 1)])


def is_8_bits(stored: Integer[np.ndarray, "H W"], path: Path) -> bool:
    """Whether labels are of an image of 8 bits, where 255 is no label if nobody says otherwise."""
    return stored.dtype == np.uint8 and path.suffix.lower() not in (".npy", ".npz")


def _labels(
    stored: Integer[np.ndarray, "H W"], class_names: Sequence[str], ignored: int | None, way_on: str
) -> Int32[np.ndarray, "H W"]:
    # Before it is cast: what is ignored need not fit.
    nothing = np.zeros(stored.shape, bool) if ignored is None else stored == ignored
    values = as_int32(np.where(nothing, stored.dtype.type(0), stored), way_on)
    values[nothing] = -1
    lowest, highest = values.min(), values.max()
    if lowest < -1:
        raise BadFile(f"label {lowest}, expected -1 (no label) or a class index; {way_on}")
    if class_names and highest >= len(class_names):
        no_label = "-1" if ignored is None else ignored
        raise BadFile(
            f"label {highest}, expected 0 to {len(class_names) - 1} for the {len(class_names)} "
            f"class_names, or {no_label} for no label; {way_on}"
        )
    return values


def _counts(target: Int[np.ndarray, "H W"]) -> collections.Counter[int]:
    """How many pixels each class has that has any."""
    # Sorting is slow, and counting needs room for the highest.
    if target.max() < _MOST_CLASSES:
        pixels = np.bincount(target[target >= 0])
        found = np.flatnonzero(pixels)
        return collections.Counter(dict(zip(found.tolist(), pixels[found].tolist(), strict=True)))
    found, pixels = np.unique(target[target >= 0], return_counts=True)
    return collections.Counter(dict(zip(found.tolist(), pixels.tolist(), strict=True)))


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
