"""Reads one .npy file, of which nothing is trusted."""

import io
from pathlib import Path
from zipfile import Path as ZipPath

import numpy as np

from talora_jax.errors import one_line


class BadFile(Exception):
    """A file does not hold what it should. The message says what was expected."""


def read_npy(path: Path | ZipPath) -> np.ndarray:
    """The array of a file, on disk or in a zip archive. A pickle in it is not run.

    Raises:
        BadFile: it cannot be read, is cut short, or is not an array with values.
    """
    try:
        values = np.load(io.BytesIO(path.read_bytes()), allow_pickle=False)
    except Exception as error:  # NumPy raises many kinds, from EOFError to tokenize's.
        raise BadFile(f"cannot be read as npy ({one_line(error)})") from error
    if not isinstance(values, np.ndarray) or not values.size:
        raise BadFile("expected an npy file of one array that is not empty")
    return values
