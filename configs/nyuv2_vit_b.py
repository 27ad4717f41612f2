"""The NYUv2 recipe with ViT-B, the smallest SAM.

    python -m weights_convert --download vit_b sam_vit_b.safetensors
    python -m talora_jax.main --config configs/nyuv2_vit_b.py --config.data.path=nyuv2 \\
        --config.model.weights=sam_vit_b.safetensors --workdir /tmp/nyuv2_vit_b

Data, hardware and the numbers to stand beside: configs/nyuv2_vit_l.py. 13,445,180 trained
parameters. MTSAM's published NYUv2 results are ViT-L's; none of ViT-B are known.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("nyuv2_vit_l.py")))["get_config"]()
    config.model.size = "vit_b"
    return config
