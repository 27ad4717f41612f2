"""Rays against solids: the first one hit, and whether a lamp is in sight.

A loop over the solids of a list tests each against all rays at once. A solid is a unit cube,
cylinder or ball in its own frame, to which the rays are brought.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from talora_jax.data.rooms import furniture
from talora_jax.data.rooms.scene import MAX_PARTS, Scene

# Metres: what is nearer than this to a ray's start is not hit.
EPSILON = 1e-3


class Solids(NamedTuple):
    """The solids of a scene, ready for rays.

    `turn` [P, 3, 3] takes world directions to a solid's axes, `to_local` [P, 3, 3] on to the frame
    where a box is [-1, 1]^3 and a ball has radius 1; `radius` [P] is that of the bounding sphere.
    """

    shape: Int[Array, "P"]
    centre: Float[Array, "P 3"]
    turn: Float[Array, "P 3 3"]
    to_local: Float[Array, "P 3 3"]
    radius: Float[Array, "P"]
    exists: Bool[Array, "P"]


def solids_of(scene: Scene) -> Solids:
    cosine, sine = scene.heading[:, 0], scene.heading[:, 1]
    zero, one = jnp.zeros_like(cosine), jnp.ones_like(cosine)
    rows = ((cosine, sine, zero), (-sine, cosine, zero), (zero, zero, one))
    turn = jnp.stack([jnp.stack(row, -1) for row in rows], -2)
    is_ball = scene.shape == furniture.ELLIPSOID
    is_box = scene.shape == furniture.BOX
    # A ball's own radius; from a box's middle to its corner; from a cylinder's to its rim.
    reach = jnp.where(is_box[:, None], scene.half, scene.half * jnp.array([1.0, 0.0, 1.0]))
    return Solids(
        shape=scene.shape,
        centre=scene.centre,
        turn=turn,
        to_local=turn / scene.half[:, :, None],
        radius=jnp.where(is_ball, scene.half.max(-1), jnp.sqrt((reach * reach).sum(-1))),
        exists=jnp.arange(MAX_PARTS) < scene.count,
    )


def _listed(mask: Bool[Array, "P"]) -> tuple[Int[Array, "P"], Int[Array, ""]]:
    """The indices where the mask holds, first, and how many there are."""
    return jnp.argsort(~mask, stable=True), mask.sum()


def _hit(shape, origin, x, y, z) -> tuple[Array, Array]:
    """Where rays enter and leave the unit solid; a ray misses if it leaves before it enters.

    Args:
      shape: [] int32.
      origin: [3] tuple of scalars or [n], in the solid's frame.
      x, y, z: [n] the rays' directions in the solid's frame.
    """

    def slab(o, d):
        inverse = 1.0 / jnp.where(jnp.abs(d) < 1e-9, 1e-9, d)
        a, b = (-1.0 - o) * inverse, (1.0 - o) * inverse
        return jnp.minimum(a, b), jnp.maximum(a, b)

    def ball(pairs):
        a = sum(d * d for _, d in pairs)
        b = sum(o * d for o, d in pairs)
        c = sum(o * o for o, _ in pairs) - 1.0
        square = b * b - a * c
        root = jnp.sqrt(jnp.maximum(square, 0.0))
        a = jnp.maximum(a, 1e-12)
        near, far = (-b - root) / a, (-b + root) / a
        return jnp.where(square > 0, near, jnp.inf), jnp.where(square > 0, far, -jnp.inf)

    ox, oy, oz = origin

    def box():
        (ax, bx), (ay, by), (az, bz) = slab(ox, x), slab(oy, y), slab(oz, z)
        return jnp.maximum(jnp.maximum(ax, ay), az), jnp.minimum(jnp.minimum(bx, by), bz)

    def cylinder():
        (a, b), (az, bz) = ball([(ox, x), (oy, y)]), slab(oz, z)
        return jnp.maximum(a, az), jnp.minimum(b, bz)

    def ellipsoid():
        return ball([(ox, x), (oy, y), (oz, z)])

    return jax.lax.switch(shape, (box, cylinder, ellipsoid))


def _rotate(matrix, x, y, z):
    """matrix [3, 3] times the vectors (x, y, z), each [n]; rows 0 and 1 have no z, row 2 only z."""
    return (
        matrix[0, 0] * x + matrix[0, 1] * y,
        matrix[1, 0] * x + matrix[1, 1] * y,
        matrix[2, 2] * z,
    )


def first_hit(scene: Scene, solids: Solids, rays: Float[Array, "3 n"], mask):
    """The nearest surface along rays from the camera: t [n] and the surface's index [n]."""
    order, count = _listed(mask)
    x, y, z = rays
    # The shell, from inside: the nearest of the planes that the ray runs towards.
    t = jnp.full_like(x, jnp.inf)
    surface = jnp.zeros(x.shape, jnp.int32)
    for axis, d in enumerate(rays):
        for side, plane in enumerate((0.0, scene.room[axis])):
            ahead = d > 0 if side else d < 0
            at = jnp.where(ahead, (plane - scene.position[axis]) / jnp.where(ahead, d, 1), jnp.inf)
            surface = jnp.where(at < t, MAX_PARTS + 2 * axis + side, surface)
            t = jnp.minimum(at, t)

    def body(i, state):
        t, surface = state
        part = order[i]
        matrix = solids.to_local[part]
        origin = _rotate(matrix, *(scene.position - solids.centre[part]))
        near, far = _hit(solids.shape[part], origin, *_rotate(matrix, x, y, z))
        closer = (near <= far) & (near > EPSILON) & (near < t)
        return jnp.where(closer, near, t), jnp.where(closer, part, surface)

    return jax.lax.fori_loop(0, count, body, (t, surface))


def in_sight(solids: Solids, points: Float[Array, "3 n"], to_light: Float[Array, "3 n"], mask):
    """Whether something stands between points and their lights: 1.0 is lit, [n]."""
    order, count = _listed(mask)
    x, y, z = to_light

    def body(i, lit):
        part = order[i]
        matrix, centre = solids.to_local[part], solids.centre[part]
        origin = _rotate(matrix, *(points - centre[:, None]))
        near, far = _hit(solids.shape[part], origin, *_rotate(matrix, x, y, z))
        blocked = (near <= far) & (far > EPSILON) & (near < 1.0)
        return jnp.where(blocked, 0.0, lit)

    return jax.lax.fori_loop(0, count, body, jnp.ones_like(x))
