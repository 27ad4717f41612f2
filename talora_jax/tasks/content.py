"""What the targets of a data set say, as sums over images: for people, and to refuse what cannot be
meant before anything is trained on it.

Each kind of target has its own (`PixelTarget.content`): class ids beside their task, depths beside
theirs. What is refused is wrong whatever was meant; what may be meant is a note.
"""

import dataclasses
import math

# All ones in 7, 8, 15, 16 and 31 bits: what data sets write where there is no label.
ALL_ONES = tuple(2**bits - 1 for bits in (7, 8, 15, 16, 31))

# Below it the labels are few enough to ask whether that is right.
_FEW = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class Content:
    """Of targets of any kind. Every field is a sum: those of two sets of images add.

    Attributes:
      pixels: all there are.
      labelled: those that have a label.
    """

    pixels: int
    labelled: int

    def __add__(self, other: "Content") -> "Content":
        fields = (field.name for field in dataclasses.fields(self))
        return type(self)(**{name: getattr(self, name) + getattr(other, name) for name in fields})

    @property
    def share(self) -> float:
        """Of the pixels, those that have a label."""
        return self.labelled / max(self.pixels, 1)

    @property
    def measurable(self) -> bool:
        """Whether there is anything that a metric can be made from."""
        return self.labelled > 0

    def numbers(self) -> dict[str, float]:
        """For `metrics.jsonl`."""
        return {"labelled": self.share}

    def in_words(self) -> str:
        """For a line on the terminal."""
        return f"{percent(1 - self.share)} unlabelled"

    def numbering(self) -> str | None:
        """Why its numbers cannot be what they stand for, where nobody has named them, and the way
        on; None where they can."""
        return None

    def refusal(self, *, as_masks: bool = False) -> str | None:
        """Why nobody can mean this, and the way on; None where one can.

        Args:
          as_masks: whether it is what masks for prompts are made of, and no task.
        """
        del as_masks
        return None if self.labelled else "no pixel has a label, expected some that do"

    def notes(self) -> list[str]:
        """What is odd, though it may be meant."""
        if self.share < _FEW:
            return [f"only {percent(self.share)} of the pixels have a label"]
        return []


def percent(share: float) -> str:
    """A share; what is not all or nothing is never rounded to that.

    >>> percent(0.9999), percent(1.0), percent(0.0213), percent(1e-9)
    ('99.99 %', '100 %', '2.1 %', '1e-07 %')
    """
    if share in (0, 1):
        return f"{100 * share:.0f} %"
    if share < 0.99:
        return f"{100 * share:.2g} %"
    decimals = 1 - math.floor(math.log10(100 * (1 - share)))
    return f"{100 * share:.{decimals}f}".rstrip("0") + " %"
