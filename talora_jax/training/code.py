"""What this package's code is, to be told from another version's by what is kept on disk."""

import functools
import hashlib
from pathlib import Path

import talora_jax


@functools.cache
def digest_of(folder: str = "") -> str:
    """SHA-256 over the names and contents of the modules in a folder of this package, or in all."""
    package = Path(talora_jax.__file__).parent
    digest = hashlib.sha256()
    for path in sorted((package / folder).rglob("*.py")):
        digest.update(f"{path.relative_to(package)}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()
