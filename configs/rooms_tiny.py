"""The main job: three tasks on rooms that the package renders itself, nothing to download."""

from talora_jax import config as config_lib


def get_config():
    config = config_lib.default()
    config.tasks = ("semantic", "depth", "normals")
    config.data.name = "rooms"
    config.model.size = "tiny"
    config.model.remat = "none"
    config.adapter.ranks = (16, 16, 3)
    config.optimizer.learning_rate = 3e-3
    config.optimizer.lr_scale.no_mask = 10.0
    config.orthogonal_weight = 0.01
    config.batch_size = 8
    config.eval_batch_size = 10
    config.steps = 250
    return config
