"""What a finished run was trained and evaluated on, and whether two runs' data are the same.

A run remembers the files of the targets that it learnt: a single-task run knows fewer than one of
all tasks on the same data. So two runs are compared by what both know.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
import safetensors

from talora_jax import config as config_lib
from talora_jax.data.memory import SETTINGS, by_file, remembered
from talora_jax.weights.adapter_file import FILE_NAME
from talora_jax.weights.header import UNREADABLE

_SHOWN = 8  # digits of a fingerprint


class Data(NamedTuple):
    """What a workdir tells of its data.

    Attributes:
      fields: those of the config that the samples depend on, by dotted name.
      settings: what else they depend on, as far as these targets do.
      files: the split and the digest of each file; empty if none are remembered.
      targets: that the files are of.
      images: the number of each split's, `train_images` and `val_images`; empty in older workdirs.
      class_names: by task; empty if nothing tells.
    """

    fields: Mapping[str, Any]
    settings: Mapping[str, Any]
    files: Mapping[str, tuple[str, str]]
    targets: frozenset[str]
    images: Mapping[str, float]
    class_names: Mapping[str, Sequence[str]]

    def same(self, other: "Data") -> bool:
        """Whether these are the same samples in the same splits, with the same classes."""
        agree = (
            self.fields == other.fields
            and _agree(self.settings, other.settings)
            and _agree(self.images, other.images)
            and _agree(self.class_names, other.class_names)
            and bool(self.files) == bool(other.files)
            and _agree(self.files, other.files)
        )
        if not agree or self.targets == other.targets:
            return agree and self.files.keys() == other.files.keys()
        # Files of other targets may differ, but each sample has an image that both know.
        images = int(sum(self.images.values())) or 1
        both = len(self.files.keys() & other.files.keys())
        return both >= min(images, len(self.files), len(other.files))


def data_of(
    workdir: Path, config: ml_collections.ConfigDict, targets: Sequence[str], told: Mapping
) -> Data:
    """The data of a run.

    Args:
      targets: of the run, tasks or domains of prompts.
      told: the row of its metrics.jsonl about its data.

    Raises:
      UserError: data.json cannot be read.
    """
    contents = remembered(workdir) or {}
    settings = dict(contents.get(SETTINGS, {}))
    settings |= {f"read.{name}": text for name, text in settings.pop("read", {}).items()}
    files = by_file(contents)
    fields = config_lib.flat_fields(config.data.to_dict(), "data")
    unread = {"data.dir"}
    if files or config.data.name != "folder":
        unread.add("data.path")  # where it lies
    if files and config.data.name == "folder":
        unread |= fields.keys() - {"data.name"}  # `settings` has what came of them
    images = {name: told[name] for name in ("train_images", "val_images") if name in told}
    return Data(
        {name: value for name, value in fields.items() if name not in unread},
        settings,
        files,
        frozenset(targets),
        images,
        _class_names(workdir),
    )


def fingerprint(data: Sequence[Data]) -> str:
    """Of one data set, by all that its runs remember; "" if that is nothing."""
    files = {file: found for each in data for file, found in each.files.items()}
    settings = {name: value for each in data for name, value in each.settings.items()}
    if not files and not settings:
        return ""
    text = json.dumps([files, settings, data[0].fields], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:_SHOWN]


def in_words(data: Sequence[Data]) -> str:
    """A sentence about one data set's samples; "" if its runs tell nothing of them."""
    images = next((each.images for each in data if each.images), {})
    classes = {task: len(names) for each in data for task, names in each.class_names.items()}
    parts = []
    if images:
        parts.append(
            "measured on the {val_images:.0f} images of the validation split, trained on "
            "{train_images:.0f}".format(**images)
        )
    parts += [f"{number} classes of {task}" for task, number in classes.items()]
    if digest := fingerprint(data):
        parts.append(f"data {digest}")
    return "; ".join(parts)


def _agree(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    return all(ours[name] == theirs[name] for name in ours.keys() & theirs.keys())


def _class_names(workdir: Path) -> dict[str, list[str]]:
    """Those in the header of the adapter that a run left; empty if there is none to read."""
    try:
        with safetensors.safe_open(workdir / FILE_NAME, "np") as file:
            return json.loads((file.metadata() or {}).get("class_names", "{}"))
    except UNREADABLE:
        return {}
