"""A SAM fine-tuned on the masks of a folder, in low memory: LoRA on a frozen encoder.

    python -m talora_jax.main --config configs/sam_folder.py --config.data.path=DATA \\
        --config.model.weights=sam_vit_b.safetensors --workdir /tmp/mine

DATA holds image/ and instance/ (objects numbered from 1 on; 0 is none), files going together by
stem. The run leaves base.safetensors, of which `python -m weights_convert base.safetensors sam.pth`
makes a checkpoint for segment-anything. IoUs after clicks and from boxes stand beside those of a
box filled and of a disc about the click.
"""

from talora_jax import config as config_lib


def get_config():
    config = config_lib.default()
    config.trains = "prompts"
    config.data.name = "folder"
    config.data.image_size = None
    config.adapter.kind = "lora_shared"
    config.adapter.ranks = (8, 8, 1)
    config.augment.scales = (1.0, 1.2, 1.5)
    config.augment.colour_jitter = 0.2
    config.optimizer.kind = "adamw"
    config.optimizer.learning_rate = 2e-4
    config.optimizer.weight_decay = 0.01
    config.optimizer.clip_norm = 1.0
    config.batch_size = 4
    config.eval_batch_size = 2
    config.steps = 1000
    return config
