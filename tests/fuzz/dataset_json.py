"""dataset.json with junk in it: each field must become what it says, or be refused.

The oracle reads the JSON itself, and compares field by field: a number with that number, names with
those names. Nothing in JSON can tell that another value was meant.
"""

import json
import random
from pathlib import Path
from typing import Any

from talora_jax import config as config_lib
from talora_jax.data.folder.settings import Intrinsics, Settings, read_settings
from tests.fuzz import mutate
from tests.fuzz.runner import ACCEPTED, SAME, Silent, Trial

_WHOLE = {
    "class_names": ["table", "object"],
    "depth_scale": 1000,
    "max_depth": 80.5,
    "ignore_label": 255,
    "intrinsics": {"fx": 525, "fy": 525.5, "cx": 319.5, "cy": 239.5},
    "image_size": [240, 320],
    "splits": {"train": ["0001", "kitchen/0003"], "val": ["0002"]},
}
# Of `config.data`, as a command line or a config file gives them.
_INSTEAD = (
    {"class_names": ("x", "y", "z")},
    {"depth_scale": 5000.0},
    {"max_depth": 3.0},
    {"ignore_label": 0},
    {"intrinsics": (1.0, 2.0, 3.0, 4.0)},
    {"image_size": (7, 9)},
)


class DatasetJson:
    def __init__(self, folder: Path):
        del folder

    def trial(self, rng: random.Random, place: Path) -> Trial:
        told = {k: v for k, v in _WHOLE.items() if rng.random() < 0.8}
        what = ""
        for _ in range(rng.choice((1, 1, 1, 2))):
            how, told = mutate.odd_json(told, rng)
            what += f"{how}; "
        data = json.dumps(told).encode()
        if rng.random() < 0.3:
            what, data = mutate.odd_text(json.dumps(_WHOLE, ensure_ascii=rng.random() < 0.5), rng)
        path = place / "dataset.json"
        path.write_bytes(data)
        if rng.random() < 0.03:
            path.rename(place / "Dataset.json")
            what = "by another name"
        instead = rng.choice(_INSTEAD) if rng.random() < 0.2 else {}
        config = config_lib.default()
        config.data.update(image_size=None)
        config.data.update(instead)

        def judge(found: Settings) -> str:
            try:
                fields = mutate.strict_json(data)
            except (ValueError, RecursionError) as error:
                raise Silent(f"read, though it is no JSON: {error}") from None
            if not isinstance(fields, dict) or not fields.keys() <= _WHOLE.keys():
                raise Silent("read, though it is no object, or has unknown fields")
            fields |= instead
            for name in _WHOLE:
                if not _says(getattr(found, name), fields.get(name), name in fields):
                    raise Silent(f"{name} is {getattr(found, name)!r}, not {fields.get(name)!r}")
            return SAME if fields == _WHOLE else ACCEPTED

        return Trial(f"{what} {instead}", lambda: read_settings(place, config.data), judge)


def _says(found: Any, given: Any, there: bool) -> bool:
    """Whether a setting is what stands there; what is not there leaves it unset."""
    if not there:
        return found is None or found == ()
    if isinstance(found, Intrinsics):
        names = ("fx", "fy", "cx", "cy")
        given = [given[name] for name in names] if isinstance(given, dict) else given
        return [getattr(found, name) for name in names] == list(given)
    if isinstance(found, dict):
        return found.keys() == given.keys() and all(_says(found[k], given[k], True) for k in found)
    if isinstance(found, tuple):
        return list(found) == list(given)
    number = isinstance(given, int | float) and not isinstance(given, bool)
    return number and isinstance(found, int | float) and found == given
