"""The weightings that follow the losses, from epoch to epoch or from step to step."""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from talora_jax.weighting.base import Weighting


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


@dataclasses.dataclass(frozen=True)
class SmoothTchebycheff(Weighting):
    """w_t ∝ softmax(log(L_t / n_t) / μ) / L_t: the worst task counts most (STCH: Lin et al. 2024).

    The gradient of μ log Σ_t exp(λ_t (f_t − z_t) / μ), as the authors' code for several tasks has
    it: of f_t = log(L_t / n_t) with λ = 1 and z = 0. Here it is scaled so that the weights sum to
    one. n, the nadir, is the mean of the losses in the epoch after `warmup_epochs`. Until it is
    known, the gradient is that of Σ_t log L_t. A task without a loss in a batch has no weight in
    it. μ → 0 leaves the worst task alone; with μ = 1 the weights stay at 1 / n_t.
    """

    looks_at_losses = True

    num_tasks: int
    steps_per_epoch: int
    mu: float
    warmup_epochs: int

    def init_state(self) -> dict[str, Float[Array, "T"]]:
        """The nadir, 0 before it is known, and the losses of its epoch: their sum and number."""
        return {name: jnp.zeros(self.num_tasks) for name in ("nadir", "sum", "number")}

    def weights(self, params, state, losses, key):
        present = losses > 0
        losses = jnp.where(present, losses, 1)
        # A ratio of 1 until there is a nadir: then the share is 1 / L_t, the slope of log L_t.
        ratio = losses / jnp.where(state["nadir"] > 0, state["nadir"], losses)
        badness = jax.nn.softmax(jnp.log(ratio) / self.mu, where=present)
        share = jnp.where(present, badness / losses, 0)
        return share / jnp.maximum(share.sum(), 1e-8), jnp.zeros(())

    def update(self, state: PyTree, losses: Float[Array, "T"], step: Int[Array, ""]) -> PyTree:
        counts = step // self.steps_per_epoch == self.warmup_epochs
        total = state["sum"] + jnp.where(counts, losses, 0)
        number = state["number"] + (counts & (losses > 0))
        is_end = step + 1 == (self.warmup_epochs + 1) * self.steps_per_epoch
        nadir = jnp.where(is_end, total / jnp.maximum(number, 1), state["nadir"])
        return {"nadir": nadir, "sum": total, "number": number}
