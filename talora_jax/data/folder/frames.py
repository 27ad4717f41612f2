"""Which files make up which frame, and which frames make up which split."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from talora_jax.data.folder.settings import Settings
from talora_jax.data.records import fingerprint
from talora_jax.errors import UserError

# Folders and the suffixes of the files that they may hold.
SUFFIXES = {
    "image": (".png", ".jpg", ".jpeg", ".npy"),
    "semantic": (".png", ".npy"),
    "depth": (".png", ".npy"),
    "normals": (".png", ".npy"),
    "edges": (".png", ".npy"),
    "instance": (".png", ".npy"),
}


@dataclasses.dataclass(frozen=True)
class Frame:
    """The files of one frame by the folder they lie in."""

    stem: str
    files: Mapping[str, Path]


@dataclasses.dataclass(frozen=True)
class Frames:
    """All frames of a directory.

    Attributes:
        folders: which of `SUFFIXES` there are.
        frames: by stem, in sorted order; every stem of `image/`.
        problems: files that are too many, or of a wrong kind; one line each.
    """

    folders: tuple[str, ...]
    frames: Mapping[str, Frame]
    problems: tuple[str, ...]


def list_frames(root: Path) -> Frames:
    """Lists the frames of `root`.

    Raises:
        UserError: `root` or `root/image` is not a directory, or holds no image.
    """
    if not root.is_dir():
        raise UserError(f"config.data.path is {str(root)!r}, which is not a directory.")
    if not (root / "image").is_dir():
        raise UserError(
            f"{root} has no folder 'image'; expected one with the images of all frames."
        )
    folders = tuple(name for name in SUFFIXES if (root / name).is_dir())
    problems: list[str] = []
    files: dict[str, dict[str, Path]] = {}
    for folder in folders:
        for path in sorted((root / folder).iterdir()):
            if path.name.startswith(".") or path.is_dir():
                continue
            if path.suffix.lower() not in SUFFIXES[folder]:
                expected = ", ".join(SUFFIXES[folder])
                problems.append(f"{folder}/{path.name}: expected a file of kind {expected}")
                continue
            frame = files.setdefault(path.stem, {})
            if folder in frame:
                problems.append(
                    f"{folder}/{path.name}: {frame[folder].name} has the same stem; expected one"
                )
            elif folder != "image" and "image" not in frame:
                problems.append(f"{folder}/{path.name}: there is no image of this stem")
            frame[folder] = path
    frames = {stem: Frame(stem, files[stem]) for stem in sorted(files) if "image" in files[stem]}
    if not frames:
        raise UserError(
            f"{root / 'image'} holds no image; expected {', '.join(SUFFIXES['image'])}."
        )
    return Frames(folders, frames, tuple(problems))


def split_frames(
    frames: Mapping[str, Frame], settings: Settings, val_fraction: float, root: Path
) -> dict[str, tuple[Frame, ...]]:
    """The frames of 'train' and 'val', in the order of their stems.

    Without `settings.splits`, the stems whose hashes come first are 'val': a choice that looks
    random, and moves few frames when others are added.

    Raises:
        UserError: a split names an unknown stem, the splits overlap, or there is no way to give
            each at least one frame.
    """
    stems = settings.splits or _draw_splits(sorted(frames), val_fraction, root)
    unknown = sorted({stem for split in stems.values() for stem in split} - set(frames))
    if unknown:
        raise UserError(
            f"{root / 'dataset.json'}: splits name {_some(unknown)}, of which there is no image."
        )
    shared = sorted(set(stems["train"]) & set(stems["val"]))
    if shared:
        raise UserError(
            f"{root / 'dataset.json'}: {_some(shared)} stand in both splits; expected each stem "
            "in one at most."
        )
    return {name: tuple(frames[stem] for stem in sorted(stems[name])) for name in stems}


def folder_fingerprint(splits: Mapping[str, Sequence[Frame]], settings: Settings) -> str:
    """The `fingerprint` of the splits, the settings and all files."""
    return fingerprint(
        repr(dataclasses.replace(settings, splits=None)),
        {
            f"{split} {folder}/{path.name}": path
            for split, frames in splits.items()
            for frame in frames
            for folder, path in frame.files.items()
        },
    )


def _draw_splits(
    stems: Sequence[str], val_fraction: float, root: Path
) -> dict[str, tuple[str, ...]]:
    if not 0 < val_fraction < 1:
        raise UserError(
            f"config.data.val_fraction is {val_fraction}; expected a number between 0 and 1."
        )
    if len(stems) < 2:
        raise UserError(
            f"{root / 'image'} holds one image; expected two or more, to train and to validate."
        )
    ranked = sorted(stems, key=lambda stem: hashlib.sha256(stem.encode()).digest())
    val = min(max(round(len(stems) * val_fraction), 1), len(stems) - 1)
    return {"train": tuple(ranked[val:]), "val": tuple(ranked[:val])}


def _some(stems: Sequence[str]) -> str:
    return ", ".join(stems[:5]) + (f" and {len(stems) - 5} more" if len(stems) > 5 else "")
