"""What a data set's targets say, looked at before anything is trained on them.

A target of the right shape can still mean nothing: masks of one class, depth in millimetres,
normals that are all black. What nobody can mean is refused here, and what is odd is told.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from talora_jax.data.dataset import Dataset, Source
from talora_jax.errors import UserError
from talora_jax.tasks import TARGETS
from talora_jax.tasks.content import Content

# So many say what there is. All are looked at before a data set is refused.
IMAGES = 128


@dataclasses.dataclass(frozen=True)
class Survey:
    """What was found.

    Attributes:
      contents: of each target.
      looked_at: how many training images, evenly spread.
      images: how many there are.
      val_images: how many there are to validate on.
      unmeasured: targets of which no validation image has anything to measure.
    """

    contents: Mapping[str, Content]
    looked_at: int
    images: int
    val_images: int
    unmeasured: tuple[str, ...]

    def lines(self) -> list[str]:
        """A line for each target, and one for each thing that is odd."""
        seen = f"{self.looked_at} of {self.images} training images"
        lines = [f"{name}: {content.in_words()} ({seen})" for name, content in self._each()]
        lines += [
            f"note: {name}: {note}" for name, content in self._each() for note in content.notes()
        ]
        return lines + [
            f"note: {name}: nothing in the validation images to measure, so that it has no metric"
            for name in self.unmeasured
        ]

    def numbers(self) -> dict[str, float]:
        """For `metrics.jsonl`: `<target>/<number>`, and how many images they are from."""
        numbers = {
            f"{name}/{key}": float(value)
            for name, content in self._each()
            for key, value in content.numbers().items()
        }
        counts = {"train_images": self.images, "val_images": self.val_images}
        counts |= {"images_looked_at": self.looked_at}
        return {name: float(count) for name, count in counts.items()} | numbers

    def _each(self) -> Iterable[tuple[str, Content]]:
        return self.contents.items()


def survey(dataset: Dataset, targets: Sequence[str], masks: Sequence[str] = ()) -> Survey:
    """Looks at the targets that a run is about to learn.

    Args:
      targets: all that are learnt.
      masks: those of them that masks for prompts are made of.

    Raises:
      UserError: a target is what nobody can mean, over all training images.
    """
    train = dataset.splits["train"]
    at = _spread(len(train))
    contents = _contents(train, at, targets)
    refused = _refused(contents, masks)
    if refused and len(at) < len(train):
        rest = sorted(set(range(len(train))) - set(at))
        others = _contents(train, rest, list(refused))
        contents |= {name: contents[name] + others[name] for name in refused}
        refused = _refused(contents, masks)
    if refused:
        name, why = next(iter(refused.items()))
        others = ", ".join(list(refused)[1:])
        also = f" ({others} cannot be used either)" if others else ""
        raise UserError(f"the {len(train)} training images of {dataset.name}: {name}: {why}{also}")
    val = dataset.splits["val"]
    return Survey(contents, len(at), len(train), len(val), _unmeasured(val, targets))


def _spread(images: int) -> list[int]:
    """Up to `IMAGES` of so many, the first and the last among them."""
    return np.unique(np.linspace(0, images - 1, min(images, IMAGES)).round().astype(int)).tolist()


def _contents(source: Source, at: Sequence[int], targets: Sequence[str]) -> dict[str, Content]:
    contents: dict[str, Content] = {}
    for index in at:
        sample = source[index]
        for name in targets:
            content = TARGETS[name].content(sample[name])
            contents[name] = contents[name] + content if name in contents else content
    return contents


def _refused(contents: Mapping[str, Content], masks: Sequence[str]) -> dict[str, str]:
    refusals = {name: x.refusal(as_masks=name in masks) for name, x in contents.items()}
    return {name: why for name, why in refusals.items() if why}


def _unmeasured(source: Source, targets: Sequence[str]) -> tuple[str, ...]:
    """The targets of which no image has anything to measure; ends where all have been seen."""
    left = list(targets)
    for index in range(len(source)):
        if not left:
            break
        sample = source[index]
        left = [name for name in left if not TARGETS[name].content(sample[name]).measurable]
    return tuple(left)
