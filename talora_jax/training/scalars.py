"""A step's scalars on the host: that they are finite, and what follows from them."""

from collections.abc import Mapping

import jax
import ml_collections
import numpy as np
from jaxtyping import Array

from talora_jax.errors import UserError

_SHARE = "objective/regulariser_share"
_LARGE = 0.1  # a share that is told on the terminal
_UPDATE = "adapter/relative_update"


def finite(step: int, scalars: Mapping[str, Array]) -> dict[str, float]:
    """The scalars on the host.

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


def logged(
    step: int, scalars: Mapping[str, Array], config: ml_collections.ConfigDict
) -> dict[str, float]:
    """What the log tells of a step: the scalars, but for the loss of a task without a label in the
    batch, and which part of the objective the regulariser is.

    Raises:
      UserError: as of `finite`.
    """
    values = finite(step, scalars)
    values = {k: v for k, v in values.items() if v or not k.endswith("/loss")}
    pulled = config.orthogonal_weight * values.get("orthogonal", 0.0)
    if pulled > 0:
        # An objective can be negative.
        values[_SHARE] = pulled / (abs(values["objective"] - pulled) + pulled)
    return values


def outgrown(values: Mapping[str, float]) -> str:
    """A warning where adapters outweigh what they are added to, else nothing."""
    if values.get(_UPDATE, 0.0) <= 1:
        return ""
    return (
        "warning: an adapter's update has outgrown the kernel that it is added to: ‖ΔW‖ / ‖W‖ is "
        f"{values[_UPDATE]:.2f} in a block, where the frozen kernel hardly counts any more. Lower "
        "config.optimizer.lr_scale.adapters, or choose another config.adapter.init."
    )


def shown(values: Mapping[str, float]) -> dict[str, float]:
    """Those of the terminal: the losses, and the regulariser's share where it is large."""
    return {
        name: value
        for name, value in values.items()
        if name.endswith("/loss") or (name == _SHARE and value > _LARGE)
    }
