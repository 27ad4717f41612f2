"""How commands start quickly.

Programs that were compiled once are kept on disk: the next start of the same need not wait. They
lie in `~/.cache/talora_jax/compiled`, at most 4 GiB: the longest unused ones go first. JAX's own
settings hold where they are made: JAX_COMPILATION_CACHE_DIR names another folder,
JAX_ENABLE_COMPILATION_CACHE=false keeps nothing.
"""

import contextlib
import gc
import os
from collections.abc import Iterator
from pathlib import Path

_MOST = 2**32  # bytes


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
