"""The numbers in a file of any kind, as they stand there: PNG, JPEG, TIFF, BMP, EXR, npy and npz.

What they mean is told elsewhere (`readings`). Nothing in a file is trusted.
"""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image

from talora_jax.errors import UserError, listed, one_line
from talora_jax.rgb import check_png
from talora_jax.tasks.target_files import BadFile, one_frame, read_npy

SUFFIXES = (".png", ".npy", ".npz", ".exr", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
LOSSY = (".jpg", ".jpeg")  # not exactly the numbers that were written
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP")
_ONE_CHANNEL = ("1", "L", "P", "F", "I", "I;16", "I;16B", "I;16L", "I;16N")
# Of an EXR of several channels, what depth and distance are called, in this order.
_DEPTH_CHANNELS = ("Z", "Y", "depth.Z", "Depth.Z", "depth.V", "Depth.V", "V", "depth", "Depth")
# … and the three of a colour or a vector.
_TRIPLES = ("RGB", "XYZ")


def read_plane_of(path: Path, channel: str | None) -> np.ndarray:
    """Numbers [H, W] of a file of one channel.

    Args:
      channel: of an EXR or the array of an npz that is meant; None where only one can be.

    Raises:
      BadFile: it cannot be read, or nothing tells which channel is meant.
    """
    if path.suffix.lower() == ".exr":
        return _plane_of_exr(_exr(path), channel)
    if path.suffix.lower() not in (".npy", ".npz"):
        image = _image(path)
        if image.mode not in _ONE_CHANNEL:
            values = np.asarray(image)
            colours = values.dtype == np.uint8 and values.ndim == 3
            if colours and (image.mode == "LA" or _is_grey(values[..., :3])):
                return values[..., 0]
            raise BadFile(f"mode {image.mode}, expected one channel")
        return np.asarray(image)
    values = _array(path, channel)
    if values.dtype.kind not in "biuf":
        raise BadFile(f"{values.dtype}, expected numbers")
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    if values.ndim != 2:
        raise BadFile(f"shape {values.shape}, expected [H, W], [H, W, 1] or [1, H, W]")
    return values


def read_triples(path: Path, channel: str | None) -> np.ndarray:
    """Numbers [H, W, 3] of a file of three channels, alpha left out.

    Raises:
      BadFile: as `read_plane_of`.
    """
    if path.suffix.lower() == ".exr":
        return _triples_of_exr(_exr(path), channel)
    if path.suffix.lower() not in (".npy", ".npz"):
        image = _image(path)
        if image.mode not in ("RGB", "RGBA"):
            raise BadFile(f"mode {image.mode}, expected three channels")
        return np.asarray(image)[..., :3]
    values = _array(path, channel)
    if values.dtype.kind not in "iuf" or values.ndim != 3 or 3 not in values.shape[::2]:
        raise BadFile(f"{values.dtype} of shape {values.shape}, expected numbers [H, W, 3]")
    return values if values.shape[2] == 3 else np.moveaxis(values, 0, -1)


def read_colours(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    """The colours of an image file; those of the palette where it has one.

    Raises:
      BadFile: it has none of 8 bits.
    """
    if path.suffix.lower() in (".npy", ".npz"):
        values = read_triples(path, None)
        if values.dtype != np.uint8:
            raise BadFile(f"{values.dtype}, expected colours of 8 bits")
        return values
    image = _image(path)
    if image.format == "JPEG":
        raise BadFile("a JPEG, whose colours are not exactly those that were drawn: expected a PNG")
    if image.mode not in ("L", "P", "RGB", "RGBA", "1"):
        raise BadFile(f"mode {image.mode}, expected colours of 8 bits")
    return np.asarray(image.convert("RGB"))


def codes_of(pixels: UInt8[np.ndarray, "*n 3"]) -> Int64[np.ndarray, "*n"]:
    """Colours as one number each, 0xRRGGBB."""
    return pixels.astype(np.int64) @ np.array([1 << 16, 1 << 8, 1])


def _is_grey(values: UInt8[np.ndarray, "H W 3"]) -> bool:
    return bool((values == values[..., :1]).all())


def _image(path: Path) -> Image.Image:
    try:
        image = Image.open(path, formats=_FORMATS)
        one_frame(image)
        image.load()  # All of it, so that a truncated one is found out.
        check_png(path)
    except BadFile:
        raise
    except UserError as error:
        raise BadFile(str(error)) from error
    except Exception as error:  # Pillow raises many kinds, from OSError to SyntaxError.
        raise BadFile(f"cannot be decoded as PNG, JPEG or TIFF ({one_line(error)})") from error
    return image


def _array(path: Path, name: str | None) -> np.ndarray:
    if path.suffix.lower() == ".npy":
        return read_npy(path)
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            names = arrays.files
            if name is None and len(names) == 1:
                name = names[0]
            if name not in names:
                wanted = "one array" if name is None else f"one called {name!r}"
                raise BadFile(f"holds the arrays {listed(names, 100)}, expected {_or_say(wanted)}")
            values = arrays[name]
    except BadFile:
        raise
    except Exception as error:  # as in `read_npy`
        raise BadFile(f"cannot be read as npz ({one_line(error)})") from error
    if not isinstance(values, np.ndarray) or not values.size:
        raise BadFile("expected an array that is not empty")
    return values


def _exr(path: Path) -> Mapping[str, np.ndarray]:
    """The channels of a file by their names."""
    try:
        import OpenEXR  # an extra: nothing else needs it
    except ImportError:
        raise BadFile(
            "an EXR, to read which OpenEXR must be installed: pip install 'talora_jax[exr]'"
        ) from None
    try:
        with OpenEXR.File(str(path), separate_channels=True) as file:
            channels = {name: np.array(x.pixels) for name, x in file.channels().items()}
    except Exception as error:  # of pybind11 any kind
        raise BadFile(f"cannot be read as EXR ({one_line(error)})") from error
    channels = {name: x for name, x in channels.items() if x.ndim == 2 and x.size}
    if not channels:
        raise BadFile("an EXR without channels, expected one")
    return channels


def _plane_of_exr(channels: Mapping[str, np.ndarray], name: str | None) -> np.ndarray:
    if name is not None:
        if name not in channels:
            raise BadFile(f"has the channels {listed(channels, 100)}, expected one called {name!r}")
        return channels[name]
    if len(channels) == 1:
        return next(iter(channels.values()))
    if named := [channel for channel in _DEPTH_CHANNELS if channel in channels]:
        return channels[named[0]]
    # Renderers write one number to all three channels of a colour.
    others = [x for channel, x in channels.items() if channel != "A"]
    if all(np.array_equal(x, others[0], equal_nan=True) for x in others):
        return others[0]
    raise BadFile(f"has the channels {listed(channels, 100)}, expected {_or_say('one')}")


def _triples_of_exr(channels: Mapping[str, np.ndarray], name: str | None) -> np.ndarray:
    layer = "" if name is None else f"{name}."
    for triple in _TRIPLES:
        if all(f"{layer}{letter}" in channels for letter in triple):
            return np.stack([channels[f"{layer}{letter}"] for letter in triple], axis=-1)
    ending = [
        [next((n for n in channels if n.endswith(f".{letter}")), None) for letter in triple]
        for triple in _TRIPLES
    ]
    if name is None and (found := [names for names in ending if None not in names]):
        return np.stack([channels[n] for n in found[0]], axis=-1)
    raise BadFile(
        f"has the channels {listed(channels, 100)}, expected {_or_say('R, G, B or X, Y, Z')}"
    )


def _or_say(wanted: str) -> str:
    return f"{wanted}; name it as 'channel' in what dataset.json says under 'read'"
