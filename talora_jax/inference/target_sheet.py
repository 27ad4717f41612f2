"""One picture of some samples of a data set: a row for each, their images and targets, and below
what the colours mean."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from talora_jax.task_names import kind_of
from talora_jax.tasks import TASKS, make_task, palette
from talora_jax.tasks.drawn_legends import drawn_legend, font
from talora_jax.tasks.legends import Legend
from talora_jax.tasks.target import resize_nearest

_TILE = 240  # pixels, of an image's longer side
_GAP = 6
_LINE = 20
_COLOURS = 40  # of objects, before they come again


def target_sheet(
    samples: Sequence[Mapping[str, np.ndarray]],
    names: Sequence[str],
    class_names: Mapping[str, Sequence[str]],
) -> Image.Image:
    """Draws samples as `talora_jax.data.dataset.Source` has them.

    Args:
      names: beneath which each sample stands.
      class_names: by target, of those that have classes of the data's own.
    """
    height, width = samples[0]["image"].shape[:2]
    scale = _TILE / max(height, width)
    size = max(1, round(height * scale)), max(1, round(width * scale))
    columns: dict[str, tuple[UInt8[np.ndarray, "N H W 3"], Legend | None]] = {}
    for target in samples[0]:
        values = np.stack([resize_nearest(sample[target], size) for sample in samples])
        columns[target] = (
            (values, None)
            if target == "image"
            else _drawn(target, values, class_names.get(target, ()))
        )
    legends = {target: drawn_legend(legend) for target, (_, legend) in columns.items()}
    step_x = max([size[1], *(legend.width for legend in legends.values())]) + _GAP
    step_y = size[0] + _LINE + _GAP
    foot = max(legend.height for legend in legends.values())
    canvas = Image.new(
        "RGB",
        (len(columns) * step_x + _GAP, _LINE + len(samples) * step_y + foot + 2 * _GAP),
        "white",
    )
    draw = ImageDraw.Draw(canvas)
    for column, (target, (pictures, _)) in enumerate(columns.items()):
        x = _GAP + column * step_x
        draw.text((x, 0), target, fill="black", font=font())
        for row, picture in enumerate(pictures):
            y = _LINE + row * step_y
            canvas.paste(Image.fromarray(picture), (x, y))
            if column == 0:
                draw.text((x, y + size[0]), _short(names[row]), fill="black", font=font())
        canvas.paste(legends[target], (x, _LINE + len(samples) * step_y + _GAP))
    return canvas


def _drawn(
    target: str, values: np.ndarray, class_names: Sequence[str]
) -> tuple[UInt8[np.ndarray, "N H W 3"], Legend | None]:
    """All samples of one target on one scale, black where there is no label."""
    count, height, width = values.shape[:3]
    # As one tall image: one range of depth, and one legend.
    tall = values.reshape(count * height, width, *values.shape[3:])
    if kind_of(target) not in TASKS:
        colours = np.concatenate([np.zeros((1, 3), np.uint8), palette(_COLOURS)])
        picture = colours[np.where(tall < 0, 0, 1 + tall % _COLOURS)]
        return picture.reshape(count, height, width, 3), None
    task = make_task(target, class_names=class_names)
    legend = task.target_legend(tall)
    picture = np.asarray(task.target_picture(tall)) if legend else np.zeros((*tall.shape[:2], 3))
    return picture.astype(np.uint8).reshape(count, height, width, 3), legend


def _short(name: str) -> str:
    return name if len(name) <= 30 else f"…{name[-29:]}"
