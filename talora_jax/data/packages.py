"""Boxes and cans, printed on every side: things whose parts differ more than they do from others.

A box is seen from anywhere above, without perspective: three faces, each in a light of its own. A
can stands or lies, with a lid or an opening. Prints follow the faces. Whoever learns from these
takes the whole for a thing, not the picture on it.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from talora_jax.data import surfaces


def draw_package(
    rng: np.random.Generator, y: Float[np.ndarray, "h w"], x: Float[np.ndarray, "h w"]
) -> tuple[Bool[np.ndarray, "h w"], Float[np.ndarray, "h w 3"]]:
    """Which points lie in a random package, and the colours there, in units of a byte.

    Args:
      y, x: points, in units of the package's radius, the middle at 0.
    """
    inside, colour = np.zeros(x.shape, bool), np.zeros((*x.shape, 3), np.float32)
    design = rng.uniform(10, 245, 3)
    for face in _box(rng, y, x) if rng.random() < 0.65 else _can(rng, y, x):
        if face.inside.any():
            lit = _printed(rng, design, face.u, face.v) * face.light[..., None]
            colour[face.inside] = lit[face.inside]
            inside |= face.inside
    return inside, colour


class _Face(NamedTuple):
    """Where a face is seen, its own axes from -1 to 1, and its light: each [h, w]."""

    inside: Bool[np.ndarray, "h w"]
    u: Float[np.ndarray, "h w"]
    v: Float[np.ndarray, "h w"]
    light: Float[np.ndarray, "h w"]


def _box(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> list[_Face]:
    """Three faces of a turned box."""
    yaw, pitch, roll = rng.uniform(0, np.pi / 2), rng.uniform(0.15, 1.3), rng.normal(0, 0.15)
    if rng.random() < 0.3:  # not standing
        roll = rng.uniform(-np.pi, np.pi)
    half = np.exp(rng.uniform(np.log(0.2), 0, 3))
    half /= np.linalg.norm(half)
    # Columns: the box's edges, as image right, image down, and towards the eye.
    edges = np.array(
        [
            [np.cos(yaw), -np.sin(yaw), 0],
            [np.sin(yaw) * np.sin(pitch), np.cos(yaw) * np.sin(pitch), -np.cos(pitch)],
            [np.sin(yaw) * np.cos(pitch), np.cos(yaw) * np.cos(pitch), np.sin(pitch)],
        ]
    ) * (1.15 * half)
    turn = np.array([[np.cos(roll), -np.sin(roll)], [np.sin(roll), np.cos(roll)]])
    flat = turn @ edges[:2]
    faces = []
    for axis in range(3):
        one, other = flat[:, (axis + 1) % 3], flat[:, (axis + 2) % 3]
        middle = flat[:, axis] * np.sign(edges[2, axis])
        area = one[0] * other[1] - one[1] * other[0]
        if abs(area) < 1e-3:  # seen from its side
            continue
        right, down = x - middle[0], y - middle[1]
        u = (right * other[1] - down * other[0]) / area
        v = (down * one[0] - right * one[1]) / area
        light = np.full_like(x, rng.uniform(0.45, 1.15))
        faces.append(_Face(np.maximum(abs(u), abs(v)) <= 1, u, v, light))
    return faces


def _can(rng: np.random.Generator, y: np.ndarray, x: np.ndarray) -> list[_Face]:
    """The wall of a can and its end."""
    turn = rng.normal(0, 0.15) if rng.random() < 0.7 else rng.uniform(-np.pi, np.pi)
    along, across = surfaces.turned(turn, x, y)
    wide = rng.uniform(0.35, 0.95)
    flat = wide * rng.uniform(0.15, 0.8)  # half of the end's height, as seen
    long = min(rng.uniform(0.15, 0.95), 1.5 - flat)
    u = across / wide
    bow = flat * np.sqrt(np.clip(1 - u**2, 0, 1))
    wall = (abs(u) <= 1) & (along >= -long) & (along <= long * rng.uniform(0.7, 1.0) + bow)
    round_light = rng.uniform(0.5, 1.0) + 0.45 * np.cos(np.arcsin(np.clip(u, -1, 1)) - turn)
    end = u**2 + ((along + long) / flat) ** 2 <= 1
    lid = np.full_like(x, rng.uniform(0.4, 1.2))
    if rng.random() < 0.3:  # open: the far wall is seen, darker below
        lid = lid * (0.7 - 0.3 * np.clip((along + long) / flat, -1, 1))
    around = np.arcsin(np.clip(u, -1, 1)) / (np.pi / 2)
    return [
        _Face(wall, around, along / long, round_light),
        _Face(end, u, (along + long) / flat, lid),
    ]


def _printed(
    rng: np.random.Generator, design: np.ndarray, u: np.ndarray, v: np.ndarray
) -> Float[np.ndarray, "h w 3"]:
    """A face in the package's colour or, seldom, one of its own, with none to many prints."""
    colour = surfaces.texture(rng, v, u)
    if rng.random() < 0.7:
        colour[...] = design
    for _ in range(rng.choice((0, 2, 5, 9))):
        surfaces.print_patch(rng, colour, v, u)
    return colour
