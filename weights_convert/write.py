"""Writes a checkpoint: as a base, under the official names, or as a Hugging Face folder."""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np

from talora_jax.errors import UserError, listed
from talora_jax.files import replacing
from talora_jax.models.prompt_encoder import MASK_CHANNELS
from talora_jax.models.sam import SamConfig
from talora_jax.weights.base_file import Description
from talora_jax.weights.header import sealed, sha256_of_parts
from weights_convert.checkpoint import Checkpoint, common_dtype
from weights_convert.names import GAUSSIAN, HUGGINGFACE_ALIAS, by_our_names
from weights_convert.pytorch_file import read_pytorch, write_pytorch
from weights_convert.safetensors_file import SafetensorsFile, write_safetensors


def check_output(output: Path) -> None:
    """Refuses, before any work is done, an output that cannot be written.

    Raises:
      UserError: it exists, its folder does not, or its ending says nothing.
    """
    if output.exists():
        raise UserError(f"{output} exists: name another output, or remove it first")
    if not output.absolute().parent.is_dir():
        raise UserError(f"no folder {output.parent} to put {output.name} into")
    if output.suffix not in (".safetensors", ".pth", ""):
        raise UserError(
            f"{output} ends in {output.suffix}: expected NAME.safetensors for a base, NAME.pth for "
            "the official names, or a folder's NAME for Hugging Face"
        )


def write(checkpoint: Checkpoint, output: Path, source: Mapping[str, object]) -> None:
    """Writes what the output's ending asks for, and reads it back; on failure, nothing is left.

    Args:
      source: where the weights are from, for the header of a base.

    Raises:
      UserError: it cannot be written, does not read back, or Hugging Face has no names for it.
    """
    with replacing(output) as temporary:
        if output.suffix == ".safetensors":
            written = _write_base(checkpoint, temporary, source)
        elif output.suffix == ".pth":
            tensors = [(entry.official, entry) for entry in checkpoint.entries]
            write_pytorch(temporary, ((name, checkpoint.get(entry)) for name, entry in tensors))
            state, _ = read_pytorch(temporary)
            written = ((name, state.get(name), checkpoint.get(entry)) for name, entry in tensors)
        else:
            written = _write_huggingface(checkpoint, temporary)
        _compare(written, output)


def _compare(written: Iterable[tuple[str, np.ndarray | None, np.ndarray]], output: Path) -> None:
    """Refuses a file that is not what was to be written.

    Args:
      written: name, what was read back, and what it should be. A wider dtype is as good.

    Raises:
      UserError: names the tensors that differ.
    """
    differing = [
        name
        for name, found, x in written
        if found is None
        or found.shape != x.shape
        or not np.array_equal(found, x.astype(found.dtype))
        or not np.array_equal(found.astype(x.dtype), x)
    ]
    if differing:
        raise UserError(
            f"{output} was not written: {listed(differing)} did not read back as in the input; "
            "try again, or on another disk"
        )


def _write_base(
    checkpoint: Checkpoint, path: Path, source: Mapping[str, object]
) -> Iterator[tuple[str, np.ndarray | None, np.ndarray]]:
    """Writes a base; what it now holds, for `_compare`."""
    architecture = checkpoint.architecture
    groups = by_our_names(checkpoint.entries)
    tensors = {}
    for name, entries in groups.items():
        parts = [entry.layout.ours(checkpoint.get(entry)) for entry in entries]
        dtype = common_dtype(part.dtype for part in parts)
        tensors[name] = dtype, entries[0].stack + parts[0].shape

    def parts(name):
        dtype, _ = tensors[name]
        for entry in groups[name]:
            yield entry.layout.ours(checkpoint.get(entry)).astype(dtype)

    description = Description(
        architecture.sam, architecture.tasks, source, checkpoint.native_aspect
    )
    digest = sha256_of_parts((name, *tensors[name], parts(name)) for name in sorted(tensors))
    metadata = sealed(description.header(), digest)
    write_safetensors(path, tensors, (x for name in tensors for x in parts(name)), metadata)

    file = SafetensorsFile(path)
    if file.metadata != metadata or file.keys() != tensors.keys():
        raise UserError(f"{path.name} does not read back as it was written: try another disk")
    return (
        (name, file[name][entry.index], entry.layout.ours(checkpoint.get(entry)))
        for name, entries in groups.items()
        for entry in entries
    )


def _write_huggingface(
    checkpoint: Checkpoint, folder: Path
) -> Iterator[tuple[str, np.ndarray | None, np.ndarray]]:
    """Writes a folder; what it now holds, for `_compare`."""
    if checkpoint.architecture.tasks is not None:
        raise UserError(
            "Hugging Face's SAM has one mask decoder, not one a task: write a .pth or .safetensors"
        )
    tensors = {entry.huggingface: entry for entry in checkpoint.entries}
    if checkpoint.huggingface_alias:
        tensors[HUGGINGFACE_ALIAS] = GAUSSIAN
    folder.mkdir()
    arrays = {name: checkpoint.get(entry) for name, entry in tensors.items()}
    write_safetensors(
        folder / "model.safetensors",
        {name: (x.dtype, x.shape) for name, x in arrays.items()},
        (checkpoint.get(entry) for entry in tensors.values()),
        {"format": "pt"},
    )
    config = json.dumps(huggingface_config(checkpoint.architecture.sam), indent=2)
    (folder / "config.json").write_text(config + "\n")
    file = SafetensorsFile(folder / "model.safetensors")
    return ((name, file.get(name), checkpoint.get(entry)) for name, entry in tensors.items())


def huggingface_config(sam: SamConfig) -> dict:
    """The `config.json` of `transformers.SamModel`."""
    encoder, decoder = sam.encoder, sam.decoder
    return {
        "architectures": ["SamModel"],
        "model_type": "sam",
        "vision_config": {
            "hidden_size": encoder.width,
            "output_channels": encoder.out_channels,
            "num_hidden_layers": encoder.depth,
            "num_attention_heads": encoder.heads,
            "image_size": encoder.image_size,
            "patch_size": encoder.patch_size,
            "window_size": encoder.window,
            "global_attn_indexes": list(encoder.global_places),
            "num_pos_feats": decoder.dim // 2,
            "mlp_dim": 4 * encoder.width,
        },
        "prompt_encoder_config": {
            "hidden_size": decoder.dim,
            "image_size": encoder.image_size,
            "patch_size": encoder.patch_size,
            "mask_input_channels": MASK_CHANNELS,
        },
        "mask_decoder_config": {
            "hidden_size": decoder.dim,
            "mlp_dim": decoder.mlp_dim,
            "num_hidden_layers": decoder.depth,
            "num_attention_heads": decoder.heads,
            "num_multimask_outputs": decoder.mask_tokens - 1,
            "iou_head_hidden_dim": decoder.dim,
            # The original's; the default of transformers, 1e-6, is not.
            "layer_norm_eps": 1e-5,
        },
    }
