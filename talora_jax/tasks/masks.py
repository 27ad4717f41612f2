"""Objects and their parts, numbered: what masks for prompts are made of."""

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from talora_jax.tasks.content import ALL_ONES, Content
from talora_jax.tasks.target import PixelTarget
from talora_jax.tasks.target_files import FileSettings, as_int32, read_indices


@dataclasses.dataclass(frozen=True, kw_only=True)
class NumbersContent(Content):
    """Of numbers of things.

    Attributes:
      images: how many there are.
      numbered: how many of them have a number.
      all_ones: of how many the highest of several is all ones, and the one before it none.
      things: how many numbers they have, each image counted by itself.
    """

    images: int
    numbered: int
    all_ones: int
    things: int

    def numbers(self) -> dict[str, float]:
        return super().numbers() | {"things_per_image": self.things / max(self.images, 1)}

    def in_words(self) -> str:
        each = self.things / max(self.images, 1)
        return f"{each:.3g} numbers in an image on average, {super().in_words()}"

    def numbering(self) -> str | None:
        # By chance, a few images may have it.
        if 2 * self.all_ones <= self.numbered or not self.things:
            return None
        return (
            f"in {self.all_ones} of {self.numbered} images the highest number is all ones (such as "
            "255) and not the one after the others, which looks like a label for none: store 0 for "
            "that, or number objects 1, 2, …"
        )

    def refusal(self, *, as_masks: bool = False) -> str | None:
        if not self.labelled:
            return "no pixel has a number, expected 1, 2, … where an object is (0 is no label)"
        return super().refusal(as_masks=as_masks)

    def notes(self) -> list[str]:
        one = "about one number in an image; foreground as 0 and 1 is one mask for all objects"
        return super().notes() + ([one] if self.things <= self.images else [])


class Instance(PixelTarget):
    """The number of the object that a pixel shows, int [H,W]; -1 = no label."""

    target_shape = ()
    target_dtype = stored_dtype = np.int32
    unlabelled = -1
    numbers_things = True

    @classmethod
    def read(cls, path: Path, settings: FileSettings) -> Int32[np.ndarray, "H W"]:
        """Numbers from 1 on of a PNG or an npy file; 0 and less is no label."""
        return cls.from_values(read_indices(path), settings)

    @classmethod
    def from_values(cls, values: np.ndarray, settings: FileSettings) -> Int32[np.ndarray, "H W"]:
        del settings
        values = as_int32(values, "renumber the objects of each image from 1 on")
        values[values <= 0] = -1
        return values

    @classmethod
    def content(cls, target: Int32[np.ndarray, "H W"]) -> NumbersContent:
        numbers, areas = np.unique(target, return_counts=True)
        numbers, areas = numbers[numbers >= 0], areas[numbers >= 0]
        # A foreground of 255 alone is one object.
        gap = len(numbers) > 1 and numbers[-1] in ALL_ONES and numbers[-1] - 1 not in numbers
        return NumbersContent(
            pixels=target.size,
            labelled=int(areas.sum()),
            images=1,
            numbered=int(len(numbers) > 0),
            all_ones=int(gap),
            things=len(numbers),
        )


class Part(Instance):
    """The number of the part of an object that a pixel shows, in the whole image."""
