"""What the tests of a user's folder share: `planes.py`, and a folder as it writes them."""

import shutil
import types
from pathlib import Path

import pytest

from tests.data.folder import planes as PLANES


@pytest.fixture(scope="session")
def planes() -> types.ModuleType:
    return PLANES


@pytest.fixture(scope="session")
def written(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("written")
    PLANES.write(root)
    return root


@pytest.fixture
def root(written, tmp_path) -> Path:
    """A folder of one's own, to be changed; what is prepared of it lies beside it."""
    return shutil.copytree(written, tmp_path / "my data")
