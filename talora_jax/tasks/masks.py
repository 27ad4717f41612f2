"""Objects and their parts, numbered: what masks for prompts are made of."""

from pathlib import Path

import numpy as np
from jaxtyping import Int32

from talora_jax.tasks.target import PixelTarget
from talora_jax.tasks.target_files import FileSettings, read_indices


class Instance(PixelTarget):
    """The number of the object that a pixel shows, int [H,W]; -1 = no label."""

    target_shape = ()
    target_dtype = stored_dtype = np.int32
    unlabelled = -1
    numbers_things = True

    @classmethod
    def read(cls, path: Path, settings: FileSettings) -> Int32[np.ndarray, "H W"]:
        """Numbers from 1 on of a PNG or an npy file; 0 and less is no label."""
        del settings
        values = read_indices(path).astype(np.int32)
        values[values <= 0] = -1
        return values


class Part(Instance):
    """The number of the part of an object that a pixel shows, in the whole image."""
