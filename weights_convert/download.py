"""Fetches the official checkpoints, and resumes where an earlier try stopped."""

import hashlib
import os
import re
import urllib.error
import urllib.request
from pathlib import Path

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from talora_jax.errors import UserError

URL = "https://dl.fbaipublicfiles.com/segment_anything/"
# A name ends in the head of the file's SHA-256.
FILES = {
    "vit_b": "sam_vit_b_01ec64.pth",
    "vit_l": "sam_vit_l_0b3195.pth",
    "vit_h": "sam_vit_h_4b8939.pth",
}
_CHUNK = 2**20


def download(size: str, folder: Path) -> Path:
    """The official checkpoint of a size, in `folder`; fetched unless it is there already.

    Raises:
      UserError: the network, the server or the file's hash says no.
    """
    path = folder / FILES[size]
    if path.exists():
        _check_hash(path)
        return path
    part = path.with_name(path.name + ".part")
    url = URL + path.name
    try:
        _fetch(url, part)
    except (urllib.error.URLError, OSError) as error:
        reason = getattr(error, "reason", None) or error.strerror or error
        raise UserError(
            f"could not fetch {url} ({reason}); fetch it in another way and put it at {path}, "
            "or run this again to go on"
        ) from None
    _check_hash(part, path.name)
    part.rename(path)
    return path


def sha256(*paths: Path) -> str:
    """The SHA-256 of a file, or of several one after the other, in hexadecimal."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()


def _fetch(url: str, part: Path) -> None:
    """Appends to `part` what it lacks."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:  # Nothing after what we have: it is whole.
            return
        raise
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with response, Progress(*columns) as progress:
        # A server that knows no ranges sends the whole file again.
        resumed = response.status == 206
        have = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        task = progress.add_task(part.stem, completed=have, total=total)
        with open(part, "ab" if resumed else "wb") as file:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                progress.advance(task, len(chunk))
    if total is not None and part.stat().st_size < total:
        raise OSError("the connection broke off")


def _check_hash(path: Path, name: str = "") -> None:
    """Compares a file with the hash head in its name; a file that differs is of no use."""
    head = re.search(r"_([0-9a-f]{6})\.pth$", name or path.name)[1]
    found = sha256(path)
    if not found.startswith(head):
        if path.suffix == ".part":
            os.remove(path)
        raise UserError(
            f"{name or path} is damaged: its SHA-256 begins {found[:6]}, not {head}; fetch it again"
        )
