"""Adapter files: as bases, and what is read must fit its base, or be refused beside it."""

import copy
import dataclasses
import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import rich.console

from talora_jax.experiments.describe_adapter import describe
from talora_jax.weights import header
from talora_jax.weights.adapter_file import AdapterFile
from talora_jax.weights.assemble import Base, check_fits, read_base_of
from talora_jax.weights.assemble import joined as join
from tests.fuzz import models, mutate
from tests.fuzz.runner import ACCEPTED, SAME, Silent, Trial

_FIELDS = [field.name for field in dataclasses.fields(AdapterFile) if field.name != "tensors"]
# What decides of which shapes a model is; to trace another one takes long.
_TRACED = ("adapter", "channels", "sam")


class Adapter:
    def __init__(self, folder: Path):
        base, path = folder / "sam_nano.safetensors", folder / "adapter.safetensors"
        tensors = models.write_nano_base(base)
        models.nano_adapter(base, tensors).write(path)
        self._whole = path.read_bytes()
        self._head, self._data = models.split(self._whole)
        self._file = AdapterFile.read(path)
        self._base = read_base_of(self._file, path)
        self._undamaged = _told(self._file)

    def trial(self, rng: random.Random, place: Path) -> Trial:
        draw = rng.choices((self._bytes, self._header, self._other_tensors), (5, 4, 1))[0]
        what, data, wanted = draw(rng)
        path = place / "adapter.safetensors"
        path.write_bytes(data)
        return Trial(
            what,
            lambda: _read(path, self._file, self._base),
            lambda found: self._judge(found, wanted),
        )

    def _judge(self, found: dict[str, Any], wanted: dict[str, Any]) -> str:
        if not models.same_tensors(found["tensors"], wanted["tensors"]):
            raise Silent("other tensors than were written")
        for name in _FIELDS:
            if not mutate.alike(found[name], wanted[name]):
                raise Silent(f"{name} is {found[name]!r}, and {wanted[name]!r} was written")
        same = models.same_tensors(wanted["tensors"], self._undamaged["tensors"])
        same = same and all(mutate.alike(wanted[n], self._undamaged[n]) for n in _FIELDS)
        return SAME if same else ACCEPTED

    def _bytes(self, rng: random.Random) -> tuple[str, bytes, dict]:
        what, data = mutate.damaged(self._whole, rng, len(self._whole) - len(self._data))
        return what, data, self._undamaged

    def _header(self, rng: random.Random) -> tuple[str, bytes, dict]:
        """A field says something else, sealed again, or with the old seals, or none."""
        metadata = self._head["__metadata__"]
        name = rng.choice(_FIELDS)
        what, odd = mutate.odd_json(json.loads(metadata[name]), rng)
        head = {**self._head, "__metadata__": {**metadata, name: json.dumps(odd)}}
        if rng.random() < 0.1:
            del head["__metadata__"][name]
            what, odd = "no field", _default(name)
        seal = rng.choice(("again", "again", "old", "none"))
        if seal == "again":
            head = models.resealed(head)
        elif seal == "none":
            del head["__metadata__"][header.METADATA]
        wanted = self._undamaged if seal == "old" else {**self._undamaged, name: odd}
        return f"{name} {what}, seal: {seal}", models.joined(head, self._data), wanted

    def _other_tensors(self, rng: random.Random) -> tuple[str, bytes, dict]:
        what, file, tensors = models.with_other_tensors(
            rng,
            self._file.tensors,
            self._head,
            ("exchanged", "lost", "added", "narrower", "turned", "filled"),
            (np.nan, np.inf),
        )
        wanted = self._undamaged if tensors is None else {**self._undamaged, "tensors": tensors}
        return what, file, wanted


def _told(file: AdapterFile) -> dict[str, Any]:
    fields = {name: copy.deepcopy(getattr(file, name)) for name in _FIELDS}
    return {"tensors": dict(file.tensors), **fields}


def _default(name: str) -> Any:
    field = next(field for field in dataclasses.fields(AdapterFile) if field.name == name)
    return {} if name == "config" else field.default


def _read(path: Path, whole: AdapterFile, base: Base) -> dict[str, Any]:
    file = AdapterFile.read(path)
    describe(path, rich.console.Console(file=io.StringIO(), width=100, markup=False))
    if all(getattr(file, name) == getattr(whole, name) for name in _TRACED):
        check_fits(file, path, base)
        join(file, path, base)
    return _told(file)
