"""The files of one image in, its image and targets out, as stored in records.

Every function raises `BadFile` with what was expected when a file is something else.

What is done is what ASTMT does (facebookresearch/astmt, `fblib/dataloaders/pascal_context.py`, and
`AddIgnoreRegions` of `custom_transforms.py`), so that numbers compare. Differences:

- Normals of another size than the image are brought to it by nearest neighbour like the other
  targets (bicubic there).
- A black normal is invalid wherever it is; its vector would have length √3.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import scipy.io
from jaxtyping import Bool, Int8, Int32, UInt8

from talora_jax.data.pascal_context.classes import (
    HUMAN_PARTS,
    LAST_CONTEXT_CLASS,
    PERSON,
    SEMANTIC,
    WITH_NORMALS,
)
from talora_jax.data.pascal_context.thin import thin
from talora_jax.data.records import Sample, SampleFiles
from talora_jax.errors import UserError, one_line
from talora_jax.tasks import target_of
from talora_jax.tasks.target_files import BadFile, open_image

_IGNORED = 255


def read_sample(sample: SampleFiles, tasks: Sequence[str]) -> Sample:
    """All that is stored of one image.

    Returns, as far as it is of the tasks:
      image        uint8 [H, W, 3]
      semantic     int8 [H, W], -1 = no label
      human_parts  int8 [H, W], 1 to 6, 0 = background; -1 everywhere if no part is annotated
      saliency     int8 [H, W, 1], 1 = salient, 0 = not
      normals      uint8 [H, W, 3], v for 2v/255 - 1, all-zero = invalid
      edges        int8 [H, W, 1], 1 = edge, 0 = none

    Raises:
      UserError: a file is not what it should be; it is named.
    """

    def read(name, function, *more):
        try:
            return function(sample.files[name], *more)
        except BadFile as error:
            raise UserError(f"{sample.files[name]}: {error}.") from error

    image = read("image", read_image)
    size = image.shape[:2]
    targets = {}
    if "semantic" in tasks:
        targets["semantic"] = read("semantic", read_semantic)
    if "human_parts" in tasks:
        parts = read("human_parts", read_human_parts)
        targets["human_parts"] = np.full(size, -1, np.int8) if parts is None else parts
    if "saliency" in tasks:
        targets["saliency"] = read("saliency", read_saliency)
    if "normals" in tasks or "edges" in tasks:
        context = read("context", read_context)
    if "normals" in tasks:
        targets["normals"] = read("normals", read_normals, context)
    if "edges" in tasks:
        targets["edges"] = edges_of(context)[..., None].astype(np.int8)
    return {"image": image} | {name: target_of(name).resize(x, size) for name, x in targets.items()}


def read_image(path: Path) -> UInt8[np.ndarray, "H W 3"]:
    """RGB."""
    return np.asarray(open_image(path).convert("RGB"))


def read_semantic(path: Path) -> Int8[np.ndarray, "H W"]:
    """Class indices of VOC; 255 becomes -1, no label."""
    values = _indices(path)
    highest = values.max(initial=0, where=values != _IGNORED)
    if highest >= len(SEMANTIC):
        raise BadFile(
            f"label {highest}, expected 0 to {len(SEMANTIC) - 1}, or {_IGNORED} for no label"
        )
    return np.where(values == _IGNORED, np.int8(-1), values).astype(np.int8)


def read_saliency(path: Path) -> Int8[np.ndarray, "H W 1"]:
    """1 where a network's grey is above 127, 0 elsewhere."""
    return (_indices(path) > 127).astype(np.int8)[..., None]


def read_normals(path: Path, context: Int32[np.ndarray, "h w"]) -> UInt8[np.ndarray, "H W 3"]:
    """A network's normals as their file has them, (0, 0, 0) where their class is not NYUv2's.

    x and y point along the image's axes or both against them (ASTMT turns them with it); the sign
    of z is the file's, which nothing here depends on.
    """
    image = open_image(path)
    if image.mode != "RGB":
        raise BadFile(f"mode {image.mode}, expected RGB of 8 bits")
    values = np.asarray(image)
    if values.shape[:2] != context.shape:
        raise BadFile(
            f"{values.shape[0]}x{values.shape[1]} pixels, expected {context.shape[0]}x"
            f"{context.shape[1]} as the LabelMap in pascal-context/trainval"
        )
    trusted = np.isin(context, list(WITH_NORMALS))
    return np.where(trusted[..., None], values, np.uint8(0))


def read_context(path: Path) -> Int32[np.ndarray, "H W"]:
    """PASCAL-Context's LabelMap: 1 to 459, 0 for none."""
    values = _load_mat(path, "LabelMap")
    if not isinstance(values, np.ndarray) or values.ndim != 2 or values.dtype.kind not in "iuf":
        raise BadFile("expected LabelMap to be a matrix of numbers")
    if min(values.shape) < 2 or (values != np.round(values)).any():
        raise BadFile("expected LabelMap to hold the class of every pixel")
    if values.min() < 0 or values.max() > LAST_CONTEXT_CLASS:
        raise BadFile(
            f"LabelMap from {values.min():g} to {values.max():g}, expected 0 to "
            f"{LAST_CONTEXT_CLASS}"
        )
    return values.astype(np.int32)


def edges_of(context: Int32[np.ndarray, "H W"]) -> Bool[np.ndarray, "H W"]:
    """Thinned outlines: where the Laplacian of the class numbers is not zero.

    The stencil (0 1 0; 1 -4 1; 0 1 0), mirrored about the border's pixels, as OpenCV's `Laplacian`
    has it. (So a pixel whose number is the mean of its neighbours' is no edge: ASTMT's way.)
    """
    padded = np.pad(context, 1, mode="reflect")
    neighbours = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    return thin(neighbours != 4 * context)


def read_human_parts(path: Path) -> Int8[np.ndarray, "H W"] | None:
    """Parts of all people from PASCAL-Part's annotation; None where no part is annotated.

    Its structure: anno.objects(i) with class_ind, mask and parts(j) with part_name and mask. Later
    parts cover earlier ones.
    """
    annotation = _load_mat(path, "anno")
    parts = None
    try:
        for thing in annotation["objects"].item().ravel():
            if thing["class_ind"].item() != PERSON:
                continue
            for part in thing["parts"].ravel():
                name, mask = str(part["part_name"].item()), part["mask"].astype(bool)
                if name not in HUMAN_PARTS:
                    raise BadFile(
                        f"part {name!r} of a person, expected one of {', '.join(HUMAN_PARTS)}"
                    )
                if parts is None:
                    parts = np.zeros(mask.shape, np.int8)
                parts[mask] = HUMAN_PARTS[name]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise BadFile(
            "expected anno.objects(i) with class_ind, mask and parts(j) with part_name and mask, "
            f"as PASCAL-Part has it ({one_line(error)})"
        ) from error
    return None if parts is None or not parts.any() else parts


def _indices(path: Path) -> UInt8[np.ndarray, "H W"]:
    image = open_image(path)
    if image.mode not in ("L", "P"):
        raise BadFile(f"mode {image.mode}, expected one channel of 8 bits")
    return np.asarray(image)


def _load_mat(path: Path, name: str) -> Any:
    """The variable `name` of a MATLAB file of version 4 to 7.2. Reading it runs no code."""
    try:
        variables = scipy.io.loadmat(path, variable_names=[name])
    except NotImplementedError as error:
        raise BadFile(
            "a MATLAB file of version 7.3 (HDF5), expected 7.2 or older; save it with -v7"
        ) from error
    except Exception as error:  # SciPy raises many kinds, from zlib's to IndexError.
        raise BadFile(f"cannot be read as a MATLAB file ({one_line(error)})") from error
    if name not in variables:
        raise BadFile(f"expected a variable {name!r} in it")
    return variables[name]
