"""Programs that were compiled once are kept on disk: the next start of the same need not wait.

In `~/.cache/talora_jax/compiled`, at most 4 GiB: the longest unused ones go first. JAX's own
settings hold where they are made: JAX_COMPILATION_CACHE_DIR names another folder,
JAX_ENABLE_COMPILATION_CACHE=false keeps nothing.
"""

import os
from pathlib import Path

import jax

_MOST = 2**32  # bytes


def keep_programs() -> None:
    """Makes JAX keep what it compiles from here on; commands do so, the package alone does not."""
    if jax.config.jax_compilation_cache_dir:
        return
    cache = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
    folder = Path(cache) / "talora_jax" / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # a home that is read-only: compiling again is no failure
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", _MOST)
    # Half of what a start waits for are programs that take less than JAX's second each.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
