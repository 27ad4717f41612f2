"""Names of tasks: a kind, as `semantic`, or a further head of one, as `semantic:materials`.

A head is a task of its own under its whole name, and its kind decides what it is. Where files and
folders are called after it the colon, which some systems do not allow there, is a hyphen:
`semantic-materials`.
"""

import re
from collections.abc import Collection

from talora_jax.errors import UserError, check_choice, printable

_OF_HEADS = re.compile("[a-z0-9]+(_[a-z0-9]+)*")
# What `Semantic.outputs` ends the name of a second array with.
_TAKEN = "_probabilities"


def kind_of(name: str) -> str:
    """The kind of the task called `name`."""
    return name.partition(":")[0]


def is_head(name: str) -> bool:
    """Whether a task is called otherwise than its kind."""
    return ":" in name


def in_paths(name: str) -> str:
    """What files and folders of a task are called."""
    return name.replace(":", "-")


def from_path(folder: str) -> str:
    """The task whose files and folders are called so."""
    return folder.replace("-", ":")


def is_name(name: str, kinds: Collection[str]) -> bool:
    """Whether a task of one of these kinds can be called so."""
    kind, colon, head = name.partition(":")
    return kind in kinds and (not colon or _can_be(head))


def _can_be(head: str) -> bool:
    return bool(_OF_HEADS.fullmatch(head)) and not head.endswith(_TAKEN)


def check_name(where: str, name: str, kinds: Collection[str]) -> None:
    """Refuses what cannot be the name of a task.

    Args:
      where: names its origin for the error.
      kinds: those that there are.

    Raises:
      UserError: an unknown kind, or a head whose name is empty or has other characters.
    """
    kind, colon, head = name.partition(":") if isinstance(name, str) else (name, "", "")
    check_choice(where, kind, kinds)
    if colon and not _can_be(head):
        raise UserError(
            f"{where}: {printable(name, 80)} is no name of a head, expected {kind}: and lower-case "
            f"letters and digits, with underscores between and not {_TAKEN} at the end, as "
            f"{kind}:second"
        )
