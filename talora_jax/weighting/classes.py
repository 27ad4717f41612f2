"""How much the classes of a task weigh in its loss, by how often each occurs.

Only ratios of weights matter: a weighted loss is Σ w l / Σ w over the labelled pixels.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

from talora_jax.errors import UserError, check_choice, short

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


def given_weights(
    given: Sequence[float | Sequence[float]], tasks: Sequence[str]
) -> Mapping[str, tuple[float, ...]]:
    """`config.class_weights.given` by task.

    Args:
      given: a number for each class, of every task; or such a list for each task, in their order,
        an empty one where all classes weigh alike.
      tasks: those that have classes.

    Raises:
      UserError: it is neither, or nothing in it counts.
    """
    said = f"config.class_weights.given is {short(tuple(given), 80)}"
    nested = any(isinstance(x, list | tuple) for x in given)
    lists = [tuple(x) if isinstance(x, list | tuple) else x for x in given]
    if not nested:
        lists = [tuple(given)] * len(tasks)
    elif not all(isinstance(x, tuple) for x in lists) or len(lists) != len(tasks):
        raise UserError(
            f"{said}, expected a number for each class, or such a list for each task that has "
            f"classes, in their order: {', '.join(tasks)}"
        )
    for numbers in lists:
        if not all(_is_weight(x) for x in numbers):
            raise UserError(f"{said}, expected 0 or more for each class")
        if numbers and not any(numbers):
            raise UserError(f"{said}, of which one is all 0, expected a class that counts")
    return {task: tuple(map(float, numbers)) for task, numbers in zip(tasks, lists, strict=True)}


def _is_weight(x: object) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool) and 0 <= x < np.inf
