"""Depth and disparity: what their files hold, how scale moves them, their colours."""

import io

import numpy as np
import pytest
from PIL import Image

from talora_jax.data.folder.settings import Settings
from talora_jax.tasks import Depth, Disparity
from talora_jax.tasks.target_files import BadFile


def test_a_png_of_depth_reaches_as_far_as_it_must():
    for far, scale in ((9.0, 1000), (65.5, 1000), (66.0, 100), (7000.0, 1)):
        depth = np.float32([[far, -1, np.nan, far / 3]])
        file = Image.open(io.BytesIO(Depth("depth").png(depth).encode()))
        assert file.text == {"task": "depth", "unit": "m", "scale": str(scale)}
        np.testing.assert_allclose(
            np.asarray(file)[0] / scale, [far, 0, 0, far / 3], rtol=0, atol=0.51 / scale
        )


def test_colours_of_depth_and_disparity():
    near_to_far = np.linspace(1, 5, 9, dtype=np.float32)[None, :, None]
    picture = Depth("depth").picture(near_to_far)
    assert (np.diff(picture.sum(-1, dtype=int)) < 0).all()  # ever darker
    np.testing.assert_array_equal(
        Depth("depth").picture(near_to_far + 9, near_to_far), picture[:, -1:].repeat(9, 1)
    )
    # The target's range is of what was measured.
    measured = np.where(near_to_far < 3, 0, near_to_far)
    np.testing.assert_array_equal(
        Depth("depth").picture(near_to_far, measured)[0, :5], picture[0, :1].repeat(5, 0)
    )
    np.testing.assert_array_equal(Depth("depth").picture(near_to_far * 0 + 2)[0, 0], picture[0, -1])
    np.testing.assert_array_equal(
        Disparity("disparity").picture(near_to_far),
        picture[:, ::-1],  # what is far has a small one
    )


def test_what_is_twice_as_near_has_half_the_depth_and_twice_the_disparity():
    target = np.float32([[[0], [0.3], [7]]])
    for task, expected in ((Depth, target / np.float32(2)), (Disparity, target * np.float32(2))):
        nearer = task.nearer(target, 2.0)
        assert nearer.dtype == np.float32
        np.testing.assert_array_equal(nearer, expected)
    # Depth times disparity stays what it was.
    product = Depth.nearer(target, 1.3) * Disparity.nearer(target, 1.3)
    np.testing.assert_allclose(product, target**2, rtol=1e-6)


def test_mirrored_or_turned_it_stays_what_it_is():
    target = np.random.default_rng(0).random((4, 6, 1)).astype(np.float32)
    for task in (Depth, Disparity):
        np.testing.assert_array_equal(task.mirror(target), target[:, ::-1])
        np.testing.assert_array_equal(task.turn(target, 0.7), target)


def test_disparity_is_read_from_npy_in_its_own_unit(tmp_path):
    values = np.float32([[0.25, np.nan], [0, 3]])
    np.save(tmp_path / "a.npy", values)
    settings = Settings(depth_scale=5000.0)  # of depth's PNGs
    assert Disparity.suffixes == (".npy",)
    read = Disparity.read(tmp_path / "a.npy", settings)
    np.testing.assert_array_equal(read[..., 0], [[0.25, 0], [0, 3]])
    np.save(tmp_path / "a.npy", -values)
    with pytest.raises(BadFile, match="disparity -3, expected 0 .no measurement. or values above"):
        Disparity.read(tmp_path / "a.npy", settings)


def write(path, values):
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        Image.fromarray(values).save(path)
    return path


@pytest.mark.parametrize(
    "name, values, settings, metres",
    [
        ("a.npy", [2.5, 0.0], {}, [2.5, 0]),
        ("a.npy", [2500.0, 0.0], {"depth_scale": 1000.0}, [2.5, 0]),
        ("a.npy", [2.5, 1e10], {"max_depth": 80.0}, [2.5, 0]),
        ("a.npy", [2500.0, 80_001.0], {"max_depth": 80.0, "depth_scale": 1000.0}, [2.5, 0]),
        ("a.npy", [80.0, 1e300], {"max_depth": 80.0}, [80, 0]),
        ("a.npy", [np.nan, 0.0], {}, [0, 0]),
        ("a.png", [2500, 0], {}, [2.5, 0]),
        ("a.png", [640, 0], {"depth_scale": 256.0}, [2.5, 0]),
        ("a.png", [2500, 65535], {"max_depth": 65.0}, [2.5, 0]),
        ("a.png", [2500, 65535], {"max_depth": 70.0}, [2.5, 65.535]),
        ("a.png", [0, 0], {}, [0, 0]),
    ],
)
def test_depth_is_read_in_metres(tmp_path, name, values, settings, metres):
    kind = np.float64 if name == "a.npy" else np.uint16
    read = Depth.read(write(tmp_path / name, np.array([values], kind)), Settings(**settings))
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read[0, :, 0], np.float32(metres))


@pytest.mark.parametrize(
    "task, name, values, message",
    [
        (Depth, "a.png", np.uint16([[2500, 65535]]), "65535, all ones, .* config.data.max_depth"),
        (
            Depth,
            "a.npy",
            np.array([[2.5, 1e300]]),
            r"1e\+300, expected what float32 holds: store 0",
        ),
        (Disparity, "a.npy", np.array([[2.5, 1e300]]), r"1e\+300, expected what float32 holds"),
        (Depth, "a.npy", np.array([[2.5, -1.0]]), "depth -1, expected 0"),
    ],
)
def test_depth_that_is_none_is_refused(tmp_path, task, name, values, message):
    with pytest.raises(BadFile, match=message):
        task.read(write(tmp_path / name, values), Settings())
