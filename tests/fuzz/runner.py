"""Runs cases, and tells how each ended."""

import collections
import contextlib
import dataclasses
import gc
import io
import random
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from talora_jax.errors import UserError

# How a case can end; all from `TRACEBACK` on are failures, of the code that is tested.
SAME, ACCEPTED, REFUSED = "read the same", "accepted", "refused"
TRACEBACK, HANG, SILENT, LINE = "tracebacks", "hangs", "silent", "bad lines"
LONGEST_LINE = 600  # characters
# After which a case hangs: of computing, and of waiting, where a busy machine counts as well.
SECONDS, WAITED = 10, 60


class Silent(Exception):
    """What an oracle raises of damage that was read as if it were none, in words."""


class _Hang(BaseException):
    """Out of the alarm; no `except Exception` in between catches it."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """One damaged input.

    Attributes:
      what: was done to it, in words.
      act: reads it with the code that is tested.
      judge: the oracle. Takes what `act` gave, and gives `SAME` where that is what the input was
        before, `ACCEPTED` where it is what the input now says.
    """

    what: str
    act: Callable[[], Any]
    judge: Callable[[Any], str]


class Kind(Protocol):
    """A kind of input."""

    def __init__(self, folder: Path):
        """Makes undamaged ones in a folder of its own."""

    def trial(self, rng: random.Random, place: Path) -> Trial:
        """Draws a case, whose files go into an empty folder."""


@dataclasses.dataclass(frozen=True)
class Ending:
    """How a case ended.

    Attributes:
      told: the refusal, the traceback, or what is wrong.
      longest: characters of the longest line that was told or printed.
    """

    verdict: str
    what: str
    told: str = ""
    longest: int = 0


@dataclasses.dataclass
class Tally:
    """How the cases of a kind ended.

    Attributes:
      failures: a paragraph for each case that should not have ended as it did.
    """

    kind: str
    seconds: float = 0.0
    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    longest: int = 0
    failures: list[str] = dataclasses.field(default_factory=list)

    @property
    def cases(self) -> int:
        return self.counts.total()

    def add(self, ending: Ending, how_again: str) -> None:
        self.counts[ending.verdict] += 1
        self.longest = max(self.longest, ending.longest)
        if ending.verdict in (TRACEBACK, HANG, SILENT, LINE):
            self.failures.append(
                f"{self.kind}: {ending.verdict}: {ending.what}\n  {how_again}\n  {ending.told}\n"
            )


def run(
    kind: type[Kind],
    seed: int,
    numbers: Iterable[int],
    limit: Callable[[], None] = lambda: None,
) -> Tally:
    """Runs the cases of a kind that a seed and these numbers stand for.

    Args:
      limit: called before the first.
    """
    name = kind.__module__.rpartition(".")[2]
    tally = Tally(name)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="fuzz_") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = Path(folder) / "whole"
        made.mkdir()
        with _captured():
            cases = kind(made)
        limit()
        # What is there now need not be looked through whenever a case collects garbage.
        gc.freeze()
        for number in numbers:
            place = Path(folder) / "case"
            shutil.rmtree(place, onerror=_made_removable)
            place.mkdir()
            trial = cases.trial(random.Random(f"{name} {seed} {number}"), place)
            again = f"python -m tests.fuzz --kinds {name} --seed {seed} --only {number}"
            tally.add(ending_of(trial), again)
    gc.unfreeze()
    tally.seconds = time.monotonic() - began
    return tally


def ending_of(trial: Trial, seconds: float = SECONDS, waited: float = WAITED) -> Ending:
    """Runs one case."""
    found, told, verdict = None, "", ""
    with _captured() as printed:
        try:
            with _alarm(seconds, waited):
                found = trial.act()
        except UserError as error:
            verdict, told = REFUSED, str(error)
        except _Hang:
            return Ending(HANG, trial.what, f"computes more than {seconds} s, or waits {waited} s")
        except BaseException as error:
            last = "".join(traceback.format_exception(error)[-6:])
            return Ending(TRACEBACK, trial.what, last)
    if not verdict:
        try:
            verdict = trial.judge(found)
        except Silent as silent:
            return Ending(SILENT, trial.what, str(silent))
    lines = [*told.splitlines(), *printed.getvalue().splitlines()]
    longest = max(map(len, lines), default=0)
    unprintable = [line for line in lines if not line.expandtabs().isprintable()]
    if unprintable or longest > LONGEST_LINE:
        bad = unprintable[0] if unprintable else max(lines, key=len)
        return Ending(LINE, trial.what, f"{len(bad)} characters: {bad!r}", longest)
    return Ending(verdict, trial.what, told, longest)


def table(tallies: Sequence[Tally]) -> str:
    """The counts of all kinds."""
    counted = (SAME, ACCEPTED, REFUSED, TRACEBACK, HANG, SILENT, LINE)
    heads = ("kind", "cases", *counted, "longest line")
    rows = [(t.kind, t.cases, *(t.counts[c] for c in counted), t.longest) for t in tallies]
    sums = [sum(row[i] for row in rows) for i in range(1, len(heads) - 1)]
    rows.append(("all", *sums, max((row[-1] for row in rows), default=0)))
    widths = [max(len(str(row[i])) for row in (heads, *rows)) for i in range(len(heads))]
    lines = [
        " | ".join(
            f"{cell:>{width}}" if i else f"{cell:{width}}"
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in (heads, *rows)
    ]
    return "\n".join((lines[0], "-+-".join("-" * width for width in widths), *lines[1:]))


@contextlib.contextmanager
def _captured() -> Iterator[io.StringIO]:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        yield printed


@contextlib.contextmanager
def _alarm(seconds: float, waited: float) -> Iterator[None]:
    def ring(number: int, frame: Any) -> None:
        raise _Hang

    clocks = {
        signal.SIGPROF: (signal.ITIMER_PROF, seconds),
        signal.SIGALRM: (signal.ITIMER_REAL, waited),
    }
    before = {number: signal.signal(number, ring) for number in clocks}
    try:
        for clock, after in clocks.values():
            signal.setitimer(clock, after)
        yield
    finally:
        for clock, _ in clocks.values():
            signal.setitimer(clock, 0)
        for number, handler in before.items():
            signal.signal(number, handler)


def _made_removable(function: Callable, path: str, error: Any) -> None:
    """What a case took the permissions of is removed, too; there need not be any."""
    if Path(path).exists():
        Path(path).parent.chmod(0o700)
        Path(path).chmod(0o700)
        function(path)
