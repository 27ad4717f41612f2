"""Tasks, raw maps and targets to test with, and the definitions of losses and metrics once more."""

import math

import jax
import numpy as np
from scipy import ndimage, optimize, spatial, special
from sklearn.metrics import accuracy_score, fbeta_score, jaccard_score

from talora_jax.tasks import (
    TASKS,
    Edges,
    HumanParts,
    Task,
    make_task,
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


def constant_of(name, target):
    return task_of(name).constant(jax.device_get(statistics(task_of(name), target)))


# Sums of parts.


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
