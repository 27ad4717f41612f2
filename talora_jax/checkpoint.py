"""What a run keeps: checkpoints to resume from (Orbax) and the adapter file to share.

Both are written atomically: a killed run leaves the last whole checkpoint, never half of one.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import safetensors.numpy
from flax import nnx
from jaxtyping import PyTree

from talora_jax.errors import UserError

ADAPTER_FILE = "adapter.safetensors"


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


def fingerprint(frozen: nnx.State) -> str:
    """SHA-256 over the names and values of the frozen parameters: which base an adapter fits."""
    digest = hashlib.sha256()
    for path, variable in sorted(nnx.to_flat_state(frozen), key=lambda item: str(item[0])):
        digest.update(".".join(map(str, path)).encode())
        digest.update(np.ascontiguousarray(variable[...]).tobytes())
    return digest.hexdigest()


def save_adapter(path: Path, trainable: nnx.State, metadata: Mapping[str, Any]) -> None:
    """Writes what training learnt: tensors by their path in the model, metadata as JSON strings."""
    tensors = {".".join(map(str, p)): np.asarray(v[...]) for p, v in nnx.to_flat_state(trainable)}
    text = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    write_atomically(path, safetensors.numpy.save(tensors, text))


def write_atomically(path: Path, content: bytes) -> None:
    """Writes beside the path and renames: readers see the old file or the new one, never half."""
    temporary = path.with_name(path.name + ".tmp")
    with open(temporary, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
