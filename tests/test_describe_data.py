"""From a data set as it lies to the first step, without moving a file."""

import json
import shlex
from pathlib import Path

import ml_collections
import numpy as np
import pytest
from PIL import Image

from talora_jax.commands import main
from talora_jax.data import open_dataset
from talora_jax.errors import UserError
from talora_jax.training.log import read_metrics
from tests import trees


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Makes one of the trees, and goes beside it."""
    monkeypatch.chdir(tmp_path)

    def make(name):
        if name == "hypersim_exr":
            pytest.importorskip("OpenEXR")
        root = tmp_path / name
        root.mkdir()
        trees.TREES[name](root)
        return root

    return make


def opened(root, tasks, **changes):
    data = {"name": "folder", "path": str(root), "dir": str(root.parent / "prepared")}
    return open_dataset(ml_collections.ConfigDict(data | {"val_fraction": 0.2} | changes), tasks)


def listed(root):
    return sorted(path.relative_to(root) for path in root.rglob("*"))


WANTED = {
    # Tasks, samples of each split, classes, and the files of a validation sample.
    "camvid": (("semantic",), (3, 2), 11, "val/v0001TP_000690.png valannot/v0001TP_000690.png"),
    "cityscapes": (
        ("semantic", "disparity"),
        (4, 2),
        19,
        "leftImg8bit/val/lindau/lindau_000000_000019_leftImg8bit.png "
        "disparity/val/lindau/lindau_000000_000019_disparity.png "
        "gtFine/val/lindau/lindau_000000_000019_gtFine_labelIds.png",
    ),
    "colour_masks": (("semantic",), (3, 1), 3, None),
    "hypersim_exr": (("depth",), (6, 2), 0, None),
    "hypersim_npz": (("depth",), (6, 2), 0, None),
    "hypersim_npy": (("depth",), (6, 2), 0, None),
    "ade20k": (("semantic",), (3, 2), 3, None),
    "voc": (
        ("semantic",),
        (3, 2),
        4,
        "JPEGImages/2007_000033.jpg SegmentationClass/2007_000033.png",
    ),
    "sun_rgbd": (("depth",), (3, 1), 0, None),
    "scannet": (("semantic", "depth"), (3, 1), 3, None),
}


@pytest.mark.parametrize("name", WANTED)
def test_trees_as_people_have_them(tree, name, capsys):
    tasks, counts, classes, files = WANTED[name]
    root = tree(name)
    before = listed(root)
    main(["describe-data", str(root), "--write"])
    text = capsys.readouterr().out
    assert f"{counts[0]} training and {counts[1]} validation samples" in text
    assert "problem:" not in text
    assert set(listed(root)) == {*before, Path("dataset.json")}
    dataset = opened(root, tasks)
    assert tuple(len(dataset.splits[split]) for split in ("train", "val")) == counts
    assert len(dataset.class_names) == classes
    if files:
        assert set(files.split()) <= set(dataset.contents["val"])
    sample = dataset.splits["train"][0]
    if "depth" in tasks:
        assert 1 <= sample["depth"].min() and sample["depth"].max() < 5
    with Image.open(f"{name}_samples.png") as sheet:
        assert sheet.width > 480 and sheet.height > 200


def test_labels_are_those_of_their_own_image(tree):
    """The scenes' colours go with the classes: a wrong pair would show."""
    root = tree("colour_masks")
    main(["describe-data", str(root), "--write"])
    dataset = opened(root, ("semantic",))
    assert dataset.class_names == ("road", "sky", "tree")
    scenes = [trees.scene(i)[1] for i in range(4)]
    found = [dataset.splits[s][i]["semantic"] for s, n in (("train", 3), ("val", 1))
             for i in range(n)]  # fmt: skip
    expected = {np.where(label == 3, -1, label).astype(np.int32).tobytes() for label in scenes}
    assert {labels.tobytes() for labels in found} == expected


ONE_STEP = [
    "--config.model.size=nano", "--config.model.weights=", "--config.adapter.kind=none",
    "--config.steps=1", "--config.log_every=1", "--config.num_pictures=0",
]  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [
        "camvid",
        *(
            pytest.param(name, marks=[pytest.mark.slow, pytest.mark.long])
            for name in ("cityscapes", "colour_masks", "hypersim_exr")
        ),
    ],
)
def test_two_commands_to_the_first_step(tree, name, linear, capsys):
    root = tree(name)
    main(["describe-data", str(root), "--write"])
    (last,) = (line for line in capsys.readouterr().out.splitlines() if "talora_jax train" in line)
    command = shlex.split(last.partition("talora_jax ")[2])
    records = f"--config.data.dir={root.parent / 'prepared'}"
    main([*command, records, *ONE_STEP])
    metrics = read_metrics(root.parent / "runs" / name / "metrics.jsonl")
    assert any(line.get("split") == "val" for line in metrics)
    assert np.isfinite([line["loss"] for line in metrics if "loss" in line]).all()


def test_a_description_beside_data_that_is_not_ones_own(tree, tmp_path, capsys):
    root = tree("cityscapes")
    before = listed(root)
    main(["describe-data", str(root), "--write", "mine.json", "--sheet", "seen.png"])
    assert "--config.data.description=mine.json" in capsys.readouterr().out
    assert listed(root) == before and Path("seen.png").exists()
    assert len(opened(root, ("semantic",), description="mine.json").splits["train"]) == 4
    with pytest.raises(UserError, match=r"mine\.json is there already; remove it"):
        main(["describe-data", str(root), "--write", "mine.json"])
    main(["describe-data", str(root), "--description", "cityscapes_7"])
    text = capsys.readouterr().out
    assert "class ids 0 to 1, 2 found" in text and "as it was guessed" not in text


def test_what_is_described_is_not_guessed(tree, capsys):
    root = tree("camvid")
    main(["describe-data", str(root), "--write"])
    content = json.loads((root / "dataset.json").read_text())
    assert content["files"] == {
        "image": "{split}/{stem}.png",
        "semantic": "{split}annot/{stem}.png",
    }
    (root / "dataset.json").write_text(json.dumps(content | {"ignore_label": 3}))
    (root / "trainannot/t0001TP_000690.png").unlink()
    capsys.readouterr()
    main(["describe-data", str(root)])
    text = capsys.readouterr().out
    assert "problem: 1 images have no semantic, train/t0001TP_000690 first" in text
    assert "problem: semantic: 4 of 5 files: trainannot/" in text
    with pytest.raises(UserError, match="dataset.json is there already"):
        main(["describe-data", str(root), "--write"])


def test_partly_labelled(tree, capsys):
    root = tree("camvid")
    main(["describe-data", str(root), "--write"])
    content = json.loads((root / "dataset.json").read_text())
    (root / "dataset.json").write_text(json.dumps(content | {"partly": True}))
    (root / "trainannot/t0001TP_000690.png").unlink()
    capsys.readouterr()
    main(["describe-data", str(root)])
    text = capsys.readouterr().out
    assert "semantic: 4 of 5 images have it" in text and "problem" not in text
    # The one without is among the pictures.
    assert "5 samples as pictures" in text and "--config.tasks=\"('semantic',)\"" in text


def test_a_plain_folder(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["describe-data", str(folder)])
    text = capsys.readouterr().out
    for name in ("semantic: class ids 0 to 2", "depth: min 1", "normals: 100 %"):
        assert name in text
    assert "--config.tasks=\"('semantic', 'depth', 'normals')\"" in text


def test_a_split_without_targets_is_left_out(tmp_path, monkeypatch, capsys):
    """KITTI's test images have no labels: validation is drawn from the others."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "KITTI"
    for i in range(4):
        image, label, _ = trees.scene(i)
        trees.save(root / f"training/image_2/00000{i}_10.png", image)
        trees.save(root / f"testing/image_2/00000{i}_10.png", image)
        trees.save(root / f"training/semantic/00000{i}_10.png", np.uint8(label))
    main(["describe-data", str(root)])
    text = capsys.readouterr().out
    assert "3 training and 1 validation samples, drawn by their names" in text
    assert '"semantic": "training/semantic/{stem}.png"' in text


def test_odd_names(tmp_path, monkeypatch, capsys):
    """Spaces, many words of roles in one name, and what means something else in a pattern."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "my data"
    for i in range(4):
        image, label, _ = trees.scene(i)
        name = f"a {i}_img_b_label_c_depth_d_mask_e"
        trees.save(root / f"my photos/{name}.jpg", image)
        trees.save(root / f"my masks/{name}.png", np.uint8(label))
        trees.save(root / f"my masks/{{x}}*{i}.png", np.uint8(label))
    main(["describe-data", str(root)])
    text = capsys.readouterr().out
    assert "3 training and 1 validation samples" in text and "in 4 files of 24×32" in text
    assert f"--config.data.path='{root}'" in text and "--workdir 'runs/my data'" in text


def test_folders_in_which_nothing_is_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, expected in (
        ("nowhere", "is not a directory"),
        ("empty", "no photos were found among 0 files"),
        ("alone", "no other files that belong to each of them"),
    ):
        root = tmp_path / name
        if name != "nowhere":
            root.mkdir()
        if name == "alone":
            trees.save(root / "photos/a.jpg", trees.scene(0)[0])
            trees.save(root / "masks/b.png", np.uint8(trees.scene(0)[1]))
        with pytest.raises(UserError) as error:
            main(["describe-data", str(root)])
        assert expected in str(error.value) and len(str(error.value)) < 600


def test_what_the_numbers_of_files_may_mean(tmp_path, monkeypatch):
    """Depth of another unit with a value for none, normals with y up, a mask of 0 and 255."""
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "data"
    for i in range(4):
        image, label, depth = trees.scene(i)
        trees.save(root / f"rgb/{i:03}.jpg", image)
        pixels = (depth * 1000).astype(np.uint16)
        pixels[0] = 65535
        trees.save(root / f"depth/{i:03}.png", pixels)
        normals = np.broadcast_to(np.uint8([128, 200, 230]), (*trees.SIZE, 3))
        trees.save(root / f"normals/{i:03}.png", np.ascontiguousarray(normals))
        trees.save(root / f"disparity/{i:03}.npy", 1 / depth[None])  # channels first
        trees.save(root / f"saliency/{i:03}.png", np.uint8(label == 1) * 255)
        trees.save(root / f"masks/{i:03}.png", np.uint8(label == 1) * 255)
    main(["describe-data", str(root), "--write"])
    read = json.loads((root / "dataset.json").read_text())["read"]
    assert read == {
        "depth": {"ignore": [65535], "scale": 1000},
        "disparity": {},
        "normals": {"axes": "opengl"},
        "semantic": {"ids": {"0": "background", "255": "foreground"}},
    }
    tasks = ("semantic", "depth", "normals", "saliency", "disparity")
    sample = opened(root, tasks).splits["val"][0]
    np.testing.assert_array_equal(sample["semantic"], sample["saliency"][..., 0])
    measured = sample["depth"] > 0
    depth = 1 / sample["disparity"][measured]
    np.testing.assert_allclose(depth, sample["depth"][measured], atol=1e-3)
    assert sample["depth"][0].max() == 0 and sample["depth"][1:].min() >= 1
    assert (sample["normals"][..., 1] < 0).all() and (sample["normals"][..., 2] < 0).all()


def of_labels(root, **folders):
    """Photos, and a PNG of each value of `folders` beside each of them."""
    for i in range(4):
        image, label, _ = trees.scene(i)
        other = trees.scene(i + 20)[1]
        trees.save(root / f"photos/{i:03}.jpg", image)
        for folder, made in folders.items():
            trees.save(root / f"{folder}/{i:03}.png", np.uint8(made(label, other)))


def test_a_second_head_of_one_kind(tmp_path, monkeypatch, capsys):
    """A folder of another name is a head; one that only draws the first, or whose name says no more
    than the first's, is left out, and told."""
    monkeypatch.chdir(tmp_path)
    colours = np.uint8([[128, 64, 128], [70, 130, 180], [0, 128, 0], [9, 9, 9]])
    void = {1: 255}
    of_labels(
        tmp_path / "data",
        labels=lambda label, _: label,
        masks=lambda label, other: other % 2,
        drawn=lambda label, _: colours[label],
        materials=lambda _, other: np.vectorize(lambda x: void.get(x, x))(other),
    )
    main(["describe-data", "data", "--write"])
    text = capsys.readouterr().out
    assert "--config.tasks=\"('semantic', 'semantic:materials')\"" in text
    assert "semantic:materials: class ids 0 to 3, 3 found, 1 missing" in text
    assert "semantic: drawn/{stem}.png says the same in other numbers or colours" in text
    assert "masks/{stem}.png is of 4 images, too, and is left out" in text
    dataset = opened(tmp_path / "data", ("semantic", "semantic:materials"))
    samples = [dataset.splits["train"][i] for i in range(3)]
    for sample in samples:
        image = next(i for i in range(4) if (sample["semantic"] == trees.scene(i)[1]).all())
        expected = trees.scene(image + 20)[1]
        np.testing.assert_array_equal(
            sample["semantic:materials"], np.where(expected == 1, -1, expected)
        )
