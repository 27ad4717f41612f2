"""Run lengths: COCO's order, parts of larger masks, round trips."""

import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from talora_jax.errors import UserError
from talora_jax.inference.masks.run_lengths import RunLengths

masks = arrays(bool, st.tuples(st.integers(1, 7), st.integers(1, 7)))


def test_runs_go_down_the_columns():
    mask = np.array([[0, 1, 1], [0, 1, 0]], bool)
    assert RunLengths.of(mask).uncompressed() == {"size": [2, 3], "counts": [2, 3, 1]}
    assert RunLengths.of(~mask).uncompressed() == {"size": [2, 3], "counts": [0, 2, 3, 1]}
    assert RunLengths.of(np.zeros((2, 3), bool)).uncompressed()["counts"] == [6]
    assert RunLengths.of(np.ones((2, 3), bool)).uncompressed()["counts"] == [0, 6]


@given(masks)
def test_there_and_back(mask):
    runs = RunLengths.of(mask)
    assert runs.area == mask.sum() and runs.counts.sum() == mask.size
    assert (runs.counts[1:] > 0).all()
    np.testing.assert_array_equal(runs.mask(), mask)


@given(masks, st.tuples(*[st.integers(0, 3)] * 4))
def test_part_of_a_larger_mask(mask, around):
    left, right, above, below = around
    whole = np.pad(mask, ((above, below), (left, right)))
    part = RunLengths.of(mask, whole.shape, (left, above))
    assert part.size == whole.shape
    np.testing.assert_array_equal(part.counts, RunLengths.of(whole).counts)


def test_nothing_of_a_larger_mask():
    assert RunLengths.of(np.zeros((0, 0), bool), (2, 3)).counts.tolist() == [6]


def test_compressed():
    coco = pytest.importorskip("pycocotools.mask")
    mask = np.random.default_rng(0).random((30, 40)) < 0.3
    runs = RunLengths.of(mask).compressed()
    assert runs["size"] == [30, 40] and isinstance(runs["counts"], str)
    np.testing.assert_array_equal(coco.decode(runs), mask)


def test_compressed_without_pycocotools(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(UserError, match=r"pycocotools: pip install 'talora_jax\[coco\]'"):
        RunLengths.of(np.ones((2, 3), bool)).compressed()
