"""How the losses of T tasks become one update.

Every weighting's objective is affine in the losses, Σ_t w_t L_t + c, with weights that do not
depend on the losses of the step they weigh. So gradients accumulated over parts of a batch, or
summed over devices, are those of the whole.

All but `Uncertainty` have weights that sum to one, so that the size of the objective, and with it
the pull of the orthogonal regulariser, does not change with the kind or with T. This is a deviation
from `DynamicAverage`'s paper, where they sum to T.
"""

import abc
import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, PyTree

from talora_jax.errors import UserError

Weights = tuple[Float[Array, "T"], Float[Array, ""]]  # w and c


@dataclasses.dataclass(frozen=True)
class Weighting(abc.ABC):
    """The weights of T losses. By default nothing is trained and nothing carried along."""

    def init_params(self) -> dict[str, Float[Array, "T"]]:
        """What is trained with the model: {} or {name: float32 [T]}."""
        return {}

    def init_state(self) -> dict[str, Float[Array, "T"]]:
        """What is carried from step to step and belongs in a checkpoint: float32 arrays."""
        return {}

    @abc.abstractmethod
    def weights(self, params: PyTree, state: PyTree, key: Key[Array, ""]) -> Weights:
        """The weights w and the constant c of one step, float32, differentiable in `params`."""

    def update(self, state: PyTree, losses: Float[Array, "T"], step: Int[Array, ""]) -> PyTree:
        """The state after step `step` (from 0), which had these losses (of the whole batch)."""
        return state


@dataclasses.dataclass(frozen=True)
class Fixed(Weighting):
    """Σ_t w_t L_t / Σ_t w_t, MTSAM's (with 1:1:4 for segmentation, depth, normals)."""

    task_weights: tuple[float, ...]

    def weights(self, params: PyTree, state: PyTree, key: Key[Array, ""]) -> Weights:
        total = math.fsum(self.task_weights)
        return jnp.array([weight / total for weight in self.task_weights]), jnp.zeros(())


@dataclasses.dataclass(frozen=True)
class Equal(Weighting):
    """The mean of the losses."""

    num_tasks: int

    def weights(self, params: PyTree, state: PyTree, key: Key[Array, ""]) -> Weights:
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

    def weights(self, params: PyTree, state: PyTree, key: Key[Array, ""]) -> Weights:
        log_variance = params["log_variance"]
        return jnp.exp(-log_variance) / 2, jnp.sum(log_variance) / 2


@dataclasses.dataclass(frozen=True)
class DynamicAverage(Weighting):
    """softmax(r / temperature), r the ratio of the mean losses of the last two epochs (Liu et al.
    2019, eq. 7, divided by T): a loss that falls slowly weighs more.

    Equal weights in the first two epochs, and r = 1 for a task whose loss was 0.
    """

    num_tasks: int
    steps_per_epoch: int
    temperature: float = 2.0

    def init_state(self) -> dict[str, Float[Array, "T"]]:
        """The sum of the losses in this epoch, and their means in the last and the one before."""
        n = self.num_tasks
        return {"sum": jnp.zeros(n), "last": jnp.ones(n), "before_last": jnp.ones(n)}

    def weights(self, params: PyTree, state: PyTree, key: Key[Array, ""]) -> Weights:
        known = state["before_last"] > 0
        ratio = jnp.where(known, state["last"] / jnp.where(known, state["before_last"], 1), 1)
        return jax.nn.softmax(ratio / self.temperature), jnp.zeros(())

    def update(self, state: PyTree, losses: Float[Array, "T"], step: Int[Array, ""]) -> PyTree:
        running = state["sum"] + losses
        mean = running / self.steps_per_epoch
        # The first epoch stands for the one before it too: a ratio of 1 until there are two.
        before_last = jnp.where(step < self.steps_per_epoch, mean, state["last"])
        ended = {"sum": jnp.zeros_like(running), "last": mean, "before_last": before_last}
        is_end = (step + 1) % self.steps_per_epoch == 0
        return jax.tree.map(
            lambda new, old: jnp.where(is_end, new, old), ended, {**state, "sum": running}
        )


@dataclasses.dataclass(frozen=True)
class Random(Weighting):
    """softmax of T standard normals, drawn anew each step (RLW: Lin et al. 2022)."""

    num_tasks: int

    def weights(self, params: PyTree, state: PyTree, key: Key[Array, ""]) -> Weights:
        return jax.nn.softmax(jax.random.normal(key, (self.num_tasks,))), jnp.zeros(())


KINDS = ("fixed", "equal", "uncertainty", "dynamic_average", "random")


def make_weighting(
    kind: str, num_tasks: int, task_weights: Sequence[float], steps_per_epoch: int
) -> Weighting:
    """The weighting called `kind`. Only `fixed` looks at `task_weights` (one per task, at least 0,
    not all 0), only `dynamic_average` at `steps_per_epoch`.

    Raises: UserError for an unknown kind, and for weights or steps that do not fit.
    """
    match kind:
        case "fixed":
            if len(task_weights) != num_tasks:
                raise UserError(
                    f"Fixed weighting needs one task weight per task, {num_tasks}, "
                    f"but was given {len(task_weights)}: {tuple(task_weights)}."
                )
            if not all(0 <= weight < math.inf for weight in task_weights) or not any(task_weights):
                raise UserError(
                    "Task weights must be finite, at least 0 and not all 0, "
                    f"but are {tuple(task_weights)}."
                )
            return Fixed(tuple(task_weights))
        case "equal":
            return Equal(num_tasks)
        case "uncertainty":
            return Uncertainty(num_tasks)
        case "dynamic_average":
            if steps_per_epoch < 1:
                raise UserError(
                    "Weighting 'dynamic_average' needs at least one step per epoch, "
                    f"but there are {steps_per_epoch}: the batch is larger than the training split."
                )
            return DynamicAverage(num_tasks, steps_per_epoch)
        case "random":
            return Random(num_tasks)
        case _:
            raise UserError(f"Unknown weighting {kind!r}: expected one of {', '.join(KINDS)}.")
