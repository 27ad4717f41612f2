"""Truth beside prediction, with legends: what evaluation leaves to look at."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from talora_jax.files import replacing
from talora_jax.tasks import Task
from talora_jax.tasks.drawn_legends import LINE, WIDTH, drawn_legend, font
from talora_jax.tasks.legends import Swatches

_MARGIN, _HEADER = 4, 16


def panel(
    image: Float[np.ndarray, "H W 3"],
    truth: Mapping[str, np.ndarray],
    prediction: Mapping[str, np.ndarray],
    tasks: Sequence[Task],
) -> UInt8[np.ndarray, "Y X 3"]:
    """image | truth | prediction | legends, one row per task.

    Args:
      image: RGB in [0, 1].
      truth, prediction: targets and activated maps of this image, by task.
    """
    height, width = image.shape[:2]
    legends = [_legends(task, truth[task.name], prediction[task.name]) for task in tasks]
    heights = [_HEADER + max(height, legend.height) for legend in legends]
    size = (3 * (width + _MARGIN) + _MARGIN + WIDTH, sum(heights) + _MARGIN)
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    for row, (task, legend) in enumerate(zip(tasks, legends, strict=True)):
        target, y = truth[task.name], sum(heights[:row])
        canvas.paste(legend, (size[0] - WIDTH, y + _HEADER))
        columns = {
            "image": np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8),
            f"{task.name}: truth": task.target_picture(target),
            f"{task.name}: prediction": task.picture(prediction[task.name], target),
        }
        for column, (title, picture) in enumerate(columns.items()):
            x = _MARGIN + column * (width + _MARGIN)
            draw.text((x, y + 2), title, fill="black")
            canvas.paste(Image.fromarray(picture), (x, y + _HEADER))
    return np.asarray(canvas)


def _legends(task: Task, target: np.ndarray, prediction: Float[np.ndarray, "H W C"]) -> Image.Image:
    """Of the truth; of classes, also those that are predicted. A scale is the truth's for both."""
    legend = task.target_legend(target)
    told = {"truth and prediction": legend}
    if isinstance(legend, Swatches):
        classes = task.outputs(prediction, probabilities=False)[task.name]
        told = {"truth": legend, "prediction": task.legend(np.asarray(classes))}
    drawn = {title: drawn_legend(legend) for title, legend in told.items() if legend}
    total = sum(LINE + legend.height for legend in drawn.values())
    canvas = Image.new("RGB", (WIDTH, max(1, total)), "white")
    draw, y = ImageDraw.Draw(canvas), 0
    for title, legend in drawn.items():
        draw.text((0, y), title, fill="black", font=font())
        canvas.paste(legend, (0, y + LINE))
        y += LINE + legend.height
    return canvas


def save_png(picture: UInt8[np.ndarray, "H W 3"], path: Path) -> None:
    """Writes a PNG, making its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        Image.fromarray(picture).save(temporary, "PNG")
