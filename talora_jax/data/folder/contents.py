"""What the files of a data set hold, guessed from a few of them: kinds, sizes, scales, classes."""

import collections
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from talora_jax.data.cityscapes_mtan import CLASS_NAMES_19 as CITYSCAPES
from talora_jax.data.folder import rasters
from talora_jax.data.folder.colours import read_table
from talora_jax.data.folder.decode import read_image
from talora_jax.data.folder.streams import Stream
from talora_jax.errors import UserError
from talora_jax.task_names import is_head
from talora_jax.task_names import kind_of as kind_of_task
from talora_jax.tasks.target_files import BadFile

_NONE_OF_8_BITS = 255
_MASKS = 300  # of which the colours are gathered
_COMPARED = 8
# The labels of `CITYSCAPES`, in its order.
_CITYSCAPES_IDS = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)
# Of SegNet's CamVid, whose twelfth, 11, is no label.
_CAMVID = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian",
    "bicyclist",
)  # fmt: skip
_NO_CLASS = {"void", "unlabelled", "unlabeled", "ignore", "undefined", "unknown", "none"}


def kind_of(root: Path, stream: Stream) -> str:
    """photo, colours, labels, deep (many numbers), vectors, or unknown."""
    found = collections.Counter(_kind_of_file(root / path, stream.role) for path in stream.some[:3])
    return found.most_common(1)[0][0]


def _kind_of_file(path: Path, role: str | None) -> str:
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


def say_the_same(pairs: Sequence[tuple[Path, Path]], kinds: tuple[str, str]) -> bool:
    """Whether class maps are others in other numbers, or drawings of them.

    Args:
      pairs: files of the same images, of both.
      kinds: of both, `labels` or `colours`.
    """
    seen: set[tuple[int, int]] = set()
    for files in pairs[:: max(1, len(pairs) // _COMPARED)]:
        one, other = (_values(path, kind) for path, kind in zip(files, kinds, strict=True))
        if one.shape != other.shape:
            return False
        seen |= set(
            map(tuple, np.unique(np.stack([one, other], -1).reshape(-1, 2), axis=0).tolist())
        )
    ones, others = ({pair[i] for pair in seen} for i in (0, 1))
    drawn = kinds == ("labels", "colours")
    return len(seen) == len(ones) and len(others) > 1 and (drawn or len(seen) == len(others))


def _values(path: Path, kind: str) -> np.ndarray:
    if kind == "colours":
        return rasters.codes_of(rasters.read_colours(path))
    return rasters.read_plane_of(path, None).astype(np.int64)


def sizes(
    root: Path, image: Stream, targets: Mapping[str, Stream]
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
