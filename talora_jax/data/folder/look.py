"""What lies in a user's folder, in words and numbers, before anything is prepared of it."""

import dataclasses
import functools
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path

import ml_collections
import numpy as np

from talora_jax.data.folder.check import lacks, unfit
from talora_jax.data.folder.decode import masked, read
from talora_jax.data.folder.listing import split_samples
from talora_jax.data.folder.open import list_all
from talora_jax.data.folder.settings import Settings, named_classes, stated_classes
from talora_jax.data.folder.streams import spread
from talora_jax.data.folder.validity import is_mask, mask_of
from talora_jax.data.records import SampleFiles
from talora_jax.data.transforms import resized
from talora_jax.errors import UserError, printable, some
from talora_jax.task_names import kind_of
from talora_jax.tasks import target_of
from talora_jax.tasks.content import Content
from talora_jax.tasks.target_files import BadFile

_VAL_FRACTION = 0.2  # as the default of `config.data.val_fraction`
_NAMED = 3


@dataclasses.dataclass(frozen=True)
class Look:
    """What was found.

    Attributes:
      lines: for people.
      targets: those that every sample has a file of, or where some may lack them any sample, and of
        which some can be read, in the order of `TARGETS`, heads behind them.
      samples: some, of one size, with all targets that can be read, unlabelled where they may lack
        files; empty if none could be read.
      names: of these.
      class_names: of `semantic` and heads of its kind.
    """

    lines: tuple[str, ...]
    targets: tuple[str, ...]
    samples: tuple[Mapping[str, np.ndarray], ...]
    names: tuple[str, ...]
    class_names: Mapping[str, tuple[str, ...]]


def look(root: Path, data: ml_collections.ConfigDict, *, looked_at: int, pictures: int) -> Look:
    """Reads some of a directory's samples, evenly spread.

    Args:
      data: `config.data` with `path`, and fields of `talora_jax.data.folder.settings`.
      looked_at: how many at the most, for counts and ranges.
      pictures: how many of them to hand back.

    Raises:
      UserError: as of `list_all`, or where nothing can be read.
    """
    settings, listed = list_all(root, data)
    splits = split_samples(listed, settings, _VAL_FRACTION, root)
    samples = [sample for name in ("train", "val") for sample in splits[name]]
    lacking = {name: [s for s in samples if name not in s.files] for name in listed.folders}
    lines = [
        f"{printable(root)}: {len(splits['train'])} training and {len(splits['val'])} validation "
        f"samples{'' if settings.splits or listed.splits else ', drawn by their names'}"
    ]
    for name, without in lacking.items():
        if is_mask(name):
            without = [s for s in without if lacks(s, name, partly=settings.partly)]
        if without and settings.partly and not is_mask(name):
            lines.append(f"{name}: {len(samples) - len(without)} of {len(samples)} images have it")
        elif without:
            way_on = "" if is_mask(name) else ', unless dataset.json has "partly": true'
            lines.append(
                f"problem: {len(without)} images have no {name}, {printable(without[0].stem)} "
                f"first: training on it would refuse them{way_on}"
            )
    if listed.problems:
        lines.append(
            f"problem: {len(listed.problems)} files cannot be used: {some(listed.problems, _NAMED)}"
        )
    chosen = spread(samples, looked_at)
    found = {
        name: _read(name, chosen, settings, root)
        for name in listed.folders
        if not is_mask(name)  # read with its target
    }
    class_names: dict[str, tuple[str, ...]] = {}
    for name, (values, bad) in found.items():
        lines.append(f"{name}: {_in_words(name, values)}{_where(name, settings)}")
        if name != "image":
            bad += _unfit(root, name, chosen, values, found["image"][0], settings)
        if bad:
            lines.append(f"problem: {name}: {len(bad)} of {len(chosen)} files: {bad[0]}")
        if name != "image" and values:
            content = _content(name, values.values())
            lines += [f"note: {name}: {note}" for note in content.notes()]
            named = stated_classes(name, settings)
            if problem := content.refusal() or (not named and content.numbering()):
                lines.append(f"problem: {name}: {problem}")
            if kind_of(name) == "semantic":
                class_names[name] = named_classes(name, settings, content.num_classes)
    most = len(samples) - 1 if settings.partly else 0
    readable = [name for name in found if found[name][0]]
    targets = tuple(name for name in readable if name != "image" and len(lacking[name]) <= most)
    needed = ["image"] if settings.partly else readable
    whole = [s for s in chosen if all(s.stem in found[name][0] for name in needed)]
    if "image" not in found or not found["image"][0]:
        raise UserError("\n  ".join([f"{root}: no image can be read:", *lines]))
    shown = spread(whole, pictures) if readable[1:] else []
    size = settings.image_size or next(iter(found["image"][0].values())).shape[:2]

    def shown_as(name: str, stem: str) -> np.ndarray:
        values = found[name][0]
        if stem in values:
            return resized(name, values[stem], size)
        return target_of(name).nothing(size)

    return Look(
        tuple(lines),
        targets,
        tuple({name: shown_as(name, s.stem) for name in readable} for s in shown),
        tuple(sample.stem for sample in shown),
        class_names,
    )


def _read(
    name: str, samples: Sequence[SampleFiles], settings: Settings, root: Path
) -> tuple[dict[str, np.ndarray], list[str]]:
    """What can be read of one target, by stem, and what is wrong with the others."""
    values, bad = {}, []
    for sample in samples:
        path = sample.files.get(name)
        if path is None:
            continue
        try:
            values[sample.stem] = masked(name, read(name, path, settings), sample, settings)
        except BadFile as error:
            bad.append(f"{printable(path.relative_to(root))}: {error}")
    return values, bad


def _unfit(
    root: Path,
    name: str,
    samples: Sequence[SampleFiles],
    values: Mapping[str, np.ndarray],
    images: Mapping[str, np.ndarray],
    settings: Settings,
) -> list[str]:
    """What training would refuse of targets beside their images."""
    told = (
        unfit(root, s, name, values[s.stem].shape[:2], images[s.stem].shape[:2], settings)
        for s in samples
        if s.stem in values and s.stem in images
    )
    return [line for line in told if line]


def _content(name: str, values) -> Content:
    return functools.reduce(operator.add, (target_of(name).content(x) for x in values))


def _in_words(name: str, values: Mapping[str, np.ndarray]) -> str:
    if not values:
        return "none can be read"
    sizes = sorted({x.shape[:2] for x in values.values()})
    told = " and ".join(f"{h}×{w}" for h, w in ([sizes[0], sizes[-1]] if sizes[1:] else sizes))
    size = f"{told} (H×W)" if len(sizes) < 3 else f"{len(sizes)} sizes, such as {told} (H×W)"
    if name == "image":
        return size
    return f"{_content(name, values.values()).in_words()}, in {len(values)} files of {size}"


def _where(name: str, settings: Settings) -> str:
    if not settings.files:
        return ""
    of_mask = settings.files.get(mask_of(name))
    where = f", where {' | '.join(of_mask.values())} says it is valid" if of_mask else ""
    return f" [{printable(' | '.join(settings.files[name].values()) + where)}]"
