"""Conversion goes tensor by tensor: what it holds at once is a small part of the model."""

import tracemalloc

import numpy as np
import pytest
import safetensors.numpy

from talora_jax.models.encoder_config import ImageEncoderConfig
from talora_jax.models.sam import SamConfig
from weights_convert.__main__ import main
from weights_convert.architecture import Architecture, entries_of, expected_shapes


@pytest.mark.slow
def test_peak_is_a_few_tensors(tmp_path):
    encoder = ImageEncoderConfig(image_size=256, width=192, heads=3, stages=4, window_blocks=7)
    architecture = Architecture(SamConfig(encoder))
    shapes = expected_shapes(architecture)
    state = {}
    for entry in entries_of(architecture):
        ours = np.zeros(shapes[entry.ours][len(entry.stack) :], np.float32)
        state[entry.official] = np.ascontiguousarray(entry.layout.theirs(ours))
    path = tmp_path / "sam.safetensors"
    safetensors.numpy.save_file(state, path)
    size, largest = path.stat().st_size, max(x.nbytes for x in state.values())
    assert size > 20 * largest
    del state
    for source, output in ((path, "base.safetensors"), (tmp_path / "base.safetensors", "folder")):
        tracemalloc.start()
        main([str(source), str(tmp_path / output)])
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 4 * largest + 2**21
