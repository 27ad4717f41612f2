"""What the tasks share that say yes or no of each pixel: one logit, and counts by threshold."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32, Int, Integer

from talora_jax.tasks.base import (
    Activated,
    AnyArray,
    AnyTarget,
    Labelled,
    Picture,
    Task,
    Truth,
    bincount,
)
from talora_jax.tasks.content import Content, percent
from talora_jax.tasks.target_files import BadFile, FileSettings, read_indices, read_plane, span


@dataclasses.dataclass(frozen=True, kw_only=True)
class BinaryContent(Content):
    """Of yes and no.

    Attributes:
      yes: how many pixels say yes.
    """

    yes: int
    word: ClassVar[str] = "yes"
    in_files: ClassVar[str] = "in a PNG 0 is no and anything else yes"

    @property
    def yes_share(self) -> float:
        return self.yes / max(self.labelled, 1)

    def numbers(self) -> dict[str, float]:
        return super().numbers() | {self.word: self.yes_share}

    def in_words(self) -> str:
        return f"{percent(self.yes_share)} {self.word}, {super().in_words()}"

    def refusal(self, *, as_masks: bool = False) -> str | None:
        if self.labelled and self.yes in (0, self.labelled):
            which = "no" if not self.yes else "every"
            return f"{which} labelled pixel is {self.word}, expected both kinds; {self.in_files}"
        return super().refusal(as_masks=as_masks)


@dataclasses.dataclass(frozen=True)
class Binary(Task):
    """A task of one logit. Target float [B,H,W,1]: 1 yes, 0 no, -1 no label."""

    channels = 1
    target_shape = (1,)
    target_dtype = np.float32
    stored_dtype = np.int8
    unlabelled = -1
    content_kind: ClassVar[type[BinaryContent]] = BinaryContent

    @classmethod
    def read(cls, path: Path, settings: FileSettings) -> Float32[np.ndarray, "H W 1"]:
        """A PNG of 0 for no, anything else for yes; an npy file of 1, 0 and -1."""
        if path.suffix.lower() != ".npy":
            values = read_indices(path)
            if {1, 255} <= set(np.unique(values)) <= {0, 1, 255}:
                raise BadFile(
                    "values 1 and 255, of which both would be yes; if 255 is no label, save npy "
                    "of 1, 0 and -1"
                )
            if _is_grey(values):
                raise BadFile(
                    f"{span(values)}, many of them in between, expected 0 and one other value: "
                    "choose a threshold before"
                )
            return (values != 0).astype(np.float32)[..., None]
        return cls.from_values(read_plane(path), settings)

    @classmethod
    def from_values(
        cls, values: np.ndarray, settings: FileSettings
    ) -> Float32[np.ndarray, "H W 1"]:
        del settings
        if values.ndim != 2 or not np.isin(values, (-1, 0, 1)).all():
            raise BadFile(f"shape {values.shape}, {span(values)}, expected [H, W] of 1, 0 and -1")
        return values.astype(np.float32)[..., None]

    @classmethod
    def content(cls, target: Float32[np.ndarray, "H W 1"]) -> BinaryContent:
        return cls.content_kind(
            pixels=target.size,
            labelled=int((target >= 0).sum()),
            yes=int((target > 0.5).sum()),
        )

    def valid(self, target: AnyTarget) -> Labelled:
        return target[..., 0] >= 0

    def activate(self, maps: Float[AnyArray, "*b H W 1"]) -> Float[Array, "*b H W 1"]:
        """The probability of a yes."""
        return jax.nn.sigmoid(maps.astype(jnp.float32))

    def picture(self, prediction: Activated, target: Truth | None = None) -> Picture:
        """White on black."""
        return np.rint(prediction.clip(0, 1) * 255).astype(np.uint8).repeat(3, axis=-1)


def reached(
    probability: Float[AnyArray, "B H W"],
    mask: Bool[AnyArray, "B H W"],
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


def _is_grey(values: Integer[np.ndarray, "H W"]) -> bool:
    """Whether it is a map of how sure somebody was. The border of a smoothed mask is little of it,
    and objects that are numbered are few."""
    between = (values != 0) & (values != values.max())
    return bool(between.mean() > 0.5) and len(np.unique(values)) > 16
