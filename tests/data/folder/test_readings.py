"""What dataset.json says of the numbers in files."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from talora_jax.data.folder import rasters
from talora_jax.data.folder.colours import read_table
from talora_jax.data.folder.decode import read
from talora_jax.data.folder.readings import parse_readings
from talora_jax.data.folder.settings import Intrinsics, Settings
from talora_jax.errors import UserError
from talora_jax.tasks.target_files import BadFile

NONE = -1


def said(target, entry, root=Path(), class_names=(), **settings):
    readings = parse_readings({target: entry}, "dataset.json: read", root, class_names)
    return Settings(read=readings, **settings)


def write(path, values, **more):
    values = np.asarray(values)
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".npz":
        np.savez(path, **({"a": values} | more))
    elif path.suffix == ".exr":
        write_exr(path, {"Z": values} | more)
    else:
        Image.fromarray(values).save(path)
    return path


def write_exr(path, channels):
    exr = pytest.importorskip("OpenEXR")
    header = {"compression": exr.ZIP_COMPRESSION, "type": exr.scanlineimage}
    channels = {name: np.ascontiguousarray(x) for name, x in channels.items()}
    exr.File(header, channels).write(str(path))
    return path


def refusal(*arguments):
    with pytest.raises((BadFile, UserError)) as error:
        read(*arguments)
    assert len(str(error.value)) < 600
    return str(error.value)


# Classes.

COLOURS = np.uint8([[[128, 64, 128], [70, 130, 180], [0, 0, 0]]])


def test_colours_are_classes_in_their_order(tmp_path):
    entry = {"colours": {"road": [128, 64, 128], "void": "#000000", "sky": "#4682b4"},
             "ignore": ["void"]}  # fmt: skip
    settings = said("semantic", entry)
    assert settings.read["semantic"].names == ("road", "sky")
    path = write(tmp_path / "a.png", COLOURS)
    np.testing.assert_array_equal(read("semantic", path, settings), [[0, 1, NONE]])
    # Of a palette as well, and with another order of the classes.
    Image.fromarray(COLOURS).quantize(3).save(tmp_path / "p.png")
    settings = said("semantic", entry, class_names=("sky", "road"))
    np.testing.assert_array_equal(read("semantic", tmp_path / "p.png", settings), [[1, 0, NONE]])


def test_a_colour_that_no_table_has(tmp_path):
    entry = {"colours": {"road": [[128, 64, 128], [70, 130, 180]], "car": [1, 1, 1]}}
    path = write(tmp_path / "a.png", COLOURS)
    assert "colour (0, 0, 0), 1 such, expected those" in refusal(
        "semantic", path, said("semantic", entry)
    )
    settings = said("semantic", entry | {"ignore": "others"})
    np.testing.assert_array_equal(read("semantic", path, settings), [[0, 0, NONE]])
    Image.fromarray(COLOURS).save(tmp_path / "a.jpg")
    assert "a JPEG, whose colours" in refusal("semantic", tmp_path / "a.jpg", settings)


@pytest.mark.parametrize(
    "text",
    [
        "name,r,g,b\nroad,128,64,128\nsky,70,130,180\n",
        "128 64 128\troad\r\n70 130 180\tsky\r\n",
        '0;"road";128;64;128\n1;"sky";70;130;180\n',
        "# label:color_rgb:parts\n\nroad (128, 64, 128)\nsky (70, 130, 180)\n",
        "# label:color_rgb:parts:actions\nroad:128,64,128::\nsky:70,130,180::\n",
    ],
)
def test_tables_of_colours(tmp_path, text):
    (tmp_path / "t.txt").write_text(text)
    assert read_table(tmp_path / "t.txt") == {
        "road": ((128, 64, 128),),
        "sky": ((70, 130, 180),),
    }
    settings = said("semantic", {"colours": "t.txt", "ignore": "others"}, tmp_path)
    np.testing.assert_array_equal(
        read("semantic", write(tmp_path / "a.png", COLOURS), settings), [[0, 1, NONE]]
    )


def test_tables_of_colours_that_are_none(tmp_path):
    for text, expected in (
        ("road,128,64\n", "no line has a name and the three numbers"),
        ("a,1,2,3\nb,1,2,3\n", "colour (1, 2, 3) stands there twice"),
        ("a,1,2,300\n", "no line has a name"),
    ):
        (tmp_path / "t.txt").write_text(text)
        with pytest.raises(UserError) as error:
            read_table(tmp_path / "t.txt")
        assert expected in str(error.value)
    with pytest.raises(UserError, match="there is no such file, expected colours"):
        read_table(tmp_path / "none.txt")


def test_ids_with_gaps(tmp_path):
    path = write(tmp_path / "a.png", np.uint16([[7, 8, 33, 4, 900]]))
    entry = {"ids": {"7": "road", "33": "car", "8": "road"}, "ignore": "others"}
    settings = said("semantic", entry)
    assert settings.read["semantic"].names == ("road", "car")
    np.testing.assert_array_equal(read("semantic", path, settings), [[0, 0, 1, NONE, NONE]])
    settings = said("semantic", {"ids": [33, 8, 7], "ignore": [4, 900]})
    np.testing.assert_array_equal(read("semantic", path, settings), [[2, 1, 0, NONE, NONE]])
    settings = said("semantic", {"ids": {"7": 0, "8": 1, "33": None, "4": 1}})
    message = refusal("semantic", path, settings)
    assert message.startswith("value 900, expected one of read.ids") and "[900]" in message


def test_zero_is_none_and_classes_count_from_one(tmp_path):
    settings = said("semantic", {"reduce_zero_label": True})
    path = write(tmp_path / "a.png", np.uint8([[0, 1, 150, 255]]))
    np.testing.assert_array_equal(read("semantic", path, settings), [[NONE, 0, 149, NONE]])
    settings = said("semantic", {"ignore": [1, 2]})
    np.testing.assert_array_equal(read("semantic", path, settings), [[0, NONE, 150, NONE]])


def test_human_parts_by_ids(tmp_path):
    settings = said("human_parts", {"ids": {"0": "background", "9": "head", "4": "lower_leg"}})
    path = write(tmp_path / "a.png", np.uint8([[0, 9, 4, 255]]))
    np.testing.assert_array_equal(read("human_parts", path, settings), [[0, 1, 6, NONE]])


@pytest.mark.parametrize(
    ("target", "entry", "expected"),
    [
        ("semantics", {}, "read.semantics: unknown target"),
        ("semantic", 3, "expected an object"),
        ("semantic", {"colors": {}}, "unknown field 'colors'; the fields are colours, ids"),
        ("semantic", {"colours": {"a": [1, 2]}}, "a is [1, 2]; expected names with their colours"),
        ("semantic", {"colours": {"a": [1, 2, 256]}}, "expected names with their colours"),
        ("semantic", {"colours": {"a": "#000", "b": 1}}, "expected names with their colours"),
        ("semantic", {"colours": {"a": [1, 2, 3], "b": [1, 2, 3]}}, "[1, 2, 3] stands there twice"),
        ("semantic", {"colours": {"a": [1, 2, 3]}, "ids": [1]}, "not both"),
        ("semantic", {"ids": {"a": 1}}, "a is 1; expected values with their class"),
        ("semantic", {"ids": {"1": -5}}, "1 is -5; expected values with their class"),
        ("semantic", {"ids": [1, 1]}, "has a value twice"),
        ("semantic", {"ids": {"1": None}}, "every entry is no label"),
        ("semantic", {"ids": {"1": "a"}, "ignore": ["b"]}, "ignore names b, which no table has"),
        ("semantic", {"ids": [1], "ignore": [0.5]}, "expected values or names, or 'others'"),
        ("semantic", {"reduce_zero_label": 1}, "expected true or false"),
        ("depth", {"rotated": 16}, "read.depth.rotated is 16; expected bits, 1 to 15"),
        ("depth", {"scale": 0}, "read.depth.scale is 0; expected a number above 0"),
        ("depth", {"inverse": "yes"}, "expected true or false"),
        ("depth", {"max_depth": 3}, "unknown field 'max_depth'; the fields are scale, offset"),
        ("normals", {"axes": "directx"}, "expected 'opencv', 'opengl', or a list of three"),
        ("normals", {"axes": ["left", "right", "up"]}, "expected 'opencv', 'opengl'"),
        ("normals", {"range": [1, 1]}, "the values of -1 and 1"),
        ("edges", {"threshold": "a"}, "expected a number"),
    ],
)
def test_what_read_may_not_say(target, entry, expected):
    with pytest.raises(UserError) as error:
        said(target, entry)
    assert expected in str(error.value) and len(str(error.value)) < 600


def test_classes_of_a_table_that_class_names_lack():
    entry = {"ids": {"1": "road", "2": "void"}}
    with pytest.raises(UserError, match="names 'void', which is none of class_names: road, car"):
        said("semantic", entry, class_names=("road", "car"))
    settings = said("semantic", entry | {"ignore": ["void"]}, class_names=("car", "road"))
    assert settings.read["semantic"].ids == ((1, 1), (2, NONE))


# Depth.


@pytest.mark.parametrize("suffix", [".png", ".tif", ".npy", ".npz"])
def test_depth_of_whole_numbers(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", np.uint16([[0, 256, 512, 60000]]))
    depth = read("depth", path, said("depth", {}, depth_scale=256.0, max_depth=100.0))
    np.testing.assert_array_equal(depth[..., 0], [[0, 1, 2, 0]])
    np.testing.assert_array_equal(
        read("depth", path, said("depth", {}))[..., 0], np.float32([[0, 0.256, 0.512, 60]])
    )


@pytest.mark.parametrize("suffix", [".tif", ".npy", ".npz", ".exr"])
def test_depth_of_floats_is_metres(tmp_path, suffix):
    values = np.float32([[0, 1.5, 2.5, 1000]])
    if suffix != ".tif":
        values[0, 3] = np.inf
    path = write(tmp_path / f"a{suffix}", values)
    depth = read("depth", path, said("depth", {}, max_depth=100.0))
    np.testing.assert_array_equal(depth[..., 0], [[0, 1.5, 2.5, 0]])


def test_offset_inverse_and_values_that_are_none(tmp_path):
    path = write(tmp_path / "a.png", np.uint16([[0, 1, 513, 65535]]))
    entry = {"offset": 1, "inverse": True, "ignore": [65535]}
    depth = read("depth", path, said("depth", entry, depth_scale=256.0))
    np.testing.assert_array_equal(depth[..., 0], [[0, 0, 0.5, 0]])
    assert "value 65535, all ones" in refusal("depth", path, said("depth", {}))
    entry = {"offset": 5, "ignore": [65535]}
    assert "-0.004 after scale and offset" in refusal("depth", path, said("depth", entry))


def test_depth_whose_bits_are_rotated(tmp_path):
    millimetres = np.uint16([[0, 1, 5000, 8191, 8192, 20000]])
    stored = millimetres << 3 | millimetres >> 13
    settings = said("depth", {"rotated": 3, "scale": 1000})
    path = write(tmp_path / "a.png", stored)
    np.testing.assert_allclose(read("depth", path, settings)[..., 0], millimetres / 1000)
    path = write(tmp_path / "a.npy", np.float32(stored))
    assert "float32, expected numbers of 16 bits" in refusal("depth", path, settings)


def test_depth_along_the_ray(tmp_path):
    """Along a ray, a wall 2 m away is farther at the sides."""
    camera = Intrinsics(10.0, 10.0, 2.0, 1.0)
    y, x = np.mgrid[:3, :5]
    distance = 2 * np.sqrt(((x - 2) / 10) ** 2 + ((y - 1) / 10) ** 2 + 1)
    path = write(tmp_path / "a.npy", distance)
    depth = read("depth", path, said("depth", {"along_ray": True}, intrinsics=camera))
    np.testing.assert_allclose(depth[..., 0], 2, rtol=1e-6)
    assert "needs the camera" in refusal("depth", path, said("depth", {"along_ray": True}))


def test_disparity_needs_a_scale(tmp_path):
    path = write(tmp_path / "a.png", np.uint16([[0, 1, 257, 513]]))
    settings = said("disparity", {"scale": 256, "offset": 1}, depth_scale=7.0)
    np.testing.assert_array_equal(read("disparity", path, settings)[..., 0], [[0, 0, 1, 2]])
    assert "read.disparity.scale" in refusal("disparity", path, said("disparity", {}))


def test_channels(tmp_path):
    one, two = np.float32([[1, 2]]), np.float32([[3, 4]])
    path = write(tmp_path / "a.npz", one, b=two)
    assert "the arrays a, b, expected one array; name it as 'channel'" in refusal(
        "depth", path, said("depth", {})
    )
    np.testing.assert_array_equal(
        read("depth", path, said("depth", {"channel": "b"}))[0, :, 0], [3, 4]
    )
    assert "expected one called 'c'" in refusal("depth", path, said("depth", {"channel": "c"}))
    path = write_exr(tmp_path / "a.exr", {"R": one, "G": one, "B": one, "A": two})
    np.testing.assert_array_equal(read("depth", path, said("depth", {}))[0, :, 0], [1, 2])
    path = write_exr(tmp_path / "b.exr", {"R": one, "G": two, "B": one})
    assert "has the channels" in refusal("depth", path, said("depth", {}))
    np.testing.assert_array_equal(
        read("depth", path, said("depth", {"channel": "G"}))[0, :, 0], [3, 4]
    )


def test_without_openexr_a_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "OpenEXR", None)
    (tmp_path / "a.exr").write_bytes(b"x")
    assert "pip install 'talora_jax[exr]'" in refusal(
        "depth", tmp_path / "a.exr", said("depth", {})
    )


@pytest.mark.parametrize("suffix", [".exr", ".npz", ".tif", ".png", ".npy"])
def test_files_that_are_something_else(tmp_path, suffix):
    if suffix == ".exr":
        pytest.importorskip("OpenEXR")
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"something else")
    assert "cannot be" in refusal("depth", path, said("depth", {}))


def test_a_pickle_is_not_run(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.array([{}], object))
    assert "cannot be read as npz" in refusal("depth", tmp_path / "a.npz", said("depth", {}))


@pytest.mark.parametrize("target", ["semantic", "instance"])
def test_numbers_of_a_jpeg_are_not_exact(tmp_path, target):
    path = write(tmp_path / "a.jpg", np.zeros((8, 8), np.uint8))
    assert "a JPEG, whose values are not exactly" in refusal(target, path, said(target, {}))


def test_the_farthest_disparity(tmp_path):
    path = write(tmp_path / "a.npy", np.float32([[0, 1, 2, 900]]))
    read_disparity = read("disparity", path, said("disparity", {"max": 100}))
    np.testing.assert_array_equal(read_disparity[0, :, 0], [0, 1, 2, 0])


# Normals and the rest.

FACING = np.float32([[[0, 0, -1], [0.6, 0, -0.8], [0, 0, 0]]])  # right, down, forward


@pytest.mark.parametrize(
    ("axes", "stored"),
    [
        ("opencv", FACING),
        ("opengl", FACING * [1, -1, -1]),
        (["back", "right", "down"], FACING[..., [2, 0, 1]] * [-1, 1, 1]),
        (["left", "down", "forward"], FACING * [-1, 1, 1]),
    ],
)
def test_axes_of_normals(tmp_path, axes, stored):
    stored = stored.astype(np.float32) + 0.0
    settings = said("normals", {"axes": axes})
    for name in ("a.npy", "a.npz", "c.npy"):
        values = np.moveaxis(stored, -1, 0) if name == "c.npy" else stored
        if name == "c.npy":  # channels first
            values = np.repeat(values, 2, axis=2)
        found = read("normals", write(tmp_path / name, values), settings)
        np.testing.assert_allclose(found[:, :: found.shape[1] // 3], FACING, atol=1e-6)
    channels = {letter: stored[..., i] for i, letter in enumerate("XYZ")}
    found = read("normals", write_exr(tmp_path / "a.exr", channels), settings)
    np.testing.assert_allclose(found, FACING, atol=1e-6)


@pytest.mark.parametrize(
    ("scale", "dtype", "entry", "name"),
    [
        (255, np.uint8, {}, "a.png"),
        (255, np.uint8, {}, "a.npy"),
        (65535, np.uint16, {}, "a.npy"),
        (255, np.float32, {"range": [0, 255]}, "a.npy"),
        (1, np.float32, {"range": [0, 1]}, "a.npy"),
    ],
)
def test_ranges_of_normals(tmp_path, scale, dtype, entry, name):
    stored = (FACING * np.float32([1, -1, -1]) + 1) / 2 * scale
    stored[0, 2] = 0  # black, no vector
    if dtype != np.float32:
        stored = stored.round()
    settings = said("normals", {"axes": "opengl"} | entry)
    found = read("normals", write(tmp_path / name, stored.astype(dtype)), settings)
    np.testing.assert_allclose(found, FACING, atol=0.01)


def test_yes_and_no_above_a_threshold(tmp_path):
    path = write(tmp_path / "a.png", np.uint8([[0, 100, 200, 255]]))
    for target in ("saliency", "edges"):
        settings = said(target, {"threshold": 127, "ignore": [255]})
        np.testing.assert_array_equal(read(target, path, settings)[0, :, 0], [0, 0, 1, NONE])
        settings = said(target, {"threshold": 127, "invert": True})
        np.testing.assert_array_equal(read(target, path, settings)[0, :, 0], [1, 1, 0, 0])


def test_objects_by_colour_or_number(tmp_path):
    path = write(tmp_path / "a.png", COLOURS)
    found = read("instance", path, said("instance", {"each_colour": True}))
    np.testing.assert_array_equal(found, [[0x804080, 0x4682B4, NONE]])
    path = write(tmp_path / "b.png", np.uint16([[0, 26001, 65535]]))
    found = read("instance", path, said("instance", {"ignore": [65535]}))
    np.testing.assert_array_equal(found, [[NONE, 26001, NONE]])


def test_planes_of_other_shapes(tmp_path):
    for values, expected in (
        (np.zeros((2, 3, 4)), "shape (2, 3, 4), expected [H, W]"),
        (np.array([["a"]]), "expected numbers"),
    ):
        with pytest.raises(BadFile) as error:
            rasters.read_plane_of(write(tmp_path / "a.npy", values), None)
        assert expected in str(error.value)
    assert rasters.read_plane_of(write(tmp_path / "a.npy", np.ones((1, 2, 3))), None).shape == (
        2,
        3,
    )
    grey = np.repeat(np.uint8([[[1], [2]]]), 3, axis=2)
    np.testing.assert_array_equal(
        rasters.read_plane_of(write(tmp_path / "a.png", grey), None), [[1, 2]]
    )


# In dataset.json.


def test_readings_of_the_plain_layout(planes, tmp_path):
    root = tmp_path / "data"
    for stem in "ab":
        planes.save(root / f"image/{stem}.png", np.zeros((4, 3, 3), np.uint8))
        planes.save(root / f"semantic/{stem}.png", np.repeat(COLOURS, 4, axis=0))
        planes.save(root / f"depth/{stem}.tif", np.full((4, 3), 500, np.uint16))
    content = {
        "read": {"semantic": {"colours": {"road": [128, 64, 128], "sky": [70, 130, 180]},
                              "ignore": "others"}, "depth": {"scale": 100, "max": 60}},
    }  # fmt: skip
    (root / "dataset.json").write_text(json.dumps(content))
    dataset = planes.open_root(root, ("semantic", "depth"))
    assert dataset.class_names == ("road", "sky")
    sample = dataset.splits["train"][0]
    np.testing.assert_array_equal(sample["semantic"][0], [0, 1, NONE])
    assert np.unique(sample["depth"]) == [5]
    settings = dataset.contents["settings"]
    assert (settings["depth_scale"], settings["max_depth"]) == (100, 60)
    assert set(settings["read"]) == {"semantic", "depth"}
    # What config says comes first, and what is read otherwise is prepared anew.
    sample = planes.open_root(root, ("depth",), depth_scale=1000.0).splits["train"][0]
    assert np.unique(sample["depth"]) == [0.5]
    content["read"]["semantic"]["colours"] = {"sky": [70, 130, 180], "road": [128, 64, 128]}
    (root / "dataset.json").write_text(json.dumps(content))
    sample = planes.open_root(root, ("semantic",)).splits["train"][0]
    np.testing.assert_array_equal(sample["semantic"][0], [1, 0, NONE])
    (root / "dataset.json").write_text(json.dumps(content | {"depth_scale": 3}))
    assert "depth_scale and read.depth.scale; expected one" in planes.refused(root, ("depth",))
