"""Tasks that give each pixel a positive number: depth and disparity."""

import dataclasses
import math
from pathlib import Path
from typing import ClassVar

import jax.numpy as jnp
import matplotlib
import numpy as np
from jaxtyping import Array, Float, Float32, Int, Num

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
    error_means,
    error_sums,
)
from talora_jax.tasks.content import Content, percent
from talora_jax.tasks.legends import Bar, Legend
from talora_jax.tasks.png import Png, scaled
from talora_jax.tasks.target_files import BadFile, FileSettings, open_image, read_plane

# Units of a depth PNG per metre, where nobody says.
_PNG_SCALE = 1000
# Bins of the histogram that a median comes from: their number for each factor of ten, and the
# lowest and highest power of ten. A bin is 0.2 % wide.
_BINS = 1000
_DECADES = (-9, 13)

# Metres: a median outside of these two, and a depth above the next, is no depth of a picture …
_MEDIANS = (0.01, 1000.0)
_FARTHEST = 1e5
# … and one above this may be in centimetres.
_FAR_MEDIAN = 100.0
# The greatest value stands for "none" where it is so many times the one below it and has this share
# of the pixels, if below it there is more than a handful of values or the median is so much lower.
_SENTINEL_GAP = 3.0
_SENTINEL_SHARE = 1e-3
_SENTINEL_BINS = 16
_SENTINEL_MEDIANS = 1000


@dataclasses.dataclass(frozen=True, kw_only=True)
class DepthContent(Content):
    """Of positive numbers.

    Attributes:
      low, high: the least and the greatest; infinity and 0 where there are none.
      at_high: how many pixels have the greatest.
      histogram: of the logarithms.
    """

    low: float
    high: float
    at_high: int
    histogram: Int[np.ndarray, "bins"]

    unit: ClassVar[str] = " m"

    def __add__(self, other: "DepthContent") -> "DepthContent":
        high = max(self.high, other.high)
        return type(self)(
            pixels=self.pixels + other.pixels,
            labelled=self.labelled + other.labelled,
            low=min(self.low, other.low),
            high=high,
            at_high=sum(part.at_high for part in (self, other) if part.high == high),
            histogram=self.histogram + other.histogram,
        )

    @property
    def median(self) -> float:
        """Right to 0.2 %."""
        at = np.searchsorted(np.cumsum(self.histogram), (self.labelled + 1) // 2)
        value = 10 ** ((at + 0.5) / _BINS + _DECADES[0])
        return float(min(max(value, self.low), self.high))

    @property
    def sentinel(self) -> bool:
        """Whether the greatest value lies far above all others and is no rare one."""
        occupied = np.flatnonzero(self.histogram)
        if len(occupied) < 2:
            return False
        many = len(occupied) > _SENTINEL_BINS or self.high > _SENTINEL_MEDIANS * self.median
        gap = occupied[-1] - occupied[-2] > math.log10(_SENTINEL_GAP) * _BINS
        alone = self.histogram[occupied[-1]] == self.at_high
        return bool(many and gap and alone and self.at_high >= _SENTINEL_SHARE * self.labelled)

    def numbers(self) -> dict[str, float]:
        if not self.labelled:
            return super().numbers()
        values = {"min": self.low, "median": self.median, "max": self.high}
        return super().numbers() | values

    def in_words(self) -> str:
        share = f"{percent(self.share)} of the pixels measured"
        if not self.labelled:
            return share
        values = f"min {self.low:.4g}, median {self.median:.3g}, max {self.high:.4g}"
        return f"{values}{self.unit}, {share}"

    def refusal(self, *, as_masks: bool = False) -> str | None:
        if not self.labelled:
            return "no pixel is measured: 0 and what is not finite is no measurement"
        if self.low == self.high:
            return f"every measured pixel is {self.low:.6g}{self.unit}, which is nothing to learn"
        return self._of_what() or super().refusal(as_masks=as_masks)

    def _of_what(self) -> str | None:
        if self.high > _FARTHEST or self.sentinel:
            return (
                f"{percent(self.at_high / self.labelled)} of the pixels measured are "
                f"{self.high:.6g} m far, where the median is {self.median:.3g} m: set "
                "config.data.max_depth to the farthest metres that are a measurement"
            )
        if not _MEDIANS[0] <= self.median <= _MEDIANS[1]:
            return (
                f"the median is {self.median:.3g} m, expected {_MEDIANS[0]:g} to {_MEDIANS[1]:g}: "
                "set config.data.depth_scale to the units of a file per metre, 1000 for "
                "millimetres (without it npy are metres, PNGs millimetres)"
            )
        return None

    def notes(self) -> list[str]:
        notes = super().notes()
        if self.labelled and self.median > _FAR_MEDIAN:
            notes.append(
                f"the median is {self.median:.4g} m; if that is centimetres, set "
                "config.data.depth_scale=100"
            )
        if self.labelled and self.low * _SENTINEL_MEDIANS < self.median:
            notes.append(f"{self.low:.3g} m is next to nothing; no measurement is 0")
        return notes


class DisparityContent(DepthContent):
    """Of inverse depth, whose unit nobody knows."""

    unit = ""

    def _of_what(self) -> str | None:
        if self.sentinel:
            return (
                f"{percent(self.at_high / self.labelled)} of the pixels measured are "
                f"{self.high:.6g}, far above all others: store 0 where nothing was measured"
            )
        return None

    def notes(self) -> list[str]:
        return Content.notes(self)


@dataclasses.dataclass(frozen=True)
class Depth(Task):
    """Depth: L1. Target float [B,H,W,1] in the data's unit (metres), 0 = no measurement."""

    channels = 1
    target_shape = (1,)
    target_dtype = stored_dtype = np.float32
    unlabelled = 0
    meaning = "depth in the unit it was trained on, metres"
    unit: ClassVar[str] = "m"
    in_files: ClassVar[str] = "metres"
    # Of a PNG, the first whose 16 bits reach far enough: to 65 m, 655 m, …
    png_scales: ClassVar[tuple[int, ...]] = (1000, 100, 10, 1)
    near_is_large: ClassVar[bool] = False
    content_kind: ClassVar[type[DepthContent]] = DepthContent

    @classmethod
    def read(cls, path: Path, settings: FileSettings) -> Float32[np.ndarray, "H W 1"]:
        """A 16-bit PNG in units of 1 / `depth_scale` metres (by default millimetres), or an npy
        file of floats in such units (by default metres), where what is not finite is no
        measurement, nor what is above `max_depth`."""
        if path.suffix.lower() != ".npy":
            return cls._measured(_read_16_bits(path, settings), _PNG_SCALE, settings)[..., None]
        return cls.from_values(read_plane(path), settings)

    @classmethod
    def from_values(
        cls, values: np.ndarray, settings: FileSettings
    ) -> Float32[np.ndarray, "H W 1"]:
        if values.dtype.kind != "f":
            raise BadFile(f"{values.dtype}, expected float {cls.in_files}")
        if values.ndim != 2:
            raise BadFile(f"shape {values.shape}, expected [H, W] or [H, W, 1]")
        values = np.where(np.isfinite(values), values, 0)
        if values.min() < 0:
            raise BadFile(
                f"{cls.__name__.lower()} {values.min():g}, expected 0 (no measurement) or "
                f"{cls.in_files} above"
            )
        return cls._measured(values, 1, settings)[..., None]

    @classmethod
    def _measured(
        cls, values: Num[np.ndarray, "H W"], scale: int, settings: FileSettings
    ) -> Float32[np.ndarray, "H W"]:
        """A file's values in the task's unit; `scale` is that of a file of which nobody said it."""
        if settings.depth_scale is not None:
            scale = settings.depth_scale
        return measured(values / np.float64(scale), settings.max_depth)

    @classmethod
    def content(cls, target: Float32[np.ndarray, "H W 1"]) -> DepthContent:
        values = target[target > 0]
        high = float(values.max(initial=0))
        bins = (np.log10(values) - _DECADES[0]) * _BINS
        last = (_DECADES[1] - _DECADES[0]) * _BINS
        return cls.content_kind(
            pixels=target.size,
            labelled=values.size,
            low=float(values.min(initial=np.inf)),
            high=high,
            at_high=int((values == high).sum()),
            histogram=np.bincount(bins.clip(0, last - 1).astype(np.int64), minlength=last),
        )

    @classmethod
    def nearer(
        cls, target: Float32[np.ndarray, "H W 1"], scale: float
    ) -> Float32[np.ndarray, "H W 1"]:
        return target / np.float32(scale)

    def valid(self, target: AnyTarget) -> Labelled:
        return target[..., 0] > 0

    def pixel_loss(self, maps: Maps, target: Float[AnyArray, "B H W 1"]) -> Float[Array, "B H W"]:
        return jnp.abs(maps - target)[..., 0]

    def activate(self, maps: Float[AnyArray, "*b H W 1"]) -> Float[Array, "*b H W 1"]:
        return jnp.asarray(maps, jnp.float32)

    def metrics(self, maps: Maps, target: Float[AnyArray, "B H W 1"]) -> Sums:
        valid = self.valid(target)
        error = self.pixel_loss(maps.astype(jnp.float32), target)
        truth = jnp.where(valid, target[..., 0], 1)
        return error_sums({"abs_err": error, "rel_err": error / truth, "rmse": error**2}, valid)

    def summarise(self, sums: Totals) -> dict[str, float]:
        """`abs_err` and `rmse` in the data's unit, `rel_err` |p - t| / t; pooled and per image."""
        return error_means(sums)

    def picture(self, prediction: Activated, target: Truth | None = None) -> Picture:
        """Near is yellow, far is violet; the range is the target's if it has one, else its own."""
        if target is None or not (target > 0).any():
            low, high = prediction.min(), prediction.max()
        else:
            low, high = target[target > 0].min(), target.max()
        value = prediction[..., 0]
        nearness = value - low if self.near_is_large else high - value
        nearness /= max(high - low, np.finfo(np.float32).tiny)
        # viridis is perceptually uniform, and its dark end is not the black of "no measurement".
        return matplotlib.colormaps["viridis"](nearness.clip(0, 1), bytes=True)[..., :3]

    def legend(self, output: Float[np.ndarray, "H W"]) -> Legend:
        near_is = 1 if self.near_is_large else 0
        nearness = np.linspace(1 - near_is, near_is, 256)
        colours = matplotlib.colormaps["viridis"](nearness, bytes=True)[:, :3]
        return Bar(colours, float(output.min()), float(output.max()), self.unit)

    def png(self, output: Float[np.ndarray, "H W"]) -> Png:
        """16 bits; `scale` in the file's text is the number of pixel units to one `unit`."""
        far, last = np.nan_to_num(output).max(), self.png_scales[-1]
        scale = next((s for s in self.png_scales if far * s < 2**16 - 0.5), last)
        return scaled(output, scale, {"task": self.name, "unit": self.unit})

    def statistics(self, target: Float[AnyArray, "B H W 1"]) -> Sums:
        valid = self.valid(target)
        return {"sum": jnp.sum(target[..., 0], where=valid), "count": jnp.sum(valid)}

    def constant(self, statistics: Totals) -> Float[np.ndarray, "1"]:
        """The mean."""
        return np.float32([statistics["sum"] / np.maximum(statistics["count"], 1)])


@dataclasses.dataclass(frozen=True)
class Disparity(Depth):
    """Inverse depth: L1. Target float [B,H,W,1] as the data stores it, 0 = no measurement.

    What Cityscapes' tables call depth, in MTAN's packing a scaled inverse depth of no known unit.
    Loss and metrics are those of `Depth`, `abs_err` and `rmse` in the data's own unit.
    """

    near_is_large = True
    unit = ""
    in_files = "values"
    suffixes = (".npy",)  # a PNG would need a scale of its own
    png_scales = (100_000, 10_000, 1000, 100, 10, 1)
    meaning = "inverse depth in the unit it was trained on"
    content_kind = DisparityContent

    @classmethod
    def _measured(
        cls, values: Num[np.ndarray, "H W"], scale: int, settings: FileSettings
    ) -> Float32[np.ndarray, "H W"]:
        del scale, settings  # of metres
        return measured(values, None)

    @classmethod
    def nearer(
        cls, target: Float32[np.ndarray, "H W 1"], scale: float
    ) -> Float32[np.ndarray, "H W 1"]:
        return target * np.float32(scale)


def _read_16_bits(path: Path, settings: FileSettings) -> Num[np.ndarray, "H W"]:
    image = open_image(path)
    if image.mode not in ("I;16", "I;16B", "I"):
        raise BadFile(f"mode {image.mode}, expected a 16-bit PNG of one channel")
    values = np.asarray(image)
    if settings.max_depth is None and values.max() == 2**16 - 1:
        raise BadFile(
            "value 65535, all ones, which most often is no measurement: set config.data.max_depth "
            "to the farthest metres that are one"
        )
    return values


def measured(
    values: Num[np.ndarray, "H W *c"], max_depth: float | None
) -> Float32[np.ndarray, "H W *c"]:
    """Depth in float32, 0 (no measurement) where it is above `max_depth`.

    Raises:
      BadFile: a value is too large for float32, which would make infinity of it.
    """
    if max_depth is not None:
        values = np.where(values > max_depth, values.dtype.type(0), values)
    if values.max() > np.finfo(np.float32).max:
        raise BadFile(
            f"value {values.max():g}, expected what float32 holds: store 0 where nothing was "
            "measured, or for depth set config.data.max_depth"
        )
    return values.astype(np.float32)
