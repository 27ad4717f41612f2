"""--mode predict: images in, a lossless file per task and one picture per image out.

    OUT/depth/photo.png        values: see `Task.png`; what they mean is in the file's text
    OUT/depth/photo.npy        with --npy, the array that `TrainedModel.predict` gives
    OUT/panels/photo.png       the image and every task with its legend
    OUT/panels/clip.mp4        the same of every frame of a video, as far as it can be read; there
                               are no other files of it
    OUT/summary.json           what was predicted, with what, and which files could not be read

Images in folders keep their place in them: DIR/a/1.jpg gives OUT/depth/a/1.png. Where a folder is
called like a file that is written, DIR/a.png/1.jpg, it is OUT/depth/a_png/1.png.
"""

import dataclasses
import glob
import hashlib
import io
import itertools
import json
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import jax
import numpy as np
import rich.console
import rich.progress
from PIL import Image

import talora_jax
from talora_jax import hosts, storage
from talora_jax.errors import UserError, printable
from talora_jax.files import check_folder, make_folder, write_atomically
from talora_jax.inference import video
from talora_jax.inference.batches import Prepared
from talora_jax.inference.model import Maps, TrainedModel, raised
from talora_jax.inference.pictures import picture
from talora_jax.rgb import read_rgb, suffixes
from talora_jax.task_names import in_paths
from talora_jax.tasks import Task
from talora_jax.tasks.png import Png, encoded
from talora_jax.weights.header import tensors_sha256

Row = TypeVar("Row")
Content = Png | Image.Image | np.ndarray

SUMMARY = "summary.json"
PANELS = "panels"
_LIKE_OUTPUTS = re.compile(r"\.(png|npy|mp4)\Z", re.IGNORECASE)
_LONGEST = 240  # bytes of a name, which gets a number and an ending; file systems take 255


@dataclasses.dataclass(frozen=True)
class Input:
    """An image or a video to predict on, and the name of what it gives, without a suffix."""

    path: Path
    name: str


def predict(
    model: TrainedModel,
    inputs: Sequence[Input],
    out: Path,
    *,
    tasks: Sequence[str] | None = None,
    npy: bool = False,
    overwrite: bool = False,
    batch_size: int | None = None,
    print_line: Callable[[str], None] = print,
) -> dict:
    """Predicts on images, writes what it saw, and returns the summary.

    Files that cannot be read, and videos that cannot be read to their end, are listed at the end.
    Where many processes have come together (see `talora_jax.hosts`) each does its share, and
    process 0 tells and writes the summary.

    Args:
      inputs: from `find_images`.
      out: the folder to write to.
      tasks: those wanted; None means all.
      npy: whether to write the arrays, too, class probabilities among them.
      overwrite: whether files that exist may be replaced.
      batch_size: images computed together, see `TrainedModel.predict`.

    Raises:
      UserError: something would be overwritten, `out` cannot be written to, the model lacks a task,
        a batch size is below 1, or not one image could be read; nothing is written then. Or no
        image, and no video to its end: what could be read of videos is written.
    """
    started = time.monotonic()
    wanted = model.named(tasks)
    names = [task.name for task in wanted]
    folders = [in_paths(name) for name in names]
    written = (".png", ".npy") if npy else (".png",)
    clips = [given for given in inputs if video.is_video(given.path)]
    images = [given for given in inputs if given not in clips]
    for clip in clips[:1]:
        video.check_installed(clip.path)
    check_out(out, SUMMARY, images, [*folders, PANELS], written, overwrite=overwrite)
    check_out(out, SUMMARY, clips, [PANELS], [".mp4"], overwrite=overwrite)
    # Then all have looked what is there, and may write.
    hosts.agree(
        {
            "--mode": "predict",
            "talora_jax": talora_jax.__version__,
            "--images": _digest(str(given) for given in inputs),
            "--out": str(out.absolute()),
            "the outputs": names,
            "the adapter": tensors_sha256(model.file.tensors),
            "the base": model.file.base_fingerprint,
            "--npy": npy,
        }
    )
    hosts.check_shared("--out", out)
    index, count = jax.process_index(), jax.process_count()

    def read(given: Input) -> Prepared:
        return model.prepared(read_rgb(given.path))

    def write(given: Input, image: Prepared, found: Maps) -> dict:
        prediction = model.arrays(wanted, image, found, npy)
        files: dict[Path, Content] = {
            out / in_paths(task.name) / f"{given.name}.png": task.png(prediction[task.name])
            for task in wanted
        }
        files[out / PANELS / f"{given.name}.png"] = picture(image.image, prediction, wanted)
        if npy:
            files |= {out / in_paths(k) / f"{given.name}.npy": x for k, x in prediction.items()}
        write_all(files)
        return {
            "image": str(given.path),
            "size": list(image.image.shape[:2]),
            "files": [str(path.relative_to(out)) for path in files],
        }

    def show(given: Input) -> dict | UserError:
        try:
            return _show_clip(model, wanted, given, out, batch_size, quiet=index > 0)
        except UserError as error:
            return error

    mine, my_clips = images[index::count], clips[index::count]
    results = model.each(mine, read, write, wanted, batch_size, number=len(mine))
    shares = [
        _work_through(mine, "predicting", results, quiet=index > 0),
        _work_through(my_clips, "videos", map(show, my_clips), quiet=True),
    ]
    order = {str(given.path): place for place, given in enumerate(inputs)}
    rows, unreadable = (
        sorted(itertools.chain(*told), key=lambda row: order[row["image"]])
        for told in zip(*itertools.chain(*hosts.gathered(shares)), strict=True)
    )
    unreadable += [
        {"image": row["image"], "reason": row["ends_early"]} for row in rows if "ends_early" in row
    ]
    _tell_unreadable(inputs, rows, unreadable, print_line if index == 0 else lambda line: None)
    summary = {
        "tasks": {t.name: {"channels": t.channels, "classes": list(t.class_names)} for t in wanted},
        "base": model.file.base,
        "base_fingerprint": model.file.base_fingerprint,
        "images": rows,
        "unreadable": unreadable,
        "seconds": round(time.monotonic() - started, 3),
    }
    if index == 0:
        write_atomically(out / SUMMARY, json.dumps(summary, indent=2).encode())
        files = "images and videos" if clips else "images"
        there = [", ".join(folders), PANELS] if images else [PANELS]
        for row in rows:
            if "frames" in row:
                print_line(
                    f"{printable(row['image'])}: {row['frames']} frames, "
                    f"{row['frames_per_second']:.1f} per second"
                )
        print_line(
            f"{len(rows)} of {len(inputs)} {files} predicted in {summary['seconds']:.1f} s; "
            f"{' and '.join(there)} are in {out}"
        )
    if len(unreadable) == len(inputs):
        raise _none_read(inputs, unreadable)
    return summary


def _show_clip(
    model: TrainedModel,
    wanted: Sequence[Task],
    given: Input,
    out: Path,
    batch_size: int | None,
    *,
    quiet: bool,
) -> dict:
    """Writes the panels of a video's frames as a video, and returns its row of the summary.

    If it cannot be read to its end the frames before are written, and the row tells the reason.

    Raises:
      UserError: not one frame can be read, or the panels not be written.
    """
    started = time.monotonic()
    clip, panels = video.Video(given.path), out / PANELS / f"{given.name}.mp4"

    def prepared(frame: video.Frame) -> Prepared:
        return model.prepared(frame.picture)

    def panel(frame: video.Frame, image: Prepared, found: Maps) -> video.Frame:
        prediction = model.arrays(wanted, image, found, False)
        return frame._replace(picture=np.asarray(picture(image.image, prediction, wanted)))

    found = map(raised, model.each(clip.frames(), prepared, panel, wanted, batch_size))
    row = {"image": str(given.path)}

    def readable() -> Iterator[video.Frame]:
        yield next(found)
        try:
            yield from found
        except UserError as error:
            row["ends_early"] = _reason(given, error)

    with _bar(quiet, _Speed()) as bar:
        tracked = bar.track(readable(), clip.count, description=given.name)
        frames = video.write(panels, tracked, clip.rate, clip.time_base)
    return row | {
        "frames": frames,
        "frames_per_second": round(frames / (time.monotonic() - started), 3),
        "files": [str(panels.relative_to(out))],
    }


def find_images(patterns: Sequence[str], out: Path) -> list[Input]:
    """The images that files, folders and globs name, each once, in the order given.

    Of a folder, the files whose names end like an image's; none of what lies in `out`.

    Raises:
      UserError: a pattern names nothing.
    """
    if not patterns:
        raise UserError("--images is missing: name files, folders or globs")
    inputs: dict[Path, Input] = {}
    taken: set[str] = set()
    for pattern in patterns:
        if not pattern:  # a shell's variable that is not set; to pathlib it is the current folder
            raise UserError("--images: '' names nothing; the current folder is .")
        matches = _matches(pattern)
        found = [image for match in matches for image in _images(match, out)]
        if not found:
            what = "holds no images that Pillow can read" if matches else "is no file and no folder"
            raise UserError(f"--images: {pattern!r} {what}")
        for path, name in found:
            if path.resolve() not in inputs:
                # Of equal names the later ones are numbered: photo, photo-2, photo-3.
                others = (f"{name}-{i}" for i in itertools.count(2))
                name = next(n for n in itertools.chain([name], others) if n not in taken)
                taken.add(name)
                inputs[path.resolve()] = Input(path, name)
    return list(inputs.values())


def _matches(pattern: str) -> list[Path]:
    """The files and folders that one pattern names."""
    path = storage.local(pattern)
    return [path] if path.exists() else [*map(Path, sorted(glob.glob(str(path), recursive=True)))]


def _images(match: Path, out: Path) -> Iterator[tuple[Path, str]]:
    """A file, or the images in a folder, and what to call what they give."""
    if not match.is_dir():
        yield match, _name(Path(match.name))
        return
    for below in sorted(match.rglob("*")):
        if out.resolve() in below.resolve().parents:
            continue
        if below.suffix.lower() in suffixes() and below.is_file():
            yield below, _name(below.relative_to(match))


def _name(path: Path) -> str:
    """What to call what an image gives: its path without the suffix, as far as files can be."""
    # No folder is where the file of another image will be.
    folders = [_LIKE_OUTPUTS.sub(r"_\1", folder) for folder in path.parts[:-1]]
    stem = path.stem
    while len(os.fsencode(stem)) > _LONGEST:
        stem = stem[:-1]
    return str(Path(*folders, stem))


def check_out(
    out: Path,
    summary: str,
    inputs: Sequence[Input],
    folders: Sequence[str],
    endings: Sequence[str],
    *,
    overwrite: bool,
) -> None:
    """Refuses a place to write to, before any work is done.

    Args:
      summary: the file that tells of all images.
      folders: in each of which every image has a file of each of `endings`.
      overwrite: whether files that exist may be replaced.

    Raises:
      UserError: as of `check_folder`, or something would be overwritten.
    """
    check_folder("--out", out)
    planned = [out / summary] + [
        out / folder / f"{given.name}{ending}"
        for given in inputs
        for folder in folders
        for ending in endings
    ]
    existing = [path for path in planned if path.exists()]
    if existing and not overwrite:
        raise UserError(
            f"{existing[0]} exists ({len(existing)} such files): choose another --out, or say "
            "--overwrite"
        )


def each_image(
    inputs: Sequence[Input],
    doing: str,
    results: Iterable[Row | UserError],
    print_line: Callable[[str], None],
) -> tuple[list[Row], list[dict]]:
    """What there is to tell of images, while they are worked on, beside a bar of progress.

    Args:
      doing: what is done, for the bar.
      results: what is to be told of each image, or why it could not be read.

    Returns:
      What is told of the images; and those that could not be read, with the reason.

    Raises:
      UserError: not one image could be read, or what `results` raises.
    """
    rows, unreadable = _work_through(inputs, doing, results)
    _tell_unreadable(inputs, rows, unreadable, print_line)
    return rows, unreadable


def _work_through(
    inputs: Sequence[Input],
    doing: str,
    results: Iterable[Row | UserError],
    quiet: bool = False,
) -> tuple[list[Row], list[dict]]:
    """`each_image` without a word, also where nothing can be read; `quiet` shows no bar."""
    rows: list[Row] = []
    unreadable: list[dict] = []
    with _bar(quiet, rich.progress.MofNCompleteColumn()) as bar:
        counted = bar.track(results, total=len(inputs), description=doing)
        for given, result in zip(inputs, counted, strict=True):
            if isinstance(result, UserError):
                unreadable.append({"image": str(given.path), "reason": _reason(given, result)})
            else:
                rows.append(result)
    return rows, unreadable


class _Speed(rich.progress.ProgressColumn):
    """How many frames are done in a second."""

    def render(self, task: rich.progress.Task) -> str:
        return f"{task.finished_speed or task.speed or 0:.1f} frames/s"


def _bar(quiet: bool, column: rich.progress.ProgressColumn) -> rich.progress.Progress:
    console = rich.console.Console()
    return rich.progress.Progress(
        *rich.progress.Progress.get_default_columns(),
        column,
        console=console,
        disable=quiet or not console.is_terminal,
    )


def _tell_unreadable(
    inputs: Sequence[Input],
    rows: Sequence[Row],
    unreadable: Sequence[dict],
    print_line: Callable[[str], None],
) -> None:
    """
    Raises:
      UserError: not one image could be read.
    """
    for failed in unreadable:
        print_line(f"not read: {printable(failed['image'])}: {failed['reason']}")
    if not rows:
        raise _none_read(inputs, unreadable)


def _none_read(inputs: Sequence[Input], unreadable: Sequence[dict]) -> UserError:
    return UserError(
        f"{printable(unreadable[0]['image'])}: {unreadable[0]['reason']}"
        if len(unreadable) == 1
        else f"none of {len(inputs)} images could be read whole"
    )


def _reason(given: Input, error: UserError) -> str:
    """Why something cannot be read, without its name."""
    return str(error).removeprefix(f"{printable(given.path)}: ")


def _digest(texts: Iterable[str]) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def write_all(files: Mapping[Path, Content]) -> None:
    """Writes files, each whole or not at all, in folders that are made where they are missing.

    Raises:
      UserError: one could not be written.
    """
    for path, content in files.items():
        make_folder(path.parent)
        write_atomically(path, _encoded(content))


def _encoded(content: Png | Image.Image | np.ndarray) -> bytes:
    if isinstance(content, Png):
        return content.encode()
    if isinstance(content, Image.Image):
        return encoded(content)
    file = io.BytesIO()
    np.save(file, content, allow_pickle=False)
    return file.getvalue()
