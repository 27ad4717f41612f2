"""Mistakes of the person at the keyboard."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """A mistake that the user can mend, told in one sentence.

    The message names the thing that is wrong and what was expected. Commands print it without a
    traceback and exit with status 2; see `run_command`.

    >>> import talora_jax
    >>> try:
    ...     talora_jax.load("no_such_run")
    ... except talora_jax.UserError as error:
    ...     print(error)
    no adapter at no_such_run
    """


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, with a wrong argument told as a UserError; its help begins as the docstring."""

    def __init__(self, doc: str):
        usage, _, description = doc.partition("\n\n")
        super().__init__(
            usage=usage.replace("%", "%%"),
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def run_command(main: Callable[[], int | None]) -> None:
    """Runs a command; a user's mistake is told in one line, and is exit status 2."""
    try:
        status = main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    if status:
        sys.exit(status)


def one_line(error: Exception) -> str:
    """What another library's exception says, as part of a sentence."""
    return " ".join(str(error).split()) or type(error).__name__
