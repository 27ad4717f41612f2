"""How the losses of T tasks become one update.

Every weighting's objective is affine in the losses, Σ_t w_t L_t + c. So gradients accumulated over
parts of a batch, or summed over devices, are those of the whole. Only `Famo`'s weights depend on
the losses of the step they weigh: those of the whole batch, taken as constants.

What balances the gradients of the tasks instead is in `talora_jax.weighting.gradients`.

All but `Uncertainty` have weights that sum to one, so that the size of the objective, and with it
the pull of the orthogonal regulariser, does not change with the kind or with T. This is a deviation
from `DynamicAverage`'s paper, where they sum to T.
"""

import abc
import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Float, Int, Key, PyTree

from talora_jax.errors import UserError

Weights = tuple[Float[Array, "T"], Float[Array, ""]]  # w and c


@dataclasses.dataclass(frozen=True)
class Weighting(abc.ABC):
    """The weights of T losses. By default nothing is trained and nothing carried along.

    Attributes:
      looks_at_losses: whether `weights` depends on the losses.
    """

    looks_at_losses: ClassVar[bool] = False

    def init_params(self) -> dict[str, Float[Array, "T"]]:
        """What is trained with the model: {} or {name: float32 [T]}."""
        return {}

    def init_state(self) -> PyTree:
        """What is carried from step to step and belongs in a checkpoint."""
        return {}

    @abc.abstractmethod
    def weights(
        self, params: PyTree, state: PyTree, losses: Float[Array, "T"], key: Key[Array, ""]
    ) -> Weights:
        """The weights w and the constant c of one step, float32, differentiable in `params`.

        `losses` are those of the whole batch where `looks_at_losses`, and else anything.
        """

    def update(self, state: PyTree, losses: Float[Array, "T"], step: Int[Array, ""]) -> PyTree:
        """The state after step `step` (from 0), which had these losses (of the whole batch)."""
        return state


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
class DynamicAverage(Weighting):
    """softmax(r / temperature), r the ratio of the mean losses of the last two epochs (Liu et al.
    2019, eq. 7, divided by T): a loss that falls slowly weighs more.

    Equal weights in the first two epochs, and r = 1 for a task whose loss was 0 in one of the two.
    """

    num_tasks: int
    steps_per_epoch: int
    temperature: float = 2.0

    def init_state(self) -> dict[str, Float[Array, "T"]]:
        """The sum of the losses in this epoch, and their means in the last and the one before."""
        n = self.num_tasks
        return {"sum": jnp.zeros(n), "last": jnp.ones(n), "before_last": jnp.ones(n)}

    def weights(self, params, state, losses, key):
        known = (state["before_last"] > 0) & (state["last"] > 0)
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

    def weights(self, params, state, losses, key):
        return jax.nn.softmax(jax.random.normal(key, (self.num_tasks,))), jnp.zeros(())


@dataclasses.dataclass(frozen=True)
class Famo(Weighting):
    """w_t ∝ z_t / L_t, z = softmax(ξ): all losses shall fall at the same rate (Liu et al. 2023).

    The gradient of Σ_t z_t log L_t, scaled so that the weights sum to one (Algorithm 1). After a
    step, Adam moves ξ against the rates log L_t(before) − log L_t(after) that it had, with weight
    decay γ. What differs: the authors evaluate the same batch again for the losses after the step.
    Here those of the next step, on the next batch, stand for them: no pass is added, but where a
    batch is accumulated in parts, whose losses must be known first. A task without a loss in a
    batch has no weight in it, and no rate until it has one again.
    """

    looks_at_losses = True

    num_tasks: int
    learning_rate: float
    decay: float  # γ

    def init_state(self) -> PyTree:
        """ξ, Adam's state, and the last loss of each task, 0 before there is one."""
        logits = jnp.zeros(self.num_tasks)
        return {
            "logits": logits,
            "adam": self._optimizer().init(logits),
            "losses": jnp.zeros(self.num_tasks),
        }

    def weights(self, params, state, losses, key):
        z = jax.nn.softmax(self._moved(state, losses)["logits"])
        share = jnp.where(losses > 0, z / jnp.maximum(losses, 1e-8), 0)
        return share / jnp.maximum(share.sum(), 1e-8), jnp.zeros(())

    def update(self, state, losses, step):
        last = jnp.where(losses > 0, losses, state["losses"])
        return {**self._moved(state, losses), "losses": last}

    def _moved(self, state, losses):
        """`state` with ξ moved by the rates from the step before to the one with these losses."""
        before = state["losses"]
        known = (before > 0) & (losses > 0)
        logarithm = jnp.log(jnp.where(known, losses, 1))
        rates = jnp.log(jnp.where(known, before, 1)) - logarithm
        slope = jax.grad(lambda logits: jax.nn.softmax(logits) @ rates)(state["logits"])
        update, adam = self._optimizer().update(slope, state["adam"], state["logits"])
        moved = {"logits": state["logits"] + update, "adam": adam, "losses": before}
        return jax.tree.map(lambda new, old: jnp.where(known.any(), new, old), moved, state)

    def _optimizer(self):
        return optax.chain(optax.add_decayed_weights(self.decay), optax.adam(self.learning_rate))


KINDS = ("fixed", "equal", "uncertainty", "dynamic_average", "random", "famo")


def make_weighting(
    config: ml_collections.ConfigDict, num_tasks: int, steps_per_epoch: int
) -> Weighting:
    """The weighting of `config.kind`.

    Args:
      config: `config.weighting` of a run. Only `fixed` looks at its `task_weights` (one per task,
        at least 0, not all 0), only `famo` at its rate and decay.
      steps_per_epoch: only `dynamic_average` looks at it.

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
            if steps_per_epoch < 1:
                raise UserError(
                    "Weighting 'dynamic_average' needs at least one step per epoch, "
                    f"but there are {steps_per_epoch}: the batch is larger than the training split."
                )
            return DynamicAverage(num_tasks, steps_per_epoch)
        case "random":
            return Random(num_tasks)
        case "famo":
            return Famo(num_tasks, config.famo_learning_rate, config.famo_decay)
        case unknown:
            raise UserError(f"Unknown weighting {unknown!r}: expected one of {', '.join(KINDS)}.")
