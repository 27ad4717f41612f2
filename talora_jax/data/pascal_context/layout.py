"""Which files make up PASCAL_MT, and whether they are all there."""

import os
from collections.abc import Collection, Sequence
from pathlib import Path

from talora_jax.data.records import SampleFiles
from talora_jax.errors import UserError, printable

# A file per image and folder.
_FILES = {
    "image": "JPEGImages/{}.jpg",
    "context": "pascal-context/trainval/{}.mat",
    "human_parts": "human_parts/{}.mat",
    "normals": "normals_distill/{}.png",
    "saliency": "sal_distill/{}.png",
}
# Labels of VOC 2012 where it has the image, else those made from PASCAL-Context's.
_SEMANTIC = ("semseg/VOC12/{}.png", "semseg/pascal-context/{}.png")
# What each target is made from, beside the image.
_NEEDS = {
    "semantic": ("semantic",),
    "human_parts": ("human_parts",),
    "saliency": ("saliency",),
    "normals": ("normals", "context"),
    "edges": ("context",),
}
_SPLITS = {name: f"ImageSets/Context/{name}.txt" for name in ("train", "val")}
_MAX_LINES = 20


def list_splits(path: str, tasks: Sequence[str]) -> dict[str, tuple[SampleFiles, ...]]:
    """The samples of 'train' and 'val' in the order of the split files, each with its files
    'image' and, as far as the tasks need them, 'context', 'human_parts', 'normals', 'saliency' and
    'semantic'.

    Args:
      path: `config.data.path`.
      tasks: targets that there must be files for.

    Raises:
      UserError: `path` is not an unpacked PASCAL_MT, a split is empty or names an image twice, or
        files are missing, of which it lists the first.
    """
    root = Path(os.path.expanduser(path))
    if not path or not root.is_dir():
        raise UserError(
            f"config.data.path is {path!r}, which is not a directory; expected the unpacked "
            "PASCAL_MT, which holds JPEGImages."
        )
    needed = _needed(tasks)
    _check_folders(root, needed)
    splits = {name: _stems(root / file) for name, file in _SPLITS.items()}
    shared = sorted(set(splits["train"]) & set(splits["val"]))
    if shared:
        raise UserError(
            f"{root / 'ImageSets/Context'}: {shared[0]} stands in both train.txt and val.txt; "
            "expected each image in one."
        )

    samples, missing = {}, []
    for name, stems in splits.items():
        found = [_find(root, stem, needed) for stem in stems]
        missing += [line for _, lines in found for line in lines]
        samples[name] = tuple(sample for sample, _ in found)
    if missing:
        lines = missing[:_MAX_LINES]
        if len(missing) > _MAX_LINES:
            lines.append(f"… and {len(missing) - _MAX_LINES} more")
        raise UserError("\n  ".join([f"{root} lacks files that its splits name:", *lines]))
    return samples


def unread(tasks: Sequence[str]) -> tuple[str, ...]:
    """How the names of files begin that the tasks do not need."""
    needed = _needed(tasks)
    folders = [f"{folder}/" for name, folder in _folders().items() if name not in needed]
    return tuple(folders)


def _needed(tasks: Sequence[str]) -> set[str]:
    """What an image's targets are made from, itself included."""
    return {"image", *(name for task in tasks for name in _NEEDS[task])}


def _folders() -> dict[str, str]:
    return {name: str(Path(pattern).parent) for name, pattern in _FILES.items()} | {
        "semantic": "semseg"
    }


def _check_folders(root: Path, needed: Collection[str]) -> None:
    folders = [folder for name, folder in _folders().items() if name in needed]
    lacking = [folder for folder in folders if not (root / folder).is_dir()]
    lacking += [file for file in _SPLITS.values() if not (root / file).is_file()]
    if not lacking:
        return
    inner = root / "PASCAL_MT"
    hint = f" Is it {inner}?" if inner.is_dir() else ""
    raise UserError(
        f"{root} is not PASCAL-Context as ASTMT packs it (PASCAL_MT): it lacks "
        f"{', '.join(lacking)}.{hint}"
    )


def _stems(path: Path) -> tuple[str, ...]:
    try:
        # Some editors begin a file with a mark of its byte order.
        stems = tuple(path.read_text(encoding="utf-8-sig").split())
    except UnicodeDecodeError:
        raise UserError(
            f"{path} is not text in UTF-8; expected the name of an image in each line."
        ) from None
    if not stems:
        raise UserError(f"{path} names no image; expected one in each line.")
    if len(set(stems)) < len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise UserError(f"{path} names {printable(twice)} twice.")
    if "." in stems[0]:
        raise UserError(
            f"{path} names {printable(stems[0])}; expected names without .jpg and without folders."
        )
    return stems


def _find(root: Path, stem: str, needed: Collection[str]) -> tuple[SampleFiles, list[str]]:
    """The files of one image, and a line for each that is missing."""
    files = {
        name: root / pattern.format(stem) for name, pattern in _FILES.items() if name in needed
    }
    missing = [str(path.relative_to(root)) for path in files.values() if not path.is_file()]
    if "semantic" not in needed:
        return SampleFiles(stem, files), missing
    choices = [pattern.format(stem) for pattern in _SEMANTIC]
    for choice in choices:
        if (root / choice).is_file():
            files["semantic"] = root / choice
            break
    else:
        missing.append(" or ".join(choices))
    return SampleFiles(stem, files), missing
