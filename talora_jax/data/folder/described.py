"""The samples of a directory whose `dataset.json` says where its files are: by patterns, or by
tables that name the files of each sample."""

import csv
import errno
import io
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from talora_jax.data.folder.decode import suffixes
from talora_jax.data.folder.listing import Listing, composed, files_below, problem_of
from talora_jax.data.folder.patterns import Key, Pattern, compile_pattern
from talora_jax.data.folder.readings import is_read
from talora_jax.data.folder.settings import Settings, Table
from talora_jax.data.folder.streams import SPLIT_WORDS
from talora_jax.data.folder.validity import is_mask
from talora_jax.data.records import SampleFiles
from talora_jax.errors import UserError, printable, some
from talora_jax.task_names import is_head

_NAMED = 5  # names in a sentence
SPLITS = ("train", "val")


def list_described(root: Path, settings: Settings) -> Listing:
    """Lists the samples of `root` as `settings.files` or `settings.table` says.

    The samples of a split that the layout tells are called after it, as 'train/0001'.

    Raises:
      UserError: there is no image, a table cannot be read, or names are no files below `root`.
    """
    return _by_table(root, settings) if settings.table else _by_patterns(root, settings)


def _by_patterns(root: Path, settings: Settings) -> Listing:
    known = suffixes(settings, filter(is_head, settings.files))
    order = [name for name in known if name in settings.files]
    walked: dict[Path, list[tuple[str, Path]]] = {}
    problems: dict[str, list[str]] = {name: [] for name in order}
    samples: dict[str, SampleFiles] = {}
    splits: dict[str, list[str]] = {}
    for split in settings.files["image"]:
        found = {}
        for name in order:
            patterns = settings.files[name]
            text = patterns.get(split, patterns.get(""))
            found[name] = compile_pattern(text, f"files.{name}")
        # What a target's pattern fits is no image, as '{stem}_mask.png' beside '{stem}.png'.
        taken: set[Path] = set()
        for text in settings.leave_out:
            pattern = compile_pattern(text, "leave_out")
            if (folder := root / pattern.folder).is_dir():
                found_there = [path for path, _ in files_below(folder)]
                taken |= {path for path in found_there if pattern.match(_relative(root, path))}
        files: dict[str, dict[Key, Path]] = {}
        for name in [*(name for name in order if name != "image"), "image"]:
            # One mask may be of several targets.
            others = set() if is_mask(name) else taken
            files[name] = _matched(root, name, found[name], known[name], walked, problems, others)
            taken |= set(files[name].values())
        for stem, sample in _paired(root, split, found, files, problems).items():
            samples[stem] = sample
            splits.setdefault(split, []).append(stem)
    if not samples:
        wanted = ", ".join(repr(text) for text in settings.files["image"].values())
        why = f": {problems['image'][0]}" if problems["image"] else ""
        raise UserError(f"{root} has no image that fits {printable(wanted)}{why}.")
    if lacking := [split for split in SPLITS if split not in splits and "" not in splits]:
        text = settings.files["image"][lacking[0]]
        raise UserError(
            f"{root} has no image of {lacking[0]!r}: {printable(repr(text))} fits none."
        )
    return Listing(
        folders=tuple(order),
        others=(),
        samples=dict(sorted(samples.items())),
        problems_of={name: tuple(lines) for name, lines in problems.items()},
        splits=None if "" in splits else {name: tuple(splits[name]) for name in SPLITS},
    )


def _matched(
    root: Path,
    name: str,
    pattern: Pattern,
    known: Collection[str],
    walked: dict[Path, list[tuple[str, Path]]],
    problems: dict[str, list[str]],
    taken: set[Path],
) -> dict[Key, Path]:
    """The files that fit a pattern, by what tells their samples; each is fit to be read."""
    folder = root / pattern.folder
    if folder not in walked:
        walked[folder] = []
        if folder.is_dir():
            for path, problem in files_below(folder):
                if problem:
                    problems[name].append(f"{printable(path.relative_to(root))}: {problem}")
                else:
                    walked[folder].append((_relative(root, path), path))
        else:
            problems[name].append(f"{printable(pattern.folder)}/: no folder, expected one")
    files: dict[Key, Path] = {}
    for relative, path in walked[folder]:
        key = pattern.match(relative)
        if key is None or path in taken:
            continue
        if problem := problem_of(path, known):
            # A pattern that ends in .* fits all that lies there.
            if not pattern.text.endswith("*"):
                problems[name].append(f"{printable(relative)}: {problem}")
            continue
        if key in files:
            problems[name].append(
                f"{printable(relative)}: {printable(files[key].name)} fits "
                f"{printable(pattern.text)} as well and is of the same sample; expected one"
            )
        files.setdefault(key, path)
    return files


def _paired(
    root: Path,
    split: str,
    patterns: Mapping[str, Pattern],
    files: Mapping[str, Mapping[Key, Path]],
    problems: dict[str, list[str]],
) -> dict[str, SampleFiles]:
    """The samples of a split, each with the files that agree with its image."""
    names = patterns["image"].names
    of_target, shared = {}, {}
    for name, pattern in patterns.items():
        shared[name] = tuple(each for each in names if each in pattern.names)
        if not shared[name]:
            raise UserError(
                f"files.{name} ({printable(pattern.text)}) has no name in common with files.image "
                f"({printable(patterns['image'].text)}); expected {{stem}} in both."
            )
        if name != "image":
            of_target[name] = _by_shared(root, name, shared[name], files[name], problems)
    samples: dict[str, SampleFiles] = {}
    used: dict[Path, Path] = {}
    for key, image in files["image"].items():
        values = dict(key)
        stem = "/".join(value for value in (split, *values.values()) if value)
        found = {"image": image}
        for name, by_key in of_target.items():
            path = by_key.get(tuple(values[each] for each in shared[name]))
            if path is None:
                continue
            if used.get(path, image) != image:
                problems[name].append(
                    f"{printable(path.relative_to(root))}: fits {printable(used[path].name)} and "
                    f"{printable(image.name)}, expected a file for each image"
                )
            used[path] = image
            found[name] = path
        if stem in samples:
            problems["image"].append(
                f"{printable(image.relative_to(root))}: called {printable(stem)} as another one; "
                "expected names in braces that tell them apart"
            )
        samples.setdefault(stem, SampleFiles(stem, found))
    return samples


def _by_shared(
    root: Path,
    name: str,
    shared: Sequence[str],
    files: Mapping[Key, Path],
    problems: dict[str, list[str]],
) -> dict[tuple[str, ...], Path]:
    by_key: dict[tuple[str, ...], Path] = {}
    for key, path in files.items():
        values = dict(key)
        part = tuple(values[each] for each in shared)
        if part in by_key:
            problems[name].append(
                f"{printable(path.relative_to(root))}: {printable(by_key[part].name)} is of the "
                "same image; expected one"
            )
        by_key.setdefault(part, path)
    return by_key


# By tables.


def _by_table(root: Path, settings: Settings) -> Listing:
    known: dict[str, Collection[str]] = {}
    table = settings.table
    problems: dict[str, list[str]] = {}
    samples: dict[str, SampleFiles] = {}
    splits: dict[str, list[str]] = {}
    columns: tuple[str, ...] = ()
    for split, file in table.files.items():
        columns, rows = rows_of(root / file, table)
        known = suffixes(settings, filter(is_head, columns))
        for number, row in rows:
            files, where = {}, f"{file}, line {number}"
            of_split = split
            for column, name in zip(columns, row, strict=False):
                if column == "split":
                    of_split = _split_of(name, where)
                elif column and name:
                    files[column] = _file(root, name, where)
            if of_split is None:
                continue
            if "image" not in files:
                raise UserError(f"{printable(where)}: no image, expected one.")
            image = _relative(root, files["image"])
            stem = "/".join(part for part in (of_split, os.path.splitext(image)[0]) if part)
            for name, path in tuple(files.items()):
                if problem := problem_of(path, known[name]):
                    del files[name]
                    line = f"{printable(path.relative_to(root))}: {problem} ({printable(where)})"
                    problems.setdefault(name, []).append(line)
            if "image" not in files:
                continue
            if stem in samples:
                raise UserError(f"{printable(where)} names the image {printable(image)} again.")
            samples[stem] = SampleFiles(stem, files)
            splits.setdefault(of_split, []).append(stem)
    if not samples:
        raise UserError(
            f"{root}: the table of its files names none; expected a line for each image."
        )
    if "" in splits and len(splits) > 1:
        raise UserError(f"{root}: the table of its files says of some samples alone which split.")
    if "" not in splits and (lacking := [split for split in SPLITS if split not in splits]):
        raise UserError(f"{root}: the table of its files has no sample of {lacking[0]!r}.")
    return Listing(
        folders=tuple(name for name in known if name in columns),
        others=(),
        samples=dict(sorted(samples.items())),
        problems_of={name: tuple(lines) for name, lines in problems.items()},
        splits=None if "" in splits else {name: tuple(splits[name]) for name in SPLITS},
    )


def rows_of(path: Path, table: Table) -> tuple[tuple[str, ...], list[tuple[int, list[str]]]]:
    """The columns of a table, '' for one that is passed over, and its lines with their numbers.

    Raises:
      UserError: it cannot be read, or has not the columns that are expected.
    """
    try:
        if not path.is_file():  # Reading a pipe would wait for ever.
            raise FileNotFoundError(errno.ENOENT, "there is no such file")
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise UserError(f"{printable(path)} cannot be read as a table ({reason}).") from None
    lines = text.splitlines()
    first = next((line for line in lines if line.strip()), "")
    between = next((mark for mark in (",", ";", "\t") if mark in first), " ")
    try:
        reader = csv.reader(io.StringIO(text), delimiter=between, skipinitialspace=True)
        rows = [
            (reader.line_num, [field.strip() for field in row])
            for row in reader
            if any(field.strip() for field in row)
        ]
    except csv.Error as error:
        raise UserError(f"{printable(path)} cannot be read as a table ({error}).") from None
    if table.columns:
        columns = table.columns
    else:
        columns = _titles(path, (rows or [(1, [])])[0][1], table.named)
        rows = rows[1:]
    for number, row in rows:
        if len(row) < len([name for name in columns if name]):
            raise UserError(
                f"{printable(path)}, line {number}: {len(row)} fields, expected {len(columns)}."
            )
    return columns, rows


def _titles(path: Path, row: Sequence[str], named: Mapping[str, str]) -> tuple[str, ...]:
    """The columns that a table's first line tells."""
    if lacking := [title for title in named.values() if title not in row]:
        raise UserError(
            f"{printable(path)}: its first line has no {printable(repr(lacking[0]))}, which "
            f"table.columns names; it has {some(row, 12)}."
        )
    if named:
        target = {title: name for name, title in reversed(named.items())}
        return tuple(
            target[x] if x in target and row.index(x) == i else "" for i, x in enumerate(row)
        )
    known = {*suffixes(None), "split"}
    columns = tuple(x if x in known or is_read(x) else "" for x in row)
    if "image" not in columns:
        raise UserError(
            f"{printable(path)}: its first line names no column 'image'; expected the names of "
            f"targets there, or in table.columns ({some(sorted(known), 12)}), as "
            f'{{"image": "{printable((row or ["path"])[0])}"}}.'
        )
    return columns


def _split_of(name: str, where: str) -> str | None:
    split = SPLIT_WORDS.get(name.lower(), name)
    if split in SPLITS:
        return split
    if split in ("test", ""):
        return None
    raise UserError(
        f"{printable(where)}: split {printable(repr(name))}; expected 'train', 'val', or 'test', "
        "which is passed over."
    )


def _file(root: Path, name: str, where: str) -> Path:
    path = below(root, name)
    if path is None:
        raise UserError(
            f"{printable(where)}: {printable(name)} does not lie below {root}; expected paths from "
            "there."
        )
    return root / path


def below(root: Path, name: str) -> Path | None:
    """The file that a table names, from `root`; None if it lies elsewhere. A slash before a path
    from `root`, as lists of PASCAL VOC have it, is read over."""
    path = Path(os.path.normpath(name.replace("\\", "/")))
    for place in (root.absolute(), root.resolve()):
        if path.is_relative_to(place):
            path = path.relative_to(place)
    if path.is_absolute() and (root / path.relative_to(path.anchor)).exists():
        path = path.relative_to(path.anchor)
    return None if path.is_absolute() or ".." in path.parts else path


def _relative(root: Path, path: Path) -> str:
    return composed(path.relative_to(root).as_posix())
