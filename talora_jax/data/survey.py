"""What a data set's targets say, looked at before anything is trained on them.

A target of the right shape can still mean nothing: masks of one class, depth in millimetres,
normals that are all black. What nobody can mean is refused here, and what is odd is told.
"""

import dataclasses
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from talora_jax.data.dataset import Dataset, Source
from talora_jax.data.masks import AskedMasks
from talora_jax.errors import UserError
from talora_jax.tasks import target_of
from talora_jax.tasks.content import Content

# So many say what there is. All are looked at before a data set is refused.
IMAGES = 128
_SPLITS = {"train": "training", "val": "validation"}


@dataclasses.dataclass(frozen=True)
class Survey:
    """What was found.

    Attributes:
      contents: of each target.
      looked_at: how many training images at the most, evenly spread over those with a target.
      images: how many there are.
      val_images: how many there are to validate on.
      unmeasured: targets of which no validation image has anything to measure.
      parts: see `Dataset.parts`.
      shared_out: of targets that not all images have, how many do of how many, by split.
    """

    contents: Mapping[str, Content]
    looked_at: int
    images: int
    val_images: int
    unmeasured: tuple[str, ...]
    parts: tuple[str, ...] = ()
    shared_out: Mapping[str, Mapping[str, tuple[int, int]]] = dataclasses.field(
        default_factory=dict
    )

    def lines(self) -> list[str]:
        """A line for each target, and one for each thing that is odd."""
        lines = [f"part {part}" for part in self.parts]
        lines += [
            f"{name}: {content.in_words()} ({self._seen(name)} training images)"
            for name, content in self.contents.items()
        ]
        lines += [
            f"{name}: {' and '.join(f'{n} of {of} {_SPLITS[s]}' for s, (n, of) in told.items())} "
            "images have it"
            for name, told in self.shared_out.items()
        ]
        lines += [
            f"note: {name}: {note}"
            for name, content in self.contents.items()
            for note in content.notes()
        ]
        return lines + [
            f"note: {name}: nothing in the validation images to measure, so that it has no metric"
            for name in self.unmeasured
        ]

    def numbers(self) -> dict[str, float]:
        """For `metrics.jsonl`: `<target>/<number>`, how many images they are from, and as
        `<target>/images` how many have a target that not all have."""
        numbers = {
            f"{name}/{key}": float(value)
            for name, content in self.contents.items()
            for key, value in content.numbers().items()
        }
        numbers |= {f"{name}/images": float(self._images(name)) for name in self.shared_out}
        counts = {"train_images": self.images, "val_images": self.val_images}
        counts |= {"images_looked_at": self.looked_at}
        return {name: float(count) for name, count in counts.items()} | numbers

    def _images(self, name: str) -> int:
        """How many training images have a target."""
        return self.shared_out[name]["train"][0] if name in self.shared_out else self.images

    def _seen(self, name: str) -> str:
        images = self._images(name)
        return f"{min(images, self.looked_at)} of {images}"


def survey(dataset: Dataset, targets: Sequence[str], asked: AskedMasks | None = None) -> Survey:
    """Looks at the targets that a run is about to learn.

    Args:
      targets: all that are learnt.
      asked: what makes masks for prompts of some of them.

    Raises:
      UserError: a target is what nobody can mean, over all training images.
    """
    train = dataset.splits["train"]
    having = {name: dataset.with_target("train", name) for name in targets}
    at = {name: _spread(images) for name, images in having.items()}
    contents = _contents(train, at)
    # What is a task as well must do for that.
    masks = {*asked.domains} - {*asked.others} if asked else set()
    refused = _refused(contents, masks)
    rest = {name: sorted({*having[name]} - {*at[name]}) for name in refused}
    if any(rest.values()):
        others = _contents(train, rest)
        contents |= {name: contents[name] + other for name, other in others.items()}
        refused = _refused(contents, masks)
    if refused:
        name, why = next(iter(refused.items()))
        others = ", ".join(list(refused)[1:])
        also = f" ({others} cannot be used either)" if others else ""
        raise UserError(f"the {len(train)} training images of {dataset.name}: {name}: {why}{also}")
    if asked and (empty := _empty(dataset, "train", asked.domains, asked)):
        height, width = asked.frame
        raise UserError(
            f"the {len(train)} training images of {dataset.name} have no mask of {empty[0]} of "
            f"config.prompts.min_pixels={asked.min_pixels} pixels or more, each image as large as "
            f"{height}×{width} hold it"
        )
    return Survey(
        contents,
        max(map(len, at.values()), default=0),
        len(train),
        len(dataset.splits["val"]),
        _empty(dataset, "val", targets, asked),
        dataset.parts,
        {name: told for name in targets if (told := _shared_out(dataset, name))},
    )


def _shared_out(dataset: Dataset, target: str) -> dict[str, tuple[int, int]]:
    """How many images of each split have a target, of how many; nothing where all have."""
    told = {
        split: (len(dataset.with_target(split, target)), len(dataset.splits[split]))
        for split in _SPLITS
    }
    return told if any(having < images for having, images in told.values()) else {}


def _spread(images: Sequence[int]) -> list[int]:
    """Up to `IMAGES` of these, the first and the last among them."""
    count = len(images)
    at = np.unique(np.linspace(0, count - 1, min(count, IMAGES)).round().astype(int))
    return [images[i] for i in at]


def _contents(source: Source, at: Mapping[str, Sequence[int]]) -> dict[str, Content]:
    """Of each target, over the samples at its indices."""
    contents: dict[str, Content] = {}
    wanted = {name: {*indices} for name, indices in at.items()}
    for index in sorted(set().union(*wanted.values())):
        sample = source[index]
        for name in (name for name, indices in wanted.items() if index in indices):
            content = target_of(name).content(sample[name])
            contents[name] = contents[name] + content if name in contents else content
    return {name: contents[name] for name in at if name in contents}


def _refused(contents: Mapping[str, Content], masks: Collection[str]) -> dict[str, str]:
    refusals = {name: x.refusal(as_masks=name in masks) for name, x in contents.items()}
    return {name: why for name, why in refusals.items() if why}


def _empty(
    dataset: Dataset, split: str, targets: Sequence[str], asked: AskedMasks | None
) -> tuple[str, ...]:
    """The targets of which no image of a split has anything to measure, those of `asked` no mask;
    ends where all have been seen."""
    source = dataset.splits[split]
    having = {name: {*dataset.with_target(split, name)} for name in targets}
    left = list(targets)
    for index in range(len(source)):
        if not left:
            break
        here = [name for name in left if index in having[name]]
        sample = source[index] if here else {}
        some = {name: target_of(name).content(sample[name]).measurable for name in here}
        if asked and here:
            masks = asked.all(sample)["asked"].any((-2, -1))
            some |= dict(zip(asked.domains, masks, strict=True))
        left = [name for name in left if not some.get(name)]
    return tuple(left)
