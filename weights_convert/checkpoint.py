"""Opens a SAM checkpoint of any kind and shows it under the official names.

Kinds, told by their content: official `.pth` files (SAM and the MTSAM release), Hugging Face files
and folders, and this project's bases. Tensors stay on disk until they are asked for.

What the original computes at every call is done here once: tables of relative positions that do not
fit the grid are interpolated as in `resize`, and where there are none, they are zeros. So are the
biases of q, k and v of an encoder without (`qkv_bias=False`).
"""

import codecs
import dataclasses
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from talora_jax.errors import UserError, listed, printable, short
from talora_jax.models.encoder_config import ImageEncoderConfig
from talora_jax.models.geometry import PIXEL_MEAN, PIXEL_STD
from talora_jax.models.mask_decoder import MaskDecoderConfig
from talora_jax.weights.base_file import Description, base_path
from talora_jax.weights.header import ADAPTERS, HEADER_KEY, check_tensors, is_whole, tensors_sha256
from weights_convert.architecture import (
    NOTHING_TOLD,
    Architecture,
    Told,
    count,
    entries_of,
    expected_shapes,
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
from weights_convert.positions import fit_positions, interpolated
from weights_convert.pytorch_file import is_zip, read_pytorch
from weights_convert.safetensors_file import SafetensorsFile
from weights_convert.unwrap import prefix_of, unwrapped

# Parts of names that give other models away, and what those are.
_OTHERS = {
    "image_encoder.trunk.": "a SAM 2 checkpoint",
    "memory_attention.": "a SAM 2 checkpoint",
    "sam_mask_decoder.": "a SAM 2 checkpoint",
    "vision_encoder.backbone.": "a SAM 2 checkpoint",
    "image_encoder.patch_embed.seq.": "a MobileSAM checkpoint",
    "image_encoder.layers.": "a MobileSAM checkpoint",
    "mask_decoder.compress_vit_feat.": "a SAM-HQ checkpoint",
    "mask_decoder.embedding_encoder.": "a SAM-HQ checkpoint",
    "mask_decoder.hf_mlp.": "a SAM-HQ checkpoint",
    "mask_decoder.hq_token.": "a SAM-HQ checkpoint",
}
# What the tensors are that are a part of a SAM.
_ADAPTERS = re.compile(
    r"lora_|(^|\.)(w_[ab]_\d|linear_[ab]_)|(^|\.)adapters?\.|\.td_(U\d|G)$|Adapter"
)
_DECODER = re.compile(r"^(prompt_encoder|mask_decoders?|transformer\.layers|mask_tokens|iou_)")
_ENCODER = re.compile(r"^(encoder\.)?(blocks\.\d+\.|pos_embed$|patch_embed\.|neck\.)")
# Where a Hugging Face folder has its weights, the best first.
_HUGGINGFACE_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# Of the mask decoder of every released SAM.
HEADS = MaskDecoderConfig.heads
_POS_EMBED = "image_encoder.pos_embed"
_QKV_WEIGHT, _QKV_BIAS = ".attn.qkv.weight", ".attn.qkv.bias"


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """A SAM, or an mSAM of the official code, whose every tensor has been accounted for.

    Attributes:
      get: the tensor of an entry, in PyTorch's axis order.
      kind: what the source was: `official`, `huggingface` or `base`.
      source: of a base, where its weights were from.
      huggingface_alias: whether a Hugging Face source had its positions under two names.
      native_aspect: of a base, whether it learnt from images without padding to a square.
      files: what it was read from.
      notes: what was taken, left or changed, to be told.
    """

    architecture: Architecture
    entries: Sequence[Entry]
    get: Callable[[Entry], np.ndarray]
    kind: str
    source: Mapping[str, object] | None = None
    huggingface_alias: bool = False
    native_aspect: bool = False
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


def open_checkpoint(
    path: Path,
    tasks: Sequence[str] = (),
    heads: int | None = None,
    told: Told = NOTHING_TOLD,
    key: str | None = None,
) -> Checkpoint:
    """Opens a file, or a Hugging Face folder, of any kind.

    Args:
      path: of the file or folder, or the name of a base that the package ships.
      tasks: names for an MTSAM checkpoint's decoders, in their order; by default "0", "1", ….
      heads: of the decoder, which the shapes cannot tell; a base and a folder's config.json know
        their own, and others have SAM's 8.
      told: of the encoder, what its tensors leave open.
      key: which of several sets of weights, see `unwrap.weights_in`.

    Raises:
      UserError: it is no SAM checkpoint, or not a whole one; its problems are named.
    """
    # A folder is Hugging Face's where it can be: another may stand for a base of ours.
    weights, config = _weights_in(path), {}
    if weights:
        config = _huggingface_config(path)
    path = weights or base_path(path)
    if path.is_dir():
        raise UserError(
            f"{path} is a folder without weights: expected one of {', '.join(_HUGGINGFACE_FILES)}, "
            "as Hugging Face has them; or give the checkpoint's file"
        )
    if not path.is_file():
        raise UserError(f"no checkpoint at {path}")
    files, state, notes = (path,), {}, []
    if path.name.endswith(".index.json"):
        files = _shards(path)
    for file in files:
        if _sniff(file) == "safetensors":
            part = SafetensorsFile(file)
            if HEADER_KEY in part.metadata:
                return _open_base(part, file)
            if part.metadata.get("format", "").startswith(ADAPTERS):
                raise UserError(
                    f"{file} is an adapter file of talora_jax: give the base it was trained on as "
                    f"INPUT, with --adapter={file} and --channel=TASK"
                )
        else:
            part, told_of = read_pytorch(file, key)
            notes += told_of
            if file.suffix == ".safetensors":
                notes.append("it is a PyTorch file, whatever its name says")
        state = part if len(files) == 1 else {**state, **part}
    vision, decoder = (config.get(f"{part}_config") for part in ("vision", "mask_decoder"))
    if heads is None:
        heads = _whole(decoder, "num_attention_heads")
    known = HEADS if heads is None else heads
    found = from_state_dict(state, tasks, known, _filled_in(told, vision), name=str(path))
    if heads is None and found.architecture.sam.decoder.dim != MaskDecoderConfig.dim:
        notes.append(
            f"took {HEADS} for the attention heads of its mask decoder, which no tensor shows: "
            "--decoder-heads=N tells another number"
        )
    return dataclasses.replace(found, files=files, notes=(*notes, *found.notes))


def _weights_in(folder: Path) -> Path | None:
    """The file of a Hugging Face folder that has its weights, or tells which files have them; None
    if it is no such folder."""
    files = (folder / name for name in _HUGGINGFACE_FILES)
    return next((file for file in files if file.is_file()), None)


def _shards(index: Path) -> tuple[Path, ...]:
    """The files that an index names, in the order of their names.

    Raises:
      UserError: it is no index, or some files are missing.
    """
    try:
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        names = []
    if not names or not all(isinstance(n, str) and Path(n).name == n for n in names):
        raise UserError(f"{index} is no index of a Hugging Face model: expected a weight_map")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise UserError(f"{index.parent} lacks {listed(missing)}, which {index.name} names")
    return tuple(index.parent / name for name in names)


def _huggingface_config(folder: Path) -> Mapping:
    """What a folder's config.json tells; nothing if it has none that can be read."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def _filled_in(told: Told, vision: Any) -> Told:
    """What was told of an encoder, and for the rest what a folder's config.json tells."""
    places = vision.get("global_attn_indexes") if isinstance(vision, dict) else None
    if not isinstance(places, list) or not all(is_whole(i, 0, 2**10) for i in places):
        return told
    window = _whole(vision, "window_size")
    heads = _whole(vision, "num_attention_heads")
    given = (told.window, told.global_blocks, told.heads)
    known = zip(given, (window, tuple(places), heads), strict=True)
    return Told(*(mine if mine is not None else theirs for mine, theirs in known))


def _whole(fields: Any, name: str) -> int | None:
    value = fields.get(name) if isinstance(fields, dict) else None
    return value if is_whole(value, 1, 2**10) else None


def from_state_dict(
    state: Mapping[str, np.ndarray],
    tasks: Sequence[str] = (),
    heads: int = HEADS,
    told: Told = NOTHING_TOLD,
    *,
    name: str,
) -> Checkpoint:
    """A state dict under official or Hugging Face names; `name` is for messages.

    Raises:
      UserError: as `open_checkpoint`.
    """
    notes = []
    prefix = prefix_of(state, name)
    if prefix:
        notes.append(f"took the prefix {printable(prefix)} off every name")
    keys = {key.removeprefix(prefix): key for key in state}
    bare = {unwrapped(inside): key for inside, key in keys.items()}
    if twice := [inside for inside in keys if bare[unwrapped(inside)] != keys[inside]]:
        raise UserError(
            f"{name} has tensors twice, of a module and of what is wrapped around it: "
            f"{listed(twice)}; save the one to convert by itself"
        )
    if bare != keys:
        keys = bare
        notes.append("took the names of wrappers out of the names inside it")
    for pixels, values in (("pixel_mean", PIXEL_MEAN), ("pixel_std", PIXEL_STD)):
        found = np.ravel(state[keys[pixels]]) if pixels in keys else ()
        if len(found) == len(values) and np.allclose(found, values, rtol=0, atol=1e-3):
            del keys[pixels]
            notes.append(f"left {pixels}, which is every SAM's")
    kind, names = _official_names(keys)
    _check_kind(names, name)
    shapes = {official: tuple(state[key].shape) for official, key in names.items()}
    alias = kind == "huggingface" and HUGGINGFACE_ALIAS in shapes
    if alias:
        del shapes[HUGGINGFACE_ALIAS]
    if _POS_EMBED not in shapes and "image_encoder.patch_embed.proj.weight" in shapes:
        shown = "vision_encoder.pos_embed" if kind == "huggingface" else _POS_EMBED
        raise UserError(
            f"{name} is not a whole SAM: missing {shown}, absolute positions, "
            "which tell the image's size; if its encoder has none (use_abs_pos=False), add zeros "
            "[1, image_size / patch_size, image_size / patch_size, width] under that name"
        )
    architecture = read_architecture(shapes, tasks, heads, told)
    tables, changes = fit_positions(architecture.sam.encoder, shapes)
    if not any(official.endswith(_QKV_BIAS) for official in shapes):
        weights = [official for official in shapes if official.endswith(_QKV_WEIGHT)]
        biases = {w.removesuffix(_QKV_WEIGHT) + _QKV_BIAS: shapes[w][:1] for w in weights}
        tables |= biases
        changes = [*changes, "no biases of q, k and v, they are zeros"] if biases else changes
    wrong = problems(architecture, shapes | tables, kind)
    positions = names.get(GAUSSIAN.official)
    if (
        alias
        and positions
        and not np.array_equal(state[names[HUGGINGFACE_ALIAS]], state[positions])
    ):
        wrong.append(f"{HUGGINGFACE_ALIAS} differs from {GAUSSIAN.huggingface}")
    if wrong:
        raise UserError(f"{name} is not a whole SAM: {listed(wrong, between='; ')}")

    def get(entry: Entry) -> np.ndarray:
        official = entry.official
        if official not in names:
            # As wide as the block's other parameters.
            beside = state[names[official.partition(".attn.")[0] + _QKV_WEIGHT]]
            return np.zeros(tables[official], beside.dtype)
        x = np.asarray(state[names[official]])
        return interpolated(x, tables[official][0]) if official in tables else x

    return Checkpoint(
        architecture,
        entries_of(architecture),
        get,
        kind,
        huggingface_alias=alias,
        notes=(*notes, *changes),
    )


def _check_kind(names: Collection[str], name: str) -> None:
    """Refuses, by what it is, a state dict that is no SAM or a part of one.

    Raises:
      UserError: it is.
    """
    for part, what in _OTHERS.items():
        if any(key.startswith(part) for key in names):
            raise UserError(
                f"{name} is {what} (it has {part}*); only the first SAM, ViT-B, ViT-L and ViT-H, "
                "can be converted"
            )
    # MTSAM's are a part of it.
    adapters = [key for key in names if _ADAPTERS.search(key) and ".td_" not in key]
    whole = [key for key in names if not _ADAPTERS.search(key)]
    if not any(key.startswith("image_encoder.") for key in whole):
        some = listed(list(names)[:3]) or "no tensor at all"
        for pattern, what in (
            (_ADAPTERS, "adapters without the SAM they were trained on"),
            (_DECODER, "a mask decoder without an image encoder"),
            (_ENCODER, "an image encoder without a mask decoder"),
        ):
            if any(map(pattern.search, names)):
                raise UserError(
                    f"{name} is {what} (it has {some}): load it into the SAM that it belongs to, "
                    "and save the state_dict() of the whole"
                )
        raise UserError(f"{name} is not a SAM checkpoint: it has {some}")
    if adapters:
        raise UserError(
            f"{name} is a SAM with adapters in it (it has {listed(adapters[:3])}), which a plain "
            "SAM does not compute: merge them into its weights, where that can be done"
        )
    if all(key.startswith("image_encoder.") for key in names):
        raise UserError(
            f"{name} is an image encoder without a mask decoder: load it into a whole SAM, and "
            "save the state_dict() of that"
        )


def our_tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor by our name, blocks stacked."""
    for name, entries in by_our_names(checkpoint.entries).items():
        parts = [entry.layout.ours(checkpoint.get(entry)) for entry in entries]
        dtype = common_dtype(part.dtype for part in parts)
        stacked = np.stack([part.astype(dtype) for part in parts])
        yield name, stacked.reshape(*entries[0].stack, *stacked.shape[1:])


def common_dtype(dtypes: Iterable[np.dtype]) -> np.dtype:
    """The narrowest dtype that holds the values of all of these, none of them rounded."""
    kinds = set(dtypes)
    if len(kinds) == 1:
        (only,) = kinds
        return only
    return np.dtype(np.float64 if np.dtype(np.float64) in kinds else np.float32)


def check_finite(checkpoint: Checkpoint) -> None:
    """Reads every tensor once.

    Raises:
      UserError: some have NaN or infinite values; these are named.
    """
    bad = [e.official for e in checkpoint.entries if not np.isfinite(checkpoint.get(e)).all()]
    if bad:
        raise UserError(f"NaN or infinite values in {listed(bad)}")


def _official_names(keys: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """The kind of a state dict, and its keys by official names; unknown ones keep their name.

    Args:
      keys: of the state dict, by their names without a prefix.
    """
    depth = count(keys, r"vision_encoder\.layers\.(\d+)\.")
    if not depth:
        return "official", dict(keys)
    layers = count(keys, r"mask_decoder\.transformer\.layers\.(\d+)\.")
    masks = count(keys, r"mask_decoder\.output_hypernetworks_mlps\.(\d+)\.")
    # Where in our stacks a block belongs does not matter here.
    encoder = ImageEncoderConfig(stages=depth, window_blocks=0)
    table = [
        *encoder_entries(encoder.places, encoder.stacks),
        *prompt_entries(),
        *decoder_entries(layers, masks),
    ]
    official = {entry.huggingface: entry.official for entry in table}
    return "huggingface", {official.get(name, name): key for name, key in keys.items()}


def _open_base(file: SafetensorsFile, path: Path) -> Checkpoint:
    description = Description.of_header(file.metadata, path)
    ranks = next((file[name].shape[-3:] for name in file if name.endswith("adapter.G")), None)
    architecture = Architecture(description.config, description.tasks, ranks)
    entries = entries_of(architecture)
    expected = expected_shapes(architecture, _rows_of(file, architecture))
    ours = {entry.ours for entry in entries}
    wrong = [f"missing {n}" for n in ours - set(file)]
    wrong += [f"unexpected {n}" for n in set(file) - ours]
    wrong += [
        f"{n} has shape {list(file[n].shape)}, expected {list(expected[n])}"
        for n in ours & set(file)
        if file[n].shape != expected[n]
    ]
    if wrong:
        raise UserError(f"{path} is not a whole base: {listed(sorted(wrong), between='; ')}")
    check_tensors(file.metadata, tensors_sha256(file), path)
    return Checkpoint(
        architecture,
        entries,
        lambda entry: entry.layout.theirs(file[entry.ours][entry.index]),
        "base",
        description.source,
        bool(description.source.get("huggingface_alias")),
        description.native_aspect,
        (path,),
    )


def _rows_of(file: SafetensorsFile, architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Of an mSAM, the shapes under official names whose rows only the file knows."""
    rows = {}
    if architecture.tasks is not None and "prompt_encoder.no_mask_embed" in file:
        rows["prompt_encoder.no_mask_embed.weight"] = file["prompt_encoder.no_mask_embed"].shape
    for name in file:
        if name.endswith("adapter.U2"):
            rows["image_encoder.blocks.0.attn.qkv.td_U2"] = file[name].shape[-2:]
    return rows


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
    if head.removeprefix(codecs.BOM_UTF8).lstrip().startswith(b"<"):
        raise UserError(f"{path} is a web page, not a checkpoint: the download went wrong")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a Git LFS pointer, not a checkpoint: run git lfs pull")
    # PyTorch's: a zip file, or a pickle.
    is_pytorch = head.startswith((b"PK", b"\x80"))
    if head[8:9] == b"{" or (path.suffix == ".safetensors" and not is_pytorch):
        return "safetensors"
    if head.startswith(b"PK") and not is_zip(path):
        raise UserError(f"{path} is cut short after {size} bytes: download it again")
    if not is_pytorch:
        raise UserError(
            f"{path} is {_other(head)}, not a checkpoint: expected a PyTorch or a safetensors file"
        )
    return "pytorch"


def _other(head: bytes) -> str:
    """What a file is whose first bytes are no checkpoint's."""
    if head.startswith(b"\x1f\x8b") or head[257:262] == b"ustar":
        return "an archive to unpack"
    if all(byte in b"\t\n\r" or byte >= 32 for byte in head):
        return f"text (it begins {short(head.decode(errors='replace'), 60)})"
    return "a file of another kind"
