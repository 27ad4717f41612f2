"""Files and folders that are written whole or not at all, whether they can be, and JSON that says a
thing once."""

import contextlib
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from talora_jax import signals, storage
from talora_jax.errors import UserError, printable

_NAME = 50  # characters of a file's name, so that the temporary one is not too long
_TEMPORARY = re.compile(r"\..*\.partial-[0-9a-f]{16}", re.DOTALL)


@contextlib.contextmanager
def replacing(output: Path) -> Iterator[Path]:
    """A path beside `output`, for a file or a folder: renamed to it in the end, or removed.

    In place of a file in a bucket it is a local one, see `storage.uploading`.

    Raises:
      UserError: the disk or the bucket refuses; nothing is left behind.
    """
    if storage.is_remote(output):
        with storage.uploading(output) as temporary:
            yield temporary
        return
    # A name that nobody can foresee, so that no link lies in wait there.
    name = f".{output.name[:_NAME]}.partial-{secrets.token_hex(8)}"
    temporary = output.absolute().with_name(name)
    with signals.removing(temporary):
        try:
            yield temporary
            for path in temporary.rglob("*") if temporary.is_dir() else [temporary]:
                if path.is_file():
                    with open(path, "rb+") as file:
                        os.fsync(file.fileno())
            os.replace(temporary, output)
        except OSError as error:
            raise UserError(f"{output} could not be written: {error.strerror or error}") from None


def sweep(directory: Path) -> None:
    """Removes what killed processes left half written in a directory, by `replacing`.

    For who keeps others from writing there; what cannot be removed stays.
    """
    for path in directory.iterdir() if directory.is_dir() else ():
        if _TEMPORARY.fullmatch(path.name):
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def write_atomically(path: Path, content: bytes) -> None:
    """Writes a file so that readers see the old one or the new one, never half.

    Raises:
      UserError: the disk refuses; the old one stays.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def make_folder(folder: Path) -> None:
    """Makes a folder, with those above it.

    Raises:
      UserError: the disk refuses, or a file is in the way.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder} could not be made: {error.strerror}") from None


def check_folder(flag: str, folder: Path) -> None:
    """Refuses what is no directory and cannot become one, or cannot be written to; leaves nothing.

    Args:
      flag: how it was given, for the message.

    Raises:
      UserError: names what is in the way.
    """
    place = folder.absolute()
    try:
        while not place.exists() and place != place.parent:
            if place.is_symlink():
                raise UserError(f"{flag}: {place} is a link to {os.readlink(place)}, which is gone")
            place = place.parent
    except OSError as error:
        raise UserError(f"{flag}: {printable(place)}: {error.strerror}") from None
    if not place.is_dir():
        raise UserError(f"{flag}: {place} is a file, expected a directory")
    probe = place / f".probe-{secrets.token_hex(8)}"
    try:  # not os.access, which grants root what /proc refuses
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        raise UserError(
            f"{flag}: {place} cannot be written to ({error.strerror}): make it writable, or choose "
            "another one"
        ) from None


def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, of which no field may stand there twice: an `object_pairs_hook` of `json`.

    Raises:
      ValueError: one does.
    """
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"{name!r} stands there twice")
        values[name] = value
    return values
