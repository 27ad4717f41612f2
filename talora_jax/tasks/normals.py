"""Surface normals."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32, Int16

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
    error_means,
    error_sums,
)
from talora_jax.tasks.content import Content, percent
from talora_jax.tasks.legends import Key, Legend
from talora_jax.tasks.png import Png
from talora_jax.tasks.target_files import BadFile, FileSettings, open_image, read_npy

_STORED_ONE = 32767
# How long a vector may be that is made one of unit length, and how long the median of a file's.
_LENGTHS = (0.5, 1.5)
_MEDIAN_LENGTHS = (0.75, 1.25)
# Of one, the mean of unit vectors that are all the same, but for rounding.
_ALIKE = 0.9999


@dataclasses.dataclass(frozen=True, kw_only=True)
class NormalsContent(Content):
    """Of unit vectors.

    Attributes:
      unit: how many of them are about as long as that.
      direction: their sum.
    """

    unit: int
    direction: Float[np.ndarray, "3"]

    def numbers(self) -> dict[str, float]:
        return {"valid": self.share}

    def in_words(self) -> str:
        return f"{percent(self.share)} of the pixels have a valid normal"

    def refusal(self, *, as_masks: bool = False) -> str | None:
        expected = "expected unit vectors, as floats or as 8-bit RGB v for 2v/255 - 1"
        if not self.labelled:
            return f"no pixel has a valid normal (all black, zero or not finite), {expected}"
        if 2 * self.unit < self.labelled:
            return f"most vectors are not of unit length, {expected}"
        return super().refusal(as_masks=as_masks)

    def notes(self) -> list[str]:
        alike = np.linalg.norm(self.direction) > _ALIKE * max(self.labelled, 1)
        same = "every normal is the same vector, which is nothing to learn"
        return super().notes() + ([same] if alike else [])


@dataclasses.dataclass(frozen=True)
class Normals(Task):
    """Surface normals: 1 - cosine. Target float [B,H,W,3], all-zero = no label.

    Unit vectors in the camera's frame: x right, y down, z forward.
    """

    channels = 3
    target_shape = (3,)
    target_dtype = np.float32
    stored_dtype = np.int16  # fixed point, right to 2e-5
    unlabelled = 0
    meaning = "unit vectors in the camera's frame: x right, y down, z forward"
    # The pooled median comes from a histogram, which can be added over batches. Bins of 0.001
    # degrees (0.7 MB of int32) leave it off by less than that.
    bins_per_degree = 1000

    @classmethod
    def read(cls, path: Path, settings: FileSettings) -> Float32[np.ndarray, "H W 3"]:
        """An 8-bit RGB PNG v for 2v/255 - 1, or an npy file of floats; all-zero where there is no
        vector of about unit length.

        A surface that the camera sees faces it, so most z must be negative.
        """
        if path.suffix.lower() != ".npy":
            image = open_image(path)
            if image.mode != "RGB":
                raise BadFile(f"mode {image.mode}, expected an 8-bit RGB PNG")
            values = np.asarray(image).astype(np.float32) * np.float32(2 / 255) - 1
        else:
            values = read_npy(path)
        return cls.from_values(values, settings)

    @classmethod
    def from_values(
        cls, values: np.ndarray, settings: FileSettings
    ) -> Float32[np.ndarray, "H W 3"]:
        del settings
        if values.dtype.kind != "f" or values.ndim != 3 or values.shape[2] != 3:
            raise BadFile(f"{values.dtype} of shape {values.shape}, expected float [H, W, 3]")
        with np.errstate(over="ignore"):  # what is too large for float32 is infinitely long
            values = np.where(np.isfinite(values), values, 0).astype(np.float32)
        with np.errstate(over="ignore"):
            length = np.linalg.norm(values, axis=-1, keepdims=True)
        _refuse_other_vectors(values, length[..., 0])
        # Black and mid-grey pixels mark invalid ones in PNGs: they are √3 and about 0 long.
        valid = (length > _LENGTHS[0]) & (length < _LENGTHS[1])
        normals = np.where(valid, values / np.where(valid, length, 1), 0)
        z = normals[..., 2]
        if (z > 0).sum() > (z < 0).sum():
            way_on = "if yours are y up and z to the viewer, turn the signs of y and z"
            if normals.min() >= 0:
                way_on += ", and if they are (n + 1) / 2, store n"
            raise BadFile(
                "most z are positive, expected z < 0 for surfaces that face the camera (x right, "
                f"y down, z forward); {way_on}"
            )
        return normals

    @classmethod
    def content(cls, target: Float32[np.ndarray, "H W 3"]) -> NormalsContent:
        length = np.linalg.norm(target, axis=-1)
        return NormalsContent(
            pixels=length.size,
            labelled=int((length > 0).sum()),
            unit=int(((length > _LENGTHS[0]) & (length < _LENGTHS[1])).sum()),
            direction=target.sum(axis=(0, 1), dtype=np.float64),
        )

    @classmethod
    def store(cls, target: Float32[np.ndarray, "H W 3"]) -> Int16[np.ndarray, "H W 3"]:
        return (target * _STORED_ONE).round().astype(np.int16)

    @classmethod
    def restore(cls, stored: Int16[np.ndarray, "H W 3"]) -> Float32[np.ndarray, "H W 3"]:
        return stored.astype(np.float32) * np.float32(1 / _STORED_ONE)

    @classmethod
    def mirror(cls, target: Float32[np.ndarray, "H W 3"]) -> Float32[np.ndarray, "H W 3"]:
        return target[:, ::-1] * np.array([-1, 1, 1], np.float32)

    @classmethod
    def turn(
        cls, target: Float32[np.ndarray, "H W 3"], angle: float
    ) -> Float32[np.ndarray, "H W 3"]:
        """x and y turn with the image, so they must point along its axes, or both against."""
        cos, sin = np.cos(angle), np.sin(angle)
        turned = target.copy()
        turned[..., :2] = target[..., :2] @ np.array([[cos, sin], [-sin, cos]], np.float32).T
        return turned

    def valid(self, target: AnyTarget) -> Labelled:
        return (target != 0).any(-1)

    def pixel_loss(self, maps: Maps, target: Float[AnyArray, "B H W 3"]) -> Float[Array, "B H W"]:
        return 1 - jnp.sum(_unit(maps) * _unit(target), axis=-1)

    def activate(self, maps: Float[AnyArray, "*b H W 3"]) -> Float[Array, "*b H W 3"]:
        """Unit vectors; a zero vector stays zero."""
        return _unit(maps.astype(jnp.float32))

    def metrics(self, maps: Maps, target: Float[AnyArray, "B H W 3"]) -> Sums:
        valid = self.valid(target)
        prediction, truth = self.activate(maps), self.activate(target)
        opposite = jnp.linalg.norm(prediction - truth, axis=-1)
        angle = jnp.degrees(2 * jnp.arctan2(opposite, jnp.linalg.norm(prediction + truth, axis=-1)))
        within = {
            f"within_{limit}": (angle < limit).astype(jnp.float32) for limit in (11.25, 22.5, 30)
        }
        sums = error_sums({"mean": angle, "rmse": angle**2, **within}, valid)

        ascending = jnp.sort(jnp.where(valid, angle, jnp.inf).reshape(len(angle), -1))
        pixels = jnp.sum(valid, axis=(1, 2))
        middle = jnp.maximum(pixels - 1, 0) // 2
        medians = jnp.take_along_axis(ascending, middle[:, None], axis=1)[:, 0]
        sums["per_image/median"] = jnp.sum(medians, where=pixels > 0)

        bins = 180 * self.bins_per_degree
        at = jnp.minimum((angle * self.bins_per_degree).astype(jnp.int32), bins - 1)
        sums["histogram"] = bincount(at, valid, bins)
        return sums

    def summarise(self, sums: Totals) -> dict[str, float]:
        """`mean`, `median`, `rmse` in degrees, `within_11.25` … as fractions; pooled and per image.

        A median is the lower of the two middle values (as `torch.median`); the pooled one is
        interpolated inside its bin.
        """
        result = error_means(sums)
        if sums["pooled/count"]:
            histogram = np.asarray(sums["histogram"])
            rank = (sums["pooled/count"] - 1) // 2
            seen = np.cumsum(histogram)
            at = np.searchsorted(seen, rank, side="right")
            fraction = (rank + 0.5 - seen[at] + histogram[at]) / histogram[at]
            result["pooled/median"] = float((at + fraction) / self.bins_per_degree)
        return result

    def picture(self, prediction: Activated, target: Truth | None = None) -> Picture:
        """Red is right, green is up, blue is towards the camera: a wall facing it is lilac."""
        colours = np.rint((prediction * np.float32([1, -1, -1]) + 1) * 127.5).astype(np.uint8)
        # Component by component: a reduction of so short an axis takes ten times as long.
        colours[~functools.reduce(np.logical_or, np.moveaxis(prediction != 0, -1, 0))] = 0
        return colours

    def legend(self, output: Float[np.ndarray, "H W 3"]) -> Legend:
        """The half of a ball that the camera sees."""
        across = np.linspace(-1, 1, 97, dtype=np.float32)
        x, y = np.meshgrid(across, across)
        z = -np.sqrt(np.maximum(1 - x**2 - y**2, 0))
        ball = np.where((z < 0)[..., None], np.stack([x, y, z], axis=-1), 0)
        picture = np.where((z < 0)[..., None], self.picture(ball), np.uint8(255))
        return Key(
            picture, ("a ball seen by", "the camera: red", "is right, green", "up, blue near")
        )

    def png(self, output: Float[np.ndarray, "H W 3"]) -> Png:
        """x, y, z as 8-bit RGB, as folders of data have normals: rounded to 1/255."""
        text = {"task": self.name, "values": "x, y, z = 2 * pixel / 255 - 1: right, down, forward"}
        return Png(np.rint((output + 1) * 127.5).astype(np.uint8), text)

    def statistics(self, target: Float[AnyArray, "B H W 3"]) -> Sums:
        return {"direction": jnp.sum(_unit(target.astype(jnp.float32)), axis=(0, 1, 2))}

    def constant(self, statistics: Totals) -> Float[np.ndarray, "3"]:
        """The mean direction."""
        length = np.linalg.norm(statistics["direction"])
        return np.float32(statistics["direction"] / np.where(length > 0, length, 1))


def _refuse_other_vectors(
    values: Float32[np.ndarray, "H W 3"], length: Float[np.ndarray, "H W"]
) -> None:
    # Zero, mid-grey, and black or white in a PNG are no vectors.
    vectors = (length > 0.02) & (np.abs(values) != 1).any(axis=-1)
    if not vectors.any():
        return
    median = np.median(length[vectors])
    if _MEDIAN_LENGTHS[0] <= median <= _MEDIAN_LENGTHS[1]:
        return
    found = values[vectors]
    span = f"values from {found.min():.4g} to {found.max():.4g}"
    raise BadFile(
        f"{span}, vectors of a median length of {median:.3g}, expected unit vectors, x, y and z "
        "from -1 to 1 in an npy file, 2v/255 - 1 in an 8-bit PNG"
    )


def _unit(vectors: Float[AnyArray, "*b C"]) -> Float[Array, "*b C"]:
    """Vectors of length 1; one of no length stays zero and has gradient zero, not NaN."""
    # Component by component: XLA's CPU takes five times as long to sum over so short an axis.
    square = sum(x**2 for x in jnp.moveaxis(vectors, -1, 0))[..., None]
    safe = square > 1e-30
    return vectors * jnp.where(safe, jax.lax.rsqrt(jnp.where(safe, square, 1)), 0)
