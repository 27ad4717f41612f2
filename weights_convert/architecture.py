"""Reads SAM's sizes from the shapes of its tensors, so that nobody has to name the model."""

import dataclasses
import re
from collections.abc import Mapping

from talora_jax.errors import UserError
from talora_jax.models.image_encoder import ImageEncoderConfig
from talora_jax.models.mask_decoder import MaskDecoderConfig
from talora_jax.models.sam import SamConfig


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What a state dict holds.

    Attributes:
      sam: the sizes.
      num_tasks: mask decoders of an official MTSAM checkpoint; None for a plain SAM.
      ranks: Tucker ranks (p, q, v) of an official MTSAM checkpoint; None for a plain SAM.
    """

    sam: SamConfig
    num_tasks: int | None
    ranks: tuple[int, int, int] | None


def read_architecture(shapes: Mapping[str, tuple[int, ...]]) -> Architecture:
    """The architecture of a state dict under SAM's official names.

    Args:
      shapes: of every tensor, in PyTorch's axis order. Decoder heads leave no trace in them: 8 is
        SAM's own number.

    Raises:
      UserError: the names or shapes are not those of a SAM or an official MTSAM checkpoint.
    """
    try:
        _, grid, _, width = shapes["image_encoder.pos_embed"]
        patch_size = shapes["image_encoder.patch_embed.proj.weight"][-1]
        depth = _count(shapes, r"image_encoder\.blocks\.(\d+)\.")
        tables = [shapes[f"image_encoder.blocks.{i}.attn.rel_pos_h"] for i in range(depth)]
        out_channels = shapes["image_encoder.neck.0.weight"][0]
        num_tasks = _count(shapes, r"mask_decoder\.(\d+)\.")
        decoder = "mask_decoder.0" if num_tasks else "mask_decoder"
        mask_tokens, dim = shapes[f"{decoder}.mask_tokens.weight"]
        mlp_dim = shapes[f"{decoder}.transformer.layers.0.mlp.lin1.weight"][0]
        core = shapes.get("image_encoder.blocks.0.attn.qkv.td_G")
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(
            f"this is not a SAM checkpoint under the official names: no usable tensor {error}"
        ) from None

    sizes = [(rows + 1) // 2 for rows, _ in tables]
    is_global = [size == grid for size in sizes]
    stages = sum(is_global)
    per_stage = depth // max(stages, 1)
    if not stages or is_global != [(i + 1) % per_stage == 0 for i in range(depth)]:
        raise UserError(
            "global attention is expected in the last block of each of a number of equal stages, "
            f"but blocks {[i for i, g in enumerate(is_global) if g]} of {depth} have it"
        )
    encoder = ImageEncoderConfig(
        image_size=grid * patch_size,
        patch_size=patch_size,
        width=width,
        heads=width // tables[0][1],
        stages=stages,
        window_blocks=per_stage - 1,
        window=sizes[0],
        out_channels=out_channels,
    )
    config = MaskDecoderConfig(
        dim=dim,
        mlp_dim=mlp_dim,
        depth=_count(shapes, rf"{re.escape(decoder)}\.transformer\.layers\.(\d+)\."),
        mask_tokens=mask_tokens,
    )
    return Architecture(SamConfig(encoder, config), num_tasks or None, core)


def _count(shapes: Mapping[str, tuple[int, ...]], pattern: str) -> int:
    """One more than the largest number that the pattern finds in a name; 0 if it finds none."""
    found = (re.match(pattern, name) for name in shapes)
    return max((int(m.group(1)) + 1 for m in found if m), default=0)
