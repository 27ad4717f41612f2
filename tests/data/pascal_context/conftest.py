"""What the tests of PASCAL-Context share: `voc.py`, and a PASCAL_MT as it writes it."""

import importlib.util
import shutil
import types
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("voc", Path(__file__).with_name("voc.py"))
VOC = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(VOC)


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
