"""What a command has compiled, the next one does not compile again."""

import os
import sys
import types

import filelock
import jax
import pytest

from talora_jax import compiled

NAMES = (
    "JAX_COMPILATION_CACHE_DIR",
    "JAX_COMPILATION_CACHE_MAX_SIZE",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS",
)


@pytest.fixture
def unset(monkeypatch, tmp_path):
    """JAX's settings as if nobody had made them; put back afterwards."""
    for name in NAMES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_programs_are_kept_in_the_cache_of_the_user(unset, tmp_path, start_python):
    folder = tmp_path / "talora_jax" / "compiled"
    for programs in ("none", "some"):
        assert folder.is_dir() == (programs == "some")
        process = start_python(
            "-c",
            "from talora_jax.compiled import keep_programs; keep_programs(); import jax\n"
            "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)\n"
            "print(jax.config.jax_compilation_cache_max_size, jax.jit(lambda x: 2 * x)(21))",
        )
        assert process.communicate()[0].split()[-2:] == [str(2**32), "42"]
        assert any(folder.iterdir())


def test_halves_of_programs_keep_no_others_out(unset, tmp_path, start_python):
    folder = tmp_path / "talora_jax" / "compiled"
    folder.mkdir(parents=True)
    halves = {"jit_half-0-cache", "jit_other-0-atime"}
    for name in (*halves, "jit_whole-0-cache", "jit_whole-0-atime"):
        (folder / name).write_bytes(bytes(8))
    process = start_python(
        "-c",
        "from talora_jax.compiled import keep_programs; keep_programs(); import jax\n"
        "jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)\n"
        "jax.jit(lambda x: 2 * x)(21)",
    )
    assert "Error" not in process.communicate()[1]
    kinds = [path.name.rpartition("-")[2] for path in folder.glob("jit_*")]
    assert kinds.count("cache") == kinds.count("atime") > 1
    left = {path.name for path in folder.iterdir()}
    assert "jit_whole-0-cache" in left and not left & halves


def test_halves_stay_while_another_process_writes_and_where_jax_wants_no_times(
    unset, tmp_path, monkeypatch
):
    folder = tmp_path / "talora_jax" / "compiled"
    folder.mkdir(parents=True)
    half = folder / "jit_half-0-cache"
    half.touch()
    monkeypatch.setattr(compiled, "_PATIENCE", 0)
    with filelock.FileLock(folder / ".lockfile"):
        compiled.keep_programs()
    assert half.exists()
    monkeypatch.delenv(NAMES[0])
    monkeypatch.setenv(NAMES[1], "-1")
    compiled.keep_programs()
    assert half.exists()
    monkeypatch.delenv(NAMES[0])
    monkeypatch.delenv(NAMES[1])
    compiled.keep_programs()
    assert not half.exists()


def test_a_folder_that_was_named_stays(unset, monkeypatch):
    monkeypatch.setenv(NAMES[0], "mine")
    compiled.keep_programs()
    assert os.environ[NAMES[0]] == "mine" and NAMES[1] not in os.environ


def test_a_place_that_cannot_be_written_is_no_failure(unset, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    compiled.keep_programs()
    assert NAMES[0] not in os.environ


def test_a_user_without_a_home_is_no_failure(unset, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 2**31 - 7)  # of no user that the system knows
    compiled.keep_programs()
    assert NAMES[0] not in os.environ and compiled.kept_in() is None


def test_memory_is_settled_where_the_library_can(monkeypatch):
    trimmed, options = [], {}
    library = types.SimpleNamespace()
    monkeypatch.setattr(compiled.ctypes, "CDLL", lambda name: library)
    monkeypatch.setattr(compiled, "_WORTH_TRIMMING", 0)
    monkeypatch.setattr(compiled.sys, "platform", "linux")
    compiled.settle_memory.__wrapped__()  # a C library without such functions
    library.malloc_trim = trimmed.append
    library.mallopt = options.__setitem__
    compiled.settle_memory.__wrapped__()
    program = jax.jit(lambda x: 2 * x)
    program(21)
    program(22)
    assert trimmed == [0]
    assert sorted(options) == [-3, -2, -1]


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's own")
def test_glibc_takes_the_options():
    """It tells so by 1; a size that it cannot take would be left out in silence."""
    set_option = compiled._of_glibc("mallopt")
    if set_option is None:
        pytest.skip("another C library")
    assert [set_option(option, size) for option, size in compiled._KEPT.items()] == [1, 1, 1]
