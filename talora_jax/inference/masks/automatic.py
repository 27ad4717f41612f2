"""Masks of everything in an image, without prompts: a promptable SAM asked at a grid of points.

    masks = AutomaticMasks(load_sam("sam_vit_b.safetensors"))
    found = masks.generate(Image.open("photo.jpg"))
    found[0].mask()  # bool [H, W]

Source: `segment_anything/automatic_mask_generator.py`, whose masks these are, in its order. What
differs: masks that are not expected to fit well are left out before they are enlarged; the others
are enlarged one by one, no more of each than the part of the image that it may fill, and kept as
run lengths at once; one batch of points is decoded while the masks of the last are enlarged.
"""

import dataclasses
import functools
import itertools
import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import scipy.sparse
from flax import nnx
from jaxtyping import ArrayLike, Bool, Float, Int, UInt8

from talora_jax.arrays import as_array, finite, in_words
from talora_jax.errors import UserError
from talora_jax.inference.masks.boxes import box_of, distinct, is_cut_off
from talora_jax.inference.masks.crops import Crop, crops_of, point_grid
from talora_jax.inference.masks.regions import without_small_regions
from talora_jax.inference.masks.run_lengths import RunLengths
from talora_jax.inference.prompts import SamPredictor
from talora_jax.models.geometry import Geometry
from talora_jax.models.prompt_encoder import FOREGROUND, NOT_A_POINT
from talora_jax.models.sam import Sam
from talora_jax.rgb import as_rgb

# Layers of crops, of which the last has 4^4: an image is encoded as often as it has crops.
_MAX_LAYERS = 4
_EXPECTED_GRID = "an array [n, 2] of (x, y), in parts of the image from 0 to 1"


@dataclasses.dataclass(frozen=True, eq=False)
class FoundMask:
    """One mask of an image.

    Attributes:
      runs: the mask, as run lengths.
      box: its first and last column and row, (x0, y0, x1, y1).
      predicted_iou: how well the model expects the mask to fit.
      stability_score: the IoU of the masks that a higher and a lower threshold would give.
      point: (x, y) in the image that the model was asked at.
      crop_box: (x0, y0, x1, y1) of the part of the image that it saw, x1 and y1 beyond its pixels.
    """

    runs: RunLengths
    box: Int[np.ndarray, "4"]
    predicted_iou: float
    stability_score: float
    point: Float[np.ndarray, "2"]
    crop_box: Int[np.ndarray, "4"]

    @property
    def area(self) -> int:
        """Pixels that belong to the mask."""
        return self.runs.area

    def mask(self) -> Bool[np.ndarray, "H W"]:
        """What belongs to the object, at the size of the image."""
        return self.runs.mask()

    def record(self, *, compressed: bool = False) -> dict[str, Any]:
        """All of it for JSON, under segment-anything's names; boxes are (x, y, width, height) as
        there, a mask of one pixel having no width.

        Args:
          compressed: run lengths as a string, by pycocotools, and not as a list.

        Raises:
          UserError: pycocotools is not installed.
        """
        return {
            "segmentation": self.runs.compressed() if compressed else self.runs.uncompressed(),
            "area": self.area,
            "bbox": _with_sides(self.box),
            "predicted_iou": self.predicted_iou,
            "point_coords": [self.point.tolist()],
            "stability_score": self.stability_score,
            "crop_box": _with_sides(self.crop_box),
        }


@dataclasses.dataclass(frozen=True, eq=False)
class AutomaticMasks:
    """Finds masks of everything in an image.

    >>> import talora_jax
    >>> sam = talora_jax.load_sam("sam_nano.safetensors")
    >>> masks = talora_jax.AutomaticMasks(
    ...     sam, points_per_side=4, pred_iou_thresh=0, stability_score_thresh=0
    ... )
    >>> found = masks.generate(Image.open("photo.jpg"))
    >>> found[0].mask().shape
    (60, 80)

    Names and defaults are segment-anything's, but for `points_per_batch`, there 64, on which masks
    do not depend. Defaults were chosen for ViT-H: models of less training need lower thresholds.

    Attributes:
      sam: the model, such as `load_sam` gives.
      points_per_side: so many points in each row and column of the grid; None with `point_grids`.
      points_per_batch: how many of them are decoded at once; memory grows with it.
      pred_iou_thresh: masks whose predicted IoU is not above it are left out; 0 keeps all.
      stability_score_thresh: so are masks that are less stable than this; 0 keeps all.
      stability_score_offset: how far from 0 the logits are cut for the stability score.
      box_nms_thresh: of masks of one crop whose boxes overlap by a higher IoU, one stays.
      crop_n_layers: besides the whole image look at 4 parts of it, then at 16, and so on.
      crop_nms_thresh: as `box_nms_thresh`, for masks of different crops; smaller crops go first.
      crop_overlap_ratio: how much the first layer's crops overlap, in parts of the short side.
      crop_n_points_downscale_factor: by which the grid of each layer has fewer points per side than
        that of the layer before it.
      point_grids: grids of one's own, one a layer, in place of `points_per_side`: (x, y) in parts
        of the crop.
      min_mask_region_area: holes and islands of fewer pixels are removed from masks; 0 leaves them.

    Raises:
      UserError: one of them is something else.
    """

    sam: Sam
    _: dataclasses.KW_ONLY
    points_per_side: int | None = 32
    points_per_batch: int = 16
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    point_grids: Sequence[Float[ArrayLike, "n 2"]] | None = None
    min_mask_region_area: float = 0

    def __post_init__(self):
        if not isinstance(self.sam, Sam):
            raise UserError(
                f"AutomaticMasks: {in_words(self.sam)}; expected a Sam, such as "
                "talora_jax.load_sam(path)"
            )
        for name, least, most in (
            ("points_per_batch", 1, math.inf),
            ("crop_n_layers", 0, _MAX_LAYERS),
            ("crop_n_points_downscale_factor", 1, math.inf),
        ):
            check_number(name, getattr(self, name), least, most, whole=True)
        for name, most in (
            ("pred_iou_thresh", 1),
            ("stability_score_thresh", 1),
            ("box_nms_thresh", 1),
            ("crop_nms_thresh", 1),
            ("crop_overlap_ratio", 0.99),
            ("stability_score_offset", math.inf),
            ("min_mask_region_area", math.inf),
        ):
            check_number(name, getattr(self, name), 0, most)
        # Made at once, so that what is wrong with them is told before any image is looked at.
        object.__setattr__(self, "_grids", self._made_grids())

    def generate(self, image) -> list[FoundMask]:
        """The masks of an image, those that the model expects to fit best first.

        (Of several crops, those of the smallest first; where regions were removed from masks, those
        without any first.)

        Args:
          image: see `rgb.as_rgb` for what it can be.

        Raises:
          UserError: it is no image.
        """
        image = as_rgb(image)
        crops = crops_of(image.shape[:2], self.crop_n_layers, self.crop_overlap_ratio)
        found, scores = [], []
        for crop in crops:
            found += self._in_crop(image, crop)
            scores += [1 / crop.area] * (len(found) - len(scores))
        if len(crops) > 1:
            found = _distinct(found, scores, self.crop_nms_thresh)
        return self._without_small_regions(found) if self.min_mask_region_area > 0 else found

    def _in_crop(self, image: UInt8[np.ndarray, "H W 3"], crop: Crop) -> list[FoundMask]:
        x0, y0, x1, y1 = crop.box
        part = image[y0:y1, x0:x1]
        self._predictor.set_image(part)
        geometry = self.sam.geometry(part.shape[:2])
        points = self._grids[crop.layer] * part.shape[1::-1]
        enlarge, found = None, []
        for asked, low_res, iou in self._answers(points, geometry):
            enlarge = enlarge or _Enlarger(geometry, low_res.shape[2:])
            wanted = iou > self.pred_iou_thresh if self.pred_iou_thresh > 0 else np.ones_like(iou)
            for p, m in np.argwhere(wanted):
                mask = self._mask(
                    *enlarge(low_res[p, m], -self.stability_score_offset),
                    predicted_iou=float(iou[p, m]),
                    point=asked[p] + (x0, y0),
                    crop=crop,
                    size=image.shape[:2],
                )
                if mask is not None:
                    found.append(mask)
        return _distinct(found, [mask.predicted_iou for mask in found], self.box_nms_thresh)

    def _answers(
        self, points: Float[np.ndarray, "n 2"], geometry: Geometry
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Points, what the model gives for each of them: mask logits [P, m, Y, X], IoUs [P, m]."""
        batches = np.array_split(points, math.ceil(len(points) / self.points_per_batch))
        # One program for all of them: some may have a point less than the first.
        size = len(batches[0])
        labels = np.tile(np.int32([FOREGROUND, NOT_A_POINT]), (1, size, 1))
        embedding = self._predictor.embedding()

        def decode(batch):
            prompts = np.zeros((1, size, 2, 2), np.float32)
            prompts[0, : len(batch), 0] = geometry.points_to_square(batch)
            return self._decode(embedding, prompts, labels)

        # JAX decodes the next batch while the caller works on this one.
        answers = [decode(batches[0])]
        for batch, following in itertools.zip_longest(batches, batches[1:]):
            low_res, iou = answers.pop()
            if following is not None:
                answers.append(decode(following))
            yield batch, np.asarray(low_res)[0], np.asarray(iou)[0, : len(batch)]

    def _mask(
        self,
        logits: Float[np.ndarray, "h w"],
        corner: tuple[int, int],
        *,
        predicted_iou: float,
        point: Float[np.ndarray, "2"],
        crop: Crop,
        size: tuple[int, int],
    ) -> FoundMask | None:
        """The mask of logits at a place in a crop; None for one that is not stable, or cut off."""
        offset = self.stability_score_offset
        either = np.count_nonzero(logits > -offset)
        stability = np.float32(np.count_nonzero(logits > offset) / either if either else 0)
        if 0 < self.stability_score_thresh > stability:
            return None
        mask = logits > 0
        corner = corner[0] + crop.box[0], corner[1] + crop.box[1]
        # An empty one's box lies in the crop's corner.
        box = box_of(mask) + (corner if mask.any() else tuple(crop.box[:2])) * 2
        if is_cut_off(box, crop.box, size):
            return None
        runs = RunLengths.of(mask, size, corner)
        return FoundMask(runs, box, predicted_iou, float(stability), point, crop.box)

    def _without_small_regions(self, found: list[FoundMask]) -> list[FoundMask]:
        cleaned, untouched = [], []
        for one in found:
            mask, changed = without_small_regions(one.mask(), self.min_mask_region_area)
            if changed:
                one = dataclasses.replace(one, runs=RunLengths.of(mask), box=box_of(mask))
            cleaned.append(one)
            untouched.append(float(not changed))
        # What changed may be a duplicate now.
        return _distinct(cleaned, untouched, max(self.box_nms_thresh, self.crop_nms_thresh))

    def _made_grids(self) -> list[Float[np.ndarray, "n 2"]]:
        """The points of each layer, in parts of a crop."""
        layers = self.crop_n_layers + 1
        if (self.points_per_side is None) == (self.point_grids is None):
            raise UserError("AutomaticMasks needs points_per_side or point_grids, one of them")
        if self.point_grids is None:
            check_number("points_per_side", self.points_per_side, 1, math.inf, whole=True)
            factor = self.crop_n_points_downscale_factor
            sides = [int(self.points_per_side / factor**layer) for layer in range(layers)]
            if min(sides) < 1:
                raise UserError(
                    f"points_per_side={self.points_per_side} divided by "
                    f"crop_n_points_downscale_factor={factor} once a layer leaves no point for "
                    f"layer {sides.index(0)} of {self.crop_n_layers}; expected less of a factor, "
                    "fewer layers or more points"
                )
            return [point_grid(side) for side in sides]
        if not isinstance(self.point_grids, (list, tuple, np.ndarray)):
            raise UserError(
                f"point_grids: {in_words(self.point_grids)}; expected a list with one grid a "
                f"layer, each {_EXPECTED_GRID}"
            )
        grids = [
            finite(f"point_grids[{i}]", as_array(f"point_grids[{i}]", grid, _EXPECTED_GRID))
            for i, grid in enumerate(self.point_grids)
        ]
        if len(grids) < layers:
            raise UserError(
                f"point_grids: {len(grids)} of them; expected {layers}, one for the image and one "
                "for each of crop_n_layers"
            )
        for i, grid in enumerate(grids):
            if grid.ndim != 2 or grid.shape[1] != 2 or not len(grid):
                raise UserError(
                    f"point_grids[{i}] of shape {list(grid.shape)}; expected {_EXPECTED_GRID}"
                )
            if grid.min() < 0 or grid.max() > 1:
                raise UserError(
                    f"point_grids[{i}] with values from {grid.min()} to {grid.max()}; expected "
                    f"{_EXPECTED_GRID}: divide pixels by the image's width and height"
                )
        return grids

    @functools.cached_property
    def _predictor(self) -> SamPredictor:
        return SamPredictor(self.sam)

    @functools.cached_property
    def _decode(self):
        """The program of points and their labels in one image."""
        graphdef, state = nnx.split(self.sam)

        @jax.jit
        def decode(state, embedding, points, labels):
            return nnx.merge(graphdef, state).decode(embedding, points, labels)

        return functools.partial(decode, state)


class _Enlarger:
    """Low-resolution logits at the size of an image, as `Geometry.from_padded` has them.

    Bilinear weights are sparse, and where logits are low all around, an enlarged one is low.
    """

    def __init__(self, geometry: Geometry, low_res: tuple[int, int]):
        matrices = geometry.matrices_from_padded(low_res)
        self._weights = [scipy.sparse.csr_array(matrix) for matrix in matrices]
        # Of each row and column at low resolution, the first and the last that it has a share in.
        self._firsts = [(matrix != 0).argmax(0) for matrix in matrices]
        self._lasts = [len(m) - 1 - (m[::-1] != 0).argmax(0) for m in matrices]
        self._used = [(matrix != 0).any(0) for matrix in matrices]

    def __call__(
        self, logits: Float[np.ndarray, "Y X"], low: float
    ) -> tuple[Float[np.ndarray, "h w"], tuple[int, int]]:
        """The rectangle of the enlarged logits outside of which none is above `low`, its columns
        one after the other in memory, and the (x, y) of its first pixel."""
        high = logits > low
        some = [
            np.flatnonzero(high.any(axis) & used)
            for axis, used in zip((1, 0), self._used, strict=True)
        ]
        if not all(map(len, some)):
            return np.zeros((0, 0), np.float32), (0, 0)
        rows, columns = (
            slice(first[at[0]], last[at[-1]] + 1)
            for first, last, at in zip(self._firsts, self._lasts, some, strict=True)
        )
        tall = self._weights[0][rows] @ logits
        return (self._weights[1][columns] @ tall.T.copy()).T, (columns.start, rows.start)


def _distinct(found: list[FoundMask], scores: Sequence[float], threshold: float) -> list[FoundMask]:
    boxes = np.array([mask.box for mask in found], int)
    return [found[i] for i in distinct(boxes, np.array(scores), threshold)]


def _with_sides(box: Int[np.ndarray, "4"]) -> list[int]:
    x0, y0, x1, y1 = box.tolist()
    return [x0, y0, x1 - x0, y1 - y0]


def check_number(name: str, x: Any, least: float, most: float, *, whole: bool = False) -> float:
    """A number within bounds.

    Raises:
      UserError: it is something else.
    """
    kind = "a whole number" if whole else "a number"
    within = f"at least {least}" if most == math.inf else f"from {least} to {most}"
    try:
        number = operator.index(x) if whole else float(x)
        known = not isinstance(x, (bool, np.bool_, str)) and least <= number <= most
    except (TypeError, ValueError):
        known = False
    if not known or number == math.inf:
        given = x if isinstance(x, (int, float, np.number)) else in_words(x)
        raise UserError(f"{name}: {given}; expected {kind} {within}")
    return number
