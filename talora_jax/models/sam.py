"""The sizes of SAM: ViT-B, ViT-L and ViT-H as released, and `tiny` for laptops and tests."""

import dataclasses

from talora_jax.models.image_encoder import ImageEncoderConfig
from talora_jax.models.mask_decoder import MaskDecoderConfig


@dataclasses.dataclass(frozen=True)
class SamConfig:
    """Image encoder and mask decoder sizes."""

    encoder: ImageEncoderConfig = ImageEncoderConfig()
    decoder: MaskDecoderConfig = MaskDecoderConfig()

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


SIZES = {
    "vit_b": SamConfig.vit_b,
    "vit_l": SamConfig.vit_l,
    "vit_h": SamConfig.vit_h,
    "tiny": SamConfig.tiny,
}
