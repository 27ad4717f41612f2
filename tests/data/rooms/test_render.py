"""Exact geometry, honest labels, the same frames every time."""

import numpy as np
import pytest

from talora_jax.data.rooms import CLASS_NAMES
from talora_jax.data.rooms.furniture import BOX, CYLINDER, ELLIPSOID
from talora_jax.data.rooms.render import render
from talora_jax.data.rooms.scene import FOCAL, look, random_scene

SIZE = (48, 64)


@pytest.fixture(scope="module")
def frames(scenes):
    return [render(scene, SIZE) for scene in scenes]


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
        "part": (np.int32, SIZE),
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
