"""Which files make up which sample, and which samples make up which split."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from talora_jax.data.folder.decode import suffixes
from talora_jax.data.folder.settings import Settings
from talora_jax.data.records import SampleFiles, fingerprint
from talora_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Listing:
    """All samples of a directory.

    Attributes:
      folders: which of `decode.suffixes` there are.
      samples: by stem, in sorted order; every stem of `image/`. Files go by their folder.
      problems: files that are too many, or of a wrong kind; one line each.
    """

    folders: tuple[str, ...]
    samples: Mapping[str, SampleFiles]
    problems: tuple[str, ...]


def list_samples(root: Path) -> Listing:
    """Lists the samples of `root`.

    Raises:
      UserError: `root` or `root/image` is not a directory, or holds no image.
    """
    if not root.is_dir():
        raise UserError(f"config.data.path is {str(root)!r}, which is not a directory.")
    if not (root / "image").is_dir():
        raise UserError(
            f"{root} has no folder 'image'; expected one with the images of all samples."
        )
    known = suffixes()
    folders = tuple(name for name in known if (root / name).is_dir())
    problems: list[str] = []
    files: dict[str, dict[str, Path]] = {}
    for folder in folders:
        for path in sorted((root / folder).iterdir()):
            if path.name.startswith(".") or path.is_dir():
                continue
            if path.suffix.lower() not in known[folder]:
                expected = ", ".join(known[folder])
                problems.append(f"{folder}/{path.name}: expected a file of kind {expected}")
                continue
            files_of_stem = files.setdefault(path.stem, {})
            if folder in files_of_stem:
                problems.append(
                    f"{folder}/{path.name}: {files_of_stem[folder].name} has the same stem; "
                    "expected one"
                )
            elif folder != "image" and "image" not in files_of_stem:
                problems.append(f"{folder}/{path.name}: there is no image of this stem")
            files_of_stem[folder] = path
    samples = {
        stem: SampleFiles(stem, files[stem]) for stem in sorted(files) if "image" in files[stem]
    }
    if not samples:
        raise UserError(f"{root / 'image'} holds no image; expected {', '.join(known['image'])}.")
    return Listing(folders, samples, tuple(problems))


def split_samples(
    samples: Mapping[str, SampleFiles], settings: Settings, val_fraction: float, root: Path
) -> dict[str, tuple[SampleFiles, ...]]:
    """The samples of 'train' and 'val', in the order of their stems.

    Without `settings.splits`, the stems whose hashes come first are 'val': a choice that looks
    random, and moves few samples when others are added.

    Raises:
      UserError: a split names an unknown stem, the splits overlap, or there is no way to give
        each at least one sample.
    """
    stems = settings.splits or _draw_splits(sorted(samples), val_fraction, root)
    unknown = sorted({stem for split in stems.values() for stem in split} - set(samples))
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
    return {name: tuple(samples[stem] for stem in sorted(stems[name])) for name in stems}


def folder_fingerprint(splits: Mapping[str, Sequence[SampleFiles]], settings: Settings) -> str:
    """The `fingerprint` of the splits, the settings and all files."""
    return fingerprint(
        repr(dataclasses.replace(settings, splits=None)),
        {
            f"{split} {folder}/{path.name}": path
            for split, samples in splits.items()
            for sample in samples
            for folder, path in sample.files.items()
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
