"""Guesses where the files of a data set lie, by what folders and files are called and what a few of
them hold: a `dataset.json` to look at and correct."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from talora_jax import rgb
from talora_jax.data.folder import contents, rasters
from talora_jax.data.folder.guess_table import guess_table
from talora_jax.data.folder.listing import files_below
from talora_jax.data.folder.patterns import Pattern, compile_pattern
from talora_jax.data.folder.streams import (
    MEASURED,
    SPLIT_WORDS,
    Stream,
    by_folder,
    own_words,
    some_of_alike,
    split_of_name,
    streams_of,
)
from talora_jax.data.folder.validity import is_mask, mask_of, masked_by
from talora_jax.errors import UserError, printable
from talora_jax.task_names import is_name

_NAMED = 3
_VALIDITY = "validity"  # the kind of a mask that says where targets are valid
# What a file holds that is called a target and cannot be it.
_HOLDS = {
    "photo": "hold three channels of many colours",
    "colours": "hold colours",
    "deep": "hold more numbers than there can be classes",
    "vectors": "hold vectors",
    "labels": "hold few numbers",
    _VALIDITY: "may say where there is truth, and are not two values for each file of a target",
}
_ARRAYS = (".h5", ".hdf5", ".mat")
# Kinds of files that hold targets and are not read, and what to make of them.
_NOT_READ = {
    **dict.fromkeys(_ARRAYS, "save their arrays as npy"),
    **dict.fromkeys((".json", ".xml"), "draw their outlines into PNGs of numbers"),
    ".txt": "lists, or outlines to draw into PNGs of numbers",
    ".pfm": "save them as npy or TIFF",
    **dict.fromkeys((".zip", ".tar", ".tgz", ".gz", ".7z", ".rar"), "unpack them"),
    ".parquet": "nyuv2_mtan and cityscapes_mtan read theirs, see config.data.name",
}


@dataclasses.dataclass(frozen=True)
class Guess:
    """What was guessed.

    Attributes:
      description: the content of a `dataset.json`.
      notes: what was taken for what, where it may be otherwise.
    """

    description: Mapping[str, Any]
    notes: tuple[str, ...]


def guess(root: Path) -> Guess:
    """Guesses the description of a directory.

    Raises:
      UserError: it has no images, or none with a target that belongs to it.
    """
    known = {*rgb.suffixes(), *rasters.SUFFIXES}
    paths = [
        path.relative_to(root).as_posix() for path, problem in files_below(root) if not problem
    ]
    streams = streams_of([path for path in paths if Path(path).suffix.lower() in known])
    kinds = {id(stream): contents.kind_of(root, stream) for stream in streams}
    if any(stream.role in MEASURED and not stream.may_mask for stream in streams):
        kinds |= {id(stream): _VALIDITY for stream in streams if stream.may_mask}
    photos = [stream for stream in streams if kinds[id(stream)] == "photo"]
    grey = [s for s in streams if kinds[id(s)] == "deep" and s.role is None and s.is_picture]
    images = [stream for stream in photos if stream.role in ("image", None)] or photos or grey
    images.sort(key=lambda s: (s.role is None, s.rank, -s.count))
    if not images:
        raise UserError(
            f"{root}: no photos were found among {len(paths)} files; expected images (JPEG, PNG, "
            f"…) and, beside them or in other folders, files of targets{_added(_not_read(paths))}."
        )
    # More files than images are versions, each of which has one for each image.
    most = max(image.count for image in images)
    for stream in [s for s in streams if s.count > most and s.role not in ("image", None)]:
        versions = by_folder(stream, deep=True)
        kinds |= {id(version): kinds[id(stream)] for version in versions}
        streams += versions
    masking = [
        stream
        for stream in streams
        if kinds[id(stream)] == _VALIDITY and contents.has_two_values(root, stream)
    ]
    of_path = {
        path: stream
        for stream in reversed(streams)
        for of_split in stream.paths.values()
        for path in of_split
    }

    def role_of(path: str) -> str | None:
        stream = of_path.get(path)
        if stream is None or any(stream is image for image in images):
            return stream and "image"
        if any(stream is mask for mask in masking):
            return mask_of(stream.may_mask[0])
        return _role(stream, kinds[id(stream)])

    image, found = next(
        ((image, x) for image in images if (x := _targets(image, streams, kinds))),
        (images[0], None),
    )
    table = guess_table(root, paths, role_of) if not found or found[2] == ("",) else None
    if table and (not found or (table.splits and found[1].keys() <= table.files.keys())):
        image = of_path[next(iter(next(iter(table.files.values()))))]
        targets = {
            name: _Candidate(of_path[next(iter(files.values()))], {}, files)
            for name, files in table.files.items()
        }
        description: dict[str, Any] = {"table": table.table}
        taken = [image, *(target.stream for target in targets.values())]
        notes = ["which files belong together is taken from a table, see there"]
    elif found:
        description, targets, taken, notes = _by_names(
            root, paths, streams, kinds, masking, image, found
        )
    else:
        raise UserError(
            f"{root}: images were found ({printable(images[0].text)}), and no other "
            "files that belong to each of them; expected targets with the same part of the name, "
            "or a table in dataset.json that says which are pairs"
            f"{_added([*_not_read(paths), *_unfit(root, streams, kinds, ())])}."
        )
    others = [stream for stream in photos if stream in images and not image.shares(stream)]
    notes += [
        f"image: {printable(stream.text)}, {stream.count} files, are photos as well "
        "and are left out"
        for stream in others[:_NAMED]
    ]
    notes += _unfit(root, streams, kinds, taken)
    notes += _not_read([path for path in paths if Path(path).suffix.lower() in _ARRAYS])
    read = {}
    for name, target in targets.items():
        if is_mask(name):
            continue
        content, more = contents.reading(root, name, target.stream, kinds[id(target.stream)], paths)
        notes += more
        description |= {key: value for key, value in content.items() if key != "read"}
        if "read" in content:
            read[name] = content["read"]
    if read:
        description["read"] = read
    of_targets = [target.files for target in targets.values()]
    size, more = contents.sizes(root, of_targets, image.some)
    return Guess(description | size, (*notes, *more))


@dataclasses.dataclass(frozen=True)
class _Candidate:
    """Files that may be a target.

    Attributes:
      patterns: by split.
      files: of images, by the image's.
    """

    stream: Stream
    patterns: Mapping[str, str]
    files: Mapping[str, str]


# The patterns of an image, candidates by their role, and the splits there are.
_Found = tuple[Mapping[str, str], Mapping[str, list[_Candidate]], tuple[str, ...]]


def _by_names(
    root: Path,
    paths: Sequence[str],
    streams: Sequence[Stream],
    kinds: Mapping[int, str],
    masking: Sequence[Stream],
    image: Stream,
    found: _Found,
) -> tuple[dict[str, Any], dict[str, _Candidate], list[Stream], list[str]]:
    """Where files lie, by patterns; the targets, what of the streams belongs to images, and
    notes."""
    of_image, by_role, splits = found
    targets: dict[str, _Candidate] = {}
    notes: list[str] = []
    for role, candidates in by_role.items():
        of_role, more = _heads(root, role, candidates, kinds)
        targets |= of_role
        notes += more
    masks = _masks(image, of_image, masking, targets)
    notes += [
        f"{masked_by(name)}: taken for not valid where {printable(mask.stream.text)} is 0; if it "
        f'is so elsewhere, say "read": {{"{name}": {{"invert": true}}}}'
        for name, mask in masks.items()
    ]
    targets |= masks
    files = {"image": _told(of_image)} | {n: _told(x.patterns) for n, x in targets.items()}
    description: dict[str, Any] = {"files": files}
    taken = [image, *(each.stream for of_role in by_role.values() for each in of_role)]
    taken += [mask.stream for mask in masks.values()]
    if others := _fitting(of_image.values(), taken, streams):
        description["leave_out"] = others
    if lists := _lists(root, paths, files, splits):
        description["splits"] = lists
    if "test" in splits and "val" not in splits:
        notes.append("there is no validation split: what is called test is taken for it")
    return description, targets, taken, notes


def _fitting(texts: Iterable[str], taken: Sequence[Stream], streams: Sequence[Stream]) -> list[str]:
    """Patterns of what is neither image nor target and fits an image's pattern, as
    `{stem}_overlay.png` does `{stem}.png`."""
    patterns = [compile_pattern(text, "guess") for text in texts]
    found: dict[str, None] = {}
    for stream in streams:
        if any(stream.shares(other) for other in taken):
            continue
        for split, paths in stream.paths.items():
            if any(pattern.match(path) for pattern in patterns for path in paths):
                found[stream.pattern(split)] = None
    return list(found)


def _added(sentences: Sequence[str]) -> str:
    """Behind another sentence, whose full stop is to come."""
    return "".join(f". {sentence}" for sentence in sentences)


def _not_read(paths: Sequence[str]) -> list[str]:
    """What there is of files that hold targets and are not read."""
    told = []
    for suffix, remedy in _NOT_READ.items():
        found = [path for path in paths if Path(path).suffix.lower() == suffix]
        if found:
            told.append(f"{len(found)} {suffix} ({printable(found[0], 60)}): {remedy}")
    return [f"Not read: {'; '.join(told)}"] if told else []


def _unfit(
    root: Path, streams: Sequence[Stream], kinds: Mapping[int, str], taken: Sequence[Stream]
) -> list[str]:
    """What is called a target and cannot be one, or belongs to no image."""
    told = []
    for stream in streams:
        kind = kinds[id(stream)]
        role = stream.may_mask[0] if kind == _VALIDITY else stream.role or _role(stream, kind)
        if role in ("image", None) or any(stream.shares(other) for other in taken):
            continue
        suffix = Path(stream.some[0]).suffix.lower()
        why = "belong to no image, by their names" if _role(stream, kind) else _HOLDS.get(kind)
        if kind == contents.UNKNOWN:
            why = f"are not read ({contents.why_unknown(root, stream)})"
        if suffix not in rasters.SUFFIXES:
            why = "are of a kind that is read of images alone: save them as PNG"
        elif suffix in rasters.LOSSY and role not in contents.KEPT_BY_LOSSY:
            why = "are JPEGs, which do not keep numbers of classes or lengths"
        told.append(f"{role}: {printable(stream.text)} {why}: left out")
    return told[:_NAMED]


def _targets(image: Stream, streams: Sequence[Stream], kinds: Mapping[int, str]) -> _Found | None:
    """The patterns of an image, all that belongs to it by what it can be, the best first, and the
    splits there are."""
    by_role: dict[str, list[Stream]] = collections.defaultdict(list)
    for stream in streams:
        if stream is not image and (role := _role(stream, kinds[id(stream)])):
            by_role[role].append(stream)
    of_targets = [stream for candidates in by_role.values() for stream in candidates]
    splits = tuple(
        split
        for split in ("train", "val", "test")
        if split in image.paths and any(_paths(stream, split) for stream in of_targets)
    )
    if "train" not in splits or len(splits) < 2:
        splits = ("",) if "" in image.paths else splits[:1]
    if not splits:
        return None
    used = splits[:2] if len(splits) > 1 else splits
    of_image = {split: image.pattern(split) for split in used}
    found: dict[str, list[_Candidate]] = {}
    for role, candidates in by_role.items():
        scored = []
        for stream in candidates:
            for any_name in (False, True):
                candidate = _candidate(image, of_image, stream, any_name=any_name)
                if files := candidate.files:
                    colours = kinds[id(stream)] == "colours"
                    named = stream.role is not None
                    score = (-len(files), any_name, colours, not named, stream.rank, stream.parts)
                    scored.append((score, candidate))
        scored.sort(key=lambda each: each[0])
        once = {id(candidate.stream): candidate for _, candidate in reversed(scored)}
        if scored:
            found[role] = list(reversed(once.values()))
    return (of_image, found, used) if found else None


def _candidate(
    image: Stream, of_image: Mapping[str, str], stream: Stream, *, any_name: bool
) -> _Candidate:
    """The files of a stream by the images that they belong to."""
    patterns = {split: stream.pattern(split, any_name=any_name) for split in of_image}
    files: dict[str, str] = {}
    for split, text in patterns.items():
        files |= _belonging(image.paths[split], of_image[split], _paths(stream, split), text)
    return _Candidate(stream, patterns, files)


def _masks(
    image: Stream,
    of_image: Mapping[str, str],
    masking: Sequence[Stream],
    targets: Mapping[str, _Candidate],
) -> dict[str, _Candidate]:
    """Masks that say where targets are valid, and are there for each file of the target."""
    found: dict[str, _Candidate] = {}
    for stream in masking:
        for name in stream.may_mask:
            for any_name in (False, True):
                mask = _candidate(image, of_image, stream, any_name=any_name)
                if name in targets and targets[name].files.keys() <= mask.files.keys():
                    found.setdefault(mask_of(name), mask)
    return found


def _heads(
    root: Path, role: str, candidates: Sequence[_Candidate], kinds: Mapping[int, str]
) -> tuple[dict[str, _Candidate], list[str]]:
    """The first candidate, and of class maps the others as heads that have names of their own; and
    of what is left out why."""
    first, *others = candidates
    targets, notes = {role: first}, []
    for other in others:
        told = f"{role}: {printable(other.stream.text)}"
        name = f"{role}:{own_words(other.stream, first.stream)}"
        if role == "semantic" and any(
            _say_the_same(root, taken, other, kinds) for taken in targets.values()
        ):
            notes.append(f"{told} says the same in other numbers or colours and is left out")
        elif (
            role == "semantic"
            and is_name(name, (role,))
            and name not in targets
            and len(other.files) == len(first.files)
        ):
            targets[name] = other
            notes.append(
                f"{name}: {printable(other.stream.text)} is taken for classes of another kind; "
                "where it numbers objects, call it instance"
            )
        else:
            notes.append(
                f"{told} is of {len(other.files)} images, too, and is left out: where it is a task "
                f"of its own, give it a name under files, as {role}:second"
            )
    return targets, notes


def _say_the_same(root: Path, one: _Candidate, other: _Candidate, kinds: Mapping[int, str]) -> bool:
    """Whether class maps are others in other numbers, or drawings of them."""
    pairs = [(root / one.files[i], root / other.files[i]) for i in one.files if i in other.files]
    return contents.say_the_same(pairs, (kinds[id(one.stream)], kinds[id(other.stream)]))


def _paths(stream: Stream, split: str) -> list[str]:
    return stream.paths.get(split) or stream.paths.get("", [])


def _told(patterns: Mapping[str, str]) -> Any:
    """Patterns by split as `files` has them."""
    if len(patterns) == 1:
        return next(iter(patterns.values()))
    train, val = patterns.values()
    if train.replace("train", "{split}") == val.replace("val", "{split}"):
        return train.replace("train", "{split}")
    return {"train": train, "val": val}


def _belonging(
    images: Sequence[str], of_image: str, paths: Sequence[str], text: str
) -> dict[str, str]:
    """The one of some files that belongs to each image; none where several do."""
    first, other = compile_pattern(of_image, "guess"), _pattern_or_none(text)
    if other is None or not (shared := [n for n in first.names if n in other.names]):
        return {}

    def by_key(pattern: Pattern, of: Sequence[str]) -> dict[tuple[str, ...], list[str]]:
        keyed: dict[tuple[str, ...], list[str]] = collections.defaultdict(list)
        for path in of:
            if match := pattern.match(path):
                keyed[tuple(dict(match)[n] for n in shared)].append(path)
        return keyed

    mine, theirs = by_key(first, images), by_key(other, paths)
    common = mine.keys() & theirs.keys()
    if any(len(theirs[key]) > 1 for key in common) or any(len(x) > 1 for x in mine.values()):
        return {}
    return {mine[key][0]: theirs[key][0] for key in mine if key in common}


def _pattern_or_none(text: str) -> Pattern | None:
    try:
        return compile_pattern(text, "guess")
    except UserError:
        return None


def _role(stream: Stream, kind: str) -> str | None:
    """The target that a stream can be, by its names and what its files hold."""
    fits = {
        "semantic": ("labels", "colours"),
        "human_parts": ("labels", "colours"),
        "instance": ("labels", "colours"),
        "edges": ("labels", "mask"),
        "saliency": ("labels", "deep", "mask"),
        "depth": ("deep", "labels"),
        "disparity": ("deep", "labels"),
        "normals": ("vectors", "photo"),
    }
    if kind == _VALIDITY:
        return None
    if kind == "mask" and stream.role in ("semantic", None):
        return "saliency"
    if stream.role in fits:
        return stream.role if kind in fits[stream.role] else None
    by_kind = {"labels": "semantic", "colours": "semantic", "deep": "depth", "vectors": "normals"}
    return by_kind.get(kind)


def _lists(
    root: Path, paths: Sequence[str], files: Mapping[str, Any], splits: Sequence[str]
) -> dict[str, str] | None:
    """Text files that say which images are of which split, where no folder does."""
    if splits != ("",):
        return None
    image = compile_pattern(files["image"], "guess")
    stems = set()
    for path in paths:
        if key := image.match(path):
            stems |= {path, "/".join(value for _, value in key if value)}
    found: dict[str, dict[str, str]] = collections.defaultdict(dict)
    for path in some_of_alike(paths, (".txt", ".lst")):
        split = split_of_name(path)
        if split is None:
            continue
        try:
            lines = (root / path).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError):
            continue
        names = [line.strip() for line in lines if line.strip()]
        of_folder = found[Path(path).parent.as_posix()]
        exact = Path(path).stem.lower() in SPLIT_WORDS  # train.txt before train_aug.txt
        if names and all(name in stems for name in names) and (exact or split not in of_folder):
            of_folder[split] = path
    for folder in sorted(found, key=lambda f: ("segmentation" not in f.lower(), f)):
        lists = found[folder]
        val = "val" if "val" in lists else "test"
        if "train" in lists and val in lists:
            return {"train": lists["train"], "val": lists[val]}
    return None
