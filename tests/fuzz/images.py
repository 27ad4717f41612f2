"""Image files of every format that Pillow reads, and arrays.

The oracle for a file is Pillow itself: what it decodes, upright and as 8-bit RGB by arithmetic
written anew here. A flipped bit in the pixels of a format without checksums is a pixel of another
colour, which nobody can know. PNG has checksums.
"""

import functools
import io
import math
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps

from talora_jax import rgb
from talora_jax.data.folder.decode import read_image
from talora_jax.errors import UserError
from talora_jax.tasks.target_files import BadFile
from tests.fuzz import mutate
from tests.fuzz.runner import ACCEPTED, SAME, Silent, Trial

_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I;16", "I", "F")
_SIZES = ((1, 1), (7, 5), (16, 16), (33, 2))  # width, height
# Formats that Pillow opens and hands on to a program or a library, or that hold one size alone, of
# megabytes.
NOT_HERE = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF", "PCD", "MCIDAS", "FTEX", "FLI", "IPTC"}
_LARGEST = 40_000  # bytes
_DTYPES = (
    "u1",
    "u1",
    "u2",
    "i4",
    "i8",
    "f2",
    "f4",
    "f8",
    "?",
    ">u2",
    ">f4",
    "c8",
    "U3",
    "O",
    "M8[s]",
)
_SHAPES = (
    (4, 5, 3), (4, 5, 3), (4, 5), (4, 5, 1), (4, 5, 4), (4, 5, 2), (3, 4, 5), (0, 5, 3), (5,), (),
    (1, 1), (1, 4, 5, 3), (4, 5, 3, 1), (1, 1, 3), (0,),
)  # fmt: skip


class Images:
    def __init__(self, folder: Path):
        Image.init()
        self._files = {**_saved(), **_written_by_hand()}
        self.formats = {name.partition(" ")[0] for name in self._files}

    def trial(self, rng: random.Random, place: Path) -> Trial:
        return _array(rng) if rng.random() < 0.25 else self._file(rng, place)

    def _file(self, rng: random.Random, place: Path) -> Trial:
        # Every format as often as every other.
        kind = rng.choice(sorted(self.formats))
        name = rng.choice([n for n in self._files if n.partition(" ")[0] == kind])
        whole = data = self._files[name]
        what = "as it is"
        for _ in range(rng.choice((0, 1, 1, 1, 2))):
            what, data = mutate.damaged(data, rng, 64)
        if rng.random() < 0.05:
            what, data = (
                "of another format's end",
                data[: len(data) // 2] + self._files[rng.choice(sorted(self._files))],
            )
        suffix = rng.choice(_SUFFIXES.get(kind, (".png",)) * 3 + (".jpg", ".png", ""))
        path = place / f"image{suffix}"
        path.write_bytes(data)
        read = rng.choice((_read_rgb, _read_pillow, _read_folder))

        def judge(found: np.ndarray) -> str:
            wanted = says(path)
            if not _same(found, wanted):
                raise Silent(f"{found.shape} {found.dtype}, and Pillow says {wanted.shape}")
            if read != _read_pillow and data.startswith(b"\x89PNG") and not png_is_whole(data):
                before = says_of(whole)
                if before is None or not _same(found, before):
                    raise Silent("other pixels, though a checksum of the PNG is wrong")
            if data == whole:
                return SAME
            before = says_of(whole)
            return SAME if before is not None and _same(found, before) else ACCEPTED

        return Trial(f"{read.__name__}: {name}, {what}", lambda: read(path), judge)


def _array(rng: random.Random) -> Trial:
    """An array of whatever dtype, shape and range, or something else in its place."""
    values = np.random.default_rng(rng.getrandbits(32))
    dtype, shape = np.dtype(rng.choice(_DTYPES)), rng.choice(_SHAPES)
    top = rng.choice((1, 1, 255, 255, 256, 65535, 65536, 2**40, math.inf, math.nan))
    low = rng.choice((0, 0, 0, -1, -0.0))
    with np.errstate(all="ignore"):
        try:
            x = values.uniform(0, 1, shape) * top + low
            x = (x if dtype.kind in "fc" else np.floor(np.nan_to_num(x))).astype(dtype)
        except (ValueError, TypeError):
            x = np.empty(shape, dtype)
    if rng.random() < 0.05:
        x = rng.choice(
            (None, 3, "no such file", b"\x89PNG", [], [[1, 2], [3]], [[[0, 0, 0]]], {}, x)
        )
    how = rng.choice(("", "", "", "turned", "read-only", "masked"))
    if isinstance(x, np.ndarray) and x.ndim:
        if how == "turned":
            x = x[::-1]
        elif how == "read-only":
            x.flags.writeable = False
        elif how == "masked":
            x = np.ma.masked_array(x, mask=rng.random() < 0.5)
    what = f"{getattr(x, 'dtype', repr(x)[:20])} {shape} {low} to {top} {how}"

    def judge(found: np.ndarray) -> str:
        wanted = eight_bits(np.asarray(x), None)
        if wanted is None or not _same(found, wanted):
            raise Silent(f"{found.ravel()[:4]}, expected {None if wanted is None else wanted[0]}")
        return SAME

    return Trial(f"array {what}", lambda: rgb.as_rgb(x), judge)


def _read_rgb(path: Path) -> np.ndarray:
    return rgb.read_rgb(path)


def _read_folder(path: Path) -> np.ndarray:
    """As an image of a folder data set."""
    try:
        return read_image(path)
    except BadFile as error:
        raise UserError(str(error)) from error


def _read_pillow(path: Path) -> np.ndarray:
    """As Pillow has it, who may refuse it himself."""
    try:
        image = Image.open(path)
    except Exception as error:
        raise UserError(type(error).__name__) from None
    with image:
        return rgb.as_rgb(image)


def says(path: Path) -> np.ndarray:
    """What Pillow and arithmetic make of a file.

    Raises:
      Silent: Pillow cannot decode it.
    """
    found = says_of(path.read_bytes())
    if found is None:
        raise Silent("read, though Pillow cannot decode it, or nothing tells what white is")
    return found


def says_of(data: bytes) -> np.ndarray | None:
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            white = _white(image)
            image = ImageOps.exif_transpose(image)
            if image.mode in ("I", "F") or image.mode.startswith("I;16"):
                return eight_bits(np.asarray(image), white)
            if image.mode == "La":
                image = image.convert("LA")
            return np.asarray(image.convert("RGB"))
    except Exception:
        return None


def _white(image: Image.Image) -> int | None:
    if image.mode == "F":
        return 1
    if image.format == "TIFF":
        return 2 ** image.tag_v2.get(258, (16,))[0] - 1
    return 65535


def eight_bits(x: np.ndarray, white: int | None) -> np.ndarray | None:
    """Values from 0 to `white` as 8-bit RGB, each by exact arithmetic; None if there is no way."""
    if x.ndim == 2:
        x = x[..., None]
    if x.ndim != 3 or x.shape[2] not in (1, 3, 4) or not x.size or x.dtype.kind not in "uif":
        return None
    x = x[..., :3]
    if white is None:
        white = 1 if x.dtype.kind == "f" else 65535 if x.dtype.itemsize == 2 else 255
    if not all(0 <= v <= white for v in x.ravel().tolist()):
        return None
    if x.dtype == np.uint8:
        scaled = x
    elif x.dtype.kind == "f":
        scaled = np.array([round(v * 255) for v in x.ravel().tolist()], np.uint8).reshape(x.shape)
    else:
        whole = [(2 * v * 255 + white) // (2 * white) for v in x.ravel().tolist()]
        scaled = np.array(whole, np.uint8).reshape(x.shape)
    return np.repeat(scaled, 3, axis=2) if scaled.shape[2] == 1 else scaled


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def png_is_whole(data: bytes) -> bool:
    """Whether the checksums of all chunks of a PNG are right but of its last, which is empty."""
    at = 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        body, check = data[at + 4 : at + 8 + length], data[at + 8 + length : at + 12 + length]
        if body[:4] == b"IEND":
            return True
        if len(check) < 4 or zlib.crc32(body) != struct.unpack(">I", check)[0]:
            return False
        at += 12 + length
    return False


_SUFFIXES = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "TIFF": (".tif",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
}


@functools.cache
def _saved() -> dict[str, bytes]:
    """Small images in all that Pillow writes and reads back, by format, mode and size."""
    files = {}
    rng = np.random.default_rng(0)
    for kind in sorted(set(Image.OPEN) & set(Image.SAVE) - NOT_HERE):
        for mode in _MODES:
            for size in _SIZES if mode in ("L", "RGB", "I;16") else _SIZES[1:2]:
                if (data := _encoded(_image(mode, size, rng), kind)) is not None:
                    files[f"{kind} {mode} {size}"] = data
    exif = Image.Exif()
    for turn in range(1, 10):
        exif[ExifTags.Base.Orientation] = turn
        for kind in ("JPEG", "PNG", "TIFF", "WEBP"):
            data = _encoded(_image("RGB", (7, 5), rng), kind, exif=exif)
            files[f"{kind} turned {turn}"] = data
    frames = [_image("P", (7, 5), rng) for _ in range(3)]
    for kind in ("GIF", "PNG", "TIFF", "WEBP"):
        data = _encoded(frames[0], kind, save_all=True, append_images=frames[1:])
        files[f"{kind} three frames"] = data
    for kind, name, how in (
        ("TIFF", "LZW", {"compression": "tiff_lzw"}),
        ("TIFF", "JPEG", {"compression": "jpeg"}),
        ("TIFF", "deflate", {"compression": "tiff_adobe_deflate"}),
        ("JPEG", "progressive", {"progressive": True}),
        ("WEBP", "lossless", {"lossless": True}),
        ("PNG", "transparency", {"transparency": (1, 2, 3)}),
    ):
        files[f"{kind} {name}"] = _encoded(_image("RGB", (16, 16), rng), kind, **how)
    return {name: data for name, data in files.items() if data}


def _image(mode: str, size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    width, height = size
    if mode in ("I;16", "I"):
        values = rng.integers(0, 65536, (height, width))
        return Image.fromarray(values.astype(np.uint16 if mode == "I;16" else np.int32))
    if mode == "F":
        return Image.fromarray(rng.random((height, width), np.float32))
    noise = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
    return noise.convert("RGB").convert("P").convert("PA") if mode == "PA" else _as(noise, mode)


def _as(image: Image.Image, mode: str) -> Image.Image:
    if mode == "LAB":
        return Image.frombytes("LAB", image.size, image.tobytes())
    return image.convert(mode)


def _encoded(image: Image.Image, kind: str, **how: Any) -> bytes | None:
    """An image in a format; None where that does not have such images, or does not tell its own."""
    file = io.BytesIO()
    try:
        image.save(file, kind, **how)
        file.seek(0)
        with Image.open(file) as again:
            again.load()
        return file.getvalue() if file.tell() < _LARGEST else None
    except Exception:
        return None


def _written_by_hand() -> dict[str, bytes]:
    """Formats that Pillow reads and does not write, as small as they can be."""
    rng = np.random.default_rng(1)
    rows = rng.integers(0, 256, (6, 8, 3), np.uint8)
    grey = rows[..., 0].tobytes()
    icon = _encoded(
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)), "ICO", bitmap_format="bmp"
    )
    pcx = _encoded(Image.fromarray(rows), "PCX")
    fits = [b"SIMPLE  =                    T", b"BITPIX  =                    8"]
    fits += [b"NAXIS   =                    2", b"NAXIS1  =                    8"]
    fits += [b"NAXIS2  =                    6", b"END"]
    pixar = bytearray(1024)
    pixar[:4], pixar[416:420], pixar[424:428] = (
        b"\x80\xe8\0\0",
        struct.pack("<HH", 6, 8),
        b"\x0e\0\x02\0",
    )
    planes = b"".join(rows[..., i].tobytes() for i in range(3))
    colours = "\n".join(f'"{"ab"[i]} c #{i * 40 + 10:02x}{200 - i * 40:02x}30",' for i in range(2))
    cells = ",\n".join('"' + "".join("ab"[(x + y) % 2] for x in range(8)) + '"' for y in range(6))
    made: dict[str, bytes | None] = {
        "SUN": struct.pack(">8I", 0x59A66A95, 8, 6, 24, 144, 1, 0, 0) + rows.tobytes(),
        "XPM": f'/* XPM */\nstatic char *x[] = {{\n"8 6 2 1",\n{colours}\n{cells}}};\n'.encode(),
        "FITS": b"".join(card.ljust(80) for card in fits).ljust(2880) + grey.ljust(2880, b"\0"),
        "PSD": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 6, 8, 8, 3) + bytes(12)
        + b"\0\0" + planes,
        "DCX": struct.pack("<3I", 987654321, 12, 0) + (pcx or b""),
        "CUR": icon and icon[:2] + b"\2" + icon[3:10] + b"\0\0\0\0" + icon[14:],
        "GBR": struct.pack(">7I", 32, 2, 8, 6, 1, 0x47494D50, 10) + b"x\0\0\0" + grey,
        "XVTHUMB": b"P7 332\n#XVVERSION\n#END_OF_COMMENTS\n8 6 255\n" + grey,
        "IMT": b"*\nwidth 8 \nheight 6 \npixel n8 \n\x0c" + grey + b"\n" * 100,
        "PIXAR": bytes(pixar) + rows.tobytes(),
    }  # fmt: skip
    return {f"{kind} by hand": data for kind, data in made.items() if data and _opens(data, kind)}


def _opens(data: bytes, kind: str) -> bool:
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return image.format.upper() == kind
    except Exception:
        return False
