"""Several data sets in one run, each with its tasks and how often it is drawn, as a JSON file says:

    {
      "parts": {
        "city": {"path": "cityscapes", "description": "cityscapes", "image_size": [256, 512],
                 "tasks": ["semantic"], "weight": 2},
        "flat": {"name": "nyuv2_mtan", "path": "nyuv2", "tasks": ["depth", "normals"]}
      }
    }

`config.data.path` names the file. A part has the fields of `config.data` that its data set reads,
but `dir`, which is everyone's; `name` is `folder` unless it says otherwise, and paths are from the
file's folder. `tasks` are the targets that it gives, of which a run takes those that it learns; a
part that has none of them is left out. `weight` is 1 unless it says otherwise, and
`config.data.part_weights` stands for all of them, in their order.

Training draws from the parts in turn, in a pattern that keeps their shares at every moment to the
sample, and of each in an order that is new in every epoch of its own. Validation is over all
samples of all parts. What a part does not give is unlabelled in its samples. Samples of another
size than `config.data.image_size` are stretched to it; where that is None, all parts must have one.
"""

import contextlib
import dataclasses
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_collections

from talora_jax.data.dataset import Dataset, check_tasks
from talora_jax.data.memory import PARTS, SETTINGS
from talora_jax.data.mixed import Mixed
from talora_jax.errors import UserError, one_line, printable, short, some
from talora_jax.files import distinct
from talora_jax.task_names import is_name, kind_of
from talora_jax.tasks import TARGETS

# What a part has beside fields of `config.data`.
_OWN = ("tasks", "weight")
_NOT_OF_PARTS = ("dir", "part_weights")
_PLACES = ("path", "description")
_NAMED = 4  # classes in a sentence
# What JSON has of a field, and what that is called; text of all others.
_KINDS = {
    "class_names": (list, "a list"),
    "depth_scale": (int | float, "a number"),
    "ignore_label": (int, "a whole number"),
    "image_size": (list, "a list"),
    "intrinsics": (list, "a list"),
    "max_depth": (int | float, "a number"),
    "partly": (bool, "true or false"),
    "seed": (int, "a whole number"),
    "train_frames": (int, "a whole number"),
    "val_fraction": (int | float, "a number"),
    "val_frames": (int, "a whole number"),
}


@dataclasses.dataclass(frozen=True, eq=False)
class _Part:
    """One data set of the mix.

    Attributes:
      data: a `config.data` of its own.
      stated: the fields that the file states and its samples depend on, for JSON.
    """

    name: str
    data: ml_collections.ConfigDict
    tasks: tuple[str, ...]
    weight: float
    stated: Mapping[str, Any]


def open_mix(data: ml_collections.ConfigDict, tasks: Sequence[str]) -> Dataset:
    """Opens the parts of a mix that have one of the tasks.

    Args:
      data: `config.data`, of which are read `path`, `dir`, `image_size` and `part_weights`.
      tasks: targets wanted.

    Raises:
      UserError: the file or one of the parts is not as it should be, their classes differ, or there
        is no one size.
    """
    from talora_jax.data import open_dataset

    parts = _parts(data)
    order = [*TARGETS]
    available = tuple(
        sorted(
            {name for part in parts for name in part.tasks},
            key=lambda name: (order.index(kind_of(name)), name),
        )
    )
    check_tasks(data.name, available, tasks)
    opened: dict[_Part, Dataset] = {}
    for part in parts:
        if wanted := [name for name in tasks if name in part.tasks]:
            with _named(data, part.name):
                opened[part] = open_dataset(part.data, wanted)
    splits = {
        split: Mixed(
            [dataset.splits[split] for dataset in opened.values()],
            [part.weight for part in opened],
            tasks,
        )
        for split in ("train", "val")
    }
    class_names = {
        task: _class_names(
            data, task, {p.name: d.classes(task) for p, d in opened.items() if task in p.tasks}
        )
        for task in tasks
        if kind_of(task) == "semantic"
    }
    return Dataset(
        name=data.name,
        tasks=available,
        class_names=class_names.pop("semantic", ()),
        head_classes=class_names,
        image_size=_image_size(data, {p.name: d.image_size for p, d in opened.items()}),
        splits=splits,
        contents=_contents(opened, tasks),
        having={
            split: having
            for split, mixed in splits.items()
            if (having := _having(split, mixed, opened, tasks))
        },
        parts=_told(opened, tasks),
        unread=tuple(f"{part.name}/{name}" for part, d in opened.items() for name in d.unread),
    )


def class_names(data: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Those of `semantic`, where all parts that have it state them; else none.

    Raises:
      UserError: as `open_mix`.
    """
    from talora_jax.data import class_names as names_of

    if not data.path:
        return ()
    found = {}
    for part in _parts(data):
        if "semantic" in part.tasks:
            with _named(data, part.name):
                found[part.name] = names_of(part.data, ())
    return _class_names(data, "semantic", found) if found and all(found.values()) else ()


def _class_names(
    data: ml_collections.ConfigDict, task: str, found: Mapping[str, tuple[str, ...]]
) -> tuple[str, ...]:
    (first, names), *others = found.items()
    for other, theirs in others:
        if theirs != names:
            raise UserError(
                f"{data.path}: {task} has {len(names)} classes in {first} "
                f"({some(names, _NAMED)}) and {len(theirs)} in {other} "
                f"({some(theirs, _NAMED)}); expected the same in all parts, by class_names "
                f"or ids of their description, or {task} in the tasks of one."
            )
    return names


def _is_target(name: Any) -> bool:
    return isinstance(name, str) and is_name(name, TARGETS)


def _image_size(
    data: ml_collections.ConfigDict, found: Mapping[str, tuple[int, int]]
) -> tuple[int, int]:
    if data.image_size:
        return tuple(data.image_size)
    if len(set(found.values())) > 1:
        told = ", ".join(f"{h}×{w} in {name}" for name, (h, w) in found.items())
        raise UserError(
            f"{data.path}: images are {told} (H×W): "
            "--config.data.image_size='(height, width)' names the one that all are stretched to."
        )
    return next(iter(found.values()))


def _contents(opened: Mapping[_Part, Dataset], tasks: Sequence[str]) -> dict[str, dict[str, Any]]:
    """`Dataset.contents` of all parts, each file and setting after its part's name."""
    settings: dict[str, Any] = {PARTS: [part.name for part in opened]}
    contents: dict[str, dict[str, Any]] = {}
    for part, dataset in opened.items():
        wanted = [name for name in tasks if name in part.tasks]
        own = {**part.stated, "tasks": wanted, "weight": part.weight}
        own |= dataset.contents.get(SETTINGS, {})
        settings |= {f"{part.name}/{name}": value for name, value in own.items()}
        for split, files in dataset.contents.items():
            if split != SETTINGS:
                named = {f"{part.name}/{file}": digest for file, digest in files.items()}
                contents[split] = contents.get(split, {}) | named
    return {SETTINGS: settings, **contents}


def _having(
    split: str, mixed: Mixed, opened: Mapping[_Part, Dataset], tasks: Sequence[str]
) -> dict[str, list[int]]:
    having = {}
    for name in tasks:
        of_part = [
            {*dataset.with_target(split, name)} if name in part.tasks else set()
            for part, dataset in opened.items()
        ]
        found = [i for i, (part, index) in enumerate(mixed.order) if index in of_part[part]]
        if len(found) < len(mixed):
            having[name] = found
    return having


def _told(opened: Mapping[_Part, Dataset], tasks: Sequence[str]) -> tuple[str, ...]:
    total = sum(part.weight for part in opened)
    return tuple(
        f"{part.name}: {', '.join(name for name in tasks if name in part.tasks)}; "
        f"{len(dataset.splits['train'])} training and {len(dataset.splits['val'])} validation "
        f"images, {part.weight / total:.0%} of what is drawn"
        for part, dataset in opened.items()
    )


# The file.


@contextlib.contextmanager
def _named(data: ml_collections.ConfigDict, part: str) -> Iterator[None]:
    """Puts the name of a part before what is wrong with it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{data.path}, part {part!r}: {error}") from None


def _parts(data: ml_collections.ConfigDict) -> list[_Part]:
    """The parts in the order of the file.

    Raises:
      UserError: it cannot be read, or a field is not what it should be.
    """
    if not data.path:
        raise UserError(
            "config.data.path is empty; expected the JSON file that names the parts of the mix."
        )
    path = Path(os.path.expanduser(data.path))
    content = _read(path)
    parts = content.get("parts")
    if set(content) != {"parts"} or not isinstance(parts, dict) or not parts:
        raise UserError(
            f'{path}: expected {{"parts": {{"NAME": {{"path": …, "tasks": […]}}, …}}}} and nothing '
            "beside."
        )
    weights = data.get("part_weights") or [None] * len(parts)
    if len(weights) != len(parts):
        raise UserError(
            f"config.data.part_weights is {tuple(weights)}, expected one for each of the parts "
            f"{printable(', '.join(parts))}"
        )
    found = []
    for (name, fields), weight in zip(parts.items(), weights, strict=True):
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
            raise UserError(
                f"{path}: a part is called {printable(repr(name))}; expected letters, digits, -, _."
            )
        with _named(data, name):
            found.append(_part(name, fields, weight, data, path.parent))
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():  # Reading a pipe would wait for ever.
            raise ValueError("there is no such file")
        content = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=distinct)
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"config.data.path: {path} cannot be read: {one_line(error)}.") from None
    return content if isinstance(content, dict) else {}


def _part(
    name: str, fields: Any, weight: float | None, mix: ml_collections.ConfigDict, base: Path
) -> _Part:
    from talora_jax.data import fields_read

    if not isinstance(fields, dict):
        raise UserError(f"it is {short(fields, 60)}, expected an object of fields.")
    data = mix.copy_and_resolve_references()
    data.update(name="folder", path=None, part_weights=None, image_size=None)
    stated = {field: value for field, value in fields.items() if field not in _OWN}
    of = stated.get("name", "folder")
    if of == mix.name or not isinstance(of, str):
        raise UserError(f"name is {printable(repr(of))}, expected another data set than a mix.")
    known = [field for field in fields_read(of) if field not in _NOT_OF_PARTS]
    for field, value in stated.items():
        if field not in known:
            raise UserError(
                f"unknown field {printable(repr(field))}; those of {of} are "
                f"{', '.join((*known, *_OWN))}."
            )
        kinds, expected = _KINDS.get(field, (str, "text"))
        if not isinstance(value, kinds) or (isinstance(value, bool) and kinds is not bool):
            raise UserError(f"{field} is {printable(short(value, 60))}, expected {expected}.")
        data[field] = tuple(value) if isinstance(value, list) else value
    for field in _PLACES:
        beside = data[field] and base / os.path.expanduser(data[field])
        # A description may be one that comes along.
        if beside and (field == "path" or beside.exists()):
            data[field] = str(beside)
    weight = fields.get("weight", 1) if weight is None else weight
    is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
    if not is_number or not 0 < weight < math.inf:
        raise UserError(f"weight is {printable(short(weight, 60))}, expected a number above 0.")
    tasks = fields.get("tasks")
    if not isinstance(tasks, list) or not tasks or not all(map(_is_target, tasks)):
        raise UserError(
            f"tasks is {printable(short(tasks, 60))}, expected a list of targets that it gives, of "
            f"{', '.join(TARGETS)}, or heads of these, as semantic:materials."
        )
    return _Part(
        name,
        data,
        tuple(tasks),
        float(weight),
        {field: value for field, value in stated.items() if field not in _PLACES},
    )
