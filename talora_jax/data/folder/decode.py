"""One file in, one array out: the image, and what targets read.

Every function raises `BadFile` with what was expected when the file is something else.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from jaxtyping import Num, UInt8
from PIL import ExifTags, Image

from talora_jax import rgb
from talora_jax.data.folder import rasters
from talora_jax.data.folder.readings import KINDS, Reading, YesNo
from talora_jax.data.folder.settings import Settings
from talora_jax.data.folder.validity import is_mask, mask_of
from talora_jax.data.records import SampleFiles
from talora_jax.errors import UserError, one_line, printable
from talora_jax.task_names import is_head, kind_of
from talora_jax.tasks import TARGETS, target_of
from talora_jax.tasks.target_files import BadFile, one_frame, read_npy, span

# What nearly all images are; a message lists no more.
COMMON_IMAGES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".npy")


def suffixes(settings: Settings | None, heads: Iterable[str] = ()) -> dict[str, frozenset[str]]:
    """The targets that there may be, these heads and masks among them, and the suffixes of the
    files that each may have: more where `settings` describe them."""
    targets = {
        name: frozenset(
            rasters.SUFFIXES
            if is_mask(name) or is_described(name, settings)
            else target_of(name).suffixes
        )
        for name in (*TARGETS, *heads)
    }
    return {"image": rgb.suffixes() | {".npy"}, **targets}


def is_described(target: str, settings: Settings | None) -> bool:
    """Whether `dataset.json` says something of a target's files, beyond what their place says."""
    if settings is None or kind_of(target) not in KINDS:
        return False
    return (
        target in (settings.read or {}) or target in (settings.files or {}) or bool(settings.table)
    )


def read(folder: str, path: Path, settings: Settings) -> Num[np.ndarray, "H W *c"]:
    """A file of one of the `suffixes` folders, as `talora_jax.data.dataset.Source` has it."""
    _check_not_empty(path)
    if folder == "image":
        return read_image(path)
    target, reading = target_of(folder), (settings.read or {}).get(folder)
    if is_head(folder):
        settings = _of_head(settings, reading)
    if reading is None and path.suffix.lower() in target.suffixes:
        return target.read(path, settings)
    kind = kind_of(folder)
    if kind not in KINDS:
        raise BadFile(f"expected a file of kind {', '.join(target.suffixes)}")
    values = (reading or KINDS[kind]()).values(path, settings)
    # What the reading has applied is not applied again.
    return target.from_values(values, dataclasses.replace(settings, depth_scale=None))


def masked(
    target: str, values: Num[np.ndarray, "H W *c"], sample: SampleFiles, settings: Settings
) -> Num[np.ndarray, "H W *c"]:
    """What was read of a target, unlabelled where its mask of validity says so, if it has one."""
    name = mask_of(target)
    path = sample.files.get(name)
    if path is None:
        return values
    try:
        _check_not_empty(path)
        valid = (settings.read or {}).get(name, YesNo()).values(path, settings) == 1
        if valid.shape != values.shape[:2]:
            (h, w), (height, width) = valid.shape, values.shape[:2]
            raise BadFile(f"{h}×{w} (H×W), expected {height}×{width} as {target} has")
    except BadFile as error:
        raise BadFile(f"its mask of validity {printable(path.name)}: {error}") from None
    values = values.copy()
    values[~valid] = target_of(target).unlabelled
    return values


def _check_not_empty(path: Path) -> None:
    if not path.stat().st_size:
        raise BadFile("empty (0 bytes)")


def _of_head(settings: Settings, reading: Reading | None) -> Settings:
    """The settings of a head's files: what stands beside `read` is of the kind's first head."""
    return dataclasses.replace(
        settings,
        class_names=getattr(reading, "names", ()),
        depth_scale=None,
        max_depth=getattr(reading, "max", None),
        ignore_label=None,
    )


def read_image(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    """RGB of 8 bits, as `rgb.as_rgb` makes it of whatever Pillow opens: EXIF orientation is
    applied."""
    if path.suffix.lower() != ".npy":
        try:
            with Image.open(path) as image:
                one_frame(image)
                image.load()  # All of it, so that a truncated file is found out.
                found = rgb.as_rgb(image)
            rgb.check_png(path)
            return found
        except (BadFile, UserError) as error:
            raise BadFile(str(error)) from error
        except Exception as error:  # Pillow raises many kinds, from OSError to SyntaxError.
            raise BadFile(f"cannot be decoded as an image ({one_line(error)})") from error
    values = read_npy(path)
    if values.ndim != 3 or values.shape[2] != 3:
        raise BadFile(f"shape {values.shape}, expected [H, W, 3]")
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind != "f" or not (values.min() >= 0 and values.max() <= 1):
        raise BadFile(f"{span(values)}, expected uint8, or float in [0, 1]")
    return (values * 255).round().astype(np.uint8)


def orientation(path: Path) -> int:
    """EXIF's, from 2 to 8 where showing the image turns or mirrors its stored pixels, 1 elsewhere.

    From 5 on, height and width are exchanged. What cannot be read turns nothing.
    """
    if path.suffix.lower() == ".npy":
        return 1
    try:
        with Image.open(path) as image:
            found = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # as in `read_image`
        return 1
    return found if found in range(1, 9) else 1
