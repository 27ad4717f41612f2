"""`dataset.json` and the fields of `config.data` that go before it."""

import os

import numpy as np
import pytest


def test_the_config_takes_precedence_over_dataset_json(planes, root):
    planes.write_json(root, {"class_names": ["a", "b"], "depth_scale": 5000, "image_size": [5, 5]})
    names, size = ("floor", "box", "unseen"), (12, 16)
    dataset = planes.open_root(root, class_names=names, depth_scale=10_000.0, image_size=size)
    assert dataset.class_names == names
    assert dataset.image_size == size
    sample = dataset.splits["train"][0]
    # Nearest pixels at half-pixel centres; normals are the plane's at any size.
    np.testing.assert_allclose(sample["depth"][..., 0], planes.plane_depth()[1::2, 1::2], atol=6e-5)
    np.testing.assert_array_equal(sample["semantic"] == 1, planes.labels()[1::2, 1::2] == 1)
    assert planes.degrees(sample["normals"]).max() < 0.5


@pytest.mark.parametrize(
    "empty",
    [
        {"class_names": (), "intrinsics": (), "image_size": (), "ignore_label": None},
        {"class_names": None, "intrinsics": None, "image_size": None, "depth_scale": None},
    ],
)
def test_what_the_config_leaves_open_is_dataset_jsons(planes, root, empty):
    planes.write_json(root, {"class_names": ["a", "b"], "ignore_label": 0})
    sizes = np.full(planes.SIZE, 1, np.uint8)
    for index in range(5):
        planes.save(root / f"semantic/{index}.png", sizes - (planes.labels() == 1))
    dataset = planes.open_root(root, **empty)
    assert dataset.class_names == ("a", "b")
    expected = np.where(planes.labels() == 1, -1, 1)
    np.testing.assert_array_equal(dataset.splits["val"][0]["semantic"], expected)


@pytest.mark.parametrize(
    "content, message",
    [
        ({"clas_names": ["a"]}, "unknown field 'clas_names'; the fields are class_names, depth_"),
        ({"class_names": "ab"}, "class_names is 'ab'; expected a list of distinct names"),
        ({"class_names": ["a", "a"]}, "expected a list of distinct names"),
        ({"depth_scale": -1}, "depth_scale is -1; expected a positive number"),
        ({"depth_scale": "mm"}, "depth_scale is 'mm'; expected a positive number"),
        ({"max_depth": 0}, "max_depth is 0; expected a positive number, the farthest metres"),
        ({"ignore_label": 0.5}, "ignore_label is 0.5; expected an integer"),
        ({"intrinsics": {"fx": 1, "fy": 1, "cx": 1}}, "expected fx, fy, cx, cy in pixels"),
        ({"intrinsics": [0, 1, 1, 1]}, "expected fx, fy, cx, cy in pixels"),
        ({"intrinsics": 525}, "expected fx, fy, cx, cy in pixels"),
        ({"image_size": [10]}, "expected two positive integers"),
        ({"image_size": [10, 0]}, "expected two positive integers"),
        ({"splits": {"train": ["0"]}}, "under 'train' and 'val'"),
        ({"splits": {"train": ["0"], "val": []}}, "none of them empty"),
        ({"splits": {"train": ["0", "7"], "val": ["8"]}}, "splits name 7, 8, of which there is no"),
        ({"splits": {"train": ["0", "1"], "val": ["1"]}}, "1 stand in both splits"),
    ],
)
def test_dataset_json_is_checked(planes, root, content, message):
    planes.write_json(root, content)
    error = planes.refused(root)
    assert message in error
    assert "dataset.json" in error


@pytest.mark.parametrize("content", ["{", "[1]", "\x00"])
def test_dataset_json_must_be_an_object(planes, root, content):
    (root / "dataset.json").write_text(content)
    assert "dataset.json" in planes.refused(root)


def test_the_config_is_checked(planes, root):
    assert "config.data.intrinsics is (1, 2)" in planes.refused(root, intrinsics=(1, 2))
    assert "config.data.val_fraction is 1.5" in planes.refused(root, val_fraction=1.5)


def test_a_mark_of_the_byte_order_is_read_over(planes, root):
    content = (root / "dataset.json").read_text()
    (root / "dataset.json").write_text(content, encoding="utf-8-sig")
    assert planes.open_root(root, ("normals",)).tasks == planes.ALL


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"depth_scale": 5, "depth_scale": 6}', "'depth_scale' stands there twice"),
        ('{"splits": {"train": ["0"], "val": ["1"], "val": ["2"]}}', "'val' stands there twice"),
        ('{"depth_scale": NaN}', "depth_scale is nan; expected a positive number"),
        ('{"ignore_label": Infinity}', "ignore_label is inf; expected an integer"),
        ('{"intrinsics": [1, 1, NaN, 0]}', "expected fx, fy, cx, cy in pixels"),
        ('{"image_size": [1e400, 5]}', "image_size is [inf, 5]; expected two positive integers"),
        ('{"image_size": [99999, 5]}', "expected two positive integers"),
        ('{"class_names": ["a", "\\ud800"]}', "expected a list of distinct names"),
        ('{"class_names": ["a", " "]}', "expected a list of distinct names"),
        ("[" * 100_000, "cannot be read as JSON"),
        ("{}".encode("utf-16"), "is not UTF-8; save it in that encoding"),
    ],
)
def test_json_that_python_would_take(planes, root, content, message):
    content = content if isinstance(content, bytes) else content.encode()
    (root / "dataset.json").write_bytes(content)
    assert message in planes.refused(root)


def test_what_only_looks_like_dataset_json_is_not_passed_over(planes, root):
    (root / "dataset.json").rename(root / "Dataset.JSON")
    assert "Dataset.JSON: its name must be dataset.json" in planes.refused(root)
    (root / "dataset.json").symlink_to("gone")
    assert "dataset.json is no file, or a link that leads nowhere" in planes.refused(root)
    (root / "dataset.json").unlink()
    os.mkfifo(root / "dataset.json")
    assert "dataset.json is no file" in planes.refused(root)
