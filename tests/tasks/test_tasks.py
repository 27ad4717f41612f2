"""Losses and metrics against the reference's numbers and against plain NumPy in float64."""

import dataclasses
import functools
import io
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage, optimize, spatial, special
from sklearn.metrics import accuracy_score, confusion_matrix, fbeta_score, jaccard_score

from talora_jax.errors import UserError
from talora_jax.tasks import (
    TASKS,
    Depth,
    Disparity,
    Edges,
    HumanParts,
    Normals,
    Saliency,
    Semantic,
    Task,
    make_task,
    palette,
)

B, H, W, C = 4, 12, 16, 5
CLASS_NAMES = tuple("abcde")
NAMES = tuple(TASKS)
PART_NAMES = HumanParts.part_names
NUM_CLASSES = {"semantic": C, "human_parts": 7}
BINARY = ("saliency", "edges")

loss = jax.jit(Task.loss, static_argnums=0)
loss_gradient = jax.jit(
    jax.grad(lambda maps, task, target: task.loss(maps, target)[0]), static_argnums=1
)
metrics = jax.jit(lambda task, maps, target: task.metrics(maps, target), static_argnums=0)
host_inputs = jax.jit(lambda task, maps, target: task.host_inputs(maps, target), static_argnums=0)
statistics = jax.jit(lambda task, target: task.statistics(target), static_argnums=0)


def task_of(name):
    # A wider tolerance than the default, which is a single pixel in so small an image.
    return (
        Edges(name, tolerance=0.1) if name == "edges" else make_task(name, class_names=CLASS_NAMES)
    )


def case_of(name, seed=0, labelled=0.8):
    """Random raw maps and targets, NumPy, with a share of the pixels labelled."""
    rng = np.random.default_rng(seed)
    maps = rng.normal(size=(B, H, W, task_of(name).channels)).astype(np.float32)
    if name in NUM_CLASSES:
        target = rng.integers(0, NUM_CLASSES[name], (B, H, W)).astype(np.int32)
    elif name in ("depth", "disparity"):
        target = rng.uniform(0.5, 8, (B, H, W, 1)).astype(np.float32)
    elif name == "normals":
        target = rng.normal(size=(B, H, W, 3)).astype(np.float32)
        target /= np.linalg.norm(target, axis=-1, keepdims=True)
    else:
        share = 0.05 if name == "edges" else 0.3
        target = (rng.random((B, H, W, 1)) < share).astype(np.float32)
    target[rng.random((B, H, W)) > labelled] = TASKS[name].unlabelled
    return maps, target


def adversarial_cases(name):
    maps, target = case_of(name)
    some = target.copy()
    some[1] = TASKS[name].unlabelled
    one = np.full_like(target, TASKS[name].unlabelled)
    one[2, 3, 4] = 1
    yield "random", maps, target
    yield "image without labels", maps, some
    yield "one labelled pixel", maps, one
    yield "no labels", maps, np.full_like(target, TASKS[name].unlabelled)
    yield "flat maps", np.zeros_like(maps), target
    yield "saturated maps", maps * 1e4, target
    if name in NUM_CLASSES:
        yield "one class", maps, np.full_like(target, 3)
        absent = np.concatenate([maps[..., :2], np.full_like(maps[..., :1], -9), maps[..., 3:]], -1)
        yield "absent class", absent, np.where(target == 2, -1, target)
    if name == "normals":
        yield "right", target * 3, target
        yield "opposite", -target, target
    if name in BINARY:
        yield "no edges", maps, np.minimum(target, 0)
        yield "right", target * 20 - 10, target
        yield "nothing predicted", np.full_like(maps, -20), target
        yield "nothing predicted, nothing true", np.full_like(maps, -20), np.minimum(target, 0)
        yield "all predicted", np.full_like(maps, 20), target
        yield "all true", maps, np.where(target < 0, target, 1)


def summary(task, maps, target):
    sums = jax.device_get(metrics(task, maps, target))
    return task.summarise({**sums, **host_metrics(task, maps, target)})


def host_metrics(task, maps, target):
    return task.host_metrics(jax.device_get(host_inputs(task, maps, target)))


# The definitions once more, in float64, image by image.


def reference_losses(name, maps, target):
    """The losses of the valid pixels, [n]."""
    valid = reference_valid(name, target)
    balance = reference_balance(valid, target)[valid] if name == "saliency" else None
    maps, target = maps[valid].astype(np.float64), target[valid]
    if name in NUM_CLASSES:
        return special.logsumexp(maps, axis=-1) - np.take_along_axis(maps, target[:, None], 1)[:, 0]
    if name in ("depth", "disparity"):
        return np.abs(maps - target)[:, 0]
    if name == "normals":
        return 1 - np.cos(np.radians(reference_angle(maps, target)))
    edge, logit = target[:, 0] == 1, maps[:, 0]
    weight = np.where(edge, 0.95, 0.05) if balance is None else balance
    return weight * np.logaddexp(0, np.where(edge, -logit, logit))


def reference_balance(valid, target):
    """The weights of pixels, [B, H, W]: the share of the other kind in the image."""
    weight = np.zeros(target.shape[:3])
    for b in range(len(target)):
        labels = target[b][valid[b]]
        for value in (0, 1):
            weight[b][target[b, ..., 0] == value] = np.sum(labels == 1 - value) / max(
                len(labels), 1
            )
    return weight


def reference_valid(name, target):
    return {
        "semantic": lambda: target != -1,
        "human_parts": lambda: target != -1,
        "depth": lambda: target[..., 0] != 0,
        "disparity": lambda: target[..., 0] != 0,
        "normals": lambda: np.linalg.norm(target, axis=-1) > 0,
        "saliency": lambda: target[..., 0] != -1,
        "edges": lambda: target[..., 0] != -1,
    }[name]()


def reference_angle(prediction, target):
    """Degrees, [n]."""
    prediction, target = prediction.astype(np.float64), target.astype(np.float64)
    norm = np.linalg.norm(prediction, axis=-1) * np.linalg.norm(target, axis=-1)
    cosine = np.sum(prediction * target, axis=-1) / np.where(norm == 0, 1, norm)
    return np.degrees(np.arccos(cosine.clip(-1, 1)))


def reference_metrics(name, maps, target):
    valid = reference_valid(name, target)
    if not valid.any():
        return {}
    if name in NUM_CLASSES:
        class_names = CLASS_NAMES if name == "semantic" else PART_NAMES
        truth, prediction = target[valid], maps.argmax(-1)[valid]
        present = np.union1d(truth, prediction)
        iou = jaccard_score(truth, prediction, labels=present, average=None)
        return {
            "miou": iou.mean(),
            "pixel_acc": accuracy_score(truth, prediction),
            "absent_classes": len(class_names) - len(present),
            **{
                f"iou/{class_names[label]}": value
                for label, value in zip(present, iou, strict=True)
            },
        }
    if name == "saliency":
        return reference_saliency(maps, target)
    if name == "edges":
        return reference_edges(maps, target)

    def errors(maps, target):
        if name in ("depth", "disparity"):
            error = np.abs(maps.astype(np.float64) - target)
            rmse = math.sqrt(np.mean(error**2))
            return {"abs_err": error.mean(), "rel_err": (error / target).mean(), "rmse": rmse}
        angle = reference_angle(maps, target)
        return {
            "mean": angle.mean(),
            "median": np.quantile(angle, 0.5, method="lower"),
            "rmse": math.sqrt(np.mean(angle**2)),
            "within_11.25": np.mean(angle < 11.25),
            "within_22.5": np.mean(angle < 22.5),
            "within_30": np.mean(angle < 30),
        }

    images = [errors(maps[b][valid[b]], target[b][valid[b]]) for b in range(B) if valid[b].any()]
    pooled = errors(maps[valid], target[valid])
    return {
        **{f"pooled/{key}": value for key, value in pooled.items()},
        **{f"per_image/{key}": np.mean([image[key] for image in images]) for key in pooled},
    }


def reference_edges(maps, target):
    square = np.ones((5, 5))  # ceil(0.1 * the diagonal of 20 pixels) = 2 on either side
    probability = np.asarray(jax.nn.sigmoid(maps[..., 0]))
    counts = np.zeros((B, 99, 4))
    for b in range(B):
        edge = target[b, ..., 0] == 1
        near_edge = ndimage.binary_dilation(edge, square)
        for k in range(99):
            predicted = (probability[b] >= np.float32((k + 1) / 100)) & (target[b, ..., 0] != -1)
            near = ndimage.binary_dilation(predicted, square)
            pairs = (predicted, predicted & near_edge, edge, edge & near)
            counts[b, k] = [np.sum(pixels) for pixels in pairs]

    def f_measure(predicted, matched_predicted, true, matched_true):
        if not matched_predicted:
            return 0.0
        precision, recall = matched_predicted / predicted, matched_true / true
        return 2 / (1 / precision + 1 / recall)

    images = [[f_measure(*row) for row in image] for image in counts if image[0, 2]]
    if not images:
        return {}
    pooled = [f_measure(*row) for row in counts.sum(0)]
    return {
        **reference_exact_edges(probability, target),
        "tolerant/ods_f": max(pooled),
        "tolerant/ods_threshold": (np.argmax(pooled) + 1) / 100,
        "tolerant/ois_f": np.mean([max(image) for image in images]),
    }


def reference_exact_edges(probability, target):
    """As `correspondPixels` of the BSDS benchmark: least total distance with costly outliers."""
    counts = np.zeros((B, 99, 3))
    for b in range(B):
        true = reference_thin(target[b, ..., 0] == 1)
        by_size = {}  # as many pixels are the same ones
        for k in range(99):
            predicted = (probability[b] >= np.float32((k + 1) / 100)) & (target[b, ..., 0] != -1)
            if predicted.sum() not in by_size:
                lines = reference_thin(predicted)
                matches = reference_matches(lines, true, 2.0)
                by_size[predicted.sum()] = lines.sum(), matches, true.sum()
            counts[b, k] = by_size[predicted.sum()]

    def f_measure(row):
        predicted, matched, true = row
        return 2 / (predicted / matched + true / matched) if matched else 0.0

    pooled = [f_measure(row) for row in counts.sum(0)]
    best = [image[np.argmax([f_measure(row) for row in image])] for image in counts]
    return {
        "ods_f": max(pooled),
        "ods_threshold": (np.argmax(pooled) + 1) / 100,
        "ois_f": f_measure(np.sum(best, axis=0)),
    }


def reference_matches(predicted, true, distance):
    away = spatial.distance.cdist(np.argwhere(predicted), np.argwhere(true))
    rows, columns = optimize.linear_sum_assignment(np.where(away <= distance, away, 100 * distance))
    return np.sum(away[rows, columns] <= distance)


def reference_thin(image):
    """Guo and Hall's thinning, pixel by pixel, as bwmorph's documentation defines it."""
    on = np.pad(image, 1).astype(int)
    changed = True
    while changed:
        changed = False
        for half in (0, 1):
            away = []
            for y, x in np.argwhere(on):
                around = (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1)
                n = [None, *(on[y + dy, x + dx] for dy, dx in around)]
                n.append(n[1])  # x9 is x1
                crossings = sum(
                    not n[2 * i - 1] and (n[2 * i] or n[2 * i + 1]) for i in range(1, 5)
                )
                n1 = sum(n[2 * i - 1] or n[2 * i] for i in range(1, 5))
                n2 = sum(n[2 * i] or n[2 * i + 1] for i in range(1, 5))
                g3 = (
                    (n[6] or n[7] or not n[4]) and n[5]
                    if half
                    else ((n[2] or n[3] or not n[8]) and n[1])
                )
                if crossings == 1 and 2 <= min(n1, n2) <= 3 and not g3:
                    away.append((y, x))
            for at in away:
                on[at] = 0
            changed |= bool(away)
    return on[1:-1, 1:-1].astype(bool)


def reference_saliency(maps, target):
    probability = np.asarray(jax.nn.sigmoid(maps[..., 0]))
    labelled = target[..., 0] != -1
    truth = [target[b, ..., 0][labelled[b]] == 1 for b in range(B)]
    predicted = [probability[b][labelled[b]] for b in range(B)]
    images = [b for b in range(B) if labelled[b].any()]
    mean_iou = [
        np.mean([jaccard_score(truth[b], predicted[b] > t, zero_division=1) for b in images])
        for t in np.linspace(0.2, 0.9, 15, dtype=np.float32)
    ]

    def max_f(predicted):
        # float32, as a threshold may lie on a probability.
        thresholds = np.float32(np.arange(1, 20) / 20)
        return max(
            fbeta_score(
                np.concatenate(truth),
                np.concatenate(predicted) >= t,
                beta=math.sqrt(0.3),
                zero_division=0,
            )
            for t in thresholds
        )

    return {
        "miou_max": max(mean_iou),
        "max_f": max_f(predicted),
        "invpt/max_f": max_f([special.expit(p.astype(np.float64)) for p in predicted]),
    }


CASES = [
    pytest.param(name, maps, target, id=f"{name}: {label}")
    for name in NAMES
    for label, maps, target in adversarial_cases(name)
]


@pytest.mark.parametrize(("name", "maps", "target"), CASES)
def test_loss_is_the_textbook_one(name, maps, target):
    task = task_of(name)
    total, count = loss(task, maps, target)
    expected = reference_losses(name, maps, target)
    assert count == len(expected) == task.count(jnp.asarray(target))
    assert total.dtype == count.dtype == jnp.float32
    np.testing.assert_allclose(
        total / max(count, 1), expected.sum() / max(count, 1), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize(("name", "maps", "target"), CASES)
def test_metrics_are_the_textbook_ones(name, maps, target):
    actual, expected = summary(task_of(name), maps, target), reference_metrics(name, maps, target)
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        # float32 angles; the pooled median knows its bin of 0.001 degrees.
        atol = 1e-3 if key == "pooled/median" else 2e-5 if name == "normals" else 1e-7
        assert type(actual[key]) is float
        np.testing.assert_allclose(actual[key], value, rtol=1e-5, atol=atol, err_msg=key)


def test_confusion_matrix():
    maps, target = case_of("semantic")
    valid = target >= 0
    actual = metrics(task_of("semantic"), maps, target)["confusion"]
    expected = confusion_matrix(target[valid], maps.argmax(-1)[valid], labels=range(C))
    assert actual.dtype == jnp.int32
    np.testing.assert_array_equal(actual, expected)


def test_the_reference_implementation_agrees():
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
        task, maps = task_of(name), nhwc(golden[f"output/task{index}"])
        total, count = loss(task, maps, target)
        np.testing.assert_allclose(total / count, golden["loss/per_task"][index], rtol=1e-6)
        actual = summary(task, maps, target)
        values, keys = published[name]
        protocol = "" if name == "semantic" else "per_image/"
        np.testing.assert_allclose([actual[protocol + key] for key in keys], values, rtol=1e-6)


def merged(first, second):
    widen = {"i": np.int64, "f": np.float64}
    return {
        key: np.asarray(first[key]).astype(widen[first[key].dtype.kind]) + np.asarray(second[key])
        for key in first
    }


def assert_same_sums(actual, expected):
    """Counts exactly, the rest to 2e-6: of what went in where a sum of vectors cancels."""
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        rtol, atol = (0, 0) if value.dtype.kind == "i" else (2e-6, 0)
        if key == "direction":
            rtol, atol = 0, 1e-6 * B * H * W
        if key == "histogram":  # an angle on the border of two bins may be rounded into either
            assert np.sum(actual[key]) == np.sum(value)
            assert np.abs(np.cumsum(actual[key]) - np.cumsum(value)).max() <= 2
            continue
        np.testing.assert_allclose(actual[key], value, rtol, atol, err_msg=key)


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 2**32), labelled=st.sampled_from([0, 0.01, 0.5, 1]))
def test_two_parts_added_are_the_whole(name, seed, labelled):
    task, (maps, target) = task_of(name), case_of(name, seed, labelled)
    for sums in (
        lambda part: metrics(task, maps[part], target[part]),
        lambda part: statistics(task, target[part]),
        lambda part: dict(zip(("sum", "count"), loss(task, maps[part], target[part]), strict=True)),
    ):
        assert_same_sums(merged(sums(slice(1)), sums(slice(1, None))), sums(slice(None)))


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 2**32))
def test_rows_of_padding_change_nothing(name, seed):
    task, (maps, target) = task_of(name), case_of(name, seed)
    padding = np.full_like(target[1:], TASKS[name].unlabelled)
    for filling in (np.zeros_like(maps[1:]), maps[1:] + 3):
        padded = np.concatenate([maps[:1], filling]), np.concatenate([target[:1], padding])
        assert_same_sums(metrics(task, *padded), metrics(task, maps[:1], target[:1]))
        assert_same_sums(statistics(task, padded[1]), statistics(task, target[:1]))
        np.testing.assert_allclose(loss(task, *padded), loss(task, maps[:1], target[:1]), rtol=2e-6)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_predicted_on_unlabelled_pixels_changes_nothing(name):
    task, (maps, target) = task_of(name), case_of(name)
    other = np.where(reference_valid(name, target)[..., None], maps, 7 - 2 * maps)
    assert_same_sums(metrics(task, other, target), metrics(task, maps, target))
    np.testing.assert_array_equal(loss(task, other, target), loss(task, maps, target))


@pytest.mark.parametrize(("name", "maps", "target"), CASES)
def test_gradients_are_finite_and_stay_on_labelled_pixels(name, maps, target):
    task = task_of(name)
    for factor in (1, 0, 1e-20):
        gradient = loss_gradient(maps * np.float32(factor), task, target)
        assert np.isfinite(gradient).all()
        assert not gradient[~reference_valid(name, target)].any()


@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_that_of_finite_differences(name):
    task, (maps, target) = task_of(name), case_of(name)
    step = np.random.default_rng(1).normal(size=maps.shape) * 1e-4
    _, slope = jax.jvp(lambda m: loss(task, m, target)[0], [jnp.asarray(maps)], [jnp.float32(step)])
    ahead, behind = (
        reference_losses(name, maps.astype(np.float64) + sign * step, target).sum()
        for sign in (1, -1)
    )
    np.testing.assert_allclose(slope, (ahead - behind) / 2, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_bfloat16_maps_are_measured_in_float32(name):
    task, (maps, target) = task_of(name), case_of(name)
    maps = jnp.asarray(maps, jnp.bfloat16)
    assert loss(task, maps, target) == loss(task, maps.astype(jnp.float32), target)
    assert task.activate(maps).dtype == jnp.float32
    sums = jax.eval_shape(task.metrics, maps, jnp.asarray(target))
    assert {leaf.dtype.name for leaf in sums.values()} <= {"float32", "int32"}


@pytest.mark.parametrize("name", NUM_CLASSES)
@pytest.mark.parametrize("above", [0, 3, 255])
def test_a_label_without_a_class_is_not_hidden(name, above):
    task, (maps, target) = task_of(name), case_of(name)
    target[1, 2, 3:5] = NUM_CLASSES[name] + above
    assert np.isnan(loss(task, maps, target)[0])
    told = f"{name}: 2 pixels have a label above the last class; expected 0 to {task.channels - 1},"
    with pytest.raises(UserError, match=told):
        summary(task, maps, target)
    with pytest.raises(UserError, match=told):
        constant_of(name, target)


@pytest.mark.parametrize("degrees", [0, 0.01, 1, 90, 179.99, 180])
def test_angles_are_accurate_in_float32(degrees):
    radians = math.radians(degrees)
    maps = np.float32([0, math.sin(radians), math.cos(radians)]) * np.ones((1, H, W, 1), np.float32)
    target = np.float32([0, 0, 1]) * np.ones((1, H, W, 1), np.float32)
    actual = summary(Normals("normals"), maps * 5, target)
    for key in ("mean", "median", "rmse"):
        np.testing.assert_allclose(actual[f"per_image/{key}"], degrees, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(actual["pooled/median"], degrees, atol=1e-3)


def test_a_zero_normal_is_a_right_angle_off():
    _, target = case_of("normals")
    actual = summary(Normals("normals"), np.zeros_like(target), target)
    total, count = loss(Normals("normals"), np.zeros_like(target), target)
    assert actual["per_image/mean"] == pytest.approx(90)
    assert total == count


def test_activations():
    maps = {name: case_of(name)[0] for name in NAMES}
    activated = {name: task_of(name).activate(jnp.asarray(maps[name])) for name in NAMES}
    np.testing.assert_allclose(np.exp(activated["semantic"]).sum(-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(activated["depth"], maps["depth"])
    np.testing.assert_allclose(np.linalg.norm(activated["normals"], axis=-1), 1, rtol=1e-6)
    for name in BINARY:
        np.testing.assert_allclose(activated[name], special.expit(maps[name]), rtol=1e-5)


@pytest.mark.parametrize(("size", "radius"), [((12, 16), 1), ((240, 320), 3), ((288, 384), 4)])
def test_edges_match_within_the_tolerance_and_no_further(size, radius):
    for distance, f_measure in ((radius, 1.0), (radius + 1, 0.0)):
        target = np.zeros((1, *size, 1), np.float32)
        target[0, :, 2] = 1
        maps = np.full_like(target, -9)
        maps[0, :, 2 + distance] = 9
        assert summary(Edges("edges"), maps, target)["tolerant/ods_f"] == f_measure


def test_a_probability_on_the_threshold_is_an_edge():
    target = np.zeros((1, H, W, 1), np.float32)
    target[0, :, 2] = 1
    maps = np.full_like(target, -9)
    maps[0, :, 2], maps[0, :, 9] = 0, -0.01
    actual = summary(Edges("edges"), maps, target)
    assert (actual["tolerant/ods_f"], actual["tolerant/ods_threshold"]) == (1.0, 0.5)
    assert (actual["ods_f"], actual["ods_threshold"]) == (1.0, 0.5)


def constant_of(name, target):
    return task_of(name).constant(jax.device_get(statistics(task_of(name), target)))


def test_constants():
    semantic, depth, normals, edges = (
        case_of(name)[1] for name in ("semantic", "depth", "normals", "edges")
    )
    most = np.bincount(semantic[semantic >= 0]).argmax()
    np.testing.assert_array_equal(constant_of("semantic", semantic), np.eye(C)[most])
    np.testing.assert_allclose(constant_of("depth", depth), [depth[depth > 0].mean()], rtol=1e-6)
    mean = normals.astype(np.float64).sum((0, 1, 2))
    np.testing.assert_allclose(
        constant_of("normals", normals), mean / np.linalg.norm(mean), rtol=1e-4
    )
    share = np.mean(edges[edges >= 0])
    np.testing.assert_allclose(special.expit(constant_of("edges", edges)), [share], rtol=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_constants_without_labels_are_finite(name):
    target = np.full_like(case_of(name)[1], TASKS[name].unlabelled)
    constant = constant_of(name, target)
    assert constant.shape == (task_of(name).channels,)
    assert constant.dtype == np.float32
    assert np.isfinite(constant).all()


@pytest.mark.parametrize("name", NAMES)
def test_pictures(name):
    task, (maps, target) = task_of(name), case_of(name)
    prediction = np.asarray(task.activate(jnp.asarray(maps)))[0]
    pictures = (
        task.picture(prediction),
        task.picture(prediction, target[0]),
        task.target_picture(target[0]),
    )
    for picture in pictures:
        assert picture.shape == (H, W, 3)
        assert picture.dtype == np.uint8
    assert not pictures[2][~reference_valid(name, target)[0]].any()
    nothing = np.full_like(target[0], TASKS[name].unlabelled)
    assert not task.target_picture(nothing).any()
    assert task.picture(prediction, nothing).any()


def test_a_right_prediction_looks_like_the_truth():
    for name in NAMES:
        task, target = task_of(name), case_of(name, labelled=1)[1][0]
        right = np.eye(NUM_CLASSES[name])[target] if name in NUM_CLASSES else target
        np.testing.assert_array_equal(task.picture(right, target), task.target_picture(target))


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_what_a_person_can_look_at_and_keep(name):
    task, maps = task_of(name), case_of(name)[0]
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
    assert file.format == "PNG" and file.size == (W, H) and file.text["task"] == name


def test_a_png_of_depth_reaches_as_far_as_it_must():
    for far, scale in ((9.0, 1000), (65.5, 1000), (66.0, 100), (7000.0, 1)):
        depth = np.float32([[far, -1, np.nan, far / 3]])
        file = Image.open(io.BytesIO(Depth("depth").png(depth).encode()))
        assert file.text == {"task": "depth", "unit": "m", "scale": str(scale)}
        np.testing.assert_allclose(
            np.asarray(file)[0] / scale, [far, 0, 0, far / 3], rtol=0, atol=0.51 / scale
        )


def test_more_classes_than_a_palette_has_colours():
    labels = np.arange(300)[None]
    file = Image.open(io.BytesIO(Semantic("semantic", 300).png(labels).encode()))
    np.testing.assert_array_equal(np.asarray(file), labels)


def test_colours_of_depth_disparity_and_normals():
    near_to_far = np.linspace(1, 5, 9, dtype=np.float32)[None, :, None]
    picture = Depth("depth").picture(near_to_far)
    assert (np.diff(picture.sum(-1, dtype=int)) < 0).all()  # ever darker
    np.testing.assert_array_equal(
        Depth("depth").picture(near_to_far + 9, near_to_far), picture[:, -1:].repeat(9, 1)
    )
    np.testing.assert_array_equal(Depth("depth").picture(near_to_far * 0 + 2)[0, 0], picture[0, -1])
    np.testing.assert_array_equal(
        Disparity("disparity").picture(near_to_far),
        picture[:, ::-1],  # what is far has a small one
    )
    right_up_here = np.float32([[[1, 0, 0], [0, -1, 0], [0, 0, -1]]])
    np.testing.assert_array_equal(
        Normals("normals").picture(right_up_here),
        [[[255, 128, 128], [128, 255, 128], [128, 128, 255]]],
    )


def test_palette_is_distinct_never_black_and_grows_at_its_end():
    colours = palette(200).astype(int)
    assert len(np.unique(colours, axis=0)) == 200
    assert colours.sum(-1).min() > 100
    np.testing.assert_array_equal(colours[:13], palette(13))
    distance = np.linalg.norm(colours[:13, None] - colours[:13], axis=-1) + 999 * np.eye(13)
    assert distance.min() > 50


def test_make_task():
    assert make_task("semantic", class_names=["floor", "wall"]) == Semantic(
        "semantic", 2, ("floor", "wall")
    )
    for name in NAMES:
        task = make_task(name, class_names=CLASS_NAMES)
        assert task.name == name
        assert dataclasses.is_dataclass(task)
        assert hash(task) == hash(make_task(name, class_names=CLASS_NAMES))
    channels = {name: task_of(name).channels for name in NAMES}
    assert channels == dict.fromkeys(NAMES, 1) | NUM_CLASSES | {"normals": 3}
    assert make_task("human_parts", class_names=CLASS_NAMES).class_names == PART_NAMES


def test_make_task_tells_what_is_wrong():
    with pytest.raises(UserError, match="'dept'.*semantic, depth, disparity, normals"):
        make_task("dept", class_names=())
    with pytest.raises(UserError, match="'semantic'.*class names"):
        make_task("semantic", class_names=())


def test_classes_without_names_are_numbered():
    maps, target = case_of("semantic")
    assert "iou/4" in summary(Semantic("semantic", C), maps, target)


def test_people_absent_from_an_image_give_nothing():
    task, (maps, target) = task_of("human_parts"), case_of("human_parts")
    alone = summary(task, maps[1:], target[1:])
    target[0] = -1
    assert loss(task, maps[:1], target[:1]) == (0, 0)
    assert summary(task, maps, target) == alone


def test_the_background_of_parts_is_grey_and_no_part_is():
    colours = task_of("human_parts").colours()
    np.testing.assert_array_equal(colours[0], [200, 200, 200])
    assert np.ptp(colours[1:].astype(int), axis=1).min() > 20


def test_saliency_of_one_kind_gives_no_loss_and_even_odds_are_its_best_constant():
    task, (maps, target) = task_of("saliency"), case_of("saliency")
    for only in (0, 1):
        total, count = loss(task, maps, np.full_like(target, only))
        assert (total, count) == (0, B * H * W)

    def of_constant(logit):
        return float(loss(task, np.full_like(maps, logit), target)[0])

    (best,) = constant_of("saliency", target)
    assert of_constant(best) < min(of_constant(best - 0.1), of_constant(best + 0.1))


def test_saliency_averages_over_images_or_pixels():
    """Two images: one with a large object, found; one with a small one, missed."""
    target = np.zeros((2, H, W, 1), np.float32)
    target[0, :, :8], target[1, 0, 0] = 1, 1
    maps = np.where(target == 1, 9, -9).astype(np.float32)
    maps[1] = -9
    actual = summary(Saliency("saliency"), maps, target)
    assert actual["miou_max"] == 0.5
    recall = 96 / 97
    assert actual["max_f"] == pytest.approx(1.3 * recall / (0.3 + recall))


@settings(deadline=None, max_examples=5)
@given(seed=st.integers(0, 2**32), labelled=st.sampled_from([0, 0.5, 1]))
def test_host_metrics_of_two_parts_added_are_the_whole(seed, labelled):
    task, (maps, target) = task_of("edges"), case_of("edges", seed, labelled)
    parts = [host_metrics(task, maps[p], target[p]) for p in (slice(1), slice(1, None))]
    whole = host_metrics(task, maps, target)
    assert whole.keys() == {"exact/counts", "exact/best"}
    for key, value in whole.items():
        assert value.dtype == np.int64
        np.testing.assert_array_equal(parts[0][key] + parts[1][key], value)


def test_host_metrics_do_not_see_unlabelled_pixels():
    task, (maps, target) = task_of("edges"), case_of("edges")
    other = np.where(reference_valid("edges", target)[..., None], maps, 7 - 2 * maps)
    actual, expected = host_metrics(task, other, target), host_metrics(task, maps, target)
    np.testing.assert_array_equal(actual["exact/counts"], expected["exact/counts"])


def test_one_line_matches_one_line():
    """Two lines beside a true one are both within the tolerance, but only one can be matched."""
    target = np.zeros((1, 60, 80, 1), np.float32)
    target[0, :, 40] = 1
    maps = np.full_like(target, -9)
    maps[0, :, 39] = maps[0, :, 41] = 9
    actual = summary(Edges("edges", tolerance=0.02), maps, target)
    assert actual["tolerant/ods_f"] == 1
    assert actual["ods_f"] == pytest.approx(2 / 3)
    # A band is thinned to one line before it is matched, true or predicted.
    maps[0, :, 40] = 9
    target[0, :, 41] = 1
    assert summary(Edges("edges", tolerance=0.02), maps, target)["ods_f"] > 0.95


def test_edges_without_host_metrics_have_the_tolerant_ones():
    task, (maps, target) = task_of("edges"), case_of("edges")
    without = task.summarise(jax.device_get(metrics(task, maps, target)))
    assert without.keys() == {"tolerant/ods_f", "tolerant/ods_threshold", "tolerant/ois_f"}
    assert without.items() < summary(task, maps, target).items()
