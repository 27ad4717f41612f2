"""Tasks that give each pixel a positive number: depth and disparity."""

import dataclasses
from pathlib import Path
from typing import ClassVar

import jax.numpy as jnp
import matplotlib
import numpy as np
from jaxtyping import Array, Float, Float32

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
from talora_jax.tasks.legends import Bar, Legend
from talora_jax.tasks.png import Png, scaled
from talora_jax.tasks.target_files import BadFile, FileSettings, open_image, read_plane


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

    @classmethod
    def read(cls, path: Path, settings: FileSettings) -> Float32[np.ndarray, "H W 1"]:
        """A 16-bit PNG in units of 1 / `depth_scale` metres, or an npy file of float metres, where
        what is not finite is no measurement."""
        if path.suffix != ".npy":
            image = open_image(path)
            if image.mode not in ("I;16", "I;16B", "I"):
                raise BadFile(f"mode {image.mode}, expected a 16-bit PNG of one channel")
            values = np.asarray(image).astype(np.float32) / np.float32(settings.depth_scale)
        else:
            values = read_plane(path)
            if values.dtype.kind != "f":
                raise BadFile(f"{values.dtype}, expected float {cls.in_files}")
            if values.ndim != 2:
                raise BadFile(f"shape {values.shape}, expected [H, W] or [H, W, 1]")
            values = np.where(np.isfinite(values), values, 0).astype(np.float32)
        if values.min() < 0:
            raise BadFile(
                f"{cls.__name__.lower()} {values.min():g}, expected 0 (no measurement) or "
                f"{cls.in_files} above"
            )
        if not values.any():
            raise BadFile("all zero, expected a measurement somewhere")
        return values[..., None]

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

    @classmethod
    def nearer(
        cls, target: Float32[np.ndarray, "H W 1"], scale: float
    ) -> Float32[np.ndarray, "H W 1"]:
        return target * np.float32(scale)
