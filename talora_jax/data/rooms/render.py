"""The ray caster: a `Scene` in, an image and exact labels out, as one jitted program.

The image is cut into square tiles. A tile tests only the solids whose bounding sphere its cone of
rays meets, and its shadow rays only those near the bundle from the tile to the light. Labels are
those of the ray through a pixel's centre; the image averages two rays per pixel and
blurs them as a lens does.

Edges are defined on the pixel grid: a pixel is an edge if, against one of its four neighbours,
the instance differs, or the semantic class differs, or the normals differ by more than 30 degrees,
or the neighbour's point lies more than 5 cm off the plane through the pixel's point along its
normal. Both pixels of such a pair are edges unless only the (asymmetric) plane test holds.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from talora_jax.data.rooms import furniture
from talora_jax.data.rooms.rays import Solids, first_hit, solids_of
from talora_jax.data.rooms.scene import MAX_PARTS, Scene
from talora_jax.data.rooms.shading import develop, shade

TILE = 32
# Where in a pixel the rays go: the centre for the labels, then two for the image.
_SAMPLES = np.array([(0.5, 0.5), (0.25, 0.75), (0.75, 0.25)], np.float32)


def render(scene: Scene, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Renders a frame.

    Args:
      scene: from `scene.random_scene`.
      size: H, W.

    Returns:
      image uint8 [H, W, 3]; semantic int32 [H, W]; depth float32 [H, W, 1] in metres along the
      camera's axis; normals float32 [H, W, 3], unit, camera frame (x right, y down, z forward);
      edges float32 [H, W, 1], 0 or 1; instance int32 [H, W]; part int32 [H, W], which is the
      number of the solid, or MAX_PARTS and more for a side of the room.
    """
    with jax.default_device(_cpu()):
        frame = _render(scene, tuple(size))
        return {name: np.asarray(value) for name, value in frame.items()}


def _cpu() -> jax.Device | None:
    """The CPU, so that frames do not depend on the accelerator, if JAX was given the CPU."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return None


@functools.partial(jax.jit, static_argnums=1)
def _render(scene: Scene, size: tuple[int, int]) -> dict[str, Array]:
    height, width = size
    rows, columns = -(-height // TILE), -(-width // TILE)
    solids = solids_of(scene)

    def tile(index):
        corner = jnp.stack([index % columns, index // columns]) * TILE
        return _render_tile(scene, solids, corner.astype(jnp.float32), width, height)

    tiles = jax.lax.map(tile, jnp.arange(rows * columns))

    def assemble(value):
        value = value.reshape(rows, columns, TILE, TILE, -1).swapaxes(1, 2)
        return value.reshape(rows * TILE, columns * TILE, -1)[:height, :width]

    frame = {name: assemble(value) for name, value in tiles.items()}
    for name in ("semantic", "instance", "part"):
        frame[name] = frame[name][..., 0]
    frame["edges"] = _edges(frame, scene.focal * width)
    frame["image"] = develop(scene, frame.pop("light"))
    return frame


def _render_tile(scene: Scene, solids: Solids, corner, width: int, height: int):
    """One tile: light [TILE², 3] and the labels of its pixels."""
    focal = scene.focal * width
    grid = jnp.stack(jnp.meshgrid(jnp.arange(TILE), jnp.arange(TILE), indexing="xy"), 0)
    pixel = grid.reshape(2, 1, -1) + jnp.asarray(_SAMPLES).T[:, :, None] + corner[:, None, None]
    flat = (pixel - jnp.array([width / 2, height / 2])[:, None, None]) / focal  # [2, 3, n]
    flat = flat.reshape(2, -1)
    # With 1 along the camera's axis, t is the depth.
    rays = jnp.stack([*flat, jnp.ones(flat.shape[1])])
    world = jnp.einsum("ci,cn->in", scene.axes, rays, precision="highest")

    # Which solids the tile's cone meets.
    axis = jnp.append((corner + TILE / 2 - jnp.array([width / 2, height / 2])) / focal, 1.0)
    axis /= jnp.linalg.norm(axis)
    cosine = ((axis @ rays) / jnp.linalg.norm(rays, axis=0)).min()
    sine = jnp.sqrt(1 - cosine * cosine)
    away = solids.centre - scene.position
    along = away @ (axis @ scene.axes)
    across = jnp.sqrt(jnp.maximum((away * away).sum(-1) - along * along, 0.0))
    meets = (across * cosine - along * sine) <= solids.radius
    mask = solids.exists & meets & (along > -solids.radius)

    t, surface = first_hit(scene, solids, world, mask)
    points = scene.position[:, None] + t * world
    n = TILE * TILE
    normal, local, span = _surface_frame(scene, surface, points)

    labels = {
        "depth": t[:n],
        "normals": jnp.einsum("ci,in->nc", scene.axes, normal[:, :n], precision="highest"),
        "semantic": scene.semantic[surface[:n]],
        "instance": scene.instance[surface[:n]],
        "part": surface[:n],
    }
    samples = (value[:, n:] for value in (points, world, normal, local, span))
    light = shade(scene, solids, surface[n:], *samples)
    return labels | {"light": light.reshape(2, n, 3).mean(0)}


def _surface_frame(scene: Scene, surface, points):
    """World normals, and the points and half-sizes in the frame of what was hit; each [3, n]."""
    is_shell = surface >= MAX_PARTS
    part = jnp.minimum(surface, MAX_PARTS - 1)
    table = jnp.concatenate(
        [scene.centre, scene.half, scene.heading, scene.shape[:, None].astype(jnp.float32)], -1
    )[part].T
    centre, half, (c, s), shape = table[:3], table[3:6], table[6:8], table[8]
    x, y, z = points - centre
    local = jnp.stack([c * x + s * y, c * y - s * x, z])
    unit = local / half

    # The face of a box, or of a cylinder's end, is where the unit coordinate is largest.
    size = jnp.abs(unit)
    top = jnp.maximum(jnp.maximum(size[0], size[1]), size[2])
    axis = jnp.where(size[2] == top, 2, jnp.where(size[1] == top, 1, 0))
    sign = jnp.sign(unit)
    flat = jnp.stack([sign[k] * (axis == k) for k in range(3)])
    round_ = unit / half
    side = jnp.stack([round_[0], round_[1], jnp.zeros_like(z)])
    end = size[2] >= jnp.sqrt(unit[0] ** 2 + unit[1] ** 2)
    cap = jnp.stack([0 * z, 0 * z, sign[2]])
    out = jnp.where(shape == furniture.CYLINDER, jnp.where(end, cap, side), flat)
    out = jnp.where(shape == furniture.ELLIPSOID, round_, out)
    out = out / jnp.sqrt((out * out).sum(0))
    normal = jnp.stack([c * out[0] - s * out[1], s * out[0] + c * out[1], out[2]])

    index = surface - MAX_PARTS
    inward = jnp.where(index % 2 == 0, 1.0, -1.0)
    shell = jnp.stack([inward * (index // 2 == k) for k in range(3)])
    room = scene.room[:, None] / 2
    return (
        jnp.where(is_shell, shell, normal),
        jnp.where(is_shell, points - room, local),
        jnp.where(is_shell, room, half),
    )


def _edges(frame: dict[str, Array], focal) -> Float[Array, "H W 1"]:
    """Where objects, classes, orientation or distance change; see the module's text."""
    depth, normals = frame["depth"], frame["normals"]
    height, width = depth.shape[:2]
    v, u = jnp.meshgrid(jnp.arange(height) + 0.5, jnp.arange(width) + 0.5, indexing="ij")
    rays = jnp.stack([(u - width / 2) / focal, (v - height / 2) / focal, jnp.ones_like(u)], -1)
    points = depth * rays
    edge = jnp.zeros((height, width), bool)
    for axis in (0, 1):

        def ends(value, axis=axis):
            length = value.shape[axis]
            return (
                jax.lax.slice_in_dim(value, 0, length - 1, axis=axis),
                jax.lax.slice_in_dim(value, 1, length, axis=axis),
            )

        (normal, normal2), (point, point2) = ends(normals), ends(points)
        both = (normal * normal2).sum(-1) < np.cos(np.pi / 6)
        for label in ("instance", "semantic"):
            one, other = ends(frame[label])
            both |= one != other
        step = point2 - point
        first = both | (jnp.abs((normal * step).sum(-1)) > 0.05)
        second = both | (jnp.abs((normal2 * step).sum(-1)) > 0.05)
        before, after = [(0, 0), (0, 0)], [(0, 0), (0, 0)]
        before[axis], after[axis] = (0, 1), (1, 0)
        edge |= jnp.pad(first, before) | jnp.pad(second, after)
    return edge[..., None].astype(jnp.float32)
