"""Segments images from prompts: points, boxes, and masks of an earlier prediction.

    predictor = SamPredictor(load_sam("sam_vit_b.safetensors"))
    predictor.set_image(Image.open("photo.jpg"))
    prediction = predictor.predict(points=[[[320, 200]]], labels=[[1]])
    best = prediction.masks()[0, prediction.iou[0].argmax()]
    refined = predictor.predict(points=[[[320, 200]]], labels=[[1]], masks=prediction)

Source: `segment_anything/predictor.py`. What differs: several images can be set at once, and
several prompts asked at once; every coordinate is of the original image. Prompts are padded to a
few fixed sizes, and padding is masked out, so that a new number of prompts or points rarely
compiles anew.
"""

import dataclasses
import functools
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Bool, Float, UInt8
from PIL import Image

from talora_jax.arrays import as_array, as_flag, finite, in_words
from talora_jax.errors import UserError
from talora_jax.models.geometry import Geometry, normalise, resize_matrix
from talora_jax.models.prompt_encoder import (
    ABSENT,
    BACKGROUND,
    FOREGROUND,
    LOWER_RIGHT,
    NOT_A_POINT,
    UPPER_LEFT,
)
from talora_jax.models.sam import Sam
from talora_jax.rgb import as_rgb, each_rgb

# Prompts decoded at once are one of these; more of them go in turns of the largest.
PROMPTS = (1, 4, 16)
# Points of a prompt, box corners among them, are padded to a power of two from this one on.
POINTS = 4

LABELS = (ABSENT, NOT_A_POINT, BACKGROUND, FOREGROUND)
# The logits that a mask of a person's stands for, on the object and off it: near certainty.
CERTAIN = 10.0
# Rows of a full-size map that are computed at once.
_ROWS = 256

_EXPECTED = {
    "points": "an array [P, n, 2] of (x, y) in pixels",
    "labels": "an array [P, n] of 1 (on the object), 0 (off it), -1 (no point) or -2 (absent)",
    "boxes": "an array [P, 4] of (x0, y0, x1, y1) in pixels",
    "masks": "an earlier prediction, its logits [P, Y, X], or masks [P, H, W] of dtype bool",
}


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The masks of P prompts, m = 3 or 1 for each; a SAM of other mask tokens has its own number.

    Attributes:
      low_res: mask logits of the padded image, four to a token's side.
      iou: how well the model expects each mask to fit.
      geometry: the way back to the original image.
    """

    low_res: Float[np.ndarray, "P m Y X"]
    iou: Float[np.ndarray, "P m"]
    geometry: Geometry

    def logits(self) -> Float[np.ndarray, "P m H W"]:
        """Mask logits at the size of the original image."""
        return self._at_full_size(np.float32, lambda logits: logits)

    def masks(self) -> Bool[np.ndarray, "P m H W"]:
        """What belongs to the object, at the size of the original image."""
        return self._at_full_size(np.bool_, lambda logits: logits > 0)

    def best(self) -> Float[np.ndarray, "P Y X"]:
        """Of each prompt the logits that the model expects to fit best, at low resolution."""
        return self.low_res[np.arange(len(self.iou)), self.iou.argmax(axis=1)]

    def _at_full_size(
        self, dtype: type[np.generic], values: Callable[[np.ndarray], np.ndarray]
    ) -> np.ndarray:
        """`values` of the logits, as `Geometry.from_padded` has them.

        With NumPy, some rows at a time: sizes of images are many, and a program for each would stay
        in memory; so would logits of every prompt, of which `masks` wants one bit each.
        """
        prompts, count, *low = self.low_res.shape
        rows, columns = self.geometry.matrices_from_padded(tuple(low))
        full = np.empty((prompts, count, *self.geometry.original), dtype)
        for index in np.ndindex(prompts, count):
            wide = self.low_res[index].astype(np.float32, copy=False) @ columns.T
            for start in range(0, len(rows), _ROWS):
                part = slice(start, start + _ROWS)
                full[index][part] = values(rows[part] @ wide)
        return full


class SamPredictor:
    """A promptable SAM that remembers the embeddings of the images it was set.

    >>> import talora_jax
    >>> predictor = talora_jax.SamPredictor(talora_jax.load_sam("sam_nano.safetensors"))
    >>> predictor.set_image(Image.open("photo.jpg"))
    >>> prediction = predictor.predict(points=[[[40, 30]]], labels=[[1]])
    >>> prediction.masks().shape, prediction.iou.shape
    ((1, 3, 60, 80), (1, 3))
    """

    def __init__(self, sam: Sam):
        if not isinstance(sam, Sam):
            raise UserError(
                f"SamPredictor: {in_words(sam)}; expected a Sam, such as talora_jax.load_sam(path)"
            )
        graphdef, self._state = nnx.split(sam)
        self._geometry = sam.geometry
        self._patch = sam.config.encoder.patch_size
        self._images: list[tuple[Geometry, jax.Array]] = []

        @jax.jit
        def encode(state, padded, resized):
            return nnx.merge(graphdef, state).encode(normalise(padded, resized)[None])

        @functools.partial(jax.jit, static_argnames="multimask")
        def decode(state, embedding, points, labels, masks, multimask):
            sam = nnx.merge(graphdef, state)
            return sam.decode(embedding, points, labels, masks, multimask=multimask)

        self._encode, self._decode = encode, decode

    def set_image(self, image) -> None:
        """Encodes an image, in place of those set before; see `rgb.as_rgb` for what it can be."""
        self._images = [self._encoded(as_rgb(image))]

    def set_images(self, images: Iterable) -> None:
        """Encodes images of any sizes, in place of those set before.

        They take turns: one program serves any number of them.

        Args:
          images: a list, or one array [N, H, W, 3]; see `rgb.as_rgb` for what each can be.

        Raises:
          UserError: they are not several images, or one is no image; those set before then stay.
        """
        self._images = [self._encoded(image) for image in each_rgb(_several(images))]

    def embedding(self, image: int = 0) -> Float[Array, "1 h w D"]:
        """The embedding of an image that is set.

        Raises:
          UserError: no such image is set.
        """
        return self._image(image)[1]

    def predict(
        self,
        points: Float[ArrayLike, "P n 2"] | None = None,
        labels: Sequence[Sequence[int]] | None = None,
        boxes: Float[ArrayLike, "P 4"] | None = None,
        masks: Prediction | Float[ArrayLike, "P Y X"] | Bool[ArrayLike, "P H W"] | None = None,
        *,
        image: int = 0,
        multimask: bool = True,
    ) -> Prediction:
        """The masks of P prompts, each made of points, a box, a mask, or several of these.

        Args:
          points: (x, y) in pixels of the original image.
          labels: of the points: 1 on the object, 0 off it, -1 no point (the model is told so), -2
            absent (for prompts with fewer points than others).
          boxes: (x0, y0, x1, y1) in pixels of the original image.
          masks: an earlier prediction on this image, of which each prompt's best mask counts; or
            low-resolution logits; or masks of the image's own size, of dtype bool.
          image: which of the images set.
          multimask: three masks for a prompt that can mean several things, or one.

        Raises:
          UserError: no such image is set, or the prompts have other shapes or values.
        """
        multimask = as_flag("multimask", multimask)
        geometry, embedding = self._image(image)
        points, labels, masks = self._prompts(points, labels, boxes, masks, geometry)
        low_res, iou = [], []
        for start in range(0, len(points), PROMPTS[-1]):
            turn = slice(start, start + PROMPTS[-1])
            size = len(points[turn])
            pad = next(n for n in PROMPTS if n >= size) - size
            maps, quality = self._decode(
                self._state,
                embedding,
                _pad(points[turn], pad, 0)[None],
                _pad(labels[turn], pad, ABSENT)[None],
                None if masks is None else _pad(masks[turn], pad, 0)[None],
                multimask=multimask,
            )
            low_res.append(np.asarray(maps[0])[:size])
            iou.append(np.asarray(quality[0])[:size])
        return Prediction(np.concatenate(low_res), np.concatenate(iou), geometry)

    def _encoded(self, image: UInt8[np.ndarray, "H W 3"]) -> tuple[Geometry, jax.Array]:
        geometry = self._geometry(image.shape[:2])
        padded, resized = geometry.to_padded_uint8(image), np.array(geometry.resized)
        return geometry, self._encode(self._state, padded, resized)

    def _image(self, image: int) -> tuple[Geometry, jax.Array]:
        if not self._images:
            raise UserError("no image is set: call set_image(image) first")
        try:
            index = operator.index(image)
        except TypeError:
            raise UserError(
                f"image: {in_words(image)}; expected the number of one that is set, from 0 to "
                f"{len(self._images) - 1}"
            ) from None
        if not -len(self._images) <= index < len(self._images):
            raise UserError(
                f"no image {index} is set: there are {len(self._images)}, numbered from 0"
            )
        return self._images[index]

    def _prompts(self, points, labels, boxes, masks, geometry):
        """Checks the prompts, and puts points and corners together, padded to a fixed number."""
        if (points is None) != (labels is None):
            raise UserError("points and labels belong together: give both or neither")
        low = tuple(4 * side // self._patch for side in geometry.padded)
        if isinstance(masks, Prediction):
            if masks.geometry != geometry:
                raise UserError(
                    "masks: a prediction on an image of {1}×{0} pixels; expected one on this "
                    "image, of {3}×{2}".format(*masks.geometry.original, *geometry.original)
                )
            masks = masks.best()
        given = {
            name: np.atleast_1d(as_array(name, x, _EXPECTED[name]))
            for name, x in (
                ("points", points),
                ("labels", labels),
                ("boxes", boxes),
                ("masks", masks),
            )
            if x is not None
        }
        _check_shapes(given, low, geometry.original)
        count = max((len(x) for x in given.values()), default=1)
        if masks is not None:
            given["masks"] = _mask_logits(given["masks"], low, geometry)
        for name, x in given.items():
            if name in ("points", "boxes") and x.dtype.kind == "b":
                raise UserError(f"{name} of dtype bool; expected {_EXPECTED[name]}")
            given[name] = finite(name, x)
        if labels is not None:
            unknown = given["labels"][~np.isin(given["labels"], LABELS)]
            if unknown.size:
                raise UserError(
                    f"labels {np.unique(unknown)[:5].tolist()}: expected 1 (on the object), 0 (off "
                    "it), -1 (no point) or -2 (absent)"
                )
        if boxes is not None:
            turned = (given["boxes"][:, 2:] < given["boxes"][:, :2]).any(axis=1)
            if turned.any():
                raise UserError(
                    f"boxes: {given['boxes'][turned][0].tolist()} ends before it begins; expected "
                    "(x0, y0, x1, y1) with x0 ≤ x1 and y0 ≤ y1, which of (x, y, width, height) is "
                    "(x, y, x + width, y + height)"
                )

        coordinates, kinds = [np.zeros((count, 0, 2))], [np.zeros((count, 0), int)]
        if points is not None:
            coordinates.append(geometry.points_to_square(given["points"]))
            kinds.append(given["labels"].astype(int))
            if boxes is None:
                coordinates.append(np.zeros((count, 1, 2)))
                kinds.append(np.full((count, 1), NOT_A_POINT))
        if boxes is not None:
            corners = given["boxes"].reshape(count, 2, 2)
            coordinates.append(geometry.points_to_square(corners))
            kinds.append(np.tile([UPPER_LEFT, LOWER_RIGHT], (count, 1)))
        points, labels = np.concatenate(coordinates, 1), np.concatenate(kinds, 1)
        size = POINTS
        while size < points.shape[1]:
            size *= 2
        pad = size - points.shape[1]
        points = finite("points and boxes, scaled to what is encoded", points)
        points = np.pad(points, ((0, 0), (0, pad), (0, 0))).astype(np.float32)
        labels = np.pad(labels, ((0, 0), (0, pad)), constant_values=ABSENT).astype(np.int32)
        return points, labels, given["masks"].astype(np.float32) if masks is not None else None


def _several(images) -> Iterable:
    """What `set_images` goes through; one image would fall into rows, or a path into letters."""
    shape = getattr(images, "shape", None)
    if isinstance(shape, tuple) and len(shape) == 4:
        return images
    if isinstance(images, (Image.Image, str, os.PathLike)) or isinstance(shape, tuple):
        raise UserError(
            f"set_images: {in_words(images)}; expected a list of images, or one array [N, H, W, 3];"
            " set_image sets a single one"
        )
    if isinstance(images, (Mapping, bytes, bytearray, memoryview)) or not isinstance(
        images, Iterable
    ):
        raise UserError(f"set_images: {in_words(images)}; expected a list of images")
    return images


def _check_shapes(
    given: Mapping[str, np.ndarray], low: tuple[int, ...], original: tuple[int, int]
) -> None:
    n = given["points"].shape[1] if "points" in given and given["points"].ndim == 3 else "n"
    own = "masks" in given and given["masks"].dtype.kind == "b"
    expected = {"points": (n, 2), "labels": (n,), "boxes": (4,), "masks": original if own else low}
    for name, x in given.items():
        if x.shape[1:] == expected[name] and len(x) > 0:
            continue
        shape = ", ".join(map(str, ("P", *expected[name])))
        raise UserError(
            f"{name} of shape {list(x.shape)}: expected [{shape}] for P > 0 prompts"
            f"{_way_on(name, x, expected[name], original)}"
        )
    if len({len(x) for x in given.values()}) > 1:
        counts = ", ".join(f"{len(x)} of {name}" for name, x in given.items())
        raise UserError(f"prompts of different numbers, {counts}: expected the same P for all")


def _way_on(
    name: str, x: np.ndarray, expected: tuple[int | str, ...], original: tuple[int, int]
) -> str:
    """What to do about prompts of a wrong shape, where it can be guessed."""
    if x.ndim == len(expected) and x.size:
        return f"; for a single prompt, P = 1: np.array({name})[None]"
    if name == "masks" and x.dtype.kind == "b":
        return ", the image's own size, for dtype bool"
    if name == "masks" and x.shape[-2:] == original:
        return "; masks of the image's own size are of dtype bool: masks > 0"
    if name == "masks" and x.ndim == 4:
        return "; one mask for each prompt, of which masks=prediction takes the best"
    return ""


def _mask_logits(
    masks: np.ndarray, low: tuple[int, ...], geometry: Geometry
) -> Float[np.ndarray, "P Y X"]:
    """Mask prompts as SAM takes them: logits of the padded image, four to a token's side.

    Masks of the image's own size take the image's way: resized, padded with what is off the object,
    and then made as small as logits are, each step an average.
    """
    if masks.dtype.kind != "b":
        if masks.dtype.kind != "f" or (masks.any() and np.isin(masks, (0, 1)).all()):
            raise UserError(
                f"masks of dtype {masks.dtype} with values from {masks.min()} to {masks.max()}; "
                "expected logits in floating point, of which those off the object are negative, or "
                "masks of the image's own size of dtype bool: masks > 0"
            )
        return masks
    rows, columns = (
        (resize_matrix(whole, small, antialias=True) @ matrix).astype(np.float32)
        for matrix, whole, small in zip(
            geometry.matrices_to_padded(), geometry.padded, low, strict=True
        )
    )
    # One after the other: a mask in floating point has the size of a photograph.
    inside = np.stack([rows @ mask.astype(np.float32) @ columns.T for mask in masks])
    return CERTAIN * (2 * inside - 1)


def _pad(x: np.ndarray, rows: int, value: float) -> np.ndarray:
    return np.pad(x, ((0, rows), *[(0, 0)] * (x.ndim - 1)), constant_values=value)
