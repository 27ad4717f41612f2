"""`segment_anything` without torchvision, of which it needs four functions.

Its predictor's two are Pillow's, which are what torchvision calls for images; those of its mask
generator are written here.
"""

import contextlib
import importlib.util
import sys
import types
from collections.abc import Iterator

from PIL import Image


@contextlib.contextmanager
def torchvision_or_stub() -> Iterator[None]:
    """Lets `segment_anything` be imported where torchvision is not installed."""
    if importlib.util.find_spec("torchvision"):
        yield
        return
    functional = types.ModuleType("torchvision.transforms.functional")
    functional.to_pil_image = Image.fromarray
    functional.resize = lambda image, size: image.resize(size[::-1], Image.Resampling.BILINEAR)
    boxes = types.ModuleType("torchvision.ops.boxes")
    boxes.batched_nms, boxes.box_area = _batched_nms, _box_area
    modules = {functional.__name__: functional, boxes.__name__: boxes}
    for name in ("torchvision", "torchvision.transforms", "torchvision.ops"):
        modules[name] = types.ModuleType(name)
    sys.modules.update(modules)
    try:
        yield
    finally:
        # Others, such as transformers, ask whether there is a torchvision.
        for name in modules:
            del sys.modules[name]


def _box_area(boxes):
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


def _batched_nms(boxes, scores, categories, iou_threshold):
    """For boxes of one category, the only use that the mask generator makes of it."""
    import torch

    assert not categories.any()
    areas = _box_area(boxes)
    order = torch.sort(scores, descending=True, stable=True).indices
    suppressed = torch.zeros(len(boxes), dtype=torch.bool)
    kept = []
    for i in order.tolist():
        if suppressed[i]:
            continue
        kept.append(i)
        corner = torch.maximum(boxes[i, :2], boxes[:, :2])
        sides = (torch.minimum(boxes[i, 2:], boxes[:, 2:]) - corner).clamp(min=0)
        both = sides[:, 0] * sides[:, 1]
        suppressed |= both / (areas[i] + areas - both) > iou_threshold
    return torch.tensor(kept, dtype=torch.long)
