"""One picture of all that a model sees in an image, with legends."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from talora_jax.arrays import in_words
from talora_jax.errors import UserError
from talora_jax.rgb import as_rgb
from talora_jax.tasks import Task
from talora_jax.tasks.drawn_legends import LINE, WIDTH, drawn_legend, font
from talora_jax.tasks.legends import Legend

# The longer side of a tile, for a legend goes below it, and tiles in a row.
_TILE, _COLUMNS, _GAP = WIDTH, 4, 12


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
    heights = [LINE + size[1] + max(legend.height for *_, legend in row) + _GAP for row in rows]
    canvas = Image.new("RGB", (columns * (_TILE + _GAP) + _GAP, sum(heights) + _GAP), color="white")
    draw = ImageDraw.Draw(canvas)
    y = _GAP
    for row, row_height in zip(rows, heights, strict=True):
        for column, (title, tile, legend) in enumerate(row):
            x = _GAP + column * (_TILE + _GAP)
            draw.text((x, y), title, fill="black", font=font())
            canvas.paste(tile, (x, y + LINE))
            canvas.paste(legend, (x, y + LINE + size[1]))
        y += row_height
    return canvas


def _fitted(pixels: UInt8[np.ndarray, "H W 3"], size: tuple[int, int]) -> Image.Image:
    # Boxes: when shrinking they keep thin edges, when growing they invent no colours.
    return Image.fromarray(pixels).resize(size, Image.Resampling.BOX)
