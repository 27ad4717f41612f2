"""Images of every kind to 8-bit RGB."""

import numpy as np
import pytest
from PIL import Image

from talora_jax.errors import UserError
from talora_jax.inference.rgb import as_rgb, read_rgb

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


def test_8_bit_rgb_is_left_alone():
    np.testing.assert_array_equal(as_rgb(RGB), RGB)
    np.testing.assert_array_equal(as_rgb(Image.fromarray(RGB)), RGB)
    assert as_rgb(RGB[::2, ::-1]).flags.c_contiguous


@pytest.mark.parametrize("gray", [RGB[..., 0], RGB[..., :1]])
def test_gray_is_repeated(gray):
    np.testing.assert_array_equal(as_rgb(gray), np.repeat(RGB[..., :1], 3, axis=2))


def test_alpha_is_dropped():
    rgba = np.concatenate([RGB, RGB[..., :1]], axis=2)
    np.testing.assert_array_equal(as_rgb(rgba), RGB)
    np.testing.assert_array_equal(as_rgb(Image.fromarray(rgba)), RGB)


def test_an_image_that_was_held_upright_is_turned(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RGB).save(tmp_path / "turned.png", exif=exif)
    upright = np.rot90(RGB, -1)
    np.testing.assert_array_equal(as_rgb(Image.open(tmp_path / "turned.png")), upright)
    np.testing.assert_array_equal(read_rgb(tmp_path / "turned.png"), upright)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "No such file"),
        (b"", r"the file is empty \(0 bytes\)"),
        (b"not an image", "not an image that Pillow can read"),
        (b"\x89PNG\r\n\x1a\n", "image"),
    ],
)
def test_files_that_are_no_image(content, told, tmp_path):
    path = tmp_path / "a.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=f"^{path}: .*{told}"):
        read_rgb(path)


def test_palette_images_give_their_colours():
    palette = Image.fromarray(RGB).quantize(256)
    np.testing.assert_array_equal(as_rgb(palette), np.asarray(palette.convert("RGB")))


@pytest.mark.parametrize(
    "image",
    [
        RGB.astype(np.uint16) * 257,
        RGB.astype(np.int64),
        (RGB / 255).astype(np.float32),
        RGB / 255,
    ],
    ids=["uint16", "int64", "float32", "float64"],
)
def test_other_dtypes_give_the_same_8_bits(image):
    np.testing.assert_array_equal(as_rgb(image), RGB)


def test_16_bit_values_round_to_the_nearest():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(as_rgb(values)[..., 0], np.round(values / 257).astype(np.uint8))


def test_16_bit_gray_of_pillow():
    deep = np.array([[0, 257, 65535]], np.uint16)
    np.testing.assert_array_equal(as_rgb(Image.fromarray(deep))[..., 0], [[0, 1, 255]])


@pytest.mark.parametrize(
    ("image", "what"),
    [
        (np.zeros((3, 5, 7), np.uint8), "shape"),
        (np.zeros((2, 2, 2, 3), np.uint8), "shape"),
        (np.zeros((0, 4, 3), np.uint8), "shape"),
        (np.zeros((4, 4, 3), bool), "dtype bool"),
        (np.full((4, 4, 3), 300), "from 300 to 300"),
        (np.full((4, 4, 3), -1), r"\[0, 255\]"),
        (RGB.astype(np.float32), r"\[0, 1\]"),
        (np.full((4, 4, 3), np.nan), "nan"),
    ],
)
def test_what_is_refused(image, what):
    with pytest.raises(UserError, match=what):
        as_rgb(image)
