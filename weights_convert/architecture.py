"""Reads SAM's sizes from the shapes of its tensors, so that nobody has to name the model."""

import dataclasses
import functools
import re
import types
from collections.abc import Iterable, Iterator, Mapping

import numpy as np
from flax import nnx

from talora_jax.errors import UserError
from talora_jax.models.image_encoder import ImageEncoderConfig
from talora_jax.models.mask_decoder import MaskDecoderConfig
from talora_jax.models.sam import SIZES, Sam, SamConfig
from weights_convert.names import Entry, decoder_entries, encoder_entries, prompt_entries

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What a state dict holds.

    Attributes:
      sam: the sizes.
      tasks: names of the mask decoders of an official MTSAM checkpoint; None for a plain SAM.
      ranks: Tucker ranks (p, q, v) of an official MTSAM checkpoint; None for a plain SAM.
    """

    sam: SamConfig
    tasks: tuple[str, ...] | None = None
    ranks: tuple[int, int, int] | None = None


def read_architecture(
    shapes: Mapping[str, Shape], tasks: Iterable[str] = (), heads: int = 8
) -> Architecture:
    """The architecture of a state dict under SAM's official names.

    Args:
      shapes: of every tensor, in PyTorch's axis order.
      tasks: names for an MTSAM checkpoint's decoders, in their order; by default "0", "1", ….
      heads: of the decoder, which leave no trace in the shapes; 8 is SAM's own number.

    Raises:
      UserError: the names given do not fit the decoders found.
    """
    found = count(shapes, r"mask_decoder\.(\d+)\.")
    tasks = tuple(tasks)
    if tasks and not len(tasks) == len(set(tasks)) == found:
        held = f"{found} mask decoders by task" if found else "one mask decoder, without a task"
        raise UserError(f"the checkpoint has {held}, but the task names are {', '.join(tasks)}")
    tasks = tasks or tuple(map(str, range(found))) or None
    ranks = shapes.get("image_encoder.blocks.0.attn.qkv.td_G")
    try:
        return Architecture(_read_sam(shapes, heads), tasks, ranks)
    except (LookupError, ValueError, ZeroDivisionError):
        # What tells the sizes is itself missing or misshaped: measure against the nearest SAM.
        named = [Architecture(make(), tasks, ranks) for make in SIZES.values()]
        return min(named, key=lambda a: len(problems(a, shapes)))


def _read_sam(shapes: Mapping[str, Shape], heads: int) -> SamConfig:
    _, grid, _, width = shapes["image_encoder.pos_embed"]
    patch_size = shapes["image_encoder.patch_embed.proj.weight"][-1]
    depth = count(shapes, r"image_encoder\.blocks\.(\d+)\.")
    tables = [shapes[f"image_encoder.blocks.{i}.attn.rel_pos_h"] for i in range(depth)]
    decoder = "mask_decoder.0" if count(shapes, r"mask_decoder\.(\d+)\.") else "mask_decoder"
    mask_tokens, dim = shapes[f"{decoder}.mask_tokens.weight"]

    # Global attention is in the last block of each of a number of equal stages.
    sizes = [(rows + 1) // 2 for rows, _ in tables]
    is_global = [size == grid for size in sizes]
    stages = sum(is_global)
    per_stage = depth // stages
    if is_global != [(i + 1) % per_stage == 0 for i in range(depth)]:
        raise ValueError("no equal stages")
    encoder = ImageEncoderConfig(
        image_size=grid * patch_size,
        patch_size=patch_size,
        width=width,
        heads=width // tables[0][1],
        stages=stages,
        window_blocks=per_stage - 1,
        window=sizes[0],
        out_channels=shapes["image_encoder.neck.0.weight"][0],
    )
    return SamConfig(
        encoder,
        MaskDecoderConfig(
            dim=dim,
            heads=heads,
            mlp_dim=shapes[f"{decoder}.transformer.layers.0.mlp.lin1.weight"][0],
            depth=count(shapes, rf"{re.escape(decoder)}\.transformer\.layers\.(\d+)\."),
            mask_tokens=mask_tokens,
        ),
    )


def entries_of(architecture: Architecture) -> list[Entry]:
    """The table's entries for an architecture."""
    encoder, decoder = architecture.sam.encoder, architecture.sam.decoder
    sizes = (decoder.depth, decoder.mask_tokens)
    entries = [
        *encoder_entries(encoder.depth, encoder.stages, adapters=architecture.ranks is not None),
        *prompt_entries(),
    ]
    if architecture.tasks is None:
        return [*entries, *decoder_entries(*sizes)]
    for i, task in enumerate(architecture.tasks):
        entries += decoder_entries(*sizes, f"mask_decoder.{i}", f"mask_decoders.{task}")
    return entries


def problems(
    architecture: Architecture, shapes: Mapping[str, Shape], kind: str = "official"
) -> list[str]:
    """What keeps shapes, under the official names, from being this architecture; all of it.

    `kind` is the attribute of an entry that names tensors in the messages.
    """
    entries = {entry.official: entry for entry in entries_of(architecture)}
    expected = expected_shapes(architecture, shapes)
    found = [f"missing {getattr(e, kind)}" for name, e in entries.items() if name not in shapes]
    found += [f"unexpected {name}" for name in shapes if name not in entries]
    for name, entry in entries.items():
        theirs = _theirs(entry, expected[entry.ours][len(entry.stack) :])
        if name in shapes and shapes[name] != theirs:
            label = getattr(entry, kind)
            found.append(f"{label} has shape {list(shapes[name])}, expected {list(theirs)}")
    return found


def expected_shapes(
    architecture: Architecture, shapes: Mapping[str, Shape] = types.MappingProxyType({})
) -> dict[str, Shape]:
    """The shape of every tensor of an architecture, by our names, stack axes included.

    An mSAM's number of no-mask rows and of adapted rows are read from `shapes`.
    """
    expected = dict(_sam_shapes(architecture.sam))
    if architecture.tasks is not None:
        for name in [n for n in expected if n.startswith("mask_decoder.")]:
            for task in architecture.tasks:
                expected[name.replace("mask_decoder", f"mask_decoders.{task}", 1)] = expected[name]
        # One no-mask row per output channel: how many, only the checkpoint knows.
        rows = shapes.get("prompt_encoder.no_mask_embed.weight", (1,))[0]
        expected["prompt_encoder.no_mask_embed"] = (rows, architecture.sam.decoder.dim)
    if architecture.ranks is not None:
        expected |= dict(_adapter_shapes(architecture, shapes))
    return expected


@functools.cache
def _sam_shapes(config: SamConfig) -> Mapping[str, Shape]:
    sam = nnx.eval_shape(lambda: Sam(config, rngs=nnx.Rngs(0)))
    return {".".join(map(str, p)): v.shape for p, v in nnx.to_flat_state(nnx.state(sam))}


def _adapter_shapes(
    architecture: Architecture, shapes: Mapping[str, Shape]
) -> Iterator[tuple[str, Shape]]:
    p, q, v = architecture.ranks
    encoder = architecture.sam.encoder
    # U2 has the rows of those of q, k and v that are adapted.
    rows = shapes.get("image_encoder.blocks.0.attn.qkv.td_U2", (3 * encoder.width,))[0]
    factors = {
        "U1": (encoder.width, p),
        "U2": (rows, q),
        "U3": (len(architecture.tasks or ()), v),
        "G": (p, q, v),
    }
    stacks = {
        "window_blocks": (encoder.stages, encoder.window_blocks),
        "global_blocks": (encoder.stages,),
    }
    for blocks, stack in stacks.items():
        for factor, shape in factors.items():
            yield f"image_encoder.{blocks}.attn.adapter.{factor}", stack + shape


def _theirs(entry: Entry, ours: Shape) -> Shape:
    """A shape in PyTorch's axis order; a broadcast zero takes no memory."""
    return entry.layout.theirs(np.broadcast_to(np.float32(0), ours)).shape


def count(names: Iterable[str], pattern: str) -> int:
    """One more than the largest number that the pattern finds in a name; 0 if it finds none."""
    found = (re.match(pattern, name) for name in names)
    return max((int(m.group(1)) + 1 for m in found if m), default=0)
