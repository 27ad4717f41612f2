"""How far a long piece of work has come, on standard error."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

import rich.console
import rich.progress

_SECONDS_BETWEEN_LINES = 20


@contextlib.contextmanager
def progress(title: str, total: int, unit: str) -> Iterator[Callable[[], None]]:
    """Gives a function to call, from one thread, whenever one of `total` is done.

    A terminal gets a bar, which is gone in the end; a log file gets a line now and then.
    """
    console = rich.console.Console(stderr=True)
    bar = rich.progress.Progress(
        rich.progress.TextColumn("{task.description}", markup=False),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn(unit),
        rich.progress.TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    work = bar.add_task(title, total=total)
    done, last_line = 0, time.monotonic()

    def advance() -> None:
        nonlocal done, last_line
        done += 1
        bar.advance(work)
        now = time.monotonic()
        if not console.is_terminal and now - last_line >= _SECONDS_BETWEEN_LINES:
            print(f"{title}: {done} of {total} {unit}", file=sys.stderr)
            last_line = now

    with bar:
        yield advance
