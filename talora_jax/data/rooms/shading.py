"""From what was hit to what the camera records: texture, light and shadow, exposure, noise."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt8

from talora_jax.data.rooms.rays import EPSILON, Solids, in_sight
from talora_jax.data.rooms.scene import MAX_PARTS, Scene
from talora_jax.data.rooms.textures import albedo, hashed

# Points of a lamp, -1 to 1: for each of a pixel's two samples, and for a pixel among 2 x 2.
_HALVES = np.array([(0.5, -0.5), (0.5, -0.5), (-0.5, 0.5)], np.float32)
_MOSAIC = 0.4 * np.array([(1, 1, -1, -1), (-1, 1, -1, 1), (1, -1, -1, 1)], np.float32)
_BASEBOARD = 0.08


def shade(scene: Scene, solids: Solids, surface, points, rays, normal, local, span):
    """Linear RGB of samples [n, 3]: ambient light, lamps with shadows, gloss, glow."""
    material = jnp.concatenate(
        [
            scene.colour_a,
            scene.colour_b,
            jnp.stack([scene.scale, scene.emission, scene.gloss, scene.phase], -1),
        ],
        -1,
    )[surface]
    a, b = material[:, :3], material[:, 3:6]
    scale, emission, gloss, phase = material[:, 6:].T
    # The face's own plane: u along it, v up it (or y on a level face).
    is_shell = surface >= MAX_PARTS
    level = jnp.abs(normal[2]) > 0.7
    side = jnp.abs(local[0] / span[0]) > jnp.abs(local[1] / span[1])
    u = jnp.where(level | ~side, local[0], local[1])
    v = jnp.where(level, local[1], local[2])
    half_u = jnp.where(level | ~side, span[0], span[1])
    half_v = jnp.where(level, span[1], span[2])
    surface_colour = albedo(
        scene.texture[surface], u, v, u / half_u, v / half_v, ~level, a, b, scale, phase
    )
    board = is_shell & ~level & (points[2] < _BASEBOARD)
    surface_colour = jnp.where(board[:, None], 0.55, surface_colour)

    # Ambient light: more from above, less in corners and near the floor.
    up = 0.8 + 0.2 * normal[2]
    occlusion = jnp.ones_like(up)
    for k in range(3):
        for plane in (0.0, scene.room[k]):
            facing = 1.0 - jnp.abs(normal[k])
            distance = jnp.abs(points[k] - plane)
            occlusion *= 1.0 - 0.4 * facing * jnp.exp(-distance / 0.25)
    light = scene.ambient * (up * occlusion)[:, None]

    view = -rays / jnp.sqrt((rays * rays).sum(0))
    shine = jnp.zeros_like(light)
    # Where the ray starts: a little off the surface.
    start = points + 2 * EPSILON * normal
    for lamp in zip(scene.light_position, scene.light_colour, scene.light_size, strict=True):
        power, glint = _lamp(scene, solids, lamp, start, normal, view)
        light += power
        shine += gloss[:, None] * glint
    return surface_colour * (light + emission[:, None]) + shine


def _lamp(scene: Scene, solids: Solids, lamp, points, normal, view):
    """What a lamp sends to points: matt and mirrored light, each [n, 3]."""
    position, colour, size = lamp
    n = points.shape[1]
    # A pixel's samples look at two points of a lamp, and its neighbours at others, in a pattern
    # that repeats every two pixels: soft shadows without grain.
    side = int((n // 2) ** 0.5)
    mosaic = np.tile(_MOSAIC.reshape(3, 2, 2), (1, side // 2, side // 2)).reshape(3, 1, -1)
    jitter = jnp.asarray((_HALVES[:, :, None] + mosaic).reshape(3, -1))

    def shone():
        to_light = position[:, None] - points
        square = (to_light * to_light).sum(0)
        direction = to_light / jnp.sqrt(square)
        # Solids that meet the bundle of rays: a cone from a ball around the points to the lamp's.
        middle = points.mean(1)
        reach = jnp.sqrt(((points - middle[:, None]) ** 2).sum(0)).max()
        lamp_reach = np.sqrt(3) * size.max()
        length = jnp.linalg.norm(position - middle)
        taper = jnp.clip((reach - lamp_reach) / length, -1.0, 1.0)
        away = solids.centre - middle
        along = away @ (position - middle) / length
        across = jnp.sqrt(jnp.maximum((away * away).sum(-1) - along * along, 0.0))
        gap = across * jnp.sqrt(1 - taper * taper) + along * taper - reach
        near = solids.exists & scene.casts & (gap <= solids.radius)
        near &= (along >= -reach - solids.radius) & (along <= length + lamp_reach + solids.radius)
        lit = in_sight(solids, points, to_light + size[:, None] * jitter, near)
        facing = jnp.maximum((normal * direction).sum(0), 0.0)
        between = direction + view
        between /= jnp.sqrt((between * between).sum(0))
        glint = 2.0 * jnp.maximum((normal * between).sum(0), 0.0) ** 60
        power = colour * (lit / (0.7 + square))[:, None]
        return power * facing[:, None], power * glint[:, None]

    dark = jnp.zeros((n, 3))
    return jax.lax.cond(colour.max() > 0, shone, lambda: (dark, dark))


def develop(scene: Scene, light: Float[Array, "H W 3"]) -> UInt8[Array, "H W 3"]:
    """Light to pixels: lens blur, exposure, vignette, white balance, tone curve, noise."""
    height, width = light.shape[:2]
    padded = jnp.pad(jnp.minimum(light, 4.0), ((1, 1), (1, 1), (0, 0)), mode="edge")
    light = 0.2 * (padded[:-2] + padded[2:]) + 0.6 * padded[1:-1]
    light = 0.2 * (light[:, :-2] + light[:, 2:]) + 0.6 * light[:, 1:-1]
    # Exposure by the mean of the logarithm, as cameras meter.
    bright = jnp.exp(jnp.log(light.mean(-1) + 0.01).mean())
    light = light * (0.24 * scene.exposure / bright) * scene.tint
    v, u = jnp.meshgrid(jnp.linspace(-1, 1, height), jnp.linspace(-1, 1, width), indexing="ij")
    light = light * (1 - scene.vignette * (u * u + v * v) / 2)[..., None]
    # Highlights roll off instead of clipping.
    light = light * (1 + light / 9.0) / (1 + light)
    value = jnp.clip(light * 1.35, 0.0, 1.0) ** (1 / 2.2)
    # The sum of two uniform values is near enough to a sensor's normal noise.
    count = jnp.arange(value.size).reshape(value.shape)
    uniform = [hashed(count, jnp.full_like(count, 0) + word) for word in scene.key]
    value = value + scene.noise * np.sqrt(6) * (uniform[0] + uniform[1] - 1)
    return jnp.clip(jnp.round(255 * value), 0, 255).astype(jnp.uint8)
