"""python -m talora_jax.main --config configs/rooms_tiny.py --workdir /tmp/rooms

Trains, or evaluates, what a config describes. The same command again resumes; a finished run says
so. Any field can be overridden: --config.batch_size=8 --config.adapter.kind=lora_shared

What a config describes is told beforehand, for any number of devices, and nothing is allocated:

python -m talora_jax.main --mode describe --config configs/nyuv2_vit_l.py --config.mesh.data=8
"""

import argparse
import json
import re
import sys
import textwrap
from pathlib import Path

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from talora_jax import config as config_lib
from talora_jax.errors import UserError

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "The experiment, a file in configs/. All its fields: talora_jax/config.py."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Where the run leaves checkpoints, metrics, pictures and the adapter."
)
_MODE = flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "evaluate", "describe"],
    "train: train (or resume) and evaluate. evaluate: metrics and pictures of the newest "
    "checkpoint in --workdir, with the config it was trained with. describe: the model of "
    "--config (or of the run in --workdir) as tables: parts, shapes, parameters, what trains, and "
    "memory on each device of config.mesh, whether such devices are here or not.",
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; see --help")
    # Orbax and TFDS log every file they touch.
    logging.set_verbosity(logging.WARNING)
    if _MODE.value == "describe":
        return _describe()
    if not _WORKDIR.value:
        raise UserError("--workdir is missing: where should the run leave what it makes?")
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


def _describe() -> None:
    if _CONFIG.value is None and not _WORKDIR.value:
        raise UserError("--config is missing: name a file in configs/, or --workdir of a run")
    from rich.console import Console

    from talora_jax.describe import describe

    console = Console(highlight=False, markup=False)
    # Wide enough for the tables where the output is no terminal.
    if not console.is_terminal:
        console.width = 120
    describe(_CONFIG.value or _stored_config(Path(_WORKDIR.value).expanduser()), console)


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
    """Flags, and the help text in place of absl's."""
    if {"--help", "-h"} & set(argv):
        print(_help())
        sys.exit(0)
    return parse_flags(argv, flags.FLAGS)


def parse_flags(argv: list[str], values: flags.FlagValues) -> list[str]:
    """Parses argv, whose first entry is the program, into `values`; returns what is no flag.

    Raises:
      UserError: a flag, a field of the config or the config file that is not there, a wrong value.
    """
    _check_config_file(argv)
    try:
        return values(argv)
    except (AttributeError, KeyError) as error:
        # The loader's text, quoted over and over, is: 'sise' Did you mean "size" instead of "sise"?
        named = re.findall(r"\w+", str(error.args[0]).replace("\\n", " "))
        nearest = f"; did you mean {named[4]}?" if named[1:4] == ["Did", "you", "mean"] else ""
        raise UserError(f"the config has no field {named[0]}{nearest}") from error
    except (flags.Error, TypeError, ValueError, OSError) as error:
        raise UserError(" ".join(str(error).split())) from error


def _check_config_file(argv: list[str]) -> None:
    # absl tells a missing file only when the config is first read, and then as a traceback.
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    name = parser.parse_known_args(argv[1:])[0].config
    # Behind a colon is what get_config is called with.
    if name is not None and not Path(name.partition(":")[0]).is_file():
        raise UserError(f"--config: there is no file {name!r}")


def _help() -> str:
    told = [
        f"  --{name}\n{textwrap.indent(textwrap.fill(flags.FLAGS[name].help, 80), ' ' * 6)}"
        for name in ("config", "workdir", "mode")
    ]
    return "\n".join((__doc__ or "", *told))


if __name__ == "__main__":
    cli()
