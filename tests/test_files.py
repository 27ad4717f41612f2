"""Files are there whole or not at all, and a disk that refuses is told in one sentence."""

import errno
import os
import sys
from pathlib import Path

import pytest

from talora_jax.errors import UserError
from talora_jax.files import check_folder, replacing, sweep, write_atomically


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "file"
    for content in (b"old", b"new"):
        write_atomically(path, content)
        assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_refused_write_leaves_the_old_file(tmp_path):
    with pytest.raises(UserError, match="nowhere/file could not be written: No such file"):
        write_atomically(tmp_path / "nowhere" / "file", b"")
    # A folder is in the way.
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "old").write_bytes(b"old")
    with pytest.raises(UserError, match="full could not be written"):
        write_atomically(tmp_path / "full", b"new")
    assert (tmp_path / "full" / "old").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_what_fails_halfway_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), replacing(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "half").touch()
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_temporary_names_cannot_be_foreseen(tmp_path):
    with replacing(tmp_path / "file") as one, replacing(tmp_path / "file") as other:
        assert one != other and one.parent == other.parent == tmp_path
        one.touch(), other.touch()


def test_the_longest_names_are_written(tmp_path):
    write_atomically(tmp_path / ("n" * 255), b"content")
    assert [path.name for path in tmp_path.iterdir()] == ["n" * 255]


def test_what_killed_writes_left_is_swept(tmp_path):
    with replacing(tmp_path / "folder") as folder, replacing(tmp_path / "file") as file:
        folder.mkdir()
        (folder / "half").touch()
        file.touch()
        for name in (".file.partial-", "file.partial-0123456789abcdef", ".file.partial-mine"):
            (tmp_path / name).touch()
        sweep(tmp_path)
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {".file.partial-", "file.partial-0123456789abcdef", ".file.partial-mine"}
        folder.mkdir(), file.touch()  # of which the end here renames both
    sweep(tmp_path / "nowhere")


def test_a_folder_that_cannot_be_one(tmp_path, monkeypatch):
    file, link, closed = (tmp_path / name for name in ("file", "link", "closed"))
    file.touch(), link.symlink_to(tmp_path / "gone"), closed.mkdir()
    there = sorted(tmp_path.rglob("*"))
    mkdir = os.mkdir

    def refuse(path, *args):  # as root never is
        if Path(path).parent == closed:
            raise PermissionError(errno.EACCES, "Permission denied")
        mkdir(path, *args)

    monkeypatch.setattr(os, "mkdir", refuse)
    for folder, told in (
        (file, "--out: .*file is a file, expected a directory"),
        (file / "sub", "--out: .*file is a file, expected a directory"),
        (link, "--out: .*link is a link to .*gone, which is gone"),
        (closed, r"--out: .*closed cannot be written to \(Permission denied\): make it writable"),
        (closed / "deep" / "x", "--out: .*closed cannot be written to"),
        (tmp_path / ("n" * 300) / "x", "--out: .*n/x: File name too long"),
    ):
        with pytest.raises(UserError, match=told):
            check_folder("--out", folder)
    check_folder("--out", tmp_path)
    check_folder("--out", tmp_path / "new" / "sub")
    assert sorted(tmp_path.rglob("*")) == there
    if sys.platform == "linux":  # where root may do all, but a file system that is none
        with pytest.raises(UserError, match="--out: /proc cannot be written to"):
            check_folder("--out", Path("/proc/x"))
