"""State dicts under the official names (SAM's, or the MTSAM release's) to this project's tensors."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from talora_jax.errors import UserError
from weights_convert.architecture import Architecture, read_architecture
from weights_convert.names import (
    Entry,
    decoder_entries,
    encoder_entries,
    prompt_entries,
    to_ours,
)


def read_pth(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a PyTorch file, as NumPy arrays. Only tensors are read: no code runs.

    Raises:
      UserError: PyTorch is not installed, or the file is missing or not a file of tensors.
    """
    try:
        import torch
    except ImportError:
        raise UserError(f"reading {path} needs PyTorch: pip install 'talora_jax[torch]'") from None
    if not Path(path).is_file():
        raise UserError(f"no checkpoint at {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{path} is not a PyTorch file of tensors: {reason}") from None
    if isinstance(state, Mapping) and isinstance(state.get("model"), Mapping):
        state = state["model"]
    if not isinstance(state, Mapping) or not all(torch.is_tensor(v) for v in state.values()):
        raise UserError(f"{path} holds no state dict: expected tensors by name")
    return {name: tensor.numpy() for name, tensor in state.items()}


def entries_of(architecture: Architecture, tasks: Sequence[str] = ()) -> list[Entry]:
    """The table's entries for an architecture; `tasks` names the decoders of an MTSAM checkpoint."""
    encoder, decoder = architecture.sam.encoder, architecture.sam.decoder
    sizes = (decoder.depth, decoder.mask_tokens)
    entries = [
        *encoder_entries(encoder.depth, encoder.stages, adapters=architecture.ranks is not None),
        *prompt_entries(),
    ]
    if architecture.num_tasks is None:
        return [*entries, *decoder_entries(*sizes, "mask_decoder", "mask_decoder")]
    for i, task in enumerate(tasks):
        entries += decoder_entries(*sizes, f"mask_decoder.{i}", f"mask_decoders.{task}")
    return entries


def from_official(
    state_dict: Mapping[str, np.ndarray], tasks: Sequence[str] = ()
) -> tuple[dict[str, np.ndarray], Architecture]:
    """Our tensors by our names, and the architecture that they have.

    Args:
      state_dict: under SAM's official names, or those of the official MTSAM release.
      tasks: names for an MTSAM checkpoint's decoders, in their order; by default "0", "1", ….

    Raises:
      UserError: tensors are missing, unexpected or of a wrong shape; all are listed.
    """
    shapes = {name: tensor.shape for name, tensor in state_dict.items()}
    architecture = read_architecture(shapes)
    if architecture.num_tasks is not None:
        tasks = tasks or [str(i) for i in range(architecture.num_tasks)]
        if len(tasks) != architecture.num_tasks:
            raise UserError(
                f"the checkpoint has {architecture.num_tasks} mask decoders, "
                f"but {len(tasks)} task names were given: {', '.join(tasks)}"
            )
    entries = entries_of(architecture, tasks)
    names = {entry.theirs for entry in entries}
    problems = [f"missing {n}" for n in sorted(names - set(state_dict))]
    problems += [f"unexpected {n}" for n in sorted(set(state_dict) - names)]
    if problems:
        raise UserError("the checkpoint's tensors do not fit SAM: " + "; ".join(problems))
    return to_ours(entries, state_dict.__getitem__), architecture
