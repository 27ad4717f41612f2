"""Heads of a kind in a folder: their own files, classes, and what their numbers mean."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from talora_jax import config as config_lib
from talora_jax.data import class_names, classes_of
from talora_jax.errors import UserError

COLOURS = np.array([[200, 0, 0], [0, 200, 0]], np.uint8)


def test_a_folder_of_each_head(planes, root):
    shutil.copytree(root / "semantic", root / "semantic-twice")
    shutil.copytree(root / "depth", root / "depth-second")
    (root / "depth-Old").mkdir()  # of no name that a head can have
    tasks = ("semantic", "depth", "semantic:twice", "depth:second")
    dataset = planes.open_root(root, tasks, depth_scale=500.0, class_names=("a", "b"))
    assert {"semantic:twice", "depth:second"} < {*dataset.tasks} > {"normals", "edges"}
    assert dataset.classes("semantic") == dataset.class_names == ("a", "b")
    # What stands beside `read` is of the first head alone.
    assert dataset.classes("semantic:twice") == ("class 0", "class 1")
    sample = dataset.splits["train"][0]
    np.testing.assert_array_equal(sample["semantic:twice"], sample["semantic"])
    np.testing.assert_allclose(sample["depth:second"], sample["depth"] / 2, rtol=1e-6)
    assert (sample["depth"] > 0).any()
    # Once prepared, for other runs as well.
    again = planes.open_root(root, ("depth:second",))
    np.testing.assert_array_equal(again.splits["train"][0]["depth:second"], sample["depth:second"])


@pytest.mark.parametrize("by", ["files", "table"])
def test_described_heads(planes, root, by):
    """A head in colours beside one of indices, wherever they lie."""
    (root / "mats").mkdir()
    for path in sorted((root / "semantic").iterdir()):
        wood = COLOURS[np.asarray(Image.open(path)) % 2]
        Image.fromarray(wood).save(root / "mats" / path.name)
    files = {"image": "image/{stem}.png", "semantic:materials": "mats/{stem}.png"}
    said = {"files": files}
    if by == "table":
        rows = [f"image/{i}.png,mats/{i}.png" for i in range(5)]
        (root / "all.csv").write_text("\n".join(["image,semantic:materials", *rows]))
        said = {"table": "all.csv"}
    table = {"colours": {"wood": [200, 0, 0], "metal": [0, 200, 0]}}
    planes.write_json(root, said | {"read": {"semantic:materials": table}})
    dataset = planes.open_root(root, ("semantic:materials",))
    assert dataset.classes("semantic:materials") == ("wood", "metal") and not dataset.class_names
    sample = dataset.splits["val"][0]["semantic:materials"]
    assert {*np.unique(sample)} == {0, 1}


@pytest.mark.parametrize(
    "said, told",
    [
        ({"read": {"semantic:Wood": {}}}, r"read\.semantic:Wood: unknown target; .*semantic:mat"),
        (
            {"read": {"semantic:wood": {"class_names": ["a", "a"]}}},
            r"semantic:wood\.class_names is",
        ),
        ({"read": {"semantic:wood": {"class_names": []}}}, "expected a list of distinct names"),
        ({"read": {"semantic": {"class_names": ["a"]}}}, "unknown field 'class_names'"),
        ({"read": {"depth:second": {"class_names": ["a"]}}}, "unknown field 'class_names'"),
        ({"files": {"image": "image/{stem}.png", "x:y": "x/{stem}.png"}}, "target 'x:y'; .*heads"),
        ({"table": {"files": "t.csv", "columns": ["image", "depth:"]}}, "unknown 'depth:'"),
    ],
)
def test_what_is_no_head_is_refused(planes, root, said, told):
    planes.write_json(root, said)
    with pytest.raises(UserError, match=told):
        planes.open_root(root, ("semantic",))


def test_labels_above_a_heads_classes(planes, root):
    shutil.copytree(root / "semantic", root / "semantic-one")
    planes.write_json(root, {"read": {"semantic:one": {"class_names": ["only"]}}})
    told = planes.refused(root, ("semantic:one",))
    assert "semantic-one/0.png" in told and "for the 1 class_names" in told


def test_a_mix_of_heads(planes, root, tmp_path):
    shutil.copytree(root / "semantic", root / "semantic-twice")
    part = {"path": str(root), "tasks": ["semantic:twice"]}
    mix = {"parts": {"one": part, "two": {"path": str(root), "tasks": ["depth", "semantic"]}}}
    path = tmp_path / "mix.json"
    path.write_text(json.dumps(mix))
    data = config_lib.default().data
    data.update(name="mix", path=str(path), dir=str(tmp_path / "prepared"), image_size=None)
    names = classes_of(data, ("semantic", "semantic:twice"))
    assert names == dict.fromkeys(("semantic", "semantic:twice"), ("class 0", "class 1"))
    assert class_names(data, ("semantic",)) == ("class 0", "class 1")
    path.write_text(json.dumps(mix).replace("semantic:twice", "semantic:a-b"))
    with pytest.raises(
        UserError, match="expected a list of targets that it gives, .*heads of these"
    ):
        class_names(data, ("semantic",))
