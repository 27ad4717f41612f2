"""Guesses which text files name the files of each sample: the `table` of a `dataset.json`."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from talora_jax.data.folder.described import below, rows_of
from talora_jax.data.folder.settings import Table
from talora_jax.data.folder.streams import (
    SOME_ALIKE,
    SPLIT_WORDS,
    alike,
    split_of_name,
    spread,
)
from talora_jax.data.folder.validity import masked_by
from talora_jax.errors import UserError

_SUFFIXES = (".csv", ".tsv", ".txt", ".lst")
_MOST_BYTES = 50_000_000
_LOOKED_AT = 50  # lines of each


@dataclasses.dataclass(frozen=True)
class TableGuess:
    """What was found.

    Attributes:
      table: as `dataset.json` has it.
      splits: whether it tells train from val.
      files: of each target, by the image's.
    """

    table: Mapping[str, Any]
    splits: bool
    files: Mapping[str, Mapping[str, str]]


@dataclasses.dataclass(frozen=True)
class _Found:
    """One text file.

    Attributes:
      columns: 'image', 'split', a target, or '' for each.
      titles: its first line, where that names no files.
      splits: what its column 'split' says.
      files: as of `TableGuess`.
    """

    columns: tuple[str, ...]
    titles: tuple[str, ...]
    splits: Collection[str]
    files: Mapping[str, Mapping[str, str]]


def guess_table(
    root: Path, paths: Sequence[str], role_of: Callable[[str], str | None]
) -> TableGuess | None:
    """The table that names most images; None if there is none.

    Args:
      paths: of all files below `root`.
      role_of: 'image', the target that a file can be, or None.
    """
    known = set(paths)
    found: dict[str, _Found] = {}
    for group in alike(paths, _SUFFIXES):
        some = spread(group, SOME_ALIKE)
        tables = {path: one for path in some if (one := _read(root, path, known, role_of))}
        if tables:
            others = [path for path in group if path not in some]
            tables |= {path: one for path in others if (one := _read(root, path, known, role_of))}
        found |= tables
    found = {path: found[path] for path in paths if path in found}
    guesses = []
    for path, one in found.items():
        columns = _columns(one)
        guesses.append(TableGuess({"files": path, **columns}, bool(one.splits), one.files))
        if split_of_name(path) == "train":
            for other in ("val", "test"):
                beside = [
                    x
                    for x in found
                    if Path(x).parent == Path(path).parent
                    and split_of_name(x) == other
                    and _columns(found[x]) == columns
                ]
                if beside:
                    files = {
                        name: {**of, **found[beside[0]].files[name]}
                        for name, of in one.files.items()
                    }
                    of_splits = {"train": path, "val": beside[0]}
                    guesses.append(TableGuess({"files": of_splits, **columns}, True, files))
                    break
    return max(guesses, key=lambda x: (x.splits, max(map(len, x.files.values()))), default=None)


def _read(
    root: Path, path: str, known: Collection[str], role_of: Callable[[str], str | None]
) -> _Found | None:
    """What the columns of a text file are; None if it names no images with their targets."""
    if (root / path).stat().st_size > _MOST_BYTES:
        return None
    try:
        _, lines = rows_of(root / path, Table({}, ("image",)))
    except UserError:
        return None
    rows = [row for _, row in lines]

    def named(value: str) -> str | None:
        place = value and below(root, value)
        return place.as_posix() if place and place.as_posix() in known else None

    titles: tuple[str, ...] = ()
    if rows and not any(map(named, rows[0])):
        titles, rows = tuple(rows[0]), rows[1:]
    if len(set(titles)) < len(titles):  # nothing to name columns by
        return None
    width = min(map(len, rows), default=0)
    some = spread(rows, _LOOKED_AT)
    columns = []
    for number in range(width):
        values = [row[number] for row in some]
        role = role_of(named(values[0])) if all(map(named, values)) else None
        if {value.lower() for value in values} <= {*SPLIT_WORDS, ""}:
            role = "split"
        columns.append(role if role and role not in columns else "")
    columns = [name if masked_by(name) in columns else "" for name in columns]
    targets = [name for name in columns if name not in ("", "image", "split")]
    if "image" not in columns or not targets:
        return None
    splits: set[str] = set()
    if "split" in columns:
        said = {row[columns.index("split")].lower() for row in rows}
        splits = {SPLIT_WORDS[value] for value in said if value in SPLIT_WORDS}
        if not {"train", "val"} <= splits:
            columns[columns.index("split")], splits = "", set()
    image = columns.index("image")
    files = {
        name: {named(row[image]): named(row[columns.index(name)]) for row in some}
        for name in targets
    }
    return _Found(tuple(columns), titles[:width], splits, files)


def _columns(found: _Found) -> dict[str, Any]:
    """The columns as a `table` says them; nothing where the first line does."""
    if found.titles == found.columns:
        return {}
    if found.titles:
        pairs = zip(found.columns, found.titles, strict=True)
        return {"columns": {name: title for name, title in pairs if name}}
    return {"columns": list(found.columns)}
