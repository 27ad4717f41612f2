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

import numpy as np
import safetensors
import safetensors.numpy

from talora_jax.errors import UserError
from talora_jax.files import replacing
from talora_jax.models.image_encoder import ImageEncoderConfig
from talora_jax.models.mask_decoder import MaskDecoderConfig
from talora_jax.models.sam import SamConfig

# The key of the JSON in a base's safetensors header, and the newest version of it.
HEADER_KEY = "talora_jax.base"
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
        """The metadata of the safetensors header."""
        return {HEADER_KEY: json.dumps({"version": VERSION, **dataclasses.asdict(self)})}

    def in_words(self, path: str | Path) -> str:
        """What a base is, for people to read."""
        return f"{Path(path).name}, made of {self.source.get('file', 'an unnamed file')}"

    @classmethod
    def of_header(cls, metadata: Mapping[str, str] | None, path: str | Path) -> "Description":
        """Reads `header` back.

        Raises:
          UserError: the file is no base, or one of a newer version.
        """
        if HEADER_KEY not in (metadata or {}):
            raise UserError(
                f"{path} is not a base of talora_jax; make one of a SAM checkpoint with: "
                f"python -m weights_convert {path} base.safetensors"
            )
        fields = json.loads(metadata[HEADER_KEY])
        if fields["version"] > VERSION:
            raise UserError(
                f"{path} is a base of version {fields['version']}, but this talora_jax reads "
                f"up to {VERSION}: update it"
            )
        tasks = None if fields["tasks"] is None else tuple(fields["tasks"])
        native = fields.get("native_aspect", False)
        return cls(sam_config(fields["config"]), tasks, fields["source"], native)


def sam_config(fields: Mapping[str, Mapping[str, int]]) -> SamConfig:
    """Sizes from the fields of `dataclasses.asdict`."""
    return SamConfig(
        ImageEncoderConfig(**fields["encoder"]), MaskDecoderConfig(**fields["decoder"])
    )


def base_path(name: str | Path) -> Path:
    """Where a base lies: a path itself, or what the package ships under this name."""
    path = Path(name).expanduser()
    return path if path.exists() else SHIPPED.get(str(name), path)


def read_base(path: str | Path) -> tuple[dict[str, np.ndarray], Description]:
    """The tensors of a base by our names, and what its header tells.

    What a base keeps in 16 bits is given in 32.

    Raises:
      UserError: there is no such file, or it is not a base.
    """
    with _opened(path) as (file, description):
        tensors = {name: file.get_tensor(name) for name in file.keys()}
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
        safetensors.numpy.save_file(
            {name: np.ascontiguousarray(x) for name, x in tensors.items()},
            temporary,
            metadata=description.header(),
        )
        # safetensors makes files for their owner alone.
        temporary.chmod(0o644)


@contextlib.contextmanager
def _opened(path: str | Path) -> Iterator[tuple[safetensors.safe_open, Description]]:
    place = base_path(path)
    if not place.is_file():
        raise UserError(
            f"no base at {path}{', which is a folder' if place.is_dir() else ''}; the package has "
            f"{', '.join(SHIPPED)}; make one of a SAM checkpoint with: "
            "python -m weights_convert CHECKPOINT base.safetensors"
        )
    try:
        with safetensors.safe_open(place, "np") as file:
            yield file, Description.of_header(file.metadata(), path)
    except safetensors.SafetensorError as error:
        # Another format, or a base cut short: both are mended by converting (again).
        raise UserError(
            f"{path} is not a readable base ({error}); make one of a SAM checkpoint with: "
            "python -m weights_convert CHECKPOINT base.safetensors"
        ) from None
