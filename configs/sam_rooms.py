"""A promptable SAM from nothing: clicks and boxes on rooms that the package renders itself.

    python -m talora_jax.main --config configs/sam_rooms.py --workdir /tmp/sam_rooms

Objects and their parts are asked about, with free-form shapes pasted on the frames; every IoU
stands beside those of a box filled and of a disc about the click. On 2 CPU cores 3 to 4 seconds a
step. Masks stay empty for the first hundreds of steps, until the model has learnt to find a click:
these steps are a start, and no trained model comes along yet.
"""

from talora_jax import config as config_lib


def get_config():
    config = config_lib.default()
    config.trains = "prompts"
    config.data.name = "rooms"
    config.model.size = "small"
    config.model.remat = "none"
    config.adapter.kind = "full"
    config.augment.colour_jitter = 0.3
    config.augment.noise = 0.03
    config.augment.scales = (1.0, 1.0, 1.5, 2.0, 3.0)
    config.augment.shapes = 6
    config.prompts.domains = ("instance", "part")
    config.prompts.aspects = (0.6, 1.6)
    config.optimizer.kind = "adamw"
    config.optimizer.learning_rate = 1e-3
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 1.0
    config.batch_size = 8
    config.eval_batch_size = 4
    config.steps = 2000
    return config
