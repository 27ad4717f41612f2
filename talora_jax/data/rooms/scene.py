"""A room as arrays for the ray caster: solids, surfaces, lights, camera and sensor.

A scene is a pure function of (seed, split, frame). World frame: x and y along the floor, z up,
metres, with one corner of the room at the origin.
"""

from typing import NamedTuple

import numpy as np

from talora_jax.data.nyuv2_classes import CLASS_NAMES
from talora_jax.data.rooms import materials
from talora_jax.data.rooms.layout import SHELL, Layout

# Room for solids in the padded arrays; a fuller room is drawn anew.
MAX_PARTS = 224
MAX_LIGHTS = 3
# Kinect's focal length: 519 pixels for an image of 640.
FOCAL = 519 / 640

_SPLITS = {"train": 0, "val": 1}


class Scene(NamedTuple):
    """A room as arrays, the solids padded to P = MAX_PARTS; a surface is a solid or a shell side.

    Solids: shape [P] int32 (furniture.BOX, ...), centre and half [P, 3], heading [P, 2] (cosine
    and sine of the turn about z), casts [P] bool (throws a shadow), count [] int32.
    Surfaces, [P + 6]: semantic and instance int32; texture int32; colour_a, colour_b [., 3];
    scale, emission, gloss, phase. The shell's sides follow the solids, in the order of SHELL.
    Room: room [3] (width, depth, height). Lights: light_position, light_colour [MAX_LIGHTS, 3],
    light_size [MAX_LIGHTS, 3] (half extents); unused ones are black. ambient [3].
    Camera: position [3], axes [3, 3] (rows: right, down, forward), focal [] (of a width of 1).
    Sensor: exposure, noise, vignette [], tint [3], key [2] int32.
    """

    count: np.ndarray
    shape: np.ndarray
    centre: np.ndarray
    half: np.ndarray
    heading: np.ndarray
    casts: np.ndarray
    semantic: np.ndarray
    instance: np.ndarray
    texture: np.ndarray
    colour_a: np.ndarray
    colour_b: np.ndarray
    scale: np.ndarray
    emission: np.ndarray
    gloss: np.ndarray
    phase: np.ndarray
    room: np.ndarray
    light_position: np.ndarray
    light_colour: np.ndarray
    light_size: np.ndarray
    ambient: np.ndarray
    position: np.ndarray
    axes: np.ndarray
    focal: np.ndarray
    exposure: np.ndarray
    noise: np.ndarray
    vignette: np.ndarray
    tint: np.ndarray
    key: np.ndarray


def random_scene(seed: int, split: str, frame: int) -> Scene:
    """The scene of one frame.

    Args:
      seed: of the data set, not negative.
      split: 'train' or 'val'; no room is in both.
      frame: index within the split, not negative.
    """
    rng = np.random.default_rng((seed, _SPLITS[split], frame))
    while True:
        layout = Layout(rng)
        layout.furnish()
        camera = layout.camera()
        if camera is not None and len(layout.parts) <= MAX_PARTS:
            return _pack(layout, *look(*camera))


def look(position, yaw: float, pitch: float, roll: float) -> tuple[np.ndarray, np.ndarray]:
    """A camera at `position` [3]: heading `yaw` from x to y, `pitch` up, `roll` clockwise; radians.

    Returns:
      position [3] and axes [3, 3] (rows: right, down, forward).
    """
    forward = np.array([np.cos(yaw) * np.cos(pitch), np.sin(yaw) * np.cos(pitch), np.sin(pitch)])
    right = np.array([np.sin(yaw), -np.cos(yaw), 0.0])
    down = np.cross(forward, right)
    c, s = np.cos(roll), np.sin(roll)
    return np.asarray(position, np.float64), np.stack(
        [c * right + s * down, c * down - s * right, forward]
    )


def _pack(layout: Layout, position: np.ndarray, axes: np.ndarray) -> Scene:
    """The layout as arrays, with its lights and a sensor."""
    rng = layout.rng
    count, surfaces = len(layout.parts), MAX_PARTS + len(SHELL)
    f32, i32 = np.float32, np.int32
    shape = np.zeros(MAX_PARTS, i32)
    centre, half = np.zeros((MAX_PARTS, 3), f32), np.ones((MAX_PARTS, 3), f32)
    heading, casts = np.tile(np.array([1, 0], f32), (MAX_PARTS, 1)), np.zeros(MAX_PARTS, bool)
    semantic, instance = np.zeros(surfaces, i32), np.zeros(surfaces, i32)
    for i, placed in enumerate(layout.parts):
        part = placed.part
        shape[i], centre[i], half[i] = part.shape, placed.centre, part.half
        heading[i] = np.cos(placed.yaw), np.sin(placed.yaw)
        casts[i] = part.material.emission < 0.9 or part.label == "window"
        semantic[i], instance[i] = CLASS_NAMES.index(part.label), placed.instance
    semantic[MAX_PARTS:] = [CLASS_NAMES.index(label) for label in SHELL]
    instance[MAX_PARTS:] = range(len(SHELL))
    made_of = [placed.part.material for placed in layout.parts]
    made_of += [materials.WHITE] * (MAX_PARTS - count) + layout.shell

    lights = []
    daylight = layout.daylight
    lamp_on = daylight < 0.1 or rng.random() < 0.6
    warm = np.array(materials.hsv(rng.uniform(0.08, 0.13), rng.uniform(0.05, 0.3), 1.0))
    if lamp_on:
        for lamp in layout.lamps:
            lights.append((lamp, 2.6 * warm * rng.uniform(0.7, 1.3), np.full(3, 0.12)))
    cool = np.array(materials.hsv(rng.uniform(0.55, 0.62), rng.uniform(0.0, 0.15), 1.0))
    if daylight > 0.1:
        for middle, inward in layout.windows:
            power = 1.8 * daylight * rng.uniform(0.8, 1.2)
            # A lamp as flat as the window, a little inside.
            size = 0.4 * (1.0 - np.abs(inward))
            lights.append((middle + 0.25 * inward, power * cool, size))
    lights = lights[:MAX_LIGHTS]
    light_position = np.tile(np.array(layout.room / 2, f32), (MAX_LIGHTS, 1))
    light_colour, light_size = np.zeros((2, MAX_LIGHTS, 3), f32)
    for i, (where, colour, size) in enumerate(lights):
        light_position[i], light_colour[i], light_size[i] = where, colour, size
    ambient = 0.23 * (warm if lamp_on else cool) * rng.uniform(0.7, 1.3)

    return Scene(
        count=i32(count),
        shape=shape,
        centre=centre,
        half=half,
        heading=heading,
        casts=casts,
        semantic=semantic,
        instance=instance,
        texture=np.array([m.texture for m in made_of], i32),
        colour_a=np.array([m.a for m in made_of], f32),
        colour_b=np.array([m.b for m in made_of], f32),
        scale=np.array([m.scale for m in made_of], f32),
        emission=np.array([m.emission for m in made_of], f32),
        gloss=np.array([m.gloss for m in made_of], f32),
        # One phase per instance: a table's parts share it, two tables do not.
        phase=(
            np.random.default_rng(int(rng.integers(2**31))).uniform(0, 100, 1024)[instance]
        ).astype(f32),
        room=layout.room.astype(f32),
        light_position=light_position,
        light_colour=light_colour,
        light_size=light_size,
        ambient=ambient.astype(f32),
        position=position.astype(f32),
        axes=axes.astype(f32),
        focal=f32(FOCAL),
        exposure=f32(rng.uniform(0.7, 1.4)),
        noise=f32(rng.uniform(0.004, 0.014)),
        vignette=f32(rng.uniform(0.0, 0.25)),
        tint=rng.normal(1.0, 0.03, 3).astype(f32),
        key=rng.integers(2**31, size=2, dtype=i32),
    )
