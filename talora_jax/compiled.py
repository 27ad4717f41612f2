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

_MOST = 2**32  # bytes
# Programs that took less to compile, in seconds, leave little.
_WORTH_TRIMMING = 1


def keep_programs() -> None:
    """Makes JAX keep what it compiles, where it is not imported yet, and in processes of this one.

    Commands do so; the package alone does not.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    cache = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    folder = Path(cache) / "talora_jax" / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that is read-only: compiling again is no failure
        return
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(folder)
    os.environ.setdefault("JAX_COMPILATION_CACHE_MAX_SIZE", str(_MOST))
    # Half of what a start waits for are programs that take less than JAX's second each.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


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
def give_memory_back() -> None:
    """From now on, memory that compiling a program has freed goes back to the system.

    glibc keeps it, beside all that the program allocates: of ViT-B's joint forward on a CPU 230 MB.
    Other systems and C libraries are left alone.
    """
    trim = _malloc_trim()
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
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


def _malloc_trim() -> Callable[[int], int] | None:
    """What makes glibc give back what is free; None of other systems and C libraries."""
    # Windows has no library without a name.
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
