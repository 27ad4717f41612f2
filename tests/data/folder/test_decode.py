"""What a file may be, and what it may not."""

import zlib

import numpy as np
import pytest
from PIL import Image

from talora_jax.data.folder import decode
from talora_jax.rgb import read_rgb
from talora_jax.tasks.target_files import BadFile, read_indices

SIZE = (24, 32)


def test_npy_files_are_read(planes, root):
    image = np.random.default_rng(0).random((*planes.SIZE, 3)).astype(np.float32)
    depth = planes.plane_depth()
    depth[0, 0] = np.nan
    normals = np.broadcast_to(planes.NORMAL * 1.01, (*planes.SIZE, 3)).copy()
    normals[1, 1] = np.nan
    edges = np.zeros(planes.SIZE, np.int8)
    edges[2:4], edges[5] = 1, -1
    semantic = np.zeros(planes.SIZE, np.int64)
    semantic[3], semantic[4] = 300, -1
    for index in range(5):
        for folder in ("image", "semantic", "depth"):
            (root / folder / f"{index}.png").unlink()
        planes.save(root / f"image/{index}.npy", image)
        planes.save(root / f"semantic/{index}.npy", semantic)
        planes.save(root / f"depth/{index}.npy", depth)
        planes.save(root / f"normals/{index}.npy", normals)
        planes.save(root / f"edges/{index}.npy", edges)
    planes.write_json(root, {"depth_scale": None})  # an npy file has metres
    dataset = planes.open_root(root)
    assert len(dataset.class_names) == 301
    sample = dataset.splits["train"][0]
    np.testing.assert_array_equal(sample["image"], (image * 255).round())
    np.testing.assert_array_equal(sample["semantic"], semantic)
    np.testing.assert_array_equal(sample["depth"][..., 0], np.nan_to_num(depth))
    np.testing.assert_array_equal(sample["edges"][..., 0], edges)
    assert not sample["normals"][1, 1].any()
    sample["normals"][1, 1] = planes.NORMAL
    assert planes.degrees(sample["normals"]).max() < 0.05


def test_other_pngs_and_jpegs_are_read(planes, root):
    for index in range(5):
        (root / f"image/{index}.png").unlink()
        grey = Image.fromarray(np.full(planes.SIZE, 90, np.uint8))
        grey.save(root / f"image/{index}.JPG", quality=95)
        palette = Image.fromarray(planes.labels()).convert("P")
        palette.putdata(planes.labels().ravel().tolist())
        palette.save(root / f"semantic/{index}.png")
        normals = (
            ((np.broadcast_to(planes.NORMAL, (*planes.SIZE, 3)) + 1) * 127.5)
            .round()
            .astype(np.uint8)
        )
        normals[0], normals[1] = 0, 128
        planes.save(root / f"normals/{index}.png", normals)
        planes.save(root / f"edges/{index}.png", (planes.labels() == 1) * np.uint8(255))
    sample = planes.open_root(root).splits["val"][0]
    assert np.abs(sample["image"].astype(int) - 90).max() <= 2
    np.testing.assert_array_equal(sample["semantic"] == 1, planes.labels() == 1)
    assert not sample["normals"][:2].any()
    assert planes.degrees(sample["normals"][2:]).max() < 0.5
    np.testing.assert_array_equal(sample["edges"][..., 0], planes.labels() == 1)


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


# Such as no surface that is seen has.
AWAY = np.broadcast_to(np.float32([0, 0.6, 0.8]), (*SIZE, 3))


@pytest.mark.parametrize(
    "folder, write, message",
    [
        ("image", npy(np.zeros((*SIZE, 4), np.uint8)), "shape (24, 32, 4), expected [H, W, 3]"),
        ("image", npy(np.full((*SIZE, 3), 7.0)), "float64 from 7 to 7, expected uint8, or float"),
        ("image", lambda path: path.touch(), "image/0.png: empty (0 bytes)"),
        ("depth", lambda path: path.touch(), "depth/0.png: empty (0 bytes)"),
        ("image", bomb, "image/0.png: cannot be decoded as an image (Image size (1600000000"),
        ("semantic", png(np.zeros((*SIZE, 3), np.uint8)), "mode RGB, expected one channel"),
        ("semantic", png(np.full(SIZE, 7, np.uint8)), "label 7, expected 0 to 1 for the 2 class"),
        ("semantic", npy(np.full(SIZE, -2)), "label -2, expected -1 (no label) or a class index"),
        ("semantic", npy(np.full(SIZE, 0.5)), "a value 0.5, expected whole numbers, or NaN for no"),
        ("semantic", npy(np.full(SIZE, np.inf)), "a value inf, expected whole numbers"),
        ("semantic", npy(np.full(SIZE, 2.0**60)), "a value 1.15292e+18, expected whole numbers"),
        ("semantic", npy(np.zeros((*SIZE, 1))), "float64 of shape (24, 32, 1), expected integers"),
        ("semantic", npy(np.array([Boom()])), "semantic/0.npy: cannot be read as npy (Object"),
        ("depth", png(np.ones(SIZE, np.uint8)), "mode L, expected a 16-bit PNG"),
        ("depth", npy(np.ones(SIZE, np.uint16)), "uint16, expected float metres"),
        ("depth", npy(np.ones((*SIZE, 2))), "shape (24, 32, 2), expected [H, W] or [H, W, 1]"),
        ("depth", npy(np.full(SIZE, -1.0)), "depth -1, expected 0 (no measurement) or metres"),
        ("normals", npy(AWAY), "most z are positive, expected z < 0"),
        ("normals", npy(np.ones(SIZE)), "float64 of shape (24, 32), expected float [H, W, 3]"),
        ("normals", png(np.zeros(SIZE, np.uint8)), "mode L, expected an 8-bit RGB PNG"),
        ("edges", npy(np.full(SIZE, 2)), "int64 from 2 to 2, expected [H, W] of 1, 0 and -1"),
        ("instance", npy(np.zeros((*SIZE, 1), int)), "expected integers [H, W]"),
        ("normals", npy(-127 * AWAY), "from -101.6 to -0, vectors of a median length of 127"),
        ("normals", npy(127.5 * (1 - AWAY)), "vectors of a median length of 140, expected unit"),
        ("normals", npy(-2 * AWAY), "vectors of a median length of 2, expected unit vectors"),
        ("normals", npy(0.6 * -AWAY), "vectors of a median length of 0.6, expected unit vectors"),
        ("normals", npy(-1e300 * AWAY.astype(float)), "a median length of inf, expected unit"),
        ("normals", npy((1 - AWAY) / 2), "from 0.1 to 0.5, vectors of a median length of 0.548"),
        ("normals", npy(np.full((*SIZE, 3), 0.6)), "and if they are (n + 1) / 2, store n"),
        (
            "saliency",
            png(np.kron([[0, 1], [0, 255]], np.ones((12, 16))).astype(np.uint8)),
            "values 1 and 255, of which both would be yes",
        ),
        ("saliency", png(np.arange(768).astype(np.uint8).reshape(SIZE)), "choose a threshold"),
    ],
)
def test_a_bad_file_is_named_with_what_was_expected(
    planes, root, tmp_path, monkeypatch, folder, write, message
):
    monkeypatch.chdir(tmp_path)
    planes.write_json(root, {"class_names": ["a", "b"]})
    (root / folder).mkdir(exist_ok=True)
    path = root / folder / "0.png"
    path.unlink(missing_ok=True)
    write(path)
    tasks = ("saliency",) if folder == "saliency" else planes.ALL
    assert message in planes.refused(root, tasks)
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize(
    "suffix, mode",
    [
        (".BMP", "RGB"),
        (".webp", "RGBA"),
        (".jpg", "CMYK"),
        (".TIFF", "I;16"),
        (".png", "I;16"),
        (".png", "LA"),
        (".gif", "P"),
        (".NPY", None),
    ],
)
def test_images_of_every_kind_are_read_as_prediction_reads_them(tmp_path, suffix, mode):
    values = np.zeros((8, 16, 3), np.uint8)  # Two blocks of a JPEG.
    values[:, 8:] = 255
    path = tmp_path / f"image{suffix}"
    if mode is None:
        with path.open("wb") as file:
            np.save(file, values)
    elif mode == "I;16":
        Image.fromarray(values[..., 0].astype(np.uint16) * 257).save(path)
    else:
        Image.fromarray(values).convert(mode).save(path)
    np.testing.assert_allclose(decode.read_image(path), values, atol=3)
    if mode is not None:
        np.testing.assert_array_equal(decode.read_image(path), read_rgb(path))


def test_floating_point_that_is_whole_numbers_is_read(tmp_path):
    values = np.array([[0, 1, np.nan], [300, -1, 2**53]])
    np.save(tmp_path / "labels.npy", values)
    expected = [[0, 1, -1], [300, -1, 2**53]]
    np.testing.assert_array_equal(read_indices(tmp_path / "labels.npy"), expected)
    np.save(tmp_path / "labels.npy", values[:, :2].astype(np.float16))
    assert read_indices(tmp_path / "labels.npy").tolist() == [[0, 1], [300, -1]]


def test_an_animation_is_refused(tmp_path):
    frames = [Image.fromarray(np.full((4, 6), value, np.uint8)) for value in (0, 90)]
    for name in ("image.gif", "image.tif", "image.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        with pytest.raises(BadFile, match="2 frames, expected one"):
            decode.read_image(tmp_path / name)
    with pytest.raises(BadFile, match="2 frames, expected one"):
        read_indices(tmp_path / "image.png")


@pytest.mark.parametrize("kind", ["semantic", "depth", "normals", "edges"])
def test_suffixes_may_be_in_capitals(planes, root, kind):
    values = {
        "semantic": planes.labels().astype(np.int64) % 255,
        "depth": planes.plane_depth(),
        "normals": np.broadcast_to(planes.NORMAL, (*planes.SIZE, 3)),
        "edges": (planes.labels() == 1).astype(np.int8),
    }[kind]
    for index in range(5):
        (root / kind / f"{index}.png").unlink(missing_ok=True)
        stored = values * 10_000 if kind == "depth" else values
        planes.save(root / kind / f"{index}.npy", stored)
        (root / kind / f"{index}.npy").rename(root / kind / f"{index}.NPY")
    found = planes.open_root(root, (kind,)).splits["val"][0][kind]
    np.testing.assert_allclose(np.squeeze(found), values, atol=1e-4)
