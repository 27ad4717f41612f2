"""Whatever a person gives for an array, as one of booleans or numbers, or one sentence."""

import numbers

import numpy as np

from talora_jax.errors import UserError, one_line

# What another library says may be pages.
_MAX_REASON = 200


def as_array(name: str, x, expected: str) -> np.ndarray:
    """x as an array of booleans, integers or real numbers, in this machine's byte order.

    Args:
      name: of what is given, for the message.
      x: anything that NumPy takes for an array; nothing of it may be masked.
      expected: what it should be, for the message.

    Raises:
      UserError: it is something else.
    """
    if isinstance(x, np.ma.MaskedArray) and np.ma.is_masked(x):
        raise UserError(
            f"{name}: {np.ma.count_masked(x)} of {x.size} values of the masked array are masked; "
            "fill them first, with x.filled(value)"
        )
    try:
        array = np.asarray(x)
    except Exception as error:  # Each library raises its own: ragged lists, tensors of a graph.
        reason = one_line(error)[:_MAX_REASON]
        raise UserError(
            f"{name} cannot be one array of numbers: {in_words(x)} ({reason}); expected {expected}"
        ) from None
    if array.dtype.kind not in "biuf" or isinstance(x, (bytes, bytearray, memoryview)):
        made = (
            f" that makes an array of dtype {array.dtype}" if isinstance(x, (list, tuple)) else ""
        )
        raise UserError(f"{name}: {in_words(x)}{made}; expected {expected}")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def as_flag(name: str, x) -> bool:
    """x as what it says, true or false.

    Raises:
      UserError: it is something else, which might not mean what Python makes of it.
    """
    if not isinstance(x, (bool, np.bool_)):
        raise UserError(f"{name}: {in_words(x)}; expected True or False")
    return bool(x)


def is_whole(x) -> bool:
    """Whether x is an integer, Python's or NumPy's; True and False are none."""
    return isinstance(x, numbers.Integral) and not isinstance(x, bool)


def in_words(x) -> str:
    """What a thing is, for messages."""
    if x is None:
        return "None"
    kind = type(x)
    name = kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__name__}"
    dtype, shape = getattr(x, "dtype", None), getattr(x, "shape", None)
    if dtype is None or not isinstance(shape, tuple):
        return name if kind is bytes else f"{'an' if name[0] in 'aeiou' else 'a'} {name}"
    return f"an array of dtype {dtype} and shape {list(shape)}"


def finite(name: str, x: np.ndarray) -> np.ndarray:
    """x as float64, all of it within what float32 can hold.

    Raises:
      UserError: something is NaN, infinite or beyond.
    """
    with np.errstate(over="ignore"):
        x = x.astype(np.float64)
    bad = ~(np.abs(x) <= np.finfo(np.float32).max)
    if bad.any():
        where = np.unravel_index(bad.argmax(), bad.shape)
        raise UserError(
            f"{name}: {x[where]} at {[int(i) for i in where]}, "
            f"{np.count_nonzero(bad)} of {x.size} values are not finite, or beyond float32; "
            "expected finite numbers"
        )
    return x
