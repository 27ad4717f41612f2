"""Your own folder of data on the small SAM that comes along: nothing to download, for a laptop.

    python -m talora_jax.main --config configs/folder_small.py --config.data.path=DATA \\
        --workdir /tmp/mine

What DATA holds: `talora_jax.data.folder`; `python -m talora_jax.data.rooms DATA` writes an example.
For the tasks you have: --config.tasks="('semantic', 'depth')".

Hardware: 2 CPU cores. A step is one image of any size, seen at 288 pixels; three tasks take about a
third of a second. For an accelerator there is configs/folder_vit_b.py, on SAM's own weights.
"""

from talora_jax import config as config_lib


def get_config():
    config = config_lib.default()
    config.tasks = ("semantic", "depth", "normals")
    config.data.name = "folder"
    config.data.image_size = None
    config.model.weights = "sam_small"
    config.model.remat = "block"
    config.model.native_aspect = True
    # As in configs/rooms_tiny.py, where they were chosen.
    config.adapter.ranks = (32, 64, 3)
    config.adapter.init = "lora"
    config.optimizer.learning_rate = 1.5e-3
    config.optimizer.lr_scale.no_mask = 3.0
    config.orthogonal_weight = 1e-4
    config.weighting.kind = "equal"
    config.batch_size = 1
    config.steps = 2000
    config.eval_every = 500
    return config
