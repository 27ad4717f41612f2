"""The conversion table: every tensor of SAM and of the official mSAM, by all its names.

Sources: the state dicts of `segment_anything`, of the official MTSAM release (which keeps SAM's
names, adds `td_*` factors to every qkv, numbers the mask decoders by task and has one no-mask row
per output channel) and of `transformers.SamModel` (other names, the same tensors).

Here, blocks are stacked: block i of the official encoder is entry `index` of `window_blocks`
[stages, n, ...] or of `global_blocks` [stages, ...], see `ImageEncoderConfig.places`.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

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
    """One tensor: its names, its place in our stack, and its layout.

    What Hugging Face has no name for (adapters, decoders by task) carries a name of no use.
    """

    official: str
    huggingface: str
    ours: str
    layout: Layout
    index: tuple[int, ...] = ()
    stack: tuple[int, ...] = ()


# Kinds of layer: PyTorch's suffix, ours, layout.
_LINEAR = (("weight", "kernel", LINEAR), ("bias", "bias", SAME))
_NORM = (("weight", "scale", SAME), ("bias", "bias", SAME))
_CONV = (("weight", "kernel", CONV), ("bias", "bias", SAME))
_CONV_NO_BIAS = (("weight", "kernel", CONV),)
_UPSCALE1 = (("weight", "kernel1", TRANSPOSED), ("bias", "bias1", SAME))
_UPSCALE2 = (("weight", "kernel2", TRANSPOSED), ("bias", "bias2", SAME))
_EMBEDDING = (("weight", "", SAME),)
_RAW = (("", "", SAME),)
_POSITIONS = (("", "", UNBATCHED),)

# Official layer, Hugging Face's, ours, kind.
_PATCHES = (
    ("pos_embed", "pos_embed", "pos_embed", _POSITIONS),
    ("patch_embed.proj", "patch_embed.projection", "patch_embed", _CONV),
    ("neck.0", "neck.conv1", "neck.conv1", _CONV_NO_BIAS),
    ("neck.1", "neck.layer_norm1", "neck.neck_norm1", _NORM),
    ("neck.2", "neck.conv2", "neck.conv2", _CONV_NO_BIAS),
    ("neck.3", "neck.layer_norm2", "neck.neck_norm2", _NORM),
)
_BLOCK = (
    ("norm1", "layer_norm1", "norm1", _NORM),
    ("attn.qkv", "attn.qkv", "attn.qkv", _LINEAR),
    ("attn.proj", "attn.proj", "attn.proj", _LINEAR),
    ("attn.rel_pos_h", "attn.rel_pos_h", "attn.rel_pos_h", _RAW),
    ("attn.rel_pos_w", "attn.rel_pos_w", "attn.rel_pos_w", _RAW),
    ("norm2", "layer_norm2", "norm2", _NORM),
    ("mlp.lin1", "mlp.lin1", "lin1", _LINEAR),
    ("mlp.lin2", "mlp.lin2", "lin2", _LINEAR),
)
_TUCKER = tuple(
    (f"attn.qkv.td_{f}", "", f"attn.adapter.{f}", _RAW) for f in ("U1", "U2", "U3", "G")
)
_PROMPT = (
    ("no_mask_embed", "no_mask_embed", "no_mask_embed", _EMBEDDING),
    ("not_a_point_embed", "not_a_point_embed", "not_a_point_embed", _EMBEDDING),
    ("mask_downscaling.0", "mask_embed.conv1", "mask_downscaling.conv1", _CONV),
    ("mask_downscaling.1", "mask_embed.layer_norm1", "mask_downscaling.norm1", _NORM),
    ("mask_downscaling.3", "mask_embed.conv2", "mask_downscaling.conv2", _CONV),
    ("mask_downscaling.4", "mask_embed.layer_norm2", "mask_downscaling.norm2", _NORM),
    ("mask_downscaling.6", "mask_embed.conv3", "mask_downscaling.conv3", _CONV),
)
GAUSSIAN = Entry(
    "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    "shared_image_embedding.positional_embedding",
    "prompt_encoder.positions.gaussian_matrix",
    SAME,
)
# `SamModel` has the positions twice, tied; some of its files do too.
HUGGINGFACE_ALIAS = "prompt_encoder.shared_embedding.positional_embedding"
_DECODER = (
    ("iou_token", "iou_token", "iou_token", _EMBEDDING),
    ("mask_tokens", "mask_tokens", "mask_tokens", _EMBEDDING),
    ("output_upscaling.0", "upscale_conv1", "output_upscaling", _UPSCALE1),
    ("output_upscaling.1", "upscale_layer_norm", "output_upscaling.norm", _NORM),
    ("output_upscaling.3", "upscale_conv2", "output_upscaling", _UPSCALE2),
)
_ATTENTION = tuple((p, p, p, _LINEAR) for p in ("q_proj", "k_proj", "v_proj", "out_proj"))
_TWO_WAY = (
    *((f"norm{i}", f"layer_norm{i}", f"norm{i}", _NORM) for i in range(1, 5)),
    *((f"mlp.lin{i}", f"mlp.lin{i}", f"lin{i}", _LINEAR) for i in (1, 2)),
)
_LAST_NORM = (("norm_final_attn", "layer_norm_final_attn", "norm_final_attn", _NORM),)
_MLP = (
    ("layers.0", "proj_in", "layers.0", _LINEAR),
    ("layers.1", "layers.0", "layers.1", _LINEAR),
    ("layers.2", "proj_out", "layers.2", _LINEAR),
)


def _rows(rows, prefixes: tuple[str, str, str], **place) -> Iterator[Entry]:
    """A layer table under its prefixes (official, Hugging Face's, ours): one entry per tensor."""
    for *layers, tensors in rows:
        for suffix, our_suffix, layout in tensors:
            names = zip(prefixes, layers, (suffix, suffix, our_suffix), strict=True)
            yield Entry(*(".".join(filter(None, parts)) for parts in names), layout, **place)


def encoder_entries(
    places: Sequence[tuple[str, tuple[int, ...]]],
    stacks: Mapping[str, tuple[int, ...]],
    *,
    adapters: bool = False,
) -> Iterator[Entry]:
    """The image encoder; with `adapters`, the Tucker factors of every block too.

    Args:
      places, stacks: of `models.encoder_config.ImageEncoderConfig`.
    """
    yield from _rows(_PATCHES, ("image_encoder", "vision_encoder", "image_encoder"))
    rows = _BLOCK + _TUCKER if adapters else _BLOCK
    for i, (stack, index) in enumerate(places):
        prefixes = (
            f"image_encoder.blocks.{i}",
            f"vision_encoder.layers.{i}",
            f"image_encoder.{stack}",
        )
        yield from _rows(rows, prefixes, index=index, stack=stacks[stack])


def prompt_entries() -> Iterator[Entry]:
    """The prompt encoder. mSAM keeps its positions and its no-mask row."""
    yield GAUSSIAN
    yield from _rows(_PROMPT, ("prompt_encoder",) * 3)
    for i in range(4):
        yield Entry(
            f"prompt_encoder.point_embeddings.{i}.weight",
            f"prompt_encoder.point_embed.{i}.weight",
            "prompt_encoder.point_embeddings",
            UNBATCHED,
            index=(i,),
            stack=(4,),
        )


def decoder_entries(
    depth: int, mask_tokens: int, official: str = "mask_decoder", ours: str = "mask_decoder"
) -> Iterator[Entry]:
    """One mask decoder under the given names."""
    base = (official, "mask_decoder", ours)

    def under(path: str) -> tuple[str, str, str]:
        return tuple(f"{name}.{path}" for name in base)

    yield from _rows(_DECODER, base)
    for i in range(depth):
        layer = f"transformer.layers.{i}"
        for attention in ("self_attn", "cross_attn_token_to_image", "cross_attn_image_to_token"):
            yield from _rows(_ATTENTION, under(f"{layer}.{attention}"))
        yield from _rows(_TWO_WAY, under(layer))
    yield from _rows(_ATTENTION, under("transformer.final_attn_token_to_image"))
    yield from _rows(_LAST_NORM, under("transformer"))
    for i in range(mask_tokens):
        yield from _rows(_MLP, under(f"output_hypernetworks_mlps.{i}"))
    yield from _rows(_MLP, under("iou_prediction_head"))


def by_our_names(entries: Iterable[Entry]) -> dict[str, list[Entry]]:
    """The entries that make up each of our tensors, in the order in which they lie in memory."""
    tensors: dict[str, list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: (entry.ours, entry.index)):
        tensors.setdefault(entry.ours, []).append(entry)
    return tensors
