"""Mistakes of the person at the keyboard."""

import argparse
import difflib
import gc
import io
import itertools
import signal
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NoReturn

from talora_jax import signals

_LONGEST = 300  # characters
_SHOWN = 80  # characters of a value
_MOST_TOLD = 580  # characters of several sentences


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

    def __init__(self, message: str):
        # What is named may come from a file: it shall not write to the terminal as it likes.
        super().__init__("\n".join(printable(line, None) for line in message.split("\n")))


class Refusals:
    """What is wrong with things that have names, to be told at once.

    Attributes:
      by_field: the sentences, by the name of what each is about.
    """

    def __init__(self) -> None:
        self.by_field: dict[str, str] = {}

    def ask(self, check: Callable[[], Any], field: str, *others: str) -> None:
        """Makes a check and keeps what it refuses.

        Args:
          field: what it is about. Where it or one of the others that the check looks at has been
            refused already, there is no telling, and the check is not made.
        """
        if self.by_field.keys().isdisjoint((field, *others)):
            try:
                check()
            except UserError as error:
                self.by_field[field] = str(error)


def tell_together(sentences: Iterable[str]) -> None:
    """Refuses what the sentences tell, a line each: the first ones, if they are many.

    Raises:
      UserError: there are any.
    """
    lines = list(sentences)
    shown = list(itertools.accumulate(len(line) + 1 for line in lines))
    count = max(1, sum(length <= _MOST_TOLD for length in shown))
    more = [f"and {len(lines) - count} more"] if count < len(lines) else []
    if lines:
        raise UserError("\n".join([*lines[:count], *more]))


class Stopped(KeyboardInterrupt):
    """The end of a command that was asked to stop, told in one sentence.

    Args:
      message: where it stands, and how to go on.
      status: to exit with: 128 and the number of the signal, as shells and schedulers know it.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, with a wrong argument told as a UserError that names the nearest right one.

    Args:
      doc: what --help begins with. The first paragraph is the usage, the rest the description.
      program: how the command is called; then `doc` is all description, and the usage is made of
        the arguments.
    """

    def __init__(self, doc: str, program: str | None = None):
        usage, _, description = doc.partition("\n\n")
        super().__init__(
            prog=program,
            usage=None if program else usage.replace("%", "%%"),
            description=doc if program else description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def parse_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        namespace, unknown = self.parse_known_args(args, namespace)
        self._refuse(unknown)
        return namespace

    def parse_intermixed_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        namespace, unknown = self.parse_known_intermixed_args(args, namespace)
        self._refuse(unknown)
        return namespace

    def parse_known_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        # `--flag=a b` is `--flag a b` where a flag takes several values, to argparse it is not.
        several = {
            flag for flag, action in self._option_string_actions.items() if action.nargs == "+"
        }
        spelt: list[str] = []
        for argument in sys.argv[1:] if args is None else args:
            flag, equals, value = argument.partition("=")
            spelt += [flag, value] if equals and flag in several else [argument]
        return super().parse_known_args(spelt, namespace)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")

    def _refuse(self, unknown: Sequence[str]) -> None:
        if unknown:
            flag = unknown[0].partition("=")[0]
            hint = did_you_mean(flag, self._option_string_actions) or "; see --help"
            raise UserError(f"unexpected argument {short(unknown[0], _SHOWN)}{hint}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None:
            name = action.option_strings[0] if action.option_strings else action.dest
            check_choice(name, value, action.choices)


def did_you_mean(word: str, names: Iterable[str]) -> str:
    """What to add to a sentence about an unknown word: the nearest name, or nothing."""
    name = nearest(word, names)
    return f"; did you mean {name}?" if name else ""


def nearest(word: str, names: Iterable[str]) -> str | None:
    """The name that a mistyped word is likely to mean."""
    return next(iter(difflib.get_close_matches(word, list(names), 1)), None)


def check_choice(name: str, value: Any, allowed: Collection[Any]) -> None:
    """Refuses a value that is none of the allowed ones.

    Raises:
      UserError: tells `name`, the value, what is allowed, and which of it is nearest.
    """
    if value not in list(allowed):  # what is no key can be looked up in no dict
        names = [str(choice) for choice in allowed]
        raise UserError(
            f"{name}: unknown {short(value, _SHOWN)}, expected one of {', '.join(names)}"
            f"{did_you_mean(str(value), names)}"
        )


def run_command(main: Callable[[], int | None]) -> None:
    """Runs a command; a user's mistake is told in one line, and is exit status 2.

    So is the end by Ctrl-C or SIGTERM, with the status that shells give it, 130 or 143.
    """
    # What is traced stays, millions of objects: Python's own 700 new ones are too few to look for
    # garbage after, which takes a quarter of a start.
    gc.set_threshold(100_000, 20, 20)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # What a phase says is read at once in a file or through a pipe, too.
        sys.stdout.reconfigure(line_buffering=True)
    try:
        with signals.ending_at_once(signal.SIGTERM), signals.interrupting():
            status = main()
    except (UserError, KeyboardInterrupt) as error:
        told, status = outcome(error)
        print(told, file=sys.stderr)
    if status:
        sys.exit(status)


def outcome(error: BaseException) -> tuple[str | None, int]:
    """What a command that ends by an exception tells, and its exit status.

    Nothing where a traceback tells more.
    """
    if isinstance(error, UserError):
        return f"error: {error}", 2
    if isinstance(error, Stopped):
        return str(error), error.status
    if isinstance(error, KeyboardInterrupt):
        return "stopped", 130
    return None, 1


def one_line(error: BaseException | str) -> str:
    """What another library's exception says, as part of a sentence: one line, not a long one."""
    return printable(" ".join(str(error).split()) or type(error).__name__, _LONGEST)


def printable(text: object, longest: int | None = 200) -> str:
    """A name from a file or a person, for a message: no terminal escapes or new lines, not long.

    Args:
      longest: how many characters it may have; None for all. What is cut is the middle.
    """
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text))
    if longest is None or len(shown) <= longest:
        return shown
    return f"{shown[: longest - 40]}…{shown[-39:]}"


def short(value: object, longest: int) -> str:
    """A value as Python writes it, for a message: no more of it than so many characters."""
    text = repr(value)
    return text if len(text) <= longest else f"{text[:longest]}…"


def some(names: Sequence[str], most: int) -> str:
    """The first of some names, printable; the rest is counted."""
    shown = ", ".join(printable(name, 60) for name in names[:most])
    return shown + (f" and {len(names) - most} more" if len(names) > most else "")


def listed(names: Iterable[str], limit: int = 300, between: str = ", ") -> str:
    """Names from a file, printable, as many as go into so many characters; the rest is counted."""
    names = [printable(name, limit) for name in names]
    shown, length = 0, 0
    for name in names:
        length += len(name) + 2
        if length > limit and shown:
            break
        shown += 1
    told = names[:shown]
    if shown < len(names):
        told.append(f"and {len(names) - shown} more")
    return between.join(told)
