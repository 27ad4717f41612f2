"""PyTorch files of tensors, read and written. The only module that imports PyTorch.

A file is a pickle, and a pickle can run code. Files are read with `weights_only=True`, which builds
tensors and plain containers and refuses everything else before anything has run.
"""

import re
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from talora_jax.errors import UserError

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def read_pytorch(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a PyTorch file by name, mapped into memory rather than read.

    Raises:
      UserError: PyTorch is not installed, the file holds more than tensors, or it holds none.
    """
    torch = _torch(f"reading {path}")
    try:
        # The older format cannot be mapped.
        mapped = zipfile.is_zipfile(path)
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:
        text = str(error)
        code = re.search(r"GLOBAL (\S+)", text)
        if code:
            raise UserError(
                f"{path} holds more than tensors: reading it would run {code.group(1)}; "
                "it was refused and nothing of it has run"
            ) from None
        reason = text.strip().splitlines()[0] if text.strip() else type(error).__name__
        raise UserError(f"{path} is not a PyTorch file of tensors: {reason}") from None
    if isinstance(state, Mapping) and isinstance(state.get("model"), Mapping):
        state = state["model"]
    if not isinstance(state, Mapping) or not all(torch.is_tensor(v) for v in state.values()):
        raise UserError(f"{path} holds no state dict: expected tensors by name")
    other = {str(v.dtype) for v in state.values() if not v.is_floating_point()}
    if other:
        raise UserError(
            f"{path} has tensors of {', '.join(sorted(other))}; expected floating point"
        )
    return {name: _to_numpy(tensor, torch) for name, tensor in state.items()}


def write_pytorch(path: Path, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
    """Writes a state dict that `torch.load` reads.

    Raises:
      UserError: PyTorch is not installed.
    """
    torch = _torch(f"writing {path.suffix} files")
    state = {name: _from_numpy(np.ascontiguousarray(x), torch) for name, x in tensors}
    try:
        # Through a Python file, whose errors tell what went wrong; PyTorch's own do not.
        with open(path, "wb") as file:
            torch.save(state, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _to_numpy(tensor, torch) -> np.ndarray:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(_BFLOAT16)
    return tensor.numpy()


def _from_numpy(array: np.ndarray, torch):
    if array.dtype == _BFLOAT16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _torch(purpose: str):
    try:
        import torch
    except ImportError:
        raise UserError(f"{purpose} needs PyTorch: pip install 'talora_jax[torch]'") from None
    return torch
