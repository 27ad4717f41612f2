"""How commands start quickly, and what compiling leaves behind.

Programs that were compiled once are kept on disk: the next start of the same need not wait. They
lie in `~/.cache/talora_jax/compiled`, at most 4 GiB: the longest unused ones go first. JAX's own
settings hold where they are made: JAX_COMPILATION_CACHE_DIR names another folder,
JAX_ENABLE_COMPILATION_CACHE=false keeps nothing.
"""

import contextlib
import ctypes
import functools
import gc
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

_PROGRAMS = "compiled"
_MOST = 2**32  # bytes
# Of each program JAX keeps two files: it, and when it was used last.
_OTHER_HALF = {"cache": "atime", "atime": "cache"}
_PATIENCE = 1  # seconds that another process may take to write them
# Programs that took less to compile, in seconds, leave little.
_WORTH_TRIMMING = 1
# Options of glibc's `mallopt`, by their numbers in malloc.h, and bytes.
_KEPT = {
    -1: 2**28,  # M_TRIM_THRESHOLD: as much may be free before some goes back
    -2: 2**26,  # M_TOP_PAD: a thread keeps its last heap, which is of this size, though it is empty
    -3: 2**25,  # M_MMAP_THRESHOLD: what is larger goes back at once; there is no higher one
}


def keep_programs() -> None:
    """Makes JAX keep what it compiles, where it is not imported yet, and in processes of this one.

    Commands do so; the package alone does not.
    """
    kept = _folder()
    if "JAX_COMPILATION_CACHE_DIR" in os.environ or kept is None:
        return
    folder = kept / _PROGRAMS
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that is read-only: compiling again is no failure
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    # Without a limit JAX does not write when programs were used.
    if os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(_MOST)) != "-1":
        _drop_halves(folder)
    # Half of what a start waits for are programs that take less than JAX's second each.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


def kept_in() -> Path | None:
    """`~/.cache/talora_jax`, for what need not be computed again; None where programs are not kept
    there either, in another folder or nowhere."""
    import jax

    folder = _folder()
    if folder is None or not jax.config.jax_enable_compilation_cache:
        return None
    ours = os.environ.get("JAX_COMPILATION_CACHE_DIR") == str(folder / _PROGRAMS)
    return folder if ours else None


def _drop_halves(folder: Path) -> None:
    """Removes what a full disk or a kill left of programs: by one half JAX refuses to keep more.

    They stay while another process writes, as one of them may be its, and where the disk refuses.
    """
    with contextlib.suppress(OSError):
        if not _halves(folder):
            return
        import filelock  # not at the top: few starts need it

        with filelock.FileLock(folder / ".lockfile", timeout=_PATIENCE):
            for half in _halves(folder):
                half.unlink()


def _halves(folder: Path) -> list[Path]:
    names = {path.name for path in folder.iterdir()}
    split = [name.rpartition("-") for name in names]
    return [
        folder / f"{key}-{half}"
        for key, _, half in split
        if half in _OTHER_HALF and f"{key}-{_OTHER_HALF[half]}" not in names
    ]


def _folder() -> Path | None:
    try:
        cache = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    except RuntimeError:  # a user without a home, as in a container
        return None
    return Path(cache) / "talora_jax"


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Looks for no garbage meanwhile.

    Tracing a model makes objects by the million that stay, and looking through them takes a quarter
    of the time.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


@functools.cache
def settle_memory() -> None:
    """From now on glibc keeps what programs use again and again, and gives back what compiling one
    has freed.

    By itself it does the opposite. What an operation needs for itself it gives back to the system
    after it, which has to clear it for the next one: of ViT-B's encoder on a CPU a tenth of the
    time. What compiling has freed it keeps, beside all that the program allocates: of ViT-B's joint
    forward on a CPU 230 MB. Other systems and C libraries are left alone.
    """
    trim, set_option = _of_glibc("malloc_trim"), _of_glibc("mallopt")
    if set_option is not None:
        for option, size in _KEPT.items():
            set_option(option, size)
    if trim is None:
        return
    # Not at the top: `keep_programs` comes before JAX is imported.
    from jax import monitoring

    def finished(event: str, seconds: float, **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration" and seconds > _WORTH_TRIMMING:
            trim(0)

    monitoring.register_event_duration_secs_listener(finished)


def drop_programs() -> None:
    """Gives back the memory of programs that nobody holds any more.

    JAX puts off letting go of them until garbage is looked for: of what draws ViT-B's random
    numbers 110 MB.
    """
    gc.collect()
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_glibc(name: str) -> Callable[..., int] | None:
    """A function of glibc's; None of other systems and C libraries."""
    # Windows has no library without a name.
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
