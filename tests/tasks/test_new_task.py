"""A new task is one class and its line in `TASKS`: nothing else has to know it."""

import dataclasses
import shutil

import ml_collections
import numpy as np
import optax
import pytest
from PIL import Image

from talora_jax.data import open_dataset
from talora_jax.data.pipeline import eval_batches, train_iterator
from talora_jax.errors import UserError
from talora_jax.tasks import TASKS, make_task
from talora_jax.tasks.binary import Binary, reached
from talora_jax.training.loop import train

SIZE = (24, 32)


@dataclasses.dataclass(frozen=True)
class Glass(Binary):
    """Where one sees through; the share of it that is found."""

    def pixel_loss(self, maps, target):
        return optax.sigmoid_binary_cross_entropy(maps, target)[..., 0]

    def metrics(self, maps, target):
        found = reached(self.activate(maps)[..., 0], target[..., 0] > 0.5, (0.5,))
        return {"found": found.sum(), "true": (target > 0.5).sum(), "labelled": (target >= 0).sum()}

    def summarise(self, sums):
        if not sums["true"]:
            return {}
        return {
            "recall": float(sums["found"] / sums["true"]),
            "labelled": float(sums["labelled"]),
        }

    def statistics(self, target):
        return {}

    def constant(self, statistics):
        return np.zeros(1, np.float32)


@pytest.fixture
def root(folder, tmp_path, monkeypatch):
    """The data of `folder` with a folder of glass: the middle, but in its first frame nothing."""
    monkeypatch.setitem(TASKS, "glass", Glass)
    root = shutil.copytree(folder, tmp_path / "data")
    (root / "glass").mkdir()
    for index in range(12):
        glass = np.zeros(SIZE, np.uint8)
        glass[8:16, 8:24] = 255 if index else 0
        Image.fromarray(glass).save(root / "glass" / f"{index:03d}.png")
    return root


def open_root(root, tasks):
    data = {"name": "folder", "path": str(root), "dir": str(root.parent / "records")}
    return open_dataset(ml_collections.ConfigDict(data | {"val_fraction": 0.25}), tasks)


def test_it_is_made_by_its_name(root):
    assert make_task("glass", class_names=()) == Glass("glass")


def test_it_is_read_from_a_folder(root):
    dataset = open_root(root, ("glass",))
    assert dataset.tasks == ("semantic", "depth", "normals", "edges", "glass")
    source = dataset.splits["train"]
    for index in range(len(source)):
        sample = source[index]
        assert set(sample) == {"image", "glass"}
        assert sample["glass"].dtype == np.float32
        assert sample["glass"].shape == (*SIZE, 1)
        assert set(np.unique(sample["glass"])) <= {0, 1}
        assert not sample["glass"][:8].any()


def test_a_file_of_the_wrong_kind_is_named(root):
    (root / "glass" / "003.png").rename(root / "glass" / "003.jpg")
    with pytest.raises(UserError, match=r"glass/003.jpg: expected a file of kind .png, .npy"):
        open_root(root, ("glass",))


def test_what_fills_the_last_batch_is_unlabelled(root):
    source = open_root(root, ("glass",)).splits["val"]
    assert len(source) == 3
    where = {"image_size": SIZE}
    *_, last = eval_batches(source, tasks=("glass",), batch_size=2, **where)
    assert last["valid"].tolist() == [True, False]
    assert (last["glass"][1] == -1).all() and (last["glass"][0] >= 0).all()
    assert not Glass("glass").valid(last["glass"][1]).any()


def test_what_a_turn_brings_into_view_is_unlabelled(root):
    augment = {"scales": (1.0,), "turn": 45.0, "scale_range": (0.5, 0.5)}
    batch = next(
        train_iterator(
            open_root(root, ("glass",)).splits["train"],
            tasks=("glass",),
            image_size=SIZE,
            batch_size=4,
            seed=0,
            augment=ml_collections.ConfigDict(
                augment | {"flip": True, "colour_jitter": 0.0, "noise": 0.0, "shapes": 0}
            ),
            num_threads=0,
        )
    )
    outside = batch["glass"][..., 0] == -1
    assert 0.6 < outside.mean() < 0.9
    assert (batch["image"][outside] == 0).all()
    assert set(np.unique(batch["glass"])) == {-1, 0, 1}


@pytest.mark.slow
def test_it_trains_and_is_measured(root, config, tmp_path):
    config.tasks = ("glass",)
    config.weighting.task_weights = (1.0,)
    config.data.path = str(root)
    config.steps = 2
    metrics = train(config, tmp_path / "run")
    assert 0 <= metrics["glass/recall"] <= 1
    # Of the batch of four, those two that are validation images.
    assert metrics["glass/labelled"] == 2 * SIZE[0] * SIZE[1]
