"""One output channel of a trained mSAM as a plain SAM, adapters merged into the weights.

A channel of mSAM is a SAM in which the adapter's update is part of the qkv weights, the task's mask
decoder is the mask decoder, and the channel's no-mask row the no-mask row: without a prompt, such a
SAM's single mask is the channel's map.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from talora_jax.errors import UserError
from talora_jax.models.adapters import AdapterConfig, make_adapter
from talora_jax.weights.adapter_file import AdapterFile
from talora_jax.weights.assemble import fingerprint
from weights_convert.checkpoint import Checkpoint, our_tensors
from weights_convert.names import Entry

_QKV = "attn.qkv.kernel"
_DECODER = "mask_decoder."


def merged(base: Checkpoint, adapter: Path, channel: str) -> Checkpoint:
    """The SAM of one channel.

    Args:
      base: what the adapter was trained on.
      adapter: the `adapter.safetensors` that training left.
      channel: a task, or TASK:NUMBER for a task of several channels, counted from 0.

    Raises:
      UserError: the base is no plain SAM, or the file is no adapter, was trained on another base,
        or has no such channel.
    """
    if base.architecture.tasks is not None:
        raise UserError("to merge an adapter, INPUT must be the plain SAM it was trained on")
    learnt = AdapterFile.read(adapter)
    _check_base(base, learnt, adapter)
    task, row = _find(channel, learnt.channels)
    number = learnt.tasks.index(task)
    update = _update(learnt, number, base)
    tensors = learnt.tensors

    def get(entry: Entry) -> np.ndarray:
        if entry.ours.startswith(_DECODER):
            decoders = tensors[f"mask_decoders.{entry.ours.removeprefix(_DECODER)}"]
            return entry.layout.theirs(decoders[number])
        if entry.ours == "prompt_encoder.no_mask_embed":
            return tensors["no_mask_embed"][row : row + 1]
        x = base.get(entry)
        if entry.ours in tensors:
            x = entry.layout.theirs(tensors[entry.ours][entry.index])
        if entry.ours.endswith(_QKV):
            x = x + entry.layout.theirs(update(entry)).astype(x.dtype)
        return x

    return dataclasses.replace(base, get=get)


def _find(channel: str, channels: Mapping[str, int]) -> tuple[str, int]:
    """The task of a channel, and its no-mask row."""
    task, _, number = channel.partition(":")
    known = [f"{t}:{i}" if n > 1 else t for t, n in channels.items() for i in range(n)]
    if channel not in known:
        raise UserError(f"no channel {channel}; the adapter has {', '.join(known)}")
    names = list(channels)
    return task, sum(channels[t] for t in names[: names.index(task)]) + int(number or 0)


def _update(learnt: AdapterFile, task: int, base: Checkpoint):
    """A function that gives the update [d, k] of the qkv weights of an entry's block."""
    options = learnt.config["adapter"]
    config = AdapterConfig(
        options["kind"],
        tuple(options["ranks"]),
        options["scale"],
        options["dropout"],
        tuple(options["qkv"]),
    )
    width = base.architecture.sam.encoder.width

    def update(entry: Entry) -> np.ndarray:
        adapter = make_adapter(config, width, len(learnt.tasks), rngs=nnx.Rngs(0))
        if adapter is None:
            return np.zeros((width, 3 * width), np.float32)
        blocks = entry.ours.removesuffix("qkv.kernel")
        for (name,), variable in nnx.to_flat_state(nnx.state(adapter)):
            factor = learnt.tensors[f"{blocks}adapter.{name}"][entry.index]
            variable[...] = jnp.asarray(factor)
        dense = np.asarray(adapter.merge())
        return dense[task if config.per_task else 0]

    return update


def _check_base(base: Checkpoint, learnt: AdapterFile, adapter: Path) -> None:
    """Compares the fingerprint of what was frozen in training."""
    frozen = []
    for name, value in our_tensors(base):
        name = name.removeprefix("prompt_encoder.") if "positions" in name else name
        if name.startswith(("image_encoder.", "positions.")) and name not in learnt.tensors:
            frozen.append((tuple(name.split(".")), nnx.Param(value)))
    if fingerprint(nnx.from_flat_state(frozen)) != learnt.base_fingerprint:
        raise UserError(f"{adapter} was trained on another base than INPUT")
