"""SAM's sizes (ViT-B, ViT-L and ViT-H as released; `tiny` and `small` for laptops), and itself.

Source: `segment_anything/modeling/sam.py` and `build_sam.py`. What differs: images, prompts and
maps are batches of one shape (P prompts for each of B images); resizing to SAM's square and back
belongs to `geometry`, and `talora_jax.inference.prompts` puts all together.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, DTypeLike, Float, Int, PRNGKeyArray

from talora_jax.models.adapters import AdapterConfig
from talora_jax.models.encoder_config import ImageEncoderConfig
from talora_jax.models.geometry import Geometry
from talora_jax.models.image_encoder import ImageEncoder
from talora_jax.models.keys import Rngs
from talora_jax.models.mask_decoder import MaskDecoder, MaskDecoderConfig
from talora_jax.models.prompt_encoder import ABSENT, PromptEncoder


@dataclasses.dataclass(frozen=True)
class SamConfig:
    """Image encoder and mask decoder sizes."""

    encoder: ImageEncoderConfig = ImageEncoderConfig()
    decoder: MaskDecoderConfig = MaskDecoderConfig()

    def in_words(self) -> str:
        """For messages: 12 blocks of width 768 for 1024 pixels."""
        encoder = self.encoder
        return f"{encoder.depth} blocks of width {encoder.width} for {encoder.image_size} pixels"

    def apart_from(self, other: "SamConfig") -> str:
        """For messages that name both: as `in_words`, and where these are the other's words, too,
        the sizes that are not."""
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        differing = [
            f"{part}.{name} {size}"
            for part, sizes in mine.items()
            for name, size in sizes.items()
            if size != theirs[part][name]
        ]
        words = self.in_words()
        return words if words != other.in_words() else f"{words} with {', '.join(differing)}"

    def fields(self) -> dict[str, dict]:
        """The sizes as plain lists and numbers, for files; `weights.base_file.sam_config` back."""
        fields = dataclasses.asdict(self)
        # What the released models have no need of, files of theirs do without.
        if fields["encoder"]["global_blocks"] is None:
            del fields["encoder"]["global_blocks"]
        return fields

    @classmethod
    def vit_b(cls) -> "SamConfig":
        return cls()

    @classmethod
    def vit_l(cls) -> "SamConfig":
        return cls(ImageEncoderConfig(width=1024, heads=16, window_blocks=5))

    @classmethod
    def vit_h(cls) -> "SamConfig":
        return cls(ImageEncoderConfig(width=1280, heads=16, window_blocks=7))

    @classmethod
    def tiny(cls) -> "SamConfig":
        """256 px; its 16×16 grid is no multiple of the window, so windows are padded as in SAM."""
        encoder = ImageEncoderConfig(
            image_size=256, width=96, heads=3, stages=2, window_blocks=1, window=7, out_channels=64
        )
        return cls(encoder, MaskDecoderConfig(dim=64, heads=4, mlp_dim=256))

    @classmethod
    def small(cls) -> "SamConfig":
        """288 px in patches of 12: outlines are 2.7 pixels of a 192×256 frame fine, `tiny`'s 4."""
        encoder = ImageEncoderConfig(
            image_size=288,
            patch_size=12,
            width=128,
            heads=4,
            stages=2,
            window_blocks=1,
            window=6,
            out_channels=64,
        )
        return cls(encoder, MaskDecoderConfig(dim=64, heads=4, mlp_dim=256))


SIZES = {
    "vit_b": SamConfig.vit_b,
    "vit_l": SamConfig.vit_l,
    "vit_h": SamConfig.vit_h,
    "tiny": SamConfig.tiny,
    "small": SamConfig.small,
}


_NO_ADAPTER = AdapterConfig("none")


class Sam(nnx.Module):
    """Promptable SAM: an image is encoded once, then asked about with any number of prompts.

    With an adapter it has one encoding for each domain of prompts (TA-LoRA's tasks), and one prompt
    encoder and mask decoder for all of them.
    """

    def __init__(
        self,
        config: SamConfig,
        adapter: AdapterConfig = _NO_ADAPTER,
        domains: int = 1,
        *,
        native_aspect: bool = False,
        attention: str = "xla",
        remat: str = "block_but_attention",
        dtype: DTypeLike = jnp.float32,
        rngs: Rngs,
    ):
        self.config = config
        self.adapter = adapter
        self.domains = domains
        self.native_aspect = native_aspect
        self.image_encoder = ImageEncoder(
            config.encoder,
            adapter,
            domains,
            attention=attention,
            remat=remat,
            dtype=dtype,
            rngs=rngs,
        )
        self.prompt_encoder = PromptEncoder(
            config.decoder.dim, config.encoder.image_size, dtype=dtype, rngs=rngs
        )
        self.mask_decoder = MaskDecoder(config.decoder, dtype=dtype, rngs=rngs)

    def geometry(self, size: tuple[int, int]) -> Geometry:
        """How an image of this (H, W) is encoded."""
        return self.config.encoder.geometry(size, native_aspect=self.native_aspect)

    def encode(
        self, padded: Float[Array, "B Y X 3"], domain: int = 0, *, key: PRNGKeyArray | None = None
    ) -> Float[Array, "B h w D"]:
        """Image embeddings of normalised, padded images, for one domain of prompts.

        Args:
          padded: sides are multiples of the patch size, at most `image_size`.
          key: for the adapters' dropout; None when not training.
        """
        return self.image_encoder(padded, (domain,), key=key)[0]

    def decode(
        self,
        embeddings: Float[Array, "B h w D"],
        points: Float[Array, "B P n 2"],
        labels: Int[Array, "B P n"],
        masks: Float[Array, "B P Y X"] | None = None,
        *,
        has_mask: Bool[Array, "B P"] | None = None,
        multimask: bool | None = True,
    ) -> tuple[Float[Array, "B P m Y X"], Float[Array, "B P m"]]:
        """Mask logits of P prompts for each image, at a quarter of its side, and predicted IoUs.

        Args:
          embeddings: from `encode`.
          points: points and box corners, (x, y) in pixels of the padded square.
          labels: what each point is, see `prompt_encoder`. ABSENT ones change nothing.
          masks: logits of an earlier prediction, one for each prompt; None for no mask prompts.
          has_mask: which prompts' masks count, the others have no mask prompt; None means all.
          multimask: m = 3 masks for prompts that can mean several things, or m = 1; None gives
            m = 4, that one before those three.
        """
        encoder = self.prompt_encoder
        dense = encoder.no_mask_embed[0] if masks is None else encoder.masks(masks)
        if has_mask is not None:
            dense = jnp.where(has_mask[..., None, None, None], dense, encoder.no_mask_embed[0])
        return self.mask_decoder(
            embeddings,
            encoder.positions.grid(*embeddings.shape[1:3], self.config.encoder.grid),
            encoder.points(points, labels),
            labels != ABSENT,
            dense,
            multimask=multimask,
        )
