"""Writes a checkpoint: as a base, under the official names, or as a Hugging Face folder."""

import json
from collections.abc import Mapping
from pathlib import Path

from talora_jax.errors import UserError
from talora_jax.files import replacing
from talora_jax.models.prompt_encoder import MASK_CHANNELS
from talora_jax.models.sam import SamConfig
from talora_jax.weights.base_file import Description
from weights_convert.checkpoint import Checkpoint
from weights_convert.names import GAUSSIAN, HUGGINGFACE_ALIAS, by_our_names
from weights_convert.pytorch_file import write_pytorch
from weights_convert.safetensors_file import write_safetensors


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
    """Writes what the output's ending asks for. On failure nothing is left behind.

    Args:
      source: where the weights are from, for the header of a base.

    Raises:
      UserError: it cannot be written, or Hugging Face has no names for it.
    """
    with replacing(output) as temporary:
        if output.suffix == ".safetensors":
            _write_base(checkpoint, temporary, source)
        elif output.suffix == ".pth":
            write_pytorch(temporary, ((e.official, checkpoint.get(e)) for e in checkpoint.entries))
        else:
            _write_huggingface(checkpoint, temporary)


def _write_base(checkpoint: Checkpoint, path: Path, source: Mapping[str, object]) -> None:
    architecture = checkpoint.architecture
    groups = by_our_names(checkpoint.entries)

    def part(entry):
        return entry.layout.ours(checkpoint.get(entry))

    first = {name: part(entries[0]) for name, entries in groups.items()}
    write_safetensors(
        path,
        {name: (x.dtype, groups[name][0].stack + x.shape) for name, x in first.items()},
        (part(entry) for entries in groups.values() for entry in entries),
        Description(architecture.sam, architecture.tasks, source).header(),
    )


def _write_huggingface(checkpoint: Checkpoint, folder: Path) -> None:
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


def huggingface_config(sam: SamConfig) -> dict:
    """The `config.json` of `transformers.SamModel`."""
    encoder, decoder = sam.encoder, sam.decoder
    per_stage = encoder.window_blocks + 1
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
            "global_attn_indexes": list(range(per_stage - 1, encoder.depth, per_stage)),
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
