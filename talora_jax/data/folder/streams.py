"""Files of a data set that are named alike, and what their names say of them."""

import collections
import dataclasses
import functools
import itertools
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

# What folders and files are called, in lower case. A target's words beat those of images.
_WORDS = {
    "image": "image images img imgs rgb rgbs color colour photo photos leftimg8bit jpegimages "
    "input inputs picture pictures final preview tonemap left",
    "semantic": "label labels annot annots annotation annotations ann anns mask masks seg segm "
    "segmentation segmentations semantic semantics semseg segmentationclass gt gtfine groundtruth "
    "labelids labeltrainids class classes classgt segment segments filt ids",
    "depth": "depth depths depthmap depthmaps meters distance bfx",
    "disparity": "disparity disparities disp",
    "normals": "normal normals norm norms",
    "instance": "instance instances instanceids instancegt segmentationobject inst panoptic",
    "edges": "edge edges boundary boundaries contour contours",
    "saliency": "saliency salient sal",
    "human_parts": "human parts part",
}
_ROLE_OF = {word: role for role, words in _WORDS.items() for word in words.split()}
# Of a target that other words name: depth/groundtruth, depth_gt.
_WEAK = {"gt", "gtfine", "groundtruth"}
# Words that tell files apart and mean no target.
_OTHER_WORDS = {"geometry", "hdf5", "sync", "frame", "cam"}
_KNOWN_WORDS = _ROLE_OF.keys() | _OTHER_WORDS
# What masks that say where targets are valid are called: depth_mask of DIODE, mask_valid of
# Taskonomy, mask_invalid of iBims-1. `valid_masks` is of a split.
_OF_VALIDITY = re.compile(
    r"((depth|disp|normal)(maps?|arity|s)?[-_. ]?(masks?|valid)"
    r"|mask[-_. ]?(in)?valid|invalid[-_. ]?masks?|validity)(?![^\W_])"
)
# … and what they are of, where their names do not say: what is measured.
MEASURED = ("depth", "disparity", "normals")
# Files that no task learns from, and drawings of others.
_PASSED_OVER = {"world", "overlay", "vis", "viz", "confidence", "conf", "pose", "uncertainty"}
SPLIT_WORDS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
# What means a split beside the same name of another one alone: DUTS-TR and DUTS-TE.
_SPLITS_BESIDE = SPLIT_WORDS | {"tr": "train", "te": "test"}
# The first of these that a name has is the one to take.
_PREFERRED = (
    "labeltrainids", "labelids", "sem_seg", "semantic", "bfx", "filt", "zbuffer", "leftimg8bit",
    "rgb", "color", "tonemap", "normal_cam",
)  # fmt: skip
_LOOKED_AT = 12  # files of each kind
SOME_ALIKE = 64
_MOST_HEADS = 6
_ANY_SPLIT = "|".join(sorted(SPLIT_WORDS, key=len, reverse=True))
_SPLIT = re.compile(rf"(.*?)({_ANY_SPLIT})(.*)", re.I)
_SPLIT_BESIDE = re.compile(rf"(.*?)(?<![^\W_])({_ANY_SPLIT}|tr|te)(?![^\W_])(.*)", re.I)


def spread(things: Sequence[Any], most: int) -> list[Any]:
    """So many of some things at the most, from the first to the last and evenly spread."""
    at = np.linspace(0, len(things) - 1, min(len(things), most)).astype(int)
    return [things[i] for i in at]


@dataclasses.dataclass
class Stream:
    """Files that are named alike.

    Attributes:
      parts: of their paths: a name, or one with '*' for what differs; '**' for any folders.
      role: the target that its names mean, or None.
      paths: by split, '' where no folder tells.
      words: how its folders call each split.
    """

    parts: tuple[str, ...]
    role: str | None
    paths: dict[str, list[str]]
    words: dict[str, str]

    @property
    def count(self) -> int:
        return sum(map(len, self.paths.values()))

    @property
    def some(self) -> list[str]:
        return spread(sorted(path for paths in self.paths.values() for path in paths), _LOOKED_AT)

    @property
    def rank(self) -> int:
        name = "/".join(self.parts).lower()
        return next((i for i, word in enumerate(_PREFERRED) if word in name), len(_PREFERRED))

    @property
    def may_mask(self) -> tuple[str, ...]:
        """The targets of which its files may say where they are valid, by their names."""
        found = _OF_VALIDITY.search("/".join(self.parts).lower())
        said = found and [name for name in MEASURED if name[:4] == (found[2] or "")[:4]]
        return tuple(said or MEASURED) if found else ()

    def shares(self, other: "Stream") -> bool:
        """Whether a file is of both."""
        mine, theirs = ({p for paths in x.paths.values() for p in paths} for x in (self, other))
        return not mine.isdisjoint(theirs)

    @property
    def is_picture(self) -> bool:
        """Whether its files are of a kind that can be shown."""
        return Path(self.some[0]).suffix.lower() in (".png", ".tif", ".tiff", ".bmp")

    @property
    def text(self) -> str:
        """Its pattern, for people; of one split where it has several."""
        return self.pattern(min(self.paths, key=("train", "val", "test", "").index))

    def pattern(self, split: str, *, any_name: bool = False) -> str:
        """The text of a pattern of one split."""
        names, folders = _counted("stem"), _counted("folder")
        parts = []
        for number, part in enumerate(self.parts):
            last = number == len(self.parts) - 1
            suffix = ".*" if last and part.endswith(".*") else ""
            part = part.removesuffix(suffix).replace("{split}", self.words.get(split, ""))
            while part != "**" and "*" in part and not (last and any_name):
                part = part.replace("*", f"{{{next(names if last else folders)}}}", 1)
            parts.append(part + suffix)
        return "/".join(parts)


def streams_of(paths: Iterable[str]) -> list[Stream]:
    """Files in groups of those that are named alike."""
    found: dict[tuple[str, ...], Stream] = {}
    # Others mean something else in a pattern.
    usable = [path for path in paths if not set(path) & set("*{}")]
    split_up = [path.split("/") for path in usable]
    beside = _splits_beside(split_up)
    told = functools.cache(lambda folder, depth: _folder(folder, beside[depth]))
    for path, (*folders, name) in zip(usable, split_up, strict=True):
        parts, split, word, said = [], "", "", []
        for depth, folder in enumerate(folders):
            part, this_split, this_word, role = told(folder, depth)
            if this_split and not split:
                split, word = this_split, this_word
            elif this_split and this_word != word:
                part = folder
            said.append(role)
            if part == "**" and parts[-1:] == ["**"]:
                continue
            parts.append(part)
        file_part, role = _generalised(Path(name).stem)
        role = _last_said([*said, role])
        suffix = Path(name).suffix
        words = {word.lower() for part in (*parts, file_part) for word in re.split(r"\W|_", part)}
        if words & _PASSED_OVER:
            continue
        if role is None and parts[:1] == ["**"]:  # the name of a folder is all there is to tell
            parts = [folders[0], *parts[len(folders) == 1 :]]
        key = (*parts, file_part + suffix)
        stream = found.setdefault(key, Stream(key, role, {}, {}))
        stream.paths.setdefault(split, []).append(path)
        if split:
            stream.words[split] = word
    streams = [part for stream in found.values() for part in _by_last_word(stream)]
    streams = _of_any_suffix(streams)
    streams += [part for stream in streams for part in by_folder(stream)]
    return [_with_constants(stream) for stream in streams]


def by_folder(stream: Stream, *, deep: bool = False) -> list[Stream]:
    """The folders of a stream apart from each other, `labels_objects` and `labels_materials` or
    `image_2` and `image_3`, where all of them hold files of the same names; nothing elsewhere.

    Args:
      deep: folders of any name, too, as scenes are in and versions.
    """
    for number, part in enumerate(stream.parts[:-1]):
        if "*" not in part or (part == "**" and not deep):
            continue
        pattern = _capturing(stream, number)
        found: dict[tuple[str, ...], dict[str, list[str]]] = {}
        names = collections.defaultdict(set)
        for split, paths in stream.paths.items():
            for path in paths:
                if match := pattern.fullmatch(path):
                    values = match.groups()
                    found.setdefault(values, {}).setdefault(split, []).append(path)
                    behind = path[match.end(len(values)) :]
                    for word in filter(str.isalpha, values):  # depth_zbuffer/0001_depth_zbuffer.png
                        behind = re.sub(rf"(?<![^\W_]){word}(?![^\W_])", "", behind)
                    names[values].add(path[: match.start(1)] + behind)
        same = len({frozenset(of) for of in names.values()}) == 1
        if 2 <= len(found) <= _MOST_HEADS and same:
            return [
                dataclasses.replace(stream, parts=_with(stream.parts, number, values), paths=paths)
                for values, paths in found.items()
            ]
    return []


def _with(parts: tuple[str, ...], number: int, values: Sequence[str]) -> tuple[str, ...]:
    """`parts` with values in place of the stars of one of them."""
    part = parts[number]
    if part == "**":
        filled = values[0].rstrip("/") or part
    else:
        left = iter(values)
        filled = re.sub(r"\*", lambda _: next(left), part)
    return (*parts[:number], filled, *parts[number + 1 :])


def _of_any_suffix(streams: Sequence[Stream]) -> list[Stream]:
    """Streams that share a folder and differ in their suffix alone, .jpg and .JPG, as one: where no
    name has both, and nothing else lies there."""
    found: dict[tuple[str, ...], list[Stream]] = {}
    for stream in streams:
        found.setdefault(stream.parts[:-1], []).append(stream)
    merged: list[Stream] = []
    for folders, alike in found.items():
        names = [
            Path(path).with_suffix("") for x in alike for of in x.paths.values() for path in of
        ]
        stems = {Path(stream.parts[-1]).stem for stream in alike}
        if len(alike) == 1 or len(stems) > 1 or len(set(names)) < len(names):
            merged += alike
            continue
        paths: dict[str, list[str]] = {}
        for split in dict.fromkeys(split for stream in alike for split in stream.paths):
            paths[split] = [path for stream in alike for path in stream.paths.get(split, [])]
        words = {split: word for stream in alike for split, word in stream.words.items()}
        merged.append(Stream((*folders, f"{stems.pop()}.*"), alike[0].role, paths, words))
    return merged


def own_words(stream: Stream, other: Stream) -> str:
    """What the names of a stream's files and folders say that those of another do not, and that is
    no word of a role, as the name of a head; empty if nothing."""
    said, elsewhere = (
        [
            word.lower()
            for word in re.findall(
                r"[^\W\d_][^\W_]*", "/".join(x.parts[:-1] + (Path(x.parts[-1]).stem,))
            )
        ]
        for x in (stream, other)
    )
    known = {*elsewhere, *_ROLE_OF, *_OTHER_WORDS, *SPLIT_WORDS, "split"}
    return "_".join(dict.fromkeys(word for word in said if word not in known))


def alike(paths: Iterable[str], suffixes: Collection[str]) -> list[list[str]]:
    """Files of these suffixes in groups of those that are called the same but for numbers, as deep
    below: `labels/000001.txt` and what else there is of each image, and lists apart from them. Of a
    group, `SOME_ALIKE` tell what all are."""
    groups: dict[tuple[str, int], list[str]] = collections.defaultdict(list)
    for path in paths:
        if Path(path).suffix.lower() in suffixes:
            name = path.rpartition("/")[2].lower()
            told = re.sub(r"[^\W_]*\d[^\W_]*", "0", name)
            groups[told, path.count("/")].append(path)
    return list(groups.values())


def some_of_alike(paths: Iterable[str], suffixes: Collection[str]) -> list[str]:
    """Of each group that is `alike`, as many files as tell what all are."""
    return [path for group in alike(paths, suffixes) for path in spread(group, SOME_ALIKE)]


def split_of_name(path: str) -> str | None:
    """The split that a file's name says, as `train_aug.txt` does; None where it says none, or
    several."""
    words = re.findall(r"[^\W_]+", Path(path).stem.lower())
    splits = {SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS}
    return splits.pop() if len(splits) == 1 else None


class _Said(NamedTuple):
    """The role that a name has words of; weak where other names of the path say more."""

    role: str
    weak: bool


def _last_said(said: Iterable[_Said | None]) -> str | None:
    """The role of a path whose names say so: what stands behind says most."""
    found = [each for each in said if each]
    strong = max((i for i, each in enumerate(found) if not each.weak), default=-1)
    behind = [each.role for each in found[strong + 1 :] if each.role != "image"]
    if strong >= 0 and (found[strong].role != "image" or not behind):
        return found[strong].role
    return behind[-1] if behind else found[0].role if found else None


def _known_word(piece: str) -> str | None:
    """The word of a role, or of none, that a piece of a name is, or has before a number."""
    if piece.lower() in _KNOWN_WORDS:
        return piece.lower()
    match = re.fullmatch(r"([^\W\d_]+)\d+", piece)
    word = match and match[1].lower()
    return word if word in _KNOWN_WORDS else None


def _words_of(piece: str) -> list[str]:
    """The words that begin with capitals in a piece of a name; the piece where it is one."""
    words = re.findall(r"[A-Z]?[a-z]+\d*|[A-Z]+\d*(?![a-z])|\d+|.", piece)
    return words if _known_word(piece) is None and any(map(_known_word, words)) else [piece]


def _of_words(pieces: Sequence[str]) -> _Said | None:
    """The role of a name's words. An image's word with a number behind it is weak, too: 'IMG_0012'
    is what a camera called the photo, and what its labels are called as well."""
    found = []
    for piece, behind in itertools.zip_longest(pieces, pieces[1:], fillvalue=""):
        if (word := _known_word(piece)) in _ROLE_OF:
            role = _ROLE_OF[word]
            numbered = role == "image" and (word != piece.lower() or behind.isdecimal())
            found.append(_Said(role, numbered or word in _WEAK))
    targets = [each for each in found if each.role != "image"]
    # What stands behind says most: 'frame.0000.depth_meters', 'images_mask'.
    return max(reversed(targets or found), key=lambda each: not each.weak, default=None)


def _splits_beside(paths: Iterable[Sequence[str]]) -> Mapping[int, set[tuple[str, str]]]:
    """What stands before and behind the word of a split in folders that differ in it alone, as
    `uavid_train` and `uavid_val` do, by how deep they lie."""
    found: dict[tuple[int, str, str], set[str]] = collections.defaultdict(set)
    for depth, folder in {(i, x) for *folders, _ in paths for i, x in enumerate(folders)}:
        if match := _split_in(folder):
            before, word, after = match.groups()
            found[depth, before, after].add(_SPLITS_BESIDE[word.lower()])
    beside: dict[int, set[tuple[str, str]]] = collections.defaultdict(set)
    for (depth, before, after), splits in found.items():
        if len(splits) > 1:
            beside[depth].add((before, after))
    return beside


def _split_in(folder: str) -> re.Match[str] | None:
    """Where a name has the word of a split between others, or beside words of roles and numbers
    alone, as `trainannot` has."""
    match = _SPLIT.fullmatch(folder)
    of_role = match and all(
        word in _ROLE_OF or word.isdecimal()
        for word in re.split(r"[\W_]+", f"{match[1]} {match[3]}".lower())
        if word
    )
    return match if of_role else _SPLIT_BESIDE.fullmatch(folder)


def _folder(name: str, beside: set[tuple[str, str]]) -> tuple[str, str, str, _Said | None]:
    """What a folder's name generalises to, the split that it tells, as it calls it, and a role.

    Args:
      beside: of the folders as deep as it, see `_splits_beside`.
    """
    part, role = _generalised(name, humps=True)
    if match := _split_in(name):
        before, word, after = match.groups()
        words = [part for part in re.split(r"[\W_]+", f"{before} {after}") if part]
        split = _SPLITS_BESIDE[word.lower()]
        alone = not words or (split == "train" and match.re is _SPLIT)
        if alone or (before, after) in beside:
            return f"{before}{{split}}{after}", split, word, _of_words(words)
    return ("**" if part == "*" else part), "", "", role


def _generalised(name: str, *, humps: bool = False) -> tuple[str, _Said | None]:
    """A name with '*' for all that is no word of a role, and the role.

    Args:
      humps: whether a capital begins a word, as in `classSegmentation`.
    """
    pieces = re.findall(r"[^\W_]+|[\W_]+", name)
    if humps:
        pieces = [part for piece in pieces for part in _words_of(piece)]
    kept = []
    for piece in pieces:
        if word := _known_word(piece):
            kept.append(piece[: len(word)])
            if word != piece.lower():
                kept.append("*")
        elif piece.lower() in _PASSED_OVER or not piece[0].isalnum():
            kept.append(piece)
        else:
            kept.append("*")
    text = re.sub(r"\*(?:[^\w*/]|_)+(?=\*)", "", "".join(kept))
    text = re.sub(r"\*+", "*", text)
    role = _of_words([piece for piece in pieces if piece[0].isalnum()])
    words = role or any(_known_word(piece) for piece in pieces)
    return (text if words else "*"), role


def _by_last_word(stream: Stream) -> list[Stream]:
    """Files that end in a word that many share, such as '_L', apart from the others."""
    part = stream.parts[-1]
    suffix = Path(part).suffix
    if not part.startswith("*") or part != f"*{suffix}":
        return [stream]
    endings = collections.Counter(
        ending for paths in stream.paths.values() for path in paths if (ending := _ending(path))
    )
    often = {e for e, n in endings.items() if n >= max(2, 0.3 * stream.count)}
    if not often:
        return [stream]
    streams: dict[str, Stream] = {}
    for split, paths in stream.paths.items():
        for path in paths:
            ending = _ending(path) if _ending(path) in often else ""
            parts = (*stream.parts[:-1], f"*{ending}{suffix}")
            each = streams.setdefault(ending, Stream(parts, stream.role, {}, stream.words))
            each.paths.setdefault(split, []).append(path)
    return list(streams.values())


def _ending(path: str) -> str:
    found = re.search(r"[-_.][^\W\d_]+$", Path(path).stem)
    return found[0] if found else ""


def _with_constants(stream: Stream) -> Stream:
    """With the names of folders that are the same for all files."""
    parts = stream.parts
    paths = [path for paths in stream.paths.values() for path in paths]
    for number in [i for i, part in enumerate(parts) if "*" in part][:-1]:
        pattern = _capturing(stream, number)
        found = [match.groups() for path in paths if (match := pattern.fullmatch(path))]
        several = "**" if parts[number] == "**" else "*"
        each = [set(values) for values in zip(*found, strict=True)]
        parts = _with(parts, number, [x.pop() if len(x) == 1 else several for x in each])
    return dataclasses.replace(stream, parts=tuple("/".join(parts).split("/")))


def _capturing(stream: Stream, number: int) -> re.Pattern[str]:
    """Fits a stream's paths; its groups are what the stars of one of the parts stand for."""
    pieces = []
    split = f"(?:{'|'.join(map(re.escape, stream.words.values()))})"
    for i, part in enumerate(stream.parts):
        if part == "**":
            pieces.append("((?:[^/]+/)*)" if i == number else "(?:[^/]+/)*")
            continue
        text = re.escape(part).replace(r"\{split\}", split)
        text = text.replace(r"\*", "([^/]*)" if i == number else "[^/]*")
        pieces.append(text + ("/" if i < len(stream.parts) - 1 else ""))
    return re.compile("".join(pieces))


def _counted(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}{number}" for number in itertools.count(2))
