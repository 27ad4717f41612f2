"""Where an image is looked at, and where in it is asked: crops in layers, and grids of points.

Source: `segment_anything/utils/amg.py` (`generate_crop_boxes`, `build_point_grid`).
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Crop(NamedTuple):
    """A part of an image.

    Attributes:
      box: (x0, y0, x1, y1), x1 and y1 beyond the last pixels.
      layer: 0 for the whole image, from 1 on for smaller and smaller parts.
    """

    box: Int[np.ndarray, "4"]
    layer: int

    @property
    def area(self) -> int:
        x0, y0, x1, y1 = self.box
        return int(max(x1 - x0, 0) * max(y1 - y0, 0))


def crops_of(size: tuple[int, int], layers: int, overlap_ratio: float) -> list[Crop]:
    """The whole image, then 4 crops, then 16, …, each layer's from left to right.

    Args:
      size: (H, W) of the image.
      layers: besides the whole image.
      overlap_ratio: of the first layer's crops, in parts of the image's short side; in each further
        layer, of crops half as large, half as much.
    """
    crops = [Crop(np.array([0, 0, size[1], size[0]]), 0)]
    for layer in range(1, layers + 1):
        side = 2**layer
        overlap = int(overlap_ratio * min(size) * (2 / side))
        height, width = (math.ceil((overlap * (side - 1) + length) / side) for length in size)
        for column, row in itertools.product(range(side), repeat=2):
            x, y = column * (width - overlap), row * (height - overlap)
            box = [x, y, min(x + width, size[1]), min(y + height, size[0])]
            crops.append(Crop(np.array(box), layer))
    # An image of fewer pixels than crops has some without any.
    return [crop for crop in crops if crop.area > 0]


def point_grid(side: int) -> Float[np.ndarray, "n 2"]:
    """side × side points (x, y) in parts of a picture, evenly spaced, row by row."""
    places = np.linspace(1 / (2 * side), 1 - 1 / (2 * side), side)
    return np.stack(np.meshgrid(places, places), axis=-1).reshape(-1, 2)
