"""Sizes of the image encoder, and where its blocks are: stacked, and in which order."""

import collections
import dataclasses
import itertools

import numpy as np

from talora_jax.models.geometry import Geometry


@dataclasses.dataclass(frozen=True)
class ImageEncoderConfig:
    """Sizes of the encoder. `depth` = `stages` × (`window_blocks` + 1 global block).

    Attributes:
      window: tokens along a window's side; 0 where no block has windows.
      global_blocks: the numbers of the global blocks, where these are not each stage's last. Then
        there is one stage, whose `window_blocks` + 1 blocks are window and global ones.
    """

    image_size: int = 1024
    patch_size: int = 16
    width: int = 768
    heads: int = 12
    stages: int = 4
    window_blocks: int = 2
    window: int = 14
    out_channels: int = 256
    global_blocks: tuple[int, ...] | None = None

    @property
    def grid(self) -> int:
        """Tokens along one side of the padded square."""
        return self.image_size // self.patch_size

    @property
    def depth(self) -> int:
        return self.stages * (self.window_blocks + 1)

    @property
    def periodic(self) -> bool:
        """Whether the blocks are stages of window blocks and a global one."""
        return self.global_blocks is None and self.window_blocks > 0

    @property
    def places(self) -> tuple[tuple[str, tuple[int, ...]], ...]:
        """Of every block, in order, the stack that holds it and its index there."""
        if self.periodic:
            return tuple(
                ("window_blocks", (stage, place))
                if place < self.window_blocks
                else ("global_blocks", (stage,))
                for stage in range(self.stages)
                for place in range(self.window_blocks + 1)
            )
        everywhere = self.global_blocks is None
        counts = {"window_blocks": 0, "global_blocks": 0}
        places = []
        for block in range(self.depth):
            is_global = everywhere or block in self.global_blocks
            name = "global_blocks" if is_global else "window_blocks"
            places.append((name, (counts[name],)))
            counts[name] += 1
        return tuple(places)

    @property
    def positions(self) -> tuple[int, ...]:
        """Of every block, in order, which of its stack it is, stages and places counted through."""
        counts = collections.Counter()
        positions = []
        for stack, _ in self.places:
            positions.append(counts[stack])
            counts[stack] += 1
        return tuple(positions)

    def numbers(self, stack: str, blocks: range) -> list[int]:
        """Which of these blocks a stack holds."""
        return [i for i in blocks if self.places[i][0] == stack]

    def rows(self, stack: str, blocks: range) -> slice:
        """Where a stack holds the blocks that it holds of these, as `positions`."""
        found = [self.positions[i] for i in self.numbers(stack, blocks)]
        return slice(found[0], found[-1] + 1) if found else slice(0)

    def stages_of(self, blocks: range) -> list[tuple[np.ndarray, np.ndarray]]:
        """These blocks as runs of like stages: numbers of window blocks [stages, n], and of the
        global blocks at the stages' ends [stages], or [0] where there are none."""
        stages: list[tuple[list[int], list[int]]] = [([], [])]
        for i in blocks:
            is_global = self.places[i][0] == "global_blocks"
            stages[-1][is_global].append(i)
            if is_global:
                stages.append(([], []))
        runs = []
        for _, like in itertools.groupby(filter(any, stages), key=lambda s: tuple(map(len, s))):
            windows, last = zip(*like, strict=True)
            runs.append((np.array(windows, int), np.array(last, int).reshape(-1)))
        return runs

    @property
    def global_places(self) -> tuple[int, ...]:
        """The numbers of the blocks without windows."""
        return tuple(i for i, (stack, _) in enumerate(self.places) if stack == "global_blocks")

    @property
    def stacks(self) -> dict[str, tuple[int, ...]]:
        """The stacks of blocks that there are, and the axes along which each is stacked."""
        last = dict(self.places)
        return {
            name: tuple(i + 1 for i in last[name])
            for name in ("window_blocks", "global_blocks")
            if name in last
        }

    def geometry(self, size: tuple[int, int], *, native_aspect: bool) -> Geometry:
        """How an image of this (H, W) is encoded."""
        patch = self.patch_size if native_aspect else None
        return Geometry.of(size, self.image_size, patch)
