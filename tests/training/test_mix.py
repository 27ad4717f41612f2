"""Data sets with different tasks, one of them partly labelled, train one model."""

import itertools
import json
import shutil

import numpy as np
import pytest
from flax import nnx
from PIL import Image

from talora_jax.data.pipeline import train_iterator
from talora_jax.errors import UserError
from talora_jax.experiments.finished_run import read_run
from talora_jax.experiments.tables import make_tables
from talora_jax.training.checkpoint import Checkpoints
from talora_jax.training.evaluate import constant_baselines
from talora_jax.training.log import read_metrics
from talora_jax.training.loop import train
from talora_jax.training.setup import prepare
from talora_jax.training.step import init_state
from talora_jax.weights.adapter_file import AdapterFile

TASKS = ("semantic", "depth")
CITY = {"train": ["0", "1", "2", "3"], "val": ["4", "5", "6"]}
FLAT = {"train": ["a", "b"], "val": ["c", "d"]}
WITH_DEPTH = {"1", "5"}  # of the city


@pytest.fixture
def home(folder, tmp_path):
    """A city with classes everywhere and depth here and there, and a flat with depth alone."""
    for name, splits, targets in (("city", CITY, TASKS), ("flat", FLAT, ("depth",))):
        for target in ("image", *targets):
            (tmp_path / name / target).mkdir(parents=True)
        for number, stem in enumerate(sum(splits.values(), [])):
            source = f"{number + 7 * (name == 'flat'):03d}"
            for target in ("image", *targets):
                if target != "depth" or name == "flat" or stem in WITH_DEPTH:
                    suffix = "npy" if target == "depth" else "png"
                    file = tmp_path / name / target / f"{stem}.{suffix}"
                    shutil.copy(folder / target / f"{source}.{suffix}", file)
        described = {"splits": splits} | ({"partly": True} if name == "city" else {})
        (tmp_path / name / "dataset.json").write_text(json.dumps(described))
    names = ["red", "green", "blue"]
    parts = {
        "city": {"path": "city", "tasks": [*TASKS], "class_names": names},
        "flat": {"path": "flat", "tasks": ["depth"], "weight": 3},
    }
    (tmp_path / "mix.json").write_text(json.dumps({"parts": parts}))
    return tmp_path


@pytest.fixture
def mixed(config, linear, home):
    config.tasks, config.weighting.kind = TASKS, "uncertainty"
    config.data.update(name="mix", path=str(home / "mix.json"), class_names=None)
    config.batch_size = 2
    config.num_pictures = 0
    config.seed = 2  # of which no pixel's two best classes are so near that rounding decides
    return config


def truths(home, split):
    """Of each task, the images that have it and what NumPy reads of them."""
    found = {task: [] for task in TASKS}
    for name, splits in (("city", CITY), ("flat", FLAT)):
        for stem in splits[split]:
            image = np.asarray(Image.open(home / name / f"image/{stem}.png")) / np.float32(255)
            if name == "city":
                labels = np.asarray(Image.open(home / f"city/semantic/{stem}.png"))
                found["semantic"].append((image, labels.astype(int)))
            if name == "flat" or stem in WITH_DEPTH:
                found["depth"].append((image, np.load(home / name / f"depth/{stem}.npy")))
    return found


def measured(predictions):
    """The metrics that are compared, of (prediction, truth) in NumPy."""
    confusion = np.zeros((3, 3))
    for found, truth in predictions["semantic"]:
        np.add.at(confusion, (truth, found), 1)
    hits = np.diagonal(confusion)
    union = confusion.sum(0) + confusion.sum(1) - hits
    errors = [np.abs(found - truth) for found, truth in predictions["depth"]]
    return {
        "semantic/miou": (hits / union).mean(),
        "semantic/pixel_acc": hits.sum() / confusion.sum(),
        "depth/pooled/abs_err": np.concatenate(errors).mean(),
        "depth/per_image/abs_err": np.mean([error.mean() for error in errors]),
    }


def compare(metrics, expected):
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.slow
def test_metrics_are_numpys_over_the_samples_that_have_the_task(mixed, home, tmp_path, capsys):
    workdir = tmp_path / "run"
    metrics = train(mixed, workdir)
    lines = capsys.readouterr().out.splitlines()
    assert "part flat: depth; 2 training and 2 validation images, 75% of what is drawn" in lines
    assert "depth: 3 of 6 training and 3 of 5 validation images have it" in lines
    assert "semantic: 4 of 6 training and 3 of 5 validation images have it" in lines

    run = prepare(mixed)
    state, _ = Checkpoints(workdir, read_only=True).restore(init_state(run), print)
    model = nnx.merge(run.graphdef, state.trainable["model"], run.frozen)
    forward = nnx.jit(lambda model, images: model(images))
    predictions = {task: [] for task in TASKS}
    for task, pairs in truths(home, "val").items():
        for image, truth in pairs:
            # In batches of the size in which they were measured.
            maps = forward(model, np.stack([image] * 4))[task][0]
            output = next(t for t in run.tasks if t.name == task).outputs(maps)[task]
            predictions[task].append((np.asarray(output), truth))
    compare(metrics, measured(predictions))

    # Constants of the training images that have the task, on those for validation.
    train_truths, val_truths = truths(home, "train"), truths(home, "val")
    depth = np.mean([truth for _, truth in train_truths["depth"]])
    label = np.bincount(np.ravel([truth for _, truth in train_truths["semantic"]])).argmax()
    errors = [np.abs(depth - truth) for _, truth in val_truths["depth"]]
    labels = np.concatenate([truth.ravel() for _, truth in val_truths["semantic"]])
    baselines = constant_baselines(run)
    compare(
        baselines,
        {
            "depth/pooled/abs_err": np.concatenate(errors).mean(),
            "semantic/pixel_acc": (labels == label).mean(),
        },
    )

    # A step whose batch has no label of a task has no loss of it.
    iterator = train_iterator(
        run.dataset.splits["train"],
        tasks=TASKS,
        image_size=(24, 32),
        batch_size=2,
        seed=mixed.seed,
        augment=mixed.augment,
        num_threads=0,
    )
    rows = [row for row in read_metrics(workdir / "metrics.jsonl") if row["split"] == "train"]
    labelled = [(b["semantic"] >= 0).any() for b in itertools.islice(iterator, 4)]
    assert ["semantic/loss" in row for row in rows] == labelled and not all(labelled)

    # From the middle on, the same.
    resumed = tmp_path / "resumed"
    shutil.copytree(workdir, resumed)
    shutil.rmtree(resumed / "checkpoints" / "4")
    (resumed / "adapter.safetensors").unlink()
    assert train(mixed, resumed) == metrics
    files = [AdapterFile.read(w / "adapter.safetensors").tensors for w in (workdir, resumed)]
    assert files[0].keys() == files[1].keys()
    assert all(np.array_equal(x, files[1][name]) for name, x in files[0].items())

    # Beside other runs, it is told by what it is of.
    assert make_tables([read_run(workdir)])[0].title == "mix (city, flat)"
    # Not with parts that are drawn otherwise, which the file alone says.
    mix = home / "mix.json"
    mix.write_text(mix.read_text().replace('"weight": 3', '"weight": 2'))
    with pytest.raises(UserError, match=r"has changed: flat/weight was 3\.0 and is now 2\.0"):
        train(mixed, workdir)
