"""Samples in parquet files, as the Hub's data sets have them: a row for each, an array [C, H, W] or
[H, W] as nested lists in each column."""

import collections
import dataclasses
import functools
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from talora_jax.errors import UserError, listed, one_line, printable
from talora_jax.tasks.target_files import BadFile

# How the files and folders of each split may be called.
_CALLED = {"train": ("train",), "val": ("val", "validation", "test")}
_DEEPEST = 3  # folders that files may lie in
_KEPT = 2  # parts of a file's column that are held, as samples are read in their order


@dataclasses.dataclass(frozen=True)
class Tables:
    """The parquet files of a data set.

    Attributes:
      root: the folder that they lie in, somewhere.
      files: of each split, in the order of their names.
    """

    root: Path
    files: Mapping[str, tuple[Path, ...]]

    def __str__(self) -> str:
        return str(self.root)

    @functools.cached_property
    def columns(self) -> set[str]:
        """Those that all files have.

        Raises:
          UserError: a file cannot be read.
        """
        every = [file for files in self.files.values() for file in files]
        return set.intersection(*(set(_opened(file).schema_arrow.names) for file in every))

    def cells(self, split: str, columns: Mapping[str, str]) -> list[dict[str, "Cell"]]:
        """The samples of a split, each with the cells of these columns under their names here.

        Raises:
          UserError: a file cannot be read.
        """
        return [
            {name: Cell(file, row, column) for name, column in columns.items()}
            for file in self.files[split]
            for row in range(_opened(file).metadata.num_rows)
        ]


@dataclasses.dataclass(frozen=True)
class Cell:
    """Where one array of one sample is."""

    file: Path
    row: int
    column: str

    def __str__(self) -> str:
        return f"{self.file}, row {self.row}, column {self.column}"

    def read(self) -> np.ndarray:
        """The array, channels last.

        Raises:
          BadFile: it is none, or cannot be read.
        """
        import pyarrow as pa

        first, part = _part_of(self.file, self.row)
        try:
            values = _column(self.file, part, self.column).slice(self.row - first, 1)
        except (pa.ArrowException, OSError) as error:
            raise BadFile(f"cannot be read ({one_line(error)})") from error
        array = _as_array(values)
        channels_first = array.ndim == 3 and array.shape[0] in (1, 3)
        return np.moveaxis(array, 0, -1) if channels_first else array


def find_tables(download: Path) -> Tables | None:
    """The parquet files of a folder; None if it has none.

    Raises:
      UserError: they are not of two splits, or pyarrow is missing.
    """
    if not download.is_dir():
        return None
    found = sorted(
        path
        for depth in range(_DEEPEST + 1)
        for path in download.glob("*/" * depth + "*.parquet")
        if path.is_file() and not path.name.startswith(".")
    )
    if not found:
        return None
    try:
        import pyarrow.parquet  # noqa: F401  an extra: nothing else needs it
    except ImportError:
        raise UserError(
            f"{download} holds parquet files, to read which pyarrow must be installed: pip install "
            "'talora_jax[parquet]'."
        ) from None
    files: dict[str, list[Path]] = collections.defaultdict(list)
    for path in found:
        for split, names in _CALLED.items():
            if path.parent.name in names or path.name.startswith(
                tuple(f"{name}{mark}" for name in names for mark in "-_.")
            ):
                files[split].append(path)
    for split, names in _CALLED.items():
        if not files[split]:
            some = listed([path.name for path in found], 100)
            raise UserError(
                f"{download} holds the parquet files {some}, and none of {split!r}; expected names "
                f"that begin with {' or '.join(names)}, as {names[0]}-00000-of-00008.parquet."
            )
    _whole(files)
    return Tables(download, {split: tuple(files[split]) for split in _CALLED})


def _whole(files: Mapping[str, Sequence[Path]]) -> None:
    """Refuses files of which some are missing, as their names tell: '-00000-of-00008'."""
    for paths in files.values():
        numbers = [path.name.partition("-of-")[2][:5] for path in paths]
        if all(number.isdecimal() for number in numbers) and len({*numbers}) == 1:
            expected = int(numbers[0])
            if len(paths) != expected:
                raise UserError(
                    f"{printable(paths[0].parent)} has {len(paths)} of the {expected} files that "
                    f"{printable(paths[0].name)} is one of; expected them all."
                )


# Files are opened once, and a few of their parts kept.
_LOCK = threading.Lock()
_parts: collections.OrderedDict[tuple[Path, int, str], Any] = collections.OrderedDict()


@functools.lru_cache(maxsize=64)
def _opened_at(file: Path, changed: int) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    del changed  # of the file: another one under its name is opened anew
    try:
        return pq.ParquetFile(file, memory_map=True)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{printable(file)} cannot be read as parquet ({one_line(error)}); load it down again."
        ) from None


def _opened(file: Path) -> Any:
    return _opened_at(file, file.stat().st_mtime_ns)


def _part_of(file: Path, row: int) -> tuple[int, int]:
    """The first row and the number of the part of a file that a row is in."""
    metadata, first = _opened(file).metadata, 0
    for part in range(metadata.num_row_groups):
        rows = metadata.row_group(part).num_rows
        if row < first + rows:
            return first, part
        first += rows
    raise BadFile(f"has {first} rows")


def _column(file: Path, part: int, column: str) -> Any:
    key = (file, part, column)
    with _LOCK:
        if key not in _parts:
            table = _opened(file).read_row_group(part, columns=[column])
            _parts[key] = table.column(column).combine_chunks()
            mine = [other for other in _parts if other[2] == column]
            for old in mine[:-_KEPT]:
                del _parts[old]
        return _parts[key]


def _as_array(values: Any) -> np.ndarray:
    """The array that a column of one row holds."""
    import pyarrow as pa

    shape = []
    while True:
        if isinstance(values, pa.ExtensionArray):
            values = values.storage
        if values.null_count:
            raise BadFile("nothing, expected an array")
        kind = values.type
        if not (
            pa.types.is_list(kind)
            or pa.types.is_large_list(kind)
            or pa.types.is_fixed_size_list(kind)
        ):
            break
        lengths = np.unique(values.value_lengths().to_numpy(zero_copy_only=False))
        if len(lengths) != 1 or not lengths[0]:
            raise BadFile("lists of several lengths, expected an array")
        shape.append(int(lengths[0]))
        values = values.flatten()
    if not shape or not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
        raise BadFile(f"{kind}, expected nested lists of numbers")
    return values.to_numpy(zero_copy_only=False).reshape(shape)
