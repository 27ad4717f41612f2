"""What a user's own folder gives."""

import subprocess
import sys

import ml_collections
import numpy as np
import pytest

from talora_jax.data.folder import stated_class_names
from talora_jax.data.folder.edges import edges_from_ids
from talora_jax.errors import UserError


def test_samples_are_what_the_contract_says(planes, root):
    dataset = planes.open_root(root)
    assert dataset.name == "folder"
    assert dataset.tasks == planes.ALL
    assert dataset.class_names == ("class 0", "class 1")
    assert dataset.image_size == planes.SIZE
    assert {split: len(source) for split, source in dataset.splits.items()} == {
        "train": 3,
        "val": 2,
    }
    images = set()
    for sample in planes.samples(dataset):
        assert {name: (values.shape, values.dtype) for name, values in sample.items()} == {
            "image": ((*planes.SIZE, 3), np.uint8),
            "semantic": (planes.SIZE, np.int32),
            "depth": ((*planes.SIZE, 1), np.float32),
            "normals": ((*planes.SIZE, 3), np.float32),
            "edges": ((*planes.SIZE, 1), np.float32),
        }
        images.add(sample["image"].tobytes())
        expected = np.where(planes.labels() == 255, -1, planes.labels().astype(np.int32))
        np.testing.assert_array_equal(sample["semantic"], expected)
        np.testing.assert_allclose(sample["depth"][..., 0], planes.plane_depth(), atol=6e-5)
        np.testing.assert_array_equal(sample["edges"], edges_from_ids(expected))
    rng = [np.random.default_rng(index) for index in range(5)]
    assert images == {r.integers(0, 256, (*planes.SIZE, 3), dtype=np.uint8).tobytes() for r in rng}


def test_derived_normals_are_the_planes(planes, root):
    for sample in planes.samples(planes.open_root(root)):
        np.testing.assert_allclose(np.linalg.norm(sample["normals"], axis=-1), 1, atol=1e-4)
        assert planes.degrees(sample["normals"]).max() < 0.5


def test_only_the_tasks_asked_for_are_given(planes, root):
    dataset = planes.open_root(root, ("depth",))
    assert dataset.tasks == planes.ALL
    assert set(dataset.splits["val"][0]) == {"image", "depth"}


def test_edges_come_from_instances_before_semantics(planes, root):
    instance = np.ones(planes.SIZE, np.uint16)
    instance[:, 16:] = 700
    instance[20:] = 0
    for index in range(5):
        planes.save(root / f"instance/{index}.png", instance)
    edges = planes.open_root(root, ("edges",)).splits["train"][0]["edges"][..., 0]
    expected = np.zeros(planes.SIZE)
    expected[19:] = -1
    expected[:20, 15:17] = 1
    np.testing.assert_array_equal(edges, expected)


def test_edges_of_labels_alone_beside_a_folder_that_cannot_be_used(planes, root):
    expected = planes.open_root(root, ("edges",)).splits["train"][0]["edges"]
    (root / "depth/0.png").write_bytes(b"")
    sample = planes.open_root(root, ("edges",)).splits["train"][0]
    assert set(sample) == {"image", "edges"}
    np.testing.assert_array_equal(sample["edges"], expected)


def test_without_depth_and_labels_only_the_rest_is_offered(planes, root):
    for index in range(5):
        (root / f"depth/{index}.png").unlink()
    (root / "depth").rmdir()
    assert planes.open_root(root, ("semantic",)).tasks == ("semantic", "edges")
    message = planes.refused(root, ("depth", "normals"))
    assert message.endswith("has no targets for depth, normals; it has semantic, edges.")


def test_normals_need_intrinsics(planes, root):
    planes.write_json(root, {"intrinsics": None})
    message = planes.refused(root)
    assert "dataset.json" in message and "--config.data.intrinsics" in message
    assert planes.open_root(root, ("depth",)).tasks == ("semantic", "depth", "edges")


def test_what_is_prepared_and_damaged_is_told_or_made_anew(planes, root):
    names = planes.open_root(root).class_names
    kept = root.parent
    (checked,) = kept.rglob("checked/*.json")
    for damaged in (checked.read_text().replace('"num_classes": ', '"num_classes": 1'), "3", "{}"):
        checked.write_text(damaged)
        assert planes.open_root(root).class_names == names
        assert checked.read_text() != damaged
    for name, old, new in (
        ("metadata.json", '"stems"', '"sterns"'),
        ("metadata.json", '"depth": "depth"', '"depth": "dept"'),
        ("dataset_info.json", '"samples"', '"sampels"'),
        ("dataset_info.json", "{SHARD_X_OF_Y}", "{SHARD_Y_OF_X}"),
    ):
        (path,) = kept.rglob(name)
        whole = path.read_text()
        assert old in whole
        path.write_text(whole.replace(old, new))
        with pytest.raises(UserError, match="does not hold samples as they were prepared .*remove"):
            planes.open_root(root)
        path.write_text(whole)


def test_preparing_is_quiet_on_standard_output(planes, root, capfd):
    planes.open_root(root)
    assert capfd.readouterr().out == ""


@pytest.mark.process
def test_tensorflow_is_not_imported(root):
    script = f"""
import sys, ml_collections
from talora_jax.data import open_dataset
data = dict(name="folder", path={str(root)!r}, dir={str(root.parent / "prepared")!r})
open_dataset(ml_collections.ConfigDict(dict(data, val_fraction=0.4)), ["depth"]).splits["val"][0]
sys.exit("tensorflow" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_another_record_of_what_was_checked_is_as_none(planes, root):
    expected = planes.open_root(root, ("semantic",))
    kept = list(root.parent.rglob("checked/*.json"))
    right = [path.read_text() for path in kept]
    assert len(kept) == 2
    for content in (
        "{",
        "[]",
        "{}",
        "[" * 10**5,
        '{"image_size": 3, "num_classes": 2}',
        '{"image_size": [0, 32], "num_classes": 2}',
        '{"image_size": ["24", "32"], "num_classes": 2}',
        '{"image_size": [24, 32], "num_classes": -1}',
    ):
        for path in kept:
            path.write_text(content)
        found = planes.open_root(root, ("semantic",))
        assert (found.class_names, found.image_size) == (expected.class_names, expected.image_size)
        assert any(path.read_text() in right for path in kept), content


def test_contents_are_those_of_what_is_wanted(planes, root):
    planes.write_json(root, {"splits": {"train": ["0", "1"], "val": ["2"]}})
    semantic = planes.open_root(root, ("semantic",)).contents
    assert set(semantic["train"]) == {
        f"{kind}/{i}.png" for kind in ("image", "semantic") for i in "01"
    }
    assert semantic["settings"] == {
        "ignore_label": None,
        "image_size": planes.SIZE,
    }
    planes.write_json(root, {"splits": {"train": ["0", "1"], "val": ["2"]}, "depth_scale": 9})
    assert planes.open_root(root, ("semantic",)).contents == semantic
    normals = planes.open_root(root, ("normals",)).contents
    assert set(normals["val"]) == {"image/2.png", "depth/2.png"}
    assert set(normals["settings"]) == {"depth_scale", "image_size", "intrinsics", "max_depth"}
    np.testing.assert_equal(normals["settings"]["intrinsics"]["fx"], planes.INTRINSICS[0])


def test_a_folder_that_is_not_there_has_no_classes(tmp_path):
    data = ml_collections.ConfigDict({"path": str(tmp_path / "none")})
    with pytest.raises(UserError, match=r"none', which is not a directory"):
        stated_class_names(data)
