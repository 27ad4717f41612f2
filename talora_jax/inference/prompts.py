"""Segments images from prompts: points, boxes, and masks of an earlier prediction.

    predictor = SamPredictor(load_sam("sam_vit_b.safetensors"))
    predictor.set_image(Image.open("photo.jpg"))
    prediction = predictor.predict(points=[[[320, 200]]], labels=[[1]])
    best = prediction.masks()[0, prediction.iou[0].argmax()]

Source: `segment_anything/predictor.py`. What differs: several images can be set at once, and
several prompts asked at once; every coordinate is of the original image. Prompts are padded to a
few fixed sizes, and padding is masked out, so that a new number of prompts or points rarely
compiles anew.
"""

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import jax
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Bool, Float

from talora_jax.errors import UserError
from talora_jax.inference.rgb import as_rgb
from talora_jax.models.geometry import Geometry, normalise
from talora_jax.models.prompt_encoder import (
    ABSENT,
    BACKGROUND,
    FOREGROUND,
    LOWER_RIGHT,
    NOT_A_POINT,
    UPPER_LEFT,
)
from talora_jax.models.sam import Sam

# Prompts decoded at once are one of these; more of them go in turns of the largest.
PROMPTS = (1, 4, 16)
# Points of a prompt, box corners among them, are padded to a power of two from this one on.
POINTS = 4

LABELS = (ABSENT, NOT_A_POINT, BACKGROUND, FOREGROUND)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The masks of P prompts, m = 3 or 1 for each.

    Attributes:
      low_res: mask logits of the padded image, four to a token's side. They can be the `masks` of
        another prediction.
      iou: how well the model expects each mask to fit.
      geometry: the way back to the original image.
    """

    low_res: Float[np.ndarray, "P m Y X"]
    iou: Float[np.ndarray, "P m"]
    geometry: Geometry

    def logits(self) -> Float[np.ndarray, "P m H W"]:
        """Mask logits at the size of the original image."""
        # In turns: the shapes then do not depend on the number of prompts.
        return np.stack(
            [self.geometry.from_padded(maps[..., None])[..., 0] for maps in self.low_res]
        )

    def masks(self) -> Bool[np.ndarray, "P m H W"]:
        """What belongs to the object, at the size of the original image."""
        return self.logits() > 0


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
        self.set_images([image])

    def set_images(self, images: Iterable) -> None:
        """Encodes images of any sizes, in place of those set before.

        They take turns: one program serves any number of them.

        Raises:
          UserError: one is no image; those set before then stay.
        """
        encoded = []
        for image in map(as_rgb, images):
            geometry = self._geometry(image.shape[:2])
            padded, resized = geometry.to_padded_uint8(image), np.array(geometry.resized)
            encoded.append((geometry, self._encode(self._state, padded, resized)))
        self._images = encoded

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
        masks: Float[ArrayLike, "P Y X"] | None = None,
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
          masks: low-resolution logits of an earlier prediction.
          image: which of the images set.
          multimask: three masks for a prompt that can mean several things, or one.

        Raises:
          UserError: no such image is set, or the prompts have other shapes.
        """
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

    def _image(self, image: int) -> tuple[Geometry, jax.Array]:
        if not -len(self._images) <= image < len(self._images):
            raise UserError(f"no image {image} is set: there are {len(self._images)}")
        return self._images[image]

    def _prompts(self, points, labels, boxes, masks, geometry):
        """Checks the prompts, and puts points and corners together, padded to a fixed number."""
        if (points is None) != (labels is None):
            raise UserError("points and labels belong together: give both or neither")
        given = _given(points=points, labels=labels, boxes=boxes, masks=masks)
        n = given["points"].shape[1] if "points" in given and given["points"].ndim == 3 else "n"
        expected = {
            "points": (n, 2),
            "labels": (n,),
            "boxes": (4,),
            "masks": tuple(4 * side // self._patch for side in geometry.padded),
        }
        count = max((len(x) for x in given.values()), default=1)
        for name, x in given.items():
            if x.shape != (count, *expected[name]) or count == 0:
                shape = ", ".join(map(str, ("P", *expected[name])))
                raise UserError(
                    f"{name} of shape {list(x.shape)}: expected [{shape}] for P > 0 prompts, "
                    "the same P for all"
                )
        if labels is not None and not np.isin(given["labels"], LABELS).all():
            raise UserError(
                f"labels {sorted(set(given['labels'].ravel().tolist()))}: expected 1 (on the "
                "object), 0 (off it), -1 (no point) or -2 (absent)"
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
        points = np.pad(points, ((0, 0), (0, pad), (0, 0))).astype(np.float32)
        labels = np.pad(labels, ((0, 0), (0, pad)), constant_values=ABSENT).astype(np.int32)
        return points, labels, given["masks"].astype(np.float32) if masks is not None else None


def _given(**prompts: ArrayLike | None) -> dict[str, np.ndarray]:
    given = {}
    for name, x in prompts.items():
        if x is not None:
            try:
                given[name] = np.atleast_1d(np.array(x, float))
            except ValueError as error:
                raise UserError(f"{name} cannot be one array of numbers: {error}") from None
    return given


def _pad(x: np.ndarray, rows: int, value: float) -> np.ndarray:
    return np.pad(x, ((0, rows), *[(0, 0)] * (x.ndim - 1)), constant_values=value)
