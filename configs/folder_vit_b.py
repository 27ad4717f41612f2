"""Your own folder of data on SAM ViT-B: three tasks, equally weighted.

    python -m weights_convert --download vit_b sam_vit_b.safetensors
    python -m talora_jax.main --config configs/folder_vit_b.py --config.data.path=DATA \\
        --config.model.weights=sam_vit_b.safetensors --workdir /tmp/mine

What DATA holds: `talora_jax.data.folder`; `python -m talora_jax.data.rooms DATA` writes an example.
Normals are derived from depth where the camera's intrinsics are known. For the tasks you have:
--config.tasks="('semantic', 'depth')".

Hardware: one accelerator. Compiled for a TPU v5e chip, a step on four images of 480×640 takes
3.3 GB, and 1.8 GB with --config.accumulate=4. There are no published numbers for your data: the run
prints what the best constant scores beside every metric.
"""

from talora_jax import config as config_lib


def get_config():
    config = config_lib.default()
    config.tasks = ("semantic", "depth", "normals")
    config.data.name = "folder"
    config.data.image_size = None
    config.model.size = "vit_b"
    config.model.native_aspect = True
    config.weighting.kind = "equal"
    config.batch_size = 4
    config.steps = 4000
    config.eval_every = 1000
    config.checkpoint_every = 200
    return config
