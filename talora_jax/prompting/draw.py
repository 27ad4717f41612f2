"""Random prompts for training, drawn on the device: clicks, boxes, corrective clicks.

Source: the training of Segment Anything (Kirillov et al. 2023, appendix A, "Training algorithm").
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from talora_jax.models.prompt_encoder import (
    ABSENT,
    BACKGROUND,
    FOREGROUND,
    LOWER_RIGHT,
    NOT_A_POINT,
    UPPER_LEFT,
)

# A box moves by a normal of this part of its side, by so much of the image's side at the most.
BOX_NOISE = 0.1
MAX_BOX_NOISE = 20 / 1024


class Prompts(NamedTuple):
    """Prompts of masks, as `Sam.decode` takes them; a box is its two corners.

    Attributes:
      points: (x, y) in pixels of the padded image.
      labels: what each point is, see `models.prompt_encoder`.
    """

    points: Float[Array, "*b n 2"]
    labels: Int[Array, "*b n"]


def random_pixel(
    key: Key[Array, ""], region: Bool[Array, "*b Y X"]
) -> tuple[Float[Array, "*b 2"], Bool[Array, "*b"]]:
    """The column and row of a pixel drawn evenly from each region, and whether it has any."""
    # First a row, by how much of the region it has, then a pixel of it: two short sums, where
    # noise for all pixels would be the most expensive part of a step.
    rows = jnp.cumsum(region.sum(-1), axis=-1)
    total = rows[..., -1]
    wanted = jnp.floor(jax.random.uniform(key, total.shape) * total).astype(rows.dtype)
    wanted = jnp.minimum(wanted, jnp.maximum(total - 1, 0))
    row = jnp.minimum((rows <= wanted[..., None]).sum(-1), region.shape[-2] - 1)
    before = jnp.where(row > 0, _take(rows, jnp.maximum(row - 1, 0)), 0)
    pixels = jnp.take_along_axis(region, row[..., None, None], axis=-2)[..., 0, :]
    columns = jnp.cumsum(pixels, axis=-1)
    column = jnp.minimum((columns <= (wanted - before)[..., None]).sum(-1), region.shape[-1] - 1)
    return jnp.stack([column, row], axis=-1).astype(jnp.float32), total > 0


def box_of(mask: Bool[Array, "*b Y X"]) -> Float[Array, "*b 4"]:
    """The edges x0, y0, x1, y1 of the smallest box around each mask; zeros around none."""

    def span(there):
        length = there.shape[-1]
        first = jnp.argmax(there, axis=-1)
        last = length - jnp.argmax(there[..., ::-1], axis=-1)
        some = there.any(-1)
        return jnp.where(some, first, 0), jnp.where(some, last, 0)

    x0, x1 = span(mask.any(-2))
    y0, y1 = span(mask.any(-1))
    return jnp.stack([x0, y0, x1, y1], axis=-1).astype(jnp.float32)


def noisy_box(key: Key[Array, ""], box: Float[Array, "*b 4"], side: int) -> Float[Array, "*b 4"]:
    """A box that somebody drew by hand around what it should hold, in an image of this side."""
    sides = jnp.concatenate([box[..., 2:] - box[..., :2]] * 2, axis=-1)
    most = MAX_BOX_NOISE * side
    noise = jnp.clip(jax.random.normal(key, box.shape) * BOX_NOISE * sides, -most, most)
    return jnp.clip(box + noise, 0, side)


def click_prompt(xy: Float[Array, "*b 2"]) -> Prompts:
    """One click on each object; beside it the point that says that there is no box, as in SAM."""
    points = jnp.stack([xy, jnp.zeros_like(xy)], axis=-2)
    labels = jnp.broadcast_to(jnp.array([FOREGROUND, NOT_A_POINT]), points.shape[:-1])
    return Prompts(points, labels)


def box_prompt(box: Float[Array, "*b 4"]) -> Prompts:
    """A box around each object."""
    points = box.reshape(*box.shape[:-1], 2, 2)
    labels = jnp.broadcast_to(jnp.array([UPPER_LEFT, LOWER_RIGHT]), points.shape[:-1])
    return Prompts(points, labels)


def first_prompts(key: Key[Array, ""], masks: Bool[Array, "*b Y X"], side: int) -> Prompts:
    """For each mask a click in it or a noisy box around it, with equal chance."""
    coin, click_key, box_key = jax.random.split(key, 3)
    # A click lies where the pixel begins: half a pixel on is its centre, which the prompt encoder
    # adds. A box has the edges themselves.
    click = click_prompt(random_pixel(click_key, masks)[0])
    box = box_prompt(noisy_box(box_key, box_of(masks), side))
    is_box = jax.random.bernoulli(coin, shape=masks.shape[:-2])
    return Prompts(
        jnp.where(is_box[..., None, None], box.points, click.points),
        jnp.where(is_box[..., None], box.labels, click.labels),
    )


def corrective_click(
    key: Key[Array, ""],
    answer: Bool[Array, "*b y x"],
    mask: Bool[Array, "*b y x"],
    inside: Bool[Array, "*#b y x"],
    stride: int,
) -> tuple[Float[Array, "*b 2"], Int[Array, "*b"]]:
    """A click where an answer is wrong, and its label; ABSENT where nothing is.

    Args:
      answer, mask: what is said to be the object, and what is.
      inside: which pixels show the image and not its padding.
      stride: pixels of the padded image to one of these.
    """
    wrong = (answer != mask) & inside
    xy, exists = random_pixel(key, wrong)
    column, row = xy[..., 0].astype(int), xy[..., 1].astype(int)
    missed = jnp.take_along_axis(mask, row[..., None, None], axis=-2)[..., 0, :]
    missed = _take(missed, column)
    label = jnp.where(missed, FOREGROUND, BACKGROUND)
    # The middle of the pixel's `stride` pixels, half a pixel back, for the prompt encoder adds it.
    return (xy + 0.5) * stride - 0.5, jnp.where(exists, label, ABSENT)


def with_room(prompts: Prompts, clicks: int) -> Prompts:
    """The prompts, and as many points that are not there yet."""
    more = [(0, 0)] * (prompts.labels.ndim - 1) + [(0, clicks)]
    return Prompts(
        jnp.pad(prompts.points, [*more, (0, 0)]),
        jnp.pad(prompts.labels, more, constant_values=ABSENT),
    )


def with_click(
    prompts: Prompts, place: Int[Array, ""] | int, xy: Float[Array, "*b 2"], label: Int[Array, "*b"]
) -> Prompts:
    """The prompts with a click at a place among their points."""
    return Prompts(
        prompts.points.at[..., place, :].set(xy), prompts.labels.at[..., place].set(label)
    )


def _take(x: Array, index: Int[Array, "*b"]) -> Array:
    return jnp.take_along_axis(x, index[..., None], axis=-1)[..., 0]
