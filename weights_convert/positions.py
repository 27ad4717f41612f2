"""Tables of relative positions, made to fit the grid.

Source: `get_rel_pos` of `segment_anything/modeling/image_encoder.py`, which interpolates a table
linearly (half-pixel centres, no antialiasing) at every call. The same is done here once.
"""

from collections.abc import Mapping

import numpy as np

from talora_jax.models.encoder_config import ImageEncoderConfig
from talora_jax.models.geometry import resize_matrix
from weights_convert.architecture import POSITION_TABLE, Shape

# A table of more rows is no table of positions.
_MAX_ROWS = 2**14


def interpolated(table: np.ndarray, rows: int) -> np.ndarray:
    """A table [L, d] with another number of rows."""
    matrix = resize_matrix(len(table), rows, antialias=False)
    return (matrix @ table.astype(np.float64)).astype(table.dtype)


def fit_positions(
    encoder: ImageEncoderConfig, shapes: Mapping[str, Shape]
) -> tuple[dict[str, Shape], list[str]]:
    """The tables that are not as the encoder needs them, and what is to be told about them.

    Args:
      shapes: of a state dict under official names.

    Returns:
      The shapes that tables are to have that are missing in all blocks, or have other rows.
    """
    tables, before = {}, set()
    absent = not any(map(POSITION_TABLE.fullmatch, shapes))
    for i, (stack, _) in enumerate(encoder.places):
        size = encoder.window if stack == "window_blocks" else encoder.grid
        wanted = (2 * size - 1, encoder.width // encoder.heads)
        for axis in "hw":
            name = f"image_encoder.blocks.{i}.attn.rel_pos_{axis}"
            shape = shapes.get(name, ())
            rows = len(shape) == 2 and shape[1] == wanted[1] and 0 < shape[0] <= _MAX_ROWS
            if absent or (stack == "global_blocks" and rows and shape != wanted):
                tables[name] = wanted
                before |= {shape[0]} if shape else set()
    notes = []
    if before:
        rows = ", ".join(map(str, sorted(before)))
        notes.append(
            f"interpolated relative positions of global blocks from {rows} to "
            f"{2 * encoder.grid - 1} rows, as the original does at every call"
        )
    if absent:
        places = ", ".join(map(str, encoder.global_places)) or "none"
        notes.append(
            "it has no relative positions, they are zeros; "
            f"windows of {encoder.window}, global blocks {places}"
        )
    return tables, notes
