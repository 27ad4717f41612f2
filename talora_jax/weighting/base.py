"""What a weighting of losses is: `talora_jax.weighting.losses` has them all."""

import abc
import dataclasses
from typing import ClassVar

from jaxtyping import Array, Float, Int, Key, PyTree

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
