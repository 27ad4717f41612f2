"""Bases: every byte of one is under a checksum, so that damage is told, always.

A base that somebody sealed again, or of before there were checksums, can say something else; then
that must be what is read, to the letter.
"""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from talora_jax.weights import header
from talora_jax.weights.base_file import HEADER_KEY, Description, read_base, read_description
from tests.fuzz import models, mutate
from tests.fuzz.runner import ACCEPTED, SAME, Silent, Trial
from weights_convert.checkpoint import check_finite, open_checkpoint, our_tensors


class Base:
    def __init__(self, folder: Path):
        path = folder / "sam_nano.safetensors"
        models.write_nano_base(path)
        self._whole = path.read_bytes()
        self._tensors, self._description = read_base(path)
        self._head, self._data = models.split(self._whole)

    def trial(self, rng: random.Random, place: Path) -> Trial:
        draw = rng.choices((self._bytes, self._header, self._other_tensors), (5, 4, 1))[0]
        what, data, wanted = draw(rng)
        path = place / "sam.safetensors"
        path.write_bytes(data)
        read = rng.choice((_read, _read, _describe, _convert))
        return Trial(
            f"{read.__name__}: {what}", lambda: read(path), lambda found: self._judge(found, wanted)
        )

    def _judge(self, found: dict[str, Any], wanted: dict[str, Any]) -> str:
        for name, x in found.items():
            if name == "tensors":
                if not models.same_tensors(x, wanted[name]):
                    raise Silent("other tensors than were written")
            elif not mutate.alike(x, wanted[name]):
                raise Silent(f"{name} is {x!r}, and {wanted[name]!r} was written")
        return (
            SAME if wanted is self._undamaged or data_alike(wanted, self._undamaged) else ACCEPTED
        )

    @property
    def _undamaged(self) -> dict[str, Any]:
        return {"tensors": self._tensors, **_told(self._description)}

    def _bytes(self, rng: random.Random) -> tuple[str, bytes, dict]:
        what, data = mutate.damaged(self._whole, rng, len(self._whole) - len(self._data))
        return what, data, self._undamaged

    def _header(self, rng: random.Random) -> tuple[str, bytes, dict]:
        """What it tells is something else, sealed again, or with the old seals."""
        metadata = self._head["__metadata__"]
        told = json.loads(metadata[HEADER_KEY])
        what, odd = mutate.odd_json(told, rng)
        head = {**self._head, "__metadata__": {**metadata, HEADER_KEY: json.dumps(odd)}}
        wanted = self._undamaged
        seal = rng.choice(("again", "again", "old", "none"))
        if seal == "again":
            head = models.resealed(head)
        elif seal == "none":
            del head["__metadata__"][header.METADATA]
        if seal != "old" and isinstance(odd, dict):
            tasks = odd.get("tasks")
            wanted = {
                "tensors": self._tensors,
                "config": models.sizes(odd.get("config")),
                "tasks": tuple(tasks) if isinstance(tasks, list) else tasks,
                "source": odd.get("source"),
                "native_aspect": odd.get("native_aspect", False),
            }
        return f"{what}, seal: {seal}", models.joined(head, self._data), wanted

    def _other_tensors(self, rng: random.Random) -> tuple[str, bytes, dict]:
        what, file, tensors = models.with_other_tensors(
            rng,
            self._tensors,
            self._head,
            ("exchanged", "lost", "added", "narrower", "wider", "turned", "filled"),
            (np.nan, np.inf, 0),
        )
        if tensors is None:
            return what, file, self._undamaged
        given = {
            n: x.astype(np.float32) if x.dtype == np.float16 else x for n, x in tensors.items()
        }
        return what, file, {**self._undamaged, "tensors": given}


def data_alike(a: dict, b: dict) -> bool:
    return models.same_tensors(a["tensors"], b["tensors"]) and all(
        mutate.alike(a[name], b[name]) for name in a if name != "tensors"
    )


def _told(description: Description) -> dict[str, Any]:
    return {
        "config": description.config,
        "tasks": description.tasks,
        "source": description.source,
        "native_aspect": description.native_aspect,
    }


def _read(path: Path) -> dict[str, Any]:
    tensors, description = read_base(path)
    return {"tensors": tensors, **_told(description)}


def _describe(path: Path) -> dict[str, Any]:
    """As before a run, when the tensors stay on the disk."""
    description = read_description(path)
    description.in_words(path)
    return _told(description)


def _convert(path: Path) -> dict[str, Any]:
    checkpoint = open_checkpoint(path)
    check_finite(checkpoint)
    sam = checkpoint.architecture
    tensors = {
        n: x.astype(np.float32) if x.itemsize == 2 else x for n, x in our_tensors(checkpoint)
    }
    return {"tensors": tensors, "config": sam.sam, "tasks": sam.tasks, "source": checkpoint.source}
