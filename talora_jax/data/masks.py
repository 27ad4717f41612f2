"""Samples for training from prompts: a padded image, and masks that can be asked about.

What masks are made of are numbers: of objects, of their parts, of classes (`tasks.MASKS`). Each of
these targets is one domain of prompts. Masks of a domain do not overlap, so they travel as one map
of bytes, and the image as bytes, too: as one array each and as floats, they would be more than five
times as much, and an accelerator would wait for the process that copies them.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Array, Bool, Int, Shaped, UInt8

from talora_jax.data.transforms import Resized, Sample, fit
from talora_jax.tasks import target_of

Asked = dict[str, Shaped[np.ndarray, "..."]]


@dataclasses.dataclass(frozen=True)
class AskedMasks:
    """Draws masks from a sample's numbers and puts the frame into the upper left of a padded one.

    What it gives: `image` uint8 [Y, X, 3]; `size` int32 [2], the frame's height and width in it;
    `asked` uint8 [D, Y, X], see `masks_of`; and the `others`.

    Attributes:
      domains: the targets that masks are made of.
      count: the most masks of each, at most 255.
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
        asked = [
            self._map(fitted[domain], order(numbers_of(fitted[domain], self.min_pixels)))
            for domain in self.domains
        ]
        others = {
            name: _padded(fitted[name], self.frame, target_of(name).unlabelled)
            for name in self.others
        }
        return {
            "image": _padded(fitted["image"], self.frame, 0),
            "size": np.array(size, np.int32),
            "asked": np.stack(asked),
            **others,
        }

    def _map(
        self, labels: Int[np.ndarray, "H W"], numbers: Int[np.ndarray, "n"]
    ) -> UInt8[np.ndarray, "Y X"]:
        asked = np.zeros(labels.shape, np.uint8)
        for mask, number in enumerate(numbers[: self.count], 1):
            asked[labels == number] = mask
        return _padded(asked, self.frame, 0)


def masks_of(
    asked: UInt8[np.ndarray | Array, "*b Y X"], count: int
) -> Bool[np.ndarray | Array, "*b {count} Y X"]:
    """The masks of a map, NumPy's or JAX's: mask m is where it says m + 1. 0 is none."""
    return asked[..., None, :, :] == np.arange(1, count + 1, dtype=np.uint8)[:, None, None]


def numbers_of(labels: Int[np.ndarray, "H W"], min_pixels: int) -> Int[np.ndarray, "n"]:
    """The numbers that label at least so many pixels, in their order."""
    # Not `bincount`: a folder's numbers may be as large as they like.
    numbers, areas = np.unique(labels, return_counts=True)
    return numbers[(numbers >= 0) & (areas >= min_pixels)]


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
