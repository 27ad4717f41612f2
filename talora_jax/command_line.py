"""Configs and flags from a command line: mistakes told in one line, help for people."""

import argparse
import re
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

from talora_jax.errors import UserError, one_line


def parse(argv: list[str], doc: str) -> list[str]:
    """The flags of `talora_jax.main`, and a help text in place of absl's.

    Args:
      argv: the command line.
      doc: what --help says before it lists the flags.
    """
    if {"--help", "-h"} & set(argv):
        print(_help(doc))
        sys.exit(0)
    return parse_flags(one_flag_each(argv, "images"), flags.FLAGS)


def load_config(file: str, arguments: Sequence[str]) -> ml_collections.ConfigDict:
    """The config of a file, for a command with flags of its own.

    Args:
      arguments: changes of fields, --config.FIELD=VALUE, as `talora_jax.main` understands them.

    Raises:
      UserError: an argument that is none of these, or as `parse_flags`.
    """
    for argument in arguments:
        if not argument.startswith("--config.") or "=" not in argument:
            raise UserError(f"unexpected argument {argument!r}; see --help")
    argv = ["", f"--config={file}", *arguments]
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    parse_flags(argv, values)
    return config.value


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
        raise UserError(one_line(error)) from error


def _check_config_file(argv: list[str]) -> None:
    # absl tells a missing file only when the config is first read, and then as a traceback.
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    name = parser.parse_known_args(argv[1:])[0].config
    # Behind a colon is what get_config is called with.
    if name is not None and not Path(name.partition(":")[0]).is_file():
        raise UserError(f"--config: there is no file {name!r}")


def one_flag_each(argv: list[str], name: str) -> list[str]:
    """`--images a b --out c` as absl reads it: --images=a --images=b --out c."""
    flag, several, gathering = f"--{name}", [], False
    for argument in argv:
        if argument.startswith("--"):
            gathering = argument.partition("=")[0] == flag
            if argument != flag:
                several.append(argument)
        else:
            several.append(f"{flag}={argument}" if gathering else argument)
    return several


def _help(doc: str) -> str:
    ours = flags.FLAGS.find_module_defining_flag("mode")
    names = [flag.name for flag in flags.FLAGS.flags_by_module_dict()[ours]]
    told = [
        f"  --{name}\n{textwrap.indent(textwrap.fill(flags.FLAGS[name].help, 80), ' ' * 6)}"
        for name in names
    ]
    return "\n".join((doc, *told))
