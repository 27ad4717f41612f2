"""Adapter files: everything that TA-LoRA learnt, in one safetensors file to share.

`python -m talora_jax.adapter FILE` prints what is inside. The tensors are those that trained, by
their path in the model; the metadata (JSON strings) tells all that is needed to put the model
together again, and which base the tensors belong to. The config of the run that made the file is a
note in it, and may be empty.
Nothing here needs an accelerator, and to read a file not even JAX.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from talora_jax.errors import UserError
from talora_jax.files import write_atomically

FILE_NAME = "adapter.safetensors"
FORMAT = "talora_jax adapter 3"
# Files of this format have all that is needed in the run's config.
FORMAT_2 = "talora_jax adapter 2"


@dataclasses.dataclass(frozen=True)
class AdapterFile:
    """What an adapter file holds.

    >>> import talora_jax
    >>> file = talora_jax.AdapterFile.read("adapter.safetensors")
    >>> file.tasks, file.class_names["semantic"]
    (('semantic', 'depth', 'normals'), ['red', 'green', 'blue'])
    >>> file.adapter["kind"], file.adapter["ranks"]
    ('talora', [4, 4, 2])

    Attributes:
      tensors: what was learnt, by path in the model. Rows of U3, no-mask rows and mask decoders are
        in the order of the tasks.
      adapter: the fields of `models.adapters.AdapterConfig`.
      channels: output channels of every task, in the order of the tasks.
      class_names: of the tasks that have classes.
      base: what the base was, for people to read.
      base_fingerprint: SHA-256 of the frozen parameters, see `state.fingerprint`.
      weights: where the base lay; "" for random numbers.
      seed: of these random numbers.
      sam: the fields of `models.sam.SamConfig`; None in files that leave the sizes to the base, or
        to `config.model.size` where there is none.
      pixel_normalisation, native_aspect: how images are encoded, see `models.geometry`.
      dtype, param_dtype: to compute in, and of the base; "auto" suits the machine.
      config: of the run, as plain lists, numbers and strings: a note.
    """

    tensors: Mapping[str, np.ndarray]
    adapter: Mapping[str, Any]
    channels: Mapping[str, int]
    class_names: Mapping[str, Sequence[str]]
    base: str
    base_fingerprint: str
    weights: str = ""
    seed: int = 0
    sam: Mapping[str, Any] | None = None
    pixel_normalisation: bool = True
    native_aspect: bool = False
    dtype: str = "auto"
    param_dtype: str = "auto"
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks, in the order of U3's rows."""
        return tuple(self.channels)

    @classmethod
    def read(cls, path: str | Path) -> "AdapterFile":
        """Reads a file back.

        Raises:
          UserError: there is no such file, or it is no adapter, cut short, altered or too new.
        """
        if not Path(path).is_file():
            raise UserError(f"no adapter at {path}")
        try:
            with safetensors.safe_open(path, "np") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except safetensors.SafetensorError as error:
            raise UserError(
                f"{path} is cut short or no adapter ({error}); expected the {FILE_NAME} that "
                "training leaves"
            ) from None
        if not metadata.get("format", "").startswith("talora_jax adapter "):
            raise UserError(f"{path} is no adapter of talora_jax; training leaves {FILE_NAME}")
        if metadata["format"] not in (FORMAT, FORMAT_2):
            raise UserError(
                f"{path} has the format {metadata['format']!r}; this talora_jax reads {FORMAT!r}"
            )
        try:
            fields = {name: json.loads(text) for name, text in metadata.items() if name in _FIELDS}
            if metadata["format"] == FORMAT_2:
                fields |= _told_by(fields["config"])
            file = cls(tensors, **fields)
            intact = metadata["tensors_sha256"] == _digest(tensors)
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise UserError(f"{path}: its metadata is damaged ({error!r})") from None
        if not intact:
            raise UserError(
                f"{path} is damaged: its tensors are not those that were written; copy it again"
            )
        return file

    def write(self, path: Path) -> None:
        """Writes the file, whole or not at all."""
        metadata = {name: json.dumps(getattr(self, name)) for name in _FIELDS}
        metadata |= {"format": FORMAT, "tensors_sha256": _digest(self.tensors)}
        write_atomically(path, safetensors.numpy.save(dict(self.tensors), metadata))


# What the metadata holds, each as JSON.
_FIELDS = [field.name for field in dataclasses.fields(AdapterFile) if field.name != "tensors"]


def _told_by(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a run's config tells of its adapter, for files that have nothing else."""
    model = config.get("model", {})
    known = ("pixel_normalisation", "native_aspect", "dtype", "param_dtype")
    return {
        "adapter": {name: x for name, x in config["adapter"].items() if name != "extend"},
        "weights": model.get("weights") or "",
        "seed": config.get("seed", 0),
        **{name: model[name] for name in known if name in model},
    }


def find(path: str | Path) -> Path:
    """The adapter file that a path means: itself, or that of a finished run's workdir.

    Raises:
      UserError: the workdir holds no finished run.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        return path
    if (path / FILE_NAME).is_file():
        return path / FILE_NAME
    if not (path / "config.json").is_file():
        raise UserError(f"{path} holds no run: {FILE_NAME} and config.json are missing")
    raise UserError(
        f"the run in {path} is not finished: {FILE_NAME}, which it leaves at its end, is missing; "
        "start the same training command again to resume it"
    )


def _digest(tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, dtypes, shapes and values."""
    digest = hashlib.sha256()
    for name, x in sorted(tensors.items()):
        digest.update(f"{name} {x.dtype} {x.shape}".encode())
        digest.update(np.ascontiguousarray(x).tobytes())
    return digest.hexdigest()
