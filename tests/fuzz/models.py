"""The smallest SAM and adapter with random numbers in them; nothing is compiled for either."""

import dataclasses
import functools
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from flax import nnx

from talora_jax.models.adapters import AdapterConfig
from talora_jax.models.msam import MSam, trainable
from talora_jax.models.sam import Sam, SamConfig
from talora_jax.weights import header
from talora_jax.weights.adapter_file import AdapterFile
from talora_jax.weights.assemble import base_of
from talora_jax.weights.base_file import Description, write_base
from talora_jax.weights.state import name_of
from tests.micro import NANO

TASKS = {"depth": 1, "semantic": 3}
_ADAPTER = AdapterConfig(ranks=(4, 4, 2))


def drawn(state: nnx.State, seed: int) -> dict[str, np.ndarray]:
    """Random numbers in the shapes of a state."""
    rng = np.random.default_rng(seed)
    return {
        name_of(path): rng.normal(0, 0.3, variable.shape).astype(np.float32)
        for path, variable in nnx.to_flat_state(state)
    }


@functools.cache
def _base() -> dict[str, np.ndarray]:
    return drawn(nnx.state(nnx.eval_shape(lambda: Sam(NANO, rngs=nnx.Rngs(0)))), 0)


@functools.cache
def _learnt() -> dict[str, np.ndarray]:
    model = nnx.eval_shape(lambda: MSam(NANO, _ADAPTER, TASKS, rngs=nnx.Rngs(0)))
    return drawn(nnx.split(model, trainable(_ADAPTER), ...)[1], 1)


def write_nano_base(path: Path) -> dict[str, np.ndarray]:
    """Writes a base of the size `nano`; its tensors."""
    write_base(path, _base(), Description(NANO, None, {"file": "sam_nano.pth"}))
    return _base()


def nano_adapter(base: Path, tensors: dict[str, np.ndarray]) -> AdapterFile:
    """An adapter of two tasks on a base.

    Args:
      tensors: of the base.
    """
    file = AdapterFile(
        _learnt(),
        json.loads(json.dumps(dataclasses.asdict(_ADAPTER))),
        TASKS,
        {"semantic": ["a", "b", "c"]},
        "sam_nano.safetensors, made of sam_nano.pth",
        "",
        weights=str(base),
        sam=json.loads(json.dumps(NANO.fields())),
        config={"steps": 4, "data": {"name": "folder"}},
    )
    own = base_of(file, "adapter", tensors, NANO, "base").fingerprint
    return dataclasses.replace(file, base_fingerprint=own)


def split(file: bytes) -> tuple[dict, bytes]:
    """The header of a safetensors file and what is behind it."""
    length = int.from_bytes(file[:8], "little")
    return json.loads(file[8 : 8 + length]), file[8 + length :]


def joined(head: dict | bytes, data: bytes) -> bytes:
    """`split` undone."""
    text = head if isinstance(head, bytes) else json.dumps(head).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def resealed(head: dict, tensors: dict[str, np.ndarray] | None = None) -> dict:
    """A header whose checksums fit what it says, as of somebody who writes such files himself.

    Args:
      tensors: if these are others, too.
    """
    metadata = dict(head["__metadata__"])
    if tensors is not None:
        metadata[header.TENSORS] = header.tensors_sha256(tensors)
    metadata.pop(header.METADATA, None)
    digest = metadata.pop(header.TENSORS)
    return {**head, "__metadata__": header.sealed(metadata, digest)}


def with_other_tensors(
    rng: random.Random,
    tensors: dict[str, np.ndarray],
    head: dict,
    ways: Sequence[str],
    filled: Sequence[float],
) -> tuple[str, bytes, dict[str, np.ndarray] | None]:
    """A file whose tensors are exchanged, lost, added, of another type: what was done, the file,
    and its tensors if its checksums fit them.

    Args:
      head: whose metadata it has.
      ways: what can be done.
      filled: what a tensor can be full of.
    """
    tensors = dict(tensors)
    what = rng.choice(ways)
    a, b = rng.sample(sorted(tensors), 2)
    match what:
        case "exchanged":
            tensors[a], tensors[b] = tensors[b], tensors[a]
        case "lost":
            del tensors[a]
        case "added":
            tensors["more"] = np.zeros(3, np.float32)
        case "narrower":
            tensors[a] = tensors[a].astype(rng.choice((np.float16, np.int8, np.bool_)))
        case "wider":
            tensors[a] = tensors[a].astype(np.float64)
        case "turned":
            tensors[a] = np.ascontiguousarray(tensors[a].T)
        case "filled":
            tensors[a] = np.full_like(tensors[a], rng.choice(filled))
        case _:
            raise ValueError(what)
    other, data = split(safetensors.numpy.save(tensors))
    other["__metadata__"] = head["__metadata__"]
    seal = rng.random() < 0.7
    if seal:
        other = resealed(other, tensors)
    return f"{what}: {a}, sealed: {seal}", joined(other, data), tensors if seal else None


def same_tensors(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(
        a[name].dtype == b[name].dtype
        and a[name].shape == b[name].shape
        and a[name].tobytes() == b[name].tobytes()
        for name in a
    )


def sizes(fields: Any) -> SamConfig | None:
    """What `SamConfig.fields` gave, made a SamConfig again; None if it cannot be."""
    try:
        encoder = dict(fields["encoder"])
        if encoder.get("global_blocks") is not None:
            encoder["global_blocks"] = tuple(encoder["global_blocks"])
        made = type(NANO.encoder)(**encoder), type(NANO.decoder)(**fields["decoder"])
        return SamConfig(*made)
    except (TypeError, KeyError, ValueError):
        return None
