"""The NYUv2 recipe with ViT-H, the largest SAM.

    python -m weights_convert --download vit_h sam_vit_h.safetensors
    python -m talora_jax.main --config configs/nyuv2_vit_h.py --config.data.path=nyuv2 \\
        --config.model.weights=sam_vit_h.safetensors --workdir /tmp/nyuv2_vit_h

Data, hardware and the numbers to stand beside: configs/nyuv2_vit_l.py. 17,717,548 trained
parameters. MTSAM's published NYUv2 results are ViT-L's; none of ViT-H are known.
"""

import runpy
from pathlib import Path


def get_config():
    config = runpy.run_path(str(Path(__file__).with_name("nyuv2_vit_l.py")))["get_config"]()
    config.model.size = "vit_h"
    return config
