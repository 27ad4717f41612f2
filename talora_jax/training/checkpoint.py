"""The checkpoints that a run resumes from (Orbax).

They are written atomically: a killed run leaves the last whole checkpoint, never half of one. One
that a disk has damaged since is passed over for the one before it, and kept.

Orbax checks its own lists, but not the arrays: a bit that has flipped there is another number. So a
checkpoint tells, beside the position in the data, the SHA-256 of its arrays. Older ones do not.
"""

import contextlib
import gc
import hashlib
import json
import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from talora_jax import storage
from talora_jax.errors import UserError, one_line

_POSITION, _DIGEST = "position", "sha256"


class Checkpoints:
    """The checkpoints of one workdir: training state and data-iterator state, by step.

    As a context it is closed in the end. Of many processes one that ends by an error does not wait
    for what is being saved: the others are elsewhere, and wait for it.
    """

    def __init__(self, workdir: Path, *, keep: int = 2, read_only: bool = False):
        """
        Args:
          keep: how many of the newest stay.
          read_only: another process may be training in the workdir.
        """
        # Orbax logs what it raises as well, from each of its threads.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).addFilter(_not_orbax)
        self._read_only = read_only
        self._directory = storage.absolute(workdir / "checkpoints")
        make = not read_only
        with self._saving(), _quiet():
            self._manager = ocp.CheckpointManager(
                self._directory,
                options=ocp.CheckpointManagerOptions(
                    max_to_keep=keep if make else None,
                    create=make,
                    cleanup_tmp_directories=make,
                    read_only=read_only,
                    async_options=ocp.AsyncOptions(barrier_sync_fn=_meet),
                ),
            )

    def __enter__(self) -> "Checkpoints":
        self._hook = sys.unraisablehook
        sys.unraisablehook = self._unless_late
        return self

    def __exit__(self, kind: type | None, *_) -> None:
        try:
            if kind is None or jax.process_count() == 1:
                self.close()
        finally:
            sys.unraisablehook = self._hook

    def _unless_late(self, unraisable: Any) -> None:
        """What TensorStore has to say of each other array that was being written when one could not
        be is that Orbax waits for it no longer."""
        if "Event loop is closed" not in str(unraisable.exc_value):
            self._hook(unraisable)

    def save(self, step: int, state: PyTree, iterator: dict) -> None:
        """Saves in the background; `close` and the next `save` wait for it.

        Raises:
          UserError: the disk refuses this one, or the last; those before stay.
        """
        told = {_POSITION: iterator, _DIGEST: _digest(state, iterator)}
        with self._saving():
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state),
                    # Every process reads its own part of the data, yet all positions are the same.
                    iterator=ocp.args.JsonSave(told),
                ),
            )

    def latest_step(self) -> int | None:
        return self._manager.latest_step()

    def told(self) -> dict:
        """What the newest checkpoint whose JSON can be read says beside its state."""
        for step in sorted(self._manager.all_steps(), reverse=True):
            with _quiet(), contextlib.suppress(Exception):  # as in `restore`, which tells them
                args = ocp.args.Composite(iterator=ocp.args.JsonRestore())
                found = self._manager.restore(step, args=args).iterator
                return _position(found)[0]
        return {}

    def restore(
        self, state: PyTree, tell: Callable[[str], None] = print
    ) -> tuple[PyTree, dict[str, Any]]:
        """The newest checkpoint that can be read, with structure, dtypes, shardings of `state`.

        Those that cannot are told and, unless `read_only`, renamed, for the run will come by their
        steps again.

        Raises:
          UserError: none can be read back into this state.
        """
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
        found, broken = None, {}
        with _quiet():
            for step in sorted(self._manager.all_steps(), reverse=True):
                try:
                    found = self._read(step, target)
                    break
                # Damaged files make Orbax raise whatever comes to hand, also `Exception` itself.
                except Exception as error:
                    broken[step] = one_line(str(error).partition("See full")[0])[:120]
        if found:
            for bad, why in broken.items():
                tell(f"checkpoint {bad} cannot be read ({why}): going on from checkpoint {step}")
            if broken and not self._read_only:
                self._set_aside(list(broken))
            return found
        told = "; ".join(f"{step} ({why})" for step, why in list(broken.items())[:2])
        raise UserError(
            f"no checkpoint in {self._directory} can be read: {told}. Nothing is deleted: put them "
            "back from a copy, or start anew in another --workdir"
        )

    def close(self) -> None:
        """Waits for what is being saved.

        Raises:
          UserError: as of `save`.
        """
        with self._saving():
            self._manager.close()

    def _read(self, step: int, target: PyTree) -> tuple[PyTree, dict[str, Any]]:
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(target), iterator=ocp.args.JsonRestore()
            ),
        )
        position, digest = _position(restored.iterator)
        if digest and _digest(restored.state, position) not in (digest, None):
            raise ValueError("its numbers are not the ones that were saved")
        return restored.state, position

    def _set_aside(self, steps: list[int]) -> None:
        if jax.process_index() == 0:
            for step in steps:
                aside, number = self._directory / f"unreadable_{step}", 1
                while aside.exists():
                    number += 1
                    aside = aside.with_name(f"unreadable_{step}_{number}")
                (self._directory / str(step)).rename(aside)
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices("unreadable checkpoints set aside")
        self._manager.reload()

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        with storage.reached(self._directory):
            try:
                yield
            # TensorStore raises ValueErrors for what the disk refuses.
            except (OSError, ValueError, RuntimeError) as error:
                full = "No space left" in str(error) or "RESOURCE_EXHAUSTED" in str(error)
                raise UserError(
                    f"a checkpoint could not be written to {self._directory}: "
                    f"{'no space left on the disk' if full else one_line(error)}. What was saved "
                    "before stays, and the same command goes on from there"
                ) from error


def _meet(*, key: str, timeout_ms: int) -> None:
    """Waits for all processes; one that could not write does not, or Orbax would let it wait for
    the others here, and these for it elsewhere, for 20 minutes."""
    if (error := sys.exception()) is not None:
        raise error
    ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


def _position(told: Any) -> tuple[dict[str, Any], str | None]:
    """The position in the data, and the digest; of earlier versions' checkpoints without one.

    Raises:
      ValueError: it is neither's.
    """
    position, digest = told, None
    if isinstance(told, dict) and {_POSITION, _DIGEST} & told.keys():
        # A key of another name is a damaged one.
        whole = told.keys() == {_POSITION, _DIGEST}
        position, digest = (told[_POSITION], told[_DIGEST]) if whole else (None, None)
    if not isinstance(position, dict):
        raise ValueError("its position in the data is missing")
    return position, digest


def _digest(state: PyTree, iterator: dict) -> str | None:
    """SHA-256 over the values of a state's arrays and the position in the data; None where this
    process has not all of the arrays.

    Without their names and order, which are the libraries' and may be others in a later version.
    """
    digests = []
    for x in jax.tree.leaves(state):
        if isinstance(x, jax.Array) and not (x.is_fully_addressable or x.is_fully_replicated):
            return None
        digests.append(hashlib.sha256(np.ascontiguousarray(x)).digest())
    position = json.dumps(iterator, sort_keys=True).encode()
    return hashlib.sha256(b"".join(sorted(digests)) + position).hexdigest()


def _not_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname and "orbax" not in record.getMessage()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """What coroutines print that reading a damaged checkpoint leaves behind is pages long."""
    hook = sys.unraisablehook
    sys.unraisablehook = lambda unraisable: None
    try:
        yield
    finally:
        gc.collect()  # here they go
        sys.unraisablehook = hook
