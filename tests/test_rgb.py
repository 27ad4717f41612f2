"""Images of every kind to 8-bit RGB."""

import contextlib
import io
import struct
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from talora_jax.data.folder import decode
from talora_jax.errors import UserError
from talora_jax.inference.video import is_video
from talora_jax.rgb import as_rgb, check_png, each_rgb, read_rgb, suffixes
from talora_jax.tasks import target_files

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


def flipped(path):
    """A PNG with one bit of its pixels otherwise, which Pillow decodes to other pixels."""
    values = np.random.default_rng(0).integers(0, 3, (6, 8)).astype(np.uint8)
    Image.fromarray(values).save(path)
    whole = path.read_bytes()
    for bit in range(8 * (whole.index(b"IDAT") + 4), 8 * whole.index(b"IEND")):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        path.write_bytes(content)
        with contextlib.suppress(Exception):
            if (np.asarray(Image.open(path)) != values).any():
                return path


def test_a_png_of_which_a_checksum_is_wrong(tmp_path):
    path = flipped(tmp_path / "a.png")
    told = "a damaged PNG .*: copy it again"
    with pytest.raises(UserError, match=f"^{path}: {told}"):
        read_rgb(path)
    for read in (decode.read_image, target_files.read_indices):
        with pytest.raises(target_files.BadFile, match=told):
            read(path)
    # What is no PNG, or is not there, is for others to tell.
    Image.fromarray(RGB).save(tmp_path / "b.png", "JPEG")
    check_png(tmp_path / "b.png")
    check_png(tmp_path / "c.png")


def test_palette_images_give_their_colours():
    palette = Image.fromarray(RGB).quantize(256)
    expected = np.asarray(palette.convert("RGB"))
    np.testing.assert_array_equal(as_rgb(palette), expected)
    # Alpha is dropped without a word, and the image given keeps it.
    palette.info["transparency"] = bytes(range(256))
    with warnings.catch_warnings(action="error"):
        np.testing.assert_array_equal(as_rgb(palette), expected)
    assert palette.info["transparency"] == bytes(range(256))


@pytest.mark.parametrize(
    "image",
    [
        RGB.astype(np.uint16) * 257,
        RGB.astype(np.int64),
        (RGB / 255).astype(np.float32),
        RGB / 255,
        (RGB.astype(np.uint16) * 257).astype(">u2"),
        RGB.astype(">i4"),
        (RGB / 255).astype(">f4"),
        (RGB / 255).astype(np.longdouble),
        RGB.tolist(),
        jnp.asarray(RGB),
        np.ma.array(RGB),
    ],
    ids=str,
)
def test_other_dtypes_give_the_same_8_bits(image):
    np.testing.assert_array_equal(as_rgb(image), RGB)


def test_16_bit_values_round_to_the_nearest():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(as_rgb(values)[..., 0], np.round(values / 257).astype(np.uint8))


def test_what_is_dark_in_16_bits_and_no_cameras_bits_is_dark():
    np.testing.assert_array_equal(as_rgb(np.array([[0, 4096]], np.uint16))[0, :, 0], [0, 16])
    np.testing.assert_array_equal(as_rgb(np.array([[0, 1]], np.uint16))[0, :, 0], [0, 0])
    # As the messages say.
    deep = np.array([[0, 4095]], np.uint16)
    np.testing.assert_array_equal(as_rgb(deep / 4095)[0, :, 0], [0, 255])
    np.testing.assert_array_equal(as_rgb(deep / 65535)[0, :, 0], [0, 16])


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
        (RGB.astype(np.float32), r"\[0, 1\]; divide by the value of white, such as 255"),
        (np.full((4, 4, 3), np.nan), "nan"),
        (np.moveaxis(RGB, 2, 0), "np.moveaxis"),
        (RGB[None], "one by one, as a list"),
        (RGB[:0], "it has no pixels"),
        (Image.new("RGB", (0, 5)), "it has no pixels"),
        (RGB.astype(np.uint16), r"if these are 8 bits, give image.astype\(np.uint8\)"),
        (np.full((2, 2), 1023, np.uint16), r"if these are 10 bits, give image / 1023, otherwise"),
        (np.array([[0, 4095]], np.uint16), r"0 to 4095: .* nearly black; if these are 12 bits"),
        (RGB.astype(complex), "dtype complex128"),
        (RGB.astype(object), "dtype object"),
        (RGB.astype(str), "dtype <U3"),
        (RGB.astype("m8[s]"), "dtype timedelta64"),
        (jnp.zeros((4, 4, 3), jnp.bfloat16), "dtype bfloat16"),
        (np.ma.masked_greater(RGB, 100), "values of the masked array are masked"),
        ([[1], [1, 2]], "cannot be one array of numbers: a list"),
        ([["a", "b"]], "a list that makes an array of dtype <U1"),
        (None, "an image: None; expected a path, a Pillow image, or an array"),
        ({"image": RGB}, "an image: a dict"),
        ((row for row in RGB), "an image: a generator"),
        (5, r"shape \[\]"),
        (b"\xff\xd8", r"an image: bytes; .*PIL.Image.open\(io.BytesIO"),
        (bytearray(RGB), "an image: a bytearray"),
        (memoryview(RGB), "an image: a memoryview"),
        (io.BytesIO(b"\xff\xd8"), "an image: a _io.BytesIO to read from; .*PIL.Image.open"),
        ("https://example.com/a.jpg", "is an address; expected a file: download it first"),
        ("none.jpg", "none.jpg: No such file"),
        ("a\0b" + 5000 * "c", r"^a\\x00bc*…c*: "),
        (Image.fromarray(np.zeros((4, 4), np.int32)), "mode I, .* as uint16 where white is 65535"),
    ],
)
def test_what_is_refused(image, what):
    with pytest.raises(UserError, match=what) as error:
        as_rgb(image)
    assert len(str(error.value)) < 600 and str(error.value).isprintable()


class Refusing:
    """As tensors of a graph or without values are."""

    dtype, shape = "float32", (4, 4, 3)

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("Can't call numpy() on Tensor that requires grad.\n" + 900 * "x")


def test_what_another_library_refuses_to_give():
    told = r"an array of dtype float32 and shape \[4, 4, 3\] \(Can't call numpy\(\) on Tensor"
    with pytest.raises(UserError, match=told) as error:
        as_rgb(Refusing())
    assert len(str(error.value)) < 600 and str(error.value).isprintable()


def test_a_path_is_opened(tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(RGB).save(path)
    np.testing.assert_array_equal(as_rgb(path), RGB)
    np.testing.assert_array_equal(as_rgb(str(path)), RGB)
    with pytest.raises(UserError, match="a folder; expected an image file"):
        as_rgb(tmp_path)


@pytest.mark.parametrize("mode", ["1", "LA", "La", "P", "PA", "RGBA", "RGBa", "RGBX", "CMYK"])
def test_pillows_modes_of_8_bits(mode):
    gray = Image.fromarray(np.array([[0, 255, 255], [255, 0, 0]], np.uint8)).convert("RGB")
    through = {"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode, mode)
    np.testing.assert_array_equal(as_rgb(gray.convert(through).convert(mode)), np.asarray(gray))


@pytest.mark.parametrize("mode", ["YCbCr", "LAB", "HSV"])
def test_pillows_other_colours_are_turned_to_rgb(mode):
    white = Image.new("RGB", (3, 2), "white")
    if mode == "LAB":
        white = Image.merge("LAB", [Image.new("L", (3, 2), v) for v in (255, 128, 128)])
    np.testing.assert_allclose(as_rgb(white.convert(mode)), 255, atol=2)


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I;16L", "I;16N"])
def test_pillows_modes_of_16_bits(mode):
    image = Image.new(mode, (2, 1))
    image.putpixel((1, 0), 65535)
    np.testing.assert_array_equal(as_rgb(image)[..., 0], [[0, 255]])


@pytest.mark.parametrize("maximum", [100, 255, 1023, 4095, 65535])
def test_a_pgm_tells_its_own_maximum(maximum, tmp_path):
    values = np.array([0, maximum // 5, maximum], ">u2" if maximum > 255 else np.uint8)
    (tmp_path / "a.pgm").write_bytes(b"P5\n3 1\n%d\n" % maximum + values.tobytes())
    found = read_rgb(tmp_path / "a.pgm")[0, :, 0]
    np.testing.assert_array_equal(found, np.round(values / maximum * 255))


def tiff(bits, white_is_zero, pixels):
    """Two gray pixels in a row."""
    entries = {256: 2, 257: 1, 258: bits, 259: 1, 262: int(not white_is_zero), 273: 8, 277: 1}
    entries |= {278: 1, 279: len(pixels)}
    directory = b"".join(struct.pack("<HHIHH", tag, 3, 1, n, 0) for tag, n in entries.items())
    header = b"II*\0" + struct.pack("<I", 8 + len(pixels))
    return header + pixels + struct.pack("<H", len(entries)) + directory + bytes(4)


def test_a_tiff_tells_its_bits(tmp_path):
    path = tmp_path / "a.tif"
    for bits, pixels in ((12, b"\x00\x0f\xff"), (16, b"\0\0\xff\xff")):
        path.write_bytes(tiff(bits, False, pixels))
        np.testing.assert_array_equal(read_rgb(path)[0, :, 0], [0, 255])
    path.write_bytes(tiff(16, True, b"\0\0\xff\xff"))
    with pytest.raises(UserError, match="whose white is 0"):
        read_rgb(path)


def test_a_tiff_of_floating_point(tmp_path):
    gray = RGB[..., 0]
    Image.fromarray((gray / 255).astype(np.float32)).save(tmp_path / "one.tif")
    np.testing.assert_array_equal(read_rgb(tmp_path / "one.tif")[..., 0], gray)
    Image.fromarray(gray.astype(np.float32)).save(tmp_path / "many.tif")
    with pytest.raises(UserError, match=r"many.tif: .* within \[0, 1\]; divide by"):
        read_rgb(tmp_path / "many.tif")


def test_files_that_others_than_pillow_read(tmp_path):
    for name, told in (("a.npy", r"np.load\(path\)"), ("a.HEIC", "convert it to JPEG or PNG")):
        (tmp_path / name).write_bytes(b"no picture")
        with pytest.raises(UserError, match=f"{name}: not an image that Pillow can read; .*{told}"):
            read_rgb(tmp_path / name)


def test_films_are_not_called_like_images():
    assert {".jpg", ".png", ".tif", ".webp"} <= suffixes()
    assert not any(is_video(Path(f"clip{suffix}")) for suffix in suffixes())


def test_images_that_are_closed_or_cut_short(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(RGB).save(path)
    with Image.open(path) as lazy:
        pass
    closed = Image.fromarray(RGB)
    closed.close()
    short = Image.open(io.BytesIO(path.read_bytes()[:-20]))
    for image in (lazy, closed, short):
        with pytest.raises(UserError, match="mode RGB cannot be read .*closed before"):
            as_rgb(image)


def test_several_images_are_told_apart_from_the_rows_of_one():
    for found in each_rgb([RGB, RGB[..., 0].tolist(), Image.fromarray(RGB)]):
        assert found.shape == RGB.shape
    for rows in (list(RGB), RGB.tolist(), RGB[..., 0].tolist(), tuple(RGB[..., 0])):
        with pytest.raises(UserError, match="5 images of shape .* as the rows of one are"):
            next(each_rgb(rows))
    with pytest.raises(UserError, match="image 1 of those given: an image: None"):
        list(each_rgb([RGB, None]))
