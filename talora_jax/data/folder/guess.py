"""Guesses where the files of a data set lie, by what folders and files are called and what a few of
them hold: a `dataset.json` to look at and correct."""

import collections
import dataclasses
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from talora_jax import rgb
from talora_jax.data.cityscapes_mtan import CLASS_NAMES_19 as CITYSCAPES
from talora_jax.data.folder import rasters
from talora_jax.data.folder.colours import read_table
from talora_jax.data.folder.decode import read_image
from talora_jax.data.folder.listing import files_below
from talora_jax.data.folder.patterns import Key, Pattern, compile_pattern
from talora_jax.errors import UserError, printable
from talora_jax.tasks.target_files import BadFile

# What folders and files are called, in lower case. A target's words beat those of images.
_WORDS = {
    "image": "image images img imgs rgb rgbs color colour photo photos leftimg8bit jpegimages "
    "input inputs picture pictures final preview tonemap left",
    "semantic": "label labels annot annots annotation annotations ann anns mask masks seg segm "
    "segmentation semantic semantics semseg segmentationclass gt gtfine groundtruth labelids "
    "labeltrainids class classes filt ids",
    "depth": "depth depths depthmap depthmaps meters distance bfx",
    "disparity": "disparity disparities disp",
    "normals": "normal normals norm norms",
    "instance": "instance instances instanceids segmentationobject inst",
    "edges": "edge edges boundary boundaries contour contours",
    "saliency": "saliency salient sal",
    "human_parts": "human parts part",
}
_ROLE_OF = {word: role for role, words in _WORDS.items() for word in words.split()}
# Words that tell files apart and mean no target.
_OTHER_WORDS = {"geometry", "hdf5", "sync"}
# Files that no task learns from, and drawings of others.
_PASSED_OVER = {"world", "overlay", "vis", "viz", "confidence", "conf", "pose", "uncertainty"}
_SPLIT_WORDS = {
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
# The first of these that a name has is the one to take.
_PREFERRED = ("labeltrainids", "labelids", "bfx", "filt", "leftimg8bit", "rgb", "color", "tonemap")
_NONE_OF_8_BITS = 255
_LOOKED_AT = 12  # files of each kind
_MASKS = 300  # of which the colours are gathered
_SPLIT = re.compile(rf"(.*?)({'|'.join(sorted(_SPLIT_WORDS, key=len, reverse=True))})(.*)", re.I)

# The labels of `CITYSCAPES`, in its order.
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
# Of SegNet's CamVid, whose twelfth, 11, is no label.
_CAMVID = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian",
    "bicyclist",
)  # fmt: skip
_NO_CLASS = {"void", "unlabelled", "unlabeled", "ignore", "undefined", "unknown", "none"}


@dataclasses.dataclass(frozen=True)
class Guess:
    """What was guessed.

    Attributes:
      description: the content of a `dataset.json`.
      notes: what was taken for what, where it may be otherwise.
    """

    description: Mapping[str, Any]
    notes: tuple[str, ...]


@dataclasses.dataclass
class _Stream:
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
        paths = sorted(path for paths in self.paths.values() for path in paths)
        at = np.unique(np.linspace(0, len(paths) - 1, min(len(paths), _LOOKED_AT)).astype(int))
        return [paths[i] for i in at]

    @property
    def rank(self) -> int:
        name = "/".join(self.parts).lower()
        return next((i for i, word in enumerate(_PREFERRED) if word in name), len(_PREFERRED))

    def pattern(self, split: str, *, any_name: bool = False) -> str:
        """The text of a pattern of one split."""
        names, folders = _counted("stem"), _counted("folder")
        parts = []
        for number, part in enumerate(self.parts):
            last = number == len(self.parts) - 1
            part = part.replace("{split}", self.words.get(split, ""))
            while part != "**" and "*" in part and not (last and any_name):
                part = part.replace("*", f"{{{next(names if last else folders)}}}", 1)
            parts.append(part)
        return "/".join(parts)


def guess(root: Path) -> Guess:
    """Guesses the description of a directory.

    Raises:
      UserError: it has no images, or none with a target that belongs to it.
    """
    known = {*rgb.suffixes(), *rasters.SUFFIXES}
    paths = [
        path.relative_to(root).as_posix() for path, problem in files_below(root) if not problem
    ]
    streams = _streams([path for path in paths if Path(path).suffix.lower() in known])
    kinds = {id(stream): _kind(root, stream) for stream in streams}
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
        content, more = _reading(root, name, stream, kinds[id(stream)], paths)
        notes += more
        description |= {key: value for key, value in content.items() if key != "read"}
        if "read" in content:
            read[name] = content["read"]
    if read:
        description["read"] = read
    size, more = _sizes(root, image, targets)
    return Guess(description | size, (*notes, *more))


# Which files belong together.


def _streams(paths: Iterable[str]) -> list[_Stream]:
    """Files in groups of those that are named alike."""
    found: dict[tuple[str, ...], _Stream] = {}
    for path in paths:
        if set(path) & set("*{}"):  # which mean something else in a pattern
            continue
        *folders, name = path.split("/")
        parts, split, word, role = [], "", "", None
        for folder in folders:
            part, this_split, this_word, this_role = _folder(folder)
            if this_split and not split:
                split, word = this_split, this_word
            elif this_split:
                part = folder
            role = this_role or role
            if part == "**" and parts[-1:] == ["**"]:
                continue
            parts.append(part)
        file_part, file_role = _generalised(Path(name).stem)
        role = file_role or role
        suffix = Path(name).suffix
        words = {word.lower() for part in (*parts, file_part) for word in re.split(r"\W|_", part)}
        if words & _PASSED_OVER:
            continue
        if role is None and parts[:1] == ["**"]:  # the name of a folder is all there is to tell
            parts = [folders[0], *parts[len(folders) == 1 :]]
        key = (*parts, file_part + suffix)
        stream = found.setdefault(key, _Stream(key, role, {}, {}))
        stream.paths.setdefault(split, []).append(path)
        if split:
            stream.words[split] = word
    streams = [part for stream in found.values() for part in _by_last_word(stream)]
    return [_with_constants(stream) for stream in streams]


def _folder(name: str) -> tuple[str, str, str, str | None]:
    """What a folder's name generalises to, the split that it tells, as it calls it, and a role."""
    if match := _SPLIT.fullmatch(name):
        before, word, after = match.groups()
        words = [part for part in re.split(r"[\W_]+", f"{before} {after}".lower()) if part]
        if all(part in _ROLE_OF or part.isdecimal() for part in words):
            roles = [_ROLE_OF[part] for part in words if part in _ROLE_OF]
            role = next((r for r in roles if r != "image"), roles[0] if roles else None)
            return f"{before}{{split}}{after}", _SPLIT_WORDS[word.lower()], word, role
    part, role = _generalised(name)
    return ("**" if part == "*" else part), "", "", role


def _generalised(name: str) -> tuple[str, str | None]:
    """A name with '*' for all that is no word of a role, and the role."""
    pieces = re.findall(r"[^\W_]+|[\W_]+", name)
    kept, roles = [], []
    for piece in pieces:
        bare = re.fullmatch(r"([^\W\d_]+)(\d+)", piece)
        if piece.lower() in _ROLE_OF:
            roles.append(_ROLE_OF[piece.lower()])
            kept.append(piece)
        elif bare and bare[1].lower() in _ROLE_OF:
            roles.append(_ROLE_OF[bare[1].lower()])
            kept += [bare[1], "*"]
        elif piece.lower() in _PASSED_OVER | _OTHER_WORDS or not piece[0].isalnum():
            kept.append(piece)
        else:
            kept.append("*")
    text = re.sub(r"\*(?:[^\w*/]|_)+(?=\*)", "", "".join(kept))
    text = re.sub(r"\*+", "*", text)
    # What stands behind says most: 'frame.0000.depth_meters', 'images_mask'.
    role = next((r for r in reversed(roles) if r != "image"), roles[-1] if roles else None)
    words = roles or any(piece.lower() in _OTHER_WORDS for piece in pieces)
    return (text if words else "*"), role


def _by_last_word(stream: _Stream) -> list[_Stream]:
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
    streams: dict[str, _Stream] = {}
    for split, paths in stream.paths.items():
        for path in paths:
            ending = _ending(path) if _ending(path) in often else ""
            parts = (*stream.parts[:-1], f"*{ending}{suffix}")
            each = streams.setdefault(ending, _Stream(parts, stream.role, {}, stream.words))
            each.paths.setdefault(split, []).append(path)
    return list(streams.values())


def _ending(path: str) -> str:
    found = re.search(r"[-_.][^\W\d_]+$", Path(path).stem)
    return found[0] if found else ""


def _with_constants(stream: _Stream) -> _Stream:
    """With the names of folders that are the same for all files."""
    parts = list(stream.parts)
    paths = [path for paths in stream.paths.values() for path in paths]
    for number in reversed([i for i, part in enumerate(parts) if "*" in part][:-1]):
        pattern = _capturing(stream, number)
        values = {match[1] for path in paths if (match := pattern.fullmatch(path))}
        if len(values) == 1 and (value := values.pop().rstrip("/")):
            parts[number] = value if parts[number] == "**" else parts[number].replace("*", value, 1)
    return dataclasses.replace(stream, parts=tuple("/".join(parts).split("/")))


def _capturing(stream: _Stream, number: int) -> re.Pattern[str]:
    """Fits a stream's paths; its group is what one of the parts stands for."""
    pieces = []
    for i, part in enumerate(stream.parts):
        if part == "**":
            pieces.append("((?:[^/]+/)*)" if i == number else "(?:[^/]+/)*")
            continue
        text = re.escape(part).replace(r"\{split\}", "[^/]*?")
        text = text.replace(r"\*", "([^/]*)" if i == number else "[^/]*")
        pieces.append(text + ("/" if i < len(stream.parts) - 1 else ""))
    return re.compile("".join(pieces))


def _counted(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}{number}" for number in itertools.count(2))


_Found = tuple[dict[str, Any], dict[str, _Stream], tuple[str, ...]]


def _targets(
    root: Path, image: _Stream, streams: Sequence[_Stream], kinds: Mapping[int, str]
) -> _Found | None:
    """The patterns of an image and of all targets that belong to it, and the splits there are."""
    by_role: dict[str, list[_Stream]] = collections.defaultdict(list)
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
    found: dict[str, tuple[_Stream, dict[str, str]]] = {}
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


def _paths(stream: _Stream, split: str) -> list[str]:
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


def _role(stream: _Stream, kind: str) -> str | None:
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


# What files hold.


def _kind(root: Path, stream: _Stream) -> str:
    """photo, colours, labels, deep (many numbers), vectors, or unknown."""
    found = collections.Counter(_kind_of(root / path, stream.role) for path in stream.some[:3])
    return found.most_common(1)[0][0]


def _kind_of(path: Path, role: str | None) -> str:
    suffix = path.suffix.lower()
    if suffix in (".jpg", ".jpeg"):
        return "labels" if role == "saliency" else "photo"
    try:
        if suffix in rasters.SUFFIXES:
            values = rasters.read_plane_of(path, None)
            whole = values.dtype.kind in "biu"
            few = whole and len(np.unique(values)) <= max(256, 0.05 * values.size)
            if role in ("depth", "disparity"):
                return "deep"
            grey_photo = role == "image" and values.dtype == np.uint8
            return "photo" if grey_photo else "labels" if few else "deep"
    except BadFile:
        pass
    try:
        values = rasters.read_triples(path, None) if suffix in rasters.SUFFIXES else None
        if values is None or values.dtype == np.uint8:
            pixels = (read_image(path) if values is None else values).reshape(-1, 3)
            colours = len(np.unique(rasters.codes_of(pixels)))
            if role == "normals":
                return "vectors"
            return "colours" if colours <= 64 and colours <= 0.2 * len(pixels) else "photo"
        length = np.linalg.norm(values.astype(np.float64), axis=-1)
        unit = values.dtype.kind == "f" and 0.8 < np.median(length[length > 0.02]) < 1.2
        return "vectors" if unit or role == "normals" else "photo"
    except (BadFile, ValueError):
        return "unknown"


def _sizes(
    root: Path, image: _Stream, targets: Mapping[str, _Stream]
) -> tuple[dict[str, Any], list[str]]:
    """One size for all, where images differ among themselves or from their targets."""
    of_images = collections.Counter(read_image(root / path).shape[:2] for path in image.some)
    of_targets = [_size(root / stream.some[0]) for stream in targets.values()]
    mixed = len(of_images) > 1
    common = of_images.most_common(1)[0][0]
    stretch = not mixed and any(size != common for size in of_targets)
    if not mixed and not stretch:
        return {}, []
    height, width = min([common, *of_targets]) if stretch else common
    what = "images and targets differ" if stretch else "images differ"
    note = f"{what} in size: all are brought to {height}×{width} (H×W), see image_size"
    found: dict[str, Any] = {"image_size": [height, width]}
    return found | ({"stretch": True} if stretch else {}), [note]


def _size(path: Path) -> tuple[int, int]:
    try:
        return rasters.read_plane_of(path, None).shape
    except BadFile:
        return rasters.read_triples(path, None).shape[:2]


_Reading = tuple[dict[str, Any], list[str]]


def _reading(root: Path, name: str, stream: _Stream, kind: str, paths: Sequence[str]) -> _Reading:
    """What to say of a target beside where it lies, and notes."""
    files = [root / path for path in stream.some]
    match name:
        case "semantic" if kind == "colours":
            every = [root / path for paths in stream.paths.values() for path in paths]
            return _colours(root, every, paths)
        case "semantic":
            return _labels(stream, files)
        case "instance" | "part" if kind == "colours":
            return {"read": {"each_colour": True}}, []
        case "instance" | "part":
            numbers = [np.unique(rasters.read_plane_of(file, None)) for file in files]
            none = [v[-1] == _NONE_OF_8_BITS and _NONE_OF_8_BITS - 1 not in v for v in numbers]
            if sum(none) * 2 > len(none) and max(v[-1] for v in numbers) == _NONE_OF_8_BITS:
                return {"read": {"ignore": [_NONE_OF_8_BITS]}}, []
        case "depth" | "disparity":
            content, notes = _lengths(name, files)
            if "depth_meters" in stream.parts[-1]:
                notes.append(
                    "depth: if this is Hypersim, it is the distance to the camera's centre: say "
                    "'along_ray': true in read.depth, and intrinsics"
                )
            return content, notes
        case "normals":
            return _vectors(files)
        case "saliency" | "edges":
            values = np.concatenate([rasters.read_plane_of(f, None).ravel() for f in files])
            if len(np.unique(values)) > 2 and values.max() > 1:
                note = f"{name}: more than two values; above 127 is taken for yes"
                return {"read": {"threshold": 127}}, [note]
    return {}, []


def _labels(stream: _Stream, files: Sequence[Path]) -> _Reading:
    place = "/".join(stream.parts).lower()
    values = sorted({int(v) for f in files for v in np.unique(rasters.read_plane_of(f, None))})
    if "labeltrainids" in place:
        return {"class_names": list(CITYSCAPES)}, []
    if "labelids" in place and set(values) <= {*range(35), 255}:
        pairs = zip(_CITYSCAPES_IDS, CITYSCAPES, strict=True)
        ids = {str(value): name for value, name in pairs}
        return {"read": {"ids": ids, "ignore": "others"}}, []
    if "{split}annot" in place and max(values) <= 11:
        note = "semantic: taken for SegNet's CamVid, of 11 classes, where 11 is no label"
        return {"ignore_label": 11, "class_names": list(_CAMVID)}, [note]
    if re.search(r"annotations/(.*/)?\{split\}", place) and stream.words.get("train") == "training":
        note = "semantic: 0 is taken for no label, as ADE20K has it, and k for class k - 1"
        return {"read": {"reduce_zero_label": True}}, [note]
    if len(values) > 1 and max(values) > 255 and len(values) < 0.5 * max(values):
        found = [value for value in values if value not in (0, 2**16 - 1)]
        note = (
            f"semantic: {len(found)} numbers up to {max(found)} in {len(files)} files, taken for "
            "classes in that order, 0 and all others for no label: check 'ids'"
        )
        return {"read": {"ids": found, "ignore": "others"}}, [note]
    if set(values) == {0, 255} or (len(values) == 2 and values[0] == 0 and values[1] > 1):
        note = f"semantic: {values[1]} is taken for the foreground"
        return {"read": {"ids": {"0": "background", str(values[1]): "foreground"}}}, [note]
    if 255 not in values and 254 < max(values) < 2**16 and max(values) - 1 not in values:
        return {"ignore_label": max(values)}, [f"semantic: {max(values)} is taken for no label"]
    return {}, []


def _colours(root: Path, files: Sequence[Path], paths: Sequence[str]) -> _Reading:
    seen: set[tuple[int, int, int]] = set()
    for file in files[:: max(1, len(files) // _MASKS)]:
        codes = np.unique(rasters.codes_of(rasters.read_colours(file))).tolist()
        seen |= {(code >> 16, code >> 8 & 255, code & 255) for code in codes}
    tables = [path for path in paths if Path(path).suffix.lower() in (".txt", ".csv", ".tsv")]
    for path in tables:
        try:
            table = read_table(root / path)
        except UserError:
            continue
        of_table = {colour for colours in table.values() for colour in colours}
        if len(of_table & seen) * 2 < len(seen):
            continue
        ignore: Any = [name for name in table if name.lower() in _NO_CLASS]
        notes = []
        if lacking := seen - of_table:
            ignore = "others"
            notes = [
                f"semantic: {len(lacking)} colours are not in {path}, such as "
                f"{sorted(lacking)[0]}: taken for no label"
            ]
            classes = {
                n: list(map(list, c)) for n, c in table.items() if n.lower() not in _NO_CLASS
            }
            return {"read": {"colours": classes, "ignore": ignore}}, notes
        return {"read": {"colours": path} | ({"ignore": ignore} if ignore else {})}, notes
    names = {f"#{r:02x}{g:02x}{b:02x}": [r, g, b] for r, g, b in sorted(seen)}
    note = (
        f"semantic: no table of colours was found; each of the {len(names)} colours is a class: "
        "name them in 'colours', and put those under 'ignore' that are no class"
    )
    return {"read": {"colours": names}}, [note]


def _lengths(name: str, files: Sequence[Path]) -> _Reading:
    reading: dict[str, Any] = {}
    notes: list[str] = []
    stored = [rasters.read_plane_of(file, None) for file in files]
    whole = stored[0].dtype.kind in "biu"
    values = np.concatenate([x.astype(np.float64).ravel() for x in stored])
    known = np.isfinite(values) & (values > 0)
    if whole and (values == 2**16 - 1).any():
        reading["ignore"] = [2**16 - 1]
        known &= values != 2**16 - 1
    if name == "disparity":
        if whole:
            reading |= {"scale": 256, "offset": 1}
            notes.append("disparity: taken as Cityscapes has it, (value - 1) / 256 pixels")
        return {"read": reading}, notes
    if not known.any():
        return {"read": reading}, notes
    median = float(np.median(values[known]))
    if whole:
        scale = 1000 if median / 1000 <= 20 or median / 256 > 200 else 256
        scale = 5000 if scale == 1000 and median / 1000 > 20 else scale
        reading["scale"] = scale
        notes.append(
            f"depth: {scale} units of a file are taken for a metre, so that the median is "
            f"{median / scale:.3g} m; say 'scale' if it is another"
        )
    elif median > 200:
        reading["scale"] = 1000
        notes.append(f"depth: the median is {median:.4g}: taken for millimetres")
    far = values[known].max()
    below = values[known & (values < far)]
    if not whole and len(below) and far > 3 * below.max() and far > 100 * median:
        reading["max"] = float(below.max()) / reading.get("scale", 1)
        notes.append(f"depth: {far:.6g} is taken for no measurement")
    return {"read": reading}, notes


def _vectors(files: Sequence[Path]) -> _Reading:
    stored = np.concatenate([rasters.read_triples(f, None).reshape(-1, 3) for f in files])
    values, reading = stored.astype(np.float64), {}
    if stored.dtype.kind in "iu":
        values = values / np.iinfo(stored.dtype).max * 2 - 1
    elif stored.max() > 2:
        values, reading = values / 255 * 2 - 1, {"range": [0, 255]}
    elif not (abs(np.linalg.norm(values, axis=-1) - 1) < 0.02).mean() > 0.1 and stored.min() >= 0:
        values, reading = values * 2 - 1, {"range": [0, 1]}
    length = np.linalg.norm(values, axis=-1)
    z = values[(length > 0.5) & (length < 1.5), 2]
    if (z > 0).sum() <= (z < 0).sum():
        return {"read": reading} if reading else {}, []
    note = "normals: most z are positive, so they are taken for right, up, back (OpenGL)"
    return {"read": reading | {"axes": "opengl"}}, [note]


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
        split = _SPLIT_WORDS.get(Path(path).stem.lower())
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
