"""Images of any size into the padded image, and maps back.

There on the host, beside a device that computes: few of a resize's weights are not zero. Back on
the device, where tasks' outputs are made of maps, by programs of one size: a program stays in
memory, and photographs have many sizes. So that way goes tile by tile: tiles are `TILE` pixels wide
and high, filled up with zeros where the image ends, and every image is made of the same ones. A
resize being separable, columns come first and then rows, and nothing is computed twice. Columns are
a matrix product; rows, of which there are many more by then, are sums of the few that count.
"""

import functools
import itertools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
from jaxtyping import Array, Float, Int, UInt8

from talora_jax.models.geometry import PIXEL_MEAN, PIXEL_STD, Geometry
from talora_jax.tasks import Task

# All channels of a tile stay in a processor's cache, and common sizes are whole tiles or nearly.
TILE = 160
# Rows of a map that a row of an image is made of: it lies between two rows of the resized image,
# each of which lies between two of the map, whose rows are no closer.
_TAPS = 3


def to_padded(
    image: UInt8[np.ndarray, "H W 3"], geometry: Geometry, *, normalised: bool
) -> Float[np.ndarray, "1 Y X 3"]:
    """`Geometry.to_padded` of one image of 8 bits, float32.

    Args:
      normalised: as `normalise` there.
    """
    rows, columns = _way_there(geometry)
    (height, width), (new_height, new_width) = geometry.original, geometry.resized
    # Some columns after others: as floats, a photograph would take four times its bytes.
    strips = [
        (rows @ image[:, part].reshape(height, -1).astype(np.float32)).reshape(new_height, -1, 3)
        for part in _tiles(width)
    ]
    by_column = np.concatenate(strips, axis=1).swapaxes(0, 1).reshape(width, -1)
    x = (columns @ by_column).reshape(new_width, new_height, 3).swapaxes(0, 1)
    padded = np.zeros((1, *geometry.padded, 3), np.float32)
    mean, std = (PIXEL_MEAN, PIXEL_STD) if normalised else (0, 255)
    padded[0, :new_height, :new_width] = (x - np.float32(mean)) / np.float32(std)
    return padded


def outputs(
    tasks: Sequence[Task], maps: Float[Array, "C h w"], geometry: Geometry, *, probabilities: bool
) -> dict[str, np.ndarray]:
    """Tasks' outputs at the size of the original image; see `Task.outputs`.

    Args:
      maps: those of all the tasks, in their order.
    """
    rows, columns = _way_back(geometry, maps.shape[1:])
    height, width = geometry.original
    arrays: dict[str, np.ndarray] = {}
    for across, of_columns in zip(_tiles(width), columns, strict=True):
        strip = _columns(maps, of_columns)
        # All are under way before the first is waited for.
        found = [_outputs(tuple(tasks), strip, *taps, probabilities) for taps in rows]
        for part, tile in zip(_tiles(height), found, strict=True):
            for name, x in itertools.chain(*(of_task.items() for of_task in tile)):
                if name not in arrays:
                    arrays[name] = np.empty((height, width, *x.shape[2:]), x.dtype)
                into = arrays[name][part, across]
                into[...] = np.asarray(x)[: into.shape[0], : into.shape[1]]
    return arrays


@functools.lru_cache(maxsize=2)
def _way_there(geometry: Geometry) -> list[scipy.sparse.csr_array]:
    """`Geometry.matrices_to_padded` without the padding, by what in them is not zero."""
    return [
        scipy.sparse.csr_array(matrix[:size])
        for matrix, size in zip(geometry.matrices_to_padded(), geometry.resized, strict=True)
    ]


@functools.lru_cache(maxsize=2)
def _way_back(
    geometry: Geometry, map_size: tuple[int, int]
) -> tuple[
    list[tuple[Int[np.ndarray, "Y"], Float[np.ndarray, "Y taps"]]], list[Float[np.ndarray, "X w"]]
]:
    """`Geometry.matrices_from_padded`, tile by tile: rows as `_taps`, and columns."""
    rows, columns = geometry.matrices_from_padded(map_size)
    height, width = geometry.original
    return (
        [_taps(_filled_up(rows[part])) for part in _tiles(height)],
        [_filled_up(columns[part]) for part in _tiles(width)],
    )


def _taps(
    matrix: Float[np.ndarray, "Y h"],
) -> tuple[Int[np.ndarray, "Y"], Float[np.ndarray, "Y taps"]]:
    """Of each row of a matrix where its few numbers begin that are not zero, and those."""
    first = np.minimum((matrix != 0).argmax(axis=1), matrix.shape[1] - _TAPS)
    return first, np.take_along_axis(matrix, first[:, None] + np.arange(_TAPS), axis=1)


@jax.jit
def _columns(maps, columns):
    # Precise as `geometry.resize` is.
    return jnp.einsum("xw,chw->hcx", columns, maps.astype(jnp.float32), precision="highest")


@functools.partial(jax.jit, static_argnames=("tasks", "probabilities"))
def _outputs(tasks, strip, first, weights, probabilities):
    ends = list(itertools.accumulate(task.channels for task in tasks))

    def of_task(task, part):
        # Pixels in a row lie side by side.
        x = sum(weights[:, k, None, None] * part[first + k] for k in range(_TAPS))
        return task.outputs(jnp.moveaxis(x, 1, 2), probabilities=probabilities)

    # Each for itself: what several tasks took from XLA would write to memory first. A list: of a
    # dictionary `jit` would not keep the order.
    parts = jnp.split(strip, ends[:-1], axis=1)
    return [of_task(task, part) for task, part in zip(tasks, parts, strict=True)]


def _tiles(size: int) -> Iterator[slice]:
    return (slice(start, min(start + TILE, size)) for start in range(0, size, TILE))


def _filled_up(x: np.ndarray) -> np.ndarray:
    """x with zero rows at its end, up to `TILE`."""
    return np.pad(x, [(0, TILE - len(x)), (0, 0)])
