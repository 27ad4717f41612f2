"""Images of any size into the padded image, and maps back, by programs of one size.

A program stays in memory, and photographs have many sizes. So each way goes tile by tile: tiles are
`TILE` pixels wide and high, filled up with zeros where the image ends, and every image is made of
the same ones. A resize being separable, rows come first and then columns, and nothing is computed
twice.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from talora_jax.models.geometry import Geometry, normalise
from talora_jax.tasks import Task

TILE = 256


def to_padded(
    image: UInt8[np.ndarray, "H W 3"], geometry: Geometry, *, normalised: bool
) -> Float[Array, "1 Y X 3"]:
    """`Geometry.to_padded` of one image of 8 bits.

    Args:
      normalised: as `normalise` there.
    """
    rows, columns = geometry.matrices_to_padded()
    height, width = geometry.padded
    rows_of = [(part, _filled_up(rows[:, part], 1)) for part in _tiles(image.shape[0])]
    padded = jnp.zeros((height, width, 3))
    for across in _tiles(image.shape[1]):
        strip = jnp.zeros((height, TILE, 3))
        for down, matrix in rows_of:
            strip = _add_rows(strip, matrix, _filled_up(image[down, across], 0, 1))
        padded = _add_columns(padded, _filled_up(columns[:, across], 1), strip)
    return _scaled(padded[None], np.array(geometry.resized), normalised)


def outputs(
    task: Task, low_res: Float[Array, "1 h w C"], geometry: Geometry, *, probabilities: bool
) -> dict[str, np.ndarray]:
    """A task's outputs at the size of the original image, from its maps; see `Task.outputs`."""
    rows, columns = geometry.matrices_from_padded(low_res.shape[1:3])
    height, width = geometry.original
    across = [(part, jnp.asarray(_filled_up(columns[part], 0))) for part in _tiles(width)]
    arrays: dict[str, np.ndarray] = {}
    for down in _tiles(height):
        strip = _rows(low_res, _filled_up(rows[down], 0))
        # All are under way before the first is waited for.
        found = [(part, _outputs(task, strip, matrix, probabilities)) for part, matrix in across]
        for part, tile in found:
            for name, x in tile.items():
                if name not in arrays:
                    arrays[name] = np.empty((height, width, *x.shape[3:]), x.dtype)
                into = arrays[name][down, part]
                into[...] = np.asarray(x)[0, : into.shape[0], : into.shape[1]]
    return arrays


# As `geometry.resize` is.
_einsum = functools.partial(jnp.einsum, precision="highest")


@jax.jit
def _add_rows(strip, rows, pixels):
    return strip + _einsum("yh,hwc->ywc", rows, pixels.astype(jnp.float32))


@jax.jit
def _add_columns(padded, columns, strip):
    return padded + _einsum("xw,ywc->yxc", columns, strip)


@functools.partial(jax.jit, static_argnames="normalised")
def _scaled(padded, resized, normalised):
    return normalise(padded, resized) if normalised else padded / 255


@jax.jit
def _rows(low_res, rows):
    return _einsum("yh,bhwc->bywc", rows, low_res.astype(jnp.float32))


@functools.partial(jax.jit, static_argnames=("task", "probabilities"))
def _outputs(task, strip, columns, probabilities):
    return task.outputs(_einsum("xw,bywc->byxc", columns, strip), probabilities=probabilities)


def _tiles(size: int) -> Iterator[slice]:
    return (slice(start, min(start + TILE, size)) for start in range(0, size, TILE))


def _filled_up(x: np.ndarray, *axes: int) -> np.ndarray:
    """x with zeros at the end of these axes, up to `TILE`."""
    return np.pad(x, [(0, TILE - n if axis in axes else 0) for axis, n in enumerate(x.shape)])
