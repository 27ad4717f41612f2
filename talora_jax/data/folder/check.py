"""Reads every file once and lists all that is wrong, before anything is prepared."""

import collections
import concurrent.futures
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import tqdm

from talora_jax.data.folder.decode import READ
from talora_jax.data.folder.frames import Frame
from talora_jax.data.folder.settings import Settings
from talora_jax.data.npy import BadFile
from talora_jax.errors import UserError

_MAX_LINES = 20


@dataclasses.dataclass(frozen=True)
class _Report:
    """What one frame's files hold."""

    frame: Frame
    problems: tuple[str, ...]
    image_size: tuple[int, int] | None
    num_classes: int


def check_frames(
    root: Path,
    frames: Sequence[Frame],
    folders: Sequence[str],
    settings: Settings,
    *,
    one_size: bool,
    problems: Sequence[str],
) -> tuple[tuple[int, int], int]:
    """Reads the files of `frames` and reports everything that is wrong with them.

    Args:
        folders: those that each frame must have a file in.
        one_size: whether all images must have the same size.
        problems: found already, to be reported along.

    Returns:
        The images' most frequent size H, W, and one more than the highest class index.

    Raises:
        UserError: with a line for each problem.
    """
    with concurrent.futures.ThreadPoolExecutor() as pool:
        reports = list(
            tqdm.tqdm(
                pool.map(lambda frame: _check(frame, folders, settings), frames),
                desc=f"Checking {root.name}",
                total=len(frames),
                unit=" frames",
                leave=False,
            )
        )
    problems = [*problems, *(line for report in reports for line in report.problems)]
    sizes = collections.Counter(report.image_size for report in reports if report.image_size)
    size = sizes.most_common(1)[0][0] if sizes else (0, 0)
    if one_size:
        problems += [
            f"{_name(report.frame, 'image')}: {_size(report.image_size)}, expected {_size(size)} "
            "as the other images"
            for report in reports
            if report.image_size not in (size, None)
        ]
    num_classes = max(report.num_classes for report in reports)
    if not problems and "semantic" in folders and not num_classes:
        problems = ["semantic: no file has a labelled pixel"]
    if problems:
        lines = problems[:_MAX_LINES]
        if len(problems) > _MAX_LINES:
            lines.append(f"… and {len(problems) - _MAX_LINES} more")
        raise UserError("\n  ".join([f"{root} cannot be used:", *lines]))
    return size, num_classes


def _check(frame: Frame, folders: Sequence[str], settings: Settings) -> _Report:
    problems: list[str] = []
    size, num_classes = None, 0
    for folder in folders:
        if folder not in frame.files:
            problems.append(
                f"{_name(frame, 'image')}: {folder}/ has no file of stem {frame.stem!r}, "
                "expected one"
            )
            continue
        try:
            values = READ[folder](frame.files[folder], settings)
        except BadFile as error:
            problems.append(f"{_name(frame, folder)}: {error}")
            continue
        if folder == "image":
            size = values.shape[:2]
        elif size and values.shape[:2] != size:
            problems.append(
                f"{_name(frame, folder)}: {_size(values.shape)}, expected {_size(size)} as its "
                "image"
            )
        if folder == "semantic":
            num_classes = int(values.max()) + 1
    return _Report(frame, tuple(problems), size, num_classes)


def _name(frame: Frame, folder: str) -> str:
    return f"{folder}/{frame.files[folder].name}"


def _size(shape: Sequence[int]) -> str:
    return f"{shape[0]}×{shape[1]} (H×W)"
