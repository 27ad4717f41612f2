"""What belongs to every pixel of an image: how it is read, kept, and moved when the image is."""

import abc
from pathlib import Path
from typing import ClassVar

import numpy as np
from jaxtyping import Num, Shaped

from talora_jax.tasks.content import Content
from talora_jax.tasks.target_files import BadFile, FileSettings

Truth = Num[np.ndarray, "H W *c"]


class PixelTarget(abc.ABC):
    """One kind of target: an array [H, W, *target_shape] of `target_dtype` for each image, that is
    `unlabelled` where there is no label.

    In NumPy, before there is a batch, and of the class: a data set is opened before its classes are
    known.

    Attributes:
      stored_dtype: of what `store` gives.
      suffixes: of the files that `read` knows, in lower case.
      numbers_things: whether a value is the number of one thing, of which there may be one more.
    """

    target_shape: ClassVar[tuple[int, ...]]
    target_dtype: ClassVar[type[np.generic]]
    stored_dtype: ClassVar[type[np.generic]]
    unlabelled: ClassVar[int]
    suffixes: ClassVar[tuple[str, ...]] = (".png", ".npy")
    numbers_things: ClassVar[bool] = False

    @classmethod
    @abc.abstractmethod
    def read(cls, path: Path, settings: FileSettings) -> Truth:
        """The target in a file of a user's folder, of one of the `suffixes`.

        Raises:
          BadFile: the file holds something else; the message says what was expected.
        """

    @classmethod
    def from_values(cls, values: np.ndarray, settings: FileSettings) -> Truth:
        """The target of numbers as an npy file of a user's folder has them.

        Raises:
          BadFile: they are something else, or this target is read from nothing but its own files.
        """
        del values, settings
        raise BadFile(f"expected a file of kind {', '.join(cls.suffixes)}, which alone can be read")

    @classmethod
    def nothing(cls, size: tuple[int, int]) -> Truth:
        """The target of an image of `size` H, W that has no label anywhere."""
        return np.full((*size, *cls.target_shape), cls.unlabelled, cls.target_dtype)

    @classmethod
    def palette_in_use(cls, path: Path, target: Truth) -> dict[int, tuple[int, ...]]:
        """The colours that the file which `read` made this target of gives its values, where all
        files of a folder must agree on them."""
        del path, target
        return {}

    @classmethod
    def content(cls, target: Truth) -> Content:
        """What the target of one image says."""
        labelled = (target.reshape(*target.shape[:2], -1) != cls.unlabelled).any(axis=-1)
        return Content(pixels=labelled.size, labelled=int(labelled.sum()))

    @classmethod
    def store(cls, target: Truth) -> Truth:
        """What is kept of a target, of `stored_dtype`."""
        return target.astype(cls.stored_dtype, copy=False)

    @classmethod
    def restore(cls, stored: Truth) -> Truth:
        """The target that `store` kept."""
        return stored.astype(cls.target_dtype, copy=False)

    @classmethod
    def resize(cls, target: Truth, size: tuple[int, int]) -> Num[np.ndarray, "h w *c"]:
        """The target of the frame stretched to `size` H, W."""
        return resize_nearest(target, size)

    @classmethod
    def mirror(cls, target: Truth) -> Truth:
        """The target with left and right exchanged."""
        return target[:, ::-1]

    @classmethod
    def nearer(cls, target: Truth, scale: float) -> Truth:
        """The target of a scene that is nearer by `scale`, its pixels in their new places."""
        del scale
        return target

    @classmethod
    def turn(cls, target: Truth, angle: float) -> Truth:
        """The target of a scene that is turned by `angle`, in radians and counter-clockwise as
        seen, its pixels in their new places."""
        del angle
        return target


def resize_nearest(
    values: Shaped[np.ndarray, "H W *c"], size: tuple[int, int]
) -> Shaped[np.ndarray, "h w *c"]:
    """The value at each pixel's centre when the frame is stretched to `size` H, W."""
    # The centre of the result's pixel i lies at (i + 1/2)·H/h of the frame.
    rows = (2 * np.arange(size[0]) + 1) * values.shape[0] // (2 * size[0])
    columns = (2 * np.arange(size[1]) + 1) * values.shape[1] // (2 * size[1])
    return values.take(rows, axis=0).take(columns, axis=1)
