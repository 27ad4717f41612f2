"""Reads every file once and lists all that is wrong, before anything is prepared."""

import collections
import concurrent.futures
import dataclasses
import functools
import operator
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from talora_jax.data.folder.decode import masked, orientation, read
from talora_jax.data.folder.settings import Settings, stated_classes
from talora_jax.data.folder.validity import is_mask, masked_by
from talora_jax.data.progress import progress
from talora_jax.data.records import SampleFiles
from talora_jax.errors import UserError, printable
from talora_jax.task_names import in_paths, kind_of
from talora_jax.tasks import MASKS, target_of
from talora_jax.tasks.content import Content
from talora_jax.tasks.target_files import BadFile

_MAX_LINES = 20


@dataclasses.dataclass(frozen=True)
class _Report:
    """What one sample's files hold.

    Attributes:
      contents: of each folder's file that holds numbers.
      palettes: the colours in use of each folder's file, see `PixelTarget.palette_in_use`.
    """

    sample: SampleFiles
    problems: tuple[str, ...]
    image_size: tuple[int, int] | None
    contents: Mapping[str, Content]
    palettes: Mapping[str, Mapping[int, tuple[int, ...]]]


def check_samples(
    root: Path,
    samples: Sequence[SampleFiles],
    folders: Sequence[str],
    settings: Settings,
    *,
    one_size: bool,
    problems: Sequence[str],
) -> tuple[tuple[int, int], dict[str, int]]:
    """Reads the files of `samples` and reports everything that is wrong with them.

    Args:
      folders: those that each sample must have a file in, unless `settings.partly`.
      one_size: whether all images must have the same size.
      problems: found already, to be reported along.

    Returns:
      The images' most frequent size H, W, and one more than the highest class index of `semantic`
      and of each head of its kind.

    Raises:
      UserError: with a line for each problem.
    """
    reports = []
    with (
        concurrent.futures.ThreadPoolExecutor() as pool,
        progress(f"Checking {printable(root.name)}", len(samples), "samples") as advance,
    ):
        for report in pool.map(lambda sample: _check(root, sample, folders, settings), samples):
            reports.append(report)
            advance()
    problems = [*problems, *_folded(line for report in reports for line in report.problems)]
    sizes = collections.Counter(report.image_size for report in reports if report.image_size)
    size = sizes.most_common(1)[0][0] if sizes else (0, 0)
    if one_size:
        problems += [
            f"{_name(report.sample, 'image', root)}: {_size(report.image_size)}, expected "
            f"{_size(size)} as the other images"
            for report in reports
            if report.image_size not in (size, None)
        ]
        if len(sizes) > 1 and settings.image_size is None:
            problems.append("config.data.image_size=(height, width) brings all to one size")
    for folder in folders:
        problems += _differing_palettes(root, folder, reports)
    contents = {
        folder: functools.reduce(operator.add, found)
        for folder in (() if problems else sorted(folders))
        if (found := [r.contents[folder] for r in reports if folder in r.contents])
    }
    for folder, content in contents.items():
        if not stated_classes(folder, settings) and (problem := content.numbering()):
            problems.append(f"{folder}: {problem}")
    with_classes = {name: x for name, x in contents.items() if kind_of(name) == "semantic"}
    for name, content in with_classes.items():
        if not content.labelled:
            problems.append(f"{name}: no file has a labelled pixel")
    if problems:
        lines = problems[:_MAX_LINES]
        if len(problems) > _MAX_LINES:
            lines.append(f"… and {len(problems) - _MAX_LINES} more")
        raise UserError("\n  ".join([f"{root} cannot be used:", *lines]))
    return size, {name: content.num_classes for name, content in with_classes.items()}


def _check(root: Path, sample: SampleFiles, folders: Sequence[str], settings: Settings) -> _Report:
    problems: list[str] = []
    size, contents, palettes = None, {}, {}
    for folder in folders:
        if folder not in sample.files:
            if not lacks(sample, folder, partly=settings.partly):
                continue
            lacking = _lacking(sample, folder, settings)
            way_on = ", or config.data.partly=True, which takes images that lack targets"
            problems.append(
                f"{_name(sample, 'image', root)}: {lacking}, expected one"
                f"{'' if is_mask(folder) else way_on}"
            )
            continue
        if is_mask(folder):  # read with its target
            continue
        path = sample.files[folder]
        try:
            values = masked(folder, read(folder, path, settings), sample, settings)
            if folder != "image" and folder not in (settings.read or {}):
                palettes[folder] = target_of(folder).palette_in_use(path, values)
        except BadFile as error:
            problems.append(f"{_name(sample, folder, root)}: {error}")
            continue
        if folder == "image":
            size = values.shape[:2]
        elif problem := unfit(root, sample, folder, values.shape[:2], size, settings):
            problems.append(problem)
        if kind_of(folder) in MASKS:
            contents[folder] = target_of(folder).content(values)
    return _Report(sample, tuple(problems), size, contents, palettes)


def lacks(sample: SampleFiles, folder: str, *, partly: bool | None) -> bool:
    """Whether a sample has no file that it must have; a mask goes with its target."""
    if folder in sample.files:
        return False
    return masked_by(folder) in sample.files if is_mask(folder) else not partly


def unfit(
    root: Path,
    sample: SampleFiles,
    folder: str,
    size: tuple[int, int],
    image_size: tuple[int, int] | None,
    settings: Settings,
) -> str | None:
    """What is wrong with a target's size H, W beside its image's, which is None where that cannot
    be read."""
    if problem := _turned(root, sample, folder, size, image_size):
        return problem
    if image_size and size != image_size and not settings.stretch:
        name = _name(sample, folder, root)
        return f"{name}: {_size(size)}, expected {_size(image_size)} as its image"
    return None


def _lacking(sample: SampleFiles, folder: str, settings: Settings) -> str:
    """What there is not."""
    if settings.table:
        return f"its line in the table names no file of {folder}"
    if settings.files:
        pattern = " or ".join(repr(text) for text in settings.files[folder].values())
        return f"{folder} has no file for it ({printable(pattern)})"
    return f"{in_paths(folder)}/ has no file of stem {printable(repr(sample.stem))}"


def _differing_palettes(root: Path, folder: str, reports: Sequence[_Report]) -> list[str]:
    """A line if a value has one colour in one file and another in another: it is two classes."""
    first: dict[int, tuple[tuple[int, ...], SampleFiles]] = {}
    for report in reports:
        for value, colour in report.palettes.get(folder, {}).items():
            known, sample = first.setdefault(value, (colour, report.sample))
            if known != colour:
                return [
                    f"{_name(report.sample, folder, root)}: value {value} has colour {colour}, and "
                    f"{known} in {_name(sample, folder, root)}: expected one palette in all files, "
                    "or grey PNGs of class indices"
                ]
    return []


def _folded(lines: Iterable[str]) -> list[str]:
    """Each kind of problem of a folder once: what differs by names and numbers is of one kind."""
    kinds: dict[tuple[str, str], list[str]] = {}
    for line in lines:
        name, _, problem = line.partition(": ")
        kind = name.partition("/")[0], re.sub(r"[-+.\d]+|'.*'", "", problem)
        kinds.setdefault(kind, []).append(line)
    folded = []
    for first, *others in kinds.values():
        name, _, problem = first.partition(": ")
        more = f" and {len(others)} more" if others else ""
        folded.append(f"{name}{more}: {problem}")
    return folded


def _turned(
    root: Path,
    sample: SampleFiles,
    folder: str,
    size: tuple[int, int],
    image_size: tuple[int, int] | None,
) -> str | None:
    """What is wrong with a target beside an image that its EXIF orientation has turned upright.

    Only where height and width are exchanged does its size tell that the target is upright, too.
    """
    if orientation(sample.files[folder]) != 1:
        return (
            f"{_name(sample, folder, root)}: has an EXIF orientation, expected targets as their "
            "pixels are stored; save it without EXIF"
        )
    turn = orientation(sample.files["image"])
    if turn == 1 or image_size is None:
        return None
    stored = image_size[::-1] if turn >= 5 else image_size
    if size not in (stored, image_size) or size == image_size != stored:
        return None
    is_not = "is not" if size != image_size else "may not be"
    return (
        f"{_name(sample, 'image', root)}: its EXIF orientation ({turn}) turns it, and "
        f"{_name(sample, folder, root)} {is_not} turned; save both upright, without EXIF"
    )


def _name(sample: SampleFiles, folder: str, root: Path) -> str:
    return printable(sample.files[folder].relative_to(root).as_posix())


def _size(shape: Sequence[int]) -> str:
    return f"{shape[0]}×{shape[1]} (H×W)"
