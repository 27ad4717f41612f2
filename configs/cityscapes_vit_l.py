"""Cityscapes as MTAN packs it: ViT-L, semantics and disparity, 200 epochs of 2975 images, batch 4.

    python -m weights_convert --download vit_l sam_vit_l.safetensors
    python -m talora_jax.main --config configs/cityscapes_vit_l.py \\
        --config.data.path=cityscapes2 --config.model.weights=sam_vit_l.safetensors \\
        --workdir /tmp/cityscapes_vit_l

`cityscapes2` is the folder or the zip archive of 128×256 that MTAN publishes; see
`talora_jax.data.cityscapes_mtan`. The one of 256×512 needs --config.data.image_size='(256, 512)'.

Hardware: four accelerators with an image each, or one with --config.accumulate=4; 148,750 steps.

MTSAM's code has no Cityscapes, and what is known of its tables gives no Cityscapes numbers. The
recipe is that of configs/nyuv2.py with tasks of equal weight and mirroring alone: a window of the
frame brings everything nearer, and disparity grows by its scale. To set beside it,
ResNet-50 DeepLabV3+ (DB-MTL, table 2, 3 runs; a model per task, and the best of both in one):

                      miou    pixel_acc  abs_err  rel_err (%)
    one per task      0.6906  0.9154     0.01282  43.53
    DB-MTL            0.6917  0.9156     0.01280  43.46
"""

from talora_jax import config as config_lib

TRAIN_IMAGES = 2975


def get_config():
    config = config_lib.default()
    config.tasks = ("semantic", "disparity")
    config.data.name = "cityscapes_mtan"
    config.data.image_size = (128, 256)
    config.model.size = "vit_l"
    config.adapter.ranks = (32, 32, 4)
    config.weighting.task_weights = (1.0, 1.0)
    config.augment.scales = (1.0,)
    config.batch_size = 4
    config.eval_batch_size = 4
    config.steps = 200 * TRAIN_IMAGES // config.batch_size
    config.checkpoint_every = 1000
    config.eval_every = 10 * TRAIN_IMAGES // config.batch_size
    return config
