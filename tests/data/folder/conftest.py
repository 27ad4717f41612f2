"""What the tests of a user's folder share: `planes.py`, and a folder as it writes them."""

import importlib.util
import shutil
import types
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("planes", Path(__file__).with_name("planes.py"))
PLANES = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(PLANES)


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
