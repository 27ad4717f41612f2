"""Where things lie: at a local path, or in a bucket of Google Cloud Storage, gs://BUCKET/….

`etils.epath` gives what lies in a bucket the methods of pathlib, by gcsfs (the extra `gcs`). An
object is written whole or not at all; it cannot be appended to or locked, nor a folder be renamed
at once. What does the same by other means is here, so that the rest of the code need not ask where
a path leads.
"""

import contextlib
import functools
import importlib.util
import logging
import os
import re
import secrets
import shutil
import socket
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from talora_jax.errors import UserError, one_line, printable

# A drive of Windows is one letter; pathlib makes one slash of two.
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", re.DOTALL)
_BUCKETS = "gs"
_IN_USE = "in_use_by.txt"
_PULSE, _SILENT = 5.0, 20.0  # seconds between two pulses, and without one until nobody is there
_ANSWER = 60  # whole seconds that a bucket may be silent until it is asked again
_PIECE = 2**24  # bytes copied at once

_copies: list[tempfile.TemporaryDirectory] = []  # removed when the process ends


def is_remote(path: str | Path) -> bool:
    """Whether a path is written as a URL, of whichever kind."""
    return _URL.match(str(path)) is not None


def local(path: str | Path) -> Path:
    """A local path, with ~ put in, where no other will do: an `argparse` type, too.

    Raises:
      UserError: it is written as a URL.
    """
    if is_remote(path):
        raise UserError(
            f"{printable(_as_given(path))}: expected a local path here. In a bucket (gs://) can be "
            "workdirs, bases and adapters; give a local folder, or one that the bucket is mounted "
            "as (gcsfuse), or copy by: gcloud storage cp -r"
        )
    return Path(path).expanduser()


def place(path: str | Path) -> Path:
    """A local path, with ~ put in, or one in a bucket: an `argparse` type, too.

    Raises:
      UserError: it is a URL of another kind, or what reads buckets is not installed.
    """
    url = _URL.match(str(path))
    if url is None:
        return Path(path).expanduser()
    shown, (scheme, rest) = printable(_as_given(path)), url.groups()
    if scheme == _BUCKETS and ".." in rest.split("/"):
        raise UserError(f"{shown}: a bucket has no .. between slashes; give the path without")
    if scheme != _BUCKETS or not rest:
        raise UserError(
            f"{shown}: expected a local path or gs://BUCKET/FOLDER; what lies elsewhere must be "
            "mounted as a folder, or copied here"
        )
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(f"{shown} needs gcsfs: pip install 'talora_jax[gcs]'")
    import aiohttp
    import fsspec
    from etils import epath

    # They log with a traceback what they raise as well.
    for name in ("gcsfs", "fsspec"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    settings = fsspec.config.conf.setdefault("gcs", {})
    settings["use_listings_cache"] = False  # what other processes write is seen
    settings["finalize_on_close"] = True  # as epath asks for: one file system, and one login
    # gcsfs and TensorStore would wait for ever for who is silent; so they ask again.
    patient = aiohttp.ClientTimeout(sock_connect=_ANSWER, sock_read=_ANSWER)
    settings.setdefault("requests_timeout", patient)
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", str(_ANSWER))
    os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")
    return epath.Path(f"{scheme}://{rest}")


def absolute(path: Path) -> Path:
    """A path from the root of the disk, or of the bucket that it is in."""
    return path if is_remote(path) else path.absolute()


@contextlib.contextmanager
def reached(path: Path) -> Iterator[None]:
    """Tells in a sentence what a bucket refuses; nothing of what happens elsewhere meanwhile.

    Raises:
      UserError: the bucket is not there, may not be read or written, or cannot be reached.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not (is_remote(path) and _is_of_bucket(error)):
            raise
        why = "not found" if isinstance(error, FileNotFoundError) else one_line(error)
        raise UserError(
            f"{_as_given(path)} cannot be reached ({why}): is the bucket there, and may you read "
            "and write in it? To be known there, run: gcloud auth application-default login"
        ) from error


def text_of(path: Path) -> str | None:
    """What a file holds, in UTF-8; None where there is none.

    Raises:
      UserError: as of `reached`.
      OSError, ValueError: it cannot be read, or is no text.
    """
    with reached(path):
        return path.read_text(encoding="utf-8") if path.exists() else None


def _is_of_bucket(error: Exception) -> bool:
    """Whether it came by gcsfs: aiohttp, google.auth and requests have exceptions of their own."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__", "").startswith("gcsfs") for frame, _ in frames)


def check_writable(folder: Path) -> None:
    """Refuses a folder of a bucket in which nothing can be written; leaves nothing.

    Raises:
      UserError: as of `reached`.
    """
    probe = folder / f".probe-{secrets.token_hex(8)}"
    with reached(folder):
        probe.write_bytes(b"")
        probe.unlink()


def fetched(path: str | Path) -> Path:
    """A file as a local one: itself, or a copy for as long as this process runs.

    What is no file is given as it is.

    Raises:
      UserError: as of `place` and `reached`.
    """
    if not is_remote(path):
        return Path(path)
    found = place(path)
    import fsspec

    with reached(found):
        if not found.exists() or found.is_dir():
            return found
        return _copied(found, fsspec.filesystem(_BUCKETS).ukey(str(found)))


@functools.lru_cache
def _copied(path: Path, version: str) -> Path:
    """A local copy of an object: length and time to a second, which `stat` gives, may stay when it
    is written anew."""
    _copies.append(tempfile.TemporaryDirectory(prefix="talora_jax_"))
    copy = Path(_copies[-1].name, path.name)
    with path.open("rb") as source, copy.open("wb") as sink:
        shutil.copyfileobj(source, sink, _PIECE)
    return copy


@contextlib.contextmanager
def uploading(output: Path) -> Iterator[Path]:
    """A local path for a file, which in the end is written to a bucket.

    Raises:
      UserError: as of `place` and `reached`; what was there before stays.
    """
    with tempfile.TemporaryDirectory(prefix="talora_jax_") as folder:
        here = Path(folder, output.name)
        yield here
        with reached(output):
            _upload(here, place(output))


class Appending:
    """A folder whose files are appended to.

    Attributes:
      here: where to append to them: the folder itself, or in place of one in a bucket a local one.
    """

    def __init__(self, folder: Path):
        self._folder, self._there = folder, {}
        self._copy = None
        self.here = folder
        if is_remote(folder):
            self._copy = tempfile.TemporaryDirectory(prefix="talora_jax_")
            self.here = Path(self._copy.name)

    def publish(self) -> None:
        """Writes to the bucket, whole, what has grown since the last time.

        Raises:
          UserError: as of `reached`.
        """
        if self._copy is None:
            return
        with reached(self._folder):
            for path in sorted(self.here.rglob("*")):
                if path.is_file() and self._there.get(path) != (size := path.stat().st_size):
                    _upload(path, self._folder / path.relative_to(self.here).as_posix())
                    self._there[path] = size

    def close(self) -> None:
        self.publish()
        if self._copy is not None:
            self._copy.cleanup()


@contextlib.contextmanager
def leased(folder: Path) -> Iterator[None]:
    """Keeps other processes out of a folder in a bucket, as a lock does of a local one.

    The lock is an object that tells who is at work, written anew every few seconds. Who was killed
    leaves it, and it is silent. Two processes that come within the same second are not told apart.

    Raises:
      UserError: another process is at work there, or as of `reached`.
    """
    check_leased(folder)
    pulse, over = folder / _IN_USE, threading.Event()
    who = f"process {os.getpid()} of {socket.gethostname()}"

    def write() -> None:
        pulse.write_text(f"{who}\n{secrets.token_hex(8)}\n")

    def beat() -> None:
        while not over.wait(_PULSE):
            with contextlib.suppress(Exception):  # the bucket is out of reach: the next one may do
                write()

    with reached(folder):
        write()
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        with contextlib.suppress(Exception):  # it would be silent anyhow
            pulse.unlink(missing_ok=True)


def check_leased(folder: Path) -> None:
    """Refuses a folder that another process has `leased`; waits until that is known.

    Raises:
      UserError: it is, or as of `reached`.
    """
    with reached(folder):
        pulse = folder / _IN_USE
        before = _text(pulse)
        until = time.monotonic() + _SILENT
        while before is not None:
            time.sleep(_PULSE / 5)
            if (now := _text(pulse)) not in (before, None):
                who = printable(now.partition("\n")[0])
                raise UserError(
                    f"{folder}: another process is at work in it ({who}); let that end, or choose "
                    "another --workdir"
                )
            if now is None or time.monotonic() > until:
                pulse.unlink(missing_ok=True)
                return


def _text(path: Path) -> str | None:
    try:
        return path.read_text()
    except FileNotFoundError:
        return None


def _upload(path: Path, to: Path) -> None:
    """Writes a file to a bucket, whole or not at all."""
    sink = to.open("wb")
    try:
        with path.open("rb") as source:
            shutil.copyfileobj(source, sink, _PIECE)
    except BaseException:
        sink.discard()
        sink.closed = True  # or what it has would be written when it goes
        raise
    sink.close()


def _as_given(path: str | Path) -> str:
    """A URL with the slashes that pathlib takes from it."""
    return _URL.sub(r"\1://\2", str(path), count=1)
