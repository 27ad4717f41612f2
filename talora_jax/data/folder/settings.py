"""What the files of a folder cannot tell: `dataset.json`, and the same fields in `config.data`.

    {
      "class_names": ["table", "object"],   one per class index; default: 'class 0' … as found
      "depth_scale": 1000,                  units of a depth file per metre; default 1000 in a PNG,
                                            1 in an npy file
      "max_depth": 80,                      metres above which depth is no measurement: what a
                                            sensor or a renderer writes for none; default: none
      "ignore_label": 255,                  the semantic label that means none; default: 255 in
                                            8-bit PNGs, nothing elsewhere; -1 always means none
      "intrinsics": {"fx": 525, "fy": 525, "cx": 319.5, "cy": 239.5},
                                            of the files as they lie, in pixels, the centre of the
                                            top left pixel at (0, 0); for deriving normals
      "image_size": [240, 320],             H, W that samples are resized to; default: as they lie
      "splits": {"train": ["0001"], "val": ["0002"]}
                                            stems, of files in subfolders as "kitchen/0001";
                                            samples in neither are left out; default: a fixed share
                                            of `config.data.val_fraction` for val
    }

Where the files do not lie in one folder per target, it says where they are. A pattern for each,
`{split}` being train or val; see `talora_jax.data.folder.patterns`:

      "files": {
        "image": "leftImg8bit/{split}/**/{stem}_leftImg8bit.png",
        "semantic": {"train": "trainannot/{stem}.png", "val": "valannot/{stem}.png"}
      }

or text files with a line for each sample, in a CSV or with spaces between, of paths from here:

      "table": {"files": {"train": "train.csv", "val": "val.csv"},   or one for all, with or without
                                                                     a column 'split'
                "columns": ["image", "depth", ""]}    or, of columns that the first line calls
                                                      otherwise, {"image": "path", "depth": "gt"};
                                                      default: as the first line says

and of either

      "leave_out": ["{stem}_overlay.png"]     what fits is no image, though files.image fits it
      "splits": {"train": "lists/train.txt", "val": "lists/val.txt"}   as above, from text files
      "read": {"depth": {"scale": 5000}}      what the numbers in files mean: `readings`; scale and
                                              max of depth stand for depth_scale and max_depth
      "partly": true                          samples may lack files of some targets, which say
                                              nothing then; without it they are refused
      "stretch": true                         targets may have another size than their image, and
                                              are stretched to `image_size` each by itself

All fields are optional. A head of a kind, as `semantic:materials`, has its own entries in `files`,
`columns` and `read`, and nothing that stands beside `read` is of it.

So has a mask of validity, as `valid:depth`: where it is 0 or NaN, depth is no measurement. It has
the size of its target, and is there wherever that is.

`config.data` may carry `class_names`, `depth_scale`, `max_depth`, `ignore_label` (of what `read`
gives), `intrinsics` as (fx, fy, cx, cy), `image_size` and `partly`; one that is not None or empty
is taken in place of `dataset.json`'s. `config.data.description` names another file in its place, or
one that comes along: `cityscapes`, `cityscapes_7`, `nyud_mt`.
"""

import dataclasses
import errno
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from talora_jax.data.folder.patterns import SPLIT, compile_pattern
from talora_jax.data.folder.readings import KINDS, Reading, is_read, parse_readings
from talora_jax.errors import UserError, one_line, printable
from talora_jax.files import distinct
from talora_jax.task_names import is_head

# Descriptions that come along, of data sets in the layout that they are published in.
SHIPPED = Path(__file__).with_name("layouts")
_SPLITS = ("train", "val")
_IN_FILE_ONLY = ("splits", "files", "leave_out", "table", "read", "stretch")


@dataclasses.dataclass(frozen=True)
class Intrinsics:
    """Focal lengths and principal point of a pinhole camera, in pixels."""

    fx: float
    fy: float
    cx: float
    cy: float


@dataclasses.dataclass(frozen=True)
class Table:
    """Text files that name the files of each sample, in a line.

    Attributes:
      files: by split; under '' where a column tells it, or nothing does.
      columns: the target of each, '' for one that is passed over; empty where the first line says.
      named: what the first line calls the columns of targets; empty where it calls them so.
    """

    files: Mapping[str, str]
    columns: tuple[str, ...] = ()
    named: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Settings:
    """The fields of `dataset.json`; see the top of this file."""

    class_names: tuple[str, ...] = ()
    depth_scale: float | None = None
    max_depth: float | None = None
    ignore_label: int | None = None
    intrinsics: Intrinsics | None = None
    image_size: tuple[int, int] | None = None
    splits: Mapping[str, tuple[str, ...]] | None = None
    # Not in `repr`, which names what earlier versions have prepared.
    files: Mapping[str, Mapping[str, str]] | None = dataclasses.field(default=None, repr=False)
    leave_out: tuple[str, ...] = dataclasses.field(default=(), repr=False)
    table: Table | None = dataclasses.field(default=None, repr=False)
    read: Mapping[str, Reading] | None = dataclasses.field(default=None, repr=False)
    partly: bool | None = dataclasses.field(default=None, repr=False)
    stretch: bool | None = dataclasses.field(default=None, repr=False)


def read_settings(root: Path | None, data: ml_collections.ConfigDict) -> Settings:
    """Merges the description with `config.data`, which takes precedence: `root/dataset.json`, if
    there is one, or what `config.data.description` names.

    Without a root, `config.data` speaks alone.

    Raises:
      UserError: a field is unknown or its value is not what it should be.
    """
    fields = [field.name for field in dataclasses.fields(Settings)]
    values, path = {}, _description(root, data)
    if path:
        content = _read_json(path)
        for name, value in content.items():
            if name not in fields:
                raise UserError(
                    f"{path}: unknown field {printable(repr(name))}; the fields are "
                    f"{', '.join(fields)}."
                )
            if name != "read":
                values[name] = _parse(name, value, f"{path}: {name}")
        if "read" in content:
            # Of the files of the data, wherever the description lies.
            where, names = f"{path}: read", values.get("class_names", ())
            values["read"] = parse_readings(content["read"], where, root or path.parent, names)
            _move_up(values, path)
        _check_described(values, path)
        if values.get("splits"):
            values["splits"] = {
                split: _listed(root or path.parent, names)
                for split, names in values["splits"].items()
            }
    for name in fields:
        value = data.get(name)
        if name not in _IN_FILE_ONLY and value not in (None, ()):
            values[name] = _parse(name, value, f"config.data.{name}")
    if values.get("stretch") and not values.get("image_size"):
        raise UserError(
            f"{path}: stretch needs image_size, [height, width], which images and targets are "
            "stretched to."
        )
    return Settings(**values)


def stated_classes(task: str, settings: Settings) -> tuple[str, ...]:
    """The class names that settings state of `semantic` or a head of its kind; empty if none."""
    if not is_head(task):
        return settings.class_names if task == "semantic" else ()
    return getattr((settings.read or {}).get(task), "names", ())


def named_classes(task: str, settings: Settings, count: int) -> tuple[str, ...]:
    """`stated_classes`, or names for as many as its files have."""
    return stated_classes(task, settings) or tuple(f"class {index}" for index in range(count))


def _description(root: Path | None, data: ml_collections.ConfigDict) -> Path | None:
    """The file that describes the data.

    Raises:
      UserError: `config.data.description` names none.
    """
    named = data.get("description")
    if not named:
        path = root and root / "dataset.json"
        return path if path and _there_is(path) else None
    shipped = {path.stem: path for path in sorted(SHIPPED.glob("*.json"))}
    path = Path(os.path.expanduser(named))
    if named in shipped and not path.exists():
        return shipped[named]
    if not path.is_file():
        raise UserError(
            f"config.data.description is {printable(repr(named))}, which is no file; expected a "
            f"dataset.json, or one of those that come along: {', '.join(shipped)}."
        )
    return path


def _move_up(values: dict[str, Any], path: Path) -> None:
    """What `read` says of depth and classes stands in one place, where `config.data` has it."""
    read = values["read"]
    depth = read.get("depth")
    for name, field in (("depth_scale", "scale"), ("max_depth", "max")):
        if depth is not None and getattr(depth, field) is not None:
            if name in values:
                raise UserError(f"{path}: {name} and read.depth.{field}; expected one of them.")
            values[name] = getattr(depth, field)
    if depth is not None:
        read["depth"] = dataclasses.replace(depth, scale=None, max=None)
    semantic = read.get("semantic")
    if semantic is not None and semantic.names:
        values.setdefault("class_names", semantic.names)


def _check_described(values: Mapping[str, Any], path: Path) -> None:
    if values.get("files") and values.get("table"):
        raise UserError(f"{path}: files and table; expected one of them.")
    if values.get("leave_out") and not values.get("files"):
        raise UserError(f"{path}: leave_out is of what files.image fits; expected files beside it.")


def _listed(root: Path, names: tuple[str, ...] | str) -> tuple[str, ...]:
    """The names of a split, one in each line where they are in a text file."""
    if not isinstance(names, str):
        return names
    path = root / names
    try:
        if not path.is_file():  # Reading a pipe would wait for ever.
            raise FileNotFoundError(errno.ENOENT, "there is no such file")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise UserError(
            f"{printable(path)}, which splits names, cannot be read ({reason}); expected a text "
            "file with a name in each line."
        ) from None
    found = tuple(line.strip() for line in lines if line.strip())
    if not found:
        raise UserError(f"{printable(path)} names no image; expected one in each line.")
    return found


def _there_is(path: Path) -> bool:
    """Whether there is such a file; what only looks like it is not passed over.

    Raises:
      UserError: what has this name is no file, or one has it in other letters.
    """
    if os.path.lexists(path):
        if not path.is_file():  # Reading a pipe would wait for ever.
            raise UserError(f"{path} is no file, or a link that leads nowhere; expected JSON.")
        return True
    names = [entry.name for entry in path.parent.iterdir()]
    if other := next((name for name in names if name.lower() == path.name), None):
        raise UserError(f"{path.parent / other}: its name must be {path.name}; rename it.")
    return False


def _read_json(path: Path) -> dict[str, Any]:
    try:
        # Some editors begin a file with a mark of its byte order.
        values = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=distinct)
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8; save it in that encoding.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read as JSON: {one_line(error)}.") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a JSON object.")
    return values


def _parse(name: str, value: Any, where: str) -> Any:
    """The field's value in its own type; `where` names its origin for the error."""
    parse, expected = _FIELDS[name]
    try:
        return parse(value)
    except UserError as error:  # which names the part of it
        raise UserError(f"{where.rpartition(': ')[0]}: {error}") from None
    except (TypeError, ValueError, KeyError, OverflowError):
        raise UserError(f"{where} is {printable(repr(value))}; expected {expected}.") from None


def _demand(condition: bool) -> None:
    if not condition:
        raise ValueError


def _number(value: Any) -> float:
    _demand(isinstance(value, int | float) and not isinstance(value, bool))
    _demand(math.isfinite(value))
    return float(value)


def _positive(value: Any) -> float:
    number = _number(value)
    _demand(number > 0)
    return number


def _integer(value: Any) -> int:
    _demand(_number(value) == int(value))
    return int(value)


def _strings(value: Any) -> tuple[str, ...]:
    _demand(isinstance(value, list | tuple) and all(isinstance(item, str) for item in value))
    _demand(len(set(value)) == len(value) > 0)
    _demand(all(item.strip() and item.isprintable() for item in value))
    return tuple(value)


def _intrinsics(value: Any) -> Intrinsics:
    if isinstance(value, Mapping):
        _demand(set(value) == {"fx", "fy", "cx", "cy"})
        value = [value[name] for name in ("fx", "fy", "cx", "cy")]
    fx, fy, cx, cy = value
    return Intrinsics(_positive(fx), _positive(fy), _number(cx), _number(cy))


def _image_size(value: Any) -> tuple[int, int]:
    height, width = (_integer(number) for number in value)
    _demand(0 < min(height, width) and max(height, width) < 2**16)
    return height, width


def _splits(value: Any) -> dict[str, tuple[str, ...] | str]:
    _demand(isinstance(value, dict) and set(value) == set(_SPLITS))
    return {name: _name_of_file(value[name]) or _strings(value[name]) for name in _SPLITS}


def _name_of_file(value: Any) -> str | None:
    _demand(value != "")
    return value if isinstance(value, str) else None


def _files(value: Any) -> dict[str, dict[str, str]]:
    _demand(isinstance(value, dict) and "image" in value and len(value) > 1)
    if unknown := [x for x in value if x != "image" and not is_read(x)]:
        raise UserError(
            f"files: unknown target {printable(repr(unknown[0]))}; expected image and "
            f"{', '.join(KINDS)}, heads of these, as semantic:materials, or masks, as valid:depth."
        )
    files = {name: _patterns(name, patterns) for name, patterns in value.items()}
    for name, patterns in files.items():
        if "" in files["image"] and "" not in patterns:
            raise UserError(
                f"files.{name} tells train from val and files.image does not; expected {{split}} "
                "in both, or lists under splits."
            )
    return files


def _patterns(name: str, value: Any) -> dict[str, str]:
    """The patterns of one target by split; under '' one of all."""
    if isinstance(value, str):
        value = (
            {split: value.replace(SPLIT, split) for split in _SPLITS}
            if SPLIT in value
            else {"": value}
        )
    elif not isinstance(value, dict) or set(value) != set(_SPLITS):
        raise UserError(
            f"files.{printable(name)} is {printable(repr(value))}; expected a pattern, or one "
            "under 'train' and one under 'val'."
        )
    for text in value.values():
        _demand(isinstance(text, str))
        compile_pattern(text, f"files.{name}")
    return {split: value[split] for split in ("", *_SPLITS) if split in value}


def _left_out(value: Any) -> tuple[str, ...]:
    for text in (texts := _strings(value)):
        compile_pattern(text, "leave_out")
    return texts


def _table(value: Any) -> Table:
    if isinstance(value, str):
        value = {"files": value}
    _demand(isinstance(value, dict) and {"files"} <= set(value) <= {"files", "columns"})
    files = value["files"]
    files = {"": files} if isinstance(files, str) else files
    _demand(isinstance(files, dict) and set(files) in ({""}, set(_SPLITS)))
    _demand(all(isinstance(name, str) and name for name in files.values()))
    columns = value.get("columns", [])
    named = columns if isinstance(columns, dict) else {}
    columns = [*columns] if named else columns
    _demand(isinstance(columns, list) and all(isinstance(name, str) for name in columns))
    _demand(not columns or "image" in columns)
    _demand(all(columns.count(name) == 1 for name in columns if name))
    _demand(all(isinstance(name, str) and name for name in named.values()))
    plain = {"", "image", "split"}
    if unknown := {name for name in columns if name not in plain and not is_read(name)}:
        raise UserError(
            f"table.columns: unknown {printable(repr(sorted(unknown)[0]))}; expected '', image, "
            f"split, {', '.join(KINDS)}, heads of these, as semantic:materials, or masks, as "
            "valid:depth."
        )
    return Table(files, () if named else tuple(columns), named)


def _true(value: Any) -> bool | None:
    _demand(isinstance(value, bool))
    return value or None


_FIELDS = {
    "class_names": (_strings, "a list of distinct names, one per class"),
    "depth_scale": (_positive, "a positive number, the units of a depth file per metre"),
    "max_depth": (_positive, "a positive number, the farthest metres that are a measurement"),
    "ignore_label": (_integer, "an integer"),
    "intrinsics": (_intrinsics, "fx, fy, cx, cy in pixels, the first two positive"),
    "image_size": (_image_size, "two positive integers, height and width, below 65536"),
    "splits": (_splits, "lists of distinct stems, none of them empty, under 'train' and 'val'"),
    "files": (_files, "an object of patterns, one for 'image' and one for each target"),
    "leave_out": (_left_out, "a list of patterns"),
    "table": (_table, "a text file, or {files: {train: …, val: …}, columns: ['image', …]}"),
    "partly": (_true, "true or false"),
    "stretch": (_true, "true or false"),
}
