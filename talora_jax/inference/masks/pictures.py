"""One picture of the masks of an image, with outlines; of named ones with their classes."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image, ImageDraw

from talora_jax.inference.masks.automatic import FoundMask
from talora_jax.inference.masks.named import NamedMask, numbered
from talora_jax.tasks import Semantic, palette
from talora_jax.tasks.drawn_legends import drawn_legend, font

# The longer side of the image and of its masks beside it, the space around them, and how much of
# a mask's colour there is in it.
_SIDE, _GAP, _TINT = 640, 12, 0.55
# A thing of a smaller part of the picture has no words on it.
_LEAST_WITH_WORDS = 0.01


def picture_of_masks(
    image: UInt8[np.ndarray, "H W 3"],
    found: Sequence[FoundMask],
    named: tuple[Sequence[NamedMask], Semantic] | None = None,
) -> Image.Image:
    """The image, and beside it its masks, the smallest on top; below them their classes.

    Args:
      found: masks of the image.
      named: the same masks with their names, and the task that these are of: masks then have the
        colours of their classes, and otherwise each its own.
    """
    scale = _SIDE / max(image.shape[:2])
    height, width = (max(1, round(side * scale)) for side in image.shape[:2])
    photo = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
    numbers = Image.fromarray(numbered(found, image.shape[:2]))
    numbers = np.asarray(numbers.resize((width, height), Image.Resampling.NEAREST))
    colours = palette(len(found))
    if named is not None:
        masks, task = named
        colours = task.colours()[[mask.label for mask in masks]]
    # Number 0 is no mask, and keeps the photo.
    tints = np.concatenate([np.zeros((1, 3)), colours])[numbers]
    tinted = np.where(
        numbers[..., None] > 0, _TINT * tints + (1 - _TINT) * np.asarray(photo), photo
    )
    tinted[_outlines(numbers)] = 255
    drawn = Image.fromarray(tinted.astype(np.uint8))
    legend = None
    if named is not None:
        _write(drawn, numbers, masks)
        labels = np.array([-1, *(mask.label for mask in masks)])[numbers]
        legend = task.legend(labels[None, labels >= 0])
    below = drawn_legend(legend)
    canvas = Image.new(
        "RGB", (2 * width + 3 * _GAP, height + 2 * _GAP + below.height), color="white"
    )
    canvas.paste(photo, (_GAP, _GAP))
    canvas.paste(drawn, (width + 2 * _GAP, _GAP))
    canvas.paste(below, (width + 2 * _GAP, _GAP + height))
    return canvas


def _outlines(numbers: Int32[np.ndarray, "H W"]) -> np.ndarray:
    """Where the pixel to the right or below is another's."""
    edges = np.zeros(numbers.shape, bool)
    edges[:, :-1] |= numbers[:, :-1] != numbers[:, 1:]
    edges[:-1] |= numbers[:-1] != numbers[1:]
    return edges


def _write(
    drawn: Image.Image, numbers: Int32[np.ndarray, "H W"], masks: Sequence[NamedMask]
) -> None:
    """What a mask is, and how far away, in the middle of what is seen of it."""
    draw = ImageDraw.Draw(drawn)
    for number, mask in enumerate(masks, 1):
        y, x = np.nonzero(numbers == number)
        if len(x) < _LEAST_WITH_WORDS * numbers.size:
            continue
        # Of its pixels the nearest to their mean, which may lie beside it.
        middle = np.hypot(x - x.mean(), y - y.mean()).argmin()
        words = mask.name if mask.depth is None else f"{mask.name}\n{mask.depth:.1f} m"
        draw.multiline_text(
            (int(x[middle]), int(y[middle])),
            words,
            fill="white",
            font=font(),
            anchor="mm",
            align="center",
            stroke_width=2,
            stroke_fill="black",
        )
