"""What the headers of bases and adapter files have in common: checksums, and checked types.

A header is the metadata of a safetensors file, strings by name. Two of them are checksums: one over
the tensors, one over the metadata, so that whatever is altered on the way is told and not computed
with. Files of before there were checksums have none, and are read. Nothing here needs JAX.
"""

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from talora_jax.errors import UserError, one_line, short

TENSORS = "tensors_sha256"
METADATA = "metadata_sha256"
# How files tell what they are: the key of a base's JSON, and how an adapter's `format` begins.
HEADER_KEY = "talora_jax.base"
ADAPTERS = "talora_jax adapter "
# What safetensors raises for files that are none, are cut short, or have tensors that NumPy lacks.
UNREADABLE = (safetensors.SafetensorError, OSError, ValueError, TypeError, AttributeError)

# The sizes of a SAM by part and field of `models.sam.SamConfig`, and how large each can be: far
# more than any SAM has, and little enough that a damaged number is no program that never ends.
_SIZES = {
    "encoder": {
        "image_size": (1, 2**16),
        "patch_size": (1, 2**10),
        "width": (1, 2**16),
        "heads": (1, 2**10),
        "stages": (1, 2**10),
        "window_blocks": (0, 2**10),
        "window": (0, 2**12),
        "out_channels": (1, 2**14),
    },
    "decoder": {
        "dim": (8, 2**14),
        "heads": (1, 2**10),
        "mlp_dim": (1, 2**18),
        "depth": (1, 2**6),
        "mask_tokens": (1, 2**6),
    },
}
_MAX_DEPTH = 2**10
_LARGEST = float(np.finfo(np.float32).max)


def read_tensors(file: safetensors.safe_open) -> dict[str, np.ndarray]:
    """All tensors of an open file.

    Raises:
      ValueError: some are no floating-point numbers.
    """
    tensors = {name: file.get_tensor(name) for name in file.keys()}
    # bfloat16 is no kind of NumPy's own.
    others = {n for n, x in tensors.items() if x.dtype.kind != "f" and x.dtype.name != "bfloat16"}
    if others:
        raise ValueError(f"no floating-point numbers in {', '.join(sorted(others))}")
    return tensors


def tensors_sha256(tensors: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, dtypes, shapes and values."""
    values = ((n, tensors[n]) for n in sorted(tensors))
    return sha256_of_parts((n, x.dtype, x.shape, [x]) for n, x in values)


def sha256_of_parts(
    tensors: Iterable[tuple[str, np.dtype, tuple[int, ...], Iterable[np.ndarray]]],
) -> str:
    """`tensors_sha256` of tensors that need not exist all at once.

    Args:
      tensors: by their sorted names: name, dtype, shape, and the values in pieces, in C order.
    """
    digest = hashlib.sha256()
    for name, dtype, shape, parts in tensors:
        digest.update(f"{name} {dtype} {shape}".encode())
        for part in parts:
            digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def sealed(metadata: Mapping[str, str], tensors: str) -> dict[str, str]:
    """Metadata with its checksums.

    Args:
      tensors: from `tensors_sha256`.
    """
    metadata = {**metadata, TENSORS: tensors}
    return {**metadata, METADATA: _metadata_sha256(metadata)}


def _metadata_sha256(metadata: Mapping[str, str]) -> str:
    others = sorted(item for item in metadata.items() if item[0] != METADATA)
    return hashlib.sha256(json.dumps(others).encode()).hexdigest()


def check_metadata(metadata: Mapping[str, str], known: Collection[str], path: str | Path) -> None:
    """Refuses metadata that is not as it was written.

    Args:
      known: what there can be beside the checksums.

    Raises:
      UserError: its checksum is another, or it has what no version writes.
    """
    wanted = metadata.get(METADATA)
    unknown = sorted(set(metadata) - {*known, TENSORS, METADATA})
    if unknown or wanted not in (None, _metadata_sha256(metadata)):
        found = f"it has {unknown[0]!r}, which" if unknown else "what it tells"
        raise UserError(
            f"{path} is damaged: its header is not the one that was written ({found} does not "
            "belong there); copy it again"
        )


def check_tensors(metadata: Mapping[str, str], found: str, path: str | Path) -> None:
    """Refuses tensors that are not those that were written.

    Args:
      found: from `tensors_sha256`.

    Raises:
      UserError: their checksum is another.
    """
    if metadata.get(TENSORS, found) != found:
        raise UserError(
            f"{path} is damaged: its tensors are not those that were written; copy it again"
        )


def parsed(text: str, name: str, path: str | Path) -> Any:
    """The JSON of a header.

    Raises:
      UserError: it is none.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: its {name} is damaged ({one_line(error)})") from None


def check(path: str | Path, name: str, value: Any, fits: bool, expected: str) -> None:
    """Refuses a field of a header that is not as expected.

    Raises:
      UserError: it does not fit.
    """
    if not fits:
        told = short(value, 40)
        raise UserError(f"{path}: its header is damaged: {name} is {told}, expected {expected}")


def check_version(path: str | Path, version: Any, newest: int, what: str) -> None:
    """Refuses a file of a version that is not known yet.

    Args:
      what: the file is, such as `is a base`.

    Raises:
      UserError: it is newer, or no version.
    """
    check(path, "version", version, is_whole(version, 1, 2**31), "a number from 1")
    if version > newest:
        raise UserError(
            f"{path} {what} of version {version}, but this talora_jax reads up to {newest}: update "
            "it"
        )


def is_whole(value: Any, low: int, high: int) -> bool:
    """Whether this is a whole number, and neither a truth value nor out of bounds."""
    return type(value) is int and low <= value <= high


def is_number(value: Any) -> bool:
    """Whether this is a finite number of float32."""
    return type(value) in (int, float) and -_LARGEST <= value <= _LARGEST


def is_strings(value: Any) -> bool:
    """Whether this is a list of strings."""
    return isinstance(value, list) and all(isinstance(x, str) for x in value)


def check_sizes(fields: Any, path: str | Path) -> None:
    """Refuses sizes that no SAM has.

    Args:
      fields: of a `models.sam.SamConfig`, from JSON.

    Raises:
      UserError: some are missing, unknown, of a wrong type, or do not go together.
    """
    for part, sizes in _SIZES.items():
        given = fields.get(part) if isinstance(fields, dict) else None
        check(path, part, given, isinstance(given, dict), "its sizes by name")
        optional = {"global_blocks"} if part == "encoder" else set()
        names = set(given) - optional
        check(path, part, sorted(names), names == set(sizes), ", ".join(sizes))
        for name, (low, high) in sizes.items():
            fits = is_whole(given[name], low, high)
            check(path, f"{part}.{name}", given[name], fits, f"a whole number, {low} to {high}")

    encoder, decoder = fields["encoder"], fields["decoder"]
    depth = encoder["stages"] * (encoder["window_blocks"] + 1)
    for name, value, fits, expected in (
        ("encoder.stages", encoder["stages"], depth <= _MAX_DEPTH, f"up to {_MAX_DEPTH} blocks"),
        (
            "encoder.image_size",
            encoder["image_size"],
            encoder["image_size"] % encoder["patch_size"] == 0,
            f"a multiple of patch_size, {encoder['patch_size']}",
        ),
        (
            "encoder.width",
            encoder["width"],
            encoder["width"] % encoder["heads"] == 0,
            f"a multiple of heads, {encoder['heads']}",
        ),
        (
            "decoder.dim",
            decoder["dim"],
            decoder["dim"] % 8 == 0 and decoder["dim"] // 2 % decoder["heads"] == 0,
            f"a multiple of 8 and of twice its heads, {decoder['heads']}",
        ),
        (
            "encoder.out_channels",
            encoder["out_channels"],
            encoder["out_channels"] == decoder["dim"],
            f"decoder.dim, {decoder['dim']}",
        ),
    ):
        check(path, name, value, fits, expected)

    places, windows = encoder.get("global_blocks"), encoder["window_blocks"] > 0
    if places is not None:
        fits = isinstance(places, list) and all(is_whole(i, 0, depth - 1) for i in places)
        fits = fits and sorted(set(places)) == places and encoder["stages"] == 1
        check(path, "encoder.global_blocks", places, fits, f"rising numbers below {depth}, 1 stage")
        windows = len(places) < depth
    fits = encoder["window"] > 0 or not windows
    check(path, "encoder.window", encoder["window"], fits, "at least 1 for blocks with windows")
