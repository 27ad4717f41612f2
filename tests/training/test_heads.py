"""Two heads of one kind, of different classes, in one model: from the folder to what is written."""

import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import talora_jax
from talora_jax.data import open_dataset
from talora_jax.errors import UserError
from talora_jax.experiments.finished_run import read_run
from talora_jax.experiments.tables import make_tables
from talora_jax.inference.programs import described, task_rows
from talora_jax.inference.to_files import find_images, predict
from talora_jax.training.checkpoint import Checkpoints
from talora_jax.training.loop import train
from talora_jax.training.setup import learnt_file, prepare
from talora_jax.training.step import init_state
from talora_jax.weights.adapter_file import AdapterFile

CLASSES = {"semantic": ("red", "green", "blue"), "semantic:materials": ("matt", "shiny")}
TASKS = tuple(CLASSES)
MATERIALS = np.array([0, 1, 1], np.uint8)  # of each colour


@pytest.fixture
def home(folder, tmp_path):
    """Colours, and materials that are told by them, of the lower half alone."""
    home = tmp_path / "home"
    for name in ("image", "semantic"):
        shutil.copytree(folder / name, home / name)
    (home / "semantic-materials").mkdir()
    for path in (home / "semantic").iterdir():
        materials = MATERIALS[np.asarray(Image.open(path))]
        materials[:12] = 255
        Image.fromarray(materials).save(home / "semantic-materials" / path.name)
    names = [*CLASSES["semantic:materials"]]
    (home / "dataset.json").write_text(
        json.dumps({"read": {"semantic:materials": {"class_names": names}}})
    )
    return home


@pytest.fixture
def heads(config, home):
    config.tasks, config.weighting.kind = TASKS, "equal"
    config.data.path = str(home)
    config.steps, config.checkpoint_every, config.num_pictures = 2, 0, 0
    return config


def iou(pairs, classes):
    """mIoU of pairs of predicted and true labels, -1 of these being none, and each class's."""
    confusion = np.zeros((classes, classes))
    for found, truth in pairs:
        np.add.at(confusion, (truth[truth >= 0], found[truth >= 0]), 1)
    hits = np.diagonal(confusion)
    of_class = hits / (confusion.sum(0) + confusion.sum(1) - hits)
    return np.nanmean(of_class), of_class


@pytest.mark.slow
def test_two_heads_from_folder_to_files(heads, home, tmp_path):
    workdir = tmp_path / "run"
    metrics = train(heads, workdir)

    # Each head is measured as NumPy does, on its own targets and classes.
    run = prepare(heads)
    assert [(task.name, task.class_names) for task in run.tasks] == [*CLASSES.items()]
    state, _ = Checkpoints(workdir, read_only=True).restore(init_state(run), print)
    model = nnx.merge(run.graphdef, state.trainable["model"], run.frozen)
    forward = jax.jit(lambda images: model(images))
    pairs = {task: [] for task in TASKS}
    for sample in run.dataset.splits["val"]:
        maps = forward(np.stack([sample["image"] / np.float32(255)] * 4))
        for task in TASKS:
            pairs[task].append((np.argmax(maps[task][0], -1), sample[task]))
        np.testing.assert_array_equal(sample["semantic:materials"][:12], -1)
        below = sample["semantic:materials"][12:]
        np.testing.assert_array_equal(below, MATERIALS[sample["semantic"][12:]])
    for task, names in CLASSES.items():
        mean, of_class = iou(pairs[task], len(names))
        np.testing.assert_allclose(metrics[f"{task}/miou"], mean, rtol=1e-6)
        for name, value in zip(names, of_class, strict=True):
            np.testing.assert_allclose(metrics.get(f"{task}/iou/{name}", np.nan), value, rtol=1e-6)

    # The adapter knows both, and what is written is called after each.
    trained = talora_jax.load(workdir)
    assert {task.name: tuple(task.class_names) for task in trained.tasks} == CLASSES
    out = tmp_path / "out"
    predict(trained, find_images([str(home / "image" / "000.png")], out), out, npy=True)
    arrays = [name for task in TASKS for name in (task, f"{task}_probabilities")]
    folders = [name.replace(":", "-") for name in arrays]
    assert {p.name for p in out.iterdir()} == {*folders, "panels", "summary.json"}
    found = trained.predict(Image.open(home / "image" / "000.png"))
    assert [*found] == arrays
    assert found["semantic:materials_probabilities"].shape == (24, 32, 2)
    png = Image.open(out / "semantic-materials" / "000.png")
    np.testing.assert_array_equal(np.asarray(png), found["semantic:materials"])
    assert png.text["task"] == "semantic:materials"
    assert json.loads(png.text["class_names"]) == ["matt", "shiny"]

    tells = described(trained, trained.tasks, (24, 32), None)
    assert tells["tasks"]["semantic:materials"]["class_names"] == ["matt", "shiny"]
    rows = "\n".join(task_rows(tells))
    assert all(f"| `{name}` |" in rows for name in arrays)

    table = make_tables([read_run(workdir)])[0]
    assert {f"{task}/miou" for task in TASKS} <= {*table.metrics}

    # A third head on the two, which stay as they are.
    shutil.copytree(home / "semantic-materials", home / "semantic-third")
    heads.tasks, heads.adapter.extend = ("semantic:third",), str(workdir)
    extended = prepare(heads)
    file = learnt_file(extended, extended.trainable)
    assert file.channels == {"semantic": 3, "semantic:materials": 2, "semantic:third": 2}
    assert file.class_names["semantic:third"] == ("class 0", "class 1")
    before = AdapterFile.read(workdir / "adapter.safetensors")
    rows = file.tensors["no_mask_embed"]
    np.testing.assert_array_equal(rows[:5], before.tensors["no_mask_embed"])
    assert len(rows) == 7


def test_data_sets_that_lack_a_head_say_so(config):
    config.data.name = "rooms"
    told = "'rooms' has no targets for semantic:materials; it has semantic, "
    with pytest.raises(UserError, match=told):
        open_dataset(config.data, TASKS)
