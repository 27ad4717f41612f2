"""Pictures of prompts and answers: what evaluation leaves to look at."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw

from talora_jax.tasks import palette

_MARGIN, _HEADER = 4, 16
_SCALE = 2  # prompts are thin
# masks, boxes, answers to them, clicks, answers to them; M of each
Drawn = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def panel(
    image: UInt8[np.ndarray, "Y X 3"], size: tuple[int, int], drawn: Mapping[str, Drawn]
) -> UInt8[np.ndarray, "y x 3"]:
    """masks | box → answers | click → answers, one row per domain.

    Args:
      image: RGB, padded.
      size: H, W of what is no padding.
      drawn: by domain.
    """
    height, width = (_SCALE * side for side in size)
    canvas = Image.new(
        "RGB",
        (3 * (width + _MARGIN) + _MARGIN, len(drawn) * (height + _HEADER) + _MARGIN),
        "white",
    )
    draw = ImageDraw.Draw(canvas)
    pixels = image[: size[0], : size[1]]
    for row, (domain, (masks, boxes, by_box, clicks, by_click)) in enumerate(drawn.items()):
        # The largest first: what lies on it stays in sight.
        order = np.argsort(-masks.sum((-2, -1)))
        columns = {
            f"{domain}: masks": (masks, None, None),
            f"{domain}: from boxes": (by_box, boxes, None),
            f"{domain}: from one click": (by_click, None, clicks),
        }
        for column, (title, (shown, around, at)) in enumerate(columns.items()):
            picture = _shown(pixels, shown[order][:, : size[0], : size[1]])
            if around is not None:
                _draw_boxes(picture, around[order])
            if at is not None:
                _draw_clicks(picture, at[order])
            x, y = _MARGIN + column * (width + _MARGIN), row * (height + _HEADER)
            draw.text((x, y + 2), title, fill="black")
            canvas.paste(picture, (x, y + _HEADER))
    return np.asarray(canvas)


def _shown(pixels: UInt8[np.ndarray, "H W 3"], masks: Bool[np.ndarray, "M H W"]) -> Image.Image:
    """An image under half-transparent masks."""
    shown = pixels.astype(np.float32)
    for mask, colour in zip(masks, palette(len(masks)), strict=True):
        shown[mask] = 0.45 * shown[mask] + 0.55 * colour
    picture = Image.fromarray(shown.astype(np.uint8))
    return picture.resize([_SCALE * side for side in picture.size], Image.Resampling.NEAREST)


def _draw_boxes(picture: Image.Image, boxes: Float[np.ndarray, "M 4"]) -> None:
    draw = ImageDraw.Draw(picture)
    for box, colour in zip(boxes, palette(len(boxes)), strict=True):
        draw.rectangle([float(_SCALE * edge) for edge in box], outline=tuple(map(int, colour)))


def _draw_clicks(picture: Image.Image, clicks: Float[np.ndarray, "M 2"]) -> None:
    draw = ImageDraw.Draw(picture)
    for click, colour in zip(clicks, palette(len(clicks)), strict=True):
        x, y = (float(_SCALE * (at + 0.5)) for at in click)
        draw.ellipse((x - 4, y - 4, x + 4, y + 4), fill=tuple(map(int, colour)), outline="white")
