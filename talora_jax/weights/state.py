"""The state of a model as tensors by name: a parameter's name in files is its path in the model."""

import hashlib
from collections.abc import Mapping

import numpy as np
from flax import nnx
from jaxtyping import Array


def name_of(path: tuple) -> str:
    """The name of a parameter in files, by its path in the model."""
    return ".".join(map(str, path))


def filled(
    abstract: nnx.State, tensors: Mapping[str, Array], module: tuple[str, ...] = ()
) -> nnx.State:
    """A state with its values.

    Args:
      abstract: what belongs into it.
      tensors: by their path in the whole model; there may be more of them.
      module: where in the model the state is.

    Raises:
      KeyError: a tensor is missing.
    """
    return nnx.from_flat_state(
        [
            (path, variable.replace(tensors[name_of((*module, *path))]))
            for path, variable in nnx.to_flat_state(abstract)
        ]
    )


def tensors_of(state: nnx.State) -> dict[str, np.ndarray]:
    """The values of a state by their path in the model, on the host."""
    return {name_of(path): np.asarray(variable[...]) for path, variable in nnx.to_flat_state(state)}


def fingerprint(frozen: Mapping[str, Array | np.ndarray]) -> str:
    """SHA-256 over names and values of the frozen parameters, float32: which base an adapter fits.

    Args:
      frozen: by path in the model.
    """
    digest = hashlib.sha256()
    for name, value in sorted(frozen.items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()
