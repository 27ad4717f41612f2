"""Names, depths and normals of masks: from the task's own arrays where the mask lies."""

import jax
import numpy as np
import pytest
from flax import nnx

import talora_jax
from talora_jax.errors import UserError
from talora_jax.inference.masks.automatic import FoundMask
from talora_jax.inference.masks.boxes import box_of
from talora_jax.inference.masks.named import name_masks, numbered
from talora_jax.inference.masks.pictures import picture_of_masks
from talora_jax.inference.masks.run_lengths import RunLengths
from talora_jax.tasks import make_task
from talora_jax.weights.state import tensors_of

SIZE = (6, 8)
TASKS = (
    make_task("semantic", class_names=("floor", "chair")),
    make_task("depth", class_names=()),
    make_task("normals", class_names=()),
)


def found(*parts):
    masks = []
    for part in parts:
        mask = np.zeros(SIZE, bool)
        mask[part] = True
        runs = RunLengths.of(mask)
        masks.append(FoundMask(runs, box_of(mask), 0.9, 0.97, np.zeros(2), np.array([0, 0, 8, 6])))
    return masks


@pytest.fixture
def prediction():
    probabilities = np.full((*SIZE, 2), [0.8, 0.2], np.float32)
    probabilities[:3, :4] = [0.1, 0.9]
    depth = np.full(SIZE, 3.0, np.float32)
    depth[:3, :4] = 1.5
    depth[0, 0] = 100  # An outlier, which the median passes over.
    normals = np.full((*SIZE, 3), [0, -1, 0], np.float32)
    normals[:3, :4] = [0, 0, -1]
    return {
        "semantic": probabilities.argmax(-1),
        "semantic_probabilities": probabilities,
        "depth": depth,
        "normals": normals,
    }


def test_the_probability_of_a_mask_of_millions_of_pixels():
    probabilities = np.full((1000, 2000, 2), [0.38, 0.62], np.float32)
    mask = np.ones(probabilities.shape[:2], bool)
    one = FoundMask(
        RunLengths.of(mask), box_of(mask), 0.9, 0.97, np.zeros(2), np.array([0, 0, 2000, 1000])
    )
    (named,) = name_masks([one], {"semantic_probabilities": probabilities}, TASKS[:1])
    assert named.probability == pytest.approx(0.62)


def test_a_mask_is_what_lies_in_it(prediction):
    chair, floor, both = name_masks(
        found(np.s_[:3, :4], np.s_[4:, :], np.s_[:3, :5]), prediction, TASKS
    )
    assert (chair.name, chair.label, chair.depth) == ("chair", 1, 1.5)
    assert chair.probability == pytest.approx(0.9) and chair.normal == (0, 0, -1)
    assert (floor.name, floor.depth, floor.normal) == ("floor", 3.0, (0, -1, 0))
    # Twelve of its pixels are the chair's and three the floor's.
    assert both.name == "chair" and both.probability == pytest.approx((12 * 0.9 + 3 * 0.2) / 15)
    record = chair.record()
    assert record["category"] == "chair" and record["depth"] == 1.5 and record["area"] == 12


def test_without_depth_and_normals(prediction):
    named = name_masks(found(np.s_[:2, :2]), prediction, TASKS[:1])
    assert named[0].name == "chair" and named[0].depth is None and named[0].normal is None


def test_an_empty_mask_has_a_name(prediction):
    assert name_masks(found(np.s_[:0]), prediction, TASKS)[0].name == "chair"


def test_of_masks_upon_each_other_the_smallest_is_seen():
    masks = found(np.s_[:2, :2], np.s_[:, :4])
    numbers = numbered(masks, SIZE)
    assert (numbers[:2, :2] == 1).all() and (numbers[2:, :4] == 2).all()
    assert (numbers[:, 4:] == 0).all()


def test_refusals(prediction):
    masks = found(np.s_[:2])
    with pytest.raises(UserError, match="none of the tasks depth, normals has classes"):
        name_masks(masks, prediction, TASKS[1:])
    with pytest.raises(UserError, match="has no semantic_probabilities; .*probabilities=True"):
        name_masks(masks, {"depth": prediction["depth"]}, TASKS)
    other = {name: x[:3] for name, x in prediction.items()}
    with pytest.raises(UserError, match=r"\[6, 8\] pixels and a prediction of \[3, 8\]"):
        name_masks(masks, other, TASKS)


def test_the_picture_keeps_the_photo_where_nothing_is(prediction):
    image = np.full((*SIZE, 3), 90, np.uint8)
    masks = found(np.s_[:3, :4], np.s_[:3, 4:])
    plain = np.asarray(picture_of_masks(image, masks))
    named = name_masks(masks, prediction, TASKS)
    with_names = np.asarray(picture_of_masks(image, masks, (named, TASKS[0])))
    assert with_names.shape[0] > plain.shape[0] and with_names.shape[1] == plain.shape[1]
    # 640 pixels wide, twelve around: the right picture begins at 664.
    for picture in (plain, with_names):
        assert (picture[12 + 400, 664 + 100] == 90).all()
        assert (picture[12 + 20, 664 + 20] != 90).any()
    nothing = np.asarray(picture_of_masks(image, []))
    assert (nothing[12 + 20, 664 + 20] == 90).all()


def test_one_copy_of_the_frozen_weights(shelf, monkeypatch):
    monkeypatch.chdir(shelf)
    model = talora_jax.load("adapter.safetensors", base="sam_nano.safetensors")
    sam, whole = model.promptable(), talora_jax.load_sam("sam_nano.safetensors")
    ours, theirs = (tensors_of(nnx.state(one)) for one in (sam, whole))
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        np.testing.assert_array_equal(x, theirs[name])
    # (Elsewhere is only the tiny matrix of the positions, which has another name in mSAM.)
    frozen = {id(x) for n, x in model._base.frozen.items() if n.startswith("image_encoder.")}
    assert len(frozen) > 5
    assert frozen <= {id(x) for x in jax.tree.leaves(nnx.state(sam))}
    with pytest.raises(UserError, match="started from random numbers"):
        talora_jax.load("run").promptable()
