"""The released NYUv2 recipe: ViT-L, three tasks, 200 epochs of 795 images, batch 4; other sizes.

    python -m weights_convert --download vit_l sam_vit_l.safetensors
    python -m talora_jax.main --config configs/nyuv2.py:vit_l --config.data.path=nyuv2 \\
        --config.model.weights=sam_vit_l.safetensors --workdir /tmp/nyuv2_vit_l

`nyuv2` is the folder or the zip archive that MTAN publishes; see `talora_jax.data.nyuv2_mtan`.
Behind the colon is the size of SAM, vit_b, vit_l (if none is given) or vit_h: 13,445,180,
15,521,996 and 17,717,548 trained parameters.

Hardware: four accelerators with an image each, as the release used (one takes all four images, with
--config.accumulate=4 one after the other); 39,750 steps.

Published for this recipe, all of ViT-L (MTSAM, ICLR 2025, one run): semantic/miou 0.521 and
depth/per_image/abs_err 0.282 m; with an adapter per task (--config.adapter.kind=lora_per_task)
0.518 and 0.283 m. To set beside them, ResNet-50 DeepLabV3+ (DB-MTL, table 1, mean of 3 runs, errors
`pooled`), a model per task and the best of all tasks in one:

                      miou   pixel_acc  abs_err  rel_err  normals' mean  median  within_11.25
    one per task      0.535  0.754      0.393    0.161    21.99          15.16   0.390
    DB-MTL            0.539  0.756      0.377    0.156    21.97          15.37   0.384
"""

from talora_jax import config as config_lib

TRAIN_IMAGES = 795


def get_config(size="vit_l"):
    config = config_lib.default()
    config.tasks = ("semantic", "depth", "normals")
    config.data.name = "nyuv2_mtan"
    config.data.image_size = (288, 384)
    config.model.size = size
    config.adapter.ranks = (32, 32, 4)
    config.batch_size = 4
    config.eval_batch_size = 4
    config.steps = 200 * TRAIN_IMAGES // config.batch_size
    config.checkpoint_every = 1000
    config.eval_every = 10 * TRAIN_IMAGES // config.batch_size
    return config
