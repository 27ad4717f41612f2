"""Procedural textures: what colour a surface has at a point.

Each texture is a function of flat arrays over the samples; `albedo` evaluates only those that some
sample uses.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from talora_jax.data.rooms import materials


def hashed(*integers: Int[Array, "..."]) -> Float[Array, "..."]:
    """A value in [0, 1) for each tuple of integers, the same everywhere (an integer finaliser)."""
    state = jnp.uint32(0x9E3779B9)
    for value in integers:
        state = (state ^ value.astype(jnp.int32).astype(jnp.uint32)) * jnp.uint32(0x85EBCA6B)
        state = (state ^ (state >> 13)) * jnp.uint32(0xC2B2AE35)
        state = state ^ (state >> 16)
    return (state >> 8).astype(jnp.float32) * (1.0 / (1 << 24))


def noise(u: Float[Array, "..."], v: Float[Array, "..."], phase) -> Float[Array, "..."]:
    """Value noise in [0, 1] with features of size 1."""
    u0, v0 = jnp.floor(u), jnp.floor(v)
    fu, fv = u - u0, v - v0
    fu, fv = fu * fu * (3 - 2 * fu), fv * fv * (3 - 2 * fv)
    i, j, k = u0.astype(jnp.int32), v0.astype(jnp.int32), phase.astype(jnp.int32)
    low = hashed(i, j, k) * (1 - fu) + hashed(i + 1, j, k) * fu
    high = hashed(i, j + 1, k) * (1 - fu) + hashed(i + 1, j + 1, k) * fu
    return low * (1 - fv) + high * fv


def _mix(a, b, weight):
    return a + (b - a) * weight[:, None]


def _cell(x, size):
    """Index of the cell of `size` and the place in it, in [0, 1)."""
    index = jnp.floor(x / size)
    return index.astype(jnp.int32), x / size - index


# A texture takes the surface's point in its own plane (u, v: metres; p, q: -1 .. 1 over the face),
# whether the face is upright, and the material (a, b, scale, phase), and gives albedo [n, 3].


def _plain(u, v, p, q, upright, a, b, scale, phase):
    return a * (0.96 + 0.08 * noise(3 * u, 3 * v, phase))[:, None]


def _wood(u, v, p, q, upright, a, b, scale, phase):
    grain = noise(1.5 * u + phase, 28 * v, phase) * 0.7 + noise(6 * u, 90 * v, phase) * 0.3
    return _mix(a, b, grain)


def _planks(u, v, p, q, upright, a, b, scale, phase):
    row, fv = _cell(v, scale)
    shift = hashed(row, phase.astype(jnp.int32)) * 1.3
    column, fu = _cell(u + shift, 1.3)
    tone = hashed(row, column)
    grain = noise(2 * u + 7 * tone, 30 * v, phase)
    gap = (fv < 0.004 / scale) | (fu < 0.003)
    colour = _mix(a, b, 0.5 * tone + 0.5 * grain) * (0.85 + 0.3 * tone)[:, None]
    return colour * jnp.where(gap, 0.45, 1.0)[:, None]


def _tiles(u, v, p, q, upright, a, b, scale, phase):
    column, fu = _cell(u, scale)
    row, fv = _cell(v, scale)
    tone = hashed(row, column, phase.astype(jnp.int32))
    marble = noise(5 * u, 5 * v, phase)
    grout = jnp.minimum(jnp.minimum(fu, 1 - fu), jnp.minimum(fv, 1 - fv)) * scale < 0.004
    colour = a * (0.86 + 0.14 * tone + 0.1 * marble)[:, None]
    return jnp.where(grout[:, None], b, colour)


def _carpet(u, v, p, q, upright, a, b, scale, phase):
    fine = noise(u / scale, v / scale, phase)
    return _mix(a, b, 0.65 * fine + 0.35 * noise(2 * u, 2 * v, phase))


def _stripes(u, v, p, q, upright, a, b, scale, phase):
    _, fu = _cell(u, scale)
    return _mix(a, b, (fu < 0.5).astype(jnp.float32))


def _pattern(u, v, p, q, upright, a, b, scale, phase):
    wave = jnp.cos(2 * jnp.pi * u / scale) * jnp.cos(2 * jnp.pi * v / scale)
    return _mix(a, b, jax.nn.sigmoid(12 * (jnp.abs(wave) - 0.45)))


def _spines(u, v, p, q, upright, a, b, scale, phase):
    """Books side by side: own colour, height and label each; the gap above them is dark."""
    book, fu = _cell(u + phase, scale)
    tone, height = hashed(book, book * 0 + 3), 0.8 + 0.2 * hashed(book, book * 0 + 5)
    hue = jnp.stack([hashed(book, book * 0 + k) for k in (7, 11, 13)], -1)
    colour = 0.4 * hue * hue + 0.6 * _mix(a, b, tone)
    at = 0.5 * (q + 1)
    band = jnp.abs(at - 0.2 - 0.5 * hashed(book, book * 0 + 17)) < 0.05
    colour = jnp.where(band[:, None], 0.2 + 0.8 * colour, colour)
    colour = colour * (0.55 + 0.45 * jnp.sin(jnp.pi * jnp.clip(fu, 0.06, 0.94)))[:, None]
    page = ~upright
    colour = jnp.where(page[:, None], 0.6, colour)
    return jnp.where((upright & (at > height))[:, None], 0.03, colour)


def _painting(u, v, p, q, upright, a, b, scale, phase):
    """A landscape or an abstract in a mount and a frame."""
    edge = jnp.maximum(jnp.abs(p), jnp.abs(q))
    hills = 0.6 * noise(1.5 * p + phase, phase, phase) - 0.3
    land = jax.nn.sigmoid(14 * (hills + 0.25 * jnp.sin(phase) - q))
    blobs = noise(2.2 * p + phase, 2.2 * q, phase)
    weight = jnp.where(hashed(phase.astype(jnp.int32)) < 0.6, land, (blobs > 0.5) * 1.0)
    canvas = _mix(a, b, weight) * (0.7 + 0.5 * noise(4 * p, 4 * q, phase + 9))[:, None]
    mount = jnp.where((edge > 0.76)[:, None], 0.8, canvas)
    frame = jnp.where(hashed(phase.astype(jnp.int32) + 1) < 0.5, 0.03, 0.4)[:, None]
    return jnp.where((edge > 0.9)[:, None], frame * jnp.array([1.0, 0.8, 0.55]), mount)


def _panes(u, v, p, q, upright, a, b, scale, phase):
    """Glass in white bars, and what is outside: sky over a wavy horizon."""
    rows = jnp.floor(scale / 16)
    columns = scale - 16 * rows
    _, fu = _cell(0.5 * (p + 1), 1 / columns)
    _, fv = _cell(0.5 * (q + 1), 1 / rows)
    bar = (jnp.abs(fu - 0.5) > 0.5 - 0.03 * columns) | (jnp.abs(fv - 0.5) > 0.5 - 0.03 * rows)
    horizon = -0.45 + 0.5 * noise(2.5 * p + phase, phase, phase)
    sky = a * (0.75 + 0.25 * q)[:, None]
    out = jnp.where((q < horizon)[:, None], b * 0.4, sky)
    return jnp.where(bar[:, None], 0.45, out)


def _screen(u, v, p, q, upright, a, b, scale, phase):
    """A bezel around a dark glass, or a picture when scale is 1 (switched on)."""
    bezel = jnp.maximum(jnp.abs(p), jnp.abs(q)) > 0.95
    shine = 0.012 + 0.02 * jax.nn.sigmoid(6 * (p + q - 0.4))
    show = _mix(a, b, noise(2 * p + phase, 2 * q, phase))
    inside = jnp.where((scale > 0.5)[:, None], show, shine[:, None])
    return jnp.where(bezel[:, None], 0.012, inside)


def _fronts(u, v, p, q, upright, a, b, scale, phase):
    """Wood with a grid of doors or drawers, dark joints and a knob each, on upright faces."""
    rows = jnp.floor(scale / 16)
    columns = scale - 16 * rows
    column, fu = _cell(0.5 * (p + 1), 1 / columns)
    _, fv = _cell(0.5 * (q + 1), 1 / rows)
    edge = jnp.minimum(jnp.minimum(fu, 1 - fu) / columns, jnp.minimum(fv, 1 - fv) / rows)
    colour = _wood(v, u, p, q, upright, a, b, scale, phase)
    panel = jnp.where((edge > 0.03) & (edge < 0.04), 0.8, 1.0)
    joint = jnp.where(edge < 0.006, 0.25, panel)
    side = jnp.where((columns > 1) & (column % 2 == 0), 0.88, 0.12)
    side = jnp.where(rows > columns, 0.5, side)
    knob = ((fu - side) / columns) ** 2 + ((fv - 0.5) / rows) ** 2 < 0.00025
    joint = jnp.where(knob, 0.2, joint)
    return colour * jnp.where(upright, joint, 1.0)[:, None]


def _fabric(u, v, p, q, upright, a, b, scale, phase):
    weave = noise(120 * u, 120 * v, phase)
    checks = jnp.sin(2 * jnp.pi * u / scale) * jnp.sin(2 * jnp.pi * v / scale)
    kind = hashed(phase.astype(jnp.int32) + 2)
    stripe = jnp.sin(2 * jnp.pi * u / scale)
    drawn = jnp.where(kind < 0.2, checks > 0, jnp.where(kind < 0.4, stripe > 0, False))
    colour = _mix(a, b, drawn.astype(jnp.float32))
    return colour * (0.88 + 0.16 * weave + 0.06 * noise(6 * u, 6 * v, phase))[:, None]


def _folds(u, v, p, q, upright, a, b, scale, phase):
    fold = 0.72 + 0.28 * jnp.sin(2 * jnp.pi * (u + 0.02 * noise(8 * u, 2 * v, phase)) / scale)
    return a * fold[:, None]


_TEXTURES = {
    materials.PLAIN: _plain,
    materials.WOOD: _wood,
    materials.PLANKS: _planks,
    materials.TILES: _tiles,
    materials.CARPET: _carpet,
    materials.STRIPES: _stripes,
    materials.PATTERN: _pattern,
    materials.SPINES: _spines,
    materials.PAINTING: _painting,
    materials.PANES: _panes,
    materials.SCREEN: _screen,
    materials.FRONTS: _fronts,
    materials.FABRIC: _fabric,
    materials.FOLDS: _folds,
}


def albedo(texture: Int[Array, "n"], *surface) -> Float[Array, "n 3"]:
    """Linear RGB albedo of samples.

    Args:
      texture: which texture, of materials.PLAIN, ...
      *surface: u, v, p, q [n] float32, upright [n] bool, a, b [n, 3], scale, phase [n]: the point
        on the face in metres and from -1 to 1, whether the face is upright, and the material.
    """
    colour = jnp.zeros((texture.shape[0], 3), jnp.float32)
    for number, function in _TEXTURES.items():
        chosen = texture == number
        colour = jax.lax.cond(
            chosen.any(),
            lambda colour, chosen, function=function: jnp.where(
                chosen[:, None], function(*surface), colour
            ),
            lambda colour, chosen: colour,
            colour,
            chosen,
        )
    return colour
