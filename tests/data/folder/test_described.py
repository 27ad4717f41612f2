"""Files that lie where their data set put them, as dataset.json says."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

LABELS = np.tile(np.uint8([[0, 1, 2, 11]]), (12, 4))


def image(seed, size=(12, 16)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def describe(root, **content):
    root.mkdir(exist_ok=True)
    (root / "dataset.json").write_text(json.dumps(content))


def opened(planes, root, tasks=("semantic",), **changes):
    return planes.open_root(root, tasks, **changes)


@pytest.fixture
def camvid(planes, tmp_path):
    root = tmp_path / "CamVid"
    for split, stems in (("train", "ab"), ("val", "a")):
        for number, stem in enumerate(stems):
            planes.save(root / f"{split}/{stem}.png", image(number))
            planes.save(root / f"{split}annot/{stem}.png", np.roll(LABELS, number, axis=1))
    describe(root, files={"image": "{split}/{stem}.png", "semantic": "{split}annot/{stem}.png"},
             ignore_label=11)  # fmt: skip
    return root


def test_a_pattern_of_splits(planes, camvid):
    dataset = opened(planes, camvid)
    assert {split: len(source) for split, source in dataset.splits.items()} == {
        "train": 2,
        "val": 1,
    }
    expected = np.roll(LABELS, 1, axis=1).astype(np.int32)
    expected[expected == 11] = -1
    np.testing.assert_array_equal(dataset.splits["train"][1]["semantic"], expected)
    np.testing.assert_array_equal(dataset.splits["train"][1]["image"], image(1))
    assert dataset.class_names == ("class 0", "class 1", "class 2")
    assert set(dataset.contents["train"]) == {
        "train/a.png", "train/b.png", "trainannot/a.png", "trainannot/b.png",
    }  # fmt: skip
    assert dataset.contents["settings"] == {"image_size": (12, 16), "ignore_label": 11}


def test_a_changed_file_is_found_out_and_prepared_anew(planes, camvid):
    before = opened(planes, camvid)
    planes.save(camvid / "trainannot/a.png", np.uint8(LABELS == 1))
    after = opened(planes, camvid)
    assert before.contents["val"] == after.contents["val"]
    changed = {name for name in before.contents["train"]
               if before.contents["train"][name] != after.contents["train"][name]}  # fmt: skip
    assert changed == {"trainannot/a.png"}
    np.testing.assert_array_equal(after.splits["train"][0]["semantic"], LABELS == 1)


def test_places_alone_prepare_nothing_anew(planes, camvid, capsys):
    opened(planes, camvid)
    capsys.readouterr()
    names = {"image": {"train": "train/{stem}.png", "val": "val/{stem}.png"},
             "semantic": "{split}annot/{stem}.*"}  # fmt: skip
    describe(camvid, files=names, ignore_label=11, class_names=["a", "b", "c"])
    assert opened(planes, camvid).class_names == ("a", "b", "c")
    assert "kept in" not in capsys.readouterr().err


def test_what_lacks_is_told(planes, camvid):
    (camvid / "trainannot/a.png").unlink()
    (camvid / "valannot/a.png").write_bytes(b"")
    lines = planes.refused(camvid, ("semantic",)).splitlines()
    assert lines[1:] == [
        "  train/a.png: semantic has no file for it ('trainannot/{stem}.png' or "
        "'valannot/{stem}.png'), expected one, or config.data.partly=True, which takes images "
        "that lack targets",
        "  valannot/a.png: empty (0 bytes)",
    ]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"image": "x/{stem}.png", "semantic": "{split}annot/{stem}.png"}, "tells train from val"),
        ({"image": "{split}/{stem}.png", "semantic": "{split}annot/{name}.png"}, "in common with"),
        ({"image": "{split}/{stem}.png", "semantic": "/a/{stem}.png"}, "a path below the data's"),
        ({"image": "{split}/{stem}.png", "semantic": "../{stem}.png"}, "a path below the data's"),
        ({"image": "{split}/{stem}.png", "semantic": "a/b.png"}, "one file; expected {stem}"),
        ({"image": "{split}/{stem}.png", "semantic": "a**/{stem}.png"}, "between slashes"),
        ({"image": "{split}/{stem}.png", "semantic": "a/{stem.png"}, "names in braces"),
        ({"image": "{split}/{stem}.png", "labels": "a/{stem}.png"}, "unknown target 'labels'"),
        ({"image": "{split}/{stem}.png", "semantic": {"train": "{stem}"}}, "one under 'train' and"),
        ({"image": "{split}/{stem}.png"}, "an object of patterns"),
        ({"image": "{split}/{stem}.jpg", "semantic": "{split}annot/{stem}.png"}, "has no image"),
        ({"image": "{split}/{stem}.png", "semantic": "none/{stem}.png"}, "none/: no folder"),
    ],
)
def test_patterns_that_cannot_be(planes, camvid, files, expected):
    describe(camvid, files=files)
    message = planes.refused(camvid, ("semantic",))
    assert expected in message and len(message) < 600


def test_what_is_no_image_is_left_out(planes, tmp_path):
    root = tmp_path / "data"
    for stem in "abc":
        planes.save(root / f"all/{stem}.png", image(ord(stem)))
        planes.save(root / f"all/{stem}_seen.png", image(1))
        planes.save(root / f"all/{stem}_mask.png", LABELS % 11)
    files = {"image": "all/{stem}.png", "semantic": "all/{stem}_mask.png"}
    describe(root, files=files)
    assert "semantic has no file for it" in planes.refused(root, ("semantic",))
    describe(root, files=files, leave_out=["all/{stem}_seen.png", "none/{stem}.png"])
    contents = opened(planes, root).contents
    assert {*contents["train"], *contents["val"]} == {
        f"all/{stem}{ending}.png" for stem in "abc" for ending in ("", "_mask")
    }
    describe(root, files=files, leave_out=["all/seen.png"])
    assert "leave_out is 'all/seen.png', one file" in planes.refused(root, ("semantic",))
    describe(root, table="t.csv", leave_out=["{stem}_seen.png"])
    assert "expected files beside it" in planes.refused(root, ("semantic",))


def test_a_file_for_two_images_is_refused(planes, tmp_path):
    root = tmp_path / "data"
    for folder in "xy":
        planes.save(root / f"image/{folder}/a.png", image(0))
    planes.save(root / "masks/a.png", LABELS)
    describe(root, files={"image": "image/**/{stem}.png", "semantic": "masks/{stem}.png"})
    assert "masks/a.png: fits a.png and a.png" in planes.refused(root, ("semantic",))


def test_masks_beside_images_and_folders_between(planes, tmp_path):
    root = tmp_path / "data"
    for place in ("x/a", "y/deep/a", "y/b"):
        planes.save(root / f"{place}.png", image(1))
        planes.save(root / f"{place}_L.png", LABELS)
    describe(root, files={"image": "**/{stem}.png", "semantic": "**/{stem}_L.png"},
             splits={"train": ["x/a", "y/b"], "val": ["y/deep/a"]})  # fmt: skip
    dataset = opened(planes, root)
    assert set(dataset.contents["val"]) == {"y/deep/a.png", "y/deep/a_L.png"}
    assert len(dataset.splits["train"]) == 2


def test_names_in_text_files(planes, tmp_path):
    root = tmp_path / "VOC"
    for stem in "abcd":
        planes.save(root / f"JPEGImages/{stem}.jpg", image(2))
    for stem in "abc":
        planes.save(root / f"SegmentationClass/{stem}.png", np.where(LABELS == 11, 255, LABELS))
    lists = root / "ImageSets"
    lists.mkdir()
    # By a name, a name with something behind, and a path.
    (lists / "train.txt").write_text("\ufeffa\n\nJPEGImages/b.jpg\n")
    (lists / "val.txt").write_text("c\n")
    files = {"image": "JPEGImages/{stem}.jpg", "semantic": "SegmentationClass/{stem}.png"}
    splits = {"train": "ImageSets/train.txt", "val": "ImageSets/val.txt"}
    describe(root, files=files, splits=splits)
    dataset = opened(planes, root)
    assert set(dataset.contents["train"]) == {
        f"{place}" for s in "ab" for place in (f"JPEGImages/{s}.jpg", f"SegmentationClass/{s}.png")
    }
    (lists / "val.txt").write_text("e\n")
    assert "splits name e, of which there is no image" in planes.refused(root, ("semantic",))
    (lists / "val.txt").write_text("\n")
    assert "val.txt names no image" in planes.refused(root, ("semantic",))
    (lists / "val.txt").unlink()
    assert "val.txt, which splits names, cannot be read" in planes.refused(root, ("semantic",))


def table(root, planes):
    for stem in "abc":
        planes.save(root / f"i/{stem}.png", image(ord(stem)))
        planes.save(root / f"m/{stem}_x.png", LABELS % 11)


@pytest.mark.parametrize(
    ("content", "how"),
    [
        (
            "image,semantic,split,remark\ni/a.png,m/a_x.png,train,\ni/b.png,m/b_x.png,val,x\n"
            "i/c.png,m/c_x.png,test,\n",
            "t.csv",
        ),
        (
            "i/a.png m/a_x.png train\ni/b.png m/b_x.png val\n",
            {"files": "t.csv", "columns": ["image", "semantic", "split"]},
        ),
        (
            "depth,photo,fold\n/m/a_x.png,/i/a.png,Training\nm/b_x.png,i/b.png,valid\n",
            {
                "files": "t.csv",
                "columns": {"image": "photo", "semantic": "depth", "split": "fold"},
            },
        ),
    ],
)
def test_a_table_of_files(planes, tmp_path, content, how):
    root = tmp_path / "data"
    table(root, planes)
    (root / "t.csv").write_text(content)
    describe(root, table=how)
    dataset = opened(planes, root)
    assert set(dataset.contents["train"]) == {"i/a.png", "m/a_x.png"}
    assert set(dataset.contents["val"]) == {"i/b.png", "m/b_x.png"}
    np.testing.assert_array_equal(dataset.splits["val"][0]["semantic"], LABELS % 11)


def test_tables_of_splits_and_what_they_may_not_say(planes, tmp_path):
    root = tmp_path / "data"
    table(root, planes)
    columns = ["image", "semantic"]
    describe(root, table={"files": {"train": "1.txt", "val": "2.txt"}, "columns": columns})
    (root / "1.txt").write_text(f"{root}/i/a.png {root}/m/a_x.png\ni/c.png m/c_x.png\n")
    (root / "2.txt").write_text("i/b.png m/b_x.png\n")
    assert len(opened(planes, root).splits["train"]) == 2
    for line, expected in (
        ("i/b.png /m/b.png", "2.txt, line 1: /m/b.png does not lie below"),
        ("i/b.png ../m/b_x.png", "does not lie below"),
        ("i/b.png", "2.txt, line 1: 1 fields, expected 2"),
        ("i/b.png m/b.png", "m/b.png: cannot be read (No such file or directory) (2.txt, line 1)"),
        ("i/b.png m/b_x.png\ni/b.png m/b_x.png", "line 2 names the image i/b.png again"),
        ("", "has no sample of 'val'"),
    ):
        (root / "2.txt").write_text(line)
        assert expected in planes.refused(root, ("semantic",))


def test_columns_that_a_table_does_not_have(planes, tmp_path):
    root = tmp_path / "data"
    table(root, planes)
    (root / "t.csv").write_text("photo,truth\ni/a.png,m/a_x.png\ni/b.png,m/b_x.png\n")
    describe(root, table="t.csv")
    assert "in table.columns (" in (message := planes.refused(root, ("semantic",)))
    assert 'as {"image": "photo"}' in message
    describe(root, table={"files": "t.csv", "columns": {"image": "photo", "semantic": "gt"}})
    assert "first line has no 'gt', which table.columns names; it has photo, truth" in (
        planes.refused(root, ("semantic",))
    )
    describe(root, table={"files": "t.csv", "columns": {"semantic": "truth"}})
    assert "dataset.json: table is" in planes.refused(root, ("semantic",))


def test_a_description_elsewhere(planes, camvid, tmp_path):
    shutil.move(camvid / "dataset.json", tmp_path / "mine.json")
    assert "talora_jax describe-data" in planes.refused(camvid, ("semantic",))
    dataset = opened(planes, camvid, description=str(tmp_path / "mine.json"))
    assert len(dataset.splits["train"]) == 2
    message = planes.refused(camvid, ("semantic",), description="cityscape")
    assert "which is no file" in message and "cityscapes, cityscapes_7" in message


@pytest.mark.parametrize(("name", "expected"), [
    ("cityscapes", [-1, 0, 1, 18]), ("cityscapes_7", [-1, 0, 0, 6]),
])  # fmt: skip
def test_cityscapes_as_it_is_published(planes, tmp_path, name, expected):
    root = tmp_path / "cityscapes"
    ids = np.tile(np.uint8([[0, 7, 8, 33]]), (12, 4))
    pixels = np.tile(np.uint16([[0, 1, 257, 32257]]), (12, 4))
    for split, city in (("train", "aachen"), ("train", "ulm"), ("val", "lindau"), ("test", "bonn")):
        stem = f"{city}/{city}_000000_000019"
        planes.save(root / f"leftImg8bit/{split}/{stem}_leftImg8bit.png", image(1))
        planes.save(root / f"disparity/{split}/{stem}_disparity.png", pixels)
        for kind in ("color", "instanceIds", "labelIds"):
            planes.save(root / f"gtFine/{split}/{stem}_gtFine_{kind}.png", ids)
    dataset = opened(planes, root, ("semantic", "disparity"), description=name)
    sample = dataset.splits["train"][0]
    np.testing.assert_array_equal(sample["semantic"][0, :4], expected)
    np.testing.assert_array_equal(sample["disparity"][0, :4, 0], [0, 0, 1, 126])
    assert len(dataset.class_names) == (19 if name == "cityscapes" else 7)
    assert dataset.class_names[-1] == ("bicycle" if name == "cityscapes" else "vehicle")
    assert {split: len(source) for split, source in dataset.splits.items()} == {
        "train": 2,
        "val": 1,
    }


def test_targets_of_another_size_than_their_image(planes, tmp_path):
    root = tmp_path / "ScanNet"
    for stem in "ab":
        planes.save(root / f"s/color/{stem}.jpg", image(1, (24, 32)))
        planes.save(root / f"s/depth/{stem}.png", np.full((12, 16), 1500, np.uint16))
    files = {"image": "**/color/{stem}.jpg", "depth": "**/depth/{stem}.png"}
    describe(root, files=files, image_size=[12, 16])
    assert "12×16 (H×W), expected 24×32" in planes.refused(root, ("depth",))
    describe(root, files=files, image_size=[12, 16], stretch=True)
    sample = opened(planes, root, ("depth",)).splits["train"][0]
    assert sample["image"].shape == (12, 16, 3) and np.unique(sample["depth"]) == [1.5]
    describe(root, files=files, stretch=True)
    assert "stretch needs image_size" in planes.refused(root, ("depth",))


def test_composed_names_meet_decomposed_ones(planes, tmp_path):
    root = tmp_path / "data"
    for number in range(2):
        planes.save(root / f"i/caf\u00e9{number}.png", image(1))
        planes.save(root / f"m/cafe\u0301{number}.png", LABELS % 11)
    describe(root, files={"image": "i/{stem}.png", "semantic": "m/{stem}.png"})
    assert len(opened(planes, root).splits["val"]) == 1


def test_images_are_turned_by_their_exif(planes, tmp_path):
    root = tmp_path / "data"
    exif = Image.Exif()
    exif[0x0112] = 6
    for stem in "ab":
        planes.save(root / f"m/{stem}.png", LABELS)
        (root / "i").mkdir(exist_ok=True)
        Image.fromarray(image(1)).save(root / f"i/{stem}.jpg", exif=exif)
    describe(root, files={"image": "i/{stem}.jpg", "semantic": "m/{stem}.png"})
    message = planes.refused(root, ("semantic",))
    assert "its EXIF orientation (6) turns it, and m/a.png is not turned" in message


def test_nyud_mt_as_it_is_published(planes, tmp_path):
    root = tmp_path / "NYUD_MT"
    labels = np.tile(np.uint8([[0, 1, 2, 40]]), (12, 4))
    depth = np.tile(np.float32([[0, 1, 2.5, 4]]), (12, 4))
    normals = np.tile(np.float32([0, 0.6, -0.8]), (12, 16, 1))
    normals[:, 0] = 0
    lists = {"train": ["0003", "0001"], "val": ["0002"]}
    for stem in sum(lists.values(), []):
        (root / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image(1)).save(root / f"images/{stem}.jpg")
        planes.save(root / f"segmentation/{stem}.png", labels)
        for name, values in (("depth", depth), ("normals", normals), ("edge", labels == 40)):
            planes.save(root / f"{name}/{stem}.npy", values.astype(np.float32))
    (root / "gt_sets").mkdir()
    for split, stems in lists.items():
        (root / f"gt_sets/{split}.txt").write_text("\n".join([*stems, ""]))
    tasks = ("semantic", "depth", "normals", "edges")
    dataset = opened(planes, root, tasks, description="nyud_mt")
    assert len(dataset.class_names) == 40 and dataset.class_names[-1] == "other prop"
    assert {split: len(source) for split, source in dataset.splits.items()} == {
        "train": 2,
        "val": 1,
    }
    sample = dataset.splits["val"][0]
    np.testing.assert_array_equal(sample["semantic"][0, :4], [-1, 0, 1, 39])
    np.testing.assert_array_equal(sample["depth"][0, :4, 0], [0, 1, 2.5, 4])
    np.testing.assert_array_equal(sample["edges"][0, :4, 0], [0, 0, 0, 1])
    np.testing.assert_allclose(sample["normals"], normals, atol=1e-2)
