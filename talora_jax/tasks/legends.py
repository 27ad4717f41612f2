"""What tells a reader of a picture which colour means what; `drawn_legends` draws it."""

import dataclasses

import numpy as np
from jaxtyping import UInt8


@dataclasses.dataclass(frozen=True)
class Swatches:
    """Names of classes beside their colours, the largest first.

    Attributes:
      shares: which part of the picture each class fills.
    """

    names: tuple[str, ...]
    colours: UInt8[np.ndarray, "N 3"]
    shares: tuple[float, ...]

    @property
    def entries(self) -> tuple[str, ...]:
        """Each name with its share in whole percents; what is there is never 0 %."""
        named = zip(self.names, self.shares, strict=True)
        return tuple(f"{name}  {round(100 * share) or '<1'} %" for name, share in named)


@dataclasses.dataclass(frozen=True)
class Bar:
    """Colours from `low` (first) to `high` (last)."""

    colours: UInt8[np.ndarray, "N 3"]
    low: float
    high: float
    unit: str


@dataclasses.dataclass(frozen=True)
class Key:
    """A small picture that explains itself, with words on it."""

    picture: UInt8[np.ndarray, "S S 3"]
    lines: tuple[str, ...]


Legend = Swatches | Bar | Key
