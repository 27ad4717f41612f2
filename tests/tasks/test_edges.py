"""Edges are matched within the tolerance, and one to one."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from talora_jax.tasks import (
    Edges,
)


@pytest.mark.parametrize(("size", "radius"), [((12, 16), 1), ((240, 320), 3), ((288, 384), 4)])
def test_edges_match_within_the_tolerance_and_no_further(cases, size, radius):
    for distance, f_measure in ((radius, 1.0), (radius + 1, 0.0)):
        target = np.zeros((1, *size, 1), np.float32)
        target[0, :, 2] = 1
        maps = np.full_like(target, -9)
        maps[0, :, 2 + distance] = 9
        assert cases.summary(Edges("edges"), maps, target)["tolerant/ods_f"] == f_measure


def test_a_probability_on_the_threshold_is_an_edge(cases):
    target = np.zeros((1, cases.H, cases.W, 1), np.float32)
    target[0, :, 2] = 1
    maps = np.full_like(target, -9)
    maps[0, :, 2], maps[0, :, 9] = 0, -0.01
    actual = cases.summary(Edges("edges"), maps, target)
    assert (actual["tolerant/ods_f"], actual["tolerant/ods_threshold"]) == (1.0, 0.5)
    assert (actual["ods_f"], actual["ods_threshold"]) == (1.0, 0.5)


@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 2**32), labelled=st.sampled_from([0, 0.5, 1]))
def test_host_metrics_of_two_parts_added_are_the_whole(cases, seed, labelled):
    task, (maps, target) = cases.task_of("edges"), cases.case_of("edges", seed, labelled)
    parts = [cases.host_metrics(task, maps[p], target[p]) for p in (slice(1), slice(1, None))]
    whole = cases.host_metrics(task, maps, target)
    assert whole.keys() == {"exact/counts", "exact/best"}
    for key, value in whole.items():
        assert value.dtype == np.int64
        np.testing.assert_array_equal(parts[0][key] + parts[1][key], value)


def test_host_metrics_do_not_see_unlabelled_pixels(cases):
    task, (maps, target) = cases.task_of("edges"), cases.case_of("edges")
    other = np.where(cases.reference_valid("edges", target)[..., None], maps, 7 - 2 * maps)
    actual, expected = (
        cases.host_metrics(task, other, target),
        cases.host_metrics(task, maps, target),
    )
    np.testing.assert_array_equal(actual["exact/counts"], expected["exact/counts"])


def test_one_line_matches_one_line(cases):
    """Two lines beside a true one are both within the tolerance, but only one can be matched."""
    target = np.zeros((1, 60, 80, 1), np.float32)
    target[0, :, 40] = 1
    maps = np.full_like(target, -9)
    maps[0, :, 39] = maps[0, :, 41] = 9
    actual = cases.summary(Edges("edges", tolerance=0.02), maps, target)
    assert actual["tolerant/ods_f"] == 1
    assert actual["ods_f"] == pytest.approx(2 / 3)
    # A band is thinned to one line before it is matched, true or predicted.
    maps[0, :, 40] = 9
    target[0, :, 41] = 1
    assert cases.summary(Edges("edges", tolerance=0.02), maps, target)["ods_f"] > 0.95


def test_edges_without_host_metrics_have_the_tolerant_ones(cases):
    task, (maps, target) = cases.task_of("edges"), cases.case_of("edges")
    without = task.summarise(jax.device_get(cases.metrics(task, maps, target)))
    assert without.keys() == {"tolerant/ods_f", "tolerant/ods_threshold", "tolerant/ois_f"}
    assert without.items() < cases.summary(task, maps, target).items()
