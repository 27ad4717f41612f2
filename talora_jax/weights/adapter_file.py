"""Adapter files: everything that TA-LoRA learnt, in one safetensors file to share.

`python -m talora_jax.adapter FILE` prints what is inside. The tensors are those that trained, by
their path in the model; the metadata (JSON strings) tells all that is needed to put the model
together again, and which base the tensors belong to. The config of the run that made the file is a
note in it, and may be empty.
Nothing here needs an accelerator, and to read a file not even JAX.
"""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from talora_jax import storage
from talora_jax.errors import UserError, one_line
from talora_jax.files import write_atomically
from talora_jax.weights import hub
from talora_jax.weights.header import (
    ADAPTERS,
    HEADER_KEY,
    TENSORS,
    UNREADABLE,
    check,
    check_metadata,
    check_sizes,
    check_tensors,
    is_number,
    is_strings,
    is_whole,
    parsed,
    read_tensors,
    sealed,
    tensors_sha256,
)

FILE_NAME = "adapter.safetensors"
FORMAT = f"{ADAPTERS}3"
# Files of this format have all that is needed in the run's config.
FORMAT_2 = f"{ADAPTERS}2"
# To compute in: `config.DTYPES`, and what arrays have before anybody chose.
_DTYPES = ("auto", "float32", "bfloat16", "float16")


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
        place = storage.fetched(path)
        if place.is_dir():
            raise UserError(f"{path} is a folder: expected an {FILE_NAME}, as training leaves")
        if not place.is_file():
            raise UserError(f"no adapter at {path}")
        try:
            with safetensors.safe_open(place, "np") as file:
                metadata = file.metadata() or {}
                tensors = read_tensors(file)
        except UNREADABLE as error:
            raise UserError(
                f"{path} is cut short or no adapter ({one_line(error)}); expected the {FILE_NAME} "
                "that training leaves"
            ) from None
        if HEADER_KEY in metadata:
            raise UserError(f"{path} is a base and no adapter; talora_jax.load_sam reads it")
        if not metadata.get("format", "").startswith(ADAPTERS):
            raise UserError(f"{path} is no adapter of talora_jax; training leaves {FILE_NAME}")
        if metadata["format"] not in (FORMAT, FORMAT_2):
            raise UserError(
                f"{path} has the format {metadata['format']!r}; this talora_jax reads {FORMAT!r}"
            )
        check_metadata(metadata, ("format", *_FIELDS), path)
        fields = {n: parsed(text, n, path) for n, text in metadata.items() if n in _FIELDS}
        if metadata["format"] == FORMAT_2:
            fields |= _told_by(fields.get("config"), path)
        missing = sorted(_ALWAYS - {*fields} | {TENSORS} - {*metadata})
        if missing:
            raise UserError(f"{path}: its header is damaged: {', '.join(missing)} is missing")
        _check_fields(fields, path)
        check_tensors(metadata, tensors_sha256(tensors), path)
        return cls(tensors, **fields)

    def write(self, path: Path) -> None:
        """Writes the file, whole or not at all."""
        metadata = {name: json.dumps(getattr(self, name)) for name in _FIELDS} | {"format": FORMAT}
        metadata = sealed(metadata, tensors_sha256(self.tensors))
        write_atomically(path, safetensors.numpy.save(dict(self.tensors), metadata))


# What the metadata holds, each as JSON.
_FIELDS = [field.name for field in dataclasses.fields(AdapterFile) if field.name != "tensors"]
_ALWAYS = {"adapter", "channels", "class_names", "base", "base_fingerprint"}


def _told_by(config: Any, path: str | Path) -> dict[str, Any]:
    """What a run's config tells of its adapter, for files that have nothing else."""
    parts = [
        config.get(name) if isinstance(config, dict) else None for name in ("adapter", "model")
    ]
    for name, part in zip(("adapter", "model"), parts, strict=True):
        check(path, f"config.{name}", part, isinstance(part, dict), "its fields by name")
    adapter, model = parts
    known = ("pixel_normalisation", "native_aspect", "dtype", "param_dtype")
    return {
        "adapter": {name: x for name, x in adapter.items() if name != "extend"},
        "weights": model.get("weights") or "",
        "seed": config.get("seed", 0),
        **{name: model[name] for name in known if name in model},
    }


def _check_fields(fields: Mapping[str, Any], path: str | Path) -> None:
    """Refuses fields that are not of their type.

    Raises:
      UserError: names the first such, and what was expected.
    """

    def expect(name: str, value: Any, fits: bool, expected: str) -> None:
        check(path, name, value, fits, expected)

    for name in ("base", "base_fingerprint", "weights"):
        expect(name, fields.get(name, ""), isinstance(fields.get(name, ""), str), "a string")
    for name in ("pixel_normalisation", "native_aspect"):
        expect(name, fields.get(name, True), type(fields.get(name, True)) is bool, "true or false")
    for name in ("dtype", "param_dtype"):
        dtype = fields.get(name, _DTYPES[0])
        expect(name, dtype, isinstance(dtype, str) and dtype in _DTYPES, ", ".join(_DTYPES))
    seed = fields.get("seed", 0)
    expect("seed", seed, is_whole(seed, -(2**63), 2**63 - 1), "a whole number")
    for name in ("adapter", "channels", "class_names", "config"):
        value = fields.get(name, {})
        expect(name, value, isinstance(value, dict), "its fields by name")
    for task, number in fields["channels"].items():
        expect(f"channels of {task}", number, is_whole(number, 1, 2**16), "a number from 1")
    expect("channels", fields["channels"], bool(fields["channels"]), "those of every task")
    for task, names in fields["class_names"].items():
        expect(f"class_names of {task}", names, is_strings(names), "strings")
    if fields.get("sam") is not None:
        check_sizes(fields["sam"], path)

    adapter = fields["adapter"]
    for name in ("kind", "init"):
        word = adapter.get(name, "published" if name == "init" else None)
        expect(f"adapter.{name}", word, isinstance(word, str), "a string")
    ranks, qkv = adapter.get("ranks"), adapter.get("qkv")
    fits = isinstance(ranks, list) and [is_whole(r, 1, 2**16) for r in ranks] == [True] * 3
    expect("adapter.ranks", ranks, fits, "three numbers from 1")
    fits = isinstance(qkv, list) and [type(on) for on in qkv] == [bool] * 3 and any(qkv)
    expect("adapter.qkv", qkv, fits, "three of true and false")
    for name, low, high in (("scale", -math.inf, math.inf), ("dropout", 0, 1)):
        value = adapter.get(name)
        fits = is_number(value) and low <= value < high
        expect(f"adapter.{name}", value, fits, "a number" if name == "scale" else "0 to below 1")
    blocks = adapter.get("blocks")
    fits = isinstance(blocks, list) and len(blocks) in (1, 2)
    fits = fits and all(is_whole(i, -(2**16), 2**16) for i in blocks)
    expect("adapter.blocks", blocks, blocks is None or fits, "null, one number or two")


def find(path: str | Path) -> Path:
    """The adapter file that a path means: itself, that of a finished run's workdir, or that of a
    repository on the Hub, see `hub`.

    Raises:
      UserError: the workdir holds no finished run, or the Hub has no such adapter.
    """
    if hub.is_name(path):
        return hub.fetched(str(path), FILE_NAME)
    path = storage.place(path)
    with storage.reached(path):
        if not path.is_dir():
            return path
        if (path / FILE_NAME).is_file():
            return path / FILE_NAME
        if not (path / "config.json").is_file():
            raise UserError(f"{path} holds no run: {FILE_NAME} and config.json are missing")
        fields = _fields_of(path / "config.json")
    # As `transformers` writes it.
    if not fields.keys().isdisjoint(("model_type", "architectures")):
        raise UserError(
            f"{path} is a Hugging Face model and no run; make a base of it with: "
            f"python -m weights_convert {path} base.safetensors"
        )
    if fields.get("trains") == "prompts":
        left = " and ".join(sorted(file.name for file in path.glob("base*.safetensors")))
        raise UserError(
            f"{path} is a run that trains a SAM from prompts: it leaves no {FILE_NAME} but "
            f"{left or 'a base'}; name that, and talora_jax.load_sam reads it"
        )
    raise UserError(
        f"the run in {path} is not finished: {FILE_NAME}, which it leaves at its end, is missing; "
        "start the same training command again to resume it"
    )


def _fields_of(config: Path) -> dict[str, Any]:
    """What a config.json says; nothing where it cannot be read."""
    try:
        fields = json.loads(config.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}
