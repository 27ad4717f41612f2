"""A mask as run lengths, as COCO keeps masks: of its columns one after the other, how many pixels
are off it, then on it, then off it, and so on; the first run is 0 where the first pixel is on it.

Source: `segment_anything/utils/amg.py` (`mask_to_rle_pytorch`, `coco_encode_rle`), whose runs these
are. What differs: they stay arrays of four bytes a run, where lists take nine times as much.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool, Int

from talora_jax.errors import UserError

INSTALL = "pip install 'talora_jax[coco]'"


@dataclasses.dataclass(frozen=True, eq=False)
class RunLengths:
    """A mask [H, W].

    Attributes:
      size: (H, W).
      counts: the lengths of the runs; they add up to H · W.
    """

    size: tuple[int, int]
    counts: Int[np.ndarray, "n"]

    @classmethod
    def of(
        cls,
        mask: Bool[np.ndarray, "h w"],
        size: tuple[int, int] | None = None,
        corner: tuple[int, int] = (0, 0),
    ) -> "RunLengths":
        """The runs of a mask, or of a larger one [H, W] of which it is all that is not empty.

        Args:
          mask: fastest where its columns lie one after the other in memory.
          size: (H, W) of the larger one.
          corner: (x, y) in it of the mask's first pixel.
        """
        height, width = mask.shape if size is None else size
        # A column begins and ends off the mask, so that each run within it has two ends.
        framed = np.zeros((mask.shape[1], mask.shape[0] + 2), bool)
        framed[:, 1:-1] = mask.T
        ends = np.flatnonzero(framed[:, 1:] != framed[:, :-1])
        column, row = np.divmod(ends, mask.shape[0] + 1)
        ends = (corner[0] + column) * height + corner[1] + row
        # What ends at the foot of a column goes on where the next one begins with another run.
        meet = np.flatnonzero(ends[1:] == ends[:-1])
        ends = np.delete(ends, np.concatenate([meet, meet + 1]))
        if not len(ends) or ends[-1] < height * width:
            ends = np.append(ends, height * width)
        return cls((height, width), np.diff(ends, prepend=0).astype(np.int32))

    @property
    def area(self) -> int:
        """Pixels that belong to the mask."""
        return int(self.counts[1::2].sum())

    def mask(self) -> Bool[np.ndarray, "H W"]:
        """The mask itself, its columns one after the other in memory."""
        on = np.arange(len(self.counts)) % 2 == 1
        return np.repeat(on, self.counts).reshape(self.size[::-1]).T

    def uncompressed(self) -> dict:
        """For JSON; pycocotools' `frPyObjects` and `COCO.annToRLE` take it."""
        return {"size": list(self.size), "counts": self.counts.tolist()}

    def compressed(self) -> dict:
        """For JSON, about a fifth as long, the counts a string.

        Raises:
          UserError: pycocotools is not installed.
        """
        try:
            from pycocotools import mask as coco
        except ImportError:
            raise UserError(
                f"compressed run lengths need pycocotools: {INSTALL}; the uncompressed ones need "
                "nothing"
            ) from None
        runs = coco.frPyObjects(self.uncompressed(), *self.size)
        return runs | {"counts": runs["counts"].decode()}
