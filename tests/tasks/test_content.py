"""What targets say: sums that add, a line for people, and what nobody can mean."""

import functools
import json
import operator

import numpy as np
import pytest

from talora_jax.tasks import TARGETS
from talora_jax.tasks.content import percent

SIZE = (16, 24)
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 4, SIZE).astype(np.int32)
DEPTH = RNG.uniform(1, 9, (*SIZE, 1)).astype(np.float32)
NORMALS = RNG.normal(size=(*SIZE, 3)).astype(np.float32)
NORMALS /= np.linalg.norm(NORMALS, axis=-1, keepdims=True)
MASK = (LABELS > 1).astype(np.float32)[..., None]
LINES = (RNG.random((*SIZE, 1)) < 0.1).astype(np.float32)
GOOD = {
    "semantic": LABELS,
    "depth": DEPTH,
    "disparity": 1 / DEPTH,
    "normals": NORMALS,
    "human_parts": LABELS,
    "saliency": MASK,
    "edges": LINES,
    "instance": LABELS,
    "part": LABELS,
}


def content(name, *targets):
    return functools.reduce(operator.add, map(TARGETS[name].content, targets))


def blank(name):
    return np.full_like(GOOD[name], TARGETS[name].unlabelled)


@pytest.mark.parametrize("name", GOOD)
def test_every_target_has_one_that_adds(name):
    assert set(GOOD) == set(TARGETS)
    good = GOOD[name]
    half = good.copy()
    half[: SIZE[0] // 2] = TARGETS[name].unlabelled
    found = content(name, good, half)
    assert found.pixels == 2 * LABELS.size and found.share == 0.75
    assert found.refusal() is None and found.notes() == [] and found.measurable
    numbers = content(name, half, good).numbers()
    assert numbers == found.numbers()
    assert numbers["valid" if name == "normals" else "labelled"] == 0.75
    json.dumps(numbers, allow_nan=False)
    nothing = content(name, blank(name), blank(name))
    assert nothing.refusal() and not nothing.measurable
    json.dumps(nothing.numbers(), allow_nan=False)
    assert nothing.in_words()
    # A blank image among others is nothing to refuse.
    assert content(name, good, blank(name)).refusal() is None


def where(condition, value, good):
    return np.where(condition, np.asarray(value, good.dtype), good)


def test_what_is_said_of_classes():
    labels = np.array([[0, 0, 2, -1], [2, 2, 2, 5]])
    found = content("semantic", labels)
    line = "class ids 0 to 5, 3 found, 3 missing, 12 % unlabelled"
    assert found.in_words() == line
    assert found.notes() == ["class ids up to 5, but no pixel of 1, 3, 4"]
    shares = {"share/0": 2 / 7, "share/2": 4 / 7, "share/5": 1 / 7}
    assert found.numbers() == {"labelled": 7 / 8, "classes": 3, "gaps": 3, **shares}
    few = np.full((20, 20), -1)
    few[0, :2] = 0, 1
    assert content("semantic", few).notes() == ["only 0.5 % of the pixels have a label"]


def test_what_is_said_of_depth():
    depth = np.zeros((10, 10, 1), np.float32)
    depth[1:, :, 0] = np.linspace(1, 10, 90).reshape(9, 10)
    found = content("depth", depth)
    measured = depth[depth > 0]
    assert found.numbers()["min"] == 1 and found.numbers()["max"] == 10
    np.testing.assert_allclose(found.median, np.median(measured), rtol=0.02)
    assert found.in_words().endswith("max 10 m, 90 % of the pixels measured")
    # Of two values, the median is one of them, and right to the width of a bin.
    np.testing.assert_allclose(
        content("depth", DEPTH, 0 * DEPTH).median, np.median(DEPTH), rtol=0.02
    )


def test_what_is_said_of_the_others():
    assert content("normals", NORMALS).in_words() == "100 % of the pixels have a valid normal"
    edges = np.zeros((10, 10, 1), np.float32)
    edges[3] = 1
    assert content("edges", edges).in_words() == "10 % edges, 0 % unlabelled"
    edges[:3] = 1
    (note,) = content("edges", edges).notes()
    assert note == "40 % of the labelled pixels are edges, much for lines"
    (note,) = content("normals", np.broadcast_to(np.float32([0, 0, -1]), (4, 4, 3))).notes()
    assert note.startswith("every normal is the same vector")
    one = where(LABELS > 1, 1, LABELS * 0 - 1)
    (note,) = content("instance", one, one).notes()
    assert note.startswith("about one number in an image")


THIRD = (LABELS == 3)[..., None]


@pytest.mark.parametrize(
    "name, target, why",
    [
        ("semantic", where(LABELS < 2, -1, LABELS * 0), "every labelled pixel is of class 0"),
        ("semantic", LABELS * 0 + 2, "every labelled pixel is of class 2"),
        ("human_parts", where(LABELS < 2, -1, LABELS * 0), "masks of 0 and 255 need 1"),
        ("saliency", MASK * 0, "no labelled pixel is salient"),
        ("saliency", MASK * 0 + 1, "every labelled pixel is salient"),
        ("edges", LINES * 0, "give every object a number of its own there, or a folder edges/"),
        ("edges", 1 - LINES, "% of the labelled pixels are edges, expected lines"),
        ("depth", DEPTH * 0 + 3, "every measured pixel is 3 m"),
        ("depth", DEPTH * 1000, "set config.data.depth_scale"),
        ("depth", DEPTH / 1000, "set config.data.depth_scale"),
        ("depth", where(THIRD, 1e10, DEPTH), "are 1e+10 m far"),
        ("depth", where(THIRD, 65.535, DEPTH), "set config.data.max_depth"),
        ("depth", where(THIRD, 65535, DEPTH.round()), "set config.data.max_depth"),
        ("disparity", where(THIRD, 65535, DEPTH), "are 65535, far above all others: store 0"),
        ("normals", NORMALS * 127, "most vectors are not of unit length"),
        ("instance", LABELS * 0 - 1, "no pixel has a number"),
    ],
)
def test_what_nobody_can_mean(name, target, why):
    refusal = content(name, target).refusal()
    assert why in refusal and len(refusal) < 400


@pytest.mark.parametrize(
    "name, target",
    [
        ("depth", where(THIRD, 20, DEPTH)),  # a far wall
        ("depth", where(THIRD, 40, DEPTH).round()),  # a handful of values
        ("depth", np.linspace(1, 900, LABELS.size, dtype=np.float32).reshape(*SIZE, 1)),
        ("disparity", DEPTH * 1000),  # has no unit
    ],
)
def test_what_can_be_meant_is_not_refused(name, target):
    assert content(name, target).refusal() is None


def test_centimetres_are_odd():
    (note,) = content("depth", DEPTH * 100).notes()
    assert note.endswith("if that is centimetres, set config.data.depth_scale=100")


def test_next_to_nothing_is_odd():
    (note,) = content("depth", where(THIRD, 1e-4, DEPTH)).notes()
    assert note == "0.0001 m is next to nothing; no measurement is 0"


def test_masks_to_ask_about_may_be_of_one_class_but_not_the_background():
    only = where(LABELS < 2, -1, LABELS * 0 + 1)
    assert content("semantic", only).refusal()
    assert content("semantic", only).refusal(as_masks=True) is None
    assert content("semantic", where(LABELS < 2, -1, LABELS * 0)).refusal(as_masks=True)


@pytest.mark.parametrize("void", [127, 255, 32767, 65535, 2**31 - 1])
def test_a_last_id_of_all_ones_after_a_gap_is_a_void(void):
    found = content("semantic", where(LABELS == 3, void, LABELS))
    assert f"set config.data.ignore_label={void}" in found.numbering()


def test_a_void_number_is_one_beside_others():
    objects = where(LABELS == 3, 255, LABELS)
    assert "looks like a label for none" in content("instance", objects, objects).numbering()
    assert content("instance", objects, LABELS).numbering() is None
    foreground = where(LABELS > 1, 255, LABELS * 0 - 1)
    assert content("instance", foreground, foreground).numbering() is None


def test_ids_that_are_no_indices():
    assert "renumber them" in content("semantic", LABELS * 1000 + 26_000).numbering()
    assert "renumber them" in content("semantic", LABELS + 2**16).numbering()
    for fine in (LABELS, LABELS * 100, np.arange(256)[None], np.arange(2000)[None]):
        assert content("semantic", fine.astype(np.int32)).numbering() is None


def test_percent():
    given = (0.0, 1.0, 0.5, 0.0213, 0.9999, 0.004, 0.12)
    expected = ["0 %", "100 %", "50 %", "2.1 %", "99.99 %", "0.4 %", "12 %"]
    assert [percent(share) for share in given] == expected
    assert percent(0.999999) != "100 %" and percent(1e-9) != "0 %"
