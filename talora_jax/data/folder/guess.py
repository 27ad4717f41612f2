"""Guesses where the files of a data set lie, by what folders and files are called and what a few of
them hold: a `dataset.json` to look at and correct."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from talora_jax import rgb
from talora_jax.data.folder import contents, rasters
from talora_jax.data.folder.listing import files_below
from talora_jax.data.folder.patterns import Key, Pattern, compile_pattern
from talora_jax.data.folder.streams import SPLIT_WORDS, Stream, streams_of
from talora_jax.errors import UserError, printable


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
    photos = [stream for stream in streams if kinds[id(stream)] == "photo"]
    images = [stream for stream in photos if stream.role in ("image", None)] or photos
    images.sort(key=lambda s: (s.role is None, s.rank, -s.count))
    if not images:
        raise UserError(
            f"{root}: no photos were found among {len(paths)} files; expected images (JPEG, PNG, "
            "…) and, beside them or in other folders, files of targets."
        )
    for image in images:
        found = _targets(root, image, streams, kinds)
        if found:
            break
    else:
        raise UserError(
            f"{root}: images were found ({printable(images[0].pattern('train'))}), and no other "
            "files that belong to each of them; expected targets with the same part of the name, "
            "or a table in dataset.json that says which are pairs."
        )
    files, targets, splits = found
    description: dict[str, Any] = {"files": files}
    notes: list[str] = []
    if lists := _lists(root, paths, files, splits):
        description["splits"] = lists
    if "test" in splits and "val" not in splits:
        notes.append("there is no validation split: what is called test is taken for it")
    read = {}
    for name, stream in targets.items():
        content, more = contents.reading(root, name, stream, kinds[id(stream)], paths)
        notes += more
        description |= {key: value for key, value in content.items() if key != "read"}
        if "read" in content:
            read[name] = content["read"]
    if read:
        description["read"] = read
    size, more = contents.sizes(root, image, targets)
    return Guess(description | size, (*notes, *more))


_Found = tuple[dict[str, Any], dict[str, Stream], tuple[str, ...]]


def _targets(
    root: Path, image: Stream, streams: Sequence[Stream], kinds: Mapping[int, str]
) -> _Found | None:
    """The patterns of an image and of all targets that belong to it, and the splits there are."""
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
    found: dict[str, tuple[Stream, dict[str, str]]] = {}
    used = splits[:2] if len(splits) > 1 else splits
    of_image = {split: image.pattern(split) for split in used}
    for role, candidates in by_role.items():
        best: tuple[Any, ...] | None = None
        for stream in candidates:
            for any_name in (False, True):
                patterns = {split: stream.pattern(split, any_name=any_name) for split in used}
                paired = sum(
                    _pairs(image.paths[split], of_image[split], _paths(stream, split), text)
                    for split, text in patterns.items()
                )
                if paired:
                    colours = kinds[id(stream)] == "colours"
                    score = (-paired, any_name, colours, stream.rank, stream.parts)
                    if best is None or score < best[0]:
                        best = (score, stream, patterns)
        if best:
            found[role] = best[1], best[2]
    if not found:
        return None
    files = {"image": _told(of_image)} | {role: _told(text) for role, (_, text) in found.items()}
    return files, {role: stream for role, (stream, _) in found.items()}, used


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


def _pairs(images: Sequence[str], of_image: str, paths: Sequence[str], text: str) -> int:
    """How many images have one of some files."""
    first, other = compile_pattern(of_image, "guess"), _pattern_or_none(text)
    if other is None or not (shared := [n for n in first.names if n in other.names]):
        return 0

    def keys(pattern: Pattern, of: Sequence[str]) -> collections.Counter[tuple[str, ...]]:
        matches: Iterable[Key] = filter(None, map(pattern.match, of))
        return collections.Counter(tuple(dict(m)[n] for n in shared) for m in matches)

    mine, theirs = keys(first, images), keys(other, paths)
    if any(n > 1 for key, n in theirs.items() if key in mine) or max(mine.values(), default=0) > 1:
        return 0
    return sum(key in theirs for key in mine)


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
        "edges": ("labels",),
        "saliency": ("labels", "deep"),
        "depth": ("deep", "labels"),
        "disparity": ("deep", "labels"),
        "normals": ("vectors", "photo"),
    }
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
    found: dict[str, dict[str, tuple[int, str]]] = collections.defaultdict(dict)
    for path in paths:
        split = SPLIT_WORDS.get(Path(path).stem.lower())
        if split is None or Path(path).suffix.lower() not in (".txt", ".lst"):
            continue
        try:
            lines = (root / path).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError):
            continue
        names = [line.strip() for line in lines if line.strip()]
        if names and all(name in stems for name in names):
            found[Path(path).parent.as_posix()][split] = len(names), path
    for folder in sorted(found, key=lambda f: ("segmentation" not in f.lower(), f)):
        lists = found[folder]
        val = "val" if "val" in lists else "test"
        if "train" in lists and val in lists:
            return {"train": lists["train"][1], "val": lists[val][1]}
    return None
