"""How much the classes of a task weigh in its loss, by how often each occurs.

Only ratios of weights matter: a weighted loss is Σ w l / Σ w over the labelled pixels.
"""

import numpy as np
from jaxtyping import Float, Int

from talora_jax.errors import check_choice

# none: all alike. given: `config.class_weights.given`.
KINDS = ("none", "given", "median_frequency", "inverse_log")


def class_weights(
    kind: str, counts: Int[np.ndarray, "C"], present: Int[np.ndarray, "C"]
) -> Float[np.ndarray, "C"]:
    """The weights of C classes, float64, all above 0.

    median_frequency: median(f) / f_c, f_c the share of class c in the images that it occurs in
    (Eigen and Fergus 2015, section 6.3); a class that does not occur weighs as much as the rarest.
    inverse_log: 1 / ln(1.02 + p_c), p_c the share of class c in all images (Paszke et al. 2016,
    "ENet", section 5.2).

    Args:
      kind: `median_frequency` or `inverse_log`.
      counts: labelled pixels of each class.
      present: labelled pixels of the images in which each class occurs.

    Raises:
      UserError: another kind.
    """
    check_choice("config.class_weights.kind", kind, KINDS[2:])
    if kind == "inverse_log":
        return 1 / np.log(1.02 + counts / counts.sum())
    occurs = counts > 0
    frequency = counts[occurs] / present[occurs]
    weights = np.full(len(counts), np.median(frequency) / frequency.min())
    weights[occurs] = np.median(frequency) / frequency
    return weights
