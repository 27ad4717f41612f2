"""Samples for training from prompts: a padded image, and masks that can be asked about.

What masks are made of are numbers: of objects, of their parts, of classes (`tasks.MASKS`). Each of
these targets is one domain of prompts.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Int, Shaped, UInt8

from talora_jax.data.transforms import Resized, Sample, fit
from talora_jax.tasks import TARGETS

Asked = dict[str, Shaped[np.ndarray, "..."]]


@dataclasses.dataclass(frozen=True)
class AskedMasks:
    """Draws masks from a sample's numbers and puts the frame into the upper left of a padded one.

    Attributes:
      domains: the targets that masks are made of.
      count: M masks of each.
      min_pixels: the least area of a mask, in the padded frame.
      frame: (Y, X) of the padded frame.
      aspects: the lowest and the highest H / W that training gives a sample before it is padded;
        None keeps its own.
      others: targets that go along with the image.
    """

    domains: tuple[str, ...]
    count: int
    min_pixels: int
    frame: tuple[int, int]
    aspects: tuple[float, float] | None = None
    others: tuple[str, ...] = ()

    def draw(self, sample: Sample, rng: np.random.Generator) -> Asked:
        """For training: a window of a random aspect, and masks drawn evenly from those it shows."""
        if self.aspects is not None:
            sample = _window(sample, rng.uniform(*self.aspects), rng)
        return self._asked(sample, rng.permutation)

    def all(self, sample: Sample) -> Asked:
        """For evaluation: the first masks, in the order of their numbers."""
        return self._asked(sample, lambda numbers: numbers)

    def _asked(self, sample: Sample, order: Callable[[np.ndarray], np.ndarray]) -> Asked:
        """The sample as large as the frame allows, padded, and the first masks in an order."""
        height, width = sample["image"].shape[:2]
        scale = min(self.frame[0] / height, self.frame[1] / width)
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        fitted = fit(sample, size)
        masks = [
            self._stack(fitted[domain], order(numbers_of(fitted[domain], self.min_pixels)))
            for domain in self.domains
        ]
        others = {
            name: _padded(fitted[name], self.frame, TARGETS[name].unlabelled)
            for name in self.others
        }
        return {
            "image": _padded(fitted["image"], self.frame, 0),
            "size": np.array(size, np.int32),
            "masks": np.stack(masks),
            **others,
        }

    def _stack(
        self, labels: Int[np.ndarray, "H W"], numbers: Int[np.ndarray, "n"]
    ) -> UInt8[np.ndarray, "M Y X"]:
        masks = np.zeros((self.count, *self.frame), np.uint8)
        for mask, number in zip(masks, numbers, strict=False):
            mask[: labels.shape[0], : labels.shape[1]] = labels == number
        return masks


def numbers_of(labels: Int[np.ndarray, "H W"], min_pixels: int) -> Int[np.ndarray, "n"]:
    """The numbers that label at least so many pixels, in their order."""
    return np.flatnonzero(np.bincount(labels[labels >= 0]) >= max(min_pixels, 1))


def _window(sample: Sample, aspect: float, rng: np.random.Generator) -> Resized:
    """The largest window of this H / W, at a random place."""
    height, width = sample["image"].shape[:2]
    rows = min(height, max(1, round(width * aspect)))
    columns = min(width, max(1, round(height / aspect)))
    top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
    return {name: x[top : top + rows, left : left + columns] for name, x in sample.items()}


def _padded(
    values: Shaped[np.ndarray, "H W *c"], frame: tuple[int, int], value: int
) -> Shaped[np.ndarray, "Y X *c"]:
    padded = np.full((*frame, *values.shape[2:]), value, values.dtype)
    padded[: values.shape[0], : values.shape[1]] = values
    return padded
