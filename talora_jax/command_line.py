"""How a command line becomes a config."""

import argparse
import ast
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import ml_collections
from absl import flags
from ml_collections import config_flags

import talora_jax
from talora_jax import config as config_lib
from talora_jax.errors import ArgumentParser, UserError, nearest, one_line, short


def parse(
    parser: ArgumentParser, arguments: Sequence[str] | None = None
) -> tuple[argparse.Namespace, ml_collections.ConfigDict | None]:
    """A command's own arguments, and the config that its --config and --config.FIELD=VALUE give.

    The latter are among the former, too, as `overrides`; without --config they are only there.

    Args:
      parser: has an argument --config, unless the command takes no config.
      arguments: of the command; the program's if not given.

    Raises:
      UserError: an argument, a file, a field or a value that is not allowed.
    """
    own, overrides = _split(sys.argv[1:] if arguments is None else arguments)
    args = parser.parse_args(own)
    args.overrides = overrides
    name = getattr(args, "config", None)
    return args, None if name is None else load_config(name, overrides)


def load_config(name: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """The config of a file, with changes.

    Args:
      name: a path, or the name of one of the configs that come with talora_jax (`rooms_tiny`);
        behind a colon what its get_config is called with (`nyuv2:vit_h`).
      overrides: --config.FIELD=VALUE each; VALUE is None for a field that can be unset, and of a
        field with several names they may stand with commas between them.

    Raises:
      UserError: a file, a field or a value that is not allowed, or an argument of another kind.
    """
    return override(_made(name), overrides)


def fields_of(overrides: Sequence[str]) -> list[str]:
    """The dotted names of the fields that --config.FIELD=VALUE change.

    Raises:
      UserError: an argument of another kind, or no such field.
    """
    known, fields = config_lib.named(config_lib.default()), []
    for argument in overrides:
        if not re.match(r"--config\..+=|--(no)?config\.[^=]+$", argument):
            raise UserError(f"unexpected argument {short(argument, 80)}; see --help")
        fields.append(re.match(r"--(?:no)?config\.([^=\[]*)", argument)[1])
        if fields[-1] not in known:
            raise UserError(config_lib.no_field(fields[-1]))
    return fields


def override(
    config: ml_collections.ConfigDict, overrides: Sequence[str]
) -> ml_collections.ConfigDict:
    """The config with changes, see `load_config`."""
    # Of a field that is given twice the last counts; the library would join the values of tuples.
    changes = dict(zip(fields_of(overrides), overrides, strict=True))
    for field, argument in changes.items():
        section, _, name = field.rpartition(".")
        flag, _, text = argument.partition("=")
        if (config[section] if section else config).get_type(name) is tuple:
            # The library would make a tuple of its keys.
            if text.lstrip().startswith("{"):
                raise UserError(f"config.{field} is {short(text, 80)}, expected values in brackets")
            if "," in text:
                changes[field] = f"{flag}={_quoted(text)}"
    unset = {f for f in config_lib.OPTIONAL if changes.get(f) == f"--config.{f}=None"}
    argv = ["", *(argument for field, argument in changes.items() if field not in unset)]
    values = flags.FlagValues()
    try:
        holder = config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, sys_argv=argv
        )
        values(argv)
        holder.value.update_from_flattened_dict(dict.fromkeys(unset))
        config_lib.unset_empty(holder.value)
    except (flags.Error, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(one_line(error)) from error
    return holder.value


def _quoted(text: str) -> str:
    """Names with commas between them, as the library reads them; what it reads itself as it is."""
    try:
        ast.literal_eval(text)
    except (SyntaxError, ValueError):
        if not re.search(r"[\[\](){}'\"]", text):
            return str(tuple(name.strip() for name in text.split(",") if name.strip()))
    return text


def _made(name: str) -> ml_collections.ConfigDict:
    """What the get_config of a config file gives.

    Raises:
      UserError: there is no such file, or it does not make a config.
    """
    argv = ["", f"--config={_find(name)}"]
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        values(argv)
        config = holder.value
    # A config file is a program, in which anything may go wrong.
    except (Exception, SystemExit) as error:
        text = str(error)
        # What the loader says of an unknown field is followed by the whole config.
        unknown = re.search(r"Key \W*(\w+)\W* does not exist and cannot be added", text)
        if unknown:
            near = re.search(r"Did you mean \W*(\w+)", text)
            told = config_lib.no_field(unknown[1], near and near[1])
        elif "Error whilst parsing config file" in text:
            # Behind it is a traceback.
            told = one_line(text.strip().splitlines()[-1])
        elif "has no attribute 'get_config'" in text:
            told = "it has no function get_config"
        else:
            told = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"--config={name}: {told}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(
            f"--config={name}: its get_config gives {type(config).__name__}, expected a config "
            "made from talora_jax.config.default()"
        )
    fields, expected = config_lib.named(config), config_lib.named(config_lib.default())
    for field in fields:
        if field not in expected:
            raise UserError(f"--config={name}: {config_lib.no_field(field)}")
    lacking = [field for field in expected if field not in fields]
    if lacking:
        raise UserError(
            f"--config={name}: the config lacks {lacking[0]}; make it from "
            "talora_jax.config.default()"
        )
    return config


def config_directory() -> Path:
    """Where the configs that come along are: in the package, or beside it in a checkout."""
    package = Path(talora_jax.__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def _find(name: str) -> str:
    """The path of a config file, with what `name` has behind a colon.

    Raises:
      UserError: there is none at this path or by this name.
    """
    file, colon, argument = name.partition(":")
    known = {path.stem: path for path in sorted(config_directory().glob("*.py"))}
    if Path(file).is_file():
        return name
    if file.removesuffix(".py") in known:
        return f"{known[file.removesuffix('.py')]}{colon}{argument}"
    hint = ""
    # What some configs are called with is a size.
    sized = re.fullmatch("(.+)_(vit_[blh])", Path(file).stem)
    if sized and sized[1] in known:
        near, colon, argument = sized[1], ":", sized[2]
    else:
        near = nearest(Path(file).stem, known)
    if near:
        beside = Path(file).with_name(f"{near}.py")
        hint = f"; did you mean {beside if beside.is_file() else near}{colon}{argument}?"
    raise UserError(
        f"--config: there is no file {name!r}, and no config of this name: {', '.join(known)}{hint}"
    )


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """A command's own arguments, and --config.FIELD VALUE as --config.FIELD=VALUE."""
    own: list[str] = []
    overrides: list[str] = []
    expects_value = False
    for argument in arguments:
        if re.match(r"--(no)?config\.", argument):
            overrides.append(argument)
            expects_value = argument.startswith("--config.") and "=" not in argument
        elif expects_value and not argument.startswith("--"):
            overrides[-1] += f"={argument}"
            expects_value = False
        else:
            own.append(argument)
            expects_value = False
    return own, overrides
