"""PyTorch files of tensors, read and written. The only module that imports PyTorch.

A file is a pickle, and a pickle can run code. Files are read with `weights_only=True`, which builds
tensors and plain containers and refuses everything else before anything has run.
"""

import collections
import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from talora_jax.errors import UserError, listed, one_line, printable
from weights_convert.unwrap import weights_in

_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
# What stands beside weights and is no code: none of it is made, an empty object takes its place.
_SETTINGS = (
    *(f"numpy.{core}.multiarray.{kind}" for core in ("core", "_core") for kind in ("scalar",)),
    *(f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")),
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.dtypes.{kind}DType" for kind in ("Float64", "Float32", "Int64", "Int32", "Bool")),
    "argparse.Namespace",
    *(
        f"{module}.{kind}Path"
        for module in ("pathlib", "pathlib._local")  # the second in Python 3.13
        for kind in ("Posix", "Windows", "PurePosix", "PureWindows", "")
    ),
    *(f"datetime.{kind}" for kind in ("datetime", "date", "time", "timedelta", "timezone")),
    "types.SimpleNamespace",
)
_PICKLE_ADVICE = re.compile("weights.only|torch.load|safe_globals|trust", re.IGNORECASE)


class _Setting:
    """Stands for an object that is of no interest, and does nothing."""

    def __new__(cls, *args):
        del args
        return super().__new__(cls)

    def __init__(self, *args):
        del args

    def __setstate__(self, state):
        del state


# Bytes of a number, by the kind of storage that a pickle tells.
_ITEM = {
    "FloatStorage": 4,
    "DoubleStorage": 8,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "UntypedStorage": 1,
}


class _Nothing(_Setting):
    """Stands for whatever else a pickle makes: it can be filled and called, and does nothing."""

    def __call__(self, *args):
        return self

    append = extend = __setitem__ = __call__


class _Storages(pickle.Unpickler):
    """Goes through a pickle for the records that it tells of. Nothing that it names is made.

    Attributes:
      needed: the bytes of each record that its tensors are views of.
    """

    def __init__(self, file: io.BytesIO):
        super().__init__(file)
        self.needed: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        return name if module == "torch" and name in _ITEM else _Nothing

    def persistent_load(self, told: Any) -> _Nothing:
        _, kind, key, _, numel = told
        # Kinds that are no strings are of numbers that no weight is.
        size = _ITEM.get(kind, 0) * numel if isinstance(kind, str) else 0
        self.needed[key] = max(self.needed.get(key, 0), size)
        return _Nothing()


def read_pytorch(path: Path, key: str | None = None) -> tuple[dict[str, np.ndarray], list[str]]:
    """The tensors of a PyTorch file by name, mapped into memory, and what is to be told about it.

    Args:
      key: which of several sets of tensors, see `unwrap.weights_in`.

    Raises:
      UserError: PyTorch is not installed; the file is damaged, holds code, or no tensors; or some
        are no plain numbers.
    """
    torch = _torch(f"reading {path}")
    saved = _load(path, torch)
    state, notes = weights_in(saved, torch.is_tensor, key, str(path))
    counters = [name for name, x in state.items() if x.ndim == 0]
    if counters and len(counters) < len(state):
        notes.append(f"left {listed(counters)}: single numbers")
        state = {name: x for name, x in state.items() if x.ndim > 0}
    for name, x in state.items():
        what = _oddity(x, torch)
        if what:
            raise UserError(
                f"{path} has tensors of {what}, {printable(name)} the first: expected dense ones "
                "of float32, float16, bfloat16 or float64"
            )
    return {name: _to_numpy(x.detach(), torch) for name, x in state.items()}, notes


def is_zip(path: Path) -> bool:
    """Whether a file is a zip file, as PyTorch's are but the oldest; a damaged one may be none."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:
        return False


def _load(path: Path, torch) -> Any:
    """What a file holds; nothing of it is run.

    Raises:
      UserError: it is damaged, or holds code.
    """
    mapped = is_zip(path)
    try:
        if mapped:
            with zipfile.ZipFile(path) as archive:
                # PyTorch does not look at them when it maps a file.
                broken = archive.testzip()
                names = collections.Counter(archive.namelist())
                # And it cannot map what is compressed, or the older format.
                mapped = all(x.compress_type == zipfile.ZIP_STORED for x in archive.infolist())
                script = any(name.endswith("/constants.pkl") for name in names)
            if not any(name.endswith("data.pkl") for name in names):
                raise UserError(
                    f"{path} is a zip archive of {listed(names) or 'nothing'}, not a PyTorch file: "
                    "if the checkpoint is in it, unpack it"
                )
            if broken:
                raise UserError(
                    f"{path} is damaged: the checksum of {printable(broken)} in it is wrong; "
                    "download or copy it again"
                )
            if twice := [name for name, times in names.items() if times > 1]:
                raise UserError(
                    f"{path} is damaged: it has {listed(twice)} twice, and nothing tells which is "
                    "meant; download or copy it again"
                )
            if script:
                raise UserError(
                    f"{path} is a TorchScript program: expected the state dict of the model that "
                    "it was made of"
                )
        with (
            torch.serialization.safe_globals([(_Setting, name) for name in _SETTINGS]),
            # What PyTorch warns of before it refuses a file, the sentence below says.
            warnings.catch_warnings(action="ignore"),
        ):
            if path.suffix == ".safetensors":
                # By its name alone, PyTorch would take it for one.
                with open(path, "rb") as file:
                    saved = torch.load(file, map_location="cpu", weights_only=True)
            else:
                saved = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        if is_zip(path):
            with zipfile.ZipFile(path) as archive:
                _check_records(path, archive)
        return saved
    except UserError:
        raise
    except Exception as error:
        raise UserError(_in_words(path, error)) from None


def _in_words(path: Path, error: Exception) -> str:
    """Why PyTorch could not read a file, without its advice to run what is in it."""
    text = str(error)
    code = re.search(r"GLOBAL (\S+)", text)
    if code:
        return (
            f"{path} holds more than tensors: reading it would run {printable(code[1])}; it was "
            "refused and nothing of it has run; where you trust it, save model.state_dict() alone"
        )
    if "resize storage" in text:
        return _cut_short(path)
    lines = text.strip().splitlines()
    reason = one_line(Exception(lines[0])) if lines else type(error).__name__
    if _PICKLE_ADVICE.search(reason):
        reason = "it is damaged, or its pickle holds more than tensors"
    return f"{path} is not a PyTorch file of tensors: {reason[:200]}"


def _oddity(x, torch) -> str | None:
    """What a tensor is that cannot be a weight; None of one that can."""
    if x.is_meta:
        return "no values (on the meta device)"
    if x.layout != torch.strided:
        return f"the layout {x.layout}"
    plain = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    return None if x.dtype in plain else str(x.dtype)


def _check_records(path: Path, archive: zipfile.ZipFile) -> None:
    """Refuses a file whose records are shorter than its tensors: PyTorch would read on behind them.

    Raises:
      UserError: some are.
    """
    sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
    for name in sizes:
        folder, _, file = name.rpartition("/")
        if file != "data.pkl":
            continue
        reader = _Storages(io.BytesIO(archive.read(name)))
        reader.load()
        if any(sizes.get(f"{folder}/data/{key}", 0) < n for key, n in reader.needed.items()):
            raise UserError(_cut_short(path))


def _cut_short(path: Path) -> str:
    return f"{path} is cut short inside: it has fewer bytes than its tensors need; copy it again"


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
