"""Files of image embeddings: what the encoder gave for images, to prompt for masks without it.

One safetensors file holds any number of images; a string of JSON in its header tells their sizes,
and which image encoder the embeddings are of. `SamPredictor` writes and loads them.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from jaxtyping import Float

from talora_jax.errors import UserError, one_line
from talora_jax.files import write_atomically
from talora_jax.models.sam import SamConfig
from talora_jax.weights.base_file import sam_config
from talora_jax.weights.header import (
    TENSORS,
    UNREADABLE,
    check,
    check_metadata,
    check_tensors,
    check_version,
    is_whole,
    parsed,
    read_tensors,
    sealed,
    tensors_sha256,
)

# The key of the JSON in the header, and the newest version of it.
HEADER_KEY = "talora_jax.embeddings"
VERSION = 1
_LONGEST_SIDE = 2**20


@dataclasses.dataclass(frozen=True)
class EmbeddingsFile:
    """What a file of embeddings holds.

    Attributes:
      embeddings: of each image, all of one dtype.
      originals: (H, W) of each image.
      sam: the sizes of the SAM.
      native_aspect: whether images were encoded without padding to a square.
      encoder_fingerprint: SHA-256 of the image encoder's parameters, see `state.fingerprint`: two
        bases that differ in their decoders alone have embeddings in common.
    """

    embeddings: Sequence[Float[np.ndarray, "h w D"]]
    originals: Sequence[tuple[int, int]]
    sam: SamConfig
    native_aspect: bool
    encoder_fingerprint: str

    @classmethod
    def read(cls, path: str | Path) -> "EmbeddingsFile":
        """Reads a file back.

        Raises:
          UserError: there is no such file, it holds no embeddings, or it is damaged or too new.
        """
        if not Path(path).is_file():
            what = "a folder" if Path(path).is_dir() else "no file"
            raise UserError(
                f"there is {what} at {path}; expected embeddings, as predictor.save_embeddings "
                "writes them"
            )
        try:
            with safetensors.safe_open(path, "np") as file:
                metadata = file.metadata() or {}
                if HEADER_KEY not in metadata:
                    raise UserError(
                        f"{path} holds no embeddings of talora_jax; predictor.save_embeddings "
                        "writes them"
                    )
                tensors = read_tensors(file)
        except UNREADABLE as error:
            raise UserError(
                f"{path} is cut short or no file of embeddings ({one_line(error)}); expected what "
                "predictor.save_embeddings writes"
            ) from None
        check_metadata(metadata, (HEADER_KEY,), path)
        check(path, TENSORS, None, TENSORS in metadata, "the checksum of its tensors")
        check_tensors(metadata, tensors_sha256(tensors), path)
        return cls._of_fields(parsed(metadata[HEADER_KEY], "header", path), tensors, path)

    @classmethod
    def _of_fields(
        cls, fields: Any, tensors: dict[str, np.ndarray], path: str | Path
    ) -> "EmbeddingsFile":
        check(path, HEADER_KEY, fields, isinstance(fields, dict), "its fields by name")
        check_version(path, fields.get("version"), VERSION, "has embeddings")
        native, encoder = fields.get("native_aspect"), fields.get("encoder_fingerprint")
        check(path, "native_aspect", native, type(native) is bool, "true or false")
        check(path, "encoder_fingerprint", encoder, isinstance(encoder, str), "a string")
        sam = sam_config(fields.get("sam"), path)
        originals = fields.get("originals")
        fits = isinstance(originals, list) and len(originals) > 0
        fits = fits and all(
            isinstance(size, list)
            and len(size) == 2
            and all(is_whole(side, 1, _LONGEST_SIDE) for side in size)
            for size in originals
        )
        check(path, "originals", originals, fits, "(height, width) of each image")
        originals = [(height, width) for height, width in originals]
        names = _names(len(originals))
        check(path, "tensors", sorted(tensors), tensors.keys() == set(names), "one for each image")
        for name, original in zip(names, originals, strict=True):
            geometry = sam.encoder.geometry(original, native_aspect=native)
            grid = (side // sam.encoder.patch_size for side in geometry.padded)
            shape = (*grid, sam.encoder.out_channels)
            check(path, name, tensors[name].shape, tensors[name].shape == shape, f"shape {shape}")
        return cls([tensors[name] for name in names], originals, sam, native, encoder)

    def write(self, path: Path) -> None:
        """Writes the file, whole or not at all.

        Raises:
          UserError: the disk refuses.
        """
        fields = {
            "version": VERSION,
            "sam": self.sam.fields(),
            "native_aspect": self.native_aspect,
            "encoder_fingerprint": self.encoder_fingerprint,
            "originals": self.originals,
        }
        names = _names(len(self.embeddings))
        tensors = {
            name: np.ascontiguousarray(x) for name, x in zip(names, self.embeddings, strict=True)
        }
        metadata = sealed({HEADER_KEY: json.dumps(fields)}, tensors_sha256(tensors))
        write_atomically(path, safetensors.numpy.save(tensors, metadata))

    def check_fits(
        self, path: str | Path, sam: SamConfig, native_aspect: bool, encoder_fingerprint: str
    ) -> None:
        """Refuses embeddings that the image encoder of a SAM would not have given.

        Args:
          path: of the file, for messages.

        Raises:
          UserError: they are of another size, base or way to pad.
        """
        if self.sam.encoder != sam.encoder:
            raise UserError(
                f"{path} has embeddings of a SAM of {self.sam.apart_from(sam)}, and this is "
                f"one of {sam.apart_from(self.sam)}: load the base that they are of, or set the "
                "images again"
            )
        if self.encoder_fingerprint != encoder_fingerprint:
            raise UserError(
                f"{path} has embeddings of another base, whose image encoder has the fingerprint "
                f"{self.encoder_fingerprint[:8]}, not {encoder_fingerprint[:8]}: load the base "
                "that they are of, or set the images again"
            )
        if self.native_aspect != native_aspect:
            ways = {True: "to whole patches (native_aspect)", False: "to the square"}
            raise UserError(
                f"{path} has embeddings of images padded {ways[self.native_aspect]}, and this SAM "
                f"pads {ways[native_aspect]}: set the images again"
            )


def _names(count: int) -> list[str]:
    return [f"embedding.{number}" for number in range(count)]
