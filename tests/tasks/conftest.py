"""What the tests of tasks share: `cases.py`, and its cases as parameters."""

import types

import pytest

from talora_jax.tasks import TASKS
from tests.tasks import cases as CASES


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
