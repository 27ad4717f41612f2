"""Masks of validity: files beside a target's that say where it is to be believed.

The one of `depth` is called `valid:depth`, and so on for every target, also a head as
`valid:semantic:materials`, wherever a target is called: in `files`, in the columns of a table, in
`read`, and with hyphens as a folder of the plain layout.
"""

_PREFIX = "valid:"


def mask_of(target: str) -> str:
    """What the mask of a target is called."""
    return _PREFIX + target


def is_mask(name: str) -> bool:
    """Whether files of this name are masks of a target's."""
    return name.startswith(_PREFIX)


def masked_by(name: str) -> str:
    """The target of a mask; of any other name itself."""
    return name.removeprefix(_PREFIX)
