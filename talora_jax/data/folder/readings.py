"""What the numbers in a target's files mean: the entries of `read` in `dataset.json`.

    "semantic", "human_parts":
      {"colours": {"road": [128, 64, 128], …}   or "#804080"; a list of several colours for one
                                                class; or the name of a text file of them all
       "ids": {"7": "road", "8": 1, …}          or [7, 8, …]: the value of each class in turn
       "ignore": [0, "void"]                    values or names that are no label; "others": all
                                                that stand in no table
       "reduce_zero_label": true,               0 is no label, and k is class k - 1
       "class_names": ["wood", "metal"]}        of a head: `semantic` has them beside `read`
    "depth", "disparity":
      {"scale": 256, "offset": 1,               (value - offset) / scale; default: 1000 of whole
                                                numbers, 1 of floats; a disparity's must be said
       "inverse": true,                         … and 1 divided by that
       "max": 80,                               above it, in the end, is no measurement
       "ignore": [65535],                       values that are no measurement, as 0 always is
       "rotated": 3,                            bits by which 16-bit numbers are turned to the left,
                                                as in SUN RGB-D
       "along_ray": true,                       the distance to the camera's centre, not along its
                                                axis; needs `intrinsics`
       "channel": "Z"}                          of an EXR, or the array of an npz
    "normals":
      {"axes": "opengl",                        right, up, back; default "opencv": right, down,
                                                forward; or a list of three of right, left, up,
                                                down, forward and back: what each channel points to
       "range": [0, 255],                       values that stand for -1 and 1; default: what the
                                                integers of a file hold, and [-1, 1] of floats
       "channel": "Normal"}                     of an EXR, or the array of an npz
    "saliency", "edges":
      {"threshold": 127,                        above it is yes; default: 0
       "ignore": [255],                         values that are no label
       "invert": true}                          … above it is no
    "instance", "part":
      {"ignore": [255],
       "each_colour": true}                     each colour but black is one object
    "valid:depth", the mask of depth, and so on for every target:
      {"threshold": 127,                        above it depth is valid; default: 0
       "ignore": [255],                         values where it is not, as NaN
       "invert": true}                          … above it is not

A reading makes of a file what an npy file of the plain layout holds; what that means is its task's.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Integer

from talora_jax.data.folder import rasters
from talora_jax.data.folder.colours import Colour, read_table
from talora_jax.data.folder.validity import is_mask, masked_by
from talora_jax.errors import UserError, listed, printable
from talora_jax.task_names import is_head, is_name, kind_of
from talora_jax.tasks.semantic import is_8_bits
from talora_jax.tasks.target_files import BadFile, whole_numbers

_OTHERS = "others"
_NAMES = "class_names"
_DIRECTIONS = {
    "right": (0, 1), "left": (0, -1), "down": (1, 1), "up": (1, -1), "forward": (2, 1),
    "back": (2, -1),
}  # fmt: skip
_CONVENTIONS = {"opencv": ("right", "down", "forward"), "opengl": ("right", "up", "back")}
_LARGEST = 1e300
# Of whole numbers in JSON: up to here every one is itself.
_MOST = 2**53
# Values that 8 bits hold, and that nearly every data set uses for no label.
_NONE_OF_8_BITS = 255


@dataclasses.dataclass(frozen=True)
class Labels:
    """How classes are read.

    Attributes:
      colours, ids: the class of each colour or value, -1 for none; empty where there is no table.
      ignore: values that are no label.
      others: whether what stands in no table is no label; it is refused otherwise.
      names: of the classes that a table names, or a head's entry.
    """

    colours: tuple[tuple[Colour, int], ...] = ()
    ids: tuple[tuple[int, int], ...] = ()
    ignore: tuple[int, ...] = ()
    others: bool = False
    reduce_zero_label: bool = False
    names: tuple[str, ...] = dataclasses.field(default=(), repr=False)

    def values(self, path: Path, settings: Any) -> Integer[np.ndarray, "H W"]:
        """Class indices, -1 = no label."""
        del settings
        if self.colours:
            return self._of_colours(rasters.read_colours(path))
        stored = _exact_numbers(path)
        values = stored.astype(np.int64)
        nothing = (values == -1) | np.isin(values, self.ignore)
        if is_8_bits(stored, path) and _NONE_OF_8_BITS not in dict(self.ids):
            nothing |= values == _NONE_OF_8_BITS
        if self.ids:
            values = self._of_ids(np.where(nothing, -1, values))
        if self.reduce_zero_label:
            values = values - 1
        return np.where(nothing, -1, values)

    def _of_ids(self, values: Integer[np.ndarray, "H W"]) -> Integer[np.ndarray, "H W"]:
        table = {-1: -1, **dict(self.ids)}
        found, at = np.unique(values, return_inverse=True)
        lacking = [int(value) for value in found if int(value) not in table]
        if lacking and not self.others:
            raise BadFile(
                f'value {lacking[0]}, expected one of read.ids in dataset.json; "ignore": '
                f'[{lacking[0]}] beside them makes it no label, "ignore": "others" all that are '
                "not there"
            )
        classes = np.array([table.get(int(value), -1) for value in found], np.int64)
        return classes[at].reshape(values.shape)

    def _of_colours(self, pixels: np.ndarray) -> Integer[np.ndarray, "H W"]:
        table = {_code(colour): index for colour, index in self.colours}
        codes = rasters.codes_of(pixels)
        found, at = np.unique(codes, return_inverse=True)
        lacking = [int(code) for code in found if int(code) not in table]
        if lacking and not self.others:
            colour = (lacking[0] >> 16, lacking[0] >> 8 & 255, lacking[0] & 255)
            raise BadFile(
                f"colour {colour}, {len(lacking)} such, expected those of read.colours in "
                'dataset.json; "ignore": "others" beside them makes all others no label'
            )
        classes = np.array([table.get(int(code), -1) for code in found], np.int64)
        return classes[at].reshape(codes.shape)


@dataclasses.dataclass(frozen=True)
class Lengths:
    """How depth or disparity is read; of depth, `scale` and `max` are kept as `depth_scale` and
    `max_depth` of `Settings`."""

    scale: float | None = None
    offset: float = 0.0
    inverse: bool = False
    max: float | None = None
    ignore: tuple[float, ...] = ()
    rotated: int = 0
    along_ray: bool = False
    channel: str | None = None
    whole_scale: ClassVar[float | None] = 1000.0  # of whole numbers, where nobody says

    def values(self, path: Path, settings: Any) -> np.ndarray:
        """In the task's unit, 0 = no measurement."""
        stored = rasters.read_plane_of(path, self.channel)
        if stored.dtype.kind not in "iuf":
            raise BadFile(f"{stored.dtype}, expected numbers")
        if self.rotated:
            stored = unrotated(stored, self.rotated)
        values = stored.astype(np.float64)
        known = np.isfinite(values) & (values != 0) & ~np.isin(values, self.ignore)
        scale = self._said(settings)
        if scale is None:
            scale = 1.0 if stored.dtype.kind == "f" else self._of_whole(values, settings)
        values = (np.where(known, values, 0) - self.offset) / scale
        if known.any() and values[known].min() < 0:
            raise BadFile(
                f"{values[known].min():g} after scale and offset, expected 0 (no measurement) or "
                "above"
            )
        if self.inverse:
            known &= values > 0
            values = 1 / np.where(known, values, 1)
        if self.along_ray:
            values = values / _ray_lengths(values.shape, settings.intrinsics)
        if self.max is not None:
            known &= values <= self.max
        return np.where(known, values, 0)

    def _said(self, settings: Any) -> float | None:
        return settings.depth_scale if self.scale is None else self.scale

    def _of_whole(self, values: np.ndarray, settings: Any) -> float:
        if self.whole_scale is None:
            raise BadFile("whole numbers, whose scale must be said: read.disparity.scale, as 256")
        ones = 2**16 - 1
        if settings.max_depth is None and values.max() == ones and ones not in self.ignore:
            raise BadFile(
                'value 65535, all ones, which most often is no measurement: say "ignore": [65535] '
                "in read.depth of dataset.json, or set config.data.max_depth"
            )
        return self.whole_scale


def unrotated(stored: np.ndarray, bits: int) -> np.ndarray:
    """16-bit numbers before their bits were rotated to the left.

    Raises:
      BadFile: they are of other bits.
    """
    if stored.dtype.kind not in "iu" or stored.min() < 0 or stored.max() >= 2**16:
        raise BadFile(
            f"{stored.dtype}, expected numbers of 16 bits, as they are said to be rotated"
        )
    values = stored.astype(np.int64)
    return values >> bits | (values << 16 - bits & 2**16 - 1)


@dataclasses.dataclass(frozen=True)
class Disparities(Lengths):
    """How disparity is read."""

    whole_scale = None

    def _said(self, settings: Any) -> float | None:
        return self.scale


@dataclasses.dataclass(frozen=True)
class Vectors:
    """How normals are read.

    Attributes:
      axes: what the file's channels point to, see `_DIRECTIONS`.
      range: the values that stand for -1 and 1.
    """

    axes: tuple[str, str, str] = _CONVENTIONS["opencv"]
    range: tuple[float, float] | None = None
    channel: str | None = None

    def values(self, path: Path, settings: Any) -> np.ndarray:
        """x right, y down, z forward."""
        del settings
        stored = rasters.read_triples(path, self.channel)
        low, high = self.range or (-1, 1)
        if self.range is None and stored.dtype.kind in "iu":
            low, high = 0, np.iinfo(stored.dtype).max
        with np.errstate(over="ignore", invalid="ignore"):
            vectors = (stored.astype(np.float32) - low) * np.float32(2 / (high - low)) - 1
        # No vector at all: in files of whole numbers black, where (0, 0, 0) is a corner.
        nothing = (stored == 0).all(axis=-1)
        turned = np.empty_like(vectors)
        for channel, direction in enumerate(self.axes):
            axis, sign = _DIRECTIONS[direction]
            turned[..., axis] = sign * vectors[..., channel]
        turned[nothing] = 0
        return turned


@dataclasses.dataclass(frozen=True)
class YesNo:
    """How saliency, edges and masks of validity are read."""

    threshold: float = 0.0
    ignore: tuple[float, ...] = ()
    invert: bool = False

    def values(self, path: Path, settings: Any) -> np.ndarray:
        """1 yes, 0 no, -1 no label."""
        del settings
        stored = rasters.read_plane_of(path, None).astype(np.float64)
        nothing = np.isnan(stored) | (stored < 0) | np.isin(stored, self.ignore)
        yes = (stored > self.threshold) != self.invert
        return np.where(nothing, -1, yes).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Numbers:
    """How objects and their parts are read."""

    ignore: tuple[int, ...] = ()
    each_colour: bool = False

    def values(self, path: Path, settings: Any) -> Integer[np.ndarray, "H W"]:
        """Numbers from 1 on; 0 and less is no label."""
        del settings
        if self.each_colour:
            return rasters.codes_of(rasters.read_colours(path))
        values = _exact_numbers(path).astype(np.int64)
        return np.where(np.isin(values, self.ignore), -1, values)


Reading = Labels | Lengths | Vectors | YesNo | Numbers

# How files are read that a description names and says nothing else of.
KINDS: dict[str, type] = {
    "semantic": Labels,
    "human_parts": Labels,
    "depth": Lengths,
    "disparity": Disparities,
    "normals": Vectors,
    "saliency": YesNo,
    "edges": YesNo,
    "instance": Numbers,
    "part": Numbers,
}


def is_read(name: str) -> bool:
    """Whether a description may name files of this: a target, or its mask of validity."""
    return is_name(masked_by(name), KINDS)


def reading_of(name: str) -> type:
    """How files are read of which `is_read` is true."""
    return YesNo if is_mask(name) else KINDS[kind_of(name)]


# From JSON.


def parse_readings(
    value: Any, where: str, root: Path, class_names: Sequence[str]
) -> dict[str, Reading]:
    """The entries of `read`.

    Args:
      where: names their origin for the error.
      root: what the names of files are below.
      class_names: of `semantic`; empty if nobody named them but the table.

    Raises:
      UserError: an entry is not what it should be.
    """
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: expected an object of what is read, by target.")
    readings = {}
    for target, entry in value.items():
        place = f"{where}.{printable(target)}"
        if not is_read(target):
            raise UserError(
                f"{place}: unknown target; expected one of {', '.join(KINDS)}, a head of one, as "
                "semantic:materials, or a mask of one, as valid:depth."
            )
        if not isinstance(entry, Mapping):
            raise UserError(f"{place}: expected an object.")
        kind = reading_of(target)
        has_classes = is_head(target) and kind_of(target) == "semantic"
        fields = [name for name in _FIELDS[kind] if has_classes or name != _NAMES]
        unknown = [name for name in entry if name not in fields]
        if unknown:
            raise UserError(
                f"{place}: unknown field {printable(repr(unknown[0]))}; the fields are "
                f"{', '.join(fields)}."
            )
        if has_classes:
            names = _field(kind, _NAMES, entry[_NAMES], place) if _NAMES in entry else ()
            reading = _labels(entry, place, root, names)
            readings[target] = dataclasses.replace(reading, names=names or reading.names)
        elif kind is Labels:
            names = class_names if target == "semantic" else _part_names()
            readings[target] = _labels(entry, place, root, names)
        else:
            readings[target] = kind(
                **{name: _field(kind, name, entry[name], place) for name in entry}
            )
    return readings


def _part_names() -> tuple[str, ...]:
    from talora_jax.tasks.semantic import HumanParts

    return HumanParts.part_names


def _labels(entry: Mapping[str, Any], place: str, root: Path, class_names: Sequence[str]) -> Labels:
    ignore = entry.get("ignore", [])
    others = ignore == _OTHERS
    ignore = [] if others else ignore if isinstance(ignore, list) else [ignore]
    if not all(isinstance(item, str) or _is_whole(item) for item in ignore):
        raise UserError(
            f"{place}.ignore is {printable(repr(ignore))}; expected values or names, or 'others'."
        )
    if "colours" in entry and ("ids" in entry or entry.get("reduce_zero_label")):
        raise UserError(f"{place}: expected colours, or ids and reduce_zero_label, not both.")
    if not isinstance(entry.get("reduce_zero_label", False), bool):
        raise UserError(f"{place}.reduce_zero_label: expected true or false.")
    none = {item for item in ignore if isinstance(item, str)}
    if "colours" in entry:
        table = _colour_table(entry["colours"], f"{place}.colours", root)
        pairs = [(colour, name) for name, colours in table.items() for colour in colours]
    elif "ids" in entry:
        pairs = _id_table(entry["ids"], f"{place}.ids")
    else:
        pairs = []
    if unknown := none - {name for _, name in pairs if isinstance(name, str)}:
        raise UserError(f"{place}.ignore names {listed(sorted(unknown), 80)}, which no table has.")
    names = list(class_names) or list(
        dict.fromkeys(name for _, name in pairs if isinstance(name, str) and name not in none)
    )
    indexed = []
    for key, found in pairs:
        if found is None or found in none:
            indexed.append((key, -1))
        elif isinstance(found, str):
            if found not in names:
                raise UserError(
                    f"{place} names {printable(repr(found))}, which is none of class_names: "
                    f"{listed(names, 150)}; put it under ignore if it is no class."
                )
            indexed.append((key, names.index(found)))
        else:
            indexed.append((key, found))
    if pairs and all(index < 0 for _, index in indexed):
        raise UserError(f"{place}: every entry is no label; expected classes.")
    return Labels(
        colours=tuple(indexed) if "colours" in entry else (),
        ids=tuple(indexed) if "ids" in entry else (),
        ignore=tuple(int(item) for item in ignore if not isinstance(item, str)),
        others=others,
        reduce_zero_label=entry.get("reduce_zero_label", False),
        names=tuple(names) if any(isinstance(name, str) for _, name in pairs) else (),
    )


def _colour_table(value: Any, place: str, root: Path) -> dict[str, tuple[Colour, ...]]:
    if isinstance(value, str):
        return read_table(root / value)
    expected = 'names with their colours, as {"road": [128, 64, 128]}, or the name of a text file'
    if not isinstance(value, Mapping) or not value:
        raise UserError(f"{place}: expected {expected}.")
    table: dict[str, tuple[Colour, ...]] = {}
    for name, colours in value.items():
        if not name.strip() or not name.isprintable():
            raise UserError(
                f"{place}: a class is called {printable(repr(name))}; expected {expected}."
            )
        several = isinstance(colours, list) and colours and not _is_whole(colours[0])
        found = [_colour(colour) for colour in (colours if several else [colours])]
        if None in found:
            raise UserError(
                f"{place}: {printable(name)} is {printable(repr(colours))}; expected {expected}."
            )
        for colour in found:
            if any(colour in known for known in table.values()) or found.count(colour) > 1:
                raise UserError(f"{place}: colour {list(colour)} stands there twice.")
        table[name] = tuple(found)
    return table


def _colour(value: Any) -> Colour | None:
    if isinstance(value, str) and re.fullmatch("#[0-9a-fA-F]{6}", value):
        return tuple(bytes.fromhex(value[1:]))
    good = isinstance(value, list) and len(value) == 3 and all(map(_is_whole, value))
    return tuple(map(int, value)) if good and 0 <= min(value) and max(value) <= 255 else None


def _id_table(value: Any, place: str) -> list[tuple[int, int | str | None]]:
    expected = 'values with their class, as {"7": "road", "8": 1, "9": null}, or the values'
    if isinstance(value, list) and value and all(map(_is_whole, value)):
        if len(set(value)) < len(value):
            raise UserError(f"{place} has a value twice.")
        return [(int(item), index) for index, item in enumerate(value)]
    if not isinstance(value, Mapping) or not value:
        raise UserError(f"{place}: expected {expected} of the classes in a list.")
    table = []
    for key, found in value.items():
        named = found is None or (isinstance(found, str) and found.strip() and found.isprintable())
        if not re.fullmatch(r"-?\d{1,18}", key) or not (
            named or (_is_whole(found) and found >= -1)
        ):
            raise UserError(
                f"{place}: {printable(key)} is {printable(repr(found))}; expected {expected}."
            )
        number = None if found in (None, -1) else found if isinstance(found, str) else int(found)
        table.append((int(key), number))
    return table


def _field(kind: type, name: str, value: Any, place: str) -> Any:
    good, expected, make = _FIELDS[kind][name]
    if not good(value):
        raise UserError(f"{place}.{name} is {printable(repr(value))}; expected {expected}.")
    return make(value)


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and -_LARGEST < value < _LARGEST  # of NaN neither is true


def _is_whole(value: Any) -> bool:
    return _is_number(value) and abs(value) <= _MOST and value == int(value)


def _is_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_number, value))


def _are_names(value: Any) -> bool:
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        return False
    distinct = len(set(value)) == len(value) > 0
    return distinct and all(item.strip() and item.isprintable() for item in value)


def _is_range(value: Any) -> bool:
    return _is_numbers(value) and len(value) == 2 and value[0] != value[1]


def _axes(value: Any) -> tuple[str, ...]:
    return _CONVENTIONS[value] if isinstance(value, str) else tuple(value)


def _are_axes(value: Any) -> bool:
    if isinstance(value, str):
        return value in _CONVENTIONS
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        return False
    return sorted(_DIRECTIONS.get(item, (-1,))[0] for item in value) == [0, 1, 2]


_Check = tuple[Callable[[Any], bool], str, Callable[[Any], Any]]
_FLAG: _Check = (lambda x: isinstance(x, bool), "true or false", bool)
_WORD: _Check = (lambda x: isinstance(x, str) and bool(x), "a name", str)
_NUMBER: _Check = (_is_number, "a number", float)
_POSITIVE: _Check = (lambda x: _is_number(x) and x > 0, "a number above 0", float)
_LIST: _Check = (_is_numbers, "a list of numbers", lambda x: tuple(map(float, x)))
_WHOLE_LIST: _Check = (
    lambda x: isinstance(x, list) and all(map(_is_whole, x)),
    "a list of whole numbers",
    lambda x: tuple(map(int, x)),
)
_LENGTHS: dict[str, _Check] = {
    "scale": _POSITIVE,
    "offset": _NUMBER,
    "inverse": _FLAG,
    "max": _POSITIVE,
    "ignore": _LIST,
    "rotated": (lambda x: _is_whole(x) and 0 < x < 16, "bits, 1 to 15", int),
    "along_ray": _FLAG,
    "channel": _WORD,
}
_AXES = "'opencv', 'opengl', or a list of three of right, left, up, down, forward and back"
_FIELDS: dict[type, Mapping[str, Any]] = {
    Labels: {
        **dict.fromkeys(("colours", "ids", "ignore", "reduce_zero_label")),
        _NAMES: (_are_names, "a list of distinct names, one per class", tuple),
    },
    Lengths: _LENGTHS,
    Disparities: _LENGTHS,
    Vectors: {
        "axes": (_are_axes, _AXES, _axes),
        "range": (_is_range, "the values of -1 and 1, as [0, 255]", lambda x: tuple(map(float, x))),
        "channel": _WORD,
    },
    YesNo: {"threshold": _NUMBER, "ignore": _LIST, "invert": _FLAG},
    Numbers: {"ignore": _WHOLE_LIST, "each_colour": _FLAG},
}


def _exact_numbers(path: Path) -> np.ndarray:
    """Whole numbers of a file that has kept each of them."""
    if path.suffix.lower() in rasters.LOSSY:
        raise BadFile(
            "a JPEG, whose values are not exactly those that were written: expected a PNG"
        )
    return whole_numbers(rasters.read_plane_of(path, None))


def _ray_lengths(shape: tuple[int, int], intrinsics: Any) -> np.ndarray:
    """How long the ray through each pixel is whose z is 1."""
    if intrinsics is None:
        raise BadFile("depth along_ray needs the camera: add intrinsics to dataset.json")
    y, x = np.mgrid[: shape[0], : shape[1]]
    x, y = (x - intrinsics.cx) / intrinsics.fx, (y - intrinsics.cy) / intrinsics.fy
    return np.sqrt(x**2 + y**2 + 1)


def _code(colour: Colour) -> int:
    red, green, blue = colour
    return red << 16 | green << 8 | blue
