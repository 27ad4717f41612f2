"""Which files make up which sample, and which samples make up which split."""

import dataclasses
import hashlib
import os
import stat
import unicodedata
import zipfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath

from talora_jax.data.folder.decode import COMMON_IMAGES, suffixes
from talora_jax.data.folder.settings import Settings
from talora_jax.data.folder.validity import masked_by
from talora_jax.data.records import SampleFiles
from talora_jax.errors import UserError, nearest, printable, some
from talora_jax.task_names import from_path, in_paths, is_head, is_name
from talora_jax.tasks import TARGETS

_NAMED = 5  # names in a sentence
# What systems leave in folders, besides names that begin with a dot; in lower case.
_LEFT_BY_SYSTEMS = {"thumbs.db", "desktop.ini", "__macosx", "@eadir"}


@dataclasses.dataclass(frozen=True)
class Listing:
    """All samples of a directory.

    Attributes:
      folders: which of `decode.suffixes` there are, by their targets' names.
      others: names of the directories beside them.
      samples: by stem, in sorted order; every stem of `image/`. Files go by their folder. The stem
        of a file in a subfolder has the subfolder in it, as 'kitchen/0001'.
      problems_of: files that are too many, or of a wrong kind; one line each, by the folder that
        it is about.
      splits: the stems of each, where the places of files tell.
    """

    folders: tuple[str, ...]
    others: tuple[str, ...]
    samples: Mapping[str, SampleFiles]
    problems_of: Mapping[str, tuple[str, ...]]
    splits: Mapping[str, tuple[str, ...]] | None = None

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(line for lines in self.problems_of.values() for line in lines)

    def only(self, folders: Collection[str]) -> "Listing":
        """What there is of these folders."""
        return Listing(
            tuple(name for name in self.folders if name in folders),
            self.others,
            {
                stem: SampleFiles(
                    stem, {name: path for name, path in sample.files.items() if name in folders}
                )
                for stem, sample in self.samples.items()
            },
            {name: lines for name, lines in self.problems_of.items() if name in folders},
            self.splits,
        )


def list_samples(root: Path, settings: Settings) -> Listing:
    """Lists the samples of `root`, one folder per target.

    Raises:
      UserError: `root` has no folder `image`, or that holds no image.
    """
    _check_image_folder(root)
    names = [from_path(path.name) for path in root.iterdir()]
    known = suffixes(
        settings, sorted(x for x in names if is_head(x) and is_name(masked_by(x), TARGETS))
    )
    folders = tuple(name for name in known if os.path.lexists(root / in_paths(name)))
    problems: dict[str, list[str]] = {folder: [] for folder in folders}
    files: dict[str, dict[str, Path]] = {}
    for folder in folders:
        for path, problem in _walk(root / in_paths(folder), known[folder]):
            name = _name(path, root)
            if problem:
                problems[folder].append(f"{name}: {problem}")
                continue
            files_of_stem = files.setdefault(_stem(path, root / in_paths(folder)), {})
            if folder in files_of_stem:
                problems[folder].append(
                    f"{name}: {printable(files_of_stem[folder].name)} has the same stem; "
                    "expected one"
                )
            files_of_stem.setdefault(folder, path)
    samples = {
        stem: SampleFiles(stem, files[stem]) for stem in sorted(files) if "image" in files[stem]
    }
    if not samples:
        kinds = ", ".join(COMMON_IMAGES)
        first = next((line for lines in problems.values() for line in lines), None)
        why = f" that can be used: {first}" if first else f"; expected {kinds}, …"
        raise UserError(f"{root / 'image'} holds no image{why}")
    alike = {_blurred(stem): stem for stem in samples}
    for stem in sorted(set(files) - set(samples)):
        other = alike.get(_blurred(stem))
        hint = f", but one of {printable(repr(other))}: stems must be equal" if other else ""
        for folder, path in files[stem].items():
            problems[folder].append(f"{_name(path, root)}: there is no image of this stem{hint}")
    listed = {in_paths(name) for name in known}
    others = [path.name for path in root.iterdir() if path.name not in listed and path.is_dir()]
    others = sorted(name for name in others if not _is_left_over(name))
    found = {folder: tuple(lines) for folder, lines in problems.items()}
    return Listing(folders, tuple(others), samples, found)


def split_samples(
    listed: Listing, settings: Settings, val_fraction: float, root: Path
) -> dict[str, tuple[SampleFiles, ...]]:
    """The samples of 'train' and 'val', in the order of their stems.

    Where neither `settings` nor the places of the files tell, the stems whose hashes come first
    are 'val': a choice that looks random, and moves few samples when others are added.

    Raises:
      UserError: a split names an unknown stem, the splits overlap, or there is no way to give
        each at least one sample.
    """
    samples = listed.samples
    if settings.splits is None:
        stems = listed.splits or _draw_splits(sorted(samples), val_fraction, root)
    else:
        stems = {
            split: _stems_of(names, split if listed.splits else "", samples, root)
            for split, names in settings.splits.items()
        }
    for split, names in stems.items():
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UserError(
                f"{root / 'dataset.json'}: splits name {printable(twice)} twice in {split!r}."
            )
    unknown = sorted({stem for split in stems.values() for stem in split} - set(samples))
    if unknown:
        raise UserError(
            f"{root / 'dataset.json'}: splits name {some(unknown, _NAMED)}, of which there is no "
            f"image{_meant(unknown[0], samples)}."
        )
    shared = sorted(set(stems["train"]) & set(stems["val"]))
    if shared:
        raise UserError(
            f"{root / 'dataset.json'}: {some(shared, _NAMED)} stand in both splits; expected each "
            "stem in one at most."
        )
    return {name: tuple(samples[stem] for stem in sorted(stems[name])) for name in stems}


def check_root(root: Path) -> None:
    """Raises a `UserError` unless `root` is a directory that can be listed."""
    if not root.is_dir():
        is_archive = root.is_file() and zipfile.is_zipfile(root)
        hint = ": it is a zip archive, unpack it" if is_archive else ""
        raise UserError(f"config.data.path is {str(root)!r}, which is not a directory{hint}.")
    try:
        next(root.iterdir(), None)
    except OSError as error:
        raise UserError(f"config.data.path: {root} cannot be listed ({error.strerror}).") from None


def _check_image_folder(root: Path) -> None:
    names = sorted(path.name for path in root.iterdir() if not path.name.startswith("."))
    if (root / "image").is_dir():
        return
    there = f"it holds {some(names, _NAMED)}" if names else "it is empty"
    described = "`talora_jax describe-data` tells where its files are without moving them"
    hint = ""
    if "image" in names:
        hint = f", where image is {_no_folder(root / 'image')}"
    elif close := nearest("image", [name.lower() for name in names]):
        renamed = next(name for name in names if name.lower() == close)
        hint = f". Is it {printable(renamed)}? Then rename that. Or {described}"
    elif inner := [name for name in names if (root / name / "image").is_dir()]:
        hint = f". Is {root / inner[0]} the directory of the data?"
    elif names:
        hint = f". {described}"
    raise UserError(
        f"{root} has no folder 'image', expected to hold the images of all samples; {there}{hint}."
    )


def _walk(folder: Path, known: Collection[str]) -> list[tuple[Path, str | None]]:
    """All files below a target's folder, as `files_below`, or that it is none."""
    if not folder.is_dir():
        return [(folder / "", f"{_no_folder(folder)}, expected a folder")]
    return files_below(folder, known)


def files_below(
    folder: Path, known: Collection[str] | None = None
) -> list[tuple[Path, str | None]]:
    """All files below a folder, in order, each with what is wrong with it before it is read.

    Args:
      known: the suffixes that all of them must have; None to tell only what cannot be listed.
    """
    found: list[tuple[Path, str | None]] = []
    ahead: list[tuple[Path, frozenset[tuple[int, int]]]] = [(folder, frozenset())]
    while ahead:
        directory, above = ahead.pop()
        try:
            status = directory.stat()
            entries = list(directory.iterdir())
        except OSError as error:
            found.append((directory, f"cannot be listed ({error.strerror})"))
            continue
        identity = (status.st_dev, status.st_ino)
        if identity in above:
            found.append((directory, "a link to a folder that it lies in, expected no circle"))
            continue
        for path in entries:
            if _is_left_over(path.name):
                continue
            problem = known and problem_of(path, known)
            if problem or not path.is_dir():
                found.append((path, problem))
            else:
                ahead.append((path, above | {identity}))
    return sorted(found, key=lambda entry: entry[0].parts)


def problem_of(path: Path, known: Collection[str]) -> str | None:
    """What is wrong with a file before it is read, or with a folder's name."""
    try:
        path.name.encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8, rename it"
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return _broken_link(path) or f"cannot be read ({error.strerror})"
    is_known = path.suffix.lower() in known
    if stat.S_ISDIR(mode):
        return "a folder, expected a file" if is_known else None
    if not stat.S_ISREG(mode):
        return "a pipe, socket or device, expected a file"
    if not is_known:
        kinds = known if len(known) < 5 else COMMON_IMAGES
        more = ", …" if kinds is COMMON_IMAGES else ""
        return f"expected a file of kind {', '.join(sorted(kinds, reverse=True))}{more}"
    return None if os.access(path, os.R_OK) else "cannot be read (Permission denied)"


def _no_folder(path: Path) -> str:
    return _broken_link(path) or "no folder"


def _broken_link(path: Path) -> str | None:
    if path.is_symlink() and not path.exists():
        return f"a link to {printable(os.readlink(path))}, which leads nowhere"
    return None


def _is_left_over(name: str) -> bool:
    return name.startswith(".") or name.lower() in _LEFT_BY_SYSTEMS


def _name(path: Path, root: Path) -> str:
    """A path below the root for a message; it begins with the folder."""
    relative = path.relative_to(root).as_posix()
    return printable(relative if "/" in relative else f"{relative}/")


def _stem(path: Path, folder: Path) -> str:
    return composed(os.path.splitext(path.relative_to(folder).as_posix())[0])


def composed(name: str) -> str:
    """One of the ways in which Unicode writes a name: some systems store é as e and an accent."""
    return unicodedata.normalize("NFC", name)


def _blurred(stem: str) -> str:
    """What stems have in common that look alike."""
    return "".join(stem.casefold().split())


def _meant(name: str, samples: Mapping[str, SampleFiles]) -> str:
    """The way on from a stem that is none."""
    stem, suffix = os.path.splitext(name)
    if stem in samples:
        return f": give stems, without {printable(suffix)}"
    close = [stem for stem in samples if PurePosixPath(stem).name == name] or [
        stem for stem in samples if _blurred(stem) == _blurred(name)
    ]
    return f"; there is one of {printable(repr(close[0]))}" if close else ""


def _stems_of(
    names: Sequence[str], split: str, samples: Mapping[str, SampleFiles], root: Path
) -> tuple[str, ...]:
    """The stems that a list means; lists that data sets bring along name images by their paths,
    too."""
    images = {
        composed(sample.files["image"].relative_to(root).as_posix()): stem
        for stem, sample in samples.items()
    }
    found = []
    for name in map(composed, names):
        ways = (name, f"{split}/{name}" if split else name)
        stem = next((way for way in ways if way in samples), None)
        found.append(stem or images.get(name) or name)
    return tuple(found)


def _images_of(root: Path) -> Path:
    """Where images are in the plain layout; elsewhere they are anywhere."""
    return root / "image" if (root / "image").is_dir() else root


def _draw_splits(
    stems: Sequence[str], val_fraction: float, root: Path
) -> dict[str, tuple[str, ...]]:
    if not 0 < val_fraction < 1:
        raise UserError(
            f"config.data.val_fraction is {val_fraction}; expected a number between 0 and 1."
        )
    if len(stems) < 2:
        raise UserError(
            f"{_images_of(root)} holds one image; expected two or more, to train and to validate."
        )
    ranked = sorted(stems, key=lambda stem: hashlib.sha256(stem.encode()).digest())
    val = min(max(round(len(stems) * val_fraction), 1), len(stems) - 1)
    return {"train": tuple(ranked[val:]), "val": tuple(ranked[:val])}
