"""Rooms: exact geometry, honest labels, the same frames every time, and records that keep them."""

import pickle
import shutil
import subprocess
import sys

import ml_collections
import numpy as np
import pytest

from talora_jax import config as config_lib
from talora_jax.data import open_dataset
from talora_jax.data.rooms import CLASS_NAMES, open_rooms, records
from talora_jax.data.rooms.__main__ import write_folder
from talora_jax.data.rooms.furniture import BOX, CYLINDER, ELLIPSOID
from talora_jax.data.rooms.render import render
from talora_jax.data.rooms.scene import FOCAL, look, random_scene
from talora_jax.errors import UserError

SIZE = (48, 64)
TASKS = ("semantic", "depth", "normals", "edges")


@pytest.fixture(scope="module")
def scenes():
    return [random_scene(7, "train", i) for i in range(24)]


@pytest.fixture(scope="module")
def frames(scenes):
    return [render(scene, SIZE) for scene in scenes]


def config(directory, **changes):
    values = dict(dir=str(directory), train_frames=4, val_frames=2, image_size=SIZE, seed=7)
    return ml_collections.ConfigDict(values | changes)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    directory = tmp_path_factory.mktemp("tfds")
    return directory, open_rooms(config(directory), TASKS)


def rays():
    """Directions of the pixels' centres, camera frame, 1 along the axis: [H, W, 3]."""
    height, width = SIZE
    v, u = np.meshgrid(np.arange(height) + 0.5, np.arange(width) + 0.5, indexing="ij")
    focal = FOCAL * width
    return np.stack([(u - width / 2) / focal, (v - height / 2) / focal, np.ones_like(u)], -1)


def bare(scene, shape=None, centre=(0, 0, 0), half=(1, 1, 1), yaw=0.0):
    """An empty room 4 x 5 x 2.5 m seen along x from (1, 2, 1.2), or with one solid in it."""
    position, axes = look((1.0, 2.0, 1.2), 0.0, 0.0, 0.0)
    one = {}
    if shape is not None:
        one = {
            "shape": np.full_like(scene.shape, shape),
            "centre": np.full_like(scene.centre, centre),
            "half": np.full_like(scene.half, half),
            "heading": np.full_like(scene.heading, (np.cos(yaw), np.sin(yaw))),
        }
    return scene._replace(
        count=np.int32(shape is not None),
        room=np.array([4.0, 5.0, 2.5], np.float32),
        position=position.astype(np.float32),
        axes=axes.astype(np.float32),
        **one,
    )


def test_sample_has_the_promised_types(frames):
    expected = {
        "image": (np.uint8, (*SIZE, 3)),
        "semantic": (np.int32, SIZE),
        "depth": (np.float32, (*SIZE, 1)),
        "normals": (np.float32, (*SIZE, 3)),
        "edges": (np.float32, (*SIZE, 1)),
        "instance": (np.int32, SIZE),
    }
    assert {k: (v.dtype.type, v.shape) for k, v in frames[0].items()} == expected


def test_bare_room_in_closed_form(scenes):
    """Wall 3 m ahead, floor 1.2 m below, ceiling 1.3 m above, walls 2 m to the right, 3 m left."""
    frame, ray = render(bare(scenes[0]), SIZE), rays()
    with np.errstate(divide="ignore"):
        below, above = 1.2 / np.maximum(ray[..., 1], 0), 1.3 / np.maximum(-ray[..., 1], 0)
        right, left = 2.0 / np.maximum(ray[..., 0], 0), 3.0 / np.maximum(-ray[..., 0], 0)
    planes = np.stack([np.full(SIZE, 3.0), below, above, right, left])
    nearest = planes.argmin(0)
    np.testing.assert_allclose(frame["depth"][..., 0], planes.min(0), rtol=1e-5)
    normals = np.array([(0, 0, -1), (0, -1, 0), (0, 1, 0), (-1, 0, 0), (1, 0, 0)], np.float32)
    np.testing.assert_allclose(frame["normals"], normals[nearest], atol=1e-6)
    names = np.array(["wall", "floor", "ceiling", "wall", "wall"])[nearest]
    np.testing.assert_array_equal(np.array(CLASS_NAMES)[frame["semantic"]], names)


def test_solids_in_closed_form(scenes):
    """What stands 1.5 m ahead: the middle of the image sees its front."""
    middle = (SIZE[0] // 2, SIZE[1] // 2)
    ray = rays()[middle]
    at = (2.5, 2.0, 1.2)
    box = render(bare(scenes[0], BOX, at, (0.5, 0.3, 0.2)), SIZE)
    np.testing.assert_allclose(box["depth"][middle], 1.0, rtol=1e-6)
    np.testing.assert_allclose(box["normals"][middle], (0, 0, -1), atol=1e-6)
    half = 0.5 / np.tan(np.radians(30))
    turned = render(bare(scenes[0], BOX, at, (0.5, half, 0.5), np.radians(30)), SIZE)
    slope = np.array([np.sin(np.radians(30)), 0, -np.cos(np.radians(30))])
    np.testing.assert_allclose(turned["normals"][middle], slope, atol=1e-6)
    depth = (1.5 * slope[2] + 0.5) / (ray @ slope)
    np.testing.assert_allclose(turned["depth"][middle][0], depth, rtol=1e-5)
    ball = render(bare(scenes[0], ELLIPSOID, at, (0.4, 0.4, 0.4)), SIZE)
    a, b, c = ray @ ray, ray[2] * 1.5, 1.5**2 - 0.4**2
    depth = (b - np.sqrt(b * b - a * c)) / a
    np.testing.assert_allclose(ball["depth"][middle][0], depth, rtol=1e-5)
    normal = (depth * ray - (0, 0, 1.5)) / 0.4
    np.testing.assert_allclose(ball["normals"][middle], normal, atol=1e-4)
    can = render(bare(scenes[0], CYLINDER, at, (0.4, 0.4, 0.4)), SIZE)
    flat = ray * (1, 0, 1)
    a = flat @ flat
    depth = (b - np.sqrt(b * b - a * c)) / a
    np.testing.assert_allclose(can["depth"][middle][0], depth, rtol=1e-5)
    np.testing.assert_allclose(can["normals"][middle][1], 0.0, atol=1e-6)


def test_edges_of_a_box_before_a_wall(scenes):
    frame = render(bare(scenes[0], BOX, (2.5, 2.0, 1.2), (0.5, 0.3, 0.2)), SIZE)
    inside = frame["instance"] == frame["instance"][SIZE[0] // 2, SIZE[1] // 2]
    outline = np.zeros(SIZE, bool)
    for axis in (0, 1):
        change = np.diff(inside, axis=axis)
        outline |= np.pad(change, [(0, 1 - axis), (0, axis)])
        outline |= np.pad(change, [(1 - axis, 0), (axis, 0)])
    window = np.s_[SIZE[0] // 2 - 12 : SIZE[0] // 2 + 12, SIZE[1] // 2 - 18 : SIZE[1] // 2 + 18]
    np.testing.assert_array_equal(frame["edges"][..., 0][window] > 0, outline[window])


def test_frames_do_not_depend_on_company():
    alone = render(random_scene(7, "train", 3), SIZE)
    for other in (random_scene(7, "train", 0), random_scene(7, "val", 3)):
        assert not np.array_equal(render(other, SIZE)["depth"], alone["depth"])
    again = render(random_scene(7, "train", 3), SIZE)
    for key, value in alone.items():
        np.testing.assert_array_equal(again[key], value, err_msg=key)


def test_normals_are_unit_and_face_the_camera(frames):
    ray = rays()
    for frame in frames:
        np.testing.assert_allclose(np.linalg.norm(frame["normals"], axis=-1), 1.0, atol=1e-5)
        assert ((frame["normals"] * ray).sum(-1) < 1e-4).all()
        assert (frame["depth"] > 0.1).all() and (frame["depth"] < 10).all()


def test_normals_agree_with_depth(frames):
    """Away from edges, the cross product of the back-projected surface is the normal."""
    errors = []
    for frame in frames:
        points = frame["depth"] * rays()
        across = points[1:-1, 2:] - points[1:-1, :-2]
        down = points[2:, 1:-1] - points[:-2, 1:-1]
        normal = np.cross(down, across)
        normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
        edge = frame["edges"][..., 0] > 0
        near = (
            edge[1:-1, 1:-1] | edge[:-2, 1:-1] | edge[2:, 1:-1] | edge[1:-1, :-2] | edge[1:-1, 2:]
        )
        cosine = (normal * frame["normals"][1:-1, 1:-1]).sum(-1)[~near]
        errors.append(np.degrees(np.arccos(np.clip(cosine, -1, 1))))
    errors = np.concatenate(errors)
    assert np.median(errors) < 0.2
    assert np.quantile(errors, 0.95) < 3.0


def test_labels_are_of_whole_things(frames):
    """Every class occurs; an instance has one class."""
    seen = set()
    for frame in frames:
        pairs = np.unique(np.stack([frame["instance"].ravel(), frame["semantic"].ravel()]), axis=1)
        assert len(np.unique(pairs[0])) == pairs.shape[1]
        seen |= set(pairs[1].tolist())
    assert seen == set(range(len(CLASS_NAMES)))


def test_edges_hold_every_change_of_label(frames):
    for frame in frames:
        edge = frame["edges"][..., 0]
        assert set(np.unique(edge)) <= {0.0, 1.0}
        for key in ("instance", "semantic"):
            for axis in (0, 1):
                change = np.diff(frame[key], axis=axis) != 0
                first = np.pad(change, [(0, 1 - axis), (0, axis)])
                second = np.pad(change, [(1 - axis, 0), (axis, 0)])
                assert (edge[first | second] == 1).all()


def test_rooms_are_possible(scenes):
    """Nothing leaves the room, enters another thing (but pillows the bed), or holds the camera."""
    points = np.random.default_rng(0).uniform(-1, 1, (200, 3))
    bed, objects = CLASS_NAMES.index("bed"), CLASS_NAMES.index("objects")

    def inside(unit, shape):
        if shape == BOX:
            return (np.abs(unit) < 0.99).all(-1)
        if shape == CYLINDER:
            return (np.hypot(unit[:, 0], unit[:, 1]) < 0.99) & (np.abs(unit[:, 2]) < 0.99)
        return (unit**2).sum(-1) < 0.98

    def to_unit(scene, part, world):
        (c, s), away = scene.heading[part], world - scene.centre[part]
        turned = np.stack([c * away[:, 0] + s * away[:, 1], c * away[:, 1] - s * away[:, 0]], 1)
        return np.concatenate([turned, away[:, 2:]], 1) / scene.half[part]

    for scene in scenes[:12]:
        for i in range(scene.count):
            unit = points[inside(points, scene.shape[i])]
            x, y, z = (unit * scene.half[i]).T
            c, s = scene.heading[i]
            world = np.stack([c * x - s * y, s * x + c * y, z], 1) + scene.centre[i]
            # What hangs on a wall is sunk into it a little.
            assert (world > -0.025).all() and (world < scene.room + 0.025).all()
            assert not inside(to_unit(scene, i, scene.position[None]) / 1.1, scene.shape[i]).any()
            for j in range(scene.count):
                classes = {int(scene.semantic[i]), int(scene.semantic[j])}
                if scene.instance[i] != scene.instance[j] and classes != {bed, objects}:
                    assert not inside(to_unit(scene, j, world), scene.shape[j]).any()


def test_records_give_back_what_was_rendered(prepared):
    _, dataset = prepared
    assert dataset.tasks == TASKS and dataset.image_size == SIZE
    assert dataset.class_names == CLASS_NAMES and len(dataset.class_names) == 13
    for split, length in (("train", 4), ("val", 2)):
        source = dataset.splits[split]
        assert len(source) == length
        for i in range(length):
            sample, frame = source[i], render(random_scene(7, split, i), SIZE)
            assert set(sample) == {"image", *TASKS}
            for key, value in sample.items():
                assert (value.dtype, value.shape) == (frame[key].dtype, frame[key].shape)
                tolerance = {"depth": 1.1e-4, "normals": 2e-5}.get(key, 0.0)
                np.testing.assert_allclose(value, frame[key], rtol=0, atol=tolerance)


def test_only_what_is_asked_for_is_read(prepared):
    directory, _ = prepared
    sample = open_rooms(config(directory), ("depth",)).splits["val"][0]
    assert set(sample) == {"image", "depth"}


def test_source_can_be_pickled(prepared):
    source = prepared[1].splits["train"]
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(source))[2]["depth"], source[2]["depth"]
    )


def test_prepared_rooms_are_not_rendered_again(prepared, monkeypatch):
    monkeypatch.setattr(records, "render", lambda *_: pytest.fail("rendered again"))
    assert len(open_rooms(config(prepared[0]), TASKS).splits["train"]) == 4


def test_interrupted_preparation_leaves_nothing(tmp_path, monkeypatch):
    calls = []

    def interrupted(scene, size):
        calls.append(scene)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return render(scene, size)

    with monkeypatch.context() as patch:
        patch.setattr(records, "render", interrupted)
        with pytest.raises(KeyboardInterrupt):
            open_rooms(config(tmp_path), TASKS)
    assert not list(tmp_path.glob("rooms/*/*/*"))
    # A directory that a killed process could not tidy up does not count as prepared either.
    made = records.records_config(4, 2, SIZE, 7).name
    stray = tmp_path / "rooms" / made / "incomplete.ABCDEF_1.0.0"
    stray.mkdir(parents=True)
    (stray / "rooms-train.array_record-00000-of-00001").write_bytes(b"half")
    dataset = open_rooms(config(tmp_path), TASKS)
    assert len(dataset.splits["train"]) == 4 and dataset.splits["val"][1]["depth"].min() > 0


def test_one_process_may_finish_before_another(prepared, tmp_path, monkeypatch):
    """Two processes prepare the same rooms: the slower one takes what the faster one wrote."""
    directory, dataset = prepared
    original = records.Rooms.download_and_prepare

    def late(self, **arguments):
        shutil.copytree(directory / "rooms", tmp_path / "rooms")
        with monkeypatch.context() as patch:
            patch.setattr(type(self.data_path), "exists", lambda _: False)
            original(self, **arguments)

    monkeypatch.setattr(records.Rooms, "download_and_prepare", late)
    sample = open_rooms(config(tmp_path), TASKS).splits["train"][0]
    np.testing.assert_array_equal(sample["image"], dataset.splits["train"][0]["image"])


def test_tensorflow_stays_out():
    code = "import sys, talora_jax.data.rooms; print('tensorflow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"train_frames": 0}, "train_frames"),
        ({"val_frames": -1}, "val_frames"),
        ({"image_size": (16, 64)}, "image_size"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_values_are_named(tmp_path, changes, named):
    with pytest.raises(UserError, match=f"config.data.{named}") as error:
        open_rooms(config(tmp_path, **changes), TASKS)
    assert "\n" not in str(error.value)


def test_directory_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="config.data.dir"):
        open_rooms(config(tmp_path / "file"), TASKS)


def test_a_written_folder_holds_what_was_rendered(tmp_path):
    size = (96, 128)
    write_folder(tmp_path / "rooms", 3, size, seed=7)
    data = config_lib.default().data
    data.name, data.path, data.image_size = "folder", str(tmp_path / "rooms"), ()
    data.dir, data.val_fraction = str(tmp_path / "records"), 0.34
    dataset = open_dataset(data, TASKS)
    assert dataset.class_names == CLASS_NAMES and dataset.image_size == size
    assert [len(dataset.splits[split]) for split in ("train", "val")] == [2, 1]

    rendered = [render(random_scene(7, "train", i), size) for i in range(3)]
    splits = dataset.splits.values()
    for sample in (split[i] for split in splits for i in range(len(split))):
        (frame,) = (f for f in rendered if (f["semantic"] == sample["semantic"]).all())
        np.testing.assert_allclose(sample["depth"], frame["depth"], rtol=0, atol=0.0005)
        assert np.abs(sample["image"].astype(int) - frame["image"]).mean() < 5  # JPEG
        # Derived from depth and the intrinsics, so right up to rounding but for outlines.
        cosine = (sample["normals"] * frame["normals"]).sum(-1)
        assert np.degrees(np.arccos(np.median(cosine.clip(-1, 1)))) < 3
        # Of the instances alone; the frame's own also has creases and corners.
        assert frame["edges"][sample["edges"] == 1].mean() > 0.9


@pytest.mark.parametrize(
    ("frames", "size", "told"),
    [(0, SIZE, "--frames is 0"), (1, (16, 64), "--size is 16"), (1, SIZE, "exists: name another")],
)
def test_folders_that_are_not_written(tmp_path, frames, size, told):
    out = tmp_path if "exists" in told else tmp_path / "rooms"
    with pytest.raises(UserError, match=told):
        write_folder(out, frames, size, seed=0)
    assert not any(tmp_path.iterdir())
