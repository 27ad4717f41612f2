"""The checkpoints that a run resumes from (Orbax).

They are written atomically: a killed run leaves the last whole checkpoint, never half of one.
"""

from pathlib import Path

import jax
import orbax.checkpoint as ocp
from jaxtyping import PyTree

from talora_jax.errors import UserError


class Checkpoints:
    """The checkpoints of one workdir: training state and data-iterator state, by step."""

    def __init__(self, workdir: Path, *, keep: int = 2):
        self._manager = ocp.CheckpointManager(
            (workdir / "checkpoints").absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, create=True, cleanup_tmp_directories=True
            ),
        )

    def save(self, step: int, state: PyTree, iterator: dict) -> None:
        """Saves in the background; `close` and the next `save` wait for it."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                # Every process reads its own part of the data, yet all positions are the same.
                iterator=ocp.args.JsonSave(iterator),
            ),
        )

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def restore(self, state: PyTree) -> tuple[PyTree, dict]:
        """The newest checkpoint, with the structure, dtypes and shardings of `state`.

        Raises:
          UserError: it cannot be read back into this state.
        """
        step = self._manager.latest_step()
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(target), iterator=ocp.args.JsonRestore()
                ),
            )
        except (ValueError, KeyError, OSError) as error:
            raise UserError(
                f"checkpoint {step} in {self._manager.directory} cannot be read: "
                f"{str(error).splitlines()[0]}; delete it to resume from the one before"
            ) from error
        return restored.state, restored.iterator

    def close(self) -> None:
        self._manager.close()
