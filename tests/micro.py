"""`python tests/micro.py …` is `python -m talora_jax.main …` with two more model sizes.

Every code path of the big sizes runs in `micro`, and it compiles in seconds. `nano` has one stage
and one decoder layer, and compiles in half the time: for claims that are not about the model.
"""

import dataclasses
import gc

from talora_jax.models.encoder_config import ImageEncoderConfig
from talora_jax.models.mask_decoder import MaskDecoderConfig
from talora_jax.models.sam import SIZES, SamConfig

MICRO = SamConfig(
    ImageEncoderConfig(
        image_size=64,
        patch_size=8,
        width=32,
        heads=2,
        stages=2,
        window_blocks=1,
        window=3,
        out_channels=32,
    ),
    MaskDecoderConfig(dim=32, heads=2, mlp_dim=64),
)
NANO = dataclasses.replace(
    MICRO,
    encoder=dataclasses.replace(MICRO.encoder, stages=1),
    decoder=dataclasses.replace(MICRO.decoder, depth=1),
)
# Of what tracing makes little is garbage: see `conftest.py`.
gc.set_threshold(50_000)
SIZES["micro"] = lambda: MICRO
SIZES["nano"] = lambda: NANO

if __name__ == "__main__":
    from talora_jax.errors import run_command
    from talora_jax.main import main

    run_command(main)
