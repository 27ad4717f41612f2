"""State dicts in memory, under SAM's official names or the MTSAM release's, to our tensors."""

from collections.abc import Mapping, Sequence

import numpy as np

from weights_convert.architecture import Architecture
from weights_convert.checkpoint import from_state_dict, our_tensors


def from_official(
    state_dict: Mapping[str, np.ndarray], tasks: Sequence[str] = (), heads: int = 8
) -> tuple[dict[str, np.ndarray], Architecture]:
    """Our tensors by our names, and the architecture that they have.

    Args:
      state_dict: under official names; Hugging Face's do as well.
      tasks: names for an MTSAM checkpoint's decoders, in their order; by default "0", "1", ….
      heads: of the decoder, which the shapes cannot tell.

    Raises:
      UserError: tensors are missing, unexpected or of a wrong shape.
    """
    checkpoint = from_state_dict(state_dict, tasks, heads, name="the state dict")
    return dict(our_tensors(checkpoint)), checkpoint.architecture
