"""Boundary maps as the BSDS benchmark compares them: thinned, then matched one to one.

Martin, Fowlkes and Malik 2004, "Learning to Detect Natural Image Boundaries Using Local Brightness,
Color, and Texture Cues", in the form that the multi-task papers use on PASCAL-Context (SEISM,
Pont-Tuset and Marques 2013): the prediction at a threshold is thinned to lines of one pixel, with
no non-maximum suppression before, and its pixels are matched one to one with true ones that are no
further away than a share of the image's diagonal.

Differences:
  - The matching is one of most pairs. Theirs is one of least total distance where a pixel left out
    costs 100 times the farthest distance, so that it has the most pairs too, among those it looks
    at: it draws some candidates of each pixel at random and may miss a few pairs.
  - The truth is thinned as well. It may come in lines of two pixels, half of which could never be
    matched by a thin prediction; lines of one pixel stay as they are.
"""

import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt32
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

WORD = 32  # maps in a word

# Of a pixel's neighbours: east, then counter-clockwise.
_NEIGHBOURS = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))


def pack(maps: Bool[Array, "B H W maps"]) -> UInt32[Array, "B H W words"]:
    """Up to `WORD` maps to a word, one bit each, the first in the lowest bit of the first word."""
    words = -(-maps.shape[-1] // WORD)
    padding = words * WORD - maps.shape[-1]
    bits = jnp.pad(maps, [(0, 0)] * 3 + [(0, padding)]).astype(jnp.uint32)
    bits = bits.reshape(*maps.shape[:-1], words, WORD)
    return jnp.sum(bits << jnp.arange(WORD, dtype=jnp.uint32), axis=-1, dtype=jnp.uint32)


def unpack(words: UInt32[np.ndarray, "*b words"], count: int) -> Bool[np.ndarray, "*b maps"]:
    """The first `count` maps of `pack`, on the host."""
    octets = np.ascontiguousarray(words, "<u4").view(np.uint8)
    return np.unpackbits(octets, axis=-1, count=count, bitorder="little").astype(bool)


def thin(words: UInt32[Array, "B H W words"]) -> UInt32[Array, "B H W words"]:
    """Thins all the maps in the words to lines of one pixel, connected as they were.

    Guo and Hall 1989, "Parallel thinning with two-subiteration algorithms", in the form of Lam, Lee
    and Suen 1992, which MATLAB's bwmorph(…, 'thin', Inf) has and so do the benchmarks. Outside of
    the image there is nothing. Bits never meet: every map of a word is thinned by the same
    operations at once.
    """

    def peel(state):
        before, _ = state
        after = _peel(_peel(before, second=False), second=True)
        return after, jnp.any(after != before)

    return jax.lax.while_loop(lambda state: state[1], peel, (words, True))[0]


def _peel(words: UInt32[Array, "B H W words"], *, second: bool) -> UInt32[Array, "B H W words"]:
    """One subiteration: takes away every pixel on the border that no line needs."""
    height, width = words.shape[1:3]
    padded = jnp.pad(words, ((0, 0), (1, 1), (1, 1), (0, 0)))
    x1, x2, x3, x4, x5, x6, x7, x8 = (
        padded[:, 1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width] for dy, dx in _NEIGHBOURS
    )
    # Crossing number 1: the neighbours that are on hang together.
    starts = (~x1 & (x2 | x3), ~x3 & (x4 | x5), ~x5 & (x6 | x7), ~x7 & (x8 | x1))
    a, b, c, d = starts
    one_crossing = ((a ^ b) & ~(c | d)) | ((c ^ d) & ~(a | b))
    # The smaller count of neighbouring pairs, paired either way, is 2 or 3.
    pairs = (x1 | x2, x3 | x4, x5 | x6, x7 | x8)
    others = (x2 | x3, x4 | x5, x6 | x7, x8 | x1)
    two_or_three = _two(*pairs) & _two(*others) & ~functools.reduce(operator.and_, pairs + others)
    # One subiteration takes from the south and east, the other from the north and west.
    kept = (x6 | x7 | ~x4) & x5 if second else (x2 | x3 | ~x8) & x1
    return words & ~(one_crossing & two_or_three & ~kept)


def _two(a: Array, b: Array, c: Array, d: Array) -> Array:
    """Where two of the four are on, or more."""
    return (a & b) | (c & d) | ((a | b) & (c | d))


def count_matches(
    predicted: Bool[np.ndarray, "H W"], true: Bool[np.ndarray, "H W"], distance: float
) -> int:
    """The most pairs of a predicted and a true pixel no more than `distance` pixels apart, of which
    no two share a pixel. On the host: a search for augmenting paths is no work for XLA."""
    reach = int(distance)
    dy, dx = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    near = dy**2 + dx**2 <= distance**2

    rows, columns = np.nonzero(predicted)
    num_true = np.count_nonzero(true)
    numbers = np.full(true.shape, -1)
    numbers[true] = np.arange(num_true)
    numbers = np.pad(numbers, reach, constant_values=-1)
    # [predicted pixel, place within reach]: the number of the true pixel there, or -1.
    candidates = numbers[rows[:, None] + reach + dy[near], columns[:, None] + reach + dx[near]]
    place = candidates >= 0
    candidates, place = candidates[place.any(axis=1)], place[place.any(axis=1)]
    if not len(candidates):
        return 0

    # As a flow: source → predicted → true → sink, one unit each. (SciPy's bipartite matching takes
    # minutes for some of these graphs.)
    count = len(candidates)
    source, sink = count + num_true, count + num_true + 1
    starts = [np.full(count, source), np.nonzero(place)[0], count + np.arange(num_true)]
    ends = [np.arange(count), count + candidates[place], np.full(num_true, sink)]
    starts, ends = np.concatenate(starts), np.concatenate(ends)
    graph = csr_array((np.ones(len(starts), np.int32), (starts, ends)), shape=(sink + 1, sink + 1))
    return int(maximum_flow(graph, source, sink, method="dinic").flow_value)
