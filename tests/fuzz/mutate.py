"""What damages bytes and JSON, and how values are compared."""

import copy
import json
import math
import random
from collections.abc import Iterator
from typing import Any

import numpy as np

DROP = object()  # in place of a value: the key goes, too
# Of every type that JSON has, and of the extremes of each.
JUNK = (
    None,
    True,
    False,
    0,
    3,
    -1,
    2**31,
    2**64,
    10**400,
    1.5,
    -0.0,
    1e-300,
    3.5e38,
    math.inf,
    math.nan,
    "",
    "x",
    "1",
    "True",
    "é",
    "\x1b[31mred",
    "two\nlines",
    "\ud800",
    "\0",
    "../..",
    "long " * 1000,
    [],
    [1],
    ["a"],
    ["a", "a"],
    [[]],
    [0, 0],
    [1, 2, 3],
    list(range(2000)),
    {},
    {"a": 1},
    {"\x1b[2J": "\x1b[2J"},
)


def damaged(data: bytes, rng: random.Random, head: int = 0) -> tuple[str, bytes]:
    """Some bytes otherwise, and how.

    Args:
      head: so many of the first bytes tell what the others are: half of the damage is there.
    """
    if not data:
        return "a byte added", b"\0"
    end = head if head and rng.random() < 0.5 else len(data)
    at = rng.randrange(min(end, len(data)))
    length = rng.choice((1, 2, 4, 16, 256))
    piece = data[at : at + length]
    how = rng.choice(
        ("bit", "bit", "bit", "byte", "zeros", "noise", "cut", "lost", "twice", "more")
    )
    new = bytearray(data)
    if how == "bit":
        new[at] ^= 1 << rng.randrange(8)
    elif how == "byte":
        new[at] = rng.randrange(256)
    elif how == "zeros":
        new[at : at + length] = bytes(len(piece))
    elif how == "noise":
        new[at : at + length] = rng.randbytes(len(piece))
    elif how == "cut":
        del new[at:]
    elif how == "lost":
        del new[at : at + length]
    elif how == "twice":
        new[at:at] = piece
    else:
        new += rng.choice((b"\0" * length, rng.randbytes(length), data[:length], b"\n"))
    return f"{how} at {at} of {len(data)}", bytes(new)


def places(tree: Any, path: tuple = ()) -> Iterator[tuple]:
    """Where in a tree of JSON something stands, the whole tree first."""
    yield path
    if isinstance(tree, dict):
        for key in tree:
            yield from places(tree[key], (*path, key))
    elif isinstance(tree, list):
        for i in range(min(len(tree), 4)):
            yield from places(tree[i], (*path, i))


def put(tree: Any, path: tuple, value: Any) -> Any:
    """The tree with another value in a place, or without it."""
    if not path:
        return None if value is DROP else value
    tree = copy.deepcopy(tree)
    inner = tree
    for key in path[:-1]:
        inner = inner[key]
    if value is DROP:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return tree


def odd_json(tree: Any, rng: random.Random) -> tuple[str, Any]:
    """A tree with junk in it, or without one of its parts, or with one too many."""
    path = rng.choice(list(places(tree)))
    parent = tree
    for key in path[:-1]:
        parent = parent[key]
    if path and isinstance(parent, dict) and rng.random() < 0.15:
        key = rng.choice(("unknown", "", path[-1] + " ", path[-1].upper(), "\x1b[31m"))
        return f"{key!r} beside {path}", put(tree, (*path[:-1], key), rng.choice(JUNK))
    value = rng.choice((*JUNK, DROP, DROP, DROP)) if path else rng.choice(JUNK)
    return f"{path} = {'nothing' if value is DROP else repr(value)[:60]}", put(tree, path, value)


def odd_text(text: str, rng: random.Random) -> tuple[str, bytes]:
    """JSON as bytes that need not be any more."""
    choice = rng.randrange(8)
    if choice == 0:
        return "a byte order mark", b"\xef\xbb\xbf" + text.encode()
    if choice == 1:
        return "UTF-16", text.encode("utf-16")
    if choice == 2:
        return "nested deeply", b"[" * 100_000
    if choice == 3:
        return "a number of 5000 digits", text.replace("1", "1" * 5000, 1).encode()
    if choice == 4:
        return "nothing", b""
    if choice == 5:
        first, colon, rest = text.partition(":")
        key = first[first.find('"') :]
        return "a key twice", f"{first}{colon}{rest.rstrip()[:-1]}, {key}: 7}}".encode()
    return damaged(text.encode(), rng)


def strict_json(data: bytes) -> Any:
    """What JSON says; a key that stands there twice is none.

    Raises:
      ValueError, RecursionError: it is none.
    """

    def distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise ValueError("a key stands there twice")
        return dict(pairs)

    return json.loads(data.decode("utf-8-sig"), object_pairs_hook=distinct)


def alike(a: Any, b: Any) -> bool:
    """Whether two values are the same ones, of the same type; sequences are of one type."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray):
        a, b = np.asarray(a), np.asarray(b)
        return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(alike, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, float) and isinstance(b, float):
        return a == b or (math.isnan(a) and math.isnan(b))
    return type(a) is type(b) and a == b
