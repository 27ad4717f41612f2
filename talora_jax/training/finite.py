"""Numbers of a step that end a run, before anything is saved of it, or are warned of."""

import jax
import numpy as np
from jaxtyping import Array

from talora_jax.errors import UserError

OUTGROWN = (
    "warning: an adapter's update has outgrown the kernel that it is added to: ‖ΔW‖ / ‖W‖ is "
    "{:.2f} in a block, where the frozen kernel hardly counts any more. Lower "
    "config.optimizer.lr_scale.adapters, or choose another config.adapter.init."
)


def check_finite(step: int, scalars: dict[str, Array]) -> dict[str, float]:
    """The scalars of a step, on the host.

    Raises:
      UserError: one of them is not finite.
    """
    values = {name: float(value) for name, value in jax.device_get(scalars).items()}
    broken = [name for name, value in values.items() if not np.isfinite(value)]
    if broken:
        losses = [name for name in broken if name.endswith("/loss")] or broken
        broken_losses = ", ".join(f"{name} is {values[name]}" for name in losses)
        raise UserError(
            f"step {step}: {broken_losses}. The last checkpoint is from before it; lower "
            "config.optimizer.learning_rate or set config.optimizer.clip_norm, and check the "
            "targets of that task."
        )
    return values
