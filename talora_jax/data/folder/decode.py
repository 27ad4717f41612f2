"""One file in, one array out, in the form of `talora_jax.data.dataset.Source`.

Every function raises `BadFile` with what was expected when the file is something else.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Float32, Int32, UInt8
from PIL import Image, ImageOps

from talora_jax.data.folder.settings import Settings
from talora_jax.data.npy import BadFile, read_npy
from talora_jax.errors import one_line

# In 8-bit PNGs of class indices, the value that nearly every dataset uses for 'no label'.
_IGNORED_IN_UINT8 = 255


def read_image(path: Path, settings: Settings) -> UInt8[np.ndarray, "H W 3"]:
    """RGB. Grey and palette images become RGB, alpha is dropped, EXIF orientation is applied."""
    if path.suffix != ".npy":
        image = open_image(path)
        if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
            raise BadFile(f"mode {image.mode}, expected 8 bits per channel, grey or RGB")
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    values = read_npy(path)
    if values.ndim != 3 or values.shape[2] != 3:
        raise BadFile(f"shape {values.shape}, expected [H, W, 3]")
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind != "f" or not (values.min() >= 0 and values.max() <= 1):
        raise BadFile(f"{_span(values)}, expected uint8, or float in [0, 1]")
    return (values * 255).round().astype(np.uint8)


def read_semantic(path: Path, settings: Settings) -> Int32[np.ndarray, "H W"]:
    """Class indices, -1 = no label."""
    stored = _indices(path)
    values = stored.astype(np.int32)
    ignored = settings.ignore_label
    if ignored is None and stored.dtype == np.uint8 and path.suffix != ".npy":
        ignored = _IGNORED_IN_UINT8
    values[values == ignored] = -1
    lowest, highest = values.min(), values.max()
    if lowest < -1:
        raise BadFile(f"label {lowest}, expected -1 (no label) or a class index")
    if settings.class_names and highest >= len(settings.class_names):
        no_label = "-1" if ignored is None else ignored
        raise BadFile(
            f"label {highest}, expected 0 to {len(settings.class_names) - 1} for the "
            f"{len(settings.class_names)} class_names, or {no_label} for no label"
        )
    return values


def read_depth(path: Path, settings: Settings) -> Float32[np.ndarray, "H W 1"]:
    """Metres, 0 = no measurement."""
    if path.suffix != ".npy":
        image = open_image(path)
        if image.mode not in ("I;16", "I;16B", "I"):
            raise BadFile(f"mode {image.mode}, expected a 16-bit PNG of one channel")
        values = np.asarray(image).astype(np.float32) / np.float32(settings.depth_scale)
    else:
        values = read_npy(path)
        if values.dtype.kind != "f":
            raise BadFile(f"{values.dtype}, expected float metres")
        if values.ndim == 3 and values.shape[2] == 1:
            values = values[..., 0]
        if values.ndim != 2:
            raise BadFile(f"shape {values.shape}, expected [H, W] or [H, W, 1]")
        values = np.where(np.isfinite(values), values, 0).astype(np.float32)
    if values.min() < 0:
        raise BadFile(f"depth {values.min():g}, expected 0 (no measurement) or metres above")
    if not values.any():
        raise BadFile("all zero, expected a measurement somewhere")
    return values[..., None]


def read_normals(path: Path, settings: Settings) -> Float32[np.ndarray, "H W 3"]:
    """Unit vectors in the camera frame; all-zero where the file has no vector of about unit length.

    A surface that the camera sees faces it, so most z must be negative.
    """
    if path.suffix != ".npy":
        image = open_image(path)
        if image.mode != "RGB":
            raise BadFile(f"mode {image.mode}, expected an 8-bit RGB PNG")
        values = np.asarray(image).astype(np.float32) * np.float32(2 / 255) - 1
    else:
        values = read_npy(path)
        if values.dtype.kind != "f" or values.ndim != 3 or values.shape[2] != 3:
            raise BadFile(f"{values.dtype} of shape {values.shape}, expected float [H, W, 3]")
        values = np.where(np.isfinite(values), values, 0).astype(np.float32)
    length = np.linalg.norm(values, axis=-1, keepdims=True)
    # Black and mid-grey pixels mark invalid ones in PNGs: they are √3 and about 0 long.
    valid = (length > 0.5) & (length < 1.5)
    normals = np.where(valid, values / np.where(valid, length, 1), 0)
    z = normals[..., 2]
    if (z > 0).sum() > (z < 0).sum():
        raise BadFile("most z are positive, expected z < 0 for surfaces that face the camera")
    return normals


def read_edges(path: Path, settings: Settings) -> Float32[np.ndarray, "H W 1"]:
    """1 = edge, 0 = none, -1 = no label."""
    if path.suffix != ".npy":
        return (_indices(path) != 0).astype(np.float32)[..., None]
    values = read_npy(path)
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.ndim != 2 or not np.isin(values, (-1, 0, 1)).all():
        raise BadFile(f"shape {values.shape}, {_span(values)}, expected [H, W] of 1, 0 and -1")
    return values.astype(np.float32)[..., None]


def read_instance(path: Path, settings: Settings) -> Int32[np.ndarray, "H W"]:
    """Object numbers, -1 = no label."""
    values = _indices(path).astype(np.int32)
    values[values <= 0] = -1
    return values


READ = {
    "image": read_image,
    "semantic": read_semantic,
    "depth": read_depth,
    "normals": read_normals,
    "edges": read_edges,
    "instance": read_instance,
}


def _indices(path: Path) -> np.ndarray:
    """Integers [H, W] of a grey or palette PNG, or of an npy file."""
    if path.suffix != ".npy":
        image = open_image(path)
        if image.mode not in ("1", "L", "P", "I;16", "I;16B", "I"):
            raise BadFile(f"mode {image.mode}, expected one channel of integers")
        values = np.asarray(image)
        return values.astype(np.uint8) if values.dtype == bool else values
    values = read_npy(path)
    if values.dtype.kind not in "biu" or values.ndim != 2:
        raise BadFile(f"{values.dtype} of shape {values.shape}, expected integers [H, W]")
    return values


def open_image(path: Path) -> Image.Image:
    """Decodes the whole file, so that a truncated one is found out."""
    try:
        image = Image.open(path, formats=("PNG", "JPEG"))
        image.load()
    except Exception as error:  # Pillow raises many kinds, from OSError to SyntaxError.
        raise BadFile(f"cannot be decoded as PNG or JPEG ({one_line(error)})") from error
    return image


def _span(values: np.ndarray) -> str:
    return f"{values.dtype} from {values.min():g} to {values.max():g}"
