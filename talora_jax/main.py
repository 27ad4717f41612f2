"""python -m talora_jax.main --config configs/rooms_tiny.py --workdir /tmp/rooms

Trains, or evaluates, what a config describes. The same command again resumes; a finished run says
so. Any field can be overridden: --config.batch_size=8 --config.adapter.kind=lora_shared
"""

import json
import sys
from pathlib import Path

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from talora_jax import config as config_lib
from talora_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment, a file in configs/; its fields: talora_jax/config.py."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run leaves checkpoints, metrics, pictures and the adapter."
)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "evaluate"],
    "train: train (or resume) and evaluate. evaluate: metrics and pictures of the newest "
    "checkpoint in --workdir, with the config it was trained with.",
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; see --help")
    if not _WORKDIR.value:
        raise UserError("--workdir is missing: where should the run leave what it makes?")
    # Orbax and TFDS log every file they touch.
    logging.set_verbosity(logging.WARNING)
    workdir = Path(_WORKDIR.value).expanduser()
    # Imported here: --help and a mistyped flag need not wait for JAX.
    if _MODE.value == "train":
        from talora_jax.train import train

        if _CONFIG.value is None:
            raise UserError("--config is missing: name a file in configs/")
        train(_CONFIG.value, workdir)
    else:
        from talora_jax.evaluate import evaluate
        from talora_jax.run import prepare

        evaluate(prepare(_stored_config(workdir)), workdir, print)


def _stored_config(workdir: Path) -> ml_collections.ConfigDict:
    path = workdir / "config.json"
    if not path.exists():
        raise UserError(f"{workdir} holds no run: {path} is missing")
    config = config_lib.default()
    config.update(json.loads(path.read_text()))
    return config


def cli() -> None:
    """`main` with a user's mistakes told in one line and exit status 2."""
    try:
        app.run(main, flags_parser=_parse)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _parse(argv: list[str]) -> list[str]:
    """absl's parser; what it and the config loader raise for a user's mistake becomes one line."""
    try:
        return flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        raise UserError(" ".join(str(error).split())) from error


if __name__ == "__main__":
    cli()
