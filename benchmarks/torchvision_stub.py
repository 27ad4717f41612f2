"""`segment_anything` without torchvision, of which it needs four functions."""

import contextlib
import importlib.util
import sys
import types
from collections.abc import Iterator

from PIL import Image


@contextlib.contextmanager
def torchvision_or_stub() -> Iterator[None]:
    """Lets `segment_anything` be imported where torchvision is not installed.

    Its predictor's two functions are Pillow's, which are what torchvision calls for images; those
    of its mask generator are None.
    """
    if importlib.util.find_spec("torchvision"):
        yield
        return
    functional = types.ModuleType("torchvision.transforms.functional")
    functional.to_pil_image = Image.fromarray
    functional.resize = lambda image, size: image.resize(size[::-1], Image.Resampling.BILINEAR)
    boxes = types.ModuleType("torchvision.ops.boxes")
    boxes.batched_nms = boxes.box_area = None
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
