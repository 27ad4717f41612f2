"""What the files of a data set hold, guessed from a few of them: kinds, sizes, scales, classes."""

import collections
import itertools
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from talora_jax.data.cityscapes_mtan import CLASS_NAMES_19 as CITYSCAPES
from talora_jax.data.folder import rasters, readings
from talora_jax.data.folder.colours import read_table
from talora_jax.data.folder.decode import orientation, read_image
from talora_jax.data.folder.streams import Stream, some_of_alike
from talora_jax.errors import UserError
from talora_jax.task_names import is_head
from talora_jax.task_names import kind_of as kind_of_task
from talora_jax.tasks.target_files import BadFile, read_indices, whole_numbers

_NONE_OF_8_BITS = 255
KEPT_BY_LOSSY = ("saliency", "normals")  # near values say near things there
UNKNOWN = "unknown"  # the kind of a file that cannot be read
_MASKS = 300  # of which the colours are gathered
_COMPARED = 8
_MASKED = ("semantic", "saliency", "edges")  # what is called so may be black and white
_GREYS = 12
_NUMBERED = ("semantic", "human_parts", "instance")  # in whole numbers, as floats, too
# The labels of `CITYSCAPES`, in its order.
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
# Of SegNet's CamVid, whose twelfth, 11, is no label.
_CAMVID = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian",
    "bicyclist",
)  # fmt: skip
_NO_CLASS = {"void", "unlabelled", "unlabeled", "ignore", "undefined", "unknown", "none"}


def kind_of(root: Path, stream: Stream) -> str:
    """photo, colours, labels, mask (yes and no, with greys between), deep (many numbers), vectors,
    or unknown."""
    kinds = (_kind_of_file(root / path, stream.role) for path in stream.some)
    known = itertools.islice((kind for kind in kinds if kind != UNKNOWN), 3)
    return next(iter(collections.Counter(known).most_common(1)), (UNKNOWN, 0))[0]


def _kind_of_file(path: Path, role: str | None) -> str:
    suffix = path.suffix.lower()
    lossy = suffix in rasters.LOSSY and role not in KEPT_BY_LOSSY
    # No target has other suffixes.
    if suffix not in rasters.SUFFIXES or (lossy and role not in _MASKED):
        return "photo"
    try:
        values = rasters.read_plane_of(path, None)
        if role in ("depth", "disparity"):
            return "deep"
        if role == "image" and values.dtype in (np.uint8, np.uint16):  # grey
            return "photo"
        if role in _MASKED and _is_mask(values, 0 if suffix in rasters.LOSSY else _GREYS):
            return "mask"
        if not lossy:
            return "labels" if _few(values, role) else "deep"
    except BadFile:
        pass
    if lossy:
        return "photo"
    try:
        values = rasters.read_triples(path, None)
        if values.dtype == np.uint8:
            pixels = values.reshape(-1, 3)
            colours = len(np.unique(rasters.codes_of(pixels)))
            if role == "normals":
                return "vectors"
            return "colours" if colours <= 64 and colours <= 0.2 * len(pixels) else "photo"
        length = np.linalg.norm(values.astype(np.float64), axis=-1)
        unit = values.dtype.kind == "f" and 0.8 < np.median(length[length > 0.02]) < 1.2
        return "vectors" if unit or role == "normals" else "photo"
    except (BadFile, ValueError):
        return UNKNOWN


def has_two_values(root: Path, stream: Stream) -> bool:
    """Whether the files of a stream are made of two numbers, as masks are."""
    planes = _planes(root / path for path in stream.some)
    return bool(planes) and len(np.unique(np.concatenate([np.unique(x) for x in planes]))) <= 2


def _is_mask(values: np.ndarray, greys: int) -> bool:
    """Whether 8 bits are black and white but for what smoothing, or a JPEG, leaves where the two
    meet: of so many greys at the least, as no classes are that fill so little."""
    if values.dtype != np.uint8:
        return False
    between = values[(values > 24) & (values < 231)]
    ends = values.min() <= 24 and values.max() >= 231
    return bool(ends and between.size <= 0.2 * values.size and len(np.unique(between)) >= greys)


def _few(values: np.ndarray, role: str | None) -> bool:
    """Whether numbers are of classes or objects: whole ones, and each of many pixels."""
    if role in _NUMBERED:
        try:
            values = whole_numbers(values)
        except BadFile:
            return False
    count = len(np.unique(values))
    if values.dtype.kind == "b" or count <= 64:
        return values.dtype.kind in "biu"
    if values.dtype == np.uint8:
        return role is not None or count <= 128
    return values.dtype.kind in "iu" and count <= min(1024, 0.02 * np.count_nonzero(values))


def why_unknown(root: Path, stream: Stream) -> str:
    """What is wrong with the first file of a stream of kind unknown."""
    try:
        rasters.read_plane_of(root / stream.some[0], None)
    except BadFile as error:
        return str(error)
    return "no numbers that a target has"


def say_the_same(pairs: Sequence[tuple[Path, Path]], kinds: tuple[str, str]) -> bool:
    """Whether class maps are others in other numbers, or drawings of them.

    Args:
      pairs: files of the same images, of both.
      kinds: of both, `labels` or `colours`.
    """
    seen: set[tuple[int, int]] = set()
    for files in pairs[:: max(1, len(pairs) // _COMPARED)]:
        read = [each for f, kind in zip(files, kinds, strict=True) for each in _values([f], kind)]
        if len(read) < 2:
            continue
        one, other = read
        if one.shape != other.shape:
            return False
        seen |= set(
            map(tuple, np.unique(np.stack([one, other], -1).reshape(-1, 2), axis=0).tolist())
        )
    ones, others = ({pair[i] for pair in seen} for i in (0, 1))
    drawn = kinds == ("labels", "colours")
    return len(seen) == len(ones) and len(others) > 1 and (drawn or len(seen) == len(others))


def _values(files: Iterable[Path], kind: str) -> list[np.ndarray]:
    """Class maps in whole numbers, a colour being one."""
    if kind == "colours":
        return [rasters.codes_of(colours) for colours in _read(files, rasters.read_colours)]
    return [plane.astype(np.int64) for plane in _whole(files)]


def _read(files: Iterable[Path], read: Callable[[Path], np.ndarray]) -> list[np.ndarray]:
    """What can be read of some files: what cannot is told where they are looked at."""
    found = []
    for file in files:
        try:
            found.append(read(file))
        except BadFile:
            continue
    return found


def _planes(files: Iterable[Path]) -> list[np.ndarray]:
    return _read(files, lambda file: rasters.read_plane_of(file, None))


def _whole(files: Iterable[Path]) -> list[np.ndarray]:
    return _read(files, lambda file: whole_numbers(rasters.read_plane_of(file, None)))


def sizes(
    root: Path, of_targets: Sequence[Mapping[str, str]], images: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """One size for all, where images differ among themselves or from their targets.

    Args:
      of_targets: of each target the files, by their images.
      images: some, all of which are looked at.
    """
    found = {image: size for image in images if (size := _size(root / image, read_image))}
    if not found:
        return {}, []
    others = [
        (found[image], size)
        for files in of_targets
        for image in found
        if image in files and (size := _size(root / files[image], _plane_or_triples))
    ]
    stretched = [(one, other) for one, other in others if one != other]
    turned = any(orientation(root / image) >= 5 for image in found)
    if stretched and turned and all(one == other[::-1] for one, other in stretched):
        return {}, []  # which is told of each where they are looked at
    mixed = len(set(found.values())) > 1
    common = collections.Counter(found.values()).most_common(1)[0][0]
    if not mixed and not stretched:
        return {}, []
    height, width = min([common, *(other for _, other in stretched)])
    what = "images and targets differ" if stretched else "images differ"
    notes = [f"{what} in size: all are brought to {height}×{width} (H×W), see image_size"]
    if odd := [
        (a, b) for a, b in stretched if not math.isclose(a[0] / a[1], b[0] / b[1], rel_tol=0.03)
    ]:
        (h, w), (of_h, of_w) = odd[0]
        notes.append(
            f"an image of {h}×{w} has a target of {of_h}×{of_w} (H×W), of other proportions: "
            "stretched, the two may not show the same place"
        )
    return {"image_size": [height, width]} | ({"stretch": True} if stretched else {}), notes


def _size(path: Path, read: Callable[[Path], np.ndarray]) -> tuple[int, int] | None:
    return next((values.shape[:2] for values in _read([path], read)), None)


def _plane_or_triples(path: Path) -> np.ndarray:
    try:
        return rasters.read_plane_of(path, None)
    except BadFile:
        return rasters.read_triples(path, None)


_Reading = tuple[dict[str, Any], list[str]]


def reading(root: Path, name: str, stream: Stream, kind: str, paths: Sequence[str]) -> _Reading:
    """What to say of a target beside where it lies, and notes."""
    if is_head(name):
        return _of_head(name, reading(root, kind_of_task(name), stream, kind, paths))
    files = [root / path for path in stream.some]
    match name:
        case "semantic" if kind == "colours":
            every = [root / path for paths in stream.paths.values() for path in paths]
            return _colours(root, every, paths)
        case "semantic":
            content, notes = _labels(stream, files)
            return ({} if _are_plain(files) else {"read": {}}) | content, notes
        case "instance" | "part" if kind == "colours":
            return {"read": {"each_colour": True}}, []
        case "instance" | "part":
            numbers = [np.unique(plane) for plane in _whole(files)]
            none = [v[-1] == _NONE_OF_8_BITS and _NONE_OF_8_BITS - 1 not in v for v in numbers]
            if sum(none) * 2 > len(none) and max(v[-1] for v in numbers) == _NONE_OF_8_BITS:
                return {"read": {"ignore": [_NONE_OF_8_BITS]}}, []
        case "depth" | "disparity":
            content, notes = _lengths(name, files, "/".join(stream.parts).lower())
            if "depth_meters" in stream.parts[-1]:
                notes.append(
                    "depth: if this is Hypersim, it is the distance to the camera's centre: say "
                    "'along_ray': true in read.depth, and intrinsics"
                )
            return content, notes
        case "normals":
            return _vectors(files)
        case "saliency" | "edges":
            values = np.concatenate([plane.ravel() for plane in _planes(files)])
            if len(np.unique(values)) > 2 and values.max() > 1:
                note = f"{name}: more than two values; above 127 is taken for yes"
                return {"read": {"threshold": 127}}, [note]
    return {}, []


def _are_plain(files: Sequence[Path]) -> bool:
    """Whether numbers are read of which nothing is said, as they are not in three equal channels,
    beside an alpha channel or in [H, W, 1]."""
    plain = [file for file in files if file.suffix.lower() in (".png", ".npy")]
    return len(_read(plain, read_indices)) >= len(_whole(plain))


def _of_head(name: str, of_kind: _Reading) -> _Reading:
    """The same for a head, of which nothing stands beside `read`."""
    content, notes = of_kind
    content = dict(content)
    read = content.pop("read", {})
    if "class_names" in content:
        read["class_names"] = content.pop("class_names")
    if "ignore_label" in content:
        read["ignore"] = [content.pop("ignore_label")]
    notes = [note.replace(kind_of_task(name), name, 1) for note in notes]
    return ({"read": read} if read else {}), notes


def _labels(stream: Stream, files: Sequence[Path]) -> _Reading:
    place = "/".join(stream.parts).lower()
    values = sorted({int(v) for plane in _whole(files) for v in np.unique(plane)})
    if len(below := [value for value in values if value < -1]) == 1:
        return {"ignore_label": below[0]}, [f"semantic: {below[0]} is taken for no label"]
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
    step = math.gcd(*(value for value in values if value != _NONE_OF_8_BITS))
    if step >= 5 and len(values) > 2:
        most = max(value for value in values if value != _NONE_OF_8_BITS)
        ids = list(range(0, most + 1, step))
        # White is the last one of 0, 128, 255 or 0, 85, 170, 255, and elsewhere no label.
        if 255 in values and abs(most + step - 255) <= 1:
            ids.append(255)
        note = f"semantic: all numbers are multiples of {step}, which are taken for the classes"
        return {"read": {"ids": ids}}, [note]
    if 255 not in values and 254 < max(values) < 2**16 and max(values) - 1 not in values:
        return {"ignore_label": max(values)}, [f"semantic: {max(values)} is taken for no label"]
    return {}, []


def _colours(root: Path, files: Sequence[Path], paths: Sequence[str]) -> _Reading:
    seen: set[tuple[int, int, int]] = set()
    for mask in _values(files[:: max(1, len(files) // _MASKS)], "colours"):
        codes = np.unique(mask).tolist()
        seen |= {(code >> 16, code >> 8 & 255, code & 255) for code in codes}
    for path in some_of_alike(paths, (".txt", ".csv", ".tsv")):
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


def _lengths(name: str, files: Sequence[Path], place: str) -> _Reading:
    reading: dict[str, Any] = {}
    notes: list[str] = []
    stored = _planes(files)
    whole = stored[0].dtype.kind in "biu"
    values = np.concatenate([x.astype(np.float64).ravel() for x in stored])
    if name == "depth" and _is_rotated(stored):
        reading["rotated"] = 3
        values = np.concatenate([readings.unrotated(x, 3).astype(float).ravel() for x in stored])
        notes.append("depth: taken as SUN RGB-D has it, 16 bits rotated by 3")
    known = np.isfinite(values) & (values > 0)
    below = np.unique(values[values < 0])
    if len(below) == 1 and np.isfinite(below[0]):
        reading["ignore"] = below.tolist()
        notes.append(f"{name}: {below[0]:g} is taken for no measurement")
    if whole and (values == 2**16 - 1).any():
        reading["ignore"] = [*reading.get("ignore", ()), 2**16 - 1]
        known &= values != 2**16 - 1
    if name == "disparity":
        if whole:
            reading |= {"scale": 256, "offset": 1}
            notes.append("disparity: taken as Cityscapes has it, (value - 1) / 256 pixels")
        return {"read": reading}, notes
    if not known.any():
        return {"read": reading}, notes
    median = float(np.median(values[known]))
    if whole and stored[0].dtype == np.uint8:
        reading["scale"] = 25.5
        notes.append(
            "depth: 8 bits, whose unit nothing tells: 255 is taken for 10 m; say 'scale', units of "
            "a file per metre"
        )
    elif whole:
        scale = 256  # KITTI's
        if re.search("zbuffer|euclidean", place):
            scale = 512  # Taskonomy's
        elif "vkitti" in place:
            scale = 100
        elif not re.search("kitti|proj_depth|velodyne|_sync_", place):
            if median / 1000 <= 20:
                scale = 1000
            elif median / 256 > 200:
                scale = 5000
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


def _is_rotated(stored: Sequence[np.ndarray]) -> bool:
    """Whether 16 bits hold millimetres whose highest three bits stand lowest: 0 of all below
    8.192 m, and at the most 2 of those below 24.576 m."""
    numbers = np.unique(np.concatenate([x.ravel() for x in stored]))
    if numbers.dtype.kind not in "iu" or numbers.max() >= 2**16 or len(numbers) < 64:
        return False
    lowest = numbers % 8
    odd = (numbers % 16 == 8).any()
    return bool(odd and numbers.max() > 2**13 and lowest.max() <= 2 and (lowest > 0).mean() < 0.5)


def _vectors(files: Sequence[Path]) -> _Reading:
    triples = _read(files, lambda file: rasters.read_triples(file, None))
    stored = np.concatenate([x.reshape(-1, 3) for x in triples])
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
