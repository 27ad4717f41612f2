"""A tiny SAM under every source's names, without PyTorch."""

import numpy as np
import pytest
import safetensors.numpy

from talora_jax.errors import run_command
from weights_convert.__main__ import main
from weights_convert.architecture import Architecture, entries_of, expected_shapes


@pytest.fixture(scope="session")
def architecture(micro) -> Architecture:
    return Architecture(micro)


@pytest.fixture(scope="session")
def official(architecture) -> dict[str, np.ndarray]:
    """A state dict under SAM's official names, random numbers everywhere."""
    rng = np.random.default_rng(0)
    shapes = expected_shapes(architecture)
    state = {}
    for entry in entries_of(architecture):
        # Small enough that a sum of products keeps its digits in float32.
        ours = rng.normal(0, 0.3, shapes[entry.ours][len(entry.stack) :]).astype(np.float32)
        state[entry.official] = np.ascontiguousarray(entry.layout.theirs(ours))
    return state


@pytest.fixture(scope="session")
def huggingface(architecture, official) -> dict[str, np.ndarray]:
    """The same tensors under Hugging Face's names."""
    return {e.huggingface: official[e.official] for e in entries_of(architecture)}


@pytest.fixture
def checkpoint(tmp_path, official):
    """Those tensors as a file."""
    path = tmp_path / "sam.safetensors"
    safetensors.numpy.save_file(official, path)
    return path


@pytest.fixture
def run(capsys):
    """Runs the command; gives its exit status, what it printed, and its error."""

    def run(*args):
        try:
            # The tiny decoder has two heads.
            run_command(lambda: main([*map(str, args), "--decoder-heads=2"]))
            status = 0
        except SystemExit as stop:
            status = stop.code
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run
