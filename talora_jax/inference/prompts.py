"""Segments images from prompts: points, boxes, and masks of an earlier prediction.

    predictor = SamPredictor(load_sam("sam_vit_b.safetensors"))
    predictor.set_image(Image.open("photo.jpg"))
    prediction = predictor.predict(points=[[[320, 200]]], labels=[[1]])
    best = prediction.masks()[0, prediction.iou[0].argmax()]
    refined = predictor.predict(points=[[[320, 200]]], labels=[[1]], masks=prediction)

Source: `segment_anything/predictor.py`. What differs: several images can be set at once, and
several prompts asked at once, each of its own kind; every coordinate is of the original image.
Prompts are padded to a few fixed sizes, and padding is masked out, so that a new number of prompts
or points rarely compiles anew. What is encoded can be kept in a file.
"""

import dataclasses
import functools
import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Bool, Float, UInt8
from PIL import Image

from talora_jax.arrays import as_flag, in_words
from talora_jax.errors import UserError, check_choice
from talora_jax.inference.embeddings_file import EmbeddingsFile
from talora_jax.inference.prompt_arrays import Prompts, as_prompts
from talora_jax.models.geometry import Geometry, normalise
from talora_jax.models.prompt_encoder import ABSENT
from talora_jax.models.sam import Sam
from talora_jax.rgb import as_rgb, each_rgb
from talora_jax.weights.state import fingerprint, tensors_of

# Prompts decoded at once are one of these; more of them go in turns of the largest.
PROMPTS = (1, 4, 16)
# Points of a prompt, box corners among them, are padded to a power of two from this one on.
POINTS = 4
# Rows of a full-size map that are computed at once.
_ROWS = 256

# What a prompt can be made of.
_KINDS = ("points", "labels", "boxes", "masks")
# One of P prompts, in a list of them: None for a prompt that has no such part.
_Each = Sequence[ArrayLike | None]


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
        self._config, self._native_aspect = sam.config, sam.native_aspect
        self._geometry = sam.geometry
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

    def save_embeddings(self, path: str | Path) -> None:
        """Writes the embeddings of all images that are set, for `load_embeddings`.

        Raises:
          UserError: no image is set, or the disk refuses.
        """
        self._image(0)
        EmbeddingsFile(
            [np.asarray(embedding[0]) for _, embedding in self._images],
            [geometry.original for geometry, _ in self._images],
            self._config,
            self._native_aspect,
            self._encoder,
        ).write(Path(path).expanduser())

    def load_embeddings(self, path: str | Path) -> None:
        """Sets the images whose embeddings a file holds, in place of those set before.

        They need not be there, and nothing is encoded.

        >>> import talora_jax
        >>> predictor = talora_jax.SamPredictor(talora_jax.load_sam("sam_nano.safetensors"))
        >>> predictor.set_images(["photo.jpg"])
        >>> predictor.save_embeddings("photos.safetensors")
        >>> predictor.load_embeddings("photos.safetensors")
        >>> predictor.predict(boxes=[[10, 10, 50, 40]]).masks().shape
        (1, 3, 60, 80)

        Raises:
          UserError: there is no such file, it is damaged or something else, or its embeddings are
            another image encoder's; images set before then stay.
        """
        file = EmbeddingsFile.read(Path(path).expanduser())
        file.check_fits(path, self._config, self._native_aspect, self._encoder)
        self._images = [
            (self._geometry(original), jnp.asarray(embedding)[None])
            for original, embedding in zip(file.originals, file.embeddings, strict=True)
        ]

    def predict(
        self,
        points: Float[ArrayLike, "P n 2"] | _Each | None = None,
        labels: Sequence[Sequence[int] | None] | None = None,
        boxes: Float[ArrayLike, "P 4"] | _Each | None = None,
        masks: Prediction
        | Float[ArrayLike, "P Y X"]
        | Bool[ArrayLike, "P H W"]
        | _Each
        | None = None,
        *,
        image: int = 0,
        multimask: bool = True,
    ) -> Prediction:
        """The masks of P prompts, each made of points, a box, a mask, or several of these.

        Where prompts differ in what they are made of, give lists with None for what a prompt lacks:
        `boxes=[[5, 6, 25, 40], None]`. Each is answered as if it had been asked alone. What lies
        outside the image is answered, too, as SAM does it: it means little there.

        Args:
          points: (x, y) in pixels of the original image.
          labels: of the points: 1 on the object, 0 off it, -1 no point (the model is told so), -2
            absent (in an array, for prompts with fewer points than others).
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
        given = dict(zip(_KINDS, (points, labels, boxes, masks), strict=True))
        return self._decoded([(geometry, embedding, self._prompts(given, geometry))], multimask)[0]

    def predict_each(
        self, prompts: Sequence[Mapping[str, Any] | None], *, multimask: bool = True
    ) -> list[Prediction]:
        """The masks of prompts for every image that is set, as many for each as there are.

        What `predict` gives for one image after the other, in fewer turns: those of several images
        are decoded together.

        >>> import talora_jax
        >>> predictor = talora_jax.SamPredictor(talora_jax.load_sam("sam_nano.safetensors"))
        >>> predictor.set_images(["photo.jpg"] * 3)
        >>> boxes = [[10, 10, 50, 40], [30, 5, 70, 55]]
        >>> click = {"points": [[[40, 30]]], "labels": [[1]]}
        >>> [len(p.masks()) for p in predictor.predict_each([{"boxes": boxes}, click, None])]
        [2, 1, 0]

        Args:
          prompts: for each image, in their order, a dict of what `predict` takes: points, labels,
            boxes, masks. None for an image without prompts.
          multimask: as in `predict`.

        Raises:
          UserError: as `predict`; or there are not as many as images.
        """
        multimask = as_flag("multimask", multimask)
        self._image(0)
        if not isinstance(prompts, (list, tuple)) or len(prompts) != len(self._images):
            found = len(prompts) if isinstance(prompts, (list, tuple)) else in_words(prompts)
            raise UserError(
                f"prompts: {found}; expected a list with one dict for each of the "
                f"{len(self._images)} images that are set, such as {{'boxes': [[…]]}}, or None for "
                "an image without prompts"
            )
        asked = []
        for number, (given, image) in enumerate(zip(prompts, self._images, strict=True)):
            try:
                asked.append((*image, None if given is None else self._of_dict(given, image[0])))
            except UserError as error:
                raise UserError(f"prompts of image {number}: {error}") from None
        return self._decoded(asked, multimask)

    @functools.cached_property
    def _encoder(self) -> str:
        """Fingerprint of all that an embedding depends on, whatever prompts are decoded with."""
        tensors = tensors_of(self._state["image_encoder"])
        return fingerprint({name: np.asarray(x, np.float32) for name, x in tensors.items()})

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

    def _of_dict(self, given: Mapping[str, Any], geometry: Geometry) -> Prompts:
        if not isinstance(given, Mapping):
            raise UserError(
                f"{in_words(given)}; expected a dict of {', '.join(_KINDS)}, or None for an image "
                "without prompts"
            )
        for name in given:
            check_choice("a prompt's part", name, _KINDS)
        return self._prompts(given, geometry)

    def _prompts(self, given: Mapping[str, Any], geometry: Geometry) -> Prompts:
        masks = given.get("masks")
        if isinstance(masks, Prediction):
            if masks.geometry != geometry:
                raise UserError(
                    "masks: a prediction on an image of {1}×{0} pixels; expected one on this "
                    "image, of {3}×{2}".format(*masks.geometry.original, *geometry.original)
                )
            given = {**given, "masks": masks.best()}
        return as_prompts(given, geometry, self._low(geometry))

    def _low(self, geometry: Geometry) -> tuple[int, int]:
        """(Y, X) of mask logits."""
        return tuple(4 * side // self._config.encoder.patch_size for side in geometry.padded)

    def _decoded(
        self, asked: Sequence[tuple[Geometry, jax.Array, Prompts | None]], multimask: bool
    ) -> list[Prediction]:
        """Predictions for images with their embeddings, in turns of prompts that go together."""
        tokens = self._config.decoder.mask_tokens
        count = max(tokens - 1, 1) if multimask else 1
        answers, groups = [], {}
        for number, (geometry, embedding, prompts) in enumerate(asked):
            size = 0 if prompts is None else len(prompts.points)
            low_res = np.empty((size, count, *self._low(geometry)), np.float32)
            answers.append(Prediction(low_res, np.empty((size, count), np.float32), geometry))
            for prompt in range(size):
                # With masks, each prompt has an image of its own: that is another program.
                alike = embedding.shape, bool(prompts.masked[prompt])
                groups.setdefault(alike, []).append((number, prompt))
        for (_, masked), rows in groups.items():
            for start in range(0, len(rows), PROMPTS[-1]):
                turn = rows[start : start + PROMPTS[-1]]
                maps, quality = self._turn(asked, turn, masked, multimask)
                for row, (number, prompt) in enumerate(turn):
                    answers[number].low_res[prompt] = maps[row]
                    answers[number].iou[prompt] = quality[row]
        return answers

    def _turn(
        self,
        asked: Sequence[tuple[Geometry, jax.Array, Prompts | None]],
        rows: Sequence[tuple[int, int]],
        masked: bool,
        multimask: bool,
    ) -> tuple[Float[np.ndarray, "P m Y X"], Float[np.ndarray, "P m"]]:
        """Mask logits and expected IoUs of some prompts, given as (image, prompt) of `asked`."""
        prompts = [(asked[number][2], prompt) for number, prompt in rows]
        size = next(n for n in PROMPTS if n >= len(rows))
        length, longest = POINTS, max(given.points.shape[1] for given, _ in prompts)
        while length < longest:
            length *= 2
        points = np.zeros((size, length, 2), np.float32)
        labels = np.full((size, length), ABSENT, np.int32)
        masks = np.zeros((size, *prompts[0][0].masks.shape[1:]), np.float32) if masked else None
        for row, (given, prompt) in enumerate(prompts):
            points[row, : given.points.shape[1]] = given.points[prompt]
            labels[row, : given.points.shape[1]] = given.labels[prompt]
            if masked:
                masks[row] = given.masks[prompt]
        # Prompts of one image share it; those of several are a prompt for each of so many images.
        embeddings = [asked[number][1] for number, _ in rows]
        several = len({number for number, _ in rows}) > 1
        if several:
            padding = [embeddings[-1]] * (size - len(rows))
            embeddings = [jnp.concatenate([*embeddings, *padding])]
        maps, quality = self._decode(
            self._state,
            embeddings[0],
            *(x if x is None else np.expand_dims(x, int(several)) for x in (points, labels, masks)),
            multimask=multimask,
        )
        return tuple(
            np.asarray(x).reshape(size, *x.shape[2:])[: len(rows)] for x in (maps, quality)
        )


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
