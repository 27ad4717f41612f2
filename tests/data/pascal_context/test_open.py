"""PASCAL-Context as ASTMT packs it: what it gives, in samples, batches and training."""

import json
import runpy
import shutil
from pathlib import Path

import ml_collections
import numpy as np
import pytest
from PIL import Image

from talora_jax.data.pipeline import eval_batches, train_iterator
from talora_jax.training.loop import train

CONFIG = Path(__file__).parents[3] / "configs" / "pascal_context_vit_l.py"
SHAPES = {
    "image": (2, 32, 32, 3),
    "semantic": (2, 32, 32),
    "human_parts": (2, 32, 32),
    "saliency": (2, 32, 32, 1),
    "normals": (2, 32, 32, 3),
    "edges": (2, 32, 32, 1),
}


def test_the_dataset_says_what_it_holds(voc, pascal_mt, prepared):
    dataset = voc.open_root(pascal_mt, prepared)
    assert dataset.tasks == voc.TASKS
    assert len(dataset.class_names) == 21 and dataset.class_names[15] == "person"
    assert dataset.image_size == (32, 32)
    assert {split: len(source) for split, source in dataset.splits.items()} == {
        "train": 3,
        "val": 2,
    }
    assert set(voc.open_root(pascal_mt, prepared, ("edges",)).splits["val"][0]) == {
        "image",
        "edges",
    }


def test_samples_are_what_the_contract_says(voc, samples, pascal_mt):
    for stem, size in voc.SIZES.items():
        shapes = {name: (x.shape, x.dtype) for name, x in samples[stem].items()}
        assert shapes == {
            "image": ((*size, 3), np.uint8),
            "semantic": (size, np.int32),
            "human_parts": (size, np.int32),
            "saliency": ((*size, 1), np.float32),
            "normals": ((*size, 3), np.float32),
            "edges": ((*size, 1), np.float32),
        }
        stored = np.asarray(Image.open(pascal_mt / f"JPEGImages/{stem}.jpg"))
        np.testing.assert_array_equal(samples[stem]["image"], stored)


def test_it_is_prepared_once_and_again_after_a_change(voc, pascal_mt, download, tmp_path):
    directory = tmp_path / "records"
    voc.open_root(download, directory)
    records = sorted(directory.rglob("*.array_record*"))
    times = [path.stat().st_mtime_ns for path in records]
    voc.open_root(download, directory, ("semantic",))
    assert records and sorted(directory.rglob("*.array_record*")) == records
    assert [path.stat().st_mtime_ns for path in records] == times
    (download / "ImageSets/Context/val.txt").write_text(voc.VAL[1])
    assert len(voc.open_root(download, directory).splits["val"]) == 1
    assert len(voc.open_root(pascal_mt, directory).splits["val"]) == 2


def batches_of(voc, dataset, split, **changes):
    arguments = {
        "tasks": voc.TASKS,
        "image_size": dataset.image_size,
        "batch_size": 2,
    }
    return eval_batches(dataset.splits[split], **arguments | changes)


def test_batches_of_images_of_many_sizes_have_one(voc, pascal_mt, prepared):
    dataset = voc.open_root(pascal_mt, prepared)
    seen = list(batches_of(voc, dataset, "train"))
    assert [batch["valid"].tolist() for batch in seen] == [[True, True], [True, False]]
    augment = {"scales": (1.0,), "turn": 20.0, "scale_range": (0.75, 1.25)}
    augment |= {"flip": True, "colour_jitter": 0.0, "noise": 0.0, "shapes": 0}
    iterator = train_iterator(
        dataset.splits["train"],
        tasks=voc.TASKS,
        image_size=dataset.image_size,
        batch_size=2,
        seed=0,
        augment=ml_collections.ConfigDict(augment),
        num_threads=0,
    )
    seen += [next(iterator) for _ in range(4)]
    for batch in seen:
        batch.pop("valid", None)
        assert {name: x.shape for name, x in batch.items()} == SHAPES
        length = np.linalg.norm(batch["normals"], axis=-1)
        np.testing.assert_allclose(length[length > 0], 1, atol=1e-5)
        assert batch["semantic"].min() >= -1 and batch["semantic"].max() <= 20
        assert np.isin(batch["edges"], (-1, 0, 1)).all()


def test_evaluation_stretches_to_the_batchs_size(voc, pascal_mt, prepared, samples):
    batch = next(iter(batches_of(voc, voc.open_root(pascal_mt, prepared), "val")))
    for i, stem in enumerate(voc.VAL):
        height, width = voc.SIZES[stem]
        rows = ((np.arange(32) + 0.5) * height / 32).astype(int)
        columns = ((np.arange(32) + 0.5) * width / 32).astype(int)
        for task in voc.TASKS:
            expected = samples[stem][task][rows][:, columns]
            np.testing.assert_array_equal(batch[task][i], expected)


@pytest.mark.slow
def test_the_config_trains_and_evaluates(pascal_mt, prepared, nano_base, tmp_path):
    config = runpy.run_path(str(CONFIG))["get_config"]()
    config.data.path, config.data.dir = str(pascal_mt), str(prepared)
    config.data.image_size = (32, 32)
    config.model.size, config.model.weights = "nano", str(nano_base)
    config.model.remat = "none"
    config.adapter.ranks = (4, 4, 2)
    config.batch_size = config.eval_batch_size = 2
    config.steps = 2
    config.num_pictures = 0
    metrics = train(config, tmp_path / "run")
    tasks = {name.split("/")[0] for name in metrics}
    assert tasks == set(config.tasks)
    assert all(np.isfinite(value) for value in metrics.values())
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    steps = [line for line in map(json.loads, lines) if line["split"] == "train"]
    assert steps[-1]["step"] == 2


@pytest.mark.parametrize("size", [(), (512,), (0, 512)])
def test_batches_need_a_size(voc, pascal_mt, tmp_path, size):
    assert "pascal_context needs (height, width)" in voc.refused(
        pascal_mt, tmp_path, image_size=size
    )


def test_a_task_it_has_not(voc, pascal_mt, tmp_path):
    assert "has no targets for depth; it has semantic" in voc.refused(
        pascal_mt, tmp_path, tasks=("depth",)
    )


def test_what_a_run_does_not_need_may_be_broken_or_missing(
    voc, download, samples, tmp_path, capsys
):
    voc.truncate(download / "sal_distill/2008_000003.png")
    shutil.rmtree(download / "human_parts")
    for tasks in (("semantic",), ("normals", "edges")):
        for _ in range(2):
            dataset = voc.open_root(download, tmp_path, tasks)
            sample = dataset.splits["train"][0]
            assert set(sample) == {"image", *tasks}
            for name, values in sample.items():
                np.testing.assert_array_equal(values, samples["2008_000002"][name])
        told = capsys.readouterr().err
        assert told.count("note: ") == 1 and "it lacks human_parts" in told
        files = dataset.contents["train"]
        assert not any(file.startswith(dataset.unread) for file in files)
        needed = {"semantic": "semseg", "normals": "pascal-context"}[tasks[0]]
        assert any(file.startswith(needed) for file in files) and len(files) == 3 * (1 + len(tasks))
    for task in ("saliency", "human_parts"):
        assert task.partition("_")[0][:3] in voc.refused(download, tmp_path, tasks=(task,))
