"""One output channel of a trained mSAM as a plain SAM, adapters merged into the weights.

A channel of mSAM is a SAM in which the adapter's update is part of the qkv weights, the task's mask
decoder is the mask decoder, and the channel's no-mask row the no-mask row: without a prompt, such a
SAM's single mask is the channel's map.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from talora_jax.errors import UserError
from talora_jax.weights.adapter_file import AdapterFile
from talora_jax.weights.assemble import assemble, base_of, check_fits, sizes_of
from talora_jax.weights.build import merged as merged_task
from weights_convert.checkpoint import Checkpoint, our_tensors
from weights_convert.names import Entry

# What differs of an encoder's block, whose LayerNorms an adapter of some blocks has by other names.
_IN_BLOCKS = ("attn.qkv.kernel", *(f"norm{i}.{x}" for i in (1, 2) for x in ("scale", "bias")))
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
    # The one size that no tensor shows, the decoder's heads, is the adapter's.
    sam = sizes_of(learnt, adapter) or base.architecture.sam
    frozen = base_of(learnt, adapter, dict(our_tensors(base)), sam, "INPUT")
    check_fits(learnt, adapter, frozen)
    task, row = _find(channel, learnt.channels)
    tensors = merged_task(assemble(learnt, adapter, frozen), task)
    decoder = f"mask_decoders.{task}."

    def get(entry: Entry) -> np.ndarray:
        if entry.ours.startswith(_DECODER):
            inside = entry.ours.removeprefix(_DECODER)
            return entry.layout.theirs(tensors[decoder + inside])
        if entry.ours == "prompt_encoder.no_mask_embed":
            return tensors[entry.ours][row : row + 1]
        x = base.get(entry)
        in_block = entry.ours.startswith("image_encoder.") and entry.ours.endswith(_IN_BLOCKS)
        if entry.ours in learnt.tensors or in_block:
            return entry.layout.theirs(tensors[entry.ours][entry.index]).astype(x.dtype)
        return x

    notes = base.notes
    if not learnt.pixel_normalisation:
        notes += (
            "the adapter learnt from pixels that are not normalised, and SAM normalises them",
        )
    return dataclasses.replace(
        base,
        architecture=dataclasses.replace(base.architecture, sam=sam),
        get=get,
        native_aspect=learnt.native_aspect,
        notes=notes,
    )


def _find(channel: str, channels: Mapping[str, int]) -> tuple[str, int]:
    """The task of a channel, and which of the task's it is."""
    task, _, number = channel.partition(":")
    known = [f"{t}:{i}" if n > 1 else t for t, n in channels.items() for i in range(n)]
    if channel not in known:
        raise UserError(f"no channel {channel}; the adapter has {', '.join(known)}")
    return task, int(number or 0)
