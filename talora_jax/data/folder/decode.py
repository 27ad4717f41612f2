"""One file in, one array out: the image, and what targets read.

Every function raises `BadFile` with what was expected when the file is something else.
"""

from pathlib import Path

import numpy as np
from jaxtyping import Num, UInt8
from PIL import ImageOps

from talora_jax.data.folder.settings import Settings
from talora_jax.tasks import TARGETS
from talora_jax.tasks.target_files import BadFile, open_image, read_npy, span


def suffixes() -> dict[str, tuple[str, ...]]:
    """The folders that there may be, and the suffixes of the files that each may hold."""
    targets = {name: target.suffixes for name, target in TARGETS.items()}
    return {"image": (".png", ".jpg", ".jpeg", ".npy"), **targets}


def read(folder: str, path: Path, settings: Settings) -> Num[np.ndarray, "H W *c"]:
    """A file of one of the `suffixes` folders, as `talora_jax.data.dataset.Source` has it."""
    return read_image(path) if folder == "image" else TARGETS[folder].read(path, settings)


def read_image(path: Path) -> UInt8[np.ndarray, "H W 3"]:
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
        raise BadFile(f"{span(values)}, expected uint8, or float in [0, 1]")
    return (values * 255).round().astype(np.uint8)
