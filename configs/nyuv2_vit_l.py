"""The released NYUv2 recipe: ViT-L, three tasks, 200 epochs of 795 images, batch 4.

    python -m talora_jax.main --config configs/nyuv2_vit_l.py \\
        --config.model.weights=sam_vit_l_0b3195.pth --workdir /tmp/nyuv2

Published for this recipe (MTSAM, ICLR 2025; one run): mIoU 52.1, depth absolute error 0.282 m.
The NYUv2 reader (`nyuv2_mtan`, MTAN's packing) is not part of this version; until it is, the config
serves to build, shard and measure the model.
"""

from talora_jax import config as config_lib

TRAIN_IMAGES = 795


def get_config():
    config = config_lib.default()
    config.tasks = ("semantic", "depth", "normals")
    config.data.name = "nyuv2_mtan"
    config.data.image_size = (288, 384)
    config.model.size = "vit_l"
    config.adapter.ranks = (32, 32, 4)
    config.batch_size = 4
    config.eval_batch_size = 4
    config.steps = 200 * TRAIN_IMAGES // config.batch_size
    config.checkpoint_every = 1000
    config.eval_every = 10 * TRAIN_IMAGES // config.batch_size
    return config
