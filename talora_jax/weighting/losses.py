"""How the losses of T tasks become one update.

Every weighting's objective is affine in the losses, Σ_t w_t L_t + c. So gradients accumulated over
parts of a batch, or summed over devices, are those of the whole. Only the weights of `Famo` and
`SmoothTchebycheff` depend on the losses of the step they weigh: those of the whole batch, taken as
constants.

What follows the losses is in `talora_jax.weighting.adaptive`; what balances the gradients of the
tasks instead, in `talora_jax.weighting.gradients`.

All but `Uncertainty` have weights that sum to one, so that the size of the objective, and with it
the pull of the orthogonal regulariser, does not change with the kind or with T. This is a deviation
from `DynamicAverage`'s paper, where they sum to T.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array, Float

from talora_jax.errors import UserError
from talora_jax.weighting.adaptive import DynamicAverage, Famo, SmoothTchebycheff
from talora_jax.weighting.base import Weighting


@dataclasses.dataclass(frozen=True)
class Fixed(Weighting):
    """Σ_t w_t L_t / Σ_t w_t, MTSAM's (with 1:1:4 for segmentation, depth, normals)."""

    task_weights: tuple[float, ...]

    def weights(self, params, state, losses, key):
        total = math.fsum(self.task_weights)
        return jnp.array([weight / total for weight in self.task_weights]), jnp.zeros(())


@dataclasses.dataclass(frozen=True)
class Equal(Weighting):
    """The mean of the losses."""

    num_tasks: int

    def weights(self, params, state, losses, key):
        return jnp.full(self.num_tasks, 1 / self.num_tasks, jnp.float32), jnp.zeros(())


@dataclasses.dataclass(frozen=True)
class Uncertainty(Weighting):
    """Σ_t L_t / (2 exp s_t) + s_t / 2 with a trained log variance s (Kendall et al. 2018).

    One form for all tasks and the start s = -0.5, both as in LibMTL, whose results are the ones
    published side by side. The least over s lies at s_t = log L_t.
    """

    num_tasks: int

    def init_params(self) -> dict[str, Float[Array, "T"]]:
        return {"log_variance": jnp.full(self.num_tasks, -0.5, jnp.float32)}

    def weights(self, params, state, losses, key):
        log_variance = params["log_variance"]
        return jnp.exp(-log_variance) / 2, jnp.sum(log_variance) / 2


@dataclasses.dataclass(frozen=True)
class Random(Weighting):
    """softmax of T standard normals, drawn anew each step (RLW: Lin et al. 2022)."""

    num_tasks: int

    def weights(self, params, state, losses, key):
        return jax.nn.softmax(jax.random.normal(key, (self.num_tasks,))), jnp.zeros(())


KINDS = ("fixed", "equal", "uncertainty", "dynamic_average", "random", "famo", "stch")


def make_weighting(
    config: ml_collections.ConfigDict,
    num_tasks: int,
    steps_per_epoch: int,
    steps: float = math.inf,
) -> Weighting:
    """The weighting of `config.kind`.

    Args:
      config: `config.weighting` of a run. Only `fixed` looks at its `task_weights` (one per task,
        at least 0, not all 0), only `famo` at its rate and decay, only `stch` at its μ and epochs.
      steps_per_epoch: only `dynamic_average` and `stch` look at it.
      steps: of the whole run, of which the warm-up of `stch` must leave some.

    Raises:
      UserError: an unknown kind, or weights or steps that do not fit.
    """
    match config.kind:
        case "fixed":
            weights = tuple(config.task_weights)
            if len(weights) != num_tasks:
                raise UserError(
                    f"Fixed weighting needs one task weight per task, {num_tasks}, "
                    f"but was given {len(weights)}: {weights}."
                )
            if not all(0 <= weight < math.inf for weight in weights) or not any(weights):
                raise UserError(
                    f"Task weights must be finite, at least 0 and not all 0, but are {weights}."
                )
            return Fixed(weights)
        case "equal":
            return Equal(num_tasks)
        case "uncertainty":
            return Uncertainty(num_tasks)
        case "dynamic_average":
            _check_epoch(config.kind, steps_per_epoch)
            return DynamicAverage(num_tasks, steps_per_epoch)
        case "random":
            return Random(num_tasks)
        case "famo":
            return Famo(num_tasks, config.famo_learning_rate, config.famo_decay)
        case "stch":
            _check_epoch(config.kind, steps_per_epoch)
            warmup = (config.stch_warmup_epochs + 1) * steps_per_epoch
            if steps <= warmup:
                raise UserError(
                    f"Weighting 'stch' warms up for {config.stch_warmup_epochs} epochs and one "
                    f"more, {warmup} steps, and the run has {steps}: set config.steps higher, or "
                    "config.weighting.stch_warmup_epochs lower."
                )
            return SmoothTchebycheff(
                num_tasks, steps_per_epoch, config.stch_mu, config.stch_warmup_epochs
            )
        case unknown:
            raise UserError(f"Unknown weighting {unknown!r}: expected one of {', '.join(KINDS)}.")


def _check_epoch(kind: str, steps_per_epoch: int) -> None:
    if steps_per_epoch < 1:
        raise UserError(
            f"Weighting {kind!r} needs at least one step per epoch, but there are "
            f"{steps_per_epoch}: the batch is larger than the training split."
        )
