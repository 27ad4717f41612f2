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

All fields are optional. `config.data` may carry `class_names`, `depth_scale`, `max_depth`,
`ignore_label`, `intrinsics` as (fx, fy, cx, cy) and `image_size`; one that is not None or empty is
taken in place of `dataset.json`'s.
"""

import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections

from talora_jax.errors import UserError, one_line, printable
from talora_jax.files import distinct


@dataclasses.dataclass(frozen=True)
class Intrinsics:
    """Focal lengths and principal point of a pinhole camera, in pixels."""

    fx: float
    fy: float
    cx: float
    cy: float


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


def read_settings(root: Path | None, data: ml_collections.ConfigDict) -> Settings:
    """Merges `root/dataset.json`, if there is one, with `config.data`, which takes precedence.

    Without a root, `config.data` speaks alone.

    Raises:
      UserError: a field is unknown or its value is not what it should be.
    """
    path = root and root / "dataset.json"
    fields = [field.name for field in dataclasses.fields(Settings)]
    values = {}
    if path and _there_is(path):
        for name, value in _read_json(path).items():
            if name not in fields:
                raise UserError(
                    f"{path}: unknown field {printable(repr(name))}; the fields are "
                    f"{', '.join(fields)}."
                )
            values[name] = _parse(name, value, f"{path}: {name}")
    for name in fields:
        value = data.get(name)
        if name != "splits" and value not in (None, ()):
            values[name] = _parse(name, value, f"config.data.{name}")
    return Settings(**values)


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


def _splits(value: Any) -> dict[str, tuple[str, ...]]:
    _demand(isinstance(value, dict) and set(value) == {"train", "val"})
    return {name: _strings(value[name]) for name in ("train", "val")}


_FIELDS = {
    "class_names": (_strings, "a list of distinct names, one per class"),
    "depth_scale": (_positive, "a positive number, the units of a depth file per metre"),
    "max_depth": (_positive, "a positive number, the farthest metres that are a measurement"),
    "ignore_label": (_integer, "an integer"),
    "intrinsics": (_intrinsics, "fx, fy, cx, cy in pixels, the first two positive"),
    "image_size": (_image_size, "two positive integers, height and width, below 65536"),
    "splits": (_splits, "lists of distinct stems, none of them empty, under 'train' and 'val'"),
}
