"""What a run remembers of its data, so that it does not go on with other data unawares.

`data.json` in its workdir holds what `Dataset.contents` says: a digest of every file, by its split,
and the settings that the samples depend on. What classes are called is in the checkpoints, of every
data set, and checked there (`talora_jax.training.workdir.check_same`).
"""

import collections
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from talora_jax import storage
from talora_jax.data.dataset import Dataset
from talora_jax.errors import UserError, one_line, printable
from talora_jax.files import distinct, write_atomically

FILE_NAME = "data.json"
SETTINGS = "settings"
PARTS = "parts"  # among the settings, the names of the data sets that are mixed
_CLASS_NAMES = "class_names"  # among the settings that earlier versions remembered
_NAMED = 3  # files of one kind of change in a sentence


def remember(dataset: Dataset, workdir: Path, *, resumes: bool, write: bool) -> None:
    """Writes what the data holds into a workdir; a run that resumes must find it as it was.

    Runs of before there was this file take the data as it is now.

    Raises:
      UserError: names what has changed.
    """
    changed = changes(dataset, workdir) if resumes else []
    if changed:
        raise UserError(
            f"the data of the run in {workdir} has changed: {'; '.join(changed)}. Put it back, or "
            "choose another --workdir to train on the data as it is now."
        )
    if write and dataset.contents and not (resumes and (workdir / FILE_NAME).exists()):
        content = json.dumps(dataset.contents, indent=1, ensure_ascii=False)
        write_atomically(workdir / FILE_NAME, content.encode())


def tell(dataset: Dataset, workdir: Path, print_line: Callable[[str], None]) -> None:
    """Says how the data differs from what the run in a workdir was trained on.

    Raises:
      UserError: as of `changes`.
    """
    if changed := changes(dataset, workdir):
        print_line(f"note: this data is not what the run was trained on: {'; '.join(changed)}")


def changes(dataset: Dataset, workdir: Path) -> list[str]:
    """How the data differs from what the run in a workdir remembers, in a few words each.

    Raises:
      UserError: the file cannot be read.
    """
    before = remembered(workdir)
    if before is None:
        return []
    now = json.loads(json.dumps(dataset.contents))
    return [*_settings(before, now), *_files(before, now, dataset.unread)]


def remembered(workdir: Path) -> dict[str, dict[str, Any]] | None:
    """The `Dataset.contents` that a run in a workdir remembers; None if it remembers none.

    Raises:
      UserError: the file cannot be read.
    """
    path = workdir / FILE_NAME
    try:
        text = storage.text_of(path)
        if text is None:
            return None
        before = json.loads(text, object_pairs_hook=distinct)
        if not (isinstance(before, dict) and all(isinstance(v, dict) for v in before.values())):
            raise ValueError("expected objects in an object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read ({one_line(error)}), and with it what data the run had: put it "
            "back, or remove it if the data is the same."
        ) from None
    return before


def by_file(contents: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The split and the digest of each file."""
    return {
        file: (split, digest)
        for split, files in contents.items()
        if split != SETTINGS
        for file, digest in files.items()
    }


def _settings(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    was, is_now = before.get(SETTINGS, {}), now.get(SETTINGS, {})
    return [
        f"{printable(name, 60)} was {_shown(was.get(name))} and is now {_shown(is_now.get(name))}"
        for name in sorted({*was, *is_now} - {_CLASS_NAMES})
        if was.get(name) != is_now.get(name)
    ]


def _files(before: Mapping[str, Any], now: Mapping[str, Any], unread: tuple[str, ...]) -> list[str]:
    was, is_now = by_file(before), by_file(now)
    was = {file: found for file, found in was.items() if not file.startswith(unread)}
    found: dict[str, list[str]] = collections.defaultdict(list)
    for file in sorted({*was, *is_now}):
        if file not in is_now:
            found["gone"].append(file)
        elif file not in was:
            found["new"].append(file)
        else:
            (split, digest), (new_split, new_digest) = was[file], is_now[file]
            if digest != new_digest:
                found["changed"].append(file)
            if split != new_split:
                found[f"moved from {printable(split, 60)} to {printable(new_split, 60)}"].append(
                    file
                )
    return [f"{len(files)} files {how} ({_some(files)})" for how, files in found.items()]


def _shown(value: Any) -> str:
    return printable(json.dumps(value, ensure_ascii=False), 80)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(printable(name, 60) for name in names[:_NAMED])
    return shown + (", …" if len(names) > _NAMED else "")
