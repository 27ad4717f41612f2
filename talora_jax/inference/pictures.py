"""One picture of all that a model sees in an image, with legends."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from talora_jax.arrays import in_words
from talora_jax.errors import UserError
from talora_jax.rgb import as_rgb
from talora_jax.tasks import Task
from talora_jax.tasks.legends import Bar, Key, Legend, Swatches

# The longer side of a tile, tiles in a row, and sizes of the text.
_TILE, _COLUMNS, _GAP = 360, 4, 12
_FONT_SIZE, _LINE = 13, 18


def picture(
    image: Image.Image | np.ndarray, prediction: Mapping[str, np.ndarray], tasks: Sequence[Task]
) -> Image.Image:
    """One picture of everything seen in an image: the image, and every task with its legend.

    >>> model = talora_jax.load("run")
    >>> photo = Image.open("photo.jpg")
    >>> picture = talora_jax.picture(photo, model.predict(photo), model.tasks)
    >>> picture.save("seen.png")

    Args:
      image: what was predicted on; see `rgb.as_rgb`.
      prediction: of this image, from `TrainedModel.predict`. Tasks that it lacks are left out.
      tasks: `model.tasks`.

    Raises:
      UserError: `as_rgb` refuses the image, or the prediction is not one of an image of its size.
    """
    if not isinstance(prediction, Mapping):
        raise UserError(
            f"a prediction: {in_words(prediction)}; expected the arrays by name that predict gives "
            "for one image"
        )
    rgb = as_rgb(image)
    tiles: list[tuple[str, np.ndarray, Legend | None]] = [("image", rgb, None)]
    for task in tasks:
        if task.name in prediction:
            output = prediction[task.name]
            if output.shape[:2] != rgb.shape[:2]:
                raise UserError(
                    f"{task.name} has the shape {list(output.shape)}, and the image "
                    f"{list(rgb.shape)}; expected the prediction of this image"
                )
            tiles.append((task.name, task.show(output), task.legend(output)))

    height, width = tiles[0][1].shape[:2]
    scale = _TILE / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    # A tall, narrow image leaves its legend the room of a whole tile.
    drawn = [
        (title, _fitted(pixels, size), drawn_legend(legend)) for title, pixels, legend in tiles
    ]
    columns = min(len(drawn), _COLUMNS)
    rows = [drawn[i : i + columns] for i in range(0, len(drawn), columns)]
    heights = [_LINE + size[1] + max(legend.height for *_, legend in row) + _GAP for row in rows]
    canvas = Image.new("RGB", (columns * (_TILE + _GAP) + _GAP, sum(heights) + _GAP), color="white")
    draw = ImageDraw.Draw(canvas)
    y = _GAP
    for row, row_height in zip(rows, heights, strict=True):
        for column, (title, tile, legend) in enumerate(row):
            x = _GAP + column * (_TILE + _GAP)
            draw.text((x, y), title, fill="black", font=font())
            canvas.paste(tile, (x, y + _LINE))
            canvas.paste(legend, (x, y + _LINE + size[1]))
        y += row_height
    return canvas


def _fitted(pixels: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]) -> Image.Image:
    # Boxes: when shrinking they keep thin edges, when growing they invent no colours.
    return Image.fromarray(pixels).resize(size, Image.Resampling.BOX)


def drawn_legend(legend: Legend | None) -> Image.Image:
    """A legend as wide as a tile."""
    match legend:
        case None:
            return Image.new("RGB", (_TILE, 1), "white")
        case Swatches():
            return _swatches(legend)
        case Bar():
            return _bar(legend)
        case Key():
            return _key(legend)


def _swatches(legend: Swatches) -> Image.Image:
    entries = [f"{n}  {100 * s:.0f} %" for n, s in zip(legend.names, legend.shares, strict=True)]
    widths = [int(font().getlength(entry)) + 2 * _LINE for entry in entries]
    # As in text: entries follow each other, and a line that is full is followed by another.
    places, x, y = [], 0, _GAP // 2
    for width in widths:
        if x and x + width > _TILE:
            x, y = 0, y + _LINE
        places.append((x, y))
        x += width
    canvas = Image.new("RGB", (_TILE, y + _LINE), "white")
    draw = ImageDraw.Draw(canvas)
    for (x, y), entry, colour in zip(places, entries, legend.colours, strict=True):
        box = (x, y + 2, x + _FONT_SIZE, y + 2 + _FONT_SIZE)
        draw.rectangle(box, fill=tuple(map(int, colour)), outline="black")
        draw.text((x + _LINE, y), entry, fill="black", font=font())
    return canvas


def _bar(legend: Bar) -> Image.Image:
    canvas = Image.new("RGB", (_TILE, 2 * _LINE + _GAP), "white")
    strip = Image.fromarray(legend.colours[None]).resize((_TILE, _FONT_SIZE))
    canvas.paste(strip, (0, _GAP // 2))
    draw = ImageDraw.Draw(canvas)
    draw.rectangle((0, _GAP // 2, _TILE - 1, _GAP // 2 + _FONT_SIZE), outline="black")
    middle = (legend.low + legend.high) / 2
    for value, at, anchor in (
        (legend.low, 0, "la"),
        (middle, _TILE // 2, "ma"),
        (legend.high, _TILE - 1, "ra"),
    ):
        text = f"{value:.3g} {legend.unit}".strip()
        draw.text((at, _GAP // 2 + _LINE), text, fill="black", font=font(), anchor=anchor)
    return canvas


def _key(legend: Key) -> Image.Image:
    height = max(legend.picture.shape[0], len(legend.lines) * _LINE) + _GAP
    canvas = Image.new("RGB", (_TILE, height), "white")
    canvas.paste(Image.fromarray(legend.picture), (0, _GAP // 2))
    text = "\n".join(legend.lines)
    position = (legend.picture.shape[1] + _GAP, _GAP // 2)
    ImageDraw.Draw(canvas).multiline_text(position, text, fill="black", font=font())
    return canvas


def font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(_FONT_SIZE)
