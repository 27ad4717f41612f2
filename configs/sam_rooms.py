"""A promptable SAM from nothing: clicks and boxes on rooms that the package renders itself.

    python -m talora_jax.main --config configs/sam_rooms.py --workdir /tmp/sam_rooms

Objects and their parts are asked about, with free-form shapes pasted on the frames; every IoU
stands beside those of a box filled and of a disc about the click. This is a recipe for a GPU:
0.1 s a step on an H200, with --config.read_workers=14 to feed it. Masks stay empty for the first
250 steps, until the model has learnt to find a click. `sam_small`, which comes along, has seen as
many images in stages, docs/sam_small.md.
"""

from talora_jax import config as config_lib


def get_config():
    config = config_lib.default()
    config.trains = "prompts"
    config.data.name = "rooms"
    # Other rooms than those that `rooms_tiny` trains on and is measured on.
    config.data.seed = 1
    config.data.train_frames = 2400
    config.data.image_size = (240, 320)
    config.model.size = "small"
    config.model.remat = "none"
    config.adapter.kind = "full"
    config.augment.colour_jitter = 0.4
    config.augment.noise = 0.05
    config.augment.scales = (1.0, 1.0, 1.5, 2.0, 3.0)
    config.augment.shapes = 6
    config.prompts.domains = ("instance", "part")
    config.prompts.aspects = (0.6, 1.6)
    config.optimizer.kind = "adamw"
    config.optimizer.learning_rate = 1.5e-3
    config.optimizer.weight_decay = 0.05
    config.optimizer.clip_norm = 1.0
    config.batch_size = 32
    config.eval_batch_size = 4
    config.steps = 9200
    return config
