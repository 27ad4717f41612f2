"""Safetensors files tensor by tensor, so that a checkpoint of gigabytes needs little memory.

Source: the format's description (github.com/huggingface/safetensors): eight bytes with the length
of a JSON header, the header (dtype, shape and byte range of every tensor), the bytes. The
`safetensors` package checks files that are read; to write with it, the whole model must be in
memory.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors

from talora_jax.errors import UserError, listed, one_line
from talora_jax.weights.header import UNREADABLE

DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_TAGS = {dtype: tag for tag, dtype in DTYPES.items()}


class SafetensorsFile(Mapping[str, np.ndarray]):
    """Tensors by name. Each is mapped anew when asked for and leaves memory when dropped."""

    def __init__(self, path: Path):
        """Reads the header.

        Raises:
          UserError: the file is cut short or not a safetensors file, or has tensors that are not
            of floating point.
        """
        try:
            with safetensors.safe_open(path, "np") as file:
                self.metadata = file.metadata() or {}
            with open(path, "rb") as file:
                length = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(length))
        except UNREADABLE as error:
            raise UserError(
                f"{path} is cut short or not a safetensors file: {one_line(error)}"
            ) from None
        self._path, self._start = path, 8 + length
        self._tensors = {k: v for k, v in header.items() if k != "__metadata__"}
        other = {v["dtype"] for v in self._tensors.values()} - set(DTYPES)
        if other:
            raise UserError(
                f"{path} has tensors of {', '.join(sorted(other))}; expected {', '.join(DTYPES)}"
            )
        empty = [name for name, tensor in self._tensors.items() if 0 in tensor["shape"]]
        if empty:
            raise UserError(f"{path} has tensors without any values: {listed(empty)}")

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self._tensors[name]
        # Copy on write: PyTorch warns of arrays that it could not write to.
        return np.memmap(
            self._path,
            DTYPES[tensor["dtype"]],
            mode="c",
            offset=self._start + tensor["data_offsets"][0],
            shape=tuple(tensor["shape"]),
        )

    def __iter__(self):
        return iter(self._tensors)

    def __len__(self):
        return len(self._tensors)


def write_safetensors(
    path: Path,
    tensors: Mapping[str, tuple[np.dtype, tuple[int, ...]]],
    parts: Iterable[np.ndarray],
    metadata: Mapping[str, str],
) -> None:
    """Writes a file whose tensors need not exist all at once.

    Args:
      tensors: dtype and shape of every tensor.
      parts: the tensors' values, in the order of `tensors` and each in C order, in as many pieces
        as one likes.
    """
    header, end = {"__metadata__": dict(metadata)}, 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + math.prod(shape) * dtype.itemsize
        header[name] = {"dtype": _TAGS[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    # Spaces after the header align the tensors to eight bytes, as the format asks.
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for part in parts:
            file.write(np.ascontiguousarray(part).view(np.uint8).data)
