"""The console command `talora_jax` and its commands.

A command's module is imported when the command is called: help and mistakes wait for nothing else.
"""

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

import talora_jax
from talora_jax.errors import check_choice, run_command


class Command(NamedTuple):
    """A function of a module, which takes the arguments behind the command's name."""

    module: str
    function: str
    summary: str


COMMANDS = {
    "train": Command("talora_jax.main", "train", "train what a config describes, or resume it"),
    "evaluate": Command("talora_jax.main", "evaluate", "metrics and pictures of a run"),
    "predict": Command("talora_jax.main", "predict", "files of what a model sees in images"),
    "describe": Command("talora_jax.main", "describe", "the model of a config as tables"),
    "sweep": Command("talora_jax.experiments.sweep", "main", "train methods, seeds, ablations"),
    "report": Command("talora_jax.experiments.report", "main", "finished runs side by side"),
    "masks": Command("talora_jax.masks", "main", "masks of everything in images, and their names"),
    "demo": Command("talora_jax.demo", "main", "a page to look, click and point at what it sees"),
    "describe-data": Command(
        "talora_jax.describe_data", "main", "what lies in a folder of data, and where"
    ),
    "download": Command(
        "talora_jax.experiments.download", "main", "NYUv2 or Cityscapes from the Hub"
    ),
    "export": Command(
        "talora_jax.export", "main", "a trained model as StableHLO, as ONNX, or merged"
    ),
    "adapter": Command(
        "talora_jax.experiments.describe_adapter", "main", "what an adapter file holds"
    ),
    "push": Command(
        "talora_jax.experiments.push_command", "main", "an adapter or a base to the Hub"
    ),
    "rooms": Command("talora_jax.data.rooms.__main__", "main", "write a folder of rendered rooms"),
    "convert": Command("weights_convert.__main__", "main", "SAM's weights from and to PyTorch"),
}


def main(arguments: Sequence[str] | None = None) -> int | None:
    """Runs the command that the first argument names; flags without one are those of training.

    Raises:
      UserError: there is no such command, or as the command.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    first = arguments[0] if arguments else "--help"
    if first in ("--help", "-h"):
        print(_help())
        return None
    if first == "--version":
        print(f"talora_jax {talora_jax.__version__}")
        return None
    if first.startswith("-"):
        return importlib.import_module("talora_jax.main").main(arguments)
    check_choice("command", first, COMMANDS)
    command = COMMANDS[first]
    return getattr(importlib.import_module(command.module), command.function)(arguments[1:])


def cli() -> None:
    """The console command."""
    run_command(main)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        (
            "usage: talora_jax COMMAND …, or talora_jax --config CONFIG --workdir DIR to train",
            "",
            *(talora_jax.__doc__.splitlines()[0], ""),
            *lines,
            "",
            "talora_jax COMMAND --help tells a command's arguments, talora_jax --version the "
            "version.",
        )
    )
