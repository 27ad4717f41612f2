"""What the tests of tasks share: `cases.py`, and its cases as parameters."""

import importlib.util
import types
from pathlib import Path

import pytest

from talora_jax.tasks import TASKS

_SPEC = importlib.util.spec_from_file_location("cases", Path(__file__).with_name("cases.py"))
CASES = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(CASES)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that takes a name, maps and a target gets those of every case."""
    if {"name", "maps", "target"} <= set(metafunc.fixturenames):
        metafunc.parametrize(
            ("name", "maps", "target"),
            [
                pytest.param(name, maps, target, id=f"{name}: {label}")
                for name in TASKS
                for label, maps, target in CASES.adversarial_cases(name)
            ],
        )


@pytest.fixture(scope="session")
def cases() -> types.ModuleType:
    return CASES
