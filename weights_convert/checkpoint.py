"""Opens a SAM checkpoint of any kind and shows it under the official names.

Kinds, told by their content: official `.pth` files (SAM and the MTSAM release), Hugging Face files,
and this project's bases. Tensors stay on disk until they are asked for.
"""

import dataclasses
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from talora_jax.errors import UserError
from talora_jax.weights.base_file import HEADER_KEY, Description, base_path
from weights_convert.architecture import (
    Architecture,
    count,
    entries_of,
    problems,
    read_architecture,
)
from weights_convert.names import (
    GAUSSIAN,
    HUGGINGFACE_ALIAS,
    Entry,
    by_our_names,
    decoder_entries,
    encoder_entries,
    prompt_entries,
)
from weights_convert.pytorch_file import read_pytorch
from weights_convert.safetensors_file import SafetensorsFile

# Parts of names that give other models away, and what those are.
_OTHERS = {
    "image_encoder.trunk.": "a SAM 2 checkpoint",
    "memory_attention.": "a SAM 2 checkpoint",
    "vision_encoder.backbone.": "a SAM 2 checkpoint",
    "image_encoder.patch_embed.seq.": "a MobileSAM checkpoint",
    "image_encoder.layers.": "a MobileSAM checkpoint",
}


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A SAM, or an mSAM of the official code, whose every tensor has been accounted for.

    Attributes:
      get: the tensor of an entry, in PyTorch's axis order.
      kind: what the source was: `official`, `huggingface` or `base`.
      source: of a base, where its weights were from.
      huggingface_alias: whether a Hugging Face source had its positions under two names.
    """

    architecture: Architecture
    entries: Sequence[Entry]
    get: Callable[[Entry], np.ndarray]
    kind: str
    source: Mapping[str, object] | None = None
    huggingface_alias: bool = False


def open_checkpoint(path: Path, tasks: Sequence[str] = (), heads: int = 8) -> Checkpoint:
    """Opens a file, or a Hugging Face folder, of any kind.

    Args:
      path: of the file or folder, or the name of a base that the package ships.
      tasks: names for an MTSAM checkpoint's decoders, in their order; by default "0", "1", ….
      heads: of the decoder, which the shapes cannot tell; a base knows its own.

    Raises:
      UserError: it is no SAM checkpoint, or not a whole one; every problem is named.
    """
    path = base_path(path)
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}")
    if _sniff(path) == "safetensors":
        file = SafetensorsFile(path)
        if HEADER_KEY in file.metadata:
            return _open_base(file, path)
        return from_state_dict(file, tasks, heads, name=str(path))
    return from_state_dict(read_pytorch(path), tasks, heads, name=str(path))


def from_state_dict(
    state: Mapping[str, np.ndarray], tasks: Sequence[str] = (), heads: int = 8, *, name: str
) -> Checkpoint:
    """A state dict under official or Hugging Face names; `name` is for messages.

    Raises:
      UserError: as `open_checkpoint`.
    """
    for part, what in _OTHERS.items():
        if any(key.startswith(part) for key in state):
            raise UserError(
                f"{name} is {what} (it has {part}*); only the first SAM, ViT-B, ViT-L and ViT-H, "
                "can be converted"
            )
    kind, names = _official_names(state)
    if not any(key.startswith("image_encoder.") for key in names):
        some = ", ".join(list(state)[:3]) or "no tensor at all"
        raise UserError(f"{name} is not a SAM checkpoint: it has {some}")
    shapes = {official: tuple(state[key].shape) for official, key in names.items()}
    alias = kind == "huggingface" and HUGGINGFACE_ALIAS in shapes
    if alias:
        del shapes[HUGGINGFACE_ALIAS]
    architecture = read_architecture(shapes, tasks, heads)
    wrong = problems(architecture, shapes, kind)
    positions = state.get(GAUSSIAN.huggingface, state.get(HUGGINGFACE_ALIAS))
    if alias and not np.array_equal(state[HUGGINGFACE_ALIAS], positions):
        wrong.append(f"{HUGGINGFACE_ALIAS} differs from {GAUSSIAN.huggingface}")
    if wrong:
        raise UserError(f"{name} is not a whole SAM: {'; '.join(wrong)}")
    return Checkpoint(
        architecture,
        entries_of(architecture),
        lambda entry: state[names[entry.official]],
        kind,
        huggingface_alias=alias,
    )


def our_tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor by our name, blocks stacked."""
    for name, entries in by_our_names(checkpoint.entries).items():
        parts = np.stack([entry.layout.ours(checkpoint.get(entry)) for entry in entries])
        yield name, parts.reshape(*entries[0].stack, *parts.shape[1:])


def check_finite(checkpoint: Checkpoint) -> None:
    """Reads every tensor once.

    Raises:
      UserError: some have NaN or infinite values; all of these are named.
    """
    bad = [e.official for e in checkpoint.entries if not np.isfinite(checkpoint.get(e)).all()]
    if bad:
        raise UserError(f"NaN or infinite values in {', '.join(bad)}")


def _official_names(state: Mapping[str, np.ndarray]) -> tuple[str, dict[str, str]]:
    """The kind of a state dict, and its keys by official names; unknown ones keep their name."""
    depth = count(state, r"vision_encoder\.layers\.(\d+)\.")
    if not depth:
        return "official", {key: key for key in state}
    layers = count(state, r"mask_decoder\.transformer\.layers\.(\d+)\.")
    masks = count(state, r"mask_decoder\.output_hypernetworks_mlps\.(\d+)\.")
    table = [*encoder_entries(depth, 1), *prompt_entries(), *decoder_entries(layers, masks)]
    official = {entry.huggingface: entry.official for entry in table}
    return "huggingface", {official.get(key, key): key for key in state}


def _open_base(file: SafetensorsFile, path: Path) -> Checkpoint:
    description = Description.of_header(file.metadata, path)
    ranks = next((file[name].shape[-3:] for name in file if name.endswith("adapter.G")), None)
    architecture = Architecture(description.config, description.tasks, ranks)
    entries = entries_of(architecture)
    ours = {entry.ours for entry in entries}
    wrong = [f"missing {n}" for n in ours - set(file)]
    wrong += [f"unexpected {n}" for n in set(file) - ours]
    if wrong:
        raise UserError(f"{path} is not a whole base: {'; '.join(sorted(wrong))}")
    return Checkpoint(
        architecture,
        entries,
        lambda entry: entry.layout.theirs(file[entry.ours][entry.index]),
        "base",
        description.source,
        bool(description.source.get("huggingface_alias")),
    )


def _sniff(path: Path) -> str:
    """`safetensors` or `pytorch`, from a file's first bytes.

    Raises:
      UserError: it is plainly neither.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        head = file.read(512)
    if not head:
        raise UserError(f"{path} is empty")
    if head.lstrip().startswith(b"<"):
        raise UserError(f"{path} is a web page, not a checkpoint: the download went wrong")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a Git LFS pointer, not a checkpoint: run git lfs pull")
    if head[8:9] == b"{" or path.suffix == ".safetensors":
        return "safetensors"
    if head.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise UserError(f"{path} is cut short after {size} bytes: download it again")
    return "pytorch"
