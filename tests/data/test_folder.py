"""A user's own folder: what it gives, and what it refuses."""

import json
import os
import subprocess
import sys
import zlib

import ml_collections
import numpy as np
import pytest
from PIL import Image

from talora_jax.data import open_dataset
from talora_jax.data.folder import records
from talora_jax.data.folder.edges import edges_from_ids
from talora_jax.data.folder.normals import normals_from_depth
from talora_jax.data.folder.settings import Intrinsics
from talora_jax.errors import UserError

SIZE = (24, 32)
ALL = ("semantic", "depth", "normals", "edges")
INTRINSICS = (40.0, 42.0, 15.5, 11.5)
# The plane n·X = δ that every frame shows, in metres.
NORMAL = np.array([0.3, -0.5, -0.81])
NORMAL /= np.linalg.norm(NORMAL)
OFFSET = -1.2


def plane_depth(size=SIZE, intrinsics=INTRINSICS, normal=NORMAL):
    fx, fy, cx, cy = intrinsics
    y, x = np.mgrid[: size[0], : size[1]]
    rays = np.stack([(x - cx) / fx, (y - cy) / fy, np.ones(size)], axis=-1)
    return (OFFSET / (rays @ normal)).astype(np.float32)


def degrees(normals, normal=NORMAL):
    return np.degrees(np.arccos(np.clip(normals @ normal, -1, 1)))


def save(path, values):
    path.parent.mkdir(exist_ok=True, parents=True)
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        Image.fromarray(values).save(path)


def labels():
    values = np.zeros(SIZE, np.uint8)
    values[8:16, 10:20] = 1
    values[:3] = 255
    return values


@pytest.fixture
def root(tmp_path):
    """Five frames with images, semantic labels and depth."""
    root = tmp_path / "my data"
    for index in range(5):
        rng = np.random.default_rng(index)
        save(root / f"image/{index}.png", rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8))
        save(root / f"semantic/{index}.png", labels())
        save(root / f"depth/{index}.png", (plane_depth() * 10_000).round().astype(np.uint16))
    write_json(root, {})
    return root


def write_json(root, changes):
    fx, fy, cx, cy = INTRINSICS
    camera = {"fx": fx, "fy": fy, "cx": cx, "cy": cy}
    content = {"depth_scale": 10_000, "intrinsics": camera, **changes}
    content = {name: value for name, value in content.items() if value is not None}
    (root / "dataset.json").write_text(json.dumps(content))


def open_root(root, tasks=ALL, **changes):
    data = {"name": "folder", "path": str(root), "dir": str(root.parent / "prepared")}
    return open_dataset(ml_collections.ConfigDict(data | {"val_fraction": 0.4} | changes), tasks)


def refused(root, tasks=ALL, **changes):
    with pytest.raises(UserError) as error:
        open_root(root, tasks, **changes)
    return str(error.value)


def samples(dataset):
    return [source[i] for source in dataset.splits.values() for i in range(len(source))]


# What it gives.


def test_samples_are_what_the_contract_says(root):
    dataset = open_root(root)
    assert dataset.name == "folder"
    assert dataset.tasks == ALL
    assert dataset.class_names == ("class 0", "class 1")
    assert dataset.image_size == SIZE
    assert {split: len(source) for split, source in dataset.splits.items()} == {
        "train": 3,
        "val": 2,
    }
    images = set()
    for sample in samples(dataset):
        assert {name: (values.shape, values.dtype) for name, values in sample.items()} == {
            "image": ((*SIZE, 3), np.uint8),
            "semantic": (SIZE, np.int32),
            "depth": ((*SIZE, 1), np.float32),
            "normals": ((*SIZE, 3), np.float32),
            "edges": ((*SIZE, 1), np.float32),
        }
        images.add(sample["image"].tobytes())
        expected = np.where(labels() == 255, -1, labels().astype(np.int32))
        np.testing.assert_array_equal(sample["semantic"], expected)
        np.testing.assert_allclose(sample["depth"][..., 0], plane_depth(), atol=6e-5)
        np.testing.assert_array_equal(sample["edges"], edges_from_ids(expected))
    rng = [np.random.default_rng(index) for index in range(5)]
    assert images == {r.integers(0, 256, (*SIZE, 3), dtype=np.uint8).tobytes() for r in rng}


def test_derived_normals_are_the_planes(root):
    for sample in samples(open_root(root)):
        np.testing.assert_allclose(np.linalg.norm(sample["normals"], axis=-1), 1, atol=1e-4)
        assert degrees(sample["normals"]).max() < 0.5


def test_only_the_tasks_asked_for_are_given(root):
    dataset = open_root(root, ("depth",))
    assert dataset.tasks == ALL
    assert set(dataset.splits["val"][0]) == {"image", "depth"}


def test_npy_files_are_read(root):
    image = np.random.default_rng(0).random((*SIZE, 3)).astype(np.float32)
    depth = plane_depth()
    depth[0, 0] = np.nan
    normals = np.broadcast_to(NORMAL * 1.01, (*SIZE, 3)).copy()
    normals[1, 1] = np.nan
    edges = np.zeros(SIZE, np.int8)
    edges[2:4], edges[5] = 1, -1
    semantic = np.zeros(SIZE, np.int64)
    semantic[3], semantic[4] = 300, -1
    for index in range(5):
        for folder in ("image", "semantic", "depth"):
            (root / folder / f"{index}.png").unlink()
        save(root / f"image/{index}.npy", image)
        save(root / f"semantic/{index}.npy", semantic)
        save(root / f"depth/{index}.npy", depth)
        save(root / f"normals/{index}.npy", normals)
        save(root / f"edges/{index}.npy", edges)
    dataset = open_root(root)
    assert len(dataset.class_names) == 301
    sample = dataset.splits["train"][0]
    np.testing.assert_array_equal(sample["image"], (image * 255).round())
    np.testing.assert_array_equal(sample["semantic"], semantic)
    np.testing.assert_array_equal(sample["depth"][..., 0], np.nan_to_num(depth))
    np.testing.assert_array_equal(sample["edges"][..., 0], edges)
    assert not sample["normals"][1, 1].any()
    sample["normals"][1, 1] = NORMAL
    assert degrees(sample["normals"]).max() < 0.05


def test_other_pngs_and_jpegs_are_read(root):
    for index in range(5):
        (root / f"image/{index}.png").unlink()
        grey = Image.fromarray(np.full(SIZE, 90, np.uint8))
        grey.save(root / f"image/{index}.JPG", quality=95)
        palette = Image.fromarray(labels()).convert("P")
        palette.putdata(labels().ravel().tolist())
        palette.save(root / f"semantic/{index}.png")
        normals = ((np.broadcast_to(NORMAL, (*SIZE, 3)) + 1) * 127.5).round().astype(np.uint8)
        normals[0], normals[1] = 0, 128
        save(root / f"normals/{index}.png", normals)
        save(root / f"edges/{index}.png", (labels() == 1) * np.uint8(255))
    sample = open_root(root).splits["val"][0]
    assert np.abs(sample["image"].astype(int) - 90).max() <= 2
    np.testing.assert_array_equal(sample["semantic"] == 1, labels() == 1)
    assert not sample["normals"][:2].any()
    assert degrees(sample["normals"][2:]).max() < 0.5
    np.testing.assert_array_equal(sample["edges"][..., 0], labels() == 1)


def test_edges_come_from_instances_before_semantics(root):
    instance = np.ones(SIZE, np.uint16)
    instance[:, 16:] = 700
    instance[20:] = 0
    for index in range(5):
        save(root / f"instance/{index}.png", instance)
    edges = open_root(root, ("edges",)).splits["train"][0]["edges"][..., 0]
    expected = np.zeros(SIZE)
    expected[19:] = -1
    expected[:20, 15:17] = 1
    np.testing.assert_array_equal(edges, expected)


def test_edges_say_nothing_where_labels_do_not():
    ids = np.array([[1, 1, 2, 2, -1, 2, 3]], np.int32)
    np.testing.assert_array_equal(edges_from_ids(ids)[0, :, 0], [0, 1, 1, -1, -1, 1, 1])


def test_the_config_takes_precedence_over_dataset_json(root):
    write_json(root, {"class_names": ["a", "b"], "depth_scale": 5000, "image_size": [5, 5]})
    names, size = ("floor", "box", "unseen"), (12, 16)
    dataset = open_root(root, class_names=names, depth_scale=10_000.0, image_size=size)
    assert dataset.class_names == names
    assert dataset.image_size == size
    sample = dataset.splits["train"][0]
    # Nearest pixels at half-pixel centres; normals are the plane's at any size.
    np.testing.assert_allclose(sample["depth"][..., 0], plane_depth()[1::2, 1::2], atol=6e-5)
    np.testing.assert_array_equal(sample["semantic"] == 1, labels()[1::2, 1::2] == 1)
    assert degrees(sample["normals"]).max() < 0.5


@pytest.mark.parametrize(
    "empty",
    [
        {"class_names": (), "intrinsics": (), "image_size": (), "ignore_label": None},
        {"class_names": None, "intrinsics": None, "image_size": None, "depth_scale": None},
    ],
)
def test_what_the_config_leaves_open_is_dataset_jsons(root, empty):
    write_json(root, {"class_names": ["a", "b"], "ignore_label": 0})
    sizes = np.full(SIZE, 1, np.uint8)
    for index in range(5):
        save(root / f"semantic/{index}.png", sizes - (labels() == 1))
    dataset = open_root(root, **empty)
    assert dataset.class_names == ("a", "b")
    expected = np.where(labels() == 1, -1, 1)
    np.testing.assert_array_equal(dataset.splits["val"][0]["semantic"], expected)


def test_a_given_split_is_kept_in_order_of_stems(root):
    write_json(root, {"splits": {"train": ["3", "1"], "val": ["4"]}})
    dataset = open_root(root, ("depth",))
    images = [sample["image"].tobytes() for sample in samples(dataset)]
    rng = [np.random.default_rng(index) for index in (1, 3, 4)]
    assert images == [r.integers(0, 256, (*SIZE, 3), dtype=np.uint8).tobytes() for r in rng]


def test_without_depth_and_labels_only_the_rest_is_offered(root):
    for index in range(5):
        (root / f"depth/{index}.png").unlink()
    (root / "depth").rmdir()
    assert open_root(root, ("semantic",)).tasks == ("semantic", "edges")
    message = refused(root, ("depth", "normals"))
    assert message.endswith("has no targets for depth, normals; it has semantic, edges.")


# Preparing once.


def test_preparing_happens_once_and_again_after_a_change(root, monkeypatch):
    made = []
    make = records._make_sample

    def counting(frame, **how):
        made.append(frame.stem)
        return make(frame, **how)

    monkeypatch.setattr(records, "_make_sample", counting)
    open_root(root)
    assert sorted(made) == list("01234")
    open_root(root, ("depth",))
    assert len(made) == 5
    changed = np.full(SIZE, 15_000, np.uint16)
    save(root / "depth/2.png", changed)
    os.utime(root / "depth/2.png", (1, 1))
    depths = [sample["depth"] for sample in samples(open_root(root))]
    assert len(made) == 10
    assert sum((depth == 1.5).all() for depth in depths) == 1
    write_json(root, {"image_size": [12, 16]})
    assert open_root(root).image_size == (12, 16)


def test_more_frames_than_a_shard_stay_in_order(root, monkeypatch):
    monkeypatch.setattr("talora_jax.data.records._SHARD", 2)
    write_json(root, {"splits": {"train": list("01234")[:4], "val": ["4"]}})
    images = [sample["image"].tobytes() for sample in samples(open_root(root, ()))]
    rng = [np.random.default_rng(index) for index in range(5)]
    assert images == [r.integers(0, 256, (*SIZE, 3), dtype=np.uint8).tobytes() for r in rng]


@pytest.mark.parametrize("killed", [False, True])
def test_a_broken_off_preparation_leaves_nothing_to_be_taken_for_whole(root, killed):
    script = f"""
import os, ml_collections
from talora_jax.data import open_dataset
from talora_jax.data.folder import records
make = records._make_sample
def broken(frame, **how):
    if frame.stem == "3":
        {"os._exit(9)" if killed else "raise RuntimeError('power cut')"}
    return make(frame, **how)
records._make_sample = broken
data = dict(name="folder", path={str(root)!r}, dir={str(root.parent / "prepared")!r})
open_dataset(ml_collections.ConfigDict(dict(data, val_fraction=0.4)), ["depth"])
"""
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode
    assert len(samples(open_root(root))) == 5


def test_preparing_is_quiet_on_standard_output(root, capfd):
    open_root(root)
    assert capfd.readouterr().out == ""


def test_tensorflow_is_not_imported(root):
    script = f"""
import sys, ml_collections
from talora_jax.data import open_dataset
data = dict(name="folder", path={str(root)!r}, dir={str(root.parent / "prepared")!r})
open_dataset(ml_collections.ConfigDict(dict(data, val_fraction=0.4)), ["depth"]).splits["val"][0]
sys.exit("tensorflow" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


# What it refuses.


def test_all_bad_files_are_listed_at_once(root):
    whole = (root / "image/0.png").read_bytes()
    (root / "image/0.png").write_bytes(whole[: len(whole) // 2])
    (root / "depth/1.png").unlink()
    save(root / "semantic/2.png", np.zeros((5, 6), np.uint8))
    save(root / "depth/3.png", np.zeros(SIZE, np.uint16))
    (root / "semantic/4.png").write_text("not an image")
    (root / "depth/9.png").write_bytes((root / "depth/0.png").read_bytes())
    (root / "depth/notes.txt").write_text("hello")
    (root / "depth/.hidden").write_text("hello")
    lines = refused(root).splitlines()
    assert lines[0].endswith("cannot be used:")
    for part in (
        "image/0.png: cannot be decoded as PNG or JPEG",
        "image/1.png: depth/ has no file of stem '1'",
        "semantic/2.png: 5×6 (H×W), expected 24×32 (H×W) as its image",
        "depth/3.png: all zero",
        "semantic/4.png: cannot be decoded as PNG or JPEG",
        "depth/9.png: there is no image of this stem",
        "depth/notes.txt: expected a file of kind .png, .npy",
    ):
        assert sum(line.strip().startswith(part) for line in lines) == 1, (part, lines)
    assert len(lines) == 8
    # A folder that is refused is not prepared.
    assert not list((root.parent).glob("prepared/folder/*/1*"))


def test_a_long_list_is_capped(root):
    for index in range(30):
        (root / f"depth/extra{index}.png").write_text("")
    lines = refused(root).splitlines()
    assert len(lines) == 22
    assert lines[-1] == "  … and 10 more"


def npy(values):
    return lambda path: np.save(path.with_suffix(".npy"), values)


def png(values):
    return lambda path: Image.fromarray(values).save(path)


class Boom:
    """Unpickling this would make a file."""

    def __reduce__(self):
        return (open, ("unpickled", "w"))


def bomb(path):
    # A header that claims 40000×40000 pixels.
    Image.new("L", (1, 1)).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = (40_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)


away = np.broadcast_to(-NORMAL, (*SIZE, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "folder, write, message",
    [
        ("image", png(np.zeros(SIZE, np.uint16)), "image/0.png: mode I;16, expected 8 bits"),
        ("image", npy(np.zeros((*SIZE, 4), np.uint8)), "shape (24, 32, 4), expected [H, W, 3]"),
        ("image", npy(np.full((*SIZE, 3), 7.0)), "float64 from 7 to 7, expected uint8, or float"),
        ("image", bomb, "image/0.png: cannot be decoded as PNG or JPEG (Image size (1600000000"),
        ("semantic", png(np.zeros((*SIZE, 3), np.uint8)), "mode RGB, expected one channel"),
        ("semantic", png(np.full(SIZE, 7, np.uint8)), "label 7, expected 0 to 1 for the 2 class"),
        ("semantic", npy(np.full(SIZE, -2)), "label -2, expected -1 (no label) or a class index"),
        ("semantic", npy(np.zeros(SIZE)), "float64 of shape (24, 32), expected integers [H, W]"),
        ("semantic", npy(np.array([Boom()])), "semantic/0.npy: cannot be read as npy (Object"),
        ("depth", png(np.ones(SIZE, np.uint8)), "mode L, expected a 16-bit PNG"),
        ("depth", npy(np.ones(SIZE, np.uint16)), "uint16, expected float metres"),
        ("depth", npy(np.ones((*SIZE, 2))), "shape (24, 32, 2), expected [H, W] or [H, W, 1]"),
        ("depth", npy(np.full(SIZE, -1.0)), "depth -1, expected 0 (no measurement) or metres"),
        ("depth", npy(np.full(SIZE, np.nan)), "all zero, expected a measurement"),
        ("normals", npy(away), "most z are positive, expected z < 0"),
        ("normals", npy(np.ones(SIZE)), "float64 of shape (24, 32), expected float [H, W, 3]"),
        ("normals", png(np.zeros(SIZE, np.uint8)), "mode L, expected an 8-bit RGB PNG"),
        ("edges", npy(np.full(SIZE, 2)), "int64 from 2 to 2, expected [H, W] of 1, 0 and -1"),
        ("instance", npy(np.zeros((*SIZE, 1), int)), "expected integers [H, W]"),
    ],
)
def test_a_bad_file_is_named_with_what_was_expected(
    root, tmp_path, monkeypatch, folder, write, message
):
    monkeypatch.chdir(tmp_path)
    write_json(root, {"class_names": ["a", "b"]})
    (root / folder).mkdir(exist_ok=True)
    path = root / folder / "0.png"
    path.unlink(missing_ok=True)
    write(path)
    assert message in refused(root)
    assert not (tmp_path / "unpickled").exists()


def test_two_files_of_one_stem_are_refused(root):
    save(root / "depth/0.npy", plane_depth())
    assert "depth/0.png: 0.npy has the same stem; expected one" in refused(root)


def test_images_of_mixed_sizes_are_refused_unless_resized(root):
    for folder, values in (
        ("image", np.zeros((30, 32, 3), np.uint8)),
        ("semantic", np.zeros((30, 32), np.uint8)),
        ("depth", np.ones((30, 32), np.uint16)),
    ):
        save(root / folder / "0.png", values)
    message = "image/0.png: 30×32 (H×W), expected 24×32 (H×W) as the other images"
    assert message in refused(root)
    # Intrinsics are of one size, even where samples are resized to one.
    assert message in refused(root, image_size=(12, 16))
    write_json(root, {"intrinsics": None})
    assert message in refused(root, ("depth",))
    assert open_root(root, ("depth",), image_size=(12, 16)).image_size == (12, 16)


def test_no_labelled_pixel_is_refused(root):
    for index in range(5):
        save(root / f"semantic/{index}.png", np.full(SIZE, 255, np.uint8))
    assert "no file has a labelled pixel" in refused(root)


def test_normals_need_intrinsics(root):
    write_json(root, {"intrinsics": None})
    message = refused(root)
    assert "dataset.json" in message and "--config.data.intrinsics" in message
    assert open_root(root, ("depth",)).tasks == ("semantic", "depth", "edges")


@pytest.mark.parametrize(
    "content, message",
    [
        ({"clas_names": ["a"]}, "unknown field 'clas_names'; the fields are class_names, depth_"),
        ({"class_names": "ab"}, "class_names is 'ab'; expected a list of distinct names"),
        ({"class_names": ["a", "a"]}, "expected a list of distinct names"),
        ({"depth_scale": -1}, "depth_scale is -1; expected a positive number"),
        ({"depth_scale": "mm"}, "depth_scale is 'mm'; expected a positive number"),
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
def test_dataset_json_is_checked(root, content, message):
    write_json(root, content)
    error = refused(root)
    assert message in error
    assert "dataset.json" in error


@pytest.mark.parametrize("content", ["{", "[1]", "\x00"])
def test_dataset_json_must_be_an_object(root, content):
    (root / "dataset.json").write_text(content)
    assert "dataset.json" in refused(root)


def test_the_config_is_checked(root):
    assert "config.data.intrinsics is (1, 2)" in refused(root, intrinsics=(1, 2))
    assert "config.data.val_fraction is 1.5" in refused(root, val_fraction=1.5)
    names = "cityscapes_mtan, folder, nyuv2_mtan, pascal_context, rooms"
    assert f"'nyu'; expected one of {names}." in refused(root, name="nyu")
    message = refused(root, name="room")
    assert f"'room'; did you mean 'rooms'? The data sets are {names}." in message


def test_a_folder_without_images_is_refused(root, tmp_path):
    assert "config.data.path is empty" in refused(root, path="")
    assert "which is not a directory" in refused(root, path=str(tmp_path / "nowhere"))
    assert "has no folder 'image'" in refused(root, path=str(tmp_path))
    (tmp_path / "image").mkdir()
    assert "holds no image" in refused(root, path=str(tmp_path))
    save(tmp_path / "image/one.png", np.zeros((*SIZE, 3), np.uint8))
    assert "holds one image; expected two or more" in refused(root, (), path=str(tmp_path))


# The estimator of normals.


@pytest.mark.parametrize("tilt", [0, 30, 60, 75])
def test_planes_are_exact_at_any_tilt(tilt):
    normal = np.array([np.sin(np.radians(tilt)), 0, -np.cos(np.radians(tilt))])
    intrinsics = (525.0, 525.0, 79.5, 59.5)
    depth = plane_depth((120, 160), intrinsics, normal)
    normals = normals_from_depth(depth[..., None], Intrinsics(*intrinsics))
    assert degrees(normals, normal).max() < 0.5


def test_noise_of_a_kinect_is_smoothed():
    size, intrinsics = (480, 640), (525.0, 525.0, 319.5, 239.5)
    # Kinect v1: disparity in eighths of a pixel, baseline 75 mm.
    rng = np.random.default_rng(0)
    disparity = 525 * 0.075 / plane_depth(size, intrinsics) + rng.normal(size=size) / 8
    depth = (525 * 0.075 / (np.round(disparity * 8) / 8)).astype(np.float32)[..., None]
    angles = degrees(normals_from_depth(depth, Intrinsics(*intrinsics)))
    assert np.mean(angles) < 3


def test_no_plane_is_laid_across_a_step():
    depth = np.ones((40, 60, 1), np.float32)
    depth[:, 30:] = 1.5
    depth[10:14, 10:14] = 0
    normals = normals_from_depth(depth, Intrinsics(60.0, 60.0, 29.5, 19.5))
    assert not normals[10:14, 10:14].any()
    valid = depth[..., 0] > 0
    np.testing.assert_allclose(
        normals[valid], np.broadcast_to([0, 0, -1], (valid.sum(), 3)), atol=1e-5
    )


def test_lone_measurements_have_no_normal():
    depth = np.zeros((40, 60, 1), np.float32)
    depth[20, :] = 1
    depth[5, 5] = 1
    assert not normals_from_depth(depth, Intrinsics(60.0, 60.0, 29.5, 19.5)).any()
