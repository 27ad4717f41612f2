"""A base: the tensors of a SAM checkpoint under our names.

A base is one safetensors file, written by `weights_convert`. It holds `image_encoder.*`,
`prompt_encoder.*` and `mask_decoder.*` as `Sam` has them, blocks stacked; a base that comes from
official MTSAM training has `mask_decoders.<task>.*` and adapters instead. One JSON string in its
header tells the sizes and where the weights are from. PyTorch is not needed to read it.

One base comes with the package, by its name in place of a path: see `SHIPPED`.
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from talora_jax import storage
from talora_jax.errors import UserError, one_line
from talora_jax.files import replacing
from talora_jax.models.encoder_config import ImageEncoderConfig
from talora_jax.models.mask_decoder import MaskDecoderConfig
from talora_jax.models.sam import SamConfig
from talora_jax.weights import hub
from talora_jax.weights.header import (
    ADAPTERS,
    HEADER_KEY,
    UNREADABLE,
    check,
    check_metadata,
    check_sizes,
    check_tensors,
    check_version,
    is_strings,
    parsed,
    read_tensors,
    sealed,
    tensors_sha256,
)

# What a run that trains a base leaves, and what a repository has.
FILE_NAME = "base.safetensors"
# The newest version of the JSON in a base's safetensors header.
VERSION = 1
# Bases of the package, by the names that stand for their paths; docs/sam_small.md is the card.
SHIPPED = {"sam_small": Path(__file__).parents[1] / "bases" / "sam_small.safetensors"}


@dataclasses.dataclass(frozen=True)
class Description:
    """What the header of a base tells.

    Attributes:
      config: the sizes.
      tasks: names of the mask decoders of official MTSAM training; None for a plain SAM.
      source: where the weights are from: `file`, `sha256`, `names` and more, for people to read.
      native_aspect: whether it learnt from images without padding to a square.
    """

    config: SamConfig
    tasks: tuple[str, ...] | None
    source: Mapping[str, object]
    native_aspect: bool = False

    def header(self) -> dict[str, str]:
        """The metadata of the safetensors header, without its checksums."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        fields |= {"config": self.config.fields()}
        return {HEADER_KEY: json.dumps({"version": VERSION, **fields})}

    def in_words(self, path: str | Path) -> str:
        """What a base is, for people to read."""
        return f"{Path(path).name}, made of {self.source.get('file', 'an unnamed file')}"

    @classmethod
    def of_header(cls, metadata: Mapping[str, str] | None, path: str | Path) -> "Description":
        """Reads `header` back.

        Raises:
          UserError: the file is no base, or one of a newer version.
        """
        metadata = metadata or {}
        if metadata.get("format", "").startswith(ADAPTERS):
            raise UserError(f"{path} is an adapter and no base; talora_jax.load reads it")
        if HEADER_KEY not in metadata:
            raise UserError(
                f"{path} is not a base of talora_jax; make one of a SAM checkpoint with: "
                f"python -m weights_convert {path} base.safetensors"
            )
        check_metadata(metadata, (HEADER_KEY,), path)
        fields = parsed(metadata[HEADER_KEY], "header", path)
        check(path, HEADER_KEY, fields, isinstance(fields, dict), "its fields by name")
        check_version(path, fields.get("version"), VERSION, "is a base")
        tasks, native = fields.get("tasks"), fields.get("native_aspect", False)
        fits = tasks is None or (is_strings(tasks) and 0 < len(set(tasks)) == len(tasks))
        check(path, "tasks", tasks, fits and "tasks" in fields, "null, or names")
        check(path, "native_aspect", native, type(native) is bool, "true or false")
        source = fields.get("source")
        check(path, "source", source, isinstance(source, dict), "where the weights are from")
        sam = sam_config(fields.get("config"), path)
        return cls(sam, None if tasks is None else tuple(tasks), source, native)


def sam_config(fields: Any, path: str | Path) -> SamConfig:
    """Sizes from `SamConfig.fields`, as a file has them.

    Args:
      path: of the file, for messages.

    Raises:
      UserError: they are no sizes of a SAM.
    """
    check_sizes(fields, path)
    encoder = dict(fields["encoder"])
    if encoder.get("global_blocks") is not None:
        encoder["global_blocks"] = tuple(encoder["global_blocks"])
    return SamConfig(ImageEncoderConfig(**encoder), MaskDecoderConfig(**fields["decoder"]))


def is_base(path: str | Path) -> bool:
    """Whether a file is a base, by its header alone; `read_base` tells what is wrong with it."""
    try:
        with safetensors.safe_open(path, "np") as file:
            return HEADER_KEY in (file.metadata() or {})
    except UNREADABLE:
        return False


def base_path(name: str | Path) -> Path:
    """Where a base lies: a path itself, the one that a run left in its workdir, what the package
    ships under this name, or what a repository on the Hub has, see `hub`, or a bucket, see
    `storage`.

    Raises:
      UserError: the Hub has no such base, or the bucket cannot be reached.
    """
    if storage.is_remote(name):
        return storage.fetched(name)
    if hub.is_name(name):
        return hub.fetched(str(name), FILE_NAME)
    path = Path(name).expanduser()
    if (path / FILE_NAME).is_file():
        return path / FILE_NAME
    return path if path.exists() else SHIPPED.get(str(name), path)


def read_base(path: str | Path) -> tuple[dict[str, np.ndarray], Description]:
    """The tensors of a base by our names, and what its header tells.

    What a base keeps in 16 bits is given in 32.

    Raises:
      UserError: there is no such file, it is not a base, or it is damaged.
    """
    with _opened(path) as (file, description):
        tensors = read_tensors(file)
        metadata = file.metadata()
    check_tensors(metadata, tensors_sha256(tensors), path)
    return {
        name: x.astype(np.float32) if x.dtype.itemsize == 2 else x for name, x in tensors.items()
    }, description


def read_description(path: str | Path) -> Description:
    """What the header of a base tells; its tensors stay where they are.

    Raises:
      UserError: there is no such file, or it is not a base.
    """
    with _opened(path) as (_, description):
        return description


def write_base(
    path: str | Path, tensors: Mapping[str, np.ndarray], description: Description
) -> None:
    """Writes a base; on failure nothing is left behind.

    Args:
      tensors: by our names, as `Sam` has them.
    """
    with replacing(Path(path)) as temporary:
        tensors = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
        metadata = sealed(description.header(), tensors_sha256(tensors))
        safetensors.numpy.save_file(tensors, temporary, metadata=metadata)
        # safetensors makes files for their owner alone.
        temporary.chmod(0o644)


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[tuple[safetensors.safe_open, Description]]:
    place = base_path(path)
    if place.is_dir():
        several = sorted(str(found) for found in place.glob("base_*.safetensors"))
        if several:
            raise UserError(f"{path} has several bases: name one of {', '.join(several)}")
        raise UserError(
            f"{path} is a folder, not a base; if it holds a Hugging Face SAM, make a base of it "
            f"with: python -m weights_convert {path} base.safetensors"
        )
    if not place.is_file():
        raise UserError(
            f"no base at {path}; the package has {', '.join(SHIPPED)}, and python -m "
            "weights_convert CHECKPOINT base.safetensors makes one of a SAM checkpoint (--download "
            "vit_b in place of CHECKPOINT fetches the released one)"
        )
    try:
        with safetensors.safe_open(place, "np") as file:
            yield file, Description.of_header(file.metadata(), path)
    except UNREADABLE as error:
        # Another format, or a base cut short: both are mended by converting (again).
        raise UserError(
            f"{path} is not a readable base ({one_line(error)}); make one of a SAM checkpoint "
            "with: python -m weights_convert CHECKPOINT base.safetensors"
        ) from None
