"""Names, distances and directions of masks, from what a trained model sees where they lie.

    model = talora_jax.load("runs/mine")
    found = talora_jax.AutomaticMasks(model.promptable()).generate(photo)
    named = talora_jax.name_masks(found, model.predict(photo), model.tasks)

Of one SAM, whose weights are frozen, prompts make masks of things, and a task's decoder says what
they are: panoptic segmentation without having trained for it.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int32

from talora_jax.errors import UserError
from talora_jax.inference.masks.automatic import FoundMask
from talora_jax.tasks import Depth, Normals, Semantic, Task


@dataclasses.dataclass(frozen=True, eq=False)
class NamedMask:
    """A mask, and what is where it lies.

    Attributes:
      found: the mask.
      label: index of the class whose probability is the highest in its mean over the mask.
      name: of this class; its index for a class without a name.
      probability: that mean.
      depth: the median over the mask, in metres; None of a model without depth.
      normal: the median of each component over the mask, of length 1; None without normals.
    """

    found: FoundMask
    label: int
    name: str
    probability: float
    depth: float | None = None
    normal: tuple[float, float, float] | None = None

    def record(self, *, compressed: bool = False) -> dict[str, Any]:
        """All of it for JSON, see `FoundMask.record`."""
        return self.found.record(compressed=compressed) | {
            "category": self.name,
            "category_probability": self.probability,
            "depth": self.depth,
            "normal": self.normal,
        }


def name_masks(
    found: Sequence[FoundMask], prediction: Mapping[str, np.ndarray], tasks: Sequence[Task]
) -> list[NamedMask]:
    """What the masks of an image are, in their order.

    >>> model = talora_jax.load("adapter.safetensors", base="sam_nano.safetensors")
    >>> photo = Image.open("photo.jpg")
    >>> masks = talora_jax.AutomaticMasks(
    ...     model.promptable(), points_per_side=4, pred_iou_thresh=0, stability_score_thresh=0
    ... )
    >>> found = masks.generate(photo)
    >>> named = talora_jax.name_masks(found, model.predict(photo), model.tasks)
    >>> named[0].name in ("red", "green", "blue"), len(named) == len(found)
    (True, True)

    Args:
      found: from `AutomaticMasks.generate`.
      prediction: of the same image, from `TrainedModel.predict`, with probabilities.
      tasks: `model.tasks`; the first with classes gives the names.

    Raises:
      UserError: no task has classes, or the prediction is of another size than the masks, or has no
        probabilities.
    """
    semantic = naming_task(tasks)
    key = f"{semantic.name}_probabilities"
    if key not in prediction:
        raise UserError(
            f"the prediction has no {key}; expected that of model.predict(image), with "
            "probabilities=True"
        )
    arrays = {
        kind: next((prediction.get(t.name) for t in tasks if type(t) is kind), None)
        for kind in (Depth, Normals)
    }
    named = []
    for one in found:
        if prediction[key].shape[:2] != one.runs.size:
            raise UserError(
                f"a mask of {list(one.runs.size)} pixels and a prediction of "
                f"{list(prediction[key].shape[:2])}; expected those of one image"
            )
        # No more than the mask's own rectangle is looked at; an empty mask has one pixel of it.
        x0, y0, x1, y1 = one.box
        part = np.s_[y0 : y1 + 1, x0 : x1 + 1]
        mask = one.mask()[part]
        mask = mask if mask.any() else np.ones_like(mask)
        # A photo's mask has millions of pixels, whose sum float32 does not hold.
        means = prediction[key][part][mask].mean(0, dtype=np.float64)
        label = int(means.argmax())
        name = semantic.class_names[label] if semantic.class_names else str(label)
        depth, normals = (None if x is None else x[part][mask] for x in arrays.values())
        named.append(
            NamedMask(
                one,
                label,
                name,
                float(means[label]),
                None if depth is None else float(np.median(depth)),
                None if normals is None else _direction(normals),
            )
        )
    return named


def naming_task(tasks: Sequence[Task]) -> Semantic:
    """The task that gives masks their names.

    Raises:
      UserError: none has classes.
    """
    for task in tasks:
        if isinstance(task, Semantic):
            return task
    raise UserError(
        f"none of the tasks {', '.join(task.name for task in tasks)} has classes to name masks "
        "with; expected a model of semantic or human_parts"
    )


def numbered(found: Sequence[FoundMask], size: tuple[int, int]) -> Int32[np.ndarray, "H W"]:
    """For each pixel which mask it belongs to, from 1 on in their order, 0 for none; the smallest
    one where masks lie upon each other.

    Args:
      size: (H, W) of the image.
    """
    numbers = np.zeros(size, np.int32)
    for i in sorted(range(len(found)), key=lambda i: -found[i].area):
        numbers[found[i].mask()] = i + 1
    return numbers


def _direction(normals: Float[np.ndarray, "n 3"]) -> tuple[float, float, float]:
    median = np.median(normals, axis=0)
    x, y, z = median / max(np.linalg.norm(median), 1e-6)
    return float(x), float(y), float(z)
