"""Samples of several data sets as those of one: what a sample's data set does not have is
unlabelled."""

from collections.abc import Sequence

import numpy as np

from talora_jax.data.dataset import Source
from talora_jax.tasks import target_of


class Mixed:
    """The samples of several sources, spread evenly over each other.

    Attributes:
      parts: each gives all `targets`.
      weights: how often training draws from each, relative to the others.
      order: of each sample, the part and the index in it.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float], targets: Sequence[str]):
        self.parts = tuple(_Filled(source, targets) for source in sources)
        self.weights = tuple(weights)
        # Pictures of the first samples, and looks at some of them, are of all parts.
        self.order = sorted(
            ((part, index) for part, source in enumerate(sources) for index in range(len(source))),
            key=lambda at: ((at[1] + 0.5) / len(sources[at[0]]), at[0]),
        )

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        part, index = self.order[index]
        return self.parts[part][index]


class _Filled:
    """The samples of a source, with targets that it may not have."""

    def __init__(self, source: Source, targets: Sequence[str]):
        self._source = source
        self._targets = targets

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        sample = self._source[index]
        size = sample["image"].shape[:2]
        lacking = (name for name in self._targets if name not in sample)
        return {**sample, **{name: target_of(name).nothing(size) for name in lacking}}
