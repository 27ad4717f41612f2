"""Reads SAM's sizes from the shapes of its tensors, so that nobody has to name the model."""

import dataclasses
import functools
import json
import re
import types
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np
from flax import nnx

from talora_jax.errors import UserError, listed
from talora_jax.models.encoder_config import ImageEncoderConfig
from talora_jax.models.mask_decoder import MaskDecoderConfig
from talora_jax.models.sam import SIZES, Sam, SamConfig
from talora_jax.weights.header import check_sizes
from weights_convert.names import Entry, decoder_entries, encoder_entries, prompt_entries

Shape = tuple[int, ...]
POSITION_TABLE = re.compile(r"image_encoder\.blocks\.(\d+)\.attn\.rel_pos_[hw]")


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


@dataclasses.dataclass(frozen=True)
class Told:
    """What the encoder's tensors may not tell, as somebody told it; None where nobody has.

    Attributes:
      window: tokens along a window's side; 0 for none.
      global_blocks: the numbers of the global blocks.
      heads: of the encoder.
    """

    window: int | None = None
    global_blocks: tuple[int, ...] | None = None
    heads: int | None = None


NOTHING_TOLD = Told()


def read_architecture(
    shapes: Mapping[str, Shape],
    tasks: Iterable[str] = (),
    heads: int = 8,
    told: Told = NOTHING_TOLD,
) -> Architecture:
    """The architecture of a state dict under SAM's official names.

    Args:
      shapes: of every tensor, in PyTorch's axis order.
      tasks: names for an MTSAM checkpoint's decoders, in their order; by default "0", "1", ….
      heads: of the decoder, which leave no trace in the shapes; 8 is SAM's own number.

    Raises:
      UserError: the names given do not fit the decoders found, or the encoder's windows can be read
        in several ways.
    """
    found = count(shapes, r"mask_decoder\.(\d+)\.")
    tasks = tuple(tasks)
    if tasks and not len(tasks) == len(set(tasks)) == found:
        held = f"{found} mask decoders by task" if found else "one mask decoder, without a task"
        raise UserError(f"the checkpoint has {held}, but the task names are {', '.join(tasks)}")
    tasks = tasks or tuple(map(str, range(found))) or None
    ranks = shapes.get("image_encoder.blocks.0.attn.qkv.td_G")
    try:
        sam = _read_sam(shapes, heads, told)
        if _is_possible(sam):
            return Architecture(sam, tasks, ranks)
    except (LookupError, ValueError, ZeroDivisionError):
        pass
    # What tells the sizes is itself missing or misshaped: measure against the nearest SAM.
    named = [Architecture(make(), tasks, ranks) for make in SIZES.values()]
    return min(named, key=lambda a: len(problems(a, shapes)))


def _is_possible(sam: SamConfig) -> bool:
    """Whether the sizes are some that a SAM can have."""
    try:
        check_sizes(json.loads(json.dumps(sam.fields())), "")
    except UserError:
        return False
    return True


def _read_sam(shapes: Mapping[str, Shape], heads: int, told: Told) -> SamConfig:
    decoder = "mask_decoder.0" if count(shapes, r"mask_decoder\.(\d+)\.") else "mask_decoder"
    mask_tokens, dim = shapes[f"{decoder}.mask_tokens.weight"]
    if heads < 1 or dim // 2 % heads:
        raise UserError(
            f"--decoder-heads={heads}: the mask decoder's attention is {dim // 2} wide, expected a "
            "number of heads that divides it"
        )
    return SamConfig(
        _read_encoder(shapes, told),
        MaskDecoderConfig(
            dim=dim,
            heads=heads,
            mlp_dim=shapes[f"{decoder}.transformer.layers.0.mlp.lin1.weight"][0],
            depth=count(shapes, rf"{re.escape(decoder)}\.transformer\.layers\.(\d+)\."),
            mask_tokens=mask_tokens,
        ),
    )


def _read_encoder(shapes: Mapping[str, Shape], told: Told) -> ImageEncoderConfig:
    _, grid, _, width = shapes["image_encoder.pos_embed"]
    patch_size = shapes["image_encoder.patch_embed.proj.weight"][-1]
    depth = count(shapes, r"image_encoder\.blocks\.(\d+)\.")
    if any(POSITION_TABLE.fullmatch(name) for name in shapes):
        tables = [shapes[f"image_encoder.blocks.{i}.attn.rel_pos_h"] for i in range(depth)]
        heads = width // tables[0][1]
        window, places = _windows([rows for rows, _ in tables], grid, told)
    else:
        heads, window, places = _without_tables(depth, width, told)
    encoder = ImageEncoderConfig(
        image_size=grid * patch_size,
        patch_size=patch_size,
        width=width,
        heads=heads,
        stages=depth,
        window_blocks=0,
        window=window,
        out_channels=shapes["image_encoder.neck.0.weight"][0],
    )
    if len(places) == depth:
        return encoder
    # SAM's own: global attention is in the last block of each of a number of equal stages.
    per_stage = depth // len(places) if places else 0
    if places and places == tuple(range(per_stage - 1, depth, per_stage)):
        return dataclasses.replace(encoder, stages=len(places), window_blocks=per_stage - 1)
    return dataclasses.replace(encoder, stages=1, window_blocks=depth - 1, global_blocks=places)


def _windows(rows: Sequence[int], grid: int, told: Told) -> tuple[int, tuple[int, ...]]:
    """The window's side and the numbers of the global blocks, by the blocks' position tables.

    A window's table has 2 window - 1 rows; a global block's has 2 grid - 1, or any other number
    that the original interpolates to these.

    Args:
      rows: of every block's table.
    """
    whole = 2 * grid - 1
    window = told.window
    if window is None:
        window = _window(set(rows), whole, rows[-1])
    if window is None:
        raise UserError(
            f"the checkpoint's position tables have {listed(map(str, sorted(set(rows))))} rows on "
            f"a grid of {grid} tokens, which can be read in several ways: tell the window's tokens "
            f"with --window, one of {listed(str((r + 1) // 2) for r in sorted(set(rows)))}, or "
            "--window=0 if all blocks are global"
        )
    places = tuple(i for i, r in enumerate(rows) if not window or r != 2 * window - 1)
    if told.global_blocks is not None:
        places = told.global_blocks
        if any(r != 2 * window - 1 for i, r in enumerate(rows) if i not in places):
            raise UserError(
                f"--window={window}, --global-blocks={','.join(map(str, places))} (of the command "
                "line, or of the folder's config.json) do not fit: the position "
                f"tables of the blocks have {listed(map(str, rows))} rows, in windows "
                f"{2 * window - 1} are expected"
            )
    elif window and len(places) == len(rows):
        raise UserError(f"--window={window}: no block has position tables of {2 * window - 1} rows")
    return (0 if len(places) == len(rows) else window), places


def _window(kinds: Collection[int], whole: int, last: int) -> int | None:
    """The window's side as the original would have made these tables; None if in doubt.

    Args:
      kinds: the numbers of rows there are.
      whole: rows of a global block that are not interpolated.
      last: rows of the last block's table.
    """
    if set(kinds) == {whole}:
        return 0
    if len(kinds) > 2 or (len(kinds) == 1 and max(kinds) > whole):
        return None
    rows = min(kinds)
    if whole in kinds:
        (rows,) = set(kinds) - {whole}
        # A window larger than the grid, or positions cut down to the window's size?
        if rows > whole and last == rows:
            return None
    # Only a table that is interpolated has an even number of rows.
    return (rows + 1) // 2 if rows % 2 else None


def _without_tables(depth: int, width: int, told: Told) -> tuple[int, int, tuple[int, ...]]:
    """Heads, window and global blocks of an encoder without relative positions.

    What nobody told is that of the released SAM of this depth and width.
    """
    released = [make().encoder for make in SIZES.values()]
    same = [e for e in released if (e.depth, e.width) == (depth, width)]
    heads, window, places = told.heads, told.window, told.global_blocks
    if same:
        (like,) = same
        heads = heads or like.heads
        window = like.window if window is None else window
        if places is None:
            places = like.global_places
    if window == 0:
        places = tuple(range(depth))
    if heads is None or window is None or places is None:
        raise UserError(
            "the checkpoint has no relative positions, which tell the encoder's heads, windows and "
            "global blocks: tell them with --encoder-heads=N --window=N --global-blocks=N,N,… "
            "(--window=0 if all blocks are global)"
        )
    return heads, window, places


def entries_of(architecture: Architecture) -> list[Entry]:
    """The table's entries for an architecture."""
    encoder, decoder = architecture.sam.encoder, architecture.sam.decoder
    sizes = (decoder.depth, decoder.mask_tokens)
    entries = [
        *encoder_entries(encoder.places, encoder.stacks, adapters=architecture.ranks is not None),
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
    for blocks, stack in encoder.stacks.items():
        for factor, shape in factors.items():
            yield f"image_encoder.{blocks}.attn.adapter.{factor}", stack + shape


def _theirs(entry: Entry, ours: Shape) -> Shape:
    """A shape in PyTorch's axis order; a broadcast zero takes no memory."""
    return entry.layout.theirs(np.broadcast_to(np.float32(0), ours)).shape


def count(names: Iterable[str], pattern: str) -> int:
    """One more than the largest number that the pattern finds in a name; 0 if it finds none.

    A number far above the others is no count of anything, and is left out.
    """
    found = (re.match(pattern, name) for name in names)
    numbers = {int(m[1]) for m in found if m and len(m[1]) < 10}
    return max((n + 1 for n in numbers if n < 2 * len(numbers)), default=0)
