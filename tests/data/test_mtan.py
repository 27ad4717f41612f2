"""NYUv2 and Cityscapes as MTAN packs them: what they give, and what they refuse."""

import itertools
import json
import os
import shutil
import zipfile

import ml_collections
import numpy as np
import pytest

from talora_jax import config as config_lib
from talora_jax.data import cityscapes_mtan, nyuv2_mtan, open_dataset
from talora_jax.data.pipeline import train_iterator
from talora_jax.data.survey import survey
from talora_jax.errors import UserError

TASKS = {
    "nyuv2_mtan": ("semantic", "depth", "normals"),
    "cityscapes_mtan": ("semantic", "disparity"),
}
SIZES = {"nyuv2_mtan": (24, 32), "cityscapes_mtan": (16, 32)}
NAMES = list(TASKS)


@pytest.fixture(scope="module")
def originals(published, tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    return {name: write(root / name) for name, write in published.WRITE.items()}


@pytest.fixture
def copy(originals, tmp_path):
    """Gives a copy of a data set, to be spoilt."""
    return lambda name: shutil.copytree(originals[name], tmp_path / "download")


def open_at(path, name, records, tasks=None, image_size=(), **more):
    data = {"name": name, "path": str(path), "dir": str(records), "image_size": image_size} | more
    return open_dataset(ml_collections.ConfigDict(data), TASKS[name] if tasks is None else tasks)


def refused(path, name, records, **how):
    """The line that a user gets."""
    with pytest.raises(UserError) as error:
        open_at(path, name, records, **how)
    assert not list(records.rglob("*.array_record*"))
    return str(error.value)


def load(root, split, kind, index):
    return np.load(root / split / kind / f"{index}.npy")


def save(root, place, values):
    np.save(root / place, values)


# What they give.


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("floats", [np.float32, np.float64])
def test_samples_are_what_was_published(name, floats, published, tmp_path):
    root = published.WRITE[name](tmp_path / "data", floats=floats)
    dataset = open_at(root, name, tmp_path)
    assert (dataset.name, dataset.tasks, dataset.image_size) == (name, TASKS[name], SIZES[name])
    assert {split: len(source) for split, source in dataset.splits.items()} == {
        "train": 6,
        "val": 4,
    }
    kinds = {"depth": "depth", "disparity": "depth", "normals": "normal"}
    kinds["semantic"] = "label" if name == "nyuv2_mtan" else "label_7"
    labels = set()
    for split, source in dataset.splits.items():
        for index in range(len(source)):
            sample = source[index]
            assert set(sample) == {"image", *TASKS[name]}
            image = load(root, split, "image", index).astype(np.float32)
            assert sample["image"].dtype == np.uint8
            # As the pipeline hands it on.
            found = sample["image"].astype(np.float32) / np.float32(255)
            np.testing.assert_array_equal(found, image)
            for task in TASKS[name]:
                truth = load(root, split, kinds[task], index)
                dtype = np.int32 if task == "semantic" else np.float32
                assert sample[task].dtype == dtype
                np.testing.assert_array_equal(sample[task], truth.astype(dtype))
            labels |= set(np.unique(sample["semantic"]))
    assert labels == set(range(-1, len(dataset.class_names)))


@pytest.mark.parametrize("name", NAMES)
def test_archives_are_read_as_they_are(name, originals, tmp_path):
    archive = tmp_path / "download.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in originals[name].rglob("*.npy"):
            file.write(path, "inside" / path.relative_to(originals[name]))
    packed = open_at(archive, name, tmp_path / "a").splits
    unpacked = open_at(originals[name], name, tmp_path / "b").splits
    for split, source in unpacked.items():
        for index in range(len(source)):
            for key, values in source[index].items():
                np.testing.assert_array_equal(packed[split][index][key], values)


def test_the_data_may_lie_one_folder_down(originals, tmp_path):
    outer = originals["nyuv2_mtan"].parent
    message = refused(outer, "nyuv2_mtan", tmp_path)
    assert "holds cityscapes_mtan, nyuv2_mtan, each with train/ or val/; name one" in message
    alone = tmp_path / "outer"
    shutil.copytree(originals["nyuv2_mtan"], alone / "nyuv2")
    assert len(open_at(alone, "nyuv2_mtan", tmp_path).splits["val"]) == 4


def test_copies_of_cityscapes_with_one_folder_of_labels(published, tmp_path):
    root = published.write_cityscapes_mtan(tmp_path / "data", labels="label")
    sample = open_at(root, "cityscapes_mtan", tmp_path, ("semantic",)).splits["train"][1]
    assert set(sample) == {"image", "semantic"}
    np.testing.assert_array_equal(sample["semantic"], load(root, "train", "label", 1))


def test_class_names():
    assert len(nyuv2_mtan.CLASS_NAMES) == 13 and len(cityscapes_mtan.CLASS_NAMES) == 7
    assert nyuv2_mtan.CLASS_NAMES == tuple(sorted(nyuv2_mtan.CLASS_NAMES))


def test_records_are_written_once_and_again_for_other_files(copy, tmp_path):
    root = copy("nyuv2_mtan")

    def records():
        found = tmp_path.rglob("dataset_info.json")
        return {path: path.stat().st_mtime_ns for path in found}

    open_at(root, "nyuv2_mtan", tmp_path)
    once = records()
    assert len(once) == 1
    open_at(root, "nyuv2_mtan", tmp_path, ("depth",))
    assert records() == once
    save(root, "train/depth/1.npy", np.full((24, 32, 1), 3.5, np.float32))
    os.utime(root / "train/depth/1.npy", (1, 1))
    sample = open_at(root, "nyuv2_mtan", tmp_path).splits["train"][1]
    assert (sample["depth"] == 3.5).all() and len(records()) == 2


def test_records_are_augmented_and_batched(originals, tmp_path):
    name = "cityscapes_mtan"
    source = open_at(originals[name], name, tmp_path).splits["train"]
    augment = config_lib.default().augment
    batches = train_iterator(
        source,
        tasks=TASKS[name],
        image_size=(16, 32),
        batch_size=3,
        seed=0,
        augment=augment,
        num_threads=1,
    )
    for batch in itertools.islice(batches, 2):
        assert batch["image"].shape == (3, 16, 32, 3) and batch["image"].dtype == np.float32
        assert batch["semantic"].shape == (3, 16, 32)
        assert batch["disparity"].shape == (3, 16, 32, 1)


def test_a_void_label_and_a_farthest_depth(copy, tmp_path):
    root, name = copy("nyuv2_mtan"), "nyuv2_mtan"
    label, depth = load(root, "train", "label", 1), load(root, "train", "depth", 1)
    save(root, "train/label/1.npy", np.where(label == -1, 255, label))
    save(root, "train/depth/1.npy", np.where(label[..., None] == -1, 1e300, depth.astype(float)))
    assert "config.data.ignore_label" in refused(root, name, tmp_path / "records")
    message = refused(root, name, tmp_path / "records", ignore_label=255)
    assert "1e+300, expected what float32 holds" in message
    dataset = open_at(root, name, tmp_path, ignore_label=255, max_depth=8.0)
    sample = dataset.splits["train"][1]
    np.testing.assert_array_equal(sample["semantic"], label)
    expected = np.where((label[..., None] == -1) | (depth > 8), 0, depth)
    np.testing.assert_array_equal(sample["depth"], expected)


def test_what_they_hold_is_looked_at(copy, tmp_path):
    root, name = copy("nyuv2_mtan"), "nyuv2_mtan"
    found = survey(open_at(root, name, tmp_path), TASKS[name])
    assert [line.partition(":")[0] for line in found.lines()] == list(TASKS[name])
    for index in range(6):
        save(root, f"train/normal/{index}.npy", np.zeros((24, 32, 3), np.float32))
        save(root, f"train/depth/{index}.npy", 1000 * load(root, "train", "depth", index))
    blank = open_at(root, name, tmp_path / "blank")
    for task, why in (("normals", "no pixel has a valid normal"), ("depth", "the median is")):
        with pytest.raises(UserError, match=f"training images of nyuv2_mtan: {task}: {why}"):
            survey(blank, (task,))
    assert survey(blank, ("semantic",)).images == 6
    metres = open_at(root, name, tmp_path / "metres", depth_scale=1000.0)
    found = survey(metres, ("depth",)).contents["depth"]
    assert 0.7 < found.low < found.high < 11


def test_what_a_run_does_not_need_may_be_broken(copy, tmp_path, capsys):
    root, name = copy("nyuv2_mtan"), "nyuv2_mtan"
    whole = open_at(root, name, tmp_path / "whole").splits["val"][1]
    (root / "train/depth/3.npy").write_bytes(b"")
    (root / "val/depth/2.npy").unlink()
    for _ in range(2):
        dataset = open_at(root, name, tmp_path / "part", ("semantic",))
        sample = dataset.splits["val"][1]
        np.testing.assert_array_equal(sample["semantic"], whole["semantic"])
        np.testing.assert_array_equal(sample["image"], whole["image"])
    notes = [line for line in capsys.readouterr().err.splitlines() if "what this run needs" in line]
    assert len(notes) == 1 and "prepared, without depth, normals: " in notes[0]
    assert "val/depth lacks 2.npy" in notes[0]
    assert len(dataset.contents["val"]) == 2 * 4
    assert dataset.unread == ("train/depth/", "train/normal/", "val/depth/", "val/normal/")
    assert "val/depth lacks 2.npy" in refused(root, name, tmp_path / "none", tasks=("depth",))
    shutil.copy(root / "val/depth/1.npy", root / "val/depth/2.npy")
    message = refused(root, name, tmp_path / "none", tasks=("semantic", "depth"))
    assert message.startswith(f"{root}/train/depth/3.npy: cannot be read as npy")


def test_a_blank_depth_map_is_unlabelled(copy, tmp_path):
    root = copy("nyuv2_mtan")
    for index, blank in ((1, 0.0), (2, np.nan)):
        save(root, f"val/depth/{index}.npy", np.full((24, 32, 1), blank, np.float32))
    source = open_at(root, "nyuv2_mtan", tmp_path).splits["val"]
    assert not source[1]["depth"].any() and not source[2]["depth"].any()


# What they note.


def test_counts_other_than_published_are_noted(originals, tmp_path, capsys):
    open_at(originals["nyuv2_mtan"], "nyuv2_mtan", tmp_path)
    (note,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note")]
    assert note.endswith("than published: train 6 (795), val 4 (654)")


def test_images_of_more_than_8_bits_are_rounded_and_noted(copy, tmp_path, capsys):
    root = copy("nyuv2_mtan")
    image = np.random.default_rng(0).random((24, 32, 3))
    save(root, "val/image/2.npy", image)
    sample = open_at(root, "nyuv2_mtan", tmp_path).splits["val"][2]
    assert np.abs(sample["image"] / 255 - image).max() <= 1 / 510 + 1e-6
    err = capsys.readouterr().err
    assert f"note: 1 images, {root}/val/image/2.npy first, are not of 8 bits" in err


def test_uint8_images_and_whole_floats_as_labels(copy, tmp_path, capsys):
    root = copy("nyuv2_mtan")
    image, label = load(root, "val", "image", 1), load(root, "val", "label", 1)
    save(root, "val/image/1.npy", np.rint(image * 255).astype(np.uint8))
    save(root, "val/label/1.npy", np.where(label < 0, np.nan, label).astype(np.float32))
    sample = open_at(root, "nyuv2_mtan", tmp_path).splits["val"][1]
    np.testing.assert_array_equal(sample["image"], np.rint(image * 255))
    np.testing.assert_array_equal(sample["semantic"], label)
    assert "8 bits" not in capsys.readouterr().err


# What they refuse.


@pytest.mark.parametrize("name", NAMES)
def test_no_path(name, tmp_path):
    expected = "that https://github.com/lorenmt/mtan links to."
    for path, problem in (
        ("", "is empty"),
        (tmp_path / "nowhere", "nowhere', which does not exist"),
    ):
        message = refused(path, name, tmp_path)
        assert problem in message and message.endswith(expected) and "\n" not in message


def test_no_data(tmp_path):
    records, name = tmp_path / "records", "nyuv2_mtan"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "empty has neither train/ nor val/; expected" in refused(empty, name, records)
    (empty / "nyuv2.zip").write_bytes(b"PK\3\4 and no more")
    message = refused(empty, name, records)
    assert "it holds nyuv2.zip, which may be the path itself" in message
    message = refused(empty / "nyuv2.zip", name, records)
    assert "not a whole zip archive (File is not a zip file)" in message and "\n" not in message


def test_an_unknown_task(originals, tmp_path):
    message = refused(originals["nyuv2_mtan"], "nyuv2_mtan", tmp_path, tasks=("edges",))
    assert message == (
        "Dataset 'nyuv2_mtan' has no targets for edges; it has semantic, depth, normals."
    )


@pytest.mark.parametrize(("name", "other"), [NAMES, NAMES[::-1]])
def test_one_data_set_given_for_the_other(name, other, originals, tmp_path):
    message = refused(originals[other], name, tmp_path)
    assert f"set config.data.name={other}" in message and "\n" not in message


def test_labels_of_another_number_of_classes(published, tmp_path):
    root = published.write_cityscapes_mtan(tmp_path / "data", labels="label")
    label = load(root, "train", "label", 3)
    save(root, "train/label/3.npy", label * 3)
    message = refused(root, "cityscapes_mtan", tmp_path)
    assert message.startswith(f"{root}/train/label/3.npy: label ")
    assert "expected 0 to 6 for the 7 classes, or -1 for none; config.data.ignore_label" in message


def remove(*places):
    def spoil(root):
        for place in places:
            path = root / place
            shutil.rmtree(path) if path.is_dir() else path.unlink()

    return spoil


def duplicate(root):
    shutil.copy(root / "val/label/1.npy", root / "val/label/1 (1).npy")


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (remove("val"), ["val is missing, or has no samples 0.npy, 1.npy, …"]),
        (remove("train/depth"), ["train/depth is missing"]),
        (remove("train/label", "val/label"), ["train/label is missing", "val/label is missing"]),
        (remove("val/normal/2.npy"), ["val/normal lacks 2.npy, which another folder has"]),
        (
            remove(*(f"train/depth/{i}.npy" for i in range(5)), "val/image/0.npy"),
            [
                "train/depth lacks 0.npy, 1.npy, 2.npy and 2 more, which another folder has",
                "val/image lacks 0.npy, which another folder has",
            ],
        ),
        (duplicate, ["val/label has 1 (1).npy, expected 0.npy, 1.npy, …"]),
    ],
)
def test_what_is_missing_is_named(spoil, expected, copy, tmp_path):
    root = copy("nyuv2_mtan")
    spoil(root)
    lines = refused(root, "nyuv2_mtan", tmp_path).splitlines()
    title = f"{root} is not NYUv2 as MTAN packs it:"
    assert lines == (
        [f"{title} {expected[0]}"]
        if len(expected) == 1
        else [title, *("  " + line for line in expected)]
    )


def test_no_folder_of_labels_of_cityscapes(copy, tmp_path):
    root = copy("cityscapes_mtan")
    remove("train/label_7", "val/label_7")(root)
    message = refused(root, "cityscapes_mtan", tmp_path)
    assert "train/label_7 or label is missing" in message


def changed(kind, change):
    def spoil(root):
        values = load(root, "train", kind, 2)
        place = f"train/{kind}/2.npy"
        save(root, place, change(values))
        return place

    return spoil


def put(value):
    def change(values):
        values[5, 5] = value
        return values

    return change


def cut(root):
    path = root / "val/image/3.npy"
    path.write_bytes(path.read_bytes()[:1000])
    return "val/image/3.npy"


def pickled(root):
    class Dangerous:
        def __reduce__(self):
            return os._exit, (3,)

    np.save(root / "val/depth/3.npy", np.array([Dangerous()], object), allow_pickle=True)
    return "val/depth/3.npy"


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (cut, "cannot be read as npy ("),
        (pickled, "cannot be read as npy (Object arrays cannot be loaded when allow_pickle=False)"),
        (changed("image", lambda x: x[..., 0]), "shape (24, 32), expected [H, W, 3]"),
        (changed("image", lambda x: x * 255), "expected float in [0, 1]"),
        (changed("image", put(np.nan)), "from nan to nan, expected float in [0, 1]"),
        (changed("image", lambda x: x.astype(np.int64)), "int64, expected float in [0, 1]"),
        (changed("image", lambda x: x[:16]), "16×32 (H×W), expected 24×32 as the first image"),
        (changed("label", put(13)), "label 13, expected 0 to 12 for the 13 classes, or -1"),
        (changed("label", put(-2)), "label -2, expected 0 to 12"),
        (changed("label", lambda x: x + 0.5), "a value -0.5, expected whole numbers, or NaN"),
        (changed("label", lambda x: x > 3), "bool, expected whole numbers"),
        (changed("label", lambda x: x[..., None]), "shape (24, 32, 1), expected [H, W]"),
        (changed("depth", put(np.nan)), "1 values are NaN or infinite, expected none"),
        (changed("depth", put(-1)), "value -1, expected 0 (no measurement) or above"),
        (
            changed("depth", lambda x: x.astype(np.uint16)),
            "uint16 of shape (24, 32, 1), expected float [H, W, 1]",
        ),
        (
            changed("depth", lambda x: x[..., 0]),
            "float32 of shape (24, 32), expected float [H, W, 1]",
        ),
        (changed("normal", lambda x: x * 2), "expected unit vectors or zeros"),
        (changed("normal", put(np.inf)), "3 values are NaN or infinite, expected none"),
        (
            changed("normal", lambda x: x[..., :2]),
            "float32 of shape (24, 32, 2), expected float [H, W, 3]",
        ),
    ],
)
def test_bad_files_are_told_in_one_line_and_nothing_is_kept(spoil, expected, copy, tmp_path):
    root = copy("nyuv2_mtan")
    place = spoil(root)
    message = refused(root, "nyuv2_mtan", tmp_path / "records")
    assert message.startswith(f"{root / place}: ") and expected in message
    assert "\n" not in message


def test_archives_of_other_programs_are_read(originals, tmp_path):
    root, archive = originals["nyuv2_mtan"], tmp_path / "nyuv2.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in root.rglob("*.npy"):
            name = f"one/two/{path.relative_to(root).as_posix()}"
            file.write(path, name.replace("/", "\\"))
    packed = open_at(archive, "nyuv2_mtan", tmp_path / "packed").splits["val"]
    unpacked = open_at(root, "nyuv2_mtan", tmp_path / "unpacked").splits["val"]
    np.testing.assert_equal(packed[0], unpacked[0])


def test_what_is_no_archive_that_can_be_read_is_told(originals, tmp_path):
    records = tmp_path / "records"
    os.mkfifo(tmp_path / "pipe.zip")
    assert "is not a whole zip archive (no file)" in refused(
        tmp_path / "pipe.zip", "nyuv2_mtan", records
    )
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as file:
        file.writestr("inner.zip", b"")
    assert "it holds inner.zip, unpack that" in refused(
        tmp_path / "outer.zip", "nyuv2_mtan", records
    )
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("../train/image/0.npy", b"")
        file.writestr("/absolute.npy", b"")
    assert "has neither train/ nor val/; it holds" in refused(
        tmp_path / "other.zip", "nyuv2_mtan", records
    )


def test_a_pipe_among_the_files_is_told(originals, tmp_path):
    root = shutil.copytree(originals["nyuv2_mtan"], tmp_path / "nyuv2")
    (root / "train/depth/0.npy").unlink()
    os.mkfifo(root / "train/depth/0.npy")
    assert "train/depth has 0.npy, expected" in refused(root, "nyuv2_mtan", tmp_path / "records")


def test_a_bad_file_in_an_archive(originals, tmp_path):
    archive = tmp_path / "nyuv2.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in originals["nyuv2_mtan"].rglob("*.npy"):
            file.write(path, path.relative_to(originals["nyuv2_mtan"]))
    content = bytearray(archive.read_bytes())
    name = content.index(b"train/depth/4.npy")
    content[name + 500] ^= 1
    archive.write_bytes(content)
    message = refused(archive, "nyuv2_mtan", tmp_path / "records")
    assert message.startswith(f"{archive}/train/depth/4.npy: cannot be read as npy (Bad CRC-32")


def test_a_first_image_that_is_none(copy, tmp_path):
    root = copy("nyuv2_mtan")
    (root / "train/image/0.npy").write_bytes(b"")
    message = refused(root, "nyuv2_mtan", tmp_path / "records")
    assert message.startswith(f"{root}/train/image/0.npy: cannot be read as npy (")


def test_another_size_than_the_configs(originals, tmp_path):
    root = originals["nyuv2_mtan"]
    message = refused(root, "nyuv2_mtan", tmp_path, image_size=(288, 384))
    assert message.startswith(
        f"config.data.image_size is (288, 384), but {root}/train/image/0.npy is (24, 32): "
    )


def test_a_directory_that_cannot_be_written(originals, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    message = refused(originals["nyuv2_mtan"], "nyuv2_mtan", blocked / "records")
    assert "config.data.dir must name a directory that is writable" in message


def test_what_is_said_of_the_data_is_in_the_records(originals, tmp_path):
    open_at(originals["nyuv2_mtan"], "nyuv2_mtan", tmp_path)
    (path,) = tmp_path.rglob("metadata.json")
    assert json.loads(path.read_text())["class_names"] == list(nyuv2_mtan.CLASS_NAMES)
