"""What every task promises: losses and metrics against the reference and plain NumPy in float64."""

import functools
import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import special

from talora_jax.tasks import (
    TASKS,
)
from talora_jax.tasks.target import resize_nearest


def test_loss_is_the_textbook_one(cases, name, maps, target):
    task = cases.task_of(name)
    total, count = cases.loss(task, maps, target)
    expected = cases.reference_losses(name, maps, target)
    assert count == len(expected) == task.count(jnp.asarray(target))
    assert total.dtype == count.dtype == jnp.float32
    np.testing.assert_allclose(
        total / max(count, 1), expected.sum() / max(count, 1), rtol=1e-6, atol=1e-7
    )


def test_metrics_are_the_textbook_ones(cases, name, maps, target):
    actual, expected = (
        cases.summary(cases.task_of(name), maps, target),
        cases.reference_metrics(name, maps, target),
    )
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        # float32 angles; the pooled median knows its bin of 0.001 degrees.
        atol = 1e-3 if key == "pooled/median" else 2e-5 if name == "normals" else 1e-7
        assert type(actual[key]) is float
        np.testing.assert_allclose(actual[key], value, rtol=1e-5, atol=atol, err_msg=key)


def test_the_reference_implementation_agrees(cases):
    golden = np.load(Path(__file__).parents[1] / "goldens" / "mtsam_tiny.npz")
    nhwc = functools.partial(np.transpose, axes=(0, 2, 3, 1))
    targets = {
        "semantic": golden["target/0_semantic"].astype(np.int32),
        "depth": nhwc(golden["target/1_depth"]),
        "normals": nhwc(golden["target/2_normal"]),
    }
    published = {
        "semantic": (golden["metric/0_miou_pixacc"], ("miou", "pixel_acc")),
        "depth": (golden["metric/1_abs_rel"], ("abs_err", "rel_err")),
        "normals": (
            golden["metric/2_mean_median_1125_225_30"],
            ("mean", "median", "within_11.25", "within_22.5", "within_30"),
        ),
    }
    for index, (name, target) in enumerate(targets.items()):
        task, maps = cases.task_of(name), nhwc(golden[f"output/task{index}"])
        total, count = cases.loss(task, maps, target)
        np.testing.assert_allclose(total / count, golden["loss/per_task"][index], rtol=1e-6)
        actual = cases.summary(task, maps, target)
        values, keys = published[name]
        protocol = "" if name == "semantic" else "per_image/"
        np.testing.assert_allclose([actual[protocol + key] for key in keys], values, rtol=1e-6)


@pytest.mark.parametrize("name", TASKS)
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**32), labelled=st.sampled_from([0, 0.01, 0.5, 1]))
def test_two_parts_added_are_the_whole(cases, name, seed, labelled):
    task, (maps, target) = cases.task_of(name), cases.case_of(name, seed, labelled)
    for sums in (
        lambda part: cases.metrics(task, maps[part], target[part]),
        lambda part: cases.statistics(task, target[part]),
        lambda part: dict(
            zip(("sum", "count"), cases.loss(task, maps[part], target[part]), strict=True)
        ),
    ):
        cases.assert_same_sums(
            cases.merged(sums(slice(1)), sums(slice(1, None))), sums(slice(None))
        )


@pytest.mark.parametrize("name", TASKS)
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**32))
def test_rows_of_padding_change_nothing(cases, name, seed):
    task, (maps, target) = cases.task_of(name), cases.case_of(name, seed)
    padding = np.full_like(target[1:], TASKS[name].unlabelled)
    for filling in (np.zeros_like(maps[1:]), maps[1:] + 3):
        padded = np.concatenate([maps[:1], filling]), np.concatenate([target[:1], padding])
        cases.assert_same_sums(
            cases.metrics(task, *padded), cases.metrics(task, maps[:1], target[:1])
        )
        cases.assert_same_sums(
            cases.statistics(task, padded[1]), cases.statistics(task, target[:1])
        )
        np.testing.assert_allclose(
            cases.loss(task, *padded), cases.loss(task, maps[:1], target[:1]), rtol=2e-6
        )


@pytest.mark.parametrize("name", TASKS)
def test_what_is_predicted_on_unlabelled_pixels_changes_nothing(cases, name):
    task, (maps, target) = cases.task_of(name), cases.case_of(name)
    other = np.where(cases.reference_valid(name, target)[..., None], maps, 7 - 2 * maps)
    cases.assert_same_sums(cases.metrics(task, other, target), cases.metrics(task, maps, target))
    np.testing.assert_array_equal(cases.loss(task, other, target), cases.loss(task, maps, target))


def test_gradients_are_finite_and_stay_on_labelled_pixels(cases, name, maps, target):
    task = cases.task_of(name)
    for factor in (1, 0, 1e-20):
        gradient = cases.loss_gradient(maps * np.float32(factor), task, target)
        assert np.isfinite(gradient).all()
        assert not gradient[~cases.reference_valid(name, target)].any()


@pytest.mark.parametrize("name", TASKS)
def test_gradient_is_that_of_finite_differences(cases, name):
    task, (maps, target) = cases.task_of(name), cases.case_of(name)
    step = np.random.default_rng(1).normal(size=maps.shape) * 1e-4
    _, slope = jax.jvp(
        lambda m: cases.loss(task, m, target)[0], [jnp.asarray(maps)], [jnp.float32(step)]
    )
    ahead, behind = (
        cases.reference_losses(name, maps.astype(np.float64) + sign * step, target).sum()
        for sign in (1, -1)
    )
    np.testing.assert_allclose(slope, (ahead - behind) / 2, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("name", TASKS)
def test_bfloat16_maps_are_measured_in_float32(cases, name):
    task, (maps, target) = cases.task_of(name), cases.case_of(name)
    maps = jnp.asarray(maps, jnp.bfloat16)
    assert cases.loss(task, maps, target) == cases.loss(task, maps.astype(jnp.float32), target)
    assert task.activate(maps).dtype == jnp.float32
    sums = jax.eval_shape(task.metrics, maps, jnp.asarray(target))
    assert {leaf.dtype.name for leaf in sums.values()} <= {"float32", "int32"}


def test_activations(cases):
    maps = {name: cases.case_of(name)[0] for name in TASKS}
    activated = {name: cases.task_of(name).activate(jnp.asarray(maps[name])) for name in TASKS}
    np.testing.assert_allclose(np.exp(activated["semantic"]).sum(-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(activated["depth"], maps["depth"])
    np.testing.assert_allclose(np.linalg.norm(activated["normals"], axis=-1), 1, rtol=1e-6)
    for name in cases.BINARY:
        np.testing.assert_allclose(activated[name], special.expit(maps[name]), rtol=1e-5)


def test_constants(cases):
    semantic, depth, normals, edges = (
        cases.case_of(name)[1] for name in ("semantic", "depth", "normals", "edges")
    )
    most = np.bincount(semantic[semantic >= 0]).argmax()
    np.testing.assert_array_equal(cases.constant_of("semantic", semantic), np.eye(cases.C)[most])
    np.testing.assert_allclose(
        cases.constant_of("depth", depth), [depth[depth > 0].mean()], rtol=1e-6
    )
    mean = normals.astype(np.float64).sum((0, 1, 2))
    np.testing.assert_allclose(
        cases.constant_of("normals", normals), mean / np.linalg.norm(mean), rtol=1e-4
    )
    share = np.mean(edges[edges >= 0])
    np.testing.assert_allclose(special.expit(cases.constant_of("edges", edges)), [share], rtol=0.05)


@pytest.mark.parametrize("name", TASKS)
def test_constants_without_labels_are_finite(cases, name):
    target = np.full_like(cases.case_of(name)[1], TASKS[name].unlabelled)
    constant = cases.constant_of(name, target)
    assert constant.shape == (cases.task_of(name).channels,)
    assert constant.dtype == np.float32
    assert np.isfinite(constant).all()


@pytest.mark.parametrize("name", TASKS)
def test_pictures(cases, name):
    task, (maps, target) = cases.task_of(name), cases.case_of(name)
    prediction = np.asarray(task.activate(jnp.asarray(maps)))[0]
    pictures = (
        task.picture(prediction),
        task.picture(prediction, target[0]),
        task.target_picture(target[0]),
    )
    for picture in pictures:
        assert picture.shape == (cases.H, cases.W, 3)
        assert picture.dtype == np.uint8
    assert not pictures[2][~cases.reference_valid(name, target)[0]].any()
    nothing = np.full_like(target[0], TASKS[name].unlabelled)
    assert not task.target_picture(nothing).any()
    assert task.picture(prediction, nothing).any()


def test_a_right_prediction_looks_like_the_truth(cases):
    for name in TASKS:
        task, target = cases.task_of(name), cases.case_of(name, labelled=1)[1][0]
        right = np.eye(cases.NUM_CLASSES[name])[target] if name in cases.NUM_CLASSES else target
        np.testing.assert_array_equal(task.picture(right, target), task.target_picture(target))


@pytest.mark.parametrize("name", TASKS)
def test_outputs_are_what_a_person_can_look_at_and_keep(cases, name):
    task, maps = cases.task_of(name), cases.case_of(name)[0]
    outputs = {k: np.asarray(x)[0] for k, x in task.outputs(jnp.asarray(maps)).items()}
    assert set(task.outputs(jnp.asarray(maps), probabilities=False)) == {name}
    activated = np.asarray(task.activate(jnp.asarray(maps)))[0]
    output = outputs[name]
    np.testing.assert_array_equal(task.show(output), task.picture(activated))
    legend = task.legend(output)
    if task.class_names:
        np.testing.assert_allclose(outputs[f"{name}_probabilities"], np.exp(activated), rtol=1e-6)
        assert sum(legend.shares) == pytest.approx(1)
        shown = {tuple(colour) for colour in task.show(output).reshape(-1, 3)}
        assert {tuple(colour) for colour in legend.colours} == shown
    file = Image.open(io.BytesIO(task.png(output).encode()))
    assert file.format == "PNG" and file.size == (cases.W, cases.H) and file.text["task"] == name


# The target of one image.


@pytest.mark.parametrize("name", TASKS)
def test_a_target_is_what_its_task_declares(cases, name):
    """In a batch with a share of it unlabelled, and with nothing labelled at all."""
    task, target = TASKS[name], cases.case_of(name)[1]
    assert target.dtype == task.target_dtype
    assert target.shape[3:] == task.target_shape
    assert not cases.task_of(name).valid(np.full_like(target, task.unlabelled)).any()
    assert cases.task_of(name).valid(target).any()


@pytest.mark.parametrize("name", TASKS)
def test_a_kept_target_comes_back(cases, name):
    target = cases.case_of(name)[1][0]
    stored = TASKS[name].store(target)
    restored = TASKS[name].restore(stored)
    assert stored.dtype == TASKS[name].stored_dtype
    assert restored.dtype == target.dtype
    np.testing.assert_allclose(restored, target, rtol=0, atol=2e-5 if name == "normals" else 0)
    nothing = np.full_like(target, TASKS[name].unlabelled)
    np.testing.assert_array_equal(TASKS[name].restore(TASKS[name].store(nothing)), nothing)


@pytest.mark.parametrize("name", TASKS)
def test_moves_keep_shape_dtype_and_what_is_unlabelled(cases, name):
    task, target = TASKS[name], cases.case_of(name)[1][0]
    valid = functools.partial(np.not_equal, task.unlabelled)
    labelled = valid(target)
    for moved, expected in (
        (task.resize(target, (24, 32)), labelled.repeat(2, 0).repeat(2, 1)),
        (task.mirror(target), labelled[:, ::-1]),
        (task.nearer(target, 1.25), labelled),
        (task.turn(target, np.pi / 7), labelled),
    ):
        assert moved.dtype == target.dtype
        np.testing.assert_array_equal(valid(moved), expected)
    np.testing.assert_array_equal(task.resize(target, target.shape[:2]), target)


@pytest.mark.parametrize("name", ["semantic", "human_parts", "saliency", "edges"])
def test_labels_are_the_same_from_any_side(cases, name):
    task, target = TASKS[name], cases.case_of(name)[1][0]
    np.testing.assert_array_equal(task.mirror(target), target[:, ::-1])
    np.testing.assert_array_equal(task.nearer(target, 1.7), target)
    np.testing.assert_array_equal(task.turn(target, 0.3), target)


def test_nearest_takes_the_pixel_under_each_centre():
    values = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(resize_nearest(values, (4, 3)), values.repeat(2, 0))
    np.testing.assert_array_equal(resize_nearest(values, (1, 1)), [[4]])
