"""The best parameters of a run by one metric, and when it has waited long enough for others."""

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PyTree

from talora_jax import hosts
from talora_jax.errors import UserError, did_you_mean, printable
from talora_jax.metrics import sign
from talora_jax.sharding import replicated
from talora_jax.training.setup import Run

_TOLD = "best"


def check_metric(metric: str, known: Collection[str]) -> None:
    """Refuses a metric that there is not, or of which neither way is better.

    Args:
      known: all that a constant is measured by.

    Raises:
      UserError: tells which there are, and the nearest one.
    """
    names = [name for name in known if sign(name)]
    if metric not in names:
        shown = [name for name in names if "/iou/" not in name]
        raise UserError(
            f"config.best: there is no {printable(metric, 80)} here, expected one of "
            f"{', '.join(shown)}{did_you_mean(metric, names)}"
        )


class Best:
    """The best evaluation so far of `config.best`; without that, nothing is kept.

    Attributes:
      step: of the best evaluation; 0 before there was one.
      metrics: of it.
      parameters: what was learnt by then; before, what the run starts with.
    """

    def __init__(self, run: Run):
        config = run.config
        self._metric, self._patience = config.best, config.patience
        self._steps = config.steps
        self._waited = 0  # evaluations since
        # By a program, whose results lie as a checkpoint takes them, on many hosts as well.
        self._copied = jax.jit(
            lambda x: jax.tree.map(jnp.copy, x), out_shardings=replicated(run.mesh)
        )
        self.step, self.metrics = 0, {}
        self.parameters = self._copied(run.trainable) if self._metric else run.trainable

    def look_at(self, step: int, metrics: Mapping[str, float], parameters: nnx.State) -> None:
        """Keeps what is better than what is kept. On many hosts all of them call this, and process
        0's metrics decide."""
        metrics = hosts.gathered(dict(metrics))[0]
        if self._gains(metrics):
            self.step, self.metrics, self._waited = step, metrics, 0
            # A copy: the step donates what it is given.
            self.parameters = self._copied(parameters)
        else:
            self._waited += 1

    def _gains(self, metrics: Mapping[str, float]) -> bool:
        """False where the metric is not a number, or there was nothing to measure."""
        new, old = metrics.get(self._metric, float("nan")), self.metrics.get(self._metric)
        better = sign(self._metric)
        return new == new and (old is None or better * new > better * old)

    @property
    def is_given_up(self) -> bool:
        """Whether the patience is at its end."""
        return 0 < self._patience <= self._waited

    def in_words(self, at: int) -> str:
        """What the run leaves, in the end.

        Args:
          at: the last step.
        """
        ends = f"{self._waited} evaluations without gain, which ends the run; " * self.is_given_up
        return (
            f"{ends}what it leaves is of step {self.step} of {at}, the best by {self._metric}: "
            f"{self.metrics[self._metric]:.4f}"
        )

    def row(self) -> dict[str, float]:
        """What the last row of an evaluation says beside its metrics."""
        if not self._metric:
            return {}
        return {"steps": self._steps} | ({"best_step": self.step} if self.step else {})

    # In a checkpoint.

    def kept(self, state: PyTree) -> PyTree:
        """What a checkpoint holds: the state, and the best parameters beside it."""
        return {"state": state, _TOLD: self.parameters} if self._metric else state

    def told(self) -> dict[str, Any]:
        """What it says, for JSON."""
        if not self._metric:
            return {}
        waited = {"waited": self._waited, "of_steps": self._steps}
        return {_TOLD: {"step": self.step, "metrics": self.metrics, **waited}}

    def restored(self, kept: PyTree, told: Mapping[str, Any]) -> PyTree:
        """The state of a checkpoint; its best is this one's from now on."""
        if not self._metric:
            return kept
        best = told[_TOLD]
        self.step, self.metrics, self.parameters = best["step"], best["metrics"], kept[_TOLD]
        # With another number of steps the schedule is another, and patience begins anew.
        self._waited = best["waited"] if best["of_steps"] == self._steps else 0
        return kept["state"]
