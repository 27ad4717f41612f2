"""The main job: three tasks on rooms that the package renders itself, nothing to download."""

from talora_jax import config as config_lib


def get_config():
    config = config_lib.default()
    config.steps = 300
    config.batch_size = 8
    return config
