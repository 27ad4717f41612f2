"""Classes: labels that there are no classes for, names, colours; people and their parts."""

import io

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix

from talora_jax.data.folder.settings import Settings
from talora_jax.errors import UserError
from talora_jax.tasks import (
    HumanParts,
    Semantic,
    palette,
)
from talora_jax.tasks.masks import Instance
from talora_jax.tasks.target_files import BadFile


def test_confusion_matrix(cases):
    maps, target = cases.case_of("semantic")
    valid = target >= 0
    actual = cases.metrics(cases.task_of("semantic"), maps, target)["confusion"]
    expected = confusion_matrix(target[valid], maps.argmax(-1)[valid], labels=range(cases.C))
    assert actual.dtype == jnp.int32
    np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("name", ("semantic", "human_parts"))
@pytest.mark.parametrize("above", [0, 3, 255])
def test_a_label_without_a_class_is_not_hidden(cases, name, above):
    task, (maps, target) = cases.task_of(name), cases.case_of(name)
    target[1, 2, 3:5] = cases.NUM_CLASSES[name] + above
    assert np.isnan(cases.loss(task, maps, target)[0])
    expected = (
        f"{name}: 2 pixels have a label above the last class; expected 0 to {task.channels - 1},"
    )
    with pytest.raises(UserError, match=expected):
        cases.summary(task, maps, target)
    with pytest.raises(UserError, match=expected):
        cases.constant_of(name, target)


def test_classes_without_names_are_numbered(cases):
    maps, target = cases.case_of("semantic")
    assert "iou/4" in cases.summary(Semantic("semantic", cases.C), maps, target)


def test_more_classes_than_a_palette_has_colours():
    labels = np.arange(300)[None]
    file = Image.open(io.BytesIO(Semantic("semantic", 300).png(labels).encode()))
    np.testing.assert_array_equal(np.asarray(file), labels)


def test_palette_is_distinct_never_black_and_grows_at_its_end():
    colours = palette(200).astype(int)
    assert len(np.unique(colours, axis=0)) == 200
    assert colours.sum(-1).min() > 100
    np.testing.assert_array_equal(colours[:13], palette(13))
    distance = np.linalg.norm(colours[:13, None] - colours[:13], axis=-1) + 999 * np.eye(13)
    assert distance.min() > 50


def test_a_legend_has_every_class_that_occurs_and_none_of_them_fills_nothing():
    output = np.full((10, 20), 2)
    output[0, 0] = 0
    output[1, :3] = 1
    task = Semantic("semantic", 3, class_names=("wall", "floor", "bed"))
    assert task.legend(output).entries == ("bed  98 %", "floor  2 %", "wall  <1 %")


def test_people_absent_from_an_image_give_nothing(cases):
    task, (maps, target) = cases.task_of("human_parts"), cases.case_of("human_parts")
    alone = cases.summary(task, maps[1:], target[1:])
    target[0] = -1
    assert cases.loss(task, maps[:1], target[:1]) == (0, 0)
    assert cases.summary(task, maps, target) == alone


def test_the_background_of_parts_is_grey_and_no_part_is(cases):
    colours = cases.task_of("human_parts").colours()
    np.testing.assert_array_equal(colours[0], [200, 200, 200])
    assert np.ptp(colours[1:].astype(int), axis=1).min() > 20


def test_parts_are_read_by_their_own_classes(tmp_path):
    """Neither the names nor the label to ignore are those of `semantic`."""
    labels = np.uint8([[0, 6], [255, 1]])
    Image.fromarray(labels).save(tmp_path / "a.png")
    settings = Settings(class_names=("floor", "wall"), ignore_label=0)
    read = HumanParts.read(tmp_path / "a.png", settings)
    np.testing.assert_array_equal(read, [[0, 6], [-1, 1]])
    with pytest.raises(BadFile, match="label 255, expected 0 to 1 for the 2 class_names, or 0"):
        Semantic.read(tmp_path / "a.png", settings)
    Image.fromarray(labels + np.uint8(1)).save(tmp_path / "a.png")
    with pytest.raises(BadFile, match="label 7, expected 0 to 6 for the 7 class_names"):
        HumanParts.read(tmp_path / "a.png", settings)


@pytest.mark.parametrize("task", (Semantic, Instance))
@pytest.mark.parametrize("dtype", (np.int64, np.uint32, np.uint64))
def test_no_label_is_wrapped(tmp_path, task, dtype):
    np.save(tmp_path / "a.npy", np.array([[0, 2**31 + 1]], dtype))
    with pytest.raises(BadFile, match=r"value 2147483649, expected at most 2\*\*31 - 1, what 32"):
        task.read(tmp_path / "a.npy", Settings())
    np.save(tmp_path / "a.npy", np.array([[1, 2**31 - 1]], dtype))
    np.testing.assert_array_equal(task.read(tmp_path / "a.npy", Settings()), [[1, 2**31 - 1]])


def test_what_is_ignored_need_not_fit(tmp_path):
    np.save(tmp_path / "a.npy", np.array([[0, 1, 2**32 - 1]], np.uint32))
    read = Semantic.read(tmp_path / "a.npy", Settings(ignore_label=2**32 - 1))
    np.testing.assert_array_equal(read, [[0, 1, -1]])
    np.save(tmp_path / "a.npy", np.array([[0, 1, -100]]))
    read = Semantic.read(tmp_path / "a.npy", Settings(ignore_label=-100))
    np.testing.assert_array_equal(read, [[0, 1, -1]])
    with pytest.raises(BadFile, match="label -100, .* config.data.ignore_label names the one"):
        Semantic.read(tmp_path / "a.npy", Settings())


def test_the_colours_of_a_palette_that_are_in_use(tmp_path):
    image = Image.fromarray(np.uint8([[0, 2], [2, 255]])).convert("P")
    image.putdata([0, 2, 2, 255])
    image.putpalette([0, 0, 0, 9, 9, 9, 10, 20, 30])
    image.save(tmp_path / "a.png")
    target = Semantic.read(tmp_path / "a.png", Settings())
    colours = Semantic.palette_in_use(tmp_path / "a.png", target)
    assert colours == {0: (0, 0, 0), 2: (10, 20, 30)}
    Image.fromarray(np.uint8([[0, 2]])).save(tmp_path / "a.png")
    assert Semantic.palette_in_use(tmp_path / "a.png", np.array([[0, 2]])) == {}
