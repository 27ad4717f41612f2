"""Class indices as they are kept: which of them means no label is applied when they are read.

So that samples need not be prepared again for another `ignore_label`. A label that means none only
as long as nobody says otherwise, 255 in an 8-bit PNG, is kept as -2 - 255.
"""

import dataclasses
from pathlib import Path

import numpy as np
from jaxtyping import Int32

from talora_jax.data.folder.decode import read
from talora_jax.data.folder.settings import Settings
from talora_jax.tasks.target_files import BadFile

# Reading takes -1 for no label, whatever it is told.
_NONE_ELSE = -1


def read_labels(path: Path, settings: Settings) -> Int32[np.ndarray, "H W"]:
    """The labels of a file that `settings` fit, as they are kept."""

    def with_ignored(label: int | None) -> Int32[np.ndarray, "H W"]:
        return read(
            "semantic", path, dataclasses.replace(settings, class_names=(), ignore_label=label)
        )

    try:
        labels, unsaid = with_ignored(_NONE_ELSE), with_ignored(None)
    except BadFile:
        # What is no label need not be one that can be kept; with any other, the file is refused.
        return with_ignored(settings.ignore_label)
    return np.where((unsaid < 0) & (labels >= 0), -2 - labels, labels)


def labels_of(kept: Int32[np.ndarray, "H W"], ignore_label: int | None) -> Int32[np.ndarray, "H W"]:
    """Class indices, -1 = no label."""
    if ignore_label is None:
        return np.maximum(kept, -1)
    labels = np.where(kept < -1, -2 - kept, kept)
    return np.where(labels == ignore_label, np.int32(-1), labels)
