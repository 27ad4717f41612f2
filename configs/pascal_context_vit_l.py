"""PASCAL-Context with ASTMT's five tasks: ViT-L, 60 epochs of 4,998 images, batch 8, 512×512.

    python -m talora_jax.main --config configs/pascal_context_vit_l.py \\
        --config.data.path=PASCAL_MT --config.model.weights=sam_vit_l.safetensors \\
        --workdir /tmp/pascal_context

`talora_jax.data.pascal_context` tells where to get the data and how it must lie. Images are encoded
at 1024×1024. Meant for 8 accelerators with one image each; `--config.accumulate=8` is for one. It
has not been run on the data itself.

Published, for other models (semseg mIoU / parts mIoU / saliency / normals' mean angle / edge odsF):

                                         semseg  parts  saliency  normals   edge
    five tasks, all parameters train, saliency as maxF
      InvPT, ViT-L                        79.03  67.61     84.81    14.15  73.00
      TaskPrompter, ViT-L                 80.89  68.89     84.83    13.72  73.50
    four tasks, few parameters train, Swin-T, saliency as mIoU
      single-task, 112.6 M parameters     67.21  61.93     62.35    17.97
      MTLoRA r = 64, 8.34 M               67.90  59.84     65.40    16.60
      TADFormer, 7.38 M                   70.82  60.45     65.88    16.48
      Free Sinewich r = 64, 6.53 M        71.25  61.38     66.24    16.14
"""

from talora_jax import config as config_lib

TRAIN_IMAGES = 4998


def get_config():
    config = config_lib.default()
    config.tasks = ("semantic", "human_parts", "saliency", "normals", "edges")
    config.weighting.task_weights = (1.0, 2.0, 5.0, 10.0, 50.0)
    config.data.name = "pascal_context"
    config.data.image_size = (512, 512)
    config.augment.scales = (1.0,)
    config.augment.turn = 20.0
    config.augment.scale_range = (0.75, 1.25)
    config.model.size = "vit_l"
    config.adapter.ranks = (32, 32, 4)
    config.batch_size = 8
    config.eval_batch_size = 8
    config.steps = 60 * TRAIN_IMAGES // config.batch_size
    config.checkpoint_every = 1000
    config.eval_every = 10 * TRAIN_IMAGES // config.batch_size
    return config
