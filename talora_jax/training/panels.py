"""Truth beside prediction: what evaluation leaves to look at."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from talora_jax.files import replacing
from talora_jax.tasks import Task

_MARGIN, _HEADER = 4, 16


def panel(
    image: Float[np.ndarray, "H W 3"],
    truth: Mapping[str, np.ndarray],
    prediction: Mapping[str, np.ndarray],
    tasks: Sequence[Task],
) -> UInt8[np.ndarray, "Y X 3"]:
    """image | truth | prediction, one row per task.

    Args:
      image: RGB in [0, 1].
      truth, prediction: targets and activated maps of this image, by task.
    """
    height, width = image.shape[:2]
    canvas = Image.new(
        "RGB",
        (3 * (width + _MARGIN) + _MARGIN, len(tasks) * (height + _HEADER) + _MARGIN),
        "white",
    )
    draw = ImageDraw.Draw(canvas)
    for row, task in enumerate(tasks):
        target = truth[task.name]
        columns = {
            "image": np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8),
            f"{task.name}: truth": task.target_picture(target),
            f"{task.name}: prediction": task.picture(prediction[task.name], target),
        }
        for column, (title, picture) in enumerate(columns.items()):
            x, y = _MARGIN + column * (width + _MARGIN), row * (height + _HEADER)
            draw.text((x, y + 2), title, fill="black")
            canvas.paste(Image.fromarray(picture), (x, y + _HEADER))
    return np.asarray(canvas)


def save_png(picture: UInt8[np.ndarray, "H W 3"], path: Path) -> None:
    """Writes a PNG, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        Image.fromarray(picture).save(temporary, "PNG")
