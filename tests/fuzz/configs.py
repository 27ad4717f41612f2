"""Every field of a config with junk, by the command line and by a workdir's config.json.

The oracle reads the text or the JSON itself: where a config is accepted, the field must be what was
given, and all other fields what they were. What a value means for training is not judged here; that
it is within the field's type is.
"""

import ast
import json
import math
import random
from pathlib import Path
from typing import Any

import ml_collections

from talora_jax import config as config_lib
from talora_jax import config_checks
from talora_jax.command_line import override
from talora_jax.training import setup
from tests.fuzz import mutate
from tests.fuzz.runner import ACCEPTED, SAME, Silent, Trial

_TEXTS = (
    "", "None", "none", "null", "True", "False", "true", "1", "0", "-1", "2", "7", "255", "256",
    "-0", "1.5", "0.5", "1.0", "1e3", "-0.0", "nan", "inf", "-inf", "1e400", "1e39", "1e-400",
    "0x10", "1_000", " 3", "3 ", "٣", "2147483647", "2147483648", "9" * 5000, "(1,2)", "(1, 2)",
    "(1,)", "[1, 2]", "1,2", "(1,2,3)", "(1.0, 2.0)", "(1.0, nan)", "(0, 0)", "(-1, 5)", "()",
    "(())", "((1,),)", "(True, False, True)", "(True,True,1)", "('a','b')", "('a',)", "(b'x',)",
    "{}", "{'a': 1}", "'x'", '"x"', "x", "x" * 3000, "\x1b[31mred", "é", "two\nlines", "\0",
    "a=b", "--x", "../..", "*", "%s", "(1e400, 2)", "(10**9,)", "semantic", "('semantic',)",
    "('semantic','depth')", "('edges','edges')", "(32, 32, 4)", "(8, 8, 2)", "(0, 8, 2)",
    "(4, 4, 2.0)", "(1.2, 1.5)", "(2.0, 1.0)", "(64, 64)", "(9" + "9" * 5000 + ",)", "(" * 300,
    "lambda: 0", "folder", "rooms", "tiny", "vit_b", "float32", "bfloat16", "float16", "adam",
    "prompts", "equal", "lora_shared", "none", "full", "auto", "xla",
)  # fmt: skip
_RAN = "made"


class Configs:
    def __init__(self, folder: Path):
        del folder
        self._fields = {
            name.removeprefix("config."): value
            for name, value in config_lib.flat_fields(config_lib.default().to_dict()).items()
        }
        self._whole = json.loads(json.dumps(config_lib.default().to_dict()))

    def trial(self, rng: random.Random, place: Path) -> Trial:
        return (self._text if rng.random() < 0.6 else self._json)(rng, place)

    def _text(self, rng: random.Random, place: Path) -> Trial:
        """--config.FIELD=TEXT."""
        field = rng.choice(sorted(self._fields))
        text = rng.choice(_TEXTS)
        if rng.random() < 0.1:
            text = f"__import__('os').mkdir({str(place / _RAN)!r})"
        argument = f"--config.{field}={text}"
        if rng.random() < 0.1:
            odd = rng.choice(
                (f"{field}x", field.upper(), f"{field}.x", f"{field}[0]", "", ".", "\x1b[2J")
            )
            argument, text = f"--config.{odd}={text}", None
        elif rng.random() < 0.03:
            argument, text = f"--noconfig.{field}", "False"

        def judge(found: dict[str, Any]) -> str:
            if (place / _RAN).exists():
                raise Silent("the text was run")
            if text is None and not odd.endswith("[0]"):
                raise Silent("accepted, and there is no such field")
            return self._judge(found, {field: text} if text is not None else {}, _means)

        return Trial(
            argument[:300], lambda: _checked(override(config_lib.default(), [argument])), judge
        )

    def _json(self, rng: random.Random, place: Path) -> Trial:
        """A config.json, with something else in it."""
        what, told = mutate.odd_json(self._whole, rng)
        if rng.random() < 0.5:
            # Of the field's own kind, mostly.
            path = tuple(rng.choice(sorted(self._fields)).split("."))
            value = rng.choice(
                (0, 1, 2, -1, 0.5, 1e-9, True, [1, 2], [4, 4, 2], "auto", ["semantic"], "")
            )
            what, told = f"{path} = {value!r}", mutate.put(self._whole, path, value)
        data = json.dumps(told).encode()
        if rng.random() < 0.2:
            what, data = mutate.odd_text(json.dumps(self._whole), rng)
        path = place / "config.json"
        path.write_bytes(data)

        def judge(found: dict[str, Any]) -> str:
            try:
                fields = mutate.strict_json(data)
            except (ValueError, RecursionError) as error:
                raise Silent(f"read, though it is no JSON: {error}") from None
            if not isinstance(fields, dict):
                raise Silent("read, though it is no object")
            flat = config_lib.flat_fields(fields)
            given = {name.removeprefix("config."): value for name, value in flat.items()}
            return self._judge(found, given, is_given)

        return Trial(f"config.json {what}", lambda: _checked(config_lib.read(path)), judge)

    def _judge(self, found: dict[str, Any], given: dict[str, Any], means: Any) -> str:
        for name, default in self._fields.items():
            x, wanted = found[f"config.{name}"], given.get(name, default)
            fits = means(x, wanted, name) if name in given else mutate.alike(x, default)
            if not fits:
                raise Silent(f"{name} is {x!r}, and {wanted!r} was given")
            if not _is_of_type(x, default, name):
                raise Silent(f"{name} is {x!r}, of another type than {default!r}")
        if given.keys() - self._fields.keys():
            raise Silent("accepted, and there are no such fields")
        same = all(mutate.alike(found[f"config.{n}"], x) for n, x in self._fields.items())
        return SAME if same else ACCEPTED


def _checked(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """The fields of a config that training would begin with."""
    if config.hosts.to_dict() == config_lib.default().hosts.to_dict():
        setup.start(config)
    config_checks.check(config)
    return config_lib.flat_fields(config.to_dict())


def _means(found: Any, text: str, name: str) -> bool:
    """Whether a value is what a text says, for a field of its type."""
    if name in config_lib.OPTIONAL and (text in ("None", "") or found is None):
        empty = config_lib.OPTIONAL[name]
        return found is None and (text == "None" or _says(empty, text))
    return _says(found, text)


def _says(found: Any, text: str) -> bool:
    if isinstance(found, str):
        return found == text
    if isinstance(found, bool):
        return text.lower() in (("true", "1", "t") if found else ("false", "0", "f"))
    if isinstance(found, tuple) and len(found) == 1:
        # One alone needs no brackets, and no quotation marks.
        if _says(found[0], text) or text.strip() in (f"'{found[0]}'", f'"{found[0]}"'):
            return True
    try:
        if isinstance(found, int):
            return int(text, 0) == found
        if isinstance(found, float):
            return float(text) == found
        literal = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False
    return mutate.alike(tuple(literal) if isinstance(literal, list) else literal, found)


def is_given(found: Any, given: Any, name: str) -> bool:
    """Whether a value is what JSON says; a whole number is a float, too."""
    if found is None and name in config_lib.OPTIONAL:
        empty = config_lib.OPTIONAL[name]
        return given is None or mutate.alike(given, empty) or given == empty
    if isinstance(found, float) and isinstance(given, int) and not isinstance(given, bool):
        return found == given
    return mutate.alike(found, given)


def _is_of_type(x: Any, default: Any, name: str) -> bool:
    if x is None:
        return name in config_lib.OPTIONAL
    if default is None:
        return True
    if isinstance(default, bool) or isinstance(x, bool):
        return isinstance(default, bool) and isinstance(x, bool)
    if isinstance(default, float):
        return isinstance(x, int | float) and math.isfinite(x)
    return isinstance(x, tuple | list) if isinstance(default, tuple) else type(x) is type(default)
