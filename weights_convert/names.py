"""The conversion table: every tensor of SAM and of the official mSAM, by both names.

Source: the state dicts of `segment_anything` and of the official MTSAM release (which keeps SAM's
names, adds `td_*` factors to every qkv, numbers the mask decoders by task and has one no-mask row
per output channel).

Here, blocks are stacked: block i of the official encoder is entry `index` of `window_blocks`
[stages, n, ...] or of `global_blocks` [stages, ...].
"""

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator

import numpy as np


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a PyTorch tensor's axes become ours, and back."""

    ours: Callable[[np.ndarray], np.ndarray]
    theirs: Callable[[np.ndarray], np.ndarray]


def _permute(*axes: int) -> Layout:
    back = tuple(int(i) for i in np.argsort(axes))
    return Layout(lambda x: np.transpose(x, axes), lambda x: np.transpose(x, back))


SAME = Layout(lambda x: x, lambda x: x)
UNBATCHED = Layout(lambda x: x[0], lambda x: x[None])  # [1, ...] → [...]
LINEAR = _permute(1, 0)  # [out, in] → [in, out]
CONV = _permute(2, 3, 1, 0)  # [out, in, y, x] → [y, x, in, out]
TRANSPOSED = _permute(0, 2, 3, 1)  # [in, out, y, x] → [in, y, x, out]


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor: its official name, ours, its place in our stack, and its layout."""

    theirs: str
    ours: str
    layout: Layout
    index: tuple[int, ...] = ()
    stack: tuple[int, ...] = ()


# Kinds of layer: official suffix, our suffix, layout.
_LINEAR = (("weight", "kernel", LINEAR), ("bias", "bias", SAME))
_NORM = (("weight", "scale", SAME), ("bias", "bias", SAME))
_CONV = (("weight", "kernel", CONV), ("bias", "bias", SAME))
_CONV_NO_BIAS = (("weight", "kernel", CONV),)
_EMBEDDING = (("weight", "", SAME),)
_RAW = (("", "", SAME),)

_PATCHES = (
    ("pos_embed", "pos_embed", (("", "", UNBATCHED),)),
    ("patch_embed.proj", "patch_embed", _CONV),
    ("neck.0", "neck.conv1", _CONV_NO_BIAS),
    ("neck.1", "neck.neck_norm1", _NORM),
    ("neck.2", "neck.conv2", _CONV_NO_BIAS),
    ("neck.3", "neck.neck_norm2", _NORM),
)
_BLOCK = (
    ("norm1", "norm1", _NORM),
    ("attn.qkv", "attn.qkv", _LINEAR),
    ("attn.proj", "attn.proj", _LINEAR),
    ("attn.rel_pos_h", "attn.rel_pos_h", _RAW),
    ("attn.rel_pos_w", "attn.rel_pos_w", _RAW),
    ("norm2", "norm2", _NORM),
    ("mlp.lin1", "lin1", _LINEAR),
    ("mlp.lin2", "lin2", _LINEAR),
)
_TUCKER = tuple((f"attn.qkv.td_{f}", f"attn.adapter.{f}", _RAW) for f in ("U1", "U2", "U3", "G"))
_ATTENTION = tuple((p, p, _LINEAR) for p in ("q_proj", "k_proj", "v_proj", "out_proj"))
_TWO_WAY_NORMS = tuple((f"norm{i}", f"norm{i}", _NORM) for i in range(1, 5))
_MLP = tuple((f"layers.{i}", f"layers.{i}", _LINEAR) for i in range(3))
_DECODER = (
    ("iou_token", "iou_token", _EMBEDDING),
    ("mask_tokens", "mask_tokens", _EMBEDDING),
    ("transformer.norm_final_attn", "transformer.norm_final_attn", _NORM),
    (
        "output_upscaling.0",
        "output_upscaling",
        (("weight", "kernel1", TRANSPOSED), ("bias", "bias1", SAME)),
    ),
    ("output_upscaling.1", "output_upscaling.norm", _NORM),
    (
        "output_upscaling.3",
        "output_upscaling",
        (("weight", "kernel2", TRANSPOSED), ("bias", "bias2", SAME)),
    ),
)
_PROMPT = (
    ("pe_layer.positional_encoding_gaussian_matrix", "positions.gaussian_matrix", _RAW),
    ("no_mask_embed", "no_mask_embed", _EMBEDDING),
    ("not_a_point_embed", "not_a_point_embed", _EMBEDDING),
    ("mask_downscaling.0", "mask_downscaling.conv1", _CONV),
    ("mask_downscaling.1", "mask_downscaling.norm1", _NORM),
    ("mask_downscaling.3", "mask_downscaling.conv2", _CONV),
    ("mask_downscaling.4", "mask_downscaling.norm2", _NORM),
    ("mask_downscaling.6", "mask_downscaling.conv3", _CONV),
)


def _rows(rows, theirs: str, ours: str, **place) -> Iterator[Entry]:
    """A layer table under two prefixes, one entry per tensor."""
    for their_layer, our_layer, tensors in rows:
        for their_suffix, our_suffix, layout in tensors:
            yield Entry(
                ".".join(filter(None, (theirs, their_layer, their_suffix))),
                ".".join(filter(None, (ours, our_layer, our_suffix))),
                layout,
                **place,
            )


def encoder_entries(depth: int, stages: int, *, adapters: bool = False) -> Iterator[Entry]:
    """The image encoder; with `adapters`, the Tucker factors of every block too."""
    yield from _rows(_PATCHES, "image_encoder", "image_encoder")
    per_stage = depth // stages
    for i in range(depth):
        stage, place = divmod(i, per_stage)
        if place < per_stage - 1:
            ours, where = (
                "window_blocks",
                {"index": (stage, place), "stack": (stages, per_stage - 1)},
            )
        else:
            ours, where = "global_blocks", {"index": (stage,), "stack": (stages,)}
        rows = _BLOCK + _TUCKER if adapters else _BLOCK
        yield from _rows(rows, f"image_encoder.blocks.{i}", f"image_encoder.{ours}", **where)


def decoder_entries(depth: int, mask_tokens: int, theirs: str, ours: str) -> Iterator[Entry]:
    """One mask decoder under the given names."""
    yield from _rows(_DECODER, theirs, ours)
    for i, attention in itertools.product(
        range(depth), ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token")
    ):
        layer = f"transformer.layers.{i}.{attention}"
        yield from _rows(_ATTENTION, f"{theirs}.{layer}", f"{ours}.{layer}")
    for i in range(depth):
        layer = f"transformer.layers.{i}"
        yield from _rows(_TWO_WAY_NORMS, f"{theirs}.{layer}", f"{ours}.{layer}")
        mlp = tuple((f"mlp.{lin}", lin, _LINEAR) for lin in ("lin1", "lin2"))
        yield from _rows(mlp, f"{theirs}.{layer}", f"{ours}.{layer}")
    final = "transformer.final_attn_token_to_image"
    yield from _rows(_ATTENTION, f"{theirs}.{final}", f"{ours}.{final}")
    for head in (
        "iou_prediction_head",
        *(f"output_hypernetworks_mlps.{i}" for i in range(mask_tokens)),
    ):
        yield from _rows(_MLP, f"{theirs}.{head}", f"{ours}.{head}")


def prompt_entries() -> Iterator[Entry]:
    """The prompt encoder. mSAM keeps its positions and its no-mask row."""
    yield from _rows(_PROMPT, "prompt_encoder", "prompt_encoder")
    for i in range(4):
        yield Entry(
            f"prompt_encoder.point_embeddings.{i}.weight",
            "prompt_encoder.point_embeddings",
            UNBATCHED,
            index=(i,),
            stack=(4,),
        )


def to_ours(entries: Iterable[Entry], get: Callable[[str], np.ndarray]) -> dict[str, np.ndarray]:
    """Our tensors, blocks stacked, from a function that gives an official tensor by name."""
    tensors: dict[str, np.ndarray] = {}
    for entry in entries:
        value = entry.layout.ours(get(entry.theirs))
        if entry.stack:
            if entry.ours not in tensors:
                tensors[entry.ours] = np.empty((*entry.stack, *value.shape), value.dtype)
            tensors[entry.ours][entry.index] = value
        else:
            tensors[entry.ours] = np.ascontiguousarray(value)
    return tensors
