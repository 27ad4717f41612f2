"""What the tests of PASCAL-Context share: `voc.py`, and a PASCAL_MT as it writes it."""

import shutil
import types
from pathlib import Path

import pytest

from tests.data.pascal_context import voc as VOC


@pytest.fixture(scope="session")
def voc() -> types.ModuleType:
    return VOC


@pytest.fixture(scope="session")
def pascal_mt(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("download") / "PASCAL_MT"
    VOC.write(root)
    return root


@pytest.fixture
def download(pascal_mt, tmp_path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(pascal_mt, tmp_path / "PASCAL_MT"))


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("prepared")


@pytest.fixture(scope="session")
def samples(pascal_mt, prepared) -> dict[str, dict]:
    dataset = VOC.open_root(pascal_mt, prepared)
    return {
        stem: dataset.splits[split][i]
        for split, stems in (("train", VOC.TRAIN), ("val", VOC.VAL))
        for i, stem in enumerate(stems)
    }
