"""A SAM for another input size: its positions, interpolated once.

As the original does with relative positions at every call (see `positions`), the tables of the
global blocks are interpolated, and along both axes the absolute positions, which the original
cannot interpolate. Windows keep their size and their tables.
"""

import dataclasses

import numpy as np

from talora_jax.errors import UserError
from talora_jax.models.geometry import resize_matrix
from weights_convert.checkpoint import Checkpoint
from weights_convert.names import Entry
from weights_convert.positions import interpolated


def resized(checkpoint: Checkpoint, image_size: int) -> Checkpoint:
    """The checkpoint for square inputs of another side, in pixels.

    Raises:
      UserError: the side is no multiple of the patch size, or its grid is as small as a window.
    """
    encoder = checkpoint.architecture.sam.encoder
    grid, rest = divmod(image_size, encoder.patch_size)
    if rest or grid <= encoder.window:
        raise UserError(
            f"--image-size={image_size}: expected a multiple of {encoder.patch_size} above "
            f"{encoder.patch_size * encoder.window} (one attention window)"
        )
    config = dataclasses.replace(encoder, image_size=image_size)
    sam = dataclasses.replace(checkpoint.architecture.sam, encoder=config)

    def get(entry: Entry) -> np.ndarray:
        x = checkpoint.get(entry)
        if entry.ours == "image_encoder.pos_embed":
            matrix = resize_matrix(encoder.grid, grid, antialias=False)
            return np.einsum("yh,bhwd,xw->byxd", matrix, x, matrix, optimize=True).astype(x.dtype)
        if entry.ours.startswith("image_encoder.global_blocks.attn.rel_pos_"):
            return interpolated(x, 2 * grid - 1)
        return x

    architecture = dataclasses.replace(checkpoint.architecture, sam=sam)
    return dataclasses.replace(checkpoint, architecture=architecture, get=get)
