"""Mistakes of the person at the keyboard."""

import argparse
from typing import NoReturn


class UserError(Exception):
    """A mistake that the user can mend, told in one sentence.

    The message names the thing that is wrong and what was expected. `talora_jax.main` prints it
    without a traceback and exits with status 2.
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
